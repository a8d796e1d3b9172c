//! The process behind a mount: it opens the volume, serves the kernel, and closes the volume whatever ended the mount.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::gather::{Gathered, LeftOut};
use super::request::Request;
use super::watch::{Checker, InForce, Watch};
use super::{WITNESS_DIR, devices, find, gather, place, ready, report, resync, scrub};
use crate::audit::Audit;
use crate::control::{
    self, Handler, ResyncAnswer, ResyncWanted, ScrubAnswer, ScrubWanted, SealedTrail, Server, TableAnswer, TableWanted,
    TaskReport, VolumeStatus, ask,
};
use crate::crypto::Secret;
use crate::device::raw::Access;
use crate::fs;
use crate::fuse::{Locator, MountConfig, OwnMount, Session, UnmountError, tune_readahead};
use crate::limits::{CACHE_BYTES_DEFAULT_MAX, CACHE_BYTES_DEFAULT_MIN};
use crate::os::process::{self, EndSignals, Unmount};
use crate::policy::kind;
use crate::problem::{Code, ExitCode, Problem};
use crate::registry::VerifiedRegistry;
use crate::units::{Ino, Uuid};
use crate::volume::{self, Open, OpenOptions, Sealed};

/// Longest wait for the daemon of an earlier mount to let go of the devices.
const CLOSING_WAIT: Duration = Duration::from_secs(60);

/// Longest wait for a daemon that was killed.
const KILLED_WAIT: Duration = Duration::from_secs(2);

/// How often the devices are tried again meanwhile.
const CLOSING_POLL: Duration = Duration::from_millis(20);

/// The text for a question that cannot be answered any more.
const CLOSED: &str = "the volume is being closed";

/// A mounted volume whose requests are not yet served.
pub struct Mounted {
    session: Session,
    served: Arc<Served>,
    server: Server,
    signals: EndSignals,
    idle: Option<Duration>,
}

/// Opens the volume and mounts it.
pub fn start(request: &Request, secret: &Secret) -> Result<Mounted, Problem> {
    let system = |what: &str, error: std::io::Error| Problem::new(Code::System, format!("{what}: {error}"));
    // This is done before the first thread starts, because threads inherit which signals are blocked.
    let signals = EndSignals::block().map_err(|error| system("blocking signals", error))?;
    // The command's locks do not count for a daemon that was split off from it.
    lock_memory()?;
    ready::check(request.options.read_only)?;
    let registry = devices::load_registry(&request.documents)?;
    let Gathered { approved, left_out } = gather(request, &registry)?;
    let blame = |error: volume::Error| gather::blame(&left_out, error.into());
    let sealed = Sealed::read(approved).map_err(blame)?;
    // Nothing was written yet, so nothing has to be put in order. Forged labels can make this take long.
    let assembled = signals.lifted(|| sealed.unlock(secret)).map_err(|error| system("signals", error))??;
    // Opening a key slot takes seconds, in which a device may have been revoked. So the registry is read again; from
    // the opening on, the watch checks it.
    let registry = devices::load_registry(&request.documents)?;
    let options = OpenOptions {
        read_only: request.options.read_only,
        degraded: request.options.degraded,
        accept_rollback: request.options.accept_rollback,
        enrol: false,
        accept_clock: request.options.accept_clock,
        now_unix_s: None,
        cache_bytes: request.options.cache_bytes.unwrap_or_else(default_cache_bytes),
        witness: Some(WITNESS_DIR.into()),
    };
    let open = assembled.open(&registry, &options).map_err(blame)?;
    for left_out in &left_out {
        open.audit().record(Audit::left_out(&left_out.device, &left_out.why));
    }
    let concerns = gather::said(&left_out);
    concerns.iter().for_each(|concern| log::error!("{concern}"));
    let config = config(request, &registry);
    let (uuid, fs) = (open.uuid(), Arc::clone(open.fs()));
    let served = Served::new(open, request, registry, left_out).map_err(|error| system("starting the watch", error))?;
    let handler = Arc::clone(&served) as Arc<dyn Handler>;
    let server = Server::start(control::RUN_DIR.as_ref(), &uuid.to_string(), &request.mountpoint, handler)
        .map_err(|error| system(&format!("the control socket in {}", control::RUN_DIR), error));
    let mounted = server.and_then(|server| {
        let locator = Arc::clone(&served) as Arc<dyn Locator>;
        // Opening took seconds, in which somebody else may have mounted something there.
        find::prepare_mountpoint(request)?;
        let session = Session::mount(fs, locator, &config).map_err(|error| {
            Problem::new(Code::Mount, format!("cannot mount at {}: {error}", request.mountpoint.display()))
        })?;
        Ok((server, session))
    });
    match mounted {
        Ok((server, session)) => {
            let mount = session.own_mount();
            server.mounted(mount.dev());
            if let Err(error) = tune_readahead(mount) {
                log::warn!("read-ahead stays at the kernel's default: {error}");
            }
            Ok(Mounted { session, served, server, signals, idle: request.options.idle })
        }
        Err(failure) => {
            if let Err(problem) = served.close() {
                log::error!("{}", problem.text);
            }
            Err(failure)
        }
    }
}

/// Keeps keys out of swap.
pub fn lock_memory() -> Result<(), Problem> {
    process::lock_memory().map_err(|error| {
        Problem::new(Code::System, format!("keys could be written to swap: memory cannot be locked: {error}"))
            .advise("Run it as root; a service also needs LimitMEMLOCK=infinity, a container CAP_IPC_LOCK.")
    })
}

/// Most memory for blocks that were read, unless the mount says it: a sixteenth of the machine's memory, within bounds.
fn default_cache_bytes() -> u64 {
    (process::memory_bytes() / 16).clamp(CACHE_BYTES_DEFAULT_MIN, CACHE_BYTES_DEFAULT_MAX)
}

/// Has the policy approve the devices, and leaves out the others. Waits while they are busy because the daemon of an
/// unmounted volume is still closing it. A daemon that was killed cannot be asked, and holds its devices until the kernel has taken it apart.
fn gather(request: &Request, registry: &VerifiedRegistry) -> Result<Gathered, Problem> {
    let access = if request.options.read_only { Access::ExclusiveRead } else { Access::Exclusive };
    let began = Instant::now();
    loop {
        let gathered = gather::gather(&request.sources, registry, access, false);
        let is_busy = match &gathered {
            Ok(gathered) => gathered.lacks_busy(),
            Err(problem) => problem.exit() == ExitCode::Busy,
        };
        if !is_busy {
            return gathered;
        }
        let serving = serving(&request.sources.devices);
        if let (Err(_), Some((status, true))) = (&gathered, &serving) {
            return Err(mounted_already(status));
        }
        let is_closing = serving.is_some_and(|(_, is_mounted)| !is_mounted);
        let patience = if is_closing { CLOSING_WAIT } else { KILLED_WAIT };
        if began.elapsed() > patience {
            return gathered;
        }
        std::thread::sleep(CLOSING_POLL);
    }
}

/// The volume on one of `devices` that a daemon serves, if there is one, and whether it is still mounted.
fn serving(devices: &[PathBuf]) -> Option<(VolumeStatus, bool)> {
    let node = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let wanted: Vec<PathBuf> = devices.iter().map(|device| node(device)).collect();
    let serves = |status: &VolumeStatus| status.replicas.iter().any(|r| wanted.contains(&node(Path::new(&r.device))));
    let (daemon, status) = ask::heard(true, serves).unwrap_or_default().0.pop()?;
    let greeting = daemon.greeting().ok()?;
    let is_mounted = find::mounts().iter().any(|mount| greeting.serves(mount.dev));
    Some((status, is_mounted))
}

fn mounted_already(status: &VolumeStatus) -> Problem {
    let name = if status.label.is_empty() { &status.uuid } else { &status.label };
    Problem::new(Code::VolumeMounted, format!("{name} is mounted on {}", status.mountpoint))
}

fn config(request: &Request, registry: &VerifiedRegistry) -> MountConfig {
    MountConfig {
        mountpoint: request.mountpoint.clone(),
        source: request.shown(kind::on_this_host(registry).kind),
        read_only: request.options.read_only,
        no_exec: request.options.no_exec.unwrap_or(false),
        powersave: request.options.powersave,
        suid: request.options.suid.unwrap_or(false),
        dev: request.options.dev.unwrap_or(false),
        sync: request.options.sync.unwrap_or(false),
    }
}

impl Mounted {
    /// Serves until the volume is unmounted, by whomever; then closes it.
    pub fn serve(self) -> Result<ExitCode, Problem> {
        let Self { session, served, server, signals, idle } = self;
        let mount = session.own_mount().clone();
        if let Some(idle) = idle {
            let mount = mount.clone();
            let expire = move || unmount_when_idle(&mount, idle);
            if let Err(error) = std::thread::Builder::new().name("idle".into()).spawn(expire) {
                log::warn!("no thread for idle={}s: {error}; use scelle umount", idle.as_secs());
            }
        }
        let spawned = std::thread::Builder::new().name("signals".into()).spawn(move || obey(&signals, &mount));
        if let Err(error) = spawned {
            log::warn!("no thread for signals: {error}; use scelle umount");
        }
        let ended = session.run();
        if let Err(error) = &ended {
            log::error!("the connection to the kernel broke: {error}");
        }
        let outcome = served.close();
        server.finish(&outcome);
        match (outcome, ended) {
            (Err(problem), _) => {
                log::error!("{}", problem.text);
                Err(problem)
            }
            (Ok(()), Err(error)) => {
                Err(Problem::new(Code::Fuse, format!("the connection to the kernel broke: {error}")))
            }
            (Ok(()), Ok(())) => Ok(ExitCode::Done),
        }
    }
}

/// Unmounts at each signal. A folder in use leaves the tree at once, and the daemon ends with its last user. What others
/// have mounted on the volume stays, and so does the volume under it.
fn obey(signals: &EndSignals, mount: &OwnMount) {
    let place = mount.mountpoint().display();
    while let Ok(signal) = signals.wait() {
        log::info!("signal {signal}: unmounting {place}");
        let outcome = match mount.unmount(Unmount::Plain) {
            Err(UnmountError::System(error)) if error.raw_os_error() == Some(libc::EBUSY) => {
                log::warn!("{place} is in use: the daemon ends with its last user");
                mount.unmount(Unmount::Lazy)
            }
            outcome => outcome,
        };
        match outcome {
            Ok(()) => {}
            Err(UnmountError::Gone) => log::warn!("{place} was taken away: the daemon ends with its last user"),
            Err(error) => log::error!("unmounting {place}: {error}"),
        }
    }
}

/// Unmounts when nobody has used the mount between two attempts. The kernel itself knows that. It also knows of uses
/// that never reach the daemon, and of those that begin while it is asked.
fn unmount_when_idle(mount: &OwnMount, idle: Duration) {
    let place = mount.mountpoint().display();
    loop {
        std::thread::sleep(idle);
        match mount.unmount(Unmount::Expired) {
            Ok(()) => return log::info!("{place} was not used for {} s: unmounted", idle.as_secs()),
            Err(error) if error.is_busy() => {}
            Err(error) => return log::warn!("idle={}s has no effect any more: {error}", idle.as_secs()),
        }
    }
}

/// What the control socket is answered from: the open volume and, once that is closed, the last answer.
struct Served {
    open: RwLock<Option<Open>>,
    watch: Mutex<Option<Watch>>,
    last: Mutex<VolumeStatus>,
    mountpoint: String,
    uuid: Uuid,
    /// What was left out at the mount.
    left_out: Vec<LeftOut>,
}

impl Served {
    fn new(
        open: Open,
        request: &Request,
        registry: VerifiedRegistry,
        left_out: Vec<LeftOut>,
    ) -> std::io::Result<Arc<Self>> {
        let mountpoint = request.mountpoint.to_string_lossy().into_owned();
        let uuid = open.uuid();
        let watch = Watch::start(request.documents.clone(), registry, Arc::clone(open.members()), open.clock())?;
        let last = Mutex::new(shown(&open, &watch.checker().found(), &mountpoint, &left_out));
        let (open, watch) = (RwLock::new(Some(open)), Mutex::new(Some(watch)));
        Ok(Arc::new(Self { open, watch, last, mountpoint, uuid, left_out }))
    }

    /// Makes the last commit, and ends everything but the control socket.
    fn close(&self) -> Result<(), Problem> {
        let mut watch = self.watch.lock().take();
        watch.iter_mut().for_each(Watch::only_check);
        let open = self.open.write().take();
        let closed = open.map_or(Ok(()), Open::close);
        drop(watch);
        closed.map_err(|error| Problem::new(Code::LastCommit, format!("the last commit failed: {error}")))
    }

    /// The check of registry and devices, until the volume is closed. Its lock is let go of, so that a device that
    /// hangs while it is checked does not hold up the end.
    fn checker(&self) -> Option<Arc<Checker>> {
        self.watch.lock().as_ref().map(|watch| Arc::clone(watch.checker()))
    }

    fn trail<T, E: Display>(&self, ask: impl FnOnce(&Audit) -> Result<T, E>) -> Result<T, Problem> {
        let open = self.open.read();
        let open = open.as_ref().ok_or_else(|| trail_problem(CLOSED))?;
        ask(open.audit()).map_err(|error| trail_problem(&error.to_string()))
    }
}

/// The status now. `left_out` was left out at the mount: that is said of a device that is still there, and is not in use as
/// a replica by now.
fn shown(open: &Open, found: &InForce, mountpoint: &str, left_out: &[LeftOut]) -> VolumeStatus {
    let mirror = open.store().mirror();
    let is_used = |device: &Path| (0..mirror.len()).any(|index| Path::new(&mirror.device_name(index)) == device);
    let concerns = |left_out: &&LeftOut| left_out.device.exists() && !is_used(&left_out.device);
    let left_out: Vec<LeftOut> = left_out.iter().filter(concerns).cloned().collect();
    let concerns = [found.concerns.clone(), gather::said(&left_out)].concat();
    let status = report::report(open, &found.registry, &found.kind, mountpoint, &concerns);
    VolumeStatus { watch: found.watching, ..status }
}

fn trail_problem(text: &str) -> Problem {
    Problem::new(Code::Audit, format!("the audit trail: {text}"))
}

impl Locator for Served {
    fn place(&self, ino: Ino) -> fs::Result<Vec<u8>> {
        let open = self.open.read();
        let found = self.checker().map(|checker| checker.found());
        match (open.as_ref(), found) {
            (Some(open), Some(found)) => place::place(open, &found.registry, &found.kind, ino)?.encode(),
            // The volume is being closed: only those who asked before can still ask.
            _ => Err(fs::Error::NoAttribute),
        }
    }
}

impl Handler for Served {
    fn status(&self) -> Result<VolumeStatus, Problem> {
        let open = self.open.read();
        let found = self.checker().map(|checker| checker.found());
        let mut last = self.last.lock();
        if let (Some(open), Some(found)) = (open.as_ref(), found) {
            *last = shown(open, &found, &self.mountpoint, &self.left_out);
        }
        Ok(last.clone())
    }

    fn sync(&self) -> Result<(), Problem> {
        let open = self.open.read();
        let Some(open) = open.as_ref() else { return Ok(()) };
        open.fs().sync().map_err(|error| Problem::new(Code::Sync, format!("not durable: {error}")))
    }

    fn audit(&self, after: u64) -> Result<Vec<String>, Problem> {
        let records = self.trail(|audit| audit.page(after))?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| trail_problem("a record is not text"));
        records.into_iter().map(text).collect()
    }

    fn seal(&self) -> Result<SealedTrail, Problem> {
        let (seal, signature) = self.trail(Audit::seal)?;
        Ok(SealedTrail { seal, signature })
    }

    fn resync(&self, wanted: ResyncWanted) -> Result<ResyncAnswer, Problem> {
        let checker = self.checker().ok_or_else(|| Problem::new(Code::Closing, CLOSED))?;
        resync::resync(&checker, self.uuid, &wanted)
    }

    fn table(&self, wanted: TableWanted) -> Result<TableAnswer, Problem> {
        let checker = self.checker().ok_or_else(|| Problem::new(Code::Closing, CLOSED))?;
        resync::change(&checker, &wanted)
    }

    fn scrub(&self, wanted: ScrubWanted) -> Result<ScrubAnswer, Problem> {
        // What waits for the end of a scrub does not hold up the end of the volume.
        let scrubs = self.open.read().as_ref().map(|open| Arc::clone(open.scrubs()));
        scrub::answer(&scrubs.ok_or_else(|| Problem::new(Code::Closing, CLOSED))?, &wanted)
    }

    fn tasks(&self) -> Result<Vec<TaskReport>, Problem> {
        let open = self.open.read();
        Ok(open.as_ref().map_or_else(Vec::new, |open| report::tasks(open.members().tasks())))
    }

    fn cancel(&self, task: u64) -> Result<(), Problem> {
        let open = self.open.read();
        let open = open.as_ref().ok_or_else(|| Problem::new(Code::Closing, CLOSED))?;
        open.members().tasks().cancel(task)
    }
}
