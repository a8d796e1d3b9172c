//! The disks that a power failure can leave behind, made from a log of what several devices were written.

use std::sync::{Arc, Mutex};

use scelle::device::faulty::{Change, Observer};
use scelle::device::memory::Disk;

use super::rng::Rng;

const SECTOR: usize = 512;

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

/// The events of all devices of a volume.
pub type Log = Arc<Mutex<Vec<Event>>>;

/// Writes the log of one device.
pub struct Recorder {
    pub device: usize,
    pub log: Log,
}

impl Observer for Recorder {
    fn after(&self, change: &Change<'_>) {
        let event = match change {
            Change::Write { offset, bytes } => Event::Write(self.device, *offset, (*bytes).into()),
            Change::Flush => Event::Flush(self.device),
            Change::Durable { writes } => Event::Durable(self.device, *writes),
        };
        self.log.lock().unwrap().push(event);
    }
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
