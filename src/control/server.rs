//! The daemon's side of the control socket.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::line;
use super::protocol::{Answer, Problem, Request, ResyncAnswer, VolumeStatus};

/// Longest wait for a client to send its request or to take its answer.
const CLIENT_WAIT: Duration = Duration::from_secs(2);

/// Most clients that wait for the end of the volume at once.
const AWAITING_MAX: usize = 32;

/// Most questions under way at once that may have to wait for a device.
pub(super) const ASIDE_MAX: usize = 16;

/// What a daemon can be asked.
pub trait Handler: Send + Sync + 'static {
    /// The volume's status now. Must not wait for a device: everybody else waits for it. The others may; each is asked on a
    /// thread of its own.
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

    /// Brings back the replica that is named, or all that are not in use. Never called twice at once.
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
    /// One more of it is held for each question that may have to wait for a device.
    aside: Arc<()>,
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
        let mut awaiting = self.shared.awaiting.lock();
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
        // Who has asked is told, unless a device does not answer.
        let deadline = Instant::now() + CLIENT_WAIT;
        while Arc::strong_count(&self.shared.aside) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
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
    if line::connect(path, CLIENT_WAIT).map_or_else(|error| error.kind() == ErrorKind::TimedOut, |_| true) {
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
        Ok(request @ (Request::Status | Request::AwaitEnd)) => answer(request, &**handler, shared),
        Ok(request) => match aside(&stream, request, shared, handler) {
            Ok(()) => return,
            Err(busy) => problem("control-busy", format!("{busy}: try again")),
        },
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            problem("control-request", format!("not a request: {error}"))
        }
        Err(_) => return,
    };
    let sent = line::send(&mut stream, &answer, CLIENT_WAIT);
    if sent.is_ok() && matches!(answer, Answer::Waiting { .. }) {
        let mut awaiting = shared.awaiting.lock();
        if awaiting.len() < AWAITING_MAX {
            awaiting.push(stream);
        }
    }
}

fn problem(code: &str, text: String) -> Answer {
    Answer::Error(Problem { code: code.into(), text })
}

fn answer(request: Request, handler: &dyn Handler, shared: &Shared) -> Answer {
    match request {
        Request::Status => Answer::Status(Box::new(handler.status())),
        Request::AwaitEnd => Answer::Waiting { pid: std::process::id() },
        Request::Sync => handler.sync().map_or_else(Answer::Error, |()| Answer::Done),
        Request::Audit { after } => handler.audit(after).map_or_else(Answer::Error, Answer::Records),
        Request::Seal => {
            handler.seal().map_or_else(Answer::Error, |(seal, signature)| Answer::Sealed { seal, signature })
        }
        Request::Resync { .. } if shared.resyncing.swap(true, Ordering::SeqCst) => {
            problem("resync-busy", "another resync is being begun, or waits for a device: try again".into())
        }
        Request::Resync { replica } => {
            let answer = Answer::Resync(handler.resync(replica.as_deref()));
            shared.resyncing.store(false, Ordering::SeqCst);
            answer
        }
    }
}

/// Has a thread of its own answer what may have to wait for a device. Says why it does not.
fn aside(
    stream: &UnixStream,
    request: Request,
    shared: &Arc<Shared>,
    handler: &Arc<dyn Handler>,
) -> Result<(), &'static str> {
    if Arc::strong_count(&shared.aside) > ASIDE_MAX {
        return Err("as many questions as are answered at once wait for a device");
    }
    let mut stream = stream.try_clone().map_err(|_| "out of file descriptors")?;
    let (shared, handler, place) = (Arc::clone(shared), Arc::clone(handler), Arc::clone(&shared.aside));
    let spawned = std::thread::Builder::new().name("question".into()).spawn(move || {
        let answer = answer(request, &*handler, &shared);
        // A client that has gone away does not want to know.
        let _ = line::send(&mut stream, &answer, CLIENT_WAIT);
        drop(handler);
        drop(place);
    });
    spawned.map(drop).map_err(|_| "no thread can be started")
}
