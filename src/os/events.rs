//! Events that shorten the daemon's wait between two checks of its devices and files.
//!
//! There are four sources of events:
//!
//! * a device came, went or changed, as the kernel's messages say (netlink);
//! * a file changed (inotify);
//! * it is midnight, or the clock was set (timerfd);
//! * another thread ends the wait (eventfd).
//!
//! Nothing that a source says is trusted. After a wait, the caller examines devices and files itself, and it also does
//! so from time to time without an event. So a false event does no harm, and a lost one only delays.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, WatchFlags};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Multicast group of the kernel's own messages (lib/kobject_uevent.c); udev sends its messages to group 2.
const KERNEL_GROUP: u32 = 1;

/// Longest message that is examined; the kernel's buffer has 2048 bytes (`UEVENT_BUFFER_SIZE`, linux/kobject.h).
const MESSAGE_BYTES: usize = 8192;

/// Most messages that are read at one time.
const MESSAGES_MAX: usize = 4096;

/// Most symbolic links that are followed on the way to a file (`MAXSYMLINKS`, linux/namei.h).
const LINKS_MAX: usize = 40;

/// What has happened since the last wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// A storage device came, went or changed, or messages that may have said so were lost.
    pub devices: bool,
    /// Something changed in a folder on the way to one of the files.
    pub files: bool,
    /// The alarm went off, or the clock was set.
    pub clock: bool,
}

/// The sources of events. A source that the system does not offer is missing, and reports nothing.
pub struct Events {
    devices: Option<OwnedFd>,
    files: Option<OwnedFd>,
    folders: BTreeSet<PathBuf>,
    clock: Option<OwnedFd>,
    wake: Arc<OwnedFd>,
}

/// Ends a wait of [`Events`] from another thread.
#[derive(Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Ends the wait under way, or the next one.
    pub fn wake(&self) {
        // The only failure is that of a full counter (`EAGAIN`), and that ends the wait as well.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Events {
    /// Opens the sources. A source that is not available is logged, and is missing.
    ///
    /// # Errors
    /// What eventfd(2) says when it cannot make the waker.
    pub fn open() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let available = |what: &str, opened: io::Result<OwnedFd>| {
            opened.inspect_err(|error| log::warn!("{what}: {error}; devices and files are looked at by the clock")).ok()
        };
        let devices = if reaches_us() {
            available("no messages of the kernel about devices", listen())
        } else {
            log::warn!("the kernel's messages about devices do not reach this network namespace: looking by the clock");
            None
        };
        let clock = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
        Ok(Self {
            devices,
            files: None,
            folders: BTreeSet::new(),
            clock: available("no alarm clock", clock.map_err(io::Error::from)),
            wake: Arc::new(wake),
        })
    }

    /// A handle that ends a wait from another thread.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake))
    }

    /// Whether the kernel reports devices.
    pub fn sees_devices(&self) -> bool {
        self.devices.is_some()
    }

    /// Whether the kernel reports the files of the last [`follow`](Self::follow).
    pub fn sees_files(&self) -> bool {
        self.files.is_some()
    }

    /// Reports, from now on, changes in the folders that hold these files and in those of every symbolic link on the
    /// way. Exchanging a link far above a file replaces the file too.
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
        let at = Timespec { tv_sec: i64::try_from(unix_s).unwrap_or(i64::MAX), tv_nsec: 0 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        if let Err(error) = timerfd_settime(clock, flags, &once) {
            log::warn!("the alarm clock cannot be set: {}", io::Error::from(error));
            self.clock = None;
        }
    }

    /// Waits for an event or for a [`Waker`], at most `wait`.
    pub fn wait(&self, wait: Duration) -> Happened {
        let sources = [self.devices.as_ref(), self.files.as_ref(), self.clock.as_ref(), Some(&*self.wake)];
        let mut asked: Vec<PollFd<'_>> =
            sources.iter().flatten().map(|source| PollFd::new(*source, PollFlags::IN)).collect();
        let limit = Timespec::try_from(wait).ok();
        if poll(&mut asked, limit.as_ref()).is_err() {
            return Happened::default();
        }
        let mut answers = asked.iter().map(|answer| !answer.revents().is_empty());
        let [devices, files, clock, wake] = sources.map(|source| source.filter(|_| answers.next().unwrap_or_default()));
        if let Some(wake) = wake {
            drain(wake);
        }
        Happened {
            devices: devices.is_some_and(read_messages),
            files: files.map(drain).is_some(),
            clock: clock.map(drain).is_some(),
        }
    }
}

/// Whether the kernel's messages reach this process: the kernel sends them to the first network namespace.
///
/// It also sends them to other namespaces that the first user namespace owns. A process cannot tell whether its own is
/// one of these, and missing events only delay.
fn reaches_us() -> bool {
    let namespace = |path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    match (namespace("/proc/self/ns/net"), namespace("/proc/1/ns/net")) {
        (Some(ours), Some(first)) => ours == first,
        _ => true,
    }
}

/// A socket that receives the kernel's messages about devices.
fn listen() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

/// Reads the messages that have arrived. Says whether one of them is about storage, or may have been: it was too long,
/// or lost.
fn read_messages(socket: &OwnedFd) -> bool {
    let mut buf = [0u8; MESSAGE_BYTES];
    let mut about_storage = false;
    for _ in 0..MESSAGES_MAX {
        match recvfrom(socket, &mut buf, RecvFlags::TRUNC) {
            Ok((_, len, from)) => {
                // Only the kernel has the address 0; messages of any other sender are ignored.
                let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
                if from.is_some_and(|from| from.pid() == 0) {
                    about_storage |= buf.get(..len).is_none_or(is_about_storage);
                }
            }
            Err(Errno::WOULDBLOCK) => return about_storage,
            Err(Errno::INTR) => {}
            // ENOBUFS: messages were lost.
            Err(_) => about_storage = true,
        }
    }
    true
}

/// Whether a message (`ACTION@DEVPATH`, then `KEY=VALUE`, each with a NUL behind it) is about a disk, or about the bus
/// or controller that it is attached to.
fn is_about_storage(message: &[u8]) -> bool {
    let mut fields = message.split(|&byte| byte == 0);
    fields.any(|field| {
        let subsystem = field.strip_prefix(b"SUBSYSTEM=").unwrap_or_default();
        subsystem == b"block" || subsystem == b"scsi" || subsystem.starts_with(b"nvme")
    })
}

/// Reads and discards everything that a descriptor has; the descriptor does not block.
fn drain(fd: &OwnedFd) {
    let mut buf = [0u8; MESSAGE_BYTES];
    for _ in 0..MESSAGES_MAX {
        // An error ends it too: EAGAIN when nothing is left, ECANCELED when the clock was set.
        if rustix::io::read(fd, &mut buf).unwrap_or(0) == 0 {
            return;
        }
    }
}

/// An inotify descriptor for changes in `folders`.
fn watch(folders: &BTreeSet<PathBuf>) -> io::Result<OwnedFd> {
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let what = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ATTRIB
        | WatchFlags::ONLYDIR;
    for folder in folders {
        inotify::add_watch(&inotify, folder, what)?;
    }
    Ok(inotify)
}

/// The folder that holds `file`, and the folders that hold the symbolic links on the way to it, as far as they exist.
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
