//! The daemon's side of the control socket.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::line;
use super::protocol::{Answer, Problem, Request, ResyncAnswer, VolumeStatus};

/// Longest wait for a client to send its request or to take its answer.
const CLIENT_WAIT: Duration = Duration::from_secs(2);

/// Most clients that wait for the end of the volume at once.
const AWAITING_MAX: usize = 32;

/// What a daemon can be asked.
pub trait Handler: Send + Sync + 'static {
    /// The volume's status now.
    fn status(&self) -> VolumeStatus;

    /// Makes durable what has reached the daemon.
    ///
    /// # Errors
    /// Why it could not.
    fn sync(&self) -> Result<(), Problem>;

    /// The records of the audit trail after number `after`, as many as fit into a message.
    ///
    /// # Errors
    /// Why not.
    fn audit(&self, after: u64) -> Result<Vec<String>, Problem>;

    /// Seals the audit trail: the line that is signed, and its signature.
    ///
    /// # Errors
    /// Why not.
    fn seal(&self) -> Result<(String, String), Problem>;

    /// Brings back the replica that is named, or all that are not in use. May take as long as a device that does not answer:
    /// it is called on a thread of its own, and never twice at once.
    fn resync(&self, replica: Option<&str>) -> ResyncAnswer;
}

/// The listening socket and the thread that serves it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    ending: AtomicBool,
    awaiting: Mutex<Vec<UnixStream>>,
    resyncing: AtomicBool,
}

impl Server {
    /// Listens at `dir/name.sock`, which only the owner can open from the moment it exists.
    ///
    /// # Errors
    /// `AddrInUse` when a daemon answers there already, else what the system says.
    pub fn start(dir: &Path, name: &str, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let path = dir.join(format!("{name}.sock"));
        let listener = bind_privately(dir, name, &path)?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("control".into()).spawn({
            let shared = Arc::clone(&shared);
            move || serve(&listener, &shared, &handler)
        })?;
        Ok(Self { path, shared, thread: Some(thread) })
    }

    /// Stops listening and tells everybody who waits how the volume ended.
    pub fn finish(mut self, outcome: &Result<(), Problem>) {
        self.stop();
        let answer = match outcome {
            Ok(()) => Answer::Done,
            Err(problem) => Answer::Error(problem.clone()),
        };
        let mut awaiting = self.shared.awaiting.lock().unwrap_or_else(PoisonError::into_inner);
        for mut stream in awaiting.drain(..) {
            // A client that has gone away does not want to know.
            let _ = line::send(&mut stream, &answer, CLIENT_WAIT);
        }
    }

    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.ending.store(true, Ordering::SeqCst);
        // Connecting wakes accept(2). If the socket was removed under us the thread cannot be woken, nor does anybody
        // reach it any more; it ends with the process.
        if UnixStream::connect(&self.path).is_ok() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Binds inside a private folder and renames into place: no moment at which others could connect.
fn bind_privately(dir: &Path, name: &str, path: &Path) -> io::Result<UnixListener> {
    match DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(ErrorKind::AddrInUse, "another daemon serves this volume"));
    }
    let private = dir.join(format!(".{name}.{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&private)?;
    let inside = private.join("sock");
    let bound = UnixListener::bind(&inside).and_then(|listener| {
        fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        fs::rename(&inside, path)?;
        Ok(listener)
    });
    let _ = fs::remove_dir_all(&private);
    bound
}

fn serve(listener: &UnixListener, shared: &Arc<Shared>, handler: &Arc<dyn Handler>) {
    loop {
        let accepted = listener.accept();
        if shared.ending.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => serve_one(stream, shared, handler),
            // Out of descriptors, for instance: not worth the volume, but not worth a busy loop either.
            Err(error) => {
                log::warn!("control socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn serve_one(mut stream: UnixStream, shared: &Arc<Shared>, handler: &Arc<dyn Handler>) {
    let answer = match line::receive::<Request>(&mut stream, Some(CLIENT_WAIT)) {
        Ok(Request::Status) => Answer::Status(Box::new(handler.status())),
        Ok(Request::Sync) => handler.sync().map_or_else(Answer::Error, |()| Answer::Done),
        Ok(Request::Resync { replica }) => match resync(stream, replica, shared, handler) {
            Ok(()) => return,
            Err((back, problem)) => {
                stream = back;
                Answer::Error(problem)
            }
        },
        Ok(Request::AwaitEnd) => Answer::Waiting { pid: std::process::id() },
        Ok(Request::Audit { after }) => handler.audit(after).map_or_else(Answer::Error, Answer::Records),
        Ok(Request::Seal) => {
            handler.seal().map_or_else(Answer::Error, |(seal, signature)| Answer::Sealed { seal, signature })
        }
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Answer::Error(Problem { code: "control-request".into(), text: format!("not a request: {error}") })
        }
        Err(_) => return,
    };
    let sent = line::send(&mut stream, &answer, CLIENT_WAIT);
    if sent.is_ok() && matches!(answer, Answer::Waiting { .. }) {
        let mut awaiting = shared.awaiting.lock().unwrap_or_else(PoisonError::into_inner);
        if awaiting.len() < AWAITING_MAX {
            awaiting.push(stream);
        }
    }
}

/// Has a resync begun on a thread of its own, which answers. Gives the client back with the reason when it does not.
fn resync(
    stream: UnixStream,
    replica: Option<String>,
    shared: &Arc<Shared>,
    handler: &Arc<dyn Handler>,
) -> Result<(), (UnixStream, Problem)> {
    let problem = |text: &str| Problem { code: "resync-busy".into(), text: text.into() };
    if shared.resyncing.swap(true, Ordering::SeqCst) {
        return Err((stream, problem("another resync is being begun, or waits for a device: try again")));
    }
    let (theirs, handler) = (Arc::clone(shared), Arc::clone(handler));
    let Ok(mut answering) = stream.try_clone() else {
        shared.resyncing.store(false, Ordering::SeqCst);
        return Err((stream, problem("out of file descriptors: try again")));
    };
    let spawned = std::thread::Builder::new().name("resync".into()).spawn(move || {
        let answer = Answer::Resync(handler.resync(replica.as_deref()));
        theirs.resyncing.store(false, Ordering::SeqCst);
        // A client that has gone away does not want to know.
        let _ = line::send(&mut answering, &answer, CLIENT_WAIT);
    });
    spawned.map(drop).map_err(|_| {
        shared.resyncing.store(false, Ordering::SeqCst);
        (stream, problem("no thread can be started: try again"))
    })
}
