//! A device in memory, for tests: what was written is what is read.

use std::io::IoSlice;

use parking_lot::{Mutex, MutexGuard};

use super::{BlockDevice, IdentifiedDevice, Result, check_range};
use crate::probe::{DeviceFacts, FactsError, Node};
use crate::registry::Transport;

/// A block device kept in memory.
pub struct MemoryDevice {
    name: String,
    size: u64,
    bytes: Mutex<Vec<u8>>,
}

impl MemoryDevice {
    /// A device of `size` bytes (a multiple of 4096), all zero.
    pub fn new(name: &str, size: u64) -> Self {
        Self::from_image(name, vec![0; size as usize])
    }

    /// A device that holds `image`, whose length is a multiple of 4096.
    pub fn from_image(name: &str, image: Vec<u8>) -> Self {
        Self { name: name.to_owned(), size: image.len() as u64, bytes: Mutex::new(image) }
    }

    /// A copy of everything on the device.
    pub fn image(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock()
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
        buf.copy_from_slice(&self.lock()[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let total = bufs.iter().map(|b| b.len()).sum();
        check_range(self, "write", offset, total)?;
        let mut bytes = self.lock();
        let mut at = offset as usize;
        for buf in bufs {
            bytes[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
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
