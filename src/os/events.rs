//! What tells the daemon to look at its devices again: the kernel's word that a device came, went or changed (netlink), a file
//! that changed (inotify), midnight or a clock that was set (timerfd), and somebody who wakes it (eventfd).
//!
//! All of these only shorten the wait. Nothing that they say is believed: whoever is woken looks for himself, and looks every now
//! and then without being woken. So an event more does no harm, and one less delays.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Multicast group of the kernel's own messages; udev's are in group 2 (lib/kobject_uevent.c).
const KERNEL_GROUP: u32 = 1;

/// Longest message that is looked at: the kernel's buffer has 2048 bytes (`UEVENT_BUFFER_SIZE`, linux/kobject.h).
const MESSAGE_BYTES: usize = 8192;

/// Most messages that are read at one time.
const MESSAGES_MAX: usize = 4096;

/// Most symbolic links that are followed on the way to a file (`MAXSYMLINKS`, linux/namei.h).
const LINKS_MAX: usize = 40;

/// What has happened since the last wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// A storage device came, went or changed, or nobody knows because messages were lost.
    pub devices: bool,
    /// Something changed in a folder on the way to one of the files.
    pub files: bool,
    /// The alarm went off, or the clock was set.
    pub clock: bool,
}

/// The sources. Each may be missing, and then does not report.
pub struct Events {
    devices: Option<OwnedFd>,
    files: Option<OwnedFd>,
    folders: BTreeSet<PathBuf>,
    clock: Option<OwnedFd>,
    wake: Arc<OwnedFd>,
}

/// Ends a wait from another thread.
#[derive(Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Ends the wait under way, or the next one.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the descriptor is open for the life of `self`; eight bytes are read from `one`.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

impl Events {
    /// Opens the sources. What is not available is logged, and is missing.
    ///
    /// # Errors
    /// When not even a waker can be made.
    pub fn open() -> io::Result<Self> {
        // SAFETY: takes two integers.
        let wake = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let available = |what: &str, opened: io::Result<OwnedFd>| {
            opened.inspect_err(|error| log::warn!("{what}: {error}; devices and files are looked at by the clock")).ok()
        };
        let devices = if reaches_us() {
            available("no messages of the kernel about devices", listen())
        } else {
            log::warn!("the kernel's messages about devices do not reach this network namespace: looking by the clock");
            None
        };
        // SAFETY: takes two integers.
        let clock =
            owned(unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) });
        Ok(Self {
            devices,
            files: None,
            folders: BTreeSet::new(),
            clock: available("no alarm clock", clock),
            wake: Arc::new(wake),
        })
    }

    /// What ends a wait from another thread.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake))
    }

    /// Whether the kernel tells about devices.
    pub fn sees_devices(&self) -> bool {
        self.devices.is_some()
    }

    /// Whether the kernel tells about the files of the last [`follow`](Self::follow).
    pub fn sees_files(&self) -> bool {
        self.files.is_some()
    }

    /// From now on reports changes in the folders that hold these files, and in those of every symbolic link on the way: a file
    /// may be replaced by exchanging a link far above it.
    pub fn follow(&mut self, files: &[&Path]) {
        let folders: BTreeSet<PathBuf> = files.iter().flat_map(|file| folders_of(file)).collect();
        if self.files.is_some() && folders == self.folders {
            return;
        }
        let news = folders != self.folders;
        self.files = match watch(&folders) {
            Ok(files) => Some(files),
            Err(error) => {
                if news {
                    log::warn!("the registry's folder cannot be watched: {error}; it is looked at by the clock");
                }
                None
            }
        };
        self.folders = folders;
    }

    /// Sets the alarm to a moment of the wall clock, in seconds since 1970. It also goes off when the clock is set.
    pub fn alarm(&mut self, unix_s: u64) {
        let Some(clock) = &self.clock else { return };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let at = libc::timespec { tv_sec: libc::time_t::try_from(unix_s).unwrap_or(libc::time_t::MAX), tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: never, it_value: at };
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: `setting` is valid for the length of the call; the old setting is not asked for.
        let set = unsafe { libc::timerfd_settime(clock.as_raw_fd(), flags, &raw const setting, std::ptr::null_mut()) };
        if set < 0 {
            log::warn!("the alarm clock cannot be set: {}", io::Error::last_os_error());
            self.clock = None;
        }
    }

    /// Waits until something happens or somebody wakes us, at most `wait`.
    pub fn wait(&self, wait: Duration) -> Happened {
        let sources = [self.devices.as_ref(), self.files.as_ref(), self.clock.as_ref(), Some(&*self.wake)];
        // poll(2) passes over negative descriptors.
        let mut asked = sources.map(|source| libc::pollfd {
            fd: source.map_or(-1, AsRawFd::as_raw_fd),
            events: libc::POLLIN,
            revents: 0,
        });
        let wait_ms = libc::c_int::try_from(wait.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `asked` is valid for its length during the call.
        if unsafe { libc::poll(asked.as_mut_ptr(), asked.len() as libc::nfds_t, wait_ms) } <= 0 {
            return Happened::default();
        }
        let [devices, files, clock, wake] = asked.map(|answer| answer.revents != 0);
        if wake {
            drain(&self.wake);
        }
        Happened {
            devices: devices && self.devices.as_ref().is_some_and(read_messages),
            files: files && self.files.as_ref().map(drain).is_some(),
            clock: clock && self.clock.as_ref().map(drain).is_some(),
        }
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call has just returned it, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel sends its messages to the first network namespace (and to those that its own user namespace owns: nobody can tell
/// from inside, and missing events only delay).
fn reaches_us() -> bool {
    let namespace = |path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    match (namespace("/proc/self/ns/net"), namespace("/proc/1/ns/net")) {
        (Some(ours), Some(first)) => ours == first,
        _ => true,
    }
}

/// A socket on which the kernel tells about devices.
fn listen() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes three integers.
    let socket = owned(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) })?;
    // SAFETY: plain data; every field that counts is set below.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_nl>() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = KERNEL_GROUP;
    let len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: `address` is a valid netlink address of this length.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Reads what has come. Says whether it is about storage, or incomplete.
fn read_messages(socket: &OwnedFd) -> bool {
    let mut buf = [0u8; MESSAGE_BYTES];
    let mut about_storage = false;
    for _ in 0..MESSAGES_MAX {
        // SAFETY: plain data, filled by the call below.
        let mut from = unsafe { std::mem::zeroed::<libc::sockaddr_nl>() };
        let mut len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `buf.len()` bytes to `buf` and `len` bytes to `from`.
        let received = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buf.as_mut_ptr().cast(),
                buf.len(),
                libc::MSG_TRUNC,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        match usize::try_from(received) {
            // Only the kernel has this address; whoever else sends to us is not heard.
            Ok(_) if from.nl_pid != 0 => {}
            Ok(n) => about_storage |= buf.get(..n).is_none_or(is_about_storage),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => return about_storage,
                error if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: messages were lost.
                _ => about_storage = true,
            },
        }
    }
    true
}

/// Whether a message (`ACTION@DEVPATH`, then `KEY=VALUE`, each with a NUL behind it) is about a disk or what it hangs on.
fn is_about_storage(message: &[u8]) -> bool {
    let mut fields = message.split(|&byte| byte == 0);
    fields.any(|field| {
        let subsystem = field.strip_prefix(b"SUBSYSTEM=").unwrap_or_default();
        subsystem == b"block" || subsystem == b"scsi" || subsystem.starts_with(b"nvme")
    })
}

/// Reads and forgets what a descriptor that does not block has to say.
fn drain(fd: &OwnedFd) {
    let mut buf = [0u8; MESSAGE_BYTES];
    for _ in 0..MESSAGES_MAX {
        // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
        let n = unsafe { libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        // Also ECANCELED, which says that the clock was set.
        if n <= 0 {
            return;
        }
    }
}

/// An inotify descriptor for changes in `folders`.
fn watch(folders: &BTreeSet<PathBuf>) -> io::Result<OwnedFd> {
    // SAFETY: takes one integer.
    let inotify = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
    let what = libc::IN_CLOSE_WRITE
        | libc::IN_CREATE
        | libc::IN_DELETE
        | libc::IN_MOVED_FROM
        | libc::IN_MOVED_TO
        | libc::IN_DELETE_SELF
        | libc::IN_MOVE_SELF
        | libc::IN_ATTRIB
        | libc::IN_ONLYDIR;
    for folder in folders {
        let path = CString::new(folder.as_os_str().as_bytes())?;
        // SAFETY: `path` is a C string that outlives the call.
        if unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), what) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(inotify)
}

/// The folder that holds `file`, and those that hold the symbolic links on the way to it; as far as they exist.
fn folders_of(file: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut path = file.to_path_buf();
    for _ in 0..LINKS_MAX {
        let mut at = PathBuf::from("/");
        let mut link = None;
        let mut rest = path.components();
        while let Some(component) = rest.next() {
            match component {
                Component::ParentDir => {
                    at.pop();
                    continue;
                }
                Component::Normal(name) => {
                    let next = at.join(name);
                    let Ok(meta) = std::fs::symlink_metadata(&next) else { break };
                    if meta.is_symlink() {
                        link = std::fs::read_link(&next).ok().map(|target| at.join(target).join(rest.as_path()));
                        break;
                    }
                    if !meta.is_dir() {
                        break;
                    }
                    at = next;
                }
                _ => {}
            }
        }
        folders.insert(at);
        match link {
            Some(target) => path = target,
            None => break,
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn messages_about_storage_are_told_from_others() {
        let message = |fields: &[&str]| fields.join("\0").into_bytes();
        for (fields, expected) in [
            (&["remove@/devices/x", "ACTION=remove", "SUBSYSTEM=block", "DEVNAME=sdb"][..], true),
            (&["change@/devices/x", "SUBSYSTEM=scsi", "SDEV_UA=INQUIRY_DATA_HAS_CHANGED"], true),
            (&["change@/devices/x", "SUBSYSTEM=nvme"], true),
            (&["change@/devices/x", "SUBSYSTEM=nvme-subsystem"], true),
            (&["add@/devices/x", "SUBSYSTEM=net"], false),
            (&["add@/devices/block", "DEVNAME=SUBSYSTEM=block"], false),
            (&["SUBSYSTEM="], false),
            (&[""], false),
        ] {
            assert_eq!(is_about_storage(&message(fields)), expected, "{fields:?}");
        }
        assert!(!is_about_storage(&[0xff; 300]));
    }

    #[test]
    fn every_folder_with_a_link_on_the_way_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        // As Kubernetes lays out what it mounts: file -> ..data/file, ..data -> ..1.
        fs::create_dir(dir.join("..1")).unwrap();
        fs::write(dir.join("..1/registry.toml"), "").unwrap();
        symlink("..1", dir.join("..data")).unwrap();
        symlink("..data/registry.toml", dir.join("registry.toml")).unwrap();
        symlink(&dir, dir.join("far")).unwrap();
        let folders = folders_of(&dir.join("far/registry.toml"));
        assert_eq!(folders, BTreeSet::from([dir.clone(), dir.join("..1")]));
        // What does not exist yet appears in the last folder that does; a circle of links ends.
        assert_eq!(folders_of(&dir.join("a/b/c")), BTreeSet::from([dir.clone()]));
        symlink("loop", dir.join("loop")).unwrap();
        assert_eq!(folders_of(&dir.join("loop")), BTreeSet::from([dir.clone()]));
        assert_eq!(folders_of(&dir.join("..1/../x")), BTreeSet::from([dir]));
    }

    #[test]
    fn files_replaced_in_every_way_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for version in ["..1", "..2"] {
            fs::create_dir(dir.join(version)).unwrap();
            fs::write(dir.join(version).join("r"), version).unwrap();
        }
        symlink("..1", dir.join("..data")).unwrap();
        symlink("..data/r", dir.join("r")).unwrap();
        let mut events = Events::open().unwrap();
        events.follow(&[&dir.join("r")]);
        assert!(events.sees_files() && !events.wait(Duration::ZERO).files);
        let changes: [&dyn Fn(); 4] = [
            &|| fs::write(dir.join("..1/r"), "again").unwrap(),
            &|| {
                fs::write(dir.join("..1/new"), "third").unwrap();
                fs::rename(dir.join("..1/new"), dir.join("..1/r")).unwrap();
            },
            &|| {
                symlink("..2", dir.join("..tmp")).unwrap();
                fs::rename(dir.join("..tmp"), dir.join("..data")).unwrap();
            },
            &|| fs::remove_file(dir.join("..2/r")).unwrap(),
        ];
        for (number, change) in changes.iter().enumerate() {
            change();
            assert!(events.wait(LONG).files, "change {number}");
            events.follow(&[&dir.join("r")]);
            events.wait(Duration::ZERO);
        }
    }

    #[test]
    fn the_alarm_and_the_waker_end_a_wait() {
        let mut events = Events::open().unwrap();
        let begin = Instant::now();
        events.alarm(1);
        assert!(events.wait(LONG).clock, "an alarm in the past goes off at once");
        let waker = events.waker();
        let thread = std::thread::spawn(move || waker.wake());
        // Devices may come and go on the host meanwhile.
        while events.wait(LONG).devices {}
        thread.join().unwrap();
        assert!(begin.elapsed() < LONG);
    }

    #[test]
    fn a_device_that_changes_is_reported() {
        let events = Events::open().unwrap();
        // The kernel sends an event when it is asked to; not every sandbox has a disk, or lets us.
        let disks = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
        let asked = disks.map(|disk| disk.path().join("uevent")).find(|path| fs::write(path, "change").is_ok());
        if asked.is_some() && events.sees_devices() {
            let begin = Instant::now();
            while !events.wait(LONG).devices {
                assert!(begin.elapsed() < LONG, "no event came");
            }
        }
    }
}
