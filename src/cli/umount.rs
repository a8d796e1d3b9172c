//! `scelle umount`: it returns when the volume is closed and the daemon has ended, so that the devices are free.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::control::{ClientError, ask};
use crate::daemon::find;
use crate::os;
use crate::os::process::{self, Unmount};
use crate::probe::mounts::{self, Mount};
use crate::problem::{Code, ExitCode, Problem};

/// Longest wait for the last commit and the daemon's end.
const END_WAIT: Duration = Duration::from_secs(300);

/// Longest wait for the daemon's end, once it has said that the volume is closed. Only a device that does not answer
/// takes longer: no process ends before the kernel is done with its transfers.
const EXIT_WAIT: Duration = Duration::from_secs(30);

/// How often to see whether the daemon has ended, once it has said that the volume is closed.
const POLL: Duration = Duration::from_millis(5);

/// Most processes that a message names.
const USERS_SHOWN: usize = 5;

/// Arguments of `scelle umount`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where the volume is mounted, or its label or UUID
    volume: PathBuf,
}

/// `scelle umount`.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let named = &arguments.volume;
    let name = named.to_str().filter(|name| !name.contains('/'));
    let is_mountpoint = |path: &Path| find::mounts().iter().any(|mount| mount.mountpoint == path);
    match name {
        // A word is a name, unless a folder of that name here is a mount point.
        Some(name) if !is_mountpoint(&os::mountpoint_path(named)) => {
            let (_, status) = ask::daemon(name)?;
            perform(Path::new(&status.mountpoint), Unmount::Plain)
        }
        _ => perform(named, Unmount::Plain),
    }
}

/// Unmounts, and waits for the daemon's end unless the mount may still be in use.
pub(super) fn perform(mountpoint: &Path, how: Unmount) -> Result<ExitCode, Problem> {
    let mountpoint = os::mountpoint_path(mountpoint);
    let mount = ours(&find::mounts(), &mountpoint)?;
    if how == Unmount::Lazy {
        return match process::unmount(&mountpoint, how) {
            Ok(()) => Ok(ExitCode::Done),
            Err(error) => Err(unmount_failure(&mountpoint, &error)),
        };
    }
    let daemon = ask::daemon_of(&mount);
    let watch = match &daemon {
        Ok(Some(client)) => Some(client.watch_end()?),
        Ok(None) | Err(_) => None,
    };
    process::unmount(&mountpoint, how).map_err(|error| unmount_failure(&mountpoint, &error))?;
    let Some(watch) = watch else { return daemon.map(|_| ExitCode::Done) };
    let pid = watch.pid;
    match watch.wait(END_WAIT) {
        Ok(()) => {}
        Err(ClientError::Refused(problem)) => {
            return Err(Problem { text: format!("unmounted, but {}", problem.text), ..problem });
        }
        Err(ClientError::Io { source, .. }) if source.kind() == ErrorKind::TimedOut => {
            let text =
                format!("unmounted, but the daemon (process {pid}) has not closed the volume within {END_WAIT:?}");
            return Err(Problem::new(Code::UmountTimeout, text).advise(
                "It goes on trying; see the system's log. Or another mount namespace, a container's say, still has it \
                 mounted: grep for the mount point in /proc/*/mountinfo.",
            ));
        }
        Err(error) => {
            let text = format!("unmounted, but the daemon (process {pid}) ended without closing the volume: {error}");
            return Err(Problem::new(Code::UmountDied, text));
        }
    }
    let deadline = Instant::now() + EXIT_WAIT;
    while is_alive(pid) {
        if Instant::now() > deadline {
            let text = format!("unmounted, and the volume is closed, but the daemon (process {pid}) has not ended");
            return Err(Problem::new(Code::UmountTimeout, text).advise(
                "What was written is safe. Most likely a device does not answer, as the system's log says; it and the others are \
                 free when the kernel has abandoned it.",
            ));
        }
        std::thread::sleep(POLL);
    }
    Ok(ExitCode::Done)
}

/// The mount that a call of umount2(2) would take away, if it is a scelle volume.
fn ours(mounts: &[Mount], mountpoint: &Path) -> Result<Mount, Problem> {
    let place = mountpoint.display();
    let not_ours = |text| Problem::new(Code::UmountNotMounted, text);
    let Some(top) = mounts::topmost(mounts, mountpoint) else {
        return Err(not_ours(format!("{place} is not a mount point")));
    };
    if find::is_ours(top) {
        return Ok(top.clone());
    }
    let below = mounts.iter().any(|mount| mount.mountpoint == mountpoint && find::is_ours(mount));
    let text = match below {
        true => {
            format!("another filesystem ({}) is mounted over the volume at {place}; unmount that one first", top.kind)
        }
        false => format!("no scelle volume is mounted at {place}, but another filesystem ({})", top.kind),
    };
    Err(not_ours(text).advise(format!("umount {place} unmounts it.")))
}

fn unmount_failure(mountpoint: &Path, error: &std::io::Error) -> Problem {
    let place = mountpoint.display();
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            let users = users(mountpoint);
            let advice = if users.is_empty() {
                "Close what is open there, or leave the folder.".to_string()
            } else {
                format!("Used by {}.", users.join(", "))
            };
            Problem::new(Code::UmountBusy, format!("{place} is in use")).advise(advice)
        }
        Some(libc::EINVAL | libc::ENOENT) => {
            Problem::new(Code::UmountNotMounted, format!("{place} is not a mount point"))
        }
        Some(libc::EPERM) => Problem::new(Code::NeedsRoot, format!("only root can unmount {place}")),
        _ => Problem::new(Code::Umount, format!("{place}: {error}")),
    }
}

/// Processes with a working folder, a program or an open file under `mountpoint`, as far as /proc tells.
fn users(mountpoint: &Path) -> Vec<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let inside = |link: PathBuf| std::fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint));
    let mut found = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        if !name.as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let path = process.path();
        let files = std::fs::read_dir(path.join("fd")).into_iter().flatten().flatten().map(|file| file.path());
        if ["cwd", "root", "exe"].into_iter().map(|link| path.join(link)).chain(files).any(inside) {
            let command = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.push(format!("{} (process {})", command.trim(), name.to_string_lossy()));
        }
        if found.len() == USERS_SHOWN {
            break;
        }
    }
    found
}

/// Whether the process still holds anything. A zombie does not, unless only its first thread has ended so far.
fn is_alive(pid: u32) -> bool {
    // The state follows the command's name, which may hold spaces and brackets (proc_pid_stat(5)).
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.iter().rposition(|&byte| byte == b')').and_then(|at| stat.get(at + 2));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    after.is_some_and(|state| threads > 1 || !matches!(state, b'Z' | b'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_alive() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(u32::MAX));
    }
}
