//! Comparing replicas without a key: all replicas of a volume hold the same bytes at the same address.
//!
//! Nothing is authenticated here. So a difference says that one of the devices is wrong there and not which; and it may lie
//! in blocks that are not in use. That equal devices are right is not said either.

use std::sync::Arc;

use super::error::{Error, System};
use super::sealed::Sealed;
use crate::device::AlignedBuf;
use crate::mirror::device_offset;
use crate::policy::ApprovedDevice;
use crate::units::{BLOCK_SIZE, BlockAddr, Run, to_usize};

/// Blocks that are read of each device at once.
const BLOCKS_AT_ONCE: u64 = 256;

/// Most runs that are listed.
pub const RUNS_MAX: usize = 1000;

/// Blocks in a row that differ in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first block.
    pub addr: BlockAddr,
    /// How many.
    pub blocks: u64,
    /// The devices that hold something else there than the first device that could be read.
    pub others: Vec<String>,
    /// The devices that could not be read there.
    pub unread: Vec<String>,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// The devices.
    pub devices: Vec<String>,
    /// Blocks that were compared.
    pub blocks: u64,
    /// The first runs of blocks that differ, or could not be read everywhere.
    pub runs: Vec<Difference>,
    /// Blocks that differ, or could not be read everywhere, also those that are not listed.
    pub different: u64,
    /// Replicas that a label says the volume has.
    pub replicas: usize,
}

impl Sealed {
    /// Compares the data areas of the devices block by block. `progress` is told blocks done and blocks in all.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn compare(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Compared, Error> {
        let (devices, blocks, replicas) = self.to_compare();
        let names = devices.iter().map(|device| device.name().to_owned()).collect();
        let mut compared = Compared { devices: names, blocks, replicas, ..Compared::default() };
        let mut done = 0;
        while done < blocks {
            let run = Run::new(BlockAddr(done), BLOCKS_AT_ONCE.min(blocks - done));
            let read = read_all(&devices, run)?;
            for i in 0..run.blocks {
                compared.add(run.addr.add(i), &read, i);
            }
            done += run.blocks;
            progress(done, blocks);
        }
        Ok(compared)
    }
}

/// What a device holds in the place of a run.
#[derive(Default)]
struct Held {
    bytes: Option<AlignedBuf>,
    /// The blocks that could not be read.
    unread: Vec<u64>,
}

impl Held {
    fn block(&self, i: u64) -> Option<&[u8]> {
        let bytes = self.bytes.as_ref().filter(|_| !self.unread.contains(&i))?;
        Some(&bytes[to_usize(i) * BLOCK_SIZE..][..BLOCK_SIZE])
    }

    /// Reads a run in one piece, or block by block where that fails.
    fn read(device: &ApprovedDevice, run: Run) -> Self {
        let mut bytes = AlignedBuf::zeroed(run.bytes());
        let mut unread = Vec::new();
        if device.read_at(device_offset(run.addr), &mut bytes).is_err() {
            for (i, block) in (0..).zip(bytes.chunks_exact_mut(BLOCK_SIZE)) {
                if device.read_at(device_offset(run.addr.add(i)), block).is_err() {
                    unread.push(i);
                }
            }
        }
        Self { bytes: Some(bytes), unread }
    }
}

impl Compared {
    /// Adds what the devices hold in the place of a block, the `i`th of what was read.
    fn add(&mut self, addr: BlockAddr, read: &[Held], i: u64) {
        let held: Vec<Option<&[u8]>> = read.iter().map(|held| held.block(i)).collect();
        let first = held.iter().flatten().next().copied();
        if first.is_some() && held.iter().all(|held| *held == first) {
            return;
        }
        let named = |is: &dyn Fn(&Option<&[u8]>) -> bool| -> Vec<String> {
            self.devices.iter().zip(&held).filter(|(_, held)| is(held)).map(|(name, _)| name.clone()).collect()
        };
        let others = named(&|held| held.is_some() && *held != first);
        let unread = named(&|held| held.is_none());
        self.different += 1;
        let is_listed = self.runs.len() < RUNS_MAX;
        match self.runs.last_mut() {
            Some(last) if last.addr.add(last.blocks) == addr && (&last.others, &last.unread) == (&others, &unread) => {
                last.blocks += 1;
            }
            _ if is_listed => self.runs.push(Difference { addr, blocks: 1, others, unread }),
            _ => {}
        }
    }
}

/// Reads a run from every device at once.
fn read_all(devices: &[Arc<ApprovedDevice>], run: Run) -> Result<Vec<Held>, Error> {
    std::thread::scope(|scope| {
        let begin = |device: &Arc<ApprovedDevice>| {
            let device = device.clone();
            std::thread::Builder::new().spawn_scoped(scope, move || Held::read(&device, run))
        };
        let threads: Result<Vec<_>, _> = devices.iter().map(begin).collect();
        let threads = threads.map_err(|source| System::error("reading the devices", source))?;
        Ok(threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect())
    })
}
