//! A device that remembers every write since its last flush, and the disks that a power failure can leave behind.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::{Arc, Mutex};

use scelle::device::{BlockDevice, IdentifiedDevice, Result, Write};
use scelle::probe::identity::{DeviceFacts, FactsError, Node};
use scelle::registry::Transport;

use crate::rng::Rng;

const SECTOR: usize = 512;
const BLOCK: u64 = 4096;

/// A sparse disk: blocks that were never written are zero. Cloning shares the blocks. Two are equal when the same blocks were
/// written and hold the same.
#[derive(Clone, Default, PartialEq)]
pub struct Disk(BTreeMap<u64, Arc<[u8; BLOCK as usize]>>);

impl Disk {
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() {
            let position = offset + at as u64;
            let within = (position % BLOCK) as usize;
            let part = (BLOCK as usize - within).min(buf.len() - at);
            match self.0.get(&(position / BLOCK)) {
                Some(block) => buf[at..at + part].copy_from_slice(&block[within..within + part]),
                None => buf[at..at + part].fill(0),
            }
            at += part;
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let position = offset + at as u64;
            let within = (position % BLOCK) as usize;
            let part = (BLOCK as usize - within).min(bytes.len() - at);
            let block = self.0.entry(position / BLOCK).or_insert_with(|| Arc::new([0; BLOCK as usize]));
            Arc::make_mut(block)[within..within + part].copy_from_slice(&bytes[at..at + part]);
            at += part;
        }
    }

    pub fn read_block(&self, block: u64, buf: &mut [u8; BLOCK as usize]) {
        self.read(block * BLOCK, buf);
    }

    /// Addresses of all blocks that hold something.
    pub fn blocks(&self) -> Vec<u64> {
        self.0.keys().copied().collect()
    }
}

/// What happened, in the order in which it happened.
#[derive(Clone)]
pub enum Event {
    /// A write reached device `.0`; it may or may not survive until the next flush of that device.
    Write(usize, u64, Arc<[u8]>),
    /// A flush of device `.0` has returned.
    Flush(usize),
    /// The last `.1` writes of device `.0` are durable; what was written before them need not be.
    Durable(usize, usize),
    /// The filesystem is in this state from now on; the state's number is its place among these events.
    State,
    /// A sync has returned that began when the state was number `.0`.
    Synced(usize),
}

/// The disks of a volume as the events go by: what is durable on each, and what may or may not survive.
pub struct Disks {
    pub durable: Vec<Disk>,
    pub pending: Vec<Vec<(u64, Arc<[u8]>)>>,
}

impl Disks {
    pub fn new(disks: &[Disk]) -> Self {
        Self { durable: disks.to_vec(), pending: vec![Vec::new(); disks.len()] }
    }

    pub fn apply(&mut self, event: &Event) {
        let (device, settled) = match event {
            Event::Write(device, offset, bytes) => return self.pending[*device].push((*offset, bytes.clone())),
            Event::Flush(device) => (*device, self.pending[*device].len()),
            Event::Durable(device, count) => (*device, *count),
            Event::State | Event::Synced(_) => return,
        };
        let first = self.pending[device].len() - settled;
        for (offset, bytes) in self.pending[device].drain(first..) {
            self.durable[device].write(offset, &bytes);
        }
    }

    /// The disks after a power failure, and what survived of each.
    pub fn crash(&self, rng: &mut Rng) -> (Vec<Disk>, Vec<Survival>) {
        let survival: Vec<Survival> = self.durable.iter().map(|_| Survival::draw(rng)).collect();
        let each = survival.iter().enumerate();
        (each.map(|(i, s)| s.apply(&self.durable[i], &self.pending[i], rng)).collect(), survival)
    }
}

/// The events of all devices of a volume.
pub type Log = Arc<Mutex<Vec<Event>>>;

/// A device that logs.
pub struct Recording {
    name: String,
    size: u64,
    index: usize,
    disk: Mutex<Disk>,
    log: Log,
}

impl Recording {
    pub fn new(index: usize, size: u64, disk: Disk, log: Log) -> Self {
        Self { name: format!("disk-{index}"), size, index, disk: Mutex::new(disk), log }
    }

    pub fn disk(&self) -> Disk {
        self.disk.lock().unwrap().clone()
    }
}

impl BlockDevice for Recording {
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
        self.disk.lock().unwrap().read(offset, buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        assert!(offset + bytes.len() as u64 <= self.size, "a write past the end");
        self.log.lock().unwrap().push(Event::Write(self.index, offset, bytes.clone().into()));
        self.disk.lock().unwrap().write(offset, &bytes);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.log.lock().unwrap().push(Event::Flush(self.index));
        Ok(())
    }

    fn write_together(&self, writes: &[Write<'_>], durable: bool) -> Result<()> {
        writes.iter().try_for_each(|write| self.write_at(write.offset, &write.bufs))?;
        if durable {
            self.log.lock().unwrap().push(Event::Durable(self.index, writes.len()));
        }
        Ok(())
    }
}

impl IdentifiedDevice for Recording {
    fn facts(&self) -> std::result::Result<DeviceFacts, FactsError> {
        let mut root = Node::bare(&self.name, Transport::Memory);
        root.size_bytes = self.size;
        root.logical_block = 512;
        Ok(DeviceFacts { root })
    }
}

/// Which of the unflushed writes of one device survive.
#[derive(Clone, Copy, Debug)]
pub enum Survival {
    None,
    All,
    /// Each with this chance, in percent, whole.
    Some(u64),
    /// Each sector of each by itself, with this chance.
    Torn(u64),
    /// Only the last ones: the device wrote in reverse order.
    Newest(u64),
}

impl Survival {
    pub fn draw(rng: &mut Rng) -> Self {
        match rng.below(6) {
            0 => Self::None,
            1 => Self::All,
            2 => Self::Some(rng.pick(&[10, 50, 90])),
            3 | 4 => Self::Torn(rng.pick(&[5, 50, 95])),
            _ => Self::Newest(1 + rng.below(3)),
        }
    }

    /// The disk after the power failure.
    pub fn apply(self, durable: &Disk, pending: &[(u64, Arc<[u8]>)], rng: &mut Rng) -> Disk {
        let mut disk = durable.clone();
        for (age, (offset, bytes)) in pending.iter().rev().enumerate().rev() {
            let whole = match self {
                Self::None => false,
                Self::All => true,
                Self::Some(chance) => rng.below(100) < chance,
                Self::Newest(count) => (age as u64) < count,
                Self::Torn(chance) => {
                    for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                        if rng.below(100) < chance {
                            disk.write(offset + (i * SECTOR) as u64, sector);
                        }
                    }
                    continue;
                }
            };
            if whole {
                disk.write(*offset, bytes);
            }
        }
        disk
    }
}
