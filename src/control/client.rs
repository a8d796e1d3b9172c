//! The command line's side of the control socket.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::line;
use super::protocol::{Answer, Problem, Request, ResyncAnswer, VolumeStatus};
use crate::units::Uuid;

/// Longest wait for what a daemon knows by itself, on a machine that is busy.
const KNOWN_WAIT: Duration = Duration::from_secs(30);

/// Longest wait for an answer that needs devices: a sync may have to wait for one that is given up after a minute.
const ANSWER_WAIT: Duration = Duration::from_secs(120);

/// Most sockets that [`daemons`] looks at.
const DAEMONS_MAX: usize = 1024;

/// What can go wrong while talking to a daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed.
    #[error("control socket {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("{} ({})", .0.text, .0.code)]
    Refused(Problem),
    /// The daemon answered something else than what was asked.
    #[error("control socket {0}: the daemon gave an answer that does not fit the question")]
    Unexpected(PathBuf),
}

impl ClientError {
    /// Whether there is a daemon, and it does not answer.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::TimedOut)
    }
}

/// A daemon that can be asked.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The daemon of the volume `uuid`, mounted or not.
    pub fn new(dir: &Path, uuid: Uuid) -> Self {
        Self { path: dir.join(format!("{uuid}.sock")) }
    }

    /// Asks for the status.
    ///
    /// # Errors
    /// See [`ClientError`]; `NotFound` and `ConnectionRefused` mean that no daemon runs.
    pub fn status(&self) -> Result<VolumeStatus, ClientError> {
        match self.ask(Request::Status)?.0 {
            Answer::Status(status) => Ok(*status),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Returns once everything that had reached the daemon is durable.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn sync(&self) -> Result<(), ClientError> {
        match self.ask(Request::Sync)?.0 {
            Answer::Done => Ok(()),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Asks for the records of the audit trail after number `after`: a part, none at its end.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn audit(&self, after: u64) -> Result<Vec<String>, ClientError> {
        match self.ask(Request::Audit { after })?.0 {
            Answer::Records(records) => Ok(records),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Asks for a seal of the audit trail: the line that is signed, and its signature.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn seal(&self) -> Result<(String, String), ClientError> {
        match self.ask(Request::Seal)?.0 {
            Answer::Sealed { seal, signature } => Ok((seal, signature)),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Has replicas brought back: the one that is named, by its device node or its identifier in the registry, or all that are
    /// not in use. Returns before what they lack is copied.
    ///
    /// # Errors
    /// See [`ClientError`]; what became of each replica is in the answer.
    pub fn resync(&self, replica: Option<String>) -> Result<ResyncAnswer, ClientError> {
        match self.ask(Request::Resync { replica })?.0 {
            Answer::Resync(answer) => Ok(answer),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    /// Asks to be told of the end; the answer comes through [`EndWatch::wait`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn watch_end(&self) -> Result<EndWatch, ClientError> {
        match self.ask(Request::AwaitEnd)? {
            (Answer::Waiting { pid }, stream) => Ok(EndWatch { path: self.path.clone(), stream, pid }),
            _ => Err(ClientError::Unexpected(self.path.clone())),
        }
    }

    fn ask(&self, request: Request) -> Result<(Answer, UnixStream), ClientError> {
        let wait = match request {
            Request::Status | Request::AwaitEnd => KNOWN_WAIT,
            _ => ANSWER_WAIT,
        };
        self.ask_within(wait, request)
    }

    fn ask_within(&self, wait: Duration, request: Request) -> Result<(Answer, UnixStream), ClientError> {
        let exchange = || {
            let mut stream = line::connect(&self.path, wait)?;
            line::send(&mut stream, &request, wait)?;
            Ok((line::receive(&mut stream, Some(wait))?, stream))
        };
        match exchange().map_err(|source| ClientError::Io { path: self.path.clone(), source })? {
            (Answer::Error(problem), _) => Err(ClientError::Refused(problem)),
            answer => Ok(answer),
        }
    }
}

/// A connection on which the daemon will say that the volume is closed.
#[derive(Debug)]
pub struct EndWatch {
    path: PathBuf,
    stream: UnixStream,
    /// Process number of the daemon.
    pub pid: u32,
}

impl EndWatch {
    /// Waits for the end of the volume, at most `wait`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the last commit failed, `TimedOut` when the end did not come, `UnexpectedEof` when
    /// the daemon died on the way.
    pub fn wait(mut self, wait: Duration) -> Result<(), ClientError> {
        match line::receive(&mut self.stream, Some(wait)) {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Error(problem)) => Err(ClientError::Refused(problem)),
            Ok(_) => Err(ClientError::Unexpected(self.path)),
            Err(source) => Err(ClientError::Io { path: self.path, source }),
        }
    }
}

/// The daemons that have a socket in `dir`, in the order of their UUIDs. A folder that does not exist holds none; a
/// socket whose daemon has died is left out by [`Client::status`] failing, not here.
///
/// # Errors
/// What reading the folder says.
pub fn daemons(dir: &Path) -> io::Result<Vec<Client>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries.take(DAEMONS_MAX) {
        let name = entry?.file_name();
        let uuid = name.to_str().and_then(|name| name.strip_suffix(".sock")).and_then(Uuid::parse);
        found.extend(uuid);
    }
    found.sort();
    Ok(found.into_iter().map(|uuid| Client::new(dir, uuid)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;
    use std::time::Instant;

    use parking_lot::Mutex;

    use super::super::protocol::sample;
    use super::super::server::{ASIDE_MAX, Handler, Server};
    use super::*;
    use crate::limits;

    /// Syncs wait for as long as the lock is held.
    #[derive(Default)]
    struct Fixed(Mutex<()>);

    impl Handler for Fixed {
        fn status(&self) -> VolumeStatus {
            sample()
        }

        fn sync(&self) -> Result<(), Problem> {
            drop(self.0.lock());
            Err(Problem { code: "read-only".into(), text: "the volume is read-only".into() })
        }

        /// The longest answer that there can be: records full of what JSON must escape.
        fn audit(&self, after: u64) -> Result<Vec<String>, Problem> {
            let record = "\"".repeat(limits::AUDIT_RECORD_BYTES_MAX);
            let count = limits::AUDIT_PAGE_BYTES_MAX / limits::AUDIT_RECORD_BYTES_MAX + 1;
            Ok(if after == 0 { vec![record; count] } else { Vec::new() })
        }

        fn seal(&self) -> Result<(String, String), Problem> {
            Ok(("seal\n".into(), "signature".into()))
        }

        fn resync(&self, replica: Option<&str>) -> ResyncAnswer {
            if replica == Some("slow") {
                std::thread::sleep(Duration::from_millis(500));
            }
            ResyncAnswer { exit: 3, ..ResyncAnswer::default() }
        }
    }

    const UUID: Uuid = Uuid::from_random([7; 16]);

    fn start(dir: &Path) -> Server {
        Server::start(dir, &UUID.to_string(), Arc::new(Fixed::default())).unwrap()
    }

    #[test]
    fn status_and_refusals_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("run");
        let server = start(&dir);
        let client = daemons(&dir).unwrap().pop().unwrap();
        assert_eq!(client.status().unwrap(), sample());
        assert!(matches!(client.sync().unwrap_err(), ClientError::Refused(problem) if problem.code == "read-only"));
        let mode = fs::symlink_metadata(dir.join(format!("{UUID}.sock"))).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(server);
        assert!(daemons(&dir).unwrap().is_empty());
    }

    #[test]
    fn the_longest_part_of_a_trail_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let _server = start(dir.path());
        let client = Client::new(dir.path(), UUID);
        let records = client.audit(0).unwrap();
        assert!(records.iter().map(String::len).sum::<usize>() > limits::AUDIT_PAGE_BYTES_MAX);
        assert!(client.audit(records.len() as u64).unwrap().is_empty());
        assert_eq!(client.seal().unwrap(), ("seal\n".into(), "signature".into()));
    }

    #[test]
    fn a_resync_holds_nobody_else_up_and_is_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _server = start(dir.path());
        let client = Client::new(dir.path(), UUID);
        assert_eq!(client.resync(None).unwrap().exit, 3);
        let slow = std::thread::spawn({
            let client = client.clone();
            move || loop {
                // The one below may be first.
                if let Ok(answer) = client.resync(Some("slow".into())) {
                    break answer;
                }
            }
        });
        let begin = Instant::now();
        // Whichever comes first, the other is told; and the status is there at once.
        let refused = loop {
            assert_eq!(client.status().unwrap(), sample());
            match client.resync(None) {
                Err(ClientError::Refused(problem)) => break problem,
                _ => assert!(begin.elapsed() < Duration::from_secs(5), "never two at once"),
            }
        };
        assert_eq!(refused.code, "resync-busy");
        assert!(!slow.is_finished(), "the others waited for it");
        assert_eq!(slow.join().unwrap().exit, 3);
    }

    #[test]
    fn what_waits_for_a_device_holds_nobody_up_and_is_answered_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let handler = Arc::new(Fixed::default());
        let held = handler.0.lock();
        let server = Server::start(dir.path(), &UUID.to_string(), Arc::<Fixed>::clone(&handler)).unwrap();
        let client = Client::new(dir.path(), UUID);
        let ask = |_| {
            let client = client.clone();
            std::thread::spawn(move || client.sync().unwrap_err().to_string())
        };
        let syncs: Vec<_> = (0..=ASIDE_MAX).map(ask).collect();
        // The others wait; who is one too many is told so at once.
        while !syncs.iter().any(std::thread::JoinHandle::is_finished) {
            assert_eq!(client.status().unwrap(), sample());
        }
        let ending = std::thread::spawn(move || drop(server));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!ending.is_finished());
        drop(held);
        let (busy, answered): (Vec<_>, Vec<_>) =
            syncs.into_iter().map(|sync| sync.join().unwrap()).partition(|answer| answer.contains("control-busy"));
        assert_eq!((busy.len(), answered.len()), (1, ASIDE_MAX));
        assert!(answered.iter().all(|answer| answer.contains("read-only")), "{answered:?}");
        ending.join().unwrap();

        // What waits for ever holds the end up for a moment only.
        let server = Server::start(dir.path(), &UUID.to_string(), Arc::<Fixed>::clone(&handler)).unwrap();
        let held = handler.0.lock();
        let asking = ask(0);
        while Arc::strong_count(&handler) == 2 {
            std::thread::yield_now();
        }
        let begin = Instant::now();
        drop(server);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        drop(held);
        assert!(asking.join().unwrap().contains("read-only"));
    }

    #[test]
    fn the_end_is_announced_to_all_who_wait() {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path());
        let client = Client::new(dir.path(), UUID);
        let (good, bad) = (client.watch_end().unwrap(), client.watch_end().unwrap());
        assert_eq!(good.pid, std::process::id());
        // Both requests are registered once a later request was answered: the server is serial.
        client.status().unwrap();
        server.finish(&Err(Problem { code: "commit".into(), text: "the last commit failed".into() }));
        for watch in [good, bad] {
            assert!(matches!(watch.wait(Duration::from_secs(5)), Err(ClientError::Refused(_))));
        }
    }

    #[test]
    fn one_daemon_a_volume_and_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path());
        let again = Server::start(dir.path(), &UUID.to_string(), Arc::new(Fixed::default())).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AddrInUse);
        drop(server);
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(format!("{UUID}.sock"))).unwrap());
        assert!(matches!(Client::new(dir.path(), UUID).status().unwrap_err(), ClientError::Io { .. }));
        drop(start(dir.path()));
    }

    #[test]
    fn a_daemon_that_is_there_and_does_not_answer_is_told_from_one_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let stopped = std::os::unix::net::UnixListener::bind(dir.path().join(format!("{UUID}.sock"))).unwrap();
        let begin = Instant::now();
        let error = Client::new(dir.path(), UUID).ask_within(Duration::from_secs(1), Request::Status).unwrap_err();
        assert!(error.is_silent() && begin.elapsed() < Duration::from_secs(10), "{error}");
        // Nor when so many have asked it that no more can connect.
        let soon = Duration::from_millis(300);
        let path = dir.path().join(format!("{UUID}.sock"));
        let full = (0..100_000).find_map(|_| line::connect(&path, soon).err()).unwrap();
        assert_eq!(full.kind(), ErrorKind::TimedOut);
        assert_eq!(
            Server::start(dir.path(), &UUID.to_string(), Arc::new(Fixed::default())).unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
        drop(stopped);
        assert!(!Client::new(dir.path(), UUID).status().unwrap_err().is_silent());
    }

    #[test]
    fn what_is_not_a_request_is_answered_and_survived() {
        let dir = tempfile::tempdir().unwrap();
        let _server = start(dir.path());
        let path = dir.path().join(format!("{UUID}.sock"));
        for bad in [&b"\n"[..], b"{\"request\":\"format\"}\n", b"\xff\xfe\0\n"] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(bad).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("control-request"), "{answer}");
        }
        // Too long a line, and a client that hangs up.
        let mut stream = UnixStream::connect(&path).unwrap();
        let _ = stream.write_all(&vec![b'x'; crate::limits::CONTROL_MESSAGE_MAX + 8192]);
        drop(stream);
        assert_eq!(Client::new(dir.path(), UUID).status().unwrap(), sample());
    }
}
