//! What the daemon asks of its own process: leaving the terminal, signals, keeping secrets out of swap and core
//! dumps, taking a mount down. These are the system calls that `std` does not wrap.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::read_bounded;
use crate::limits::PROC_BYTES_MAX;

/// Longest message a daemon sends to the command that started it, in bytes.
const REPORT_BYTES_MAX: u64 = 64 << 10;

/// The two sides of [`fork_daemon`].
#[derive(Debug)]
pub enum Side {
    /// The command that was typed; it waits for the daemon's [`Report`].
    Command(Waiter),
    /// The daemon, in a session of its own.
    Daemon(Notifier),
}

/// What a daemon tells the command that started it: 0 for "the folder is usable", else an exit code and why.
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
    pipe: File,
}

impl Waiter {
    /// Waits until the daemon reports or ends. `None` when it ended without a word.
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
    pipe: File,
}

impl Notifier {
    /// Tells the command that the folder is usable, and lets go of the terminal.
    pub fn ready(self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        for target in 0..=2 {
            // SAFETY: dup2 takes two descriptor numbers; `null` is open for the whole call.
            if unsafe { libc::dup2(null.as_raw_fd(), target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        self.send(&Report { code: 0, message: String::new() })
    }

    /// Tells the command why there will be no folder.
    pub fn failed(self, report: &Report) -> io::Result<()> {
        self.send(report)
    }

    fn send(mut self, report: &Report) -> io::Result<()> {
        let mut bytes = vec![report.code];
        bytes.extend_from_slice(report.message.as_bytes());
        bytes.truncate(REPORT_BYTES_MAX as usize);
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
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2 stores.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors were just made by pipe2 and have no other owner.
    let (reader, writer) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    // SAFETY: the process has exactly one thread (checked above), so the child may go on as a normal process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            // SAFETY: setsid takes no arguments and touches no memory.
            if unsafe { libc::setsid() } < 0 {
                return Err(io::Error::last_os_error());
            }
            std::env::set_current_dir("/")?;
            Ok(Side::Daemon(Notifier { pipe: writer }))
        }
        _ => Ok(Side::Command(Waiter { pipe: reader })),
    }
}

/// What [`harden`] could not do; each is worth a warning and none stops the daemon.
pub type Shortfalls = Vec<(&'static str, io::Error)>;

/// Keeps secrets in memory where they are: no core dumps, no ptrace by other processes of the same user, no swap.
pub fn harden() -> Shortfalls {
    let mut shortfalls = Shortfalls::new();
    let mut note = |what, result: i32| {
        if result < 0 {
            shortfalls.push((what, io::Error::last_os_error()));
        }
    };
    // SAFETY: PR_SET_DUMPABLE takes one integer.
    note("switching core dumps off (PR_SET_DUMPABLE)", unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) });
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a valid rlimit for the length of the call.
    note("limiting core dumps to nothing (RLIMIT_CORE)", unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) });
    shortfalls
}

/// Locks the memory that is and will be mapped, as far as it is used, so that no key reaches swap.
///
/// # Errors
/// What mlockall(2) says, typically that `RLIMIT_MEMLOCK` is too small.
pub fn lock_memory() -> io::Result<()> {
    // MCL_ONFAULT: without it every thread's whole stack and buffer would be faulted in at once.
    // SAFETY: mlockall takes flags only.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Memory of the machine, in bytes; 0 when the system does not say.
pub fn memory_bytes() -> u64 {
    // SAFETY: sysconf takes a number and reads nothing of ours.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(size).unwrap_or(0))
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
        // SAFETY: sigset_t is plain data and sigemptyset initialises it before use.
        let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
        // SAFETY: `set` is valid for the three kinds of call; the old mask is not asked for.
        let result = unsafe {
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
        };
        if result != 0 { Err(io::Error::from_raw_os_error(result)) } else { Ok(Self { set }) }
    }

    /// Waits for one of them and returns its number.
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
    /// The user who logged in, whatever became of the user since (`/proc/self/loginuid`, set by pam_loginuid(8)).
    pub login_uid: Option<u32>,
    /// Name of that user, else of `uid`, when `/etc/passwd` has it.
    pub name: Option<String>,
    /// Name of the host.
    pub host: String,
}

/// Looks at the process.
pub fn identity() -> Identity {
    // SAFETY: getuid and getgid take nothing and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let text = |path: &str| read_bounded(Path::new(path), PROC_BYTES_MAX).ok().flatten().unwrap_or_default();
    let text = |path: &str| String::from_utf8_lossy(&text(path)).trim().to_owned();
    // All ones: nobody has logged in, e.g. a service.
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
    /// Only when nobody uses it.
    Plain,
    /// At once from the tree, and for good when the last user is gone (`MNT_DETACH`).
    Lazy,
    /// When nobody uses it, nor has since the last call of this kind, which only marked it (`MNT_EXPIRE`): otherwise
    /// `EBUSY` or `EAGAIN`.
    Expired,
}

/// umount2(2), never following a symbolic link at the end of `mountpoint`.
///
/// # Errors
/// What the system call says: `EBUSY`, `EINVAL` (not a mount point), `EPERM`.
pub fn unmount(mountpoint: &Path, how: Unmount) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let flags = match how {
        Unmount::Plain => 0,
        Unmount::Lazy => libc::MNT_DETACH,
        Unmount::Expired => libc::MNT_EXPIRE,
    };
    // SAFETY: `path` is a C string that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::OwnedFd;

    fn pipe() -> (Waiter, Notifier) {
        let (reader, writer) = io::pipe().unwrap();
        (Waiter { pipe: File::from(OwnedFd::from(reader)) }, Notifier { pipe: File::from(OwnedFd::from(writer)) })
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
