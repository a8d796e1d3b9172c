//! The questions about block devices that the kernel is asked. They are behind a trait, so that tests can put a
//! directory tree in the kernel's place.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::os::ioctl::{self, DmTable, LoopStatus, NvmeAnswers, ScsiAnswers};
use crate::os::{DevNo, list_bounded, read_bounded};

/// A device that is asked something: through its open descriptor if there is one, else through its node in /dev.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The kernel's name.
    pub name: &'a str,
    /// Device number.
    pub dev: DevNo,
    /// The device, open.
    pub open: Option<BorrowedFd<'a>>,
}

/// The kernel, as far as the identity of block devices goes. Paths are absolute, below `/sys` and `/proc`.
pub trait System: Send + Sync {
    /// Where a path leads to once every symbolic link is followed, as an absolute path.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf>;

    /// Opens the node of a device.
    fn open(&self, node: &Path, how: &OpenOptions) -> io::Result<File> {
        how.open(node)
    }

    /// Content of a small file, at most `max` bytes; `None` if there is no such file.
    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>>;

    /// Names in a directory, sorted, at most `max` + 1 of them: a list longer than `max` says that there may be more.
    /// No names if there is no such directory.
    fn list(&self, path: &Path, max: usize) -> io::Result<Vec<String>>;

    /// What the loop driver says of a loop device.
    fn loop_status(&self, target: &Target<'_>) -> io::Result<LoopStatus>;

    /// What the device mapper says of one of its devices.
    fn dm_table(&self, dev: DevNo) -> io::Result<DmTable>;

    /// What an NVMe namespace and its controller answer now. If the namespace has several controllers, the one that the
    /// kernel happens to choose answers.
    fn nvme_identify(&self, target: &Target<'_>) -> io::Result<NvmeAnswers>;

    /// What one controller, a character device, answers now about itself and about the namespace `nsid`.
    fn nvme_identify_by(&self, controller: &Target<'_>, nsid: u32) -> io::Result<NvmeAnswers>;

    /// What a SCSI disk answers now. With `ata`, an ATA disk behind the kernel's translation is also asked directly.
    fn scsi_inquiry(&self, target: &Target<'_>, ata: bool) -> io::Result<ScsiAnswers>;
}

/// The running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

impl System for Kernel {
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
        read_bounded(path, max)
    }

    fn list(&self, path: &Path, max: usize) -> io::Result<Vec<String>> {
        list_bounded(path, max)
    }

    fn loop_status(&self, target: &Target<'_>) -> io::Result<LoopStatus> {
        ask(target, FileTypeExt::is_block_device, ioctl::loop_status)
    }

    fn dm_table(&self, dev: DevNo) -> io::Result<DmTable> {
        let path = Path::new("/dev/mapper/control");
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        // Major 10 are the kernel's miscellaneous devices; other devices do not know the question.
        let metadata = control.metadata()?;
        if !metadata.file_type().is_char_device() || libc::major(metadata.rdev()) != 10 {
            return Err(io::Error::other(format!("{} is not the device mapper's", path.display())));
        }
        ioctl::dm_table(&control, dev)
    }

    fn nvme_identify(&self, target: &Target<'_>) -> io::Result<NvmeAnswers> {
        ask(target, FileTypeExt::is_block_device, ioctl::nvme_identify)
    }

    fn nvme_identify_by(&self, controller: &Target<'_>, nsid: u32) -> io::Result<NvmeAnswers> {
        ask(controller, FileTypeExt::is_char_device, |fd| ioctl::nvme_identify_namespace(fd, nsid))
    }

    fn scsi_inquiry(&self, target: &Target<'_>, ata: bool) -> io::Result<ScsiAnswers> {
        ask(target, FileTypeExt::is_block_device, |fd| ioctl::scsi_inquiry(fd, ata))
    }
}

/// Puts a question to a device through its open descriptor. A device that is not open yet (a disk below a partition, a
/// controller) is opened for reading. It is believed only when its node is a device of the right kind and number.
fn ask<T>(
    target: &Target<'_>,
    kind: impl Fn(&FileType) -> bool,
    question: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<T> {
    if let Some(fd) = target.open {
        return question(fd);
    }
    // Some kernel names hold a slash, which sysfs writes as an exclamation mark.
    let path = Path::new("/dev").join(target.name.replace('!', "/"));
    let said = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let not_it = || io::Error::other(format!("{} is not the device {}", path.display(), target.dev));
    let is_it = |m: fs::Metadata| kind(&m.file_type()) && DevNo::from_raw(m.rdev()) == target.dev;
    // Opening some other kinds of file has effects, or blocks: so look before opening, and again once open.
    if !is_it(fs::symlink_metadata(&path).map_err(said)?) {
        return Err(not_it());
    }
    let node: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(&path)
        .map_err(said)?;
    if is_it(node.metadata()?) { question(node.as_fd()) } else { Err(not_it()) }
}
