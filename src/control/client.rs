//! The client of the control socket: it finds daemons, asks them, and waits for their end.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::line;
use super::protocol::{Answer, END, Greeting, PROTOCOL, Request, Waits};
use crate::problem::{Code, Problem};
use crate::units::Uuid;

/// Longest wait for an answer that the daemon has at hand, on a machine that is busy.
const KNOWN_WAIT: Duration = Duration::from_secs(30);

/// Longest wait for an answer that needs devices: a sync may have to wait for a device that is fenced after a minute.
const ANSWER_WAIT: Duration = Duration::from_secs(120);

/// How often a daemon is asked that closes the connection before it has answered.
const ATTEMPTS: u32 = 5;

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
    #[error("{0}")]
    Refused(Problem),
    /// The daemon speaks another version of the protocol.
    #[error("control socket {path}: the daemon is scelle {program} and speaks protocol {protocol}, not {PROTOCOL}")]
    Version {
        /// The socket.
        path: PathBuf,
        /// Version of the daemon's program.
        program: String,
        /// Number of its protocol.
        protocol: u32,
    },
    /// The daemon answered something else than what was asked.
    #[error("control socket {path}: the daemon gave an answer that does not fit the question: {detail}")]
    Unexpected {
        /// The socket.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(problem) => problem,
            ClientError::Version { .. } => Self::new(Code::ControlVersion, error.to_string()),
            ClientError::Io { .. } | ClientError::Unexpected { .. } => Self::new(Code::Control, error.to_string()),
        }
    }
}

impl ClientError {
    /// Whether there is a daemon, and it does not answer.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::TimedOut)
    }

    /// Whether there is no daemon behind the socket, or it ended on the way: its volume is not mounted.
    pub fn is_gone(&self) -> bool {
        let gone = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused);
        matches!(self, Self::Io { source, .. } if gone(source.kind()) || is_closed(source))
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

    /// Who answers.
    ///
    /// # Errors
    /// See [`ClientError`]; never [`ClientError::Version`].
    pub fn greeting(&self) -> Result<Greeting, ClientError> {
        let mut stream = line::connect(&self.path, KNOWN_WAIT).map_err(|source| self.failed(source))?;
        line::receive(&mut stream, Some(KNOWN_WAIT)).map_err(|source| self.failed(source))
    }

    /// Asks to be told of the volume's end. The answer comes through [`EndWatch::wait`].
    ///
    /// # Errors
    /// See [`ClientError`]; never [`ClientError::Version`].
    pub fn watch_end(&self) -> Result<EndWatch, ClientError> {
        let request = Request { call: END.into(), with: Value::Null };
        let (greeting, answer, stream) = self.ask(KNOWN_WAIT, &request, |_| Ok(()))?;
        self.understood::<()>(answer)?;
        Ok(EndWatch { client: self.clone(), stream, pid: greeting.pid })
    }

    /// Makes one call of the table of calls.
    pub(super) fn call<T: DeserializeOwned>(&self, name: &str, waits: Waits, with: Value) -> Result<T, ClientError> {
        let wait = match waits {
            Waits::ForNothing => KNOWN_WAIT,
            Waits::ForDevices => ANSWER_WAIT,
        };
        self.call_within(wait, name, with)
    }

    fn call_within<T: DeserializeOwned>(&self, wait: Duration, name: &str, with: Value) -> Result<T, ClientError> {
        let request = Request { call: name.into(), with };
        let (_, answer, _) = self.ask(wait, &request, |greeting| match greeting {
            Greeting { protocol: PROTOCOL, .. } => Ok(()),
            Greeting { protocol, program, .. } => {
                let (program, protocol) = (program.clone(), *protocol);
                Err(ClientError::Version { path: self.path.clone(), program, protocol })
            }
        })?;
        self.understood(answer)
    }

    /// Connects, hears who answers, and asks if that `fits`. A daemon waits two seconds for a question. On a busy machine
    /// the question may be later than that, so a daemon that has greeted and then closed is asked again.
    fn ask(
        &self,
        wait: Duration,
        request: &Request,
        fits: impl Fn(&Greeting) -> Result<(), ClientError>,
    ) -> Result<(Greeting, Answer, UnixStream), ClientError> {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            let mut stream = line::connect(&self.path, wait).map_err(|source| self.failed(source))?;
            let greeting: Greeting = line::receive(&mut stream, Some(wait)).map_err(|source| self.failed(source))?;
            fits(&greeting)?;
            let answer = line::send(&mut stream, request, wait).and_then(|()| line::receive(&mut stream, Some(wait)));
            match answer {
                Ok(answer) => return Ok((greeting, answer, stream)),
                Err(error) if left > 0 && is_closed(&error) => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
    }

    fn understood<T: DeserializeOwned>(&self, answer: Answer) -> Result<T, ClientError> {
        match answer {
            Answer::Problem(problem) => Err(ClientError::Refused(problem)),
            Answer::Ok(value) => serde_json::from_value(value)
                .map_err(|error| ClientError::Unexpected { path: self.path.clone(), detail: error.to_string() }),
        }
    }

    fn failed(&self, source: io::Error) -> ClientError {
        ClientError::Io { path: self.path.clone(), source }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// A connection on which the daemon will say that the volume is closed.
#[derive(Debug)]
pub struct EndWatch {
    client: Client,
    stream: UnixStream,
    /// Process number of the daemon.
    pub pid: u32,
}

impl EndWatch {
    /// Waits for the end of the volume, at most `wait`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the last commit failed, `TimedOut` when the end did not come, `UnexpectedEof` when
    /// the daemon died before it.
    pub fn wait(mut self, wait: Duration) -> Result<(), ClientError> {
        let answer = line::receive(&mut self.stream, Some(wait)).map_err(|source| self.client.failed(source))?;
        self.client.understood(answer)
    }
}

/// The daemons that have a socket in `dir`, in the order of their UUIDs. A folder that does not exist holds none. A
/// socket whose daemon has died is not left out here: [`Client::status`] then fails.
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
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;
    use std::time::Instant;

    use parking_lot::Mutex;

    use super::super::calls::{Handler, ResyncAnswer, ResyncWanted, SealedTrail, TableAnswer, TableWanted};
    use super::super::scrub::{ScrubAnswer, ScrubWanted};
    use super::super::server::{OFFLOADED_MAX, Server};
    use super::super::status::{TaskReport, VolumeStatus, sample};
    use super::*;
    use crate::limits;
    use crate::os::DevNo;

    /// Syncs wait for as long as the lock is held.
    #[derive(Default)]
    struct Fixed(Mutex<()>);

    impl Handler for Fixed {
        fn status(&self) -> Result<VolumeStatus, Problem> {
            Ok(sample())
        }

        fn sync(&self) -> Result<(), Problem> {
            drop(self.0.lock());
            Err(Problem::new(Code::ReadOnly, "the volume is read-only"))
        }

        /// The longest answer that there can be: records full of what JSON must escape.
        fn audit(&self, after: u64) -> Result<Vec<String>, Problem> {
            let record = "\"".repeat(limits::AUDIT_RECORD_BYTES_MAX);
            let count = limits::AUDIT_PAGE_BYTES_MAX / limits::AUDIT_RECORD_BYTES_MAX + 1;
            Ok(if after == 0 { vec![record; count] } else { Vec::new() })
        }

        fn seal(&self) -> Result<SealedTrail, Problem> {
            Ok(SealedTrail { seal: "seal\n".into(), signature: "signature".into() })
        }

        fn table(&self, _: TableWanted) -> Result<TableAnswer, Problem> {
            Ok(TableAnswer::default())
        }

        fn scrub(&self, _: ScrubWanted) -> Result<ScrubAnswer, Problem> {
            Ok(ScrubAnswer::default())
        }

        fn resync(&self, ResyncWanted { replica, .. }: ResyncWanted) -> Result<ResyncAnswer, Problem> {
            if replica.as_deref() == Some("slow") {
                std::thread::sleep(Duration::from_millis(500));
            }
            Ok(ResyncAnswer { problems: vec![Problem::new(Code::ReplicaRefused, "")], ..ResyncAnswer::default() })
        }

        fn tasks(&self) -> Result<Vec<TaskReport>, Problem> {
            Ok(sample().tasks)
        }

        fn cancel(&self, task: u64) -> Result<(), Problem> {
            if task == 1 { Ok(()) } else { Err(Problem::new(Code::TaskUnknown, "")) }
        }
    }

    const UUID: Uuid = Uuid::from_random([7; 16]);

    fn serve(dir: &Path, handler: Arc<Fixed>) -> io::Result<Server> {
        Server::start(dir, &UUID.to_string(), Path::new("/srv/archives"), handler)
    }

    fn start(dir: &Path) -> Server {
        serve(dir, Arc::default()).unwrap()
    }

    /// The socket of a daemon that the test itself plays.
    fn listen(dir: &Path) -> UnixListener {
        UnixListener::bind(dir.join(format!("{UUID}.sock"))).unwrap()
    }

    #[test]
    fn status_and_refusals_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("run");
        let server = start(&dir);
        let client = daemons(&dir).unwrap().pop().unwrap();
        assert_eq!(client.status().unwrap(), sample());
        assert_eq!(client.tasks().unwrap(), sample().tasks);
        client.cancel(1).unwrap();
        assert_eq!(Problem::from(client.cancel(2).unwrap_err()).code, Code::TaskUnknown);
        assert!(matches!(client.sync().unwrap_err(), ClientError::Refused(problem) if problem.code == Code::ReadOnly));
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
        assert_eq!(client.seal().unwrap().seal, "seal\n");
    }

    #[test]
    fn a_resync_holds_nobody_else_up_and_is_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _server = start(dir.path());
        let client = Client::new(dir.path(), UUID);
        assert_eq!(client.resync(ResyncWanted::default()).unwrap().problems[0].code, Code::ReplicaRefused);
        let slow = std::thread::spawn({
            let client = client.clone();
            move || loop {
                // The one below may be first.
                if let Ok(answer) = client.resync(ResyncWanted { replica: Some("slow".into()), discard: None }) {
                    break answer;
                }
            }
        });
        let begin = Instant::now();
        // Whichever comes first, the other is told; and the status is there at once.
        let refused = loop {
            assert_eq!(client.status().unwrap(), sample());
            match client.resync(ResyncWanted::default()) {
                Err(ClientError::Refused(problem)) => break problem,
                _ => assert!(begin.elapsed() < Duration::from_secs(5), "never two at once"),
            }
        };
        assert_eq!(refused.code, Code::CallBusy);
        assert!(!slow.is_finished(), "the others waited for it");
        assert_eq!(slow.join().unwrap().problems.len(), 1);
    }

    #[test]
    fn what_waits_for_a_device_holds_nobody_up_and_is_answered_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let handler = Arc::new(Fixed::default());
        let held = handler.0.lock();
        let server = serve(dir.path(), Arc::<Fixed>::clone(&handler)).unwrap();
        let client = Client::new(dir.path(), UUID);
        let ask = |_| {
            let client = client.clone();
            std::thread::spawn(move || client.sync().unwrap_err().to_string())
        };
        let syncs: Vec<_> = (0..=OFFLOADED_MAX).map(ask).collect();
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
        assert_eq!((busy.len(), answered.len()), (1, OFFLOADED_MAX));
        assert!(answered.iter().all(|answer| answer.contains("read-only")), "{answered:?}");
        ending.join().unwrap();

        // What waits for ever holds the end up for a moment only.
        let server = serve(dir.path(), Arc::<Fixed>::clone(&handler)).unwrap();
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
    fn the_greeting_says_which_mount_the_daemon_serves() {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path());
        let client = Client::new(dir.path(), UUID);
        let dev = DevNo { major: 0, minor: 46 };
        let before = client.greeting().unwrap();
        assert_eq!((before.mountpoint.as_str(), before.serves(dev)), ("/srv/archives", false));
        server.mounted(dev);
        let after = client.greeting().unwrap();
        assert!(after.serves(dev) && !after.serves(DevNo { major: 0, minor: 47 }), "{after:?}");
        assert_eq!(after.filesystem.as_deref(), Some("0:46"));
    }

    #[test]
    fn the_end_is_announced_to_all_who_wait() {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path());
        let client = Client::new(dir.path(), UUID);
        let (good, bad) = (client.watch_end().unwrap(), client.watch_end().unwrap());
        assert_eq!(good.pid, std::process::id());
        // Who was greeted is heard before the end: the server is serial.
        server.finish(&Err(Problem::new(Code::LastCommit, "the last commit failed")));
        for watch in [good, bad] {
            assert!(matches!(watch.wait(Duration::from_secs(5)), Err(ClientError::Refused(_))));
        }
    }

    #[test]
    fn one_daemon_a_volume_and_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path());
        let again = serve(dir.path(), Arc::default()).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AddrInUse);
        drop(server);
        drop(listen(dir.path()));
        assert!(matches!(Client::new(dir.path(), UUID).status().unwrap_err(), ClientError::Io { .. }));
        drop(start(dir.path()));
    }

    #[test]
    fn a_daemon_that_is_there_and_does_not_answer_is_told_from_one_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let stopped = listen(dir.path());
        let begin = Instant::now();
        let error = Client::new(dir.path(), UUID)
            .call_within::<Value>(Duration::from_secs(1), "status", Value::Null)
            .unwrap_err();
        assert!(error.is_silent() && begin.elapsed() < Duration::from_secs(10), "{error}");
        // Nor when so many have asked it that no more can connect.
        let soon = Duration::from_millis(300);
        let path = dir.path().join(format!("{UUID}.sock"));
        let full = (0..100_000).find_map(|_| line::connect(&path, soon).err()).unwrap();
        assert_eq!(full.kind(), ErrorKind::TimedOut);
        assert_eq!(serve(dir.path(), Arc::default()).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(stopped);
        assert!(!Client::new(dir.path(), UUID).status().unwrap_err().is_silent());
    }

    #[test]
    fn what_is_not_a_request_is_answered_and_survived() {
        let dir = tempfile::tempdir().unwrap();
        let _server = start(dir.path());
        let path = dir.path().join(format!("{UUID}.sock"));
        let calls = [&b"{\"call\":\"format\"}\n"[..], b"{\"call\":\"audit\"}\n", b"{\"call\":\"status\",\"with\":7}\n"];
        for bad in calls.into_iter().chain([&b"\n"[..], b"\xff\xfe\0\n"]) {
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

    #[test]
    fn a_daemon_of_another_version_is_told_from_one_that_does_not_understand() {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen(dir.path());
        let daemon = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                stream
                    .write_all(b"{\"protocol\":9,\"program\":\"7.1\",\"volume\":\"\",\"pid\":44,\"more\":1}\n")
                    .unwrap();
                let mut request = [0; 15];
                if stream.read(&mut request).unwrap() > 0 {
                    assert_eq!(&request, b"{\"call\":\"end\"}\n");
                    stream.write_all(b"{\"ok\":null}\n{\"ok\":null}\n").unwrap();
                }
            }
        });
        let client = Client::new(dir.path(), UUID);
        let problem = Problem::from(client.status().unwrap_err());
        assert_eq!(problem.code, Code::ControlVersion);
        assert!(problem.text.contains("scelle 7.1") && problem.text.contains("protocol 9"), "{problem}");
        // Its end can be waited for all the same.
        let watch = client.watch_end().unwrap();
        assert_eq!(watch.pid, 44);
        watch.wait(Duration::from_secs(5)).unwrap();
        daemon.join().unwrap();
    }

    /// A daemon that had no patience with us, as on a busy machine, is asked again, and not taken for one that is gone.
    #[test]
    fn whoever_was_too_slow_with_a_question_asks_again() {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen(dir.path());
        let greeting = format!("{{\"protocol\":{PROTOCOL},\"program\":\"\",\"volume\":\"\",\"pid\":4}}\n");
        let daemon = std::thread::spawn(move || {
            for answer in [&b""[..], b"", b"{\"ok\":null}\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(greeting.as_bytes()).unwrap();
                if !answer.is_empty() {
                    stream.read_exact(&mut [0; 16]).unwrap();
                    stream.write_all(answer).unwrap();
                }
            }
        });
        let client = Client::new(dir.path(), UUID);
        client.sync().unwrap();
        daemon.join().unwrap();
        assert!(client.sync().unwrap_err().is_gone());
    }
}
