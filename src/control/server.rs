//! The server of the control socket, in the daemon. It is serial: only questions that may wait for a device get a
//! thread.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use serde_json::Value;

use super::calls::{Call, Handler};
use super::line;
use super::protocol::{Answer, AtOnce, END, Greeting, PROTOCOL, Request, Waits, not_understood};
use crate::os::DevNo;
use crate::problem::{Code, Problem};

/// Longest wait for a client to send its request or to take its answer.
const CLIENT_WAIT: Duration = Duration::from_secs(2);

/// Most clients that wait for the end of the volume at once.
const AWAITING_MAX: usize = 32;

/// Most questions that may have to wait for a device and are under way at once.
pub(super) const OFFLOADED_MAX: usize = 16;

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
    /// Number of the mounted filesystem's device.
    filesystem: OnceLock<DevNo>,
    awaiting: Mutex<Vec<UnixStream>>,
    /// The calls under way of which there can be only one, a bit for each.
    alone: AtomicU64,
    /// Each question that may have to wait for a device holds one more reference to it.
    offloaded: Arc<()>,
}

impl Server {
    /// Listens at `dir/name.sock`, which only the owner can open from the moment it exists.
    ///
    /// # Errors
    /// `AddrInUse` when a daemon answers there already, else what the system says.
    pub fn start(dir: &Path, name: &str, mountpoint: &Path, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let path = dir.join(format!("{name}.sock"));
        let greeting = Greeting {
            protocol: PROTOCOL,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            volume: name.to_owned(),
            pid: std::process::id(),
            mountpoint: mountpoint.to_string_lossy().into_owned(),
            filesystem: None,
        };
        let listener = bind_privately(dir, name, &path)?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("control".into()).spawn({
            let shared = Arc::clone(&shared);
            move || serve(&listener, &greeting, &shared, &handler)
        })?;
        Ok(Self { path, shared, thread: Some(thread) })
    }

    /// From now on every greeting says that the volume is mounted, as the filesystem with this number.
    pub fn mounted(&self, filesystem: DevNo) {
        // A volume is mounted once: a second number would be a mistake, and the first stays.
        let _ = self.shared.filesystem.set(filesystem);
    }

    /// Stops listening, and tells every client that waits for the end how the volume ended.
    pub fn finish(mut self, outcome: &Result<(), Problem>) {
        self.stop();
        for mut stream in self.shared.awaiting.lock().drain(..) {
            reply(&mut stream, outcome.clone().map(|()| Value::Null));
        }
    }

    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.ending.store(true, Ordering::SeqCst);
        // Connecting wakes accept(2). If the socket was removed, the thread cannot be woken, but nobody reaches it any
        // more either. It ends with the process.
        if UnixStream::connect(&self.path).is_ok() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
        // Questions under way are still answered, unless a device does not answer.
        let deadline = Instant::now() + CLIENT_WAIT;
        while Arc::strong_count(&self.shared.offloaded) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Binds inside a private folder and renames into place, so that there is no moment at which others could connect.
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

fn serve(listener: &UnixListener, greeting: &Greeting, shared: &Arc<Shared>, handler: &Arc<dyn Handler>) {
    loop {
        let accepted = listener.accept();
        if shared.ending.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => serve_one(stream, greeting, shared, handler),
            // The process is out of descriptors, for instance: not worth the volume, but not worth a busy loop either.
            Err(error) => {
                log::warn!("control socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn serve_one(mut stream: UnixStream, greeting: &Greeting, shared: &Arc<Shared>, handler: &Arc<dyn Handler>) {
    let filesystem = shared.filesystem.get().map(DevNo::to_string);
    if line::send(&mut stream, &Greeting { filesystem, ..greeting.clone() }, CLIENT_WAIT).is_err() {
        return;
    }
    let outcome = match line::receive::<Request>(&mut stream, Some(CLIENT_WAIT)) {
        Ok(Request { call, .. }) if call == END => return shared.await_end(stream),
        Ok(Request { call, with }) => match Call::ALL.iter().find(|known| known.name() == call) {
            Some(call) if call.waits() == Waits::ForDevices => match offload(&stream, *call, with, shared, handler) {
                Ok(()) => return,
                Err(busy) => Err(busy),
            },
            Some(call) => answer(*call, with, &**handler, shared),
            None => Err(not_understood(&format!("no call is named {call:?}"))),
        },
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(not_understood(&error.to_string())),
        Err(_) => return,
    };
    reply(&mut stream, outcome);
}

fn reply(stream: &mut UnixStream, outcome: Result<Value, Problem>) {
    let answer = outcome.map_or_else(Answer::Problem, Answer::Ok);
    // A client that has gone away does not want to know.
    let _ = line::send(stream, &answer, CLIENT_WAIT);
}

impl Shared {
    /// Keeps the connection of a client that wants to be told of the end, and says that it does.
    fn await_end(&self, mut stream: UnixStream) {
        let mut awaiting = self.awaiting.lock();
        if awaiting.len() < AWAITING_MAX && line::send(&mut stream, &Answer::Ok(Value::Null), CLIENT_WAIT).is_ok() {
            awaiting.push(stream);
        }
    }
}

/// Has the daemon answer, unless only one such call may be under way and one is.
fn answer(call: Call, with: Value, handler: &dyn Handler, shared: &Shared) -> Result<Value, Problem> {
    if call.at_once() == AtOnce::Any {
        return call.answer(handler, with);
    }
    let bit = 1 << call as u8;
    if shared.alone.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
        let text = format!("another {} is being begun, or waits for a device", call.name());
        return Err(Problem::new(Code::CallBusy, text));
    }
    let outcome = call.answer(handler, with);
    shared.alone.fetch_and(!bit, Ordering::SeqCst);
    outcome
}

/// Has a thread of its own answer a question that may have to wait for a device. An error says why it does not.
fn offload(
    stream: &UnixStream,
    call: Call,
    with: Value,
    shared: &Arc<Shared>,
    handler: &Arc<dyn Handler>,
) -> Result<(), Problem> {
    let busy = |why: &str| Problem::new(Code::ControlBusy, why);
    if Arc::strong_count(&shared.offloaded) > OFFLOADED_MAX {
        return Err(busy("as many questions as are answered at once wait for a device"));
    }
    let mut stream = stream.try_clone().map_err(|error| busy(&format!("out of file descriptors: {error}")))?;
    let (shared, handler, place) = (Arc::clone(shared), Arc::clone(handler), Arc::clone(&shared.offloaded));
    let spawned = std::thread::Builder::new().name("question".into()).spawn(move || {
        reply(&mut stream, answer(call, with, &*handler, &shared));
        drop(handler);
        drop(place);
    });
    spawned.map(drop).map_err(|error| busy(&format!("no thread can be started: {error}")))
}
