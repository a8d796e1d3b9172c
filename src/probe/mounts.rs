//! The mount table (proc_pid_mountinfo(5)).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::sys::System;
use crate::limits;
use crate::os::DevNo;

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount.
    pub id: u32,
    /// Number of the mount that it lies on.
    pub parent: u32,
    /// Number of the filesystem's device.
    pub dev: DevNo,
    /// Where.
    pub mountpoint: PathBuf,
    /// Filesystem type.
    pub kind: String,
    /// What is mounted, as the mount said it.
    pub source: String,
    /// Options of the filesystem.
    pub options: String,
}

/// Reads the mount table of this process, the topmost mounts last.
///
/// # Errors
/// When it cannot be read, or is longer than [`limits::PROC_BYTES_MAX`].
pub fn read(system: &dyn System) -> io::Result<Vec<Mount>> {
    let table = system.read(Path::new("/proc/self/mountinfo"), limits::PROC_BYTES_MAX)?;
    Ok(parse(&table.unwrap_or_default()))
}

/// The topmost mount at a path (absolute, without symbolic links).
pub fn topmost<'a>(mounts: &'a [Mount], mountpoint: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.mountpoint == mountpoint)
}

/// The type of the filesystem with this device number, if every mount of that number has the same type. Files of some
/// filesystems (btrfs, overlay) show a number that no mount has. Then it is the type of the mount that holds `hint`, a
/// path that is believed for the name only.
pub fn filesystem_type(mounts: &[Mount], dev: DevNo, hint: Option<&Path>) -> Option<String> {
    let mut by_number = mounts.iter().filter(|mount| mount.dev == dev).map(|mount| &mount.kind);
    if let Some(kind) = by_number.next() {
        return by_number.all(|other| other == kind).then(|| kind.clone());
    }
    let hint = hint.filter(|_| dev.major == 0)?;
    let above = mounts.iter().filter(|mount| hint.starts_with(&mount.mountpoint));
    above.max_by_key(|mount| mount.mountpoint.components().count()).map(|mount| mount.kind.clone())
}

fn parse(table: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let mut plain = || std::str::from_utf8(fields.next()?).ok();
        let (id, parent, dev) = (plain()?.parse().ok()?, plain()?.parse().ok()?, DevNo::parse(plain()?)?);
        let mountpoint = unescape(fields.nth(1)?);
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let mut fields = fields.skip_while(|field| *field != b"-");
        let kind = text(fields.nth(1)?);
        let source = text(&unescape(fields.next()?));
        let options = text(fields.next()?);
        let mountpoint = PathBuf::from(OsStr::from_bytes(&mountpoint));
        Some(Mount { id, parent, dev, mountpoint, kind, source, options })
    };
    table.split(|&byte| byte == b'\n').filter_map(line).collect()
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        92 25 0:46 / /srv/a\\040b\\134c rw,nosuid - fuse.scelle scelle:y rw,user_id=0,group_id=0\n\
        93 25 0:50 / /data rw - btrfs /dev/vdb rw\nbroken\n\
        94 25 0:51 / /x rw - tmpfs a rw\n95 25 0:51 / /y rw - overlay b rw\n";

    #[test]
    fn the_mount_table_is_understood() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[1].mountpoint, Path::new("/srv/a b\\c"));
        assert_eq!((mounts[0].kind.as_str(), mounts[1].kind.as_str()), ("ext4", "fuse.scelle"));
        assert_eq!((&*mounts[0].options, &*mounts[1].options), ("rw", "rw,user_id=0,group_id=0"));
        assert_eq!(mounts[0].dev, DevNo { major: 254, minor: 0 });
        assert_eq!((mounts[1].id, mounts[1].parent, &*mounts[1].source), (92, 25, "scelle:y"));
    }

    #[test]
    fn the_topmost_mount_is_found() {
        let mounts = parse(
            b"25 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            90 25 0:44 / /srv/pi\\303\\250ces rw - fuse.scelle x rw\n\
            91 25 0:45 / /srv/a\\040b rw,nosuid - fuse.scelle scelle:x rw\n\
            92 25 0:46 / /srv/a\\040b rw,nosuid - fuse.scelle scelle:y rw\nbroken\n",
        );
        let device_of = |path| topmost(&mounts, Path::new(path)).map(|mount| mount.dev.to_string());
        assert_eq!(device_of("/srv/a b").as_deref(), Some("0:46"));
        assert_eq!(device_of("/").as_deref(), Some("254:0"));
        assert_eq!(device_of("/srv"), None);
    }

    #[test]
    fn a_filesystem_is_known_by_its_number_and_named_by_its_path() {
        let mounts = parse(TABLE);
        let of = |minor, hint: &str| filesystem_type(&mounts, DevNo { major: 0, minor }, Some(Path::new(hint)));
        assert_eq!(of(46, "/data/a").as_deref(), Some("fuse.scelle"));
        // A subvolume of btrfs has a number of its own.
        assert_eq!(of(60, "/data/a").as_deref(), Some("btrfs"));
        assert_eq!(of(60, "/database").as_deref(), Some("ext4"));
        // Told in two ways: not known.
        assert_eq!(of(51, "/data/a"), None);
        // A number of a block device that is not mounted: the path says nothing about it.
        assert_eq!(filesystem_type(&mounts, DevNo { major: 8, minor: 1 }, Some(Path::new("/data/a"))), None);
    }
}
