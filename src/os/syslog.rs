//! The system's log: messages to the local log daemon, whatever becomes of that daemon.
//!
//! A message is a datagram to a socket in the file system, `/dev/log` (syslog(3)). A log daemon that is started again makes
//! another socket under the same name. So after each failure the socket is opened anew. Nothing here waits: what cannot be
//! sent is kept, up to a bound, and sent with the next message or the next [`Syslog::flush`]. What is beyond the bound is
//! lost, and counted. The log itself is told how much, as soon as it can be written.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;

use crate::limits::LOG_LINES_WAITING_MAX;

/// Where the local syslog daemon or journald listens (syslog(3)).
const SYSLOG: &str = "/dev/log";

/// Facility "daemon" (RFC 5424 table 1), shifted as in a priority value.
const FACILITY_DAEMON: u8 = 3 << 3;

/// Longest message, in bytes: what every syslogd takes (RFC 3164 §4.1).
const LINE_BYTES_MAX: usize = 1024;

/// How grave a message is (RFC 5424 table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something failed.
    Error = 3,
    /// Something is not as it should be.
    Warning = 4,
    /// For the record.
    Info = 6,
    /// For whoever looks for a mistake in the program.
    Debug = 7,
}

/// How the log is at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that wait to be sent.
    pub waiting: u64,
    /// Messages that were lost.
    pub lost: u64,
    /// Why the last attempt failed; none when it did not.
    pub error: Option<String>,
}

impl Standing {
    /// Whether the log has failed us: it was written before and cannot be now, or messages were lost. A host that never had
    /// a log fails nobody until then.
    pub fn is_failing(&self) -> bool {
        self.error.is_some() && (self.sent > 0 || self.lost > 0)
    }
}

/// A connection to a log daemon.
#[derive(Debug)]
pub struct Syslog {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    socket: Option<UnixDatagram>,
    waiting: VecDeque<Vec<u8>>,
    /// Lost messages that the log does not know of.
    untold: u64,
    standing: Standing,
}

/// The system's log of this process.
static SYSTEM: OnceLock<Syslog> = OnceLock::new();

impl Syslog {
    /// The log daemon that listens at this path, if one does.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), state: Mutex::default() }
    }

    /// The system's log, from now on that of this process.
    pub fn of_system() -> &'static Self {
        SYSTEM.get_or_init(|| Self::at(SYSLOG.as_ref()))
    }

    /// The system's log, if this process writes to it.
    pub fn in_use() -> Option<&'static Self> {
        SYSTEM.get()
    }

    /// Sends a message, or keeps it for later. Never waits for the log daemon.
    pub fn send(&self, severity: Severity, text: &str) {
        let mut state = self.state.lock();
        if state.waiting.len() < LOG_LINES_WAITING_MAX {
            state.waiting.push_back(line(severity, text));
        } else {
            state.standing.lost += 1;
            state.untold += 1;
        }
        self.send_waiting(&mut state);
    }

    /// Sends what waits, as far as the log daemon takes it.
    pub fn flush(&self) {
        self.send_waiting(&mut self.state.lock());
    }

    /// How the log is.
    pub fn standing(&self) -> Standing {
        let state = self.state.lock();
        Standing { waiting: state.waiting.len() as u64, ..state.standing.clone() }
    }

    fn send_waiting(&self, state: &mut State) {
        loop {
            if state.waiting.is_empty() && state.untold > 0 {
                let text = format!("{} messages before this one were lost: the log could not be written", state.untold);
                state.waiting.push_back(line(Severity::Warning, &text));
                state.untold = 0;
            }
            let Some(next) = state.waiting.front() else { return };
            match self.attempt(&mut state.socket, next) {
                Ok(()) => {
                    state.waiting.pop_front();
                    state.standing.sent += 1;
                    state.standing.error = None;
                }
                Err(error) => {
                    state.standing.error = Some(format!("{}: {error}", self.path.display()));
                    return;
                }
            }
        }
    }

    /// Sends a line by the socket that is open, else by a new one. One that fails is closed: what listens under the name by
    /// now may be another, also while the one of before still is there and takes nothing.
    fn attempt(&self, open: &mut Option<UnixDatagram>, line: &[u8]) -> io::Result<()> {
        if let Some(socket) = open.take()
            && socket.send(line).is_ok()
        {
            *open = Some(socket);
            return Ok(());
        }
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(&self.path)?;
        socket.send(line)?;
        *open = Some(socket);
        Ok(())
    }
}

fn line(severity: Severity, text: &str) -> Vec<u8> {
    let text = text.replace(['\n', '\r', '\0'], " ");
    let priority = FACILITY_DAEMON | severity as u8;
    let mut line = format!("<{priority}>scelle[{}]: {text}", std::process::id());
    line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, Instant};

    use super::*;

    /// A log daemon: a socket at `path`, in the place of the one of before.
    fn listen(path: &Path) -> UnixDatagram {
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    /// The texts that have arrived.
    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 2 * LINE_BYTES_MAX];
        let mut texts = Vec::new();
        while let Ok(length) = socket.recv(&mut bytes) {
            let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
            texts.push(text.split_once(": ").unwrap().1.to_owned());
        }
        texts
    }

    fn send(log: &Syslog, texts: std::ops::Range<usize>) {
        texts.for_each(|number| log.send(Severity::Warning, &number.to_string()));
    }

    fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|number| number.to_string()).collect()
    }

    #[test]
    fn a_message_is_one_bounded_line() {
        let text = line(Severity::Warning, &format!("a\nb{}", "é".repeat(5000)));
        assert!(text.starts_with(b"<28>scelle["));
        assert!(text.len() <= LINE_BYTES_MAX && text.len() > LINE_BYTES_MAX - 2 && !text.contains(&b'\n'));
        assert!(std::str::from_utf8(&text).is_ok());
    }

    #[test]
    fn messages_arrive_after_the_log_daemon_was_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Syslog::at(&path);
        // Before there is one.
        send(&log, 0..2);
        assert!(log.standing().error.is_some() && !log.standing().is_failing(), "{:?}", log.standing());
        let first = listen(&path);
        send(&log, 2..4);
        assert_eq!(heard(&first), numbers(0..4));
        assert_eq!(log.standing(), Standing { sent: 4, ..Standing::default() });
        // It ends, and what is said meanwhile waits.
        drop(first);
        send(&log, 4..6);
        assert!(log.standing().is_failing() && log.standing().waiting == 2, "{:?}", log.standing());
        let second = listen(&path);
        log.flush();
        send(&log, 6..7);
        assert_eq!(heard(&second), numbers(4..7));
        // Another takes its place while it is there still.
        let third = listen(&path);
        drop(second);
        send(&log, 7..8);
        assert_eq!(heard(&third), numbers(7..8));
        assert_eq!(log.standing(), Standing { sent: 8, ..Standing::default() });
    }

    #[test]
    fn a_log_daemon_that_hangs_holds_nobody_up_and_what_is_lost_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Syslog::at(&path);
        let hanging = listen(&path);
        let begin = Instant::now();
        let said = LOG_LINES_WAITING_MAX + 2000;
        send(&log, 0..said);
        assert!(begin.elapsed() < Duration::from_secs(5), "it waited");
        let standing = log.standing();
        assert!(standing.is_failing() && standing.waiting == LOG_LINES_WAITING_MAX as u64, "{standing:?}");
        assert_eq!(standing.sent + standing.waiting + standing.lost, said as u64);
        // It goes on. Everything that was kept arrives in its order, then how much is missing.
        let mut all = heard(&hanging);
        while log.standing().waiting > 0 {
            log.flush();
            all.extend(heard(&hanging));
        }
        let kept = said - usize::try_from(standing.lost).unwrap();
        assert_eq!(all[..kept], numbers(0..kept));
        assert_eq!(
            all[kept..],
            [format!("{} messages before this one were lost: the log could not be written", standing.lost)]
        );
        assert!(!log.standing().is_failing());
        // One that was replaced while it hung is left.
        send(&log, 0..200);
        let other = listen(&path);
        log.flush();
        assert!(!heard(&other).is_empty());
    }
}
