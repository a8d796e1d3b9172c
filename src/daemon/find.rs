//! Leads from what a user calls a volume to its devices, and from a mount point to the mount there.

use std::fs::{self, DirEntry};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{StatVfsMountFlags, statfs, statvfs};
use rustix::io::Errno;

use super::request::{Request, Sources};
use crate::device::raw::{Access, RawDevice};
use crate::label;
use crate::os::absolute;
use crate::os::process::{Unmount, unmount};
use crate::probe::mounts::{self, Mount};
use crate::probe::sys::Kernel;
use crate::problem::{Code, Problem};
use crate::units::Uuid;

/// Longest wait for filesystems to say whether they are there.
const DEAD_WAIT: Duration = Duration::from_secs(2);

/// The devices that `names` stand for. A path is a device; a single other word is a label or a UUID, also written
/// `LABEL=…` or `UUID=…`. Devices that were found by a name only claim to be the volume's.
pub fn devices(names: &[PathBuf]) -> Result<Sources, Problem> {
    let named = |names: &[PathBuf]| Sources { devices: names.iter().map(|name| absolute(name)).collect(), name: None };
    let [name] = names else { return Ok(named(names)) };
    let Some(text) = name.to_str() else { return Ok(named(names)) };
    let wanted = match text.split_once('=') {
        Some(("LABEL", label)) => Wanted::Label(label),
        Some(("UUID", uuid)) => Wanted::Uuid(
            Uuid::parse(uuid).ok_or_else(|| Problem::new(Code::VolumeUuid, format!("{uuid:?} is not a UUID")))?,
        ),
        _ if text.contains('/') => return Ok(named(names)),
        _ => Uuid::parse(text).map_or(Wanted::Label(text), Wanted::Uuid),
    };
    Ok(Sources { devices: search(&wanted, text)?, name: Some(text.to_owned()) })
}

enum Wanted<'a> {
    Label(&'a str),
    Uuid(Uuid),
}

/// Looks at the label of every block device of the host. Nothing read here is authenticated: it only finds candidates,
/// which the policy and the key then judge.
fn search(wanted: &Wanted<'_>, shown: &str) -> Result<Vec<PathBuf>, Problem> {
    let listing = |error| Problem::new(Code::Sysfs, format!("/sys/class/block: {error}"));
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir("/sys/class/block").map_err(listing)? {
        let path = node(&entry.map_err(listing)?);
        let Some(label) = label_of(&path) else { continue };
        // Of two copies that differ, either may be the true one.
        let fits = |claims: &label::Fields| match wanted {
            Wanted::Label(label) => claims.label == *label,
            Wanted::Uuid(uuid) => claims.volume == *uuid,
        };
        if label.whole().iter().any(|raw| fits(raw.claims())) {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(Problem::new(Code::VolumeNotFound, format!("no device of this host holds a volume {shown:?}")));
    }
    Ok(found)
}

/// Device nodes whose label claims to be this replica. Nothing read here is authenticated.
pub fn replica(volume: Uuid, index: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
        let path = node(&entry);
        let Some(label) = label_of(&path) else { continue };
        let fits = |claims: &label::Fields| claims.volume == volume && usize::from(claims.replica_index) == index;
        if label.whole().iter().any(|raw| fits(raw.claims())) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The device node of an entry of /sys/class/block. Some kernel names hold a slash, which sysfs writes as an exclamation
/// mark.
fn node(entry: &DirEntry) -> PathBuf {
    Path::new("/dev").join(entry.file_name().to_string_lossy().replace('!', "/"))
}

/// The label on the device at `path`, if one can be read. Nothing in it is authenticated.
pub(super) fn label_of(path: &Path) -> Option<label::Found> {
    label::read(&RawDevice::open(path, Access::SharedRead).ok()?).ok()
}

/// Whether root has mounted it as a scelle volume. Users can mount a FUSE filesystem of their own under any type, but
/// the kernel says whose mount it is.
pub fn is_ours(mount: &Mount) -> bool {
    mount.kind == "fuse.scelle" && mount.options.split(',').any(|option| option == "user_id=0")
}

/// What the kernel answers for a FUSE daemon that has died: the second, once the connection was aborted with a file open.
const GONE: [Errno; 2] = [Errno::NOTCONN, Errno::CONNABORTED];

/// Whether the daemon of a mount has died.
fn is_dead(mount: &Mount) -> bool {
    statfs(&mount.mountpoint).is_err_and(|error| GONE.contains(&error))
}

/// Mounts of ours whose daemon has died. A filesystem that does not answer is not waited for: its daemon is there.
pub fn dead_mounts() -> Vec<Mount> {
    let ours: Vec<Mount> = mounts().into_iter().filter(is_ours).collect();
    let (sender, answers) = mpsc::channel();
    for mount in ours {
        let sender = sender.clone();
        let ask = move || {
            let is_dead = is_dead(&mount);
            // Whoever asks may have stopped waiting.
            let _ = sender.send((mount, is_dead));
        };
        if let Err(error) = std::thread::Builder::new().name("dead".into()).spawn(ask) {
            log::warn!("no thread to look for dead mounts: {error}");
        }
    }
    drop(sender);
    let deadline = Instant::now() + DEAD_WAIT;
    let mut dead = Vec::new();
    while let Ok((mount, is_dead)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        dead.extend(is_dead.then_some(mount));
    }
    dead
}

/// The mount table; empty when /proc cannot be read.
pub fn mounts() -> Vec<Mount> {
    mounts::read(&Kernel).unwrap_or_default()
}

/// Refuses a folder that nothing can be mounted on, or where something is mounted; and clears away a mount of the same
/// volume whose daemon has died.
pub fn prepare_mountpoint(request: &Request) -> Result<(), Problem> {
    let mountpoint = &request.mountpoint;
    if let Some(mount) = mounts::topmost(&mounts(), mountpoint) {
        prepare_mount(request, mount)?;
    }
    match fs::metadata(mountpoint) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Problem::new(Code::Mountpoint, format!("{} is not a folder", mountpoint.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Problem::new(Code::Mountpoint, format!("no such mount point: {}", mountpoint.display())))
        }
        Err(error) => Err(Problem::new(Code::Mountpoint, format!("{}: {error}", mountpoint.display()))),
    }
}

/// A refusal of arguments among which the mount point seems to stand first says so.
pub fn or_swapped(problem: Problem, request: &Request) -> Problem {
    if !matches!(problem.code, Code::Mountpoint | Code::VolumeNotFound) {
        return problem;
    }
    let last = "the mount point comes last, after the volume or its devices.";
    if let Some(folder) = request.sources.devices.iter().find(|named| named.is_dir()) {
        return problem.advise(format!("{} is a folder: {last}", folder.display()));
    }
    match fs::metadata(&request.mountpoint) {
        Ok(meta) if meta.file_type().is_block_device() => {
            problem.advise(format!("{} is a device: {last}", request.mountpoint.display()))
        }
        _ => problem,
    }
}

/// Whether this mount is there already: the same volume, in the same words, and as writable as it is asked for.
pub fn is_mounted(request: &Request) -> bool {
    let mounts = mounts();
    let here = mounts::topmost(&mounts, &request.mountpoint).filter(|mount| is_ours(mount));
    here.is_some_and(|mount| {
        request.is_shown_as(&mount.source)
            && statvfs(&mount.mountpoint)
                .is_ok_and(|now| now.f_flag.contains(StatVfsMountFlags::RDONLY) == request.options.read_only)
    })
}

/// What is to be said of a folder that is not empty: whoever needs what is in it will not find it.
pub fn hides(request: &Request) -> Option<String> {
    let mountpoint = &request.mountpoint;
    // A look into the folder of an automount would wait for this very mount.
    if mounts::topmost(&mounts(), mountpoint).is_some() || fs::read_dir(mountpoint).ok()?.next().is_none() {
        return None;
    }
    Some(format!("{} is not empty: what is in it cannot be seen until the volume is unmounted", mountpoint.display()))
}

fn prepare_mount(request: &Request, mount: &Mount) -> Result<(), Problem> {
    let place = mount.mountpoint.display();
    // An automount waits there for exactly this mount.
    if mount.kind == "autofs" {
        return Ok(());
    }
    if !(is_ours(mount) && is_dead(mount)) {
        let text = format!("something is mounted at {place} already: {} ({})", mount.source, mount.kind);
        return Err(Problem::new(Code::MountpointTaken, text));
    }
    if !request.is_shown_as(&mount.source) {
        let text = format!("a mount of {} whose daemon has died is at {place}", mount.source);
        return Err(Problem::new(Code::MountpointDead, text));
    }
    unmount(&mount.mountpoint, Unmount::Lazy).map_err(|error| {
        let text = format!("{place} is a mount whose daemon has died, and cannot be cleared: {error}");
        Problem::new(Code::MountpointDead, text)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::MountOptions;
    use super::*;

    #[test]
    fn paths_are_devices_and_words_are_volumes() {
        let path = |text: &str| vec![PathBuf::from(text)];
        assert_eq!(devices(&path("/dev/x")).unwrap(), Sources { devices: path("/dev/x"), name: None });
        assert_eq!(devices(&[path("/dev/x"), path("/dev/y")].concat()).unwrap().devices.len(), 2);
        assert!(devices(&path("./x")).unwrap().devices[0].is_absolute());
        assert_eq!(devices(&path("UUID=x")).unwrap_err().code, Code::VolumeUuid);
    }

    #[test]
    fn only_folders_are_mount_points() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &Path| {
            let request = Request::of_helper("archives".as_ref(), path.as_os_str(), MountOptions::default());
            prepare_mountpoint(&request).map_err(|problem| problem.code)
        };
        assert_eq!(at(file.path()), Err(Code::Mountpoint));
        assert_eq!(at(Path::new("/nonexistent")), Err(Code::Mountpoint));
        assert_eq!(at(folder.path()), Ok(()));
        // Something is mounted there already.
        assert_eq!(at(Path::new("/")), Err(Code::MountpointTaken));
    }
}
