//! System calls that concern the daemon's own process: leaving the terminal, signals, keeping secrets out of swap and
//! core dumps, taking a mount down.

use std::fs::OpenOptions;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::mount::UnmountFlags;
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, getgid, getppid, getuid, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit, setsid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::read_bounded;
use crate::limits::PROC_BYTES_MAX;
use crate::units::to_usize;

/// Longest message a daemon sends to the command that started it, in bytes.
const REPORT_BYTES_MAX: u64 = 64 << 10;

/// The two sides of [`fork_daemon`].
#[derive(Debug)]
pub enum Side {
    /// The process that the user started; it waits for the daemon's [`Report`].
    Command(Waiter),
    /// The daemon, in a session of its own.
    Daemon(Notifier),
}

/// What a daemon tells the command that started it: code 0 for "the folder is usable", else an exit code and the
/// reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Exit code for the command.
    pub code: u8,
    /// Text for the terminal, without a final newline; empty when all is well.
    pub message: String,
}

/// The command's end of the pipe from its daemon.
#[derive(Debug)]
pub struct Waiter {
    pipe: PipeReader,
}

impl Waiter {
    /// Waits until the daemon reports or ends. `None` when it ended without a report.
    pub fn wait(mut self) -> Option<Report> {
        let mut bytes = Vec::new();
        // A read error means the same as an early end: nobody reported.
        let _ = (&mut self.pipe).take(REPORT_BYTES_MAX).read_to_end(&mut bytes);
        let (&code, message) = bytes.split_first()?;
        Some(Report { code, message: String::from_utf8_lossy(message).into_owned() })
    }
}

/// The daemon's end of the pipe to the command that started it.
#[derive(Debug)]
pub struct Notifier {
    pipe: PipeWriter,
}

impl Notifier {
    /// Tells the command that the folder is usable, and lets go of the terminal.
    pub fn ready(self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        set_parent_process_death_signal(None)?;
        self.send(&Report { code: 0, message: String::new() })
    }

    /// Tells the command why there will be no folder.
    pub fn failed(self, report: &Report) -> io::Result<()> {
        self.send(report)
    }

    fn send(mut self, report: &Report) -> io::Result<()> {
        let mut bytes = vec![report.code];
        bytes.extend_from_slice(report.message.as_bytes());
        bytes.truncate(to_usize(REPORT_BYTES_MAX));
        self.pipe.write_all(&bytes)
    }
}

/// Splits off a daemon in a session of its own, with `/` as working folder.
///
/// # Errors
/// Refuses (`ErrorKind::Other`) when the process already has a second thread: a forked copy of a threaded process
/// may only call async-signal-safe functions. Otherwise what pipe(2), fork(2) or setsid(2) say.
pub fn fork_daemon() -> io::Result<Side> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a daemon can only be split off before the first thread is started"));
    }
    let (reader, writer) = io::pipe()?;
    let parent = rustix::process::getpid();
    // SAFETY: the process has exactly one thread (checked above), so the child may go on as a normal process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            setsid()?;
            end_with(parent)?;
            std::env::set_current_dir("/")?;
            Ok(Side::Daemon(Notifier { pipe: writer }))
        }
        _ => Ok(Side::Command(Waiter { pipe: reader })),
    }
}

/// Has the kernel send SIGTERM when the command ends that started this daemon: whoever interrupts the command does not
/// want the folder any more. This holds until the daemon has reported.
fn end_with(command: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // The command may have ended before.
    if getppid() == Some(command) { Ok(()) } else { Err(io::Error::other("the command that started it has ended")) }
}

/// Keeps secrets inside the process's memory: no core dumps, and no ptrace by other processes of the same user.
///
/// # Errors
/// What prctl(2) or setrlimit(2) say, and which it was.
pub fn harden() -> io::Result<()> {
    let named = |what: &str, error: Errno| io::Error::other(format!("{what}: {error}"));
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| named("PR_SET_DUMPABLE", error))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|error| named("RLIMIT_CORE", error))
}

/// Locks the memory that is and will be mapped, as far as it is used, so that no key reaches swap. A forked process has
/// to do so anew.
///
/// # Errors
/// What mlockall(2) says, typically that `RLIMIT_MEMLOCK` is too small.
pub fn lock_memory() -> io::Result<()> {
    // ONFAULT: without it, every thread's whole stack and buffer would be faulted in at once.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Ok(rustix::mm::mlockall(flags)?)
}

/// Whether this process has the rights of root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Memory of the machine, in bytes.
pub fn memory_bytes() -> u64 {
    let system = rustix::system::sysinfo();
    (system.totalram as u64).saturating_mul(system.mem_unit.into())
}

/// The most bytes that the kernel holds back of what programs have written, for all filesystems together:
/// `vm.dirty_bytes`, or `vm.dirty_ratio` percent of the machine's memory (Documentation/admin-guide/sysctl/vm.rst).
pub fn dirty_max_bytes() -> u64 {
    let setting = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/vm/{name}")).unwrap_or_default();
        text.trim().parse::<u64>().ok().filter(|value| *value > 0)
    };
    setting("dirty_bytes").unwrap_or_else(|| memory_bytes() / 100 * setting("dirty_ratio").unwrap_or(100).min(100))
}

/// The signals that end the daemon in an orderly way, blocked for every thread started afterwards.
#[derive(Debug)]
pub struct EndSignals {
    set: libc::sigset_t,
}

impl EndSignals {
    /// Blocks SIGTERM, SIGINT and SIGHUP in this thread and its descendants.
    ///
    /// # Errors
    /// What pthread_sigmask(3) says.
    pub fn block() -> io::Result<Self> {
        // sigemptyset(3) of glibc leaves most of the structure as it was.
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: zeros are a valid `sigset_t`, and `set` outlives each call.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            set.assume_init()
        };
        let signals = Self { set };
        signals.mask(libc::SIG_BLOCK)?;
        Ok(signals)
    }

    /// Runs `work` while these signals end the process at once, as they do one that blocks nothing; so does one that
    /// came before. For long work of a process that has nothing to put in order yet.
    ///
    /// # Errors
    /// What pthread_sigmask(3) says; then nothing was run, or the signals are not blocked any more.
    pub fn lifted<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        self.mask(libc::SIG_UNBLOCK)?;
        let result = work();
        self.mask(libc::SIG_BLOCK)?;
        Ok(result)
    }

    fn mask(&self, how: i32) -> io::Result<()> {
        // SAFETY: `set` outlives the call, and the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(how, &raw const self.set, std::ptr::null_mut()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for one of these signals and returns its number.
    ///
    /// # Errors
    /// What sigwait(3) says.
    pub fn wait(&self) -> io::Result<i32> {
        let mut signal = 0;
        // SAFETY: both pointers are valid for the length of the call.
        let result = unsafe { libc::sigwait(&self.set, &mut signal) };
        if result != 0 { Err(io::Error::from_raw_os_error(result)) } else { Ok(signal) }
    }
}

/// Who runs this process, for the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Process number.
    pub pid: u32,
    /// The user who logged in, also after a change of user (`/proc/self/loginuid`, set by pam_loginuid(8)).
    pub login_uid: Option<u32>,
    /// Name of that user, else of `uid`, when `/etc/passwd` has it.
    pub name: Option<String>,
    /// Name of the host.
    pub host: String,
}

/// The identity of this process, read anew.
pub fn identity() -> Identity {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let text = |path: &str| read_bounded(Path::new(path), PROC_BYTES_MAX).ok().flatten().unwrap_or_default();
    let text = |path: &str| String::from_utf8_lossy(&text(path)).trim().to_owned();
    // All ones: nobody has logged in, as for a service.
    let login_uid = text("/proc/self/loginuid").parse().ok().filter(|uid| *uid != u32::MAX);
    let name = name_of(&text("/etc/passwd"), login_uid.unwrap_or(uid));
    Identity { uid, gid, pid: std::process::id(), login_uid, name, host: text("/proc/sys/kernel/hostname") }
}

/// The name of a user in passwd(5).
fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let mut rows = passwd.lines().map(|line| line.split(':'));
    rows.find_map(|mut row| {
        let name = row.next()?;
        (row.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// How a mount is taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Only when no process uses the mount.
    Plain,
    /// Out of the tree at once, and completely when the last process that uses the mount is gone (`MNT_DETACH`).
    Lazy,
    /// Only when no process uses the mount, nor has used it since the last call of this kind, which only marked it
    /// (`MNT_EXPIRE`). Otherwise the call fails with `EBUSY` or `EAGAIN`.
    Expired,
}

/// umount2(2), never following a symbolic link at the end of `mountpoint`.
///
/// # Errors
/// What the system call says: `EBUSY`, `EINVAL` (not a mount point), `EPERM`.
pub fn unmount(mountpoint: &Path, how: Unmount) -> io::Result<()> {
    let flags = match how {
        Unmount::Plain => UnmountFlags::empty(),
        Unmount::Lazy => UnmountFlags::DETACH,
        Unmount::Expired => UnmountFlags::EXPIRE,
    };
    Ok(rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pipe() -> (Waiter, Notifier) {
        let (reader, writer) = io::pipe().unwrap();
        (Waiter { pipe: reader }, Notifier { pipe: writer })
    }

    #[test]
    fn a_report_arrives_with_its_code() {
        let (waiter, notifier) = pipe();
        let report = Report { code: 4, message: "no key slot opens with this passphrase".into() };
        notifier.failed(&report).unwrap();
        assert_eq!(waiter.wait(), Some(report));
    }

    #[test]
    fn a_daemon_that_dies_reports_nothing() {
        let (waiter, notifier) = pipe();
        drop(notifier);
        assert_eq!(waiter.wait(), None);
    }

    #[test]
    fn users_are_named_by_the_password_file() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nanne:x:1000:1000::/home/anne:/bin/sh";
        assert_eq!(name_of(passwd, 1000), Some("anne".into()));
        assert_eq!(name_of(passwd, 7), None);
        let us = identity();
        assert_eq!(us.pid, std::process::id());
        assert!(!us.host.is_empty());
    }

    #[test]
    fn a_threaded_process_is_not_forked() {
        // The test harness itself runs threads.
        assert!(fork_daemon().is_err());
    }

    #[test]
    fn what_is_not_a_mount_point_is_not_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let error = unmount(dir.path(), Unmount::Plain).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)), "{error}");
    }
}
