//! From what a user calls a volume to its devices, and from a mount point to what is there.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::failure::{ExitCode, Failure};
use crate::device::raw::{Access, RawDevice};
use crate::label;
use crate::limits::REPLICAS_MAX;
use crate::units::Uuid;

/// The devices that `names` stand for: a path is a device, one other word is a label or a UUID, also written
/// `LABEL=…` or `UUID=…`.
pub(super) fn devices(names: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let [name] = names else { return Ok(names.iter().map(|name| absolute(name)).collect()) };
    let Some(text) = name.to_str() else { return Ok(vec![absolute(name)]) };
    let wanted = match text.split_once('=') {
        Some(("LABEL", label)) => Wanted::Label(label),
        Some(("UUID", uuid)) => Wanted::Uuid(
            Uuid::parse(uuid).ok_or_else(|| Failure::usage("volume-uuid", format!("{uuid:?} is not a UUID")))?,
        ),
        _ if text.contains('/') => return Ok(vec![absolute(name)]),
        _ => Uuid::parse(text).map_or(Wanted::Label(text), Wanted::Uuid),
    };
    search(&wanted, text)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

enum Wanted<'a> {
    Label(&'a str),
    Uuid(Uuid),
}

/// Looks at the label of every block device of the host. Nothing read here is authenticated: it only finds candidates,
/// which the policy and the key then judge.
fn search(wanted: &Wanted<'_>, shown: &str) -> Result<Vec<PathBuf>, Failure> {
    let listing = |error| Failure::failed("sysfs", format!("/sys/class/block: {error}"));
    let mut found: Vec<(PathBuf, Uuid)> = Vec::new();
    for entry in fs::read_dir("/sys/class/block").map_err(listing)? {
        // Some kernel names hold a slash, which sysfs writes as an exclamation mark.
        let name = entry.map_err(listing)?.file_name().to_string_lossy().replace('!', "/");
        let path = Path::new("/dev").join(name);
        let Ok(device) = RawDevice::open(&path, Access::SharedRead) else { continue };
        let Ok(label) = label::read(&device) else { continue };
        let claims = label.newest.claims();
        let fits = match wanted {
            Wanted::Label(label) => claims.label == *label,
            Wanted::Uuid(uuid) => claims.volume == *uuid,
        };
        if fits {
            found.push((path, claims.volume));
        }
    }
    found.sort();
    let Some((_, volume)) = found.first().cloned() else {
        return Err(Failure::usage("volume-not-found", format!("no device of this host holds a volume {shown:?}"))
            .advise("Name the devices instead, or see scelle device list."));
    };
    if found.iter().any(|(_, other)| *other != volume) || found.len() > REPLICAS_MAX {
        let shown_all: Vec<String> = found.iter().map(|(path, uuid)| format!("{} ({uuid})", path.display())).collect();
        let text = format!("several volumes are called {shown:?}: {}", shown_all.join(", "));
        return Err(Failure::usage("volume-ambiguous", text).advise("Name the volume by its UUID, or its devices."));
    }
    Ok(found.into_iter().map(|(path, _)| path).collect())
}

/// Device nodes whose label claims to be this replica. Nothing read here is authenticated.
pub(super) fn replica(volume: Uuid, index: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
        let path = Path::new("/dev").join(entry.file_name().to_string_lossy().replace('!', "/"));
        let Ok(device) = RawDevice::open(&path, Access::SharedRead) else { continue };
        let Ok(label) = label::read(&device) else { continue };
        let claims = label.newest.claims();
        if claims.volume == volume && usize::from(claims.replica_index) == index {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Whether the topmost mount at `mountpoint` is one of ours whose daemon has died. Attributes stay cached after that;
/// opening does not.
pub(super) fn is_dead_mount(mountpoint: &Path) -> bool {
    let ours =
        mounts().iter().rev().find(|mount| mount.mountpoint == mountpoint).is_some_and(|m| m.kind == "fuse.scelle");
    ours && fs::read_dir(mountpoint).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
}

/// A line of the mount table.
pub(super) struct Mount {
    /// Where.
    pub(super) mountpoint: PathBuf,
    /// Filesystem type.
    pub(super) kind: String,
}

/// The mount table (proc_pid_mountinfo(5)), the topmost mounts last; empty when /proc cannot be read.
pub(super) fn mounts() -> Vec<Mount> {
    parse(&fs::read("/proc/self/mountinfo").unwrap_or_default())
}

fn parse(table: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let mountpoint = unescape(fields.nth(4)?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let mountpoint = PathBuf::from(std::ffi::OsStr::from_bytes(&mountpoint));
        Some(Mount { mountpoint, kind: String::from_utf8_lossy(kind).into_owned() })
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

/// Refuses what nothing can be mounted on, and clears away a mount of ours whose daemon has died.
pub(super) fn prepare_mountpoint(mountpoint: &Path) -> Result<(), Failure> {
    use crate::device::process::{Unmount, unmount};
    if is_dead_mount(mountpoint) {
        unmount(mountpoint, Unmount::Lazy).map_err(|error| {
            let text =
                format!("{} is a mount whose daemon has died, and cannot be cleared: {error}", mountpoint.display());
            Failure::new(ExitCode::Busy, "mountpoint-dead", text)
        })?;
    }
    match fs::metadata(mountpoint) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Failure::usage("mountpoint", format!("{} is not a folder", mountpoint.display()))),
        Err(error) => Err(Failure::usage("mountpoint", format!("{}: {error}", mountpoint.display()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_mount_table_is_understood() {
        let table = b"25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            92 25 0:46 / /srv/a\\040b\\134c rw,nosuid - fuse.scelle scelle:y rw\nbroken\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].mountpoint, Path::new("/srv/a b\\c"));
        assert_eq!((mounts[0].kind.as_str(), mounts[1].kind.as_str()), ("ext4", "fuse.scelle"));
    }

    #[test]
    fn paths_are_devices_and_words_are_volumes() {
        let path = |text: &str| vec![PathBuf::from(text)];
        assert_eq!(devices(&path("/dev/x")).unwrap(), path("/dev/x"));
        assert_eq!(devices(&[path("/dev/x"), path("/dev/y")].concat()).unwrap().len(), 2);
        assert!(devices(&path("./x")).unwrap()[0].is_absolute());
        assert_eq!(devices(&path("UUID=x")).unwrap_err().reason, "volume-uuid");
    }

    #[test]
    fn only_folders_are_mount_points() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(prepare_mountpoint(file.path()).unwrap_err().reason, "mountpoint");
        assert_eq!(prepare_mountpoint(Path::new("/nonexistent")).unwrap_err().code as u8, 2);
        assert!(prepare_mountpoint(Path::new("/")).is_ok());
    }
}
