//! The kernel's mount of a session: it is made, recognised among others, and taken down.
//!
//! A path does not name a mount: others may be mounted over it, and it may have been taken away. What names ours is the
//! number of its filesystem's device, which the kernel gives to no other while the session lives. So the daemon never
//! unmounts what somebody else mounted at the same place.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use crate::os::DevNo;
use crate::os::process::{Unmount, unmount};
use crate::probe::mounts::{self, Mount};
use crate::probe::sys::Kernel;

/// Where the kernel hands out connections.
const DEVICE: &str = "/dev/fuse";

/// What a mount is to be like.
#[derive(Clone, Debug, Default)]
pub struct MountConfig {
    /// Where to mount; an absolute path.
    pub mountpoint: PathBuf,
    /// What `findmnt` shows as source.
    pub source: String,
    /// Refuse every change.
    pub read_only: bool,
    /// Let nobody execute anything.
    pub no_exec: bool,
    /// Honour set-user-id and set-group-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Every write is durable when it returns.
    pub sync: bool,
    /// Let processors sleep between requests, however short the pause.
    pub powersave: bool,
}

/// A mount that is at no place yet: dropped, it is gone.
pub(super) struct Detached {
    tree: OwnedFd,
    dev: DevNo,
}

impl Detached {
    /// Opens a connection and makes the mount for it (fsopen(2), fsconfig(2), fsmount(2)).
    pub(super) fn make(config: &MountConfig) -> io::Result<(OwnedFd, Self)> {
        let connection = connect()?;
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [
            ("source", config.source.as_str()),
            ("subtype", "scelle"),
            ("fd", &connection.as_raw_fd().to_string()),
            ("rootmode", "40000"),
            ("user_id", &rustix::process::getuid().as_raw().to_string()),
            ("group_id", &rustix::process::getgid().as_raw().to_string()),
        ] {
            fsconfig_set_string(&context, key, value)?;
        }
        let flags = [("ro", config.read_only), ("sync", config.sync)];
        let flags = flags.into_iter().filter_map(|(flag, wanted)| wanted.then_some(flag));
        for flag in ["default_permissions", "allow_other"].into_iter().chain(flags) {
            fsconfig_set_flag(&context, flag)?;
        }
        fsconfig_create(&context)?;
        let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(config))?;
        // Nobody serves the connection yet: only what the kernel knows by itself may be asked for.
        let known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let root = statx(&tree, "", known, StatxFlags::empty())?;
        let dev = DevNo { major: root.stx_dev_major, minor: root.stx_dev_minor };
        Ok((connection, Self { tree, dev }))
    }

    /// Puts the mount at its place, where processes find it from now on.
    pub(super) fn attach(self, mountpoint: &Path) -> io::Result<OwnMount> {
        move_mount(&self.tree, "", CWD, mountpoint, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(OwnMount { dev: self.dev, mountpoint: mountpoint.to_path_buf() })
    }
}

/// Opens a connection, which is nothing to the kernel until it is mounted.
fn connect() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open(DEVICE)?.into())
}

/// Whether the kernel would give a connection.
///
/// # Errors
/// Why not, with the name of its device.
pub fn available() -> io::Result<()> {
    connect().map(drop).map_err(|error| io::Error::new(error.kind(), format!("{DEVICE}: {error}")))
}

fn attributes(config: &MountConfig) -> MountAttrFlags {
    let when = |yes: bool, flag: MountAttrFlags| if yes { flag } else { MountAttrFlags::empty() };
    MountAttrFlags::MOUNT_ATTR_NOATIME
        | when(config.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY)
        | when(config.no_exec, MountAttrFlags::MOUNT_ATTR_NOEXEC)
        | when(!config.suid, MountAttrFlags::MOUNT_ATTR_NOSUID)
        | when(!config.dev, MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// A session's mount, as the mount table shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnMount {
    dev: DevNo,
    mountpoint: PathBuf,
}

/// Why a mount was not taken down.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// It is no longer there. The session ends when the last process that uses it is gone.
    #[error("the mount is no longer there")]
    Gone,
    /// Others are mounted on it, and they are not ours to take away.
    #[error("{} is mounted on it; unmount that first", shown(.0))]
    Covered(Vec<PathBuf>),
    /// The kernel refused.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl UnmountError {
    /// Whether the mount can be taken down later: it is in use.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Gone => false,
            Self::Covered(_) => true,
            Self::System(error) => matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)),
        }
    }
}

fn shown(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl OwnMount {
    /// Number of the filesystem's device: `st_dev` of everything in the mount.
    pub fn dev(&self) -> DevNo {
        self.dev
    }

    /// Where it was mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Takes the mount down, and nothing else. umount2(2) knows paths only: somebody who mounts something at this path
    /// in the moment between the look at the table and the call, and does not use it, loses that mount.
    ///
    /// # Errors
    /// See [`UnmountError`].
    pub fn unmount(&self, how: Unmount) -> Result<(), UnmountError> {
        self.stands_alone(&mounts::read(&Kernel)?)?;
        Ok(unmount(&self.mountpoint, how)?)
    }

    /// Whether the table has the mount at its place with nothing on it.
    fn stands_alone(&self, mounts: &[Mount]) -> Result<(), UnmountError> {
        let is_ours = |mount: &&Mount| mount.dev == self.dev && mount.mountpoint == self.mountpoint;
        let own = mounts.iter().rev().find(is_ours).ok_or(UnmountError::Gone)?;
        let on_it: Vec<_> = mounts.iter().filter(|m| m.parent == own.id).map(|m| m.mountpoint.clone()).collect();
        if on_it.is_empty() { Ok(()) } else { Err(UnmountError::Covered(on_it)) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mount(id: u32, parent: u32, minor: u32, mountpoint: &str) -> Mount {
        let dev = DevNo { major: 0, minor };
        let (kind, source) = ("tmpfs".to_owned(), String::new());
        Mount { id, parent, dev, mountpoint: mountpoint.into(), kind, source, options: String::new() }
    }

    #[test]
    fn only_the_own_mount_is_taken_and_only_when_nothing_is_mounted_on_it() {
        let own = OwnMount { dev: DevNo { major: 0, minor: 46 }, mountpoint: "/srv/a".into() };
        let (root, ours) = (mount(1, 0, 1, "/"), mount(7, 1, 46, "/srv/a"));
        let covered = |mounts: &[Mount]| match own.stands_alone(mounts).unwrap_err() {
            UnmountError::Covered(places) => places,
            error => panic!("{error}"),
        };
        own.stands_alone(&[root.clone(), ours.clone(), mount(8, 1, 47, "/srv/b")]).unwrap();
        // Another volume below ours, or a filesystem at the place that ours was taken away from.
        own.stands_alone(&[root.clone(), mount(6, 1, 45, "/srv/a"), mount(7, 6, 46, "/srv/a")]).unwrap();
        assert!(matches!(own.stands_alone(std::slice::from_ref(&root)), Err(UnmountError::Gone)));
        assert!(matches!(own.stands_alone(&[root.clone(), mount(8, 1, 47, "/srv/a")]), Err(UnmountError::Gone)));
        assert!(matches!(own.stands_alone(&[root.clone(), mount(8, 1, 46, "/elsewhere")]), Err(UnmountError::Gone)));
        // Over ours, and inside it.
        assert_eq!(covered(&[root.clone(), ours.clone(), mount(8, 7, 47, "/srv/a")]), [Path::new("/srv/a")]);
        assert_eq!(covered(&[root, ours, mount(8, 7, 47, "/srv/a/in")]), [Path::new("/srv/a/in")]);
    }
}
