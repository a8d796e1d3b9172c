//! A device in memory, for tests: what was written is what is read.

use std::io::IoSlice;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::{BlockDevice, IdentifiedDevice, Result, check_range};
use crate::probe::{DeviceFacts, FactsError, Node};
use crate::registry::Transport;
use crate::units::{BLOCK_SIZE, to_usize};

/// A block; `None` was never written.
type Block = Option<Arc<[u8; BLOCK_SIZE]>>;

/// Blocks that copies of a disk share as long as none of them is written.
const CHUNK: usize = 512;

/// What a device holds. A block of [`BLOCK_SIZE`] that was never written is zero. A clone is cheap, however large the disk
/// is: it shares what it holds until that is written. Two disks are equal when the same blocks were written and hold the
/// same bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Disk {
    size: u64,
    chunks: Vec<Arc<[Block; CHUNK]>>,
}

impl Disk {
    /// A disk of `size` bytes that was never written.
    pub fn new(size: u64) -> Self {
        let empty: Arc<[Block; CHUNK]> = Arc::new([const { None }; CHUNK]);
        Self { size, chunks: std::iter::repeat_n(empty, to_usize(size).div_ceil(BLOCK_SIZE * CHUNK)).collect() }
    }

    /// A disk that was written from its beginning to its end.
    pub fn of(image: &[u8]) -> Self {
        let mut disk = Self::new(image.len() as u64);
        disk.write(0, image);
        disk
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// The numbers of the blocks that were written.
    pub fn blocks(&self) -> Vec<u64> {
        let all = self.chunks.iter().flat_map(|chunk| chunk.iter());
        (0..).zip(all).filter(|(_, block)| block.is_some()).map(|(number, _)| number).collect()
    }

    /// Fills `buf` from `offset`.
    pub fn read(&self, offset: u64, mut buf: &mut [u8]) {
        let (mut block, mut within) = place(offset);
        while !buf.is_empty() {
            let (part, rest) = buf.split_at_mut(buf.len().min(BLOCK_SIZE - within));
            match &self.chunks[block / CHUNK][block % CHUNK] {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + part.len()]),
                None => part.fill(0),
            }
            (buf, block, within) = (rest, block + 1, 0);
        }
    }

    /// Writes `bytes` at `offset`.
    pub fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        let (mut block, mut within) = place(offset);
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK_SIZE - within));
            let chunk = Arc::make_mut(&mut self.chunks[block / CHUNK]);
            let kept = chunk[block % CHUNK].get_or_insert_with(|| Arc::new([0; BLOCK_SIZE]));
            Arc::make_mut(kept)[within..within + part.len()].copy_from_slice(part);
            (bytes, block, within) = (rest, block + 1, 0);
        }
    }
}

/// The block that holds an offset, and the offset inside that block.
fn place(offset: u64) -> (usize, usize) {
    (to_usize(offset) / BLOCK_SIZE, to_usize(offset) % BLOCK_SIZE)
}

/// A block device kept in memory.
pub struct MemoryDevice {
    name: String,
    size: u64,
    disk: Mutex<Disk>,
}

impl MemoryDevice {
    /// A device of `size` bytes (a multiple of 512), all zero.
    pub fn new(name: &str, size: u64) -> Self {
        Self::from_disk(name, Disk::new(size))
    }

    /// A device that holds `image`, whose length is a multiple of 512.
    pub fn from_image(name: &str, image: Vec<u8>) -> Self {
        Self::from_disk(name, Disk::of(&image))
    }

    /// A device that holds `disk`.
    pub fn from_disk(name: &str, disk: Disk) -> Self {
        Self { name: name.to_owned(), size: disk.size_bytes(), disk: Mutex::new(disk) }
    }

    /// A copy of everything on the device.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; to_usize(self.size)];
        self.lock().read(0, &mut image);
        image
    }

    /// What the device holds at this moment.
    pub fn disk(&self) -> Disk {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock()
    }
}

impl BlockDevice for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn logical_block_size(&self) -> u32 {
        512
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self, "read", offset, buf.len())?;
        self.lock().read(offset, buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let total = bufs.iter().map(|b| b.len()).sum();
        check_range(self, "write", offset, total)?;
        let mut disk = self.lock();
        let mut at = offset;
        for buf in bufs {
            disk.write(at, buf);
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl IdentifiedDevice for MemoryDevice {
    fn facts(&self) -> std::result::Result<DeviceFacts, FactsError> {
        let mut root = Node::bare(self.name(), Transport::Memory);
        root.size_bytes = self.size_bytes();
        root.logical_block = self.logical_block_size();
        Ok(DeviceFacts { root })
    }
}
