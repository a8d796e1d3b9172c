//! A device that fails on purpose, around another one.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{AlignedBuf, BlockDevice, Error, IdentifiedDevice, Result, check_range};
use crate::probe::{DeviceFacts, FactsError};

/// The operations that a fault can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`BlockDevice::read_at`].
    Read,
    /// [`BlockDevice::write_at`].
    Write,
    /// [`BlockDevice::flush`].
    Flush,
    /// [`IdentifiedDevice::facts`].
    Facts,
}

/// What happens to an operation that a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this errno and changes nothing.
    Error(i32),
    /// Of a write, only the first so many bytes arrive (rounded down to whole logical blocks), then it fails with `EIO`.
    Torn(usize),
    /// A write or flush claims success and does nothing.
    Lost,
    /// A read succeeds with every byte of the hit range exclusive-ored with this value.
    Corrupt(u8),
    /// It is not answered before [`FaultyDevice::heal`], and then as if nothing had been. A read may be given up before.
    Hang,
}

/// A fault: which operations it hits and how.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The operations.
    pub operation: Operation,
    /// Byte range; a read or write is hit when it touches it. Others are hit whatever it is.
    pub range: Range<u64>,
    /// So many operations that would be hit pass before.
    pub skip: u64,
    /// So many are hit then; `u64::MAX` for ever.
    pub times: u64,
    /// How.
    pub effect: Effect,
}

impl Fault {
    /// A fault that hits every such operation anywhere for ever.
    pub fn always(operation: Operation, effect: Effect) -> Self {
        Self { operation, range: 0..u64::MAX, skip: 0, times: u64::MAX, effect }
    }
}

/// A device whose operations fail as told. Without faults it is the device inside.
pub struct FaultyDevice {
    inner: Arc<dyn IdentifiedDevice>,
    state: Mutex<State>,
    healed: Condvar,
}

#[derive(Default)]
struct State {
    /// How often it was healed.
    healings: u64,
    faults: Vec<Fault>,
    unplugged: bool,
    counts: Counts,
    /// A read was given up and not answered since.
    silent: bool,
}

/// How many operations reached the device, hit by a fault or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
}

impl FaultyDevice {
    /// Wraps a device.
    pub fn new(inner: Arc<dyn IdentifiedDevice>) -> Self {
        Self { inner, state: Mutex::default(), healed: Condvar::new() }
    }

    /// Adds a fault; of several that hit, the first one added counts.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Removes every fault and plugs the device in again.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.unplugged = false;
        state.healings += 1;
        state.silent = false;
        self.healed.notify_all();
    }

    /// Makes every operation, also reading the facts, fail with `ENODEV`.
    pub fn unplug(&self) {
        self.lock().unplugged = true;
    }

    /// What reached the device so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Counts the operation and says what happens to it, once it happens; a hang, when `limit` is over before.
    fn strike(&self, operation: Operation, range: Range<u64>, limit: Option<Duration>) -> Option<(Effect, Range<u64>)> {
        let begin = Instant::now();
        let mut state = self.lock();
        let struck = Self::hit(&mut state, operation, range);
        if !matches!(struck, Some((Effect::Hang, _))) {
            return struck;
        }
        let before = state.healings;
        while state.healings == before {
            let left = limit.map_or(Duration::MAX, |limit| limit.saturating_sub(begin.elapsed()));
            if left.is_zero() {
                state.silent = true;
                return struck;
            }
            self.healed.wait_for(&mut state, left);
        }
        None
    }

    fn read_struck(&self, offset: u64, buf: &mut [u8], limit: Option<Duration>) -> Result<()> {
        check_range(self, "read", offset, buf.len())?;
        match self.strike(Operation::Read, offset..offset + buf.len() as u64, limit) {
            Some((Effect::Error(errno), _)) => Err(failed("read", offset, buf.len(), errno)),
            Some((Effect::Hang, _)) => {
                Err(Error::Unanswered { offset, bytes: buf.len(), limit: limit.unwrap_or_default() })
            }
            Some((Effect::Corrupt(mask), hit)) => {
                self.inner.read_at(offset, buf)?;
                for byte in &mut buf[(hit.start - offset) as usize..(hit.end - offset) as usize] {
                    *byte ^= mask;
                }
                Ok(())
            }
            _ => self.inner.read_at(offset, buf),
        }
    }

    fn hit(state: &mut State, operation: Operation, range: Range<u64>) -> Option<(Effect, Range<u64>)> {
        match operation {
            Operation::Read => state.counts.reads += 1,
            Operation::Write => state.counts.writes += 1,
            Operation::Flush => state.counts.flushes += 1,
            Operation::Facts => {}
        }
        if state.unplugged {
            return Some((Effect::Error(libc::ENODEV), range));
        }
        for fault in &mut state.faults {
            let touches = fault.range.start < range.end && range.start < fault.range.end;
            let transfers = matches!(operation, Operation::Read | Operation::Write);
            if fault.operation != operation || transfers && !touches {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times = if fault.times == u64::MAX { u64::MAX } else { fault.times - 1 };
                let hit = fault.range.start.max(range.start)..fault.range.end.min(range.end);
                return Some((fault.effect, hit));
            }
        }
        None
    }
}

fn failed(action: &'static str, offset: u64, bytes: usize, errno: i32) -> Error {
    Error::Io { action, offset, bytes, source: io::Error::from_raw_os_error(errno) }
}

impl BlockDevice for FaultyDevice {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn logical_block_size(&self) -> u32 {
        self.inner.logical_block_size()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_struck(offset, buf, None)
    }

    fn read_within(&self, offset: u64, mut buf: AlignedBuf, limit: Duration) -> Result<AlignedBuf> {
        self.read_struck(offset, &mut buf, Some(limit))?;
        Ok(buf)
    }

    fn is_silent(&self) -> bool {
        self.lock().silent
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        check_range(self, "write", offset, total)?;
        match self.strike(Operation::Write, offset..offset + total as u64, None) {
            Some((Effect::Error(errno), _)) => Err(failed("write", offset, total, errno)),
            Some((Effect::Lost, _)) => Ok(()),
            Some((Effect::Torn(kept), _)) => {
                let block = self.logical_block_size() as usize;
                let kept = kept.min(total) / block * block;
                let bytes: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).take(kept).collect();
                self.inner.write_at(offset, &[IoSlice::new(&bytes)])?;
                Err(failed("write", offset, total, libc::EIO))
            }
            Some((Effect::Corrupt(_) | Effect::Hang, _)) | None => self.inner.write_at(offset, bufs),
        }
    }

    fn flush(&self) -> Result<()> {
        match self.strike(Operation::Flush, 0..0, None) {
            Some((Effect::Error(errno), _)) => Err(failed("flush", 0, 0, errno)),
            Some((Effect::Lost, _)) => Ok(()),
            _ => self.inner.flush(),
        }
    }
}

impl IdentifiedDevice for FaultyDevice {
    fn facts(&self) -> std::result::Result<DeviceFacts, FactsError> {
        match self.strike(Operation::Facts, 0..0, None) {
            Some((Effect::Error(errno), _)) => {
                let detail = io::Error::from_raw_os_error(errno).to_string();
                Err(FactsError::Unreadable { device: self.name().to_owned(), detail })
            }
            _ => self.inner.facts(),
        }
    }
}
