//! The double of a device, around another device, for tests: everything that can go wrong with a device goes wrong
//! here.
//!
//! Operations fail as [`Fault`]s say, or take their time. The double shows another [`Face`], lets another device answer
//! in its place, or is unplugged. A double with a cache of its own loses what was not flushed. An [`Observer`] is told
//! which operation comes and what has changed. From a log of the changes a crash test makes the disks that a power
//! failure can leave.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{AlignedBuf, BlockDevice, Error, IdentifiedDevice, Result, Write, check_going_on, check_range};
use crate::probe::identity::NVME_HEADS;
use crate::probe::{DeviceFacts, FactsError};
use crate::units::to_usize;

/// The operations that a fault can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`BlockDevice::read_at`].
    Read,
    /// [`BlockDevice::write_at`], and each write of [`BlockDevice::write_together`].
    Write,
    /// [`BlockDevice::flush`], and what makes the writes of [`BlockDevice::write_together`] durable.
    Flush,
    /// [`IdentifiedDevice::facts`].
    Facts,
}

/// What happens to an operation that a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this errno and changes nothing.
    Error(i32),
    /// Only the first bytes of a write arrive, this many (rounded down to whole logical blocks). Then it fails with
    /// `EIO`.
    Torn(usize),
    /// A write or flush claims success and does nothing.
    Lost,
    /// A write or flush fails with `EIO`, and what was not flushed before is lost too.
    Forgotten,
    /// A read succeeds with every byte of the hit range exclusive-ored with this value.
    Corrupt(u8),
    /// The operation takes this much longer.
    Slow(Duration),
    /// The operation is not answered before [`FaultyDevice::heal`], and then as if there had been no fault. A read may
    /// be abandoned before that.
    Hang,
}

/// A fault: which operations it hits and how.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The operations.
    pub operation: Operation,
    /// Byte range: a read or a write is hit when it touches the range. Other operations are hit whatever the range is.
    pub range: Range<u64>,
    /// How many operations that would be hit pass first.
    pub skip: u64,
    /// How many operations are hit after those; `u64::MAX` for ever.
    pub times: u64,
    /// What happens to an operation that is hit.
    pub effect: Effect,
}

impl Fault {
    /// A fault that hits every such operation anywhere for ever.
    pub fn always(operation: Operation, effect: Effect) -> Self {
        Self { operation, range: 0..u64::MAX, skip: 0, times: u64::MAX, effect }
    }
}

/// What a device says when it is asked who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Face {
    /// The truth.
    #[default]
    Itself,
    /// The truth, and that the kernel may find more paths to it.
    Shared,
    /// Another device is in its place.
    Swapped,
    /// The kernel sees another disk than the one that was opened.
    Changed,
    /// The device is not there any more.
    Gone,
}

/// A change of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A write has arrived; it may be lost until it is flushed.
    Write {
        /// Where it begins.
        offset: u64,
        /// What it wrote.
        bytes: &'a [u8],
    },
    /// Everything that has arrived is durable.
    Flush,
    /// The last writes are durable; writes that arrived before them need not be.
    Durable {
        /// How many.
        writes: usize,
    },
}

/// Who answers an operation.
pub enum Answer {
    /// The device, as its faults, its face and its replacement say.
    Itself,
    /// Another device.
    Other(Arc<dyn IdentifiedDevice>),
    /// Nobody: the operation fails with `ENODEV`.
    Nobody,
}

/// Whoever watches a device.
pub trait Observer: Send + Sync {
    /// An operation is about to reach the device, or the device that the observer puts in its place.
    fn before(&self, operation: Operation) -> Answer {
        let _ = operation;
        Answer::Itself
    }

    /// The device has changed, and nothing else happens to it during this call.
    fn after(&self, change: &Change<'_>) {
        let _ = change;
    }
}

/// A device that misbehaves as it is told to. Until then it behaves as the device inside.
pub struct FaultyDevice {
    inner: Arc<dyn IdentifiedDevice>,
    observer: Option<Arc<dyn Observer>>,
    delay: Duration,
    state: Mutex<State>,
    healed: Condvar,
}

#[derive(Default)]
struct State {
    /// How often it was healed.
    healings: u64,
    faults: Vec<Fault>,
    face: Face,
    /// The device that answers in place of the device inside.
    other: Option<Arc<dyn IdentifiedDevice>>,
    unplugged: bool,
    counts: Counts,
    /// A read was abandoned and not answered since.
    silent: bool,
    /// From now on no write or flush may be under way.
    shut: bool,
    late: u64,
    /// For a device with a cache: the bytes that each write since the last flush has replaced.
    unflushed: Option<Vec<(u64, Vec<u8>)>>,
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

/// What a fault does to an operation, and to which part of its range.
type Hit = (Effect, Range<u64>);

/// An operation that happens now. Nothing else happens to the device as long as its state is held.
struct Begun<'a> {
    state: MutexGuard<'a, State>,
    hit: Option<Hit>,
    inner: Arc<dyn IdentifiedDevice>,
}

impl FaultyDevice {
    /// Wraps a device.
    pub fn new(inner: Arc<dyn IdentifiedDevice>) -> Self {
        Self { inner, observer: None, delay: Duration::ZERO, state: Mutex::default(), healed: Condvar::new() }
    }

    /// The same device, watched.
    pub fn observed_by(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// The same device, with every write and flush delayed by `delay`.
    pub fn slow(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The same device, with a cache that can be lost: it remembers what every write since the last flush replaced.
    pub fn with_cache(self) -> Self {
        self.lock().unflushed = Some(Vec::new());
        self
    }

    /// Adds a fault. When several faults hit an operation, the first one added counts.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Adds a fault that hits every write and flush.
    pub fn inject_in_changes(&self, effect: Effect) {
        let faults = [Operation::Write, Operation::Flush].map(|operation| Fault::always(operation, effect));
        faults.into_iter().for_each(|fault| self.inject(fault));
    }

    /// Lets writes and flushes hang until [`heal`](Self::heal).
    pub fn hold(&self) {
        self.inject_in_changes(Effect::Hang);
    }

    /// Makes it the device inside again: no fault, its own face, plugged in.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        (state.face, state.other, state.unplugged) = (Face::Itself, None, false);
        state.healings += 1;
        state.silent = false;
        self.healed.notify_all();
    }

    /// Makes every operation, also reading the facts, fail with `ENODEV`.
    pub fn unplug(&self) {
        self.lock().unplugged = true;
    }

    /// Shows this face from now on; reads and writes go on.
    pub fn show(&self, face: Face) {
        self.lock().face = face;
    }

    /// Lets another device of the same size answer from now on, also to those who hold this one open.
    pub fn replace(&self, other: Arc<dyn IdentifiedDevice>) {
        let mut state = self.lock();
        (state.other, state.unplugged) = (Some(other), false);
    }

    /// From now on, until [`reopen`](Self::reopen), no write or flush may be under way. Those that are under way all
    /// the same are counted as [`late`](Self::late).
    pub fn shut(&self) {
        self.lock().shut = true;
    }

    /// Writes and flushes are welcome again.
    pub fn reopen(&self) {
        self.lock().shut = false;
    }

    /// How often a write or flush was seen while the device was shut.
    pub fn late(&self) -> u64 {
        self.lock().late
    }

    /// Loses the last `writes` of the writes that were not flushed.
    ///
    /// # Errors
    /// When the device inside fails.
    pub fn lose(&self, writes: usize) -> Result<()> {
        self.forget(&mut self.lock(), writes)
    }

    /// How many writes were not flushed, of a device with a cache.
    pub fn unflushed(&self) -> usize {
        self.lock().unflushed.as_ref().map_or(0, Vec::len)
    }

    /// What reached the device so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn answering(&self, state: &State) -> Arc<dyn IdentifiedDevice> {
        state.other.as_ref().unwrap_or(&self.inner).clone()
    }

    /// Counts the operation, waits as long as it takes, and says what happens to it. That is a hang when `limit` is
    /// over before the device was healed.
    fn begin(&self, operation: Operation, range: Range<u64>, limit: Option<Duration>) -> Begun<'_> {
        let begin = Instant::now();
        let answer = self.observer.as_ref().map_or(Answer::Itself, |observer| observer.before(operation));
        let mut state = self.lock();
        state.count(operation);
        if !self.delay.is_zero() && operation.is_change() {
            MutexGuard::unlocked(&mut state, || std::thread::sleep(self.delay));
        }
        let mut hit = match answer {
            Answer::Nobody => Some((Effect::Error(libc::ENODEV), range)),
            _ => state.hit(operation, range),
        };
        if let Some((Effect::Slow(delay), _)) = hit {
            MutexGuard::unlocked(&mut state, || std::thread::sleep(delay));
            hit = None;
        }
        let before = state.healings;
        while matches!(hit, Some((Effect::Hang, _))) {
            let left = limit.map_or(Duration::MAX, |limit| limit.saturating_sub(begin.elapsed()));
            if state.healings != before {
                hit = None;
            } else if left.is_zero() {
                state.silent = true;
                break;
            } else {
                self.healed.wait_for(&mut state, left);
            }
        }
        // An operation that began before the device was shut, and is still under way, is late too.
        state.notice(operation);
        let inner = match answer {
            Answer::Other(other) => other,
            _ => self.answering(&state),
        };
        Begun { state, hit, inner }
    }

    fn read_struck(&self, offset: u64, buf: &mut [u8], limit: Option<Duration>) -> Result<()> {
        check_range(self, "read", offset, buf.len())?;
        let Begun { state, hit, inner } = self.begin(Operation::Read, offset..offset + buf.len() as u64, limit);
        drop(state);
        match hit {
            Some((Effect::Error(errno), _)) => Err(failed("read", offset, buf.len(), errno)),
            Some((Effect::Hang, _)) => {
                Err(Error::Unanswered { offset, bytes: buf.len(), limit: limit.unwrap_or_default() })
            }
            Some((Effect::Corrupt(mask), hit)) => {
                inner.read_at(offset, buf)?;
                for byte in &mut buf[to_usize(hit.start - offset)..to_usize(hit.end - offset)] {
                    *byte ^= mask;
                }
                Ok(())
            }
            _ => inner.read_at(offset, buf),
        }
    }

    /// A write arrives.
    fn arrive(&self, mut begun: Begun<'_>, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let (state, inner) = (&mut *begun.state, &begun.inner);
        if let Some(unflushed) = &mut state.unflushed {
            let mut before = vec![0; bufs.iter().map(|buf| buf.len()).sum()];
            inner.read_at(offset, &mut before)?;
            unflushed.push((offset, before));
        }
        inner.write_at(offset, bufs)?;
        if let Some(observer) = &self.observer {
            observer.after(&Change::Write { offset, bytes: &joined(bufs) });
        }
        Ok(())
    }

    /// Flushes; of a device with a cache, the last `writes`, or everything.
    fn settle(&self, writes: Option<usize>) -> Result<()> {
        let Begun { mut state, hit, inner } = self.begin(Operation::Flush, 0..0, None);
        match hit {
            Some((Effect::Error(errno), _)) => return Err(failed("flush", 0, 0, errno)),
            Some((Effect::Lost, _)) => return Ok(()),
            Some((Effect::Forgotten, _)) => {
                self.forget(&mut state, usize::MAX)?;
                return Err(failed("flush", 0, 0, libc::EIO));
            }
            _ => inner.flush()?,
        }
        if let Some(unflushed) = &mut state.unflushed {
            unflushed.truncate(writes.map_or(0, |writes| unflushed.len().saturating_sub(writes)));
        }
        if let Some(observer) = &self.observer {
            observer.after(&writes.map_or(Change::Flush, |writes| Change::Durable { writes }));
        }
        Ok(())
    }

    fn forget(&self, state: &mut State, writes: usize) -> Result<()> {
        let inner = self.answering(state);
        let Some(unflushed) = &mut state.unflushed else { return Ok(()) };
        let first = unflushed.len().saturating_sub(writes);
        let mut lost = unflushed.drain(first..).rev();
        lost.try_for_each(|(offset, before)| inner.write_at(offset, &[IoSlice::new(&before)]))
    }
}

impl Operation {
    /// Whether it changes what the device holds, or what of it is durable.
    pub fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::Flush)
    }
}

impl State {
    fn count(&mut self, operation: Operation) {
        match operation {
            Operation::Read => self.counts.reads += 1,
            Operation::Write => self.counts.writes += 1,
            Operation::Flush => self.counts.flushes += 1,
            Operation::Facts => {}
        }
        self.notice(operation);
    }

    fn notice(&mut self, operation: Operation) {
        self.late += u64::from(self.shut && operation.is_change());
    }

    fn hit(&mut self, operation: Operation, range: Range<u64>) -> Option<Hit> {
        if self.unplugged {
            return Some((Effect::Error(libc::ENODEV), range));
        }
        for fault in &mut self.faults {
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

fn joined(bufs: &[IoSlice<'_>]) -> Vec<u8> {
    bufs.iter().flat_map(|buf| buf.iter().copied()).collect()
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
        let mut begun = self.begin(Operation::Write, offset..offset + total as u64, None);
        match begun.hit {
            Some((Effect::Error(errno), _)) => Err(failed("write", offset, total, errno)),
            Some((Effect::Lost, _)) => Ok(()),
            Some((Effect::Torn(kept), _)) => {
                let block = self.logical_block_size() as usize;
                let kept = kept.min(total) / block * block;
                self.arrive(begun, offset, &[IoSlice::new(&joined(bufs)[..kept])])?;
                Err(failed("write", offset, total, libc::EIO))
            }
            Some((Effect::Forgotten, _)) => {
                self.forget(&mut begun.state, usize::MAX)?;
                Err(failed("write", offset, total, libc::EIO))
            }
            Some((Effect::Corrupt(_) | Effect::Slow(_) | Effect::Hang, _)) | None => self.arrive(begun, offset, bufs),
        }
    }

    fn flush(&self) -> Result<()> {
        self.settle(None)
    }

    fn write_together(&self, writes: &[Write<'_>], durable: bool, may_go_on: &dyn Fn() -> bool) -> Result<()> {
        for write in writes {
            check_going_on(may_go_on, write.offset, write.len())?;
            self.write_at(write.offset, &write.bufs)?;
        }
        if !durable {
            return Ok(());
        }
        check_going_on(may_go_on, 0, 0)?;
        self.settle(Some(writes.len()))
    }
}

impl IdentifiedDevice for FaultyDevice {
    fn facts(&self) -> std::result::Result<DeviceFacts, FactsError> {
        let Begun { state, hit, inner } = self.begin(Operation::Facts, 0..0, None);
        let face = state.face;
        drop(state);
        let device = self.name().to_owned();
        let gone = |errno| FactsError::Unreadable {
            device: device.clone(),
            detail: io::Error::from_raw_os_error(errno).to_string(),
        };
        match (hit, face) {
            (Some((Effect::Error(errno), _)), _) => Err(gone(errno)),
            (_, Face::Itself) => inner.facts(),
            (_, Face::Shared) => {
                let mut facts = inner.facts()?;
                facts.root.sysfs_path = format!("{NVME_HEADS}nvme-subsys0/{}", facts.root.name);
                Ok(facts)
            }
            (_, Face::Swapped) => {
                let mut facts = inner.facts()?;
                facts.root.name = "somebody-else".into();
                Ok(facts)
            }
            (_, Face::Changed) => Err(FactsError::Changed { device, detail: "disk sequence number 7 became 8".into() }),
            (_, Face::Gone) => Err(gone(libc::ENODEV)),
        }
    }
}
