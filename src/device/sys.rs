//! What is asked of the kernel about block devices, behind a trait so that tests can put a directory tree in its place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::identity::DevNo;
use crate::limits;

/// What `LOOP_GET_STATUS64` says of a bound loop device (linux/loop.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopStatus {
    /// Device number of the filesystem that holds the file.
    pub fs_device: DevNo,
    /// Inode of the file.
    pub inode: u64,
    /// The block device it is bound to, when it is bound to one instead of a file.
    pub block_device: Option<DevNo>,
    /// First byte that the device shows.
    pub offset: u64,
}

/// The kernel, as far as the identity of block devices goes. Paths are absolute, below `/sys` and `/proc`.
pub trait System: Send + Sync {
    /// The directory that a path of sysfs leads to once every symbolic link is followed, as an absolute path.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf>;

    /// Content of a small file, at most `max` bytes; `None` if there is no such file.
    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>>;

    /// Names in a directory, sorted, at most [`limits::CHAIN_NODES_MAX`] + 1 of them; none if there is no such
    /// directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// What the loop driver says of the loop device `name` with number `dev`.
    fn loop_status(&self, name: &str, dev: DevNo) -> io::Result<LoopStatus>;
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

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        list_bounded(path)
    }

    fn loop_status(&self, name: &str, dev: DevNo) -> io::Result<LoopStatus> {
        let node = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(Path::new("/dev").join(name))?;
        let metadata = node.metadata()?;
        if !metadata.file_type().is_block_device() || DevNo::from_raw(metadata.rdev()) != dev {
            return Err(io::Error::other(format!("/dev/{name} is not the device {dev}")));
        }
        loop_status(&node)
    }
}

/// Reads at most `max` bytes of a file; longer ones are an error. `None` if it does not exist.
pub fn read_bounded(path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::other(format!("{} has more than {max} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// Names in a directory, as [`System::list`] wants them.
pub fn list_bounded(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries.take(limits::CHAIN_NODES_MAX + 1) {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232);

/// `LOOP_GET_STATUS64` (linux/loop.h).
const LOOP_GET_STATUS64: u64 = 0x4C05;
/// `BLKSSZGET`, `BLKGETSIZE64`, `BLKROGET`, `BLKGETDISKSEQ` (linux/fs.h).
const BLKSSZGET: u64 = 0x1268;
const BLKROGET: u64 = 0x125E;
const BLKGETSIZE64: u64 = 0x8008_1272;
const BLKGETDISKSEQ: u64 = 0x8008_1280;

fn loop_status(file: &File) -> io::Result<LoopStatus> {
    let mut info = std::mem::MaybeUninit::<LoopInfo64>::zeroed();
    // SAFETY: the ioctl fills at most a `struct loop_info64`, whose layout `LoopInfo64` has.
    check(unsafe { libc::ioctl(file.as_raw_fd(), LOOP_GET_STATUS64 as _, info.as_mut_ptr()) })?;
    // SAFETY: zeroed before, and every bit pattern is a valid value.
    let info = unsafe { info.assume_init() };
    Ok(LoopStatus {
        fs_device: DevNo::from_raw(info.device),
        inode: info.inode,
        block_device: (info.rdevice != 0).then(|| DevNo::from_raw(info.rdevice)),
        offset: info.offset,
    })
}

/// Size in bytes of an open block device.
pub(super) fn size_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the ioctl writes one u64.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) })?;
    Ok(size)
}

/// Logical block size in bytes of an open block device.
pub(super) fn logical_block_size(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the ioctl writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET as _, &raw mut size) })?;
    u32::try_from(size).map_err(io::Error::other)
}

/// Whether an open block device is read-only.
pub(super) fn is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: the ioctl writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKROGET as _, &raw mut flag) })?;
    Ok(flag != 0)
}

/// The kernel's sequence number of an open disk (Linux 5.15).
pub(super) fn diskseq(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut sequence = 0u64;
    // SAFETY: the ioctl writes one u64.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETDISKSEQ as _, &raw mut sequence) })?;
    Ok(sequence)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
