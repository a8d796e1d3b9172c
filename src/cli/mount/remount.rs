//! `mount -o remount`: what the kernel can change of a mount while it is in use. The daemon goes on as it is.

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, mount_remount};

use crate::control::{VolumeState, ask};
use crate::daemon::{MountOptions, Request, find};
use crate::probe::mounts;
use crate::problem::{Code, ExitCode, Problem};

/// Changes the flags of the mount: `ro`, `suid`, `dev`, `noexec`, `sync`. Data written before `ro` is durable when this
/// returns. Other options are those of the mount itself, which mount(8) repeats: none of them is changed.
pub(super) fn run(request: &Request) -> Result<ExitCode, Problem> {
    let (mountpoint, place) = (&request.mountpoint, request.mountpoint.display());
    let mounts = find::mounts();
    let mount = mounts::topmost(&mounts, mountpoint)
        .filter(|mount| find::is_ours(mount))
        .ok_or_else(|| Problem::new(Code::RemountNotMounted, format!("no scelle volume is mounted at {place}")))?;
    let daemon = ask::daemon_of(mount)?
        .ok_or_else(|| Problem::new(Code::Control, format!("the daemon of {place} does not answer")))?;
    let status = daemon.status()?;
    if !request.options.read_only && status.state == VolumeState::ReadOnly {
        let text = format!("{place} cannot be made writable: the volume accepts no change");
        return Err(Problem::new(Code::RemountReadOnly, text));
    }
    let failed = |error: rustix::io::Errno| Problem::new(Code::Remount, format!("{place}: {error}"));
    let now = statvfs(mountpoint).map_err(failed)?.f_flag;
    mount_remount(mountpoint, flags(&request.options, now), c"").map_err(|error| match error {
        rustix::io::Errno::BUSY => {
            let text = format!("{place} is in use: a file is open for writing");
            Problem::new(Code::RemountBusy, text).advise("Close it; scelle umount says who uses the folder.")
        }
        error => failed(error),
    })?;
    daemon.sync()?;
    Ok(ExitCode::Done)
}

/// The flags that the mount is to have. A flag of which `options` say nothing stays as it is `now`.
fn flags(options: &MountOptions, now: StatVfsMountFlags) -> MountFlags {
    let when = |yes: bool, flag: MountFlags| if yes { flag } else { MountFlags::empty() };
    let has = |flag: StatVfsMountFlags| now.contains(flag);
    MountFlags::NOATIME
        | when(options.read_only, MountFlags::RDONLY)
        | when(options.no_exec.unwrap_or(has(StatVfsMountFlags::NOEXEC)), MountFlags::NOEXEC)
        | when(options.suid.map_or(has(StatVfsMountFlags::NOSUID), |suid| !suid), MountFlags::NOSUID)
        | when(options.dev.map_or(has(StatVfsMountFlags::NODEV), |dev| !dev), MountFlags::NODEV)
        | when(options.sync.unwrap_or(has(StatVfsMountFlags::SYNCHRONOUS)), MountFlags::SYNCHRONOUS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays_as_it_is() {
        let strict = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
        let plain = MountOptions::default();
        assert_eq!(flags(&plain, strict), MountFlags::NOATIME | MountFlags::NOSUID | MountFlags::NODEV);
        assert_eq!(flags(&plain, StatVfsMountFlags::RDONLY), MountFlags::NOATIME);
        let options = MountOptions {
            read_only: true,
            suid: Some(true),
            dev: Some(false),
            no_exec: Some(true),
            sync: Some(true),
            ..plain
        };
        let wanted =
            MountFlags::NOATIME | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::SYNCHRONOUS;
        assert_eq!(flags(&options, strict), wanted);
    }
}
