//! Block devices: what the kernel calls a device, with aligned transfers.
//!
//! The module does not know whether a device may be written to: [`policy`](crate::policy) decides that.
//!
//! [`BlockDevice`] is the small trait that everything above writes through. [`raw`] is a real device, opened
//! exclusively with direct I/O. [`memory`] is a device in memory, for tests; [`faulty`] wraps another device and
//! misbehaves when told to. One suite runs against each. An [`IdentifiedDevice`] also says what it is and what is below
//! it ([`probe`](crate::probe)).

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

pub mod faulty;
pub mod memory;
pub mod raw;

#[cfg(test)]
mod suite;

pub use crate::os::AlignedBuf;
pub use crate::os::aio::Write;
use crate::os::blkid::{self, Signature};
use crate::probe::{DeviceFacts, FactsError};
use crate::units::{BLOCK_SIZE, to_usize};

/// What went wrong with a device, in the words of the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel (or the fault injector) failed a transfer.
    #[error("{action} of {bytes} bytes at offset {offset}: {source}")]
    Io {
        /// "read", "write" or "flush".
        action: &'static str,
        /// Byte offset on the device.
        offset: u64,
        /// Length of the transfer.
        bytes: usize,
        /// The system's error.
        source: std::io::Error,
    },
    /// A read was abandoned before the device answered it.
    #[error("read of {bytes} bytes at offset {offset}: no answer for {} s", limit.as_secs_f32())]
    Unanswered {
        /// Byte offset on the device.
        offset: u64,
        /// Length of the transfer.
        bytes: usize,
        /// How long the caller waited.
        limit: Duration,
    },
    /// A transfer outside the device, or not aligned to its logical blocks.
    #[error(
        "{action} of {bytes} bytes at offset {offset} does not fit a device of {size} bytes with blocks of {block} bytes"
    )]
    OutOfRange {
        /// "read" or "write".
        action: &'static str,
        /// Byte offset on the device.
        offset: u64,
        /// Length of the transfer.
        bytes: usize,
        /// Size of the device in bytes.
        size: u64,
        /// Logical block size in bytes.
        block: u32,
    },
}

/// Result of a transfer.
pub type Result<T> = std::result::Result<T, Error>;

/// A block device as the layers above see it: fixed size, aligned reads and writes, and a flush that is a barrier for
/// every write that completed before the call.
///
/// Offsets and lengths are multiples of [`logical_block_size`](BlockDevice::logical_block_size); memory comes from
/// [`AlignedBuf`]s (4096-byte aligned, as direct I/O asks).
pub trait BlockDevice: Send + Sync {
    /// Size in bytes, fixed for the life of the object.
    fn size_bytes(&self) -> u64;

    /// Logical block size in bytes: 512 or 4096.
    fn logical_block_size(&self) -> u32;

    /// How messages name the device, e.g. `/dev/nvme0n1`.
    fn name(&self) -> &str;

    /// Fills `buf` from `offset`, however long the device takes.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Fills `buf` from `offset` and gives it back. If the device does not answer within `limit`, the result is
    /// [`Error::Unanswered`], and the buffer stays with whoever may still write to it. A kind of device that cannot
    /// abandon a read waits for the answer.
    fn read_within(&self, offset: u64, mut buf: AlignedBuf, limit: Duration) -> Result<AlignedBuf> {
        let _ = limit;
        self.read_at(offset, &mut buf)?;
        Ok(buf)
    }

    /// Whether an abandoned read has not been answered yet. Never waits.
    fn is_silent(&self) -> bool {
        false
    }

    /// Writes the concatenation of `bufs` at `offset`. After an error any subset of the range may have changed.
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()>;

    /// Returns when every write that had completed is on stable storage.
    fn flush(&self) -> Result<()>;

    /// Carries out writes that do not overlap, in any order. With `durable` it returns when these writes are on stable
    /// storage, and says nothing of other writes. After an error any subset of all the ranges may have changed.
    ///
    /// `may_go_on` is asked before each transfer that is begun by itself. When it says no, nothing more is begun, and the
    /// result is an error of the kind `PermissionDenied`.
    fn write_together(&self, writes: &[Write<'_>], durable: bool, may_go_on: &dyn Fn() -> bool) -> Result<()> {
        for write in writes {
            check_going_on(may_go_on, write.offset, write.len())?;
            self.write_at(write.offset, &write.bufs)?;
        }
        if !durable {
            return Ok(());
        }
        check_going_on(may_go_on, 0, 0)?;
        self.flush()
    }
}

/// A block device that can say what it is.
pub trait IdentifiedDevice: BlockDevice {
    /// Reads the identity and the backing chain anew.
    ///
    /// # Errors
    /// When the device is gone, or is not the one that was opened.
    fn facts(&self) -> std::result::Result<DeviceFacts, FactsError>;

    /// What libblkid recognises on the device, read anew. libblkid reads through a descriptor; a device that has none, one
    /// of a test, is copied into an anonymous file for it.
    ///
    /// # Errors
    /// When a read fails, or the device is not the one that was opened: then nothing is known of what is on it.
    fn signatures(&self) -> io::Result<Vec<Signature>> {
        blkid::signatures(copy(self)?.as_fd(), self.logical_block_size())
    }
}

/// A file in memory with the content of `device`; what is zero takes no room.
fn copy(device: &(impl BlockDevice + ?Sized)) -> io::Result<File> {
    const PIECE: u64 = 1 << 20;
    let file = File::from(rustix::fs::memfd_create("scelle-device", rustix::fs::MemfdFlags::CLOEXEC)?);
    let size = device.size_bytes();
    file.set_len(size)?;
    for offset in (0..size).step_by(to_usize(PIECE)) {
        let len = to_usize(PIECE.min(size - offset));
        let mut piece = AlignedBuf::zeroed(len);
        device.read_at(offset, &mut piece[..len]).map_err(io::Error::other)?;
        for (block, at) in piece[..len].chunks(BLOCK_SIZE).zip((offset..).step_by(BLOCK_SIZE)) {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at)?;
            }
        }
    }
    Ok(file)
}

/// Says whether a transfer may begin.
pub(crate) fn check_going_on(may_go_on: &dyn Fn() -> bool, offset: u64, bytes: usize) -> Result<()> {
    if may_go_on() {
        return Ok(());
    }
    let source = io::Error::new(io::ErrorKind::PermissionDenied, "no transfer may begin any more");
    Err(Error::Io { action: "write", offset, bytes, source })
}

/// Checks a transfer against the device's size and logical blocks.
pub(crate) fn check_range(device: &dyn BlockDevice, action: &'static str, offset: u64, bytes: usize) -> Result<()> {
    let block = device.logical_block_size();
    let size = device.size_bytes();
    let aligned = offset.is_multiple_of(u64::from(block)) && bytes.is_multiple_of(block as usize);
    if aligned && offset.checked_add(bytes as u64).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(Error::OutOfRange { action, offset, bytes, size, block })
}
