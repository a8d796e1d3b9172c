//! The replica set: all replicas of a volume, used as one.
//!
//! A write goes to all replicas at once. A read goes to one replica and is verified. A block that does not verify is
//! read from another replica and repaired on the first one.
//!
//! The set knows no keys and no files: its caller says whether a block verifies. Which device may be written is decided
//! by the gate of its [`ApprovedDevice`]. Which root a volume goes on from is decided in
//! [`volume::recovery`](crate::volume::recovery). The parts: `queue` and `worker` (writes), `read`, `choice` and
//! `cache` (reads), `rejoin` and `dirty` (the return of a replica), [`quorum`] (how many replicas must be in sync).
//!
//! # Threads, queues, order
//!
//! Each replica has one queue and one thread, its worker. [`Mirror::submit`] puts a sealed run into the queue of every
//! replica that takes writes, and returns. Neighbours in a queue leave in one `pwritev`.
//!
//! [`Mirror::flush`] puts a flush behind everything submitted before it, and waits. A queue is first in, first out. So
//! when a replica has flushed, all that was submitted to it earlier is on stable storage.
//!
//! Workers never wait for each other. A caller waits for all of them when it flushes or publishes a root, and when too
//! much is in flight.
//!
//! # Failure
//!
//! A replica is **fenced** when
//!
//! * it fails a write or a flush,
//! * or the policy refuses it,
//! * or it does not answer for [`DEVICE_TIMEOUT_S`].
//!
//! The queue of a fenced replica is dropped, and nothing is written to the replica until it is taken back. The next
//! root records that it is no longer in sync. The other replicas go on. With none left in sync, every write fails, and
//! reads go on from the replicas that hold the last root.
//!
//! A read error fences no replica: the block is repaired from another one.
//!
//! # Slow reads
//!
//! Reads are made by the caller's thread. A disk that looks for a bad sector, or is about to die, answers after many
//! seconds, or when the kernel abandons the request, which can take minutes. md(4) waits for such a disk. Here a read
//! asks the replicas in three turns:
//!
//! 1. Each replica has a thirtieth of [`DEVICE_TIMEOUT_S`], two seconds. A replica that does not answer by then is
//!    silent: it is asked last until it has answered.
//! 2. When no replica has answered, each has the whole of that limit.
//! 3. When again none has answered, the first of them has as long as the kernel lets it. What could still be read does
//!    not fail.
//!
//! The only replica that can be read has as long as the kernel lets it from the start.
//!
//! # States and events
//!
//! | state | a write or flush fails, or is not answered | the policy refuses | [`rejoin`](Mirror::rejoin) | all is copied |
//! |---|---|---|---|---|
//! | in sync | faulty | refused | - | - |
//! | resyncing | faulty | refused | - | in sync |
//! | stale, missing, faulty, refused | - | - | as the list says | - |
//!
//! A row of the table that gets its first device begins as missing ([`Mirror::enrol`]), and so ends one whose replica is
//! removed ([`Mirror::retire`]).
//!
//! What [`rejoin`](Mirror::rejoin) makes of a replica:
//!
//! 1. In sync, if the replica lacks nothing by the dirty-time log (`dirty`).
//! 2. Else resyncing, if another replica is in sync, or if the replica itself is known to hold the last root still.
//! 3. Else the replica stays as it was.
//!
//! A resync that cannot be finished leaves its replica stale. A refused replica changes its state by `rejoin` alone,
//! not by the policy's new approval. `rejoin` takes a device back only when nothing that it was given before is still
//! under way.
//!
//! # When no replica is in sync
//!
//! A replica that holds the last root is then resynced from itself and from the other replicas that hold it, as far as
//! they can be read. What it took before it was refused, and never flushed, is read back, verified against the
//! metadata, and flushed.
//!
//! # A block that is being written
//!
//! Fresh blocks never overlap one another until a commit has passed. So what is in flight is a map of disjoint runs. A
//! reader of such a run waits until the run is written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::device::AlignedBuf;
use crate::limits::{DEVICE_TIMEOUT_S, LABEL_SIZE, REPLICAS_MAX};
use crate::policy::{ApprovedDevice, WriteError};
use crate::problem::{Code, Problem};
use crate::units::{BLOCK_SIZE, BlockAddr, Generation, Run, to_usize};

mod cache;
pub mod choice;
mod dirty;
mod error;
mod examine;
mod queue;
pub mod quorum;
mod read;
mod rejoin;
#[cfg(test)]
mod tests;
mod worker;

use cache::Cache;
use dirty::DirtyTimeLog;
pub use error::{Error, RejoinError, Result};
use queue::{Job, Queue, Ticket};
use worker::Worker;

/// Most bytes in flight before a writer waits.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Most jobs that wait for a replica while blocks are copied to it.
const COPIES_AHEAD_MAX: usize = 1024;

/// Longest wait for the replicas' threads at the end.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// State of a replica, as `scelle status` shows it (man/scelle.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Holds everything the current root refers to and receives every write.
    InSync,
    /// Receives every write while what it lacks is copied to it.
    Resyncing,
    /// Left behind by earlier commits; neither read nor written.
    Stale,
    /// Not there.
    Missing,
    /// Failed a write or a flush, or did not answer.
    Faulty,
    /// No longer approved by the policy.
    Refused,
}

impl State {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InSync => "in-sync",
            Self::Resyncing => "resyncing",
            Self::Stale => "stale",
            Self::Missing => "missing",
            Self::Faulty => "faulty",
            Self::Refused => "refused",
        }
    }
}

/// Which of its incarnations a replica is in: each time that the replica is taken back, a new one begins. A resync that
/// was begun for one incarnation is void for the next, because what it had queued was dropped between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incarnation(u64);

/// Errors seen on a replica since the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ErrorCounts {
    /// Reads that the device failed.
    pub read: u64,
    /// Writes or flushes that the device failed.
    pub write: u64,
    /// Blocks that did not verify.
    pub integrity: u64,
    /// Blocks that were written anew from another replica.
    pub repaired: u64,
}

#[derive(Default)]
struct Counters {
    read: AtomicU64,
    integrity: AtomicU64,
}

#[derive(Default)]
struct Replica {
    counters: Counters,
    reading: AtomicUsize,
}

/// The replicas of a volume, by their index in the replica table.
pub struct Mirror {
    /// As many as a volume can have, in use or not.
    replicas: Vec<Replica>,
    /// How many rows of the replica table are in use, up to the last one.
    len: AtomicUsize,
    shared: Arc<Shared>,
    timeout: Duration,
    /// The replicas that hold the last root: they are read when none is in sync any more.
    durable: AtomicU64,
    /// Whether damaged blocks are written anew.
    repairing: AtomicBool,
    /// Blocks that were read lately, when some are kept.
    cache: OnceLock<Cache>,
}

/// What the replicas' threads and the callers share.
struct Shared {
    state: Mutex<Inner>,
    /// A run is written everywhere, or a replica was fenced.
    written: Condvar,
    /// A flush is done everywhere, or a replica was fenced.
    flushed: Condvar,
    /// The replicas in sync, as `state` has them. It can be read without the lock of `state`.
    in_sync: AtomicU64,
    /// Each replica's worker; none while the replica is missing. Locked after `state`.
    workers: RwLock<Vec<Option<Arc<Worker>>>>,
}

struct Inner {
    replicas: Vec<Status>,
    /// Runs submitted and not yet written everywhere, by their first block: how many blocks, and how many replicas are
    /// still writing.
    in_flight: BTreeMap<u64, (u64, usize)>,
    in_flight_bytes: usize,
    /// Threads that wait for [`Shared::written`]. Without any, the end of a write is nobody's business, and a
    /// notification would be a system call for nothing.
    waiting_for_writes: usize,
    /// Flushes that a caller waits for.
    tickets: Vec<Arc<Ticket>>,
    dirty: DirtyTimeLog,
}

#[derive(Clone)]
struct Status {
    state: State,
    incarnation: Incarnation,
    reason: Option<String>,
    since: SystemTime,
    /// Writes and flushes that the worker saw fail.
    failed: u64,
    /// Blocks that the worker wrote anew.
    repaired: u64,
    /// The round of the last flush that the replica has done while in sync (`dirty`).
    flushed: u64,
    /// The last root that the replica took part in while the volume is open.
    last_root: Option<Generation>,
    /// A root of this mount is on the replica, so that nobody goes on from the roots before. While it is resynced it
    /// gets no other.
    told: bool,
}

impl Status {
    fn new(state: State) -> Self {
        Self {
            state,
            incarnation: Incarnation::default(),
            reason: None,
            since: SystemTime::now(),
            failed: 0,
            repaired: 0,
            flushed: if state == State::InSync { dirty::FIRST } else { dirty::NEVER },
            last_root: None,
            told: false,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock()
    }

    fn worker(&self, index: usize) -> Option<Arc<Worker>> {
        self.workers.read().get(index)?.clone()
    }

    /// To be called with the lock, after each change of a state.
    fn publish(&self, inner: &Inner) {
        self.in_sync.store(inner.in_sync_mask(), Ordering::Release);
    }

    /// A replica was fenced: every waiting thread looks again.
    fn notify_all(&self) {
        self.written.notify_all();
        self.flushed.notify_all();
    }
}

impl Inner {
    fn writable(&self) -> impl Iterator<Item = usize> + '_ {
        self.replicas
            .iter()
            .enumerate()
            .filter(|(_, s)| matches!(s.state, State::InSync | State::Resyncing))
            .map(|(i, _)| i)
    }

    fn takes_writes(&self, index: usize) -> bool {
        self.replicas.get(index).is_some_and(|s| matches!(s.state, State::InSync | State::Resyncing))
    }

    fn is_resyncing(&self, index: usize, incarnation: Incarnation) -> bool {
        self.replicas.get(index).is_some_and(|s| s.state == State::Resyncing && s.incarnation == incarnation)
    }

    fn writable_mask(&self) -> u64 {
        self.writable().fold(0, |mask, index| mask | 1 << index)
    }

    fn overlaps(&self, run: Run) -> bool {
        self.in_flight.range(..run.end().0).next_back().is_some_and(|(start, (blocks, _))| start + blocks > run.addr.0)
    }

    /// One replica is done with a submitted run, well or badly.
    fn finish(&mut self, start: u64) {
        if let Some((blocks, waiting)) = self.in_flight.get_mut(&start) {
            *waiting -= 1;
            if *waiting == 0 {
                self.in_flight_bytes -= to_usize(*blocks) * BLOCK_SIZE;
                self.in_flight.remove(&start);
            }
        }
    }

    /// The replicas in sync.
    fn in_sync_mask(&self) -> u64 {
        mask(self.replicas.iter().map(|status| status.state == State::InSync))
    }

    /// The replicas that are resynced and have no root yet that says so.
    fn untold_mask(&self) -> u64 {
        mask(self.replicas.iter().map(|status| status.state == State::Resyncing && !status.told))
    }

    /// A ticket for a job of the replicas `asked`.
    fn ticket(&mut self, round: Option<u64>, asked: u64) -> Arc<Ticket> {
        let asked = AtomicU64::new(asked);
        let ticket = Arc::new(Ticket { asked, done: AtomicU64::new(0), round });
        self.tickets.push(ticket.clone());
        ticket
    }

    /// Whether every replica that was asked to flush has done so or takes no writes any more.
    fn flushed(&self, ticket: &Ticket) -> bool {
        ticket.asked.load(Ordering::Acquire) & self.writable_mask() & !ticket.done.load(Ordering::Acquire) == 0
    }

    fn reasons(&self) -> String {
        let reasons: Vec<_> = self
            .replicas
            .iter()
            .enumerate()
            .map(|(i, s)| format!("replica {i} is {:?}: {}", s.state, s.reason.as_deref().unwrap_or("-")))
            .collect();
        reasons.join("; ")
    }
}

/// Bit `i` for the `i`th true.
fn mask(bits: impl Iterator<Item = bool>) -> u64 {
    bits.enumerate().fold(0, |mask, (i, bit)| mask | u64::from(bit) << i)
}

/// Byte offset on the device of a block of the data area.
pub fn device_offset(addr: BlockAddr) -> u64 {
    LABEL_SIZE + addr.bytes()
}

impl Mirror {
    /// A replica set; `replicas[i]` is the replica of index `i` with its state, and no device when it is missing.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(replicas: Vec<(Option<Arc<ApprovedDevice>>, State)>) -> std::io::Result<Self> {
        Self::with_timeout(replicas, Duration::from_secs(DEVICE_TIMEOUT_S))
    }

    /// As [`Mirror::new`], with another bound on one device's answer.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn with_timeout(
        replicas: Vec<(Option<Arc<ApprovedDevice>>, State)>,
        timeout: Duration,
    ) -> std::io::Result<Self> {
        let in_sync = mask(replicas.iter().map(|(_, state)| *state == State::InSync));
        let inner = Inner {
            replicas: replicas.iter().map(|(_, state)| Status::new(*state)).collect(),
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            waiting_for_writes: 0,
            tickets: Vec::new(),
            dirty: DirtyTimeLog::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(inner),
            written: Condvar::new(),
            flushed: Condvar::new(),
            in_sync: AtomicU64::new(in_sync),
            workers: RwLock::default(),
        });
        let mirror = Self {
            replicas: (0..replicas.len().max(REPLICAS_MAX)).map(|_| Replica::default()).collect(),
            len: AtomicUsize::new(replicas.len()),
            shared,
            timeout,
            durable: AtomicU64::new(in_sync),
            repairing: AtomicBool::new(true),
            cache: OnceLock::new(),
        };
        for (index, (device, _)) in replicas.into_iter().enumerate() {
            let worker = device.map(|device| Worker::start(index, device, &mirror.shared)).transpose()?;
            mirror.shared.workers.write().push(worker);
        }
        Ok(mirror)
    }

    /// To be called when the root of this generation is durable on these `replicas`: they are read when none is in sync
    /// any more.
    pub(crate) fn set_durable(&self, replicas: u64, generation: Generation) {
        self.durable.store(replicas, Ordering::Release);
        let mut inner = self.shared.lock();
        for (index, status) in inner.replicas.iter_mut().enumerate() {
            if replicas >> index & 1 == 1 && status.state == State::InSync {
                status.last_root = Some(generation);
            }
        }
    }

    /// The last root that a replica took part in while the volume is open.
    pub fn last_root(&self, index: usize) -> Option<Generation> {
        self.shared.lock().replicas.get(index)?.last_root
    }

    /// From now on damaged blocks are not repaired: a volume opened read-only writes nothing at all.
    pub fn stop_repairing(&self) {
        self.repairing.store(false, Ordering::Release);
    }

    /// From now on short reads take their neighbours along, and up to `bytes` of what was read stay in memory, sealed.
    pub fn cache_reads(&self, bytes: u64) {
        if let Some(cache) = Cache::new(bytes) {
            self.cache.get_or_init(|| cache);
        }
    }

    /// Short reads that found everything in memory, and those that did not, since the mount.
    pub fn cache_counts(&self) -> (u64, u64) {
        self.cache.get().map_or((0, 0), Cache::counts)
    }

    /// Number of rows of the replica table that are in use, up to the last one; their replicas may be missing.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device of a replica, when there is one.
    pub fn device(&self, index: usize) -> Option<Arc<ApprovedDevice>> {
        Some(self.shared.worker(index)?.device.clone())
    }

    /// Name of a replica's device; empty when there is none.
    pub fn device_name(&self, index: usize) -> String {
        self.device(index).map_or(String::new(), |device| device.name().to_owned())
    }

    /// State of a replica and why it is so.
    pub fn state(&self, index: usize) -> (State, Option<String>) {
        let inner = self.shared.lock();
        inner.replicas.get(index).map_or((State::Missing, None), |s| (s.state, s.reason.clone()))
    }

    /// Since when a replica has been in its state, by the host's clock; at the earliest, since the mount.
    pub fn since(&self, index: usize) -> Option<SystemTime> {
        self.shared.lock().replicas.get(index).map(|status| status.since)
    }

    /// Whether the last root names a replica as one that holds everything it refers to.
    pub fn holds_last_root(&self, index: usize) -> bool {
        index < self.len() && self.durable.load(Ordering::Acquire) >> index & 1 == 1
    }

    /// Errors seen on a replica since the mount.
    pub fn errors(&self, index: usize) -> ErrorCounts {
        let Some(replica) = self.replicas.get(index) else { return ErrorCounts::default() };
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let c = &replica.counters;
        let by_worker = |inner: &Inner| inner.replicas.get(index).map_or((0, 0), |s| (s.failed, s.repaired));
        let (write, repaired) = by_worker(&self.shared.lock());
        ErrorCounts { read: get(&c.read), write, integrity: get(&c.integrity), repaired }
    }

    /// The replicas in sync at this moment, as the root records them: bit `i` is replica `i`.
    pub fn in_sync(&self) -> u64 {
        self.shared.in_sync.load(Ordering::Acquire)
    }

    /// Records why a replica that is not in the set is not taken back. Returns whether the reason is a new one.
    pub fn explain(&self, index: usize, reason: &str) -> bool {
        let mut inner = self.shared.lock();
        if inner.takes_writes(index) {
            return false;
        }
        let Some(status) = inner.replicas.get_mut(index) else { return false };
        status.reason.replace(reason.to_owned()).as_deref() != Some(reason)
    }

    /// What state each replica is in and why, in words.
    pub fn reasons(&self) -> String {
        self.shared.lock().reasons()
    }

    /// A sentence that no replica is in sync, and what state each is in instead.
    pub fn nothing_in_sync(&self) -> String {
        format!("no replica is in sync: {}", self.reasons())
    }

    /// Queues a sealed run for every replica that takes writes. Returns when the run is queued. Waits first while too
    /// much is in flight, or while a run that overlaps is.
    ///
    /// # Errors
    /// When no in-sync replica takes writes.
    pub fn submit(&self, addr: BlockAddr, sealed: Arc<AlignedBuf>) -> Result<()> {
        let blocks = (sealed.len() / BLOCK_SIZE) as u64;
        let run = Run::new(addr, blocks);
        let mut inner =
            self.wait_for_writes(|inner| inner.in_flight_bytes < IN_FLIGHT_BYTES_MAX && !inner.overlaps(run));
        if !inner.replicas.iter().any(|s| s.state == State::InSync) {
            return Err(Error::NoReplica(inner.reasons()));
        }
        let targets = inner.writable().count();
        inner.in_flight.insert(addr.0, (blocks, targets));
        inner.in_flight_bytes += sealed.len();
        inner.dirty.stamp(run);
        let write = || Job::Write { offset: device_offset(addr), data: sealed.clone(), run: Some(addr.0) };
        let targets = inner.writable_mask();
        self.queue(inner, targets, |_| [write()]);
        Ok(())
    }

    /// Queues jobs for the replicas `targets`, which take writes. The workers are woken after the lock is released,
    /// because the lock is the first thing that they want.
    fn queue<const N: usize>(&self, inner: MutexGuard<'_, Inner>, targets: u64, jobs: impl Fn(usize) -> [Job; N]) {
        let workers = self.shared.workers.read();
        let mut asleep: u64 = 0;
        for index in inner.writable().filter(|index| targets >> index & 1 == 1) {
            // Invariant: a replica that takes writes has a worker.
            let Some(Some(worker)) = workers.get(index) else { continue };
            for job in jobs(index) {
                asleep |= u64::from(worker.queue.push(job)) << index;
            }
        }
        drop(inner);
        for (index, worker) in workers.iter().enumerate() {
            if let Some(worker) = worker
                && asleep >> index & 1 == 1
            {
                worker.queue.wake();
            }
        }
    }

    /// Returns when everything submitted so far is on stable storage of every replica that is still in sync. A replica
    /// that fails is fenced meanwhile. A replica that is being resynced is not waited for: it is flushed once, when all is
    /// copied ([`Mirror::flush_resynced`]).
    ///
    /// Returns the replicas that have flushed: bit `i` for replica `i`.
    ///
    /// # Errors
    /// When no in-sync replica is left.
    pub fn flush(&self) -> Result<u64> {
        Self::enough(&self.flush_all())
    }

    /// Makes bytes outside the data area (a root) durable at the byte `offsets` of every replica that is still in sync,
    /// and of every replica that is being resynced and has no root of this mount yet.
    /// They are written behind everything else, but nothing else need be durable then. Returns as
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn publish(&self, data: &Arc<AlignedBuf>, offsets: impl Fn(usize) -> [u64; 2]) -> Result<u64> {
        let mut inner = self.shared.lock();
        let asked = inner.in_sync_mask() | inner.untold_mask();
        let ticket = inner.ticket(None, asked);
        self.queue(inner, asked, |index| {
            let (offsets, data, ticket) = (offsets(index), data.clone(), ticket.clone());
            [Job::Publish { offsets, data, ticket }]
        });
        Self::enough(&self.wait_for_ticket(&ticket))
    }

    /// A [`flush`](Self::flush) that takes a root along. It writes the root at both byte `offsets` of every replica
    /// that is still in sync, in no order with what was submitted before. Then it makes all of it durable. Returns as
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn flush_with(&self, data: &Arc<AlignedBuf>, offsets: impl Fn(usize) -> [u64; 2]) -> Result<u64> {
        let mut inner = self.shared.lock();
        let round = inner.dirty.next_round();
        let asked = inner.in_sync_mask();
        let ticket = inner.ticket(Some(round), asked);
        self.queue(inner, asked, |index| {
            let [a, b] = offsets(index).map(|offset| Job::Write { offset, data: data.clone(), run: None });
            [a, b, Job::Flush(ticket.clone())]
        });
        Self::enough(&self.wait_for_ticket(&ticket))
    }

    fn enough((inner, done): &(MutexGuard<'_, Inner>, u64)) -> Result<u64> {
        if inner.replicas.iter().any(|s| s.state == State::InSync) {
            Ok(*done)
        } else {
            Err(Error::NoReplica(inner.reasons()))
        }
    }

    /// Flushes a replica at the end of its resync. Returns whether it has, and is still being resynced.
    pub fn flush_resynced(&self, index: usize, incarnation: Incarnation) -> bool {
        let mut inner = self.shared.lock();
        if !inner.is_resyncing(index, incarnation) {
            return false;
        }
        let asked = 1 << index;
        let ticket = inner.ticket(None, asked);
        self.queue(inner, asked, |_| [Job::Flush(ticket.clone())]);
        self.wait_for_ticket(&ticket).1 & asked != 0
    }

    /// Makes a root durable at the byte `offsets` of a replica at the end of its resync. Returns whether it has it, and is
    /// still being resynced.
    pub fn publish_resynced(
        &self,
        index: usize,
        incarnation: Incarnation,
        data: &Arc<AlignedBuf>,
        offsets: [u64; 2],
    ) -> bool {
        let mut inner = self.shared.lock();
        if !inner.is_resyncing(index, incarnation) {
            return false;
        }
        let asked = 1 << index;
        let ticket = inner.ticket(None, asked);
        self.queue(inner, asked, |_| [Job::Publish { offsets, data: data.clone(), ticket: ticket.clone() }]);
        self.wait_for_ticket(&ticket).1 & asked != 0
    }

    fn flush_all(&self) -> (MutexGuard<'_, Inner>, u64) {
        let mut inner = self.shared.lock();
        let round = inner.dirty.next_round();
        let asked = inner.in_sync_mask();
        let ticket = inner.ticket(Some(round), asked);
        self.queue(inner, asked, |_| [Job::Flush(ticket.clone())]);
        self.wait_for_ticket(&ticket)
    }

    fn wait_for_ticket(&self, ticket: &Arc<Ticket>) -> (MutexGuard<'_, Inner>, u64) {
        let mut inner = self.wait(self.shared.lock(), &self.shared.flushed, |inner| inner.flushed(ticket));
        inner.tickets.retain(|other| !Arc::ptr_eq(other, ticket));
        (inner, ticket.done.load(Ordering::Acquire))
    }

    /// Waits until `done` holds; only the end of a write changes that.
    fn wait_for_writes(&self, done: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let mut inner = self.shared.lock();
        if done(&inner) {
            return inner;
        }
        inner.waiting_for_writes += 1;
        for worker in (0..self.len()).filter_map(|index| self.shared.worker(index)) {
            if worker.queue.unplug() {
                worker.queue.wake();
            }
        }
        let mut inner = self.wait(inner, &self.shared.written, done);
        inner.waiting_for_writes -= 1;
        inner
    }

    /// Waits until `done` holds. A replica that works on one job for longer than the limit is fenced, so the wait
    /// always ends.
    fn wait<'a>(
        &self,
        mut inner: MutexGuard<'a, Inner>,
        changed: &Condvar,
        done: impl Fn(&Inner) -> bool,
    ) -> MutexGuard<'a, Inner> {
        while !done(&inner) {
            changed.wait_for(&mut inner, self.timeout / 4);
            for index in 0..self.len() {
                let Some(worker) = self.shared.worker(index) else { continue };
                if worker.queue.busy_for() > self.timeout {
                    let reason = format!("did not answer for {} s", self.timeout.as_secs());
                    self.fence_locked(&mut inner, index, State::Faulty, &reason);
                }
            }
        }
        inner
    }

    /// Takes a replica out of the set: nothing more is written to it or read from it.
    pub fn fence(&self, index: usize, state: State, reason: &str) {
        self.fence_locked(&mut self.shared.lock(), index, state, reason);
    }

    /// Takes a replica out of the set as stale, unless no other is in sync. Returns whether it is out.
    pub fn withdraw(&self, index: usize, reason: &str) -> bool {
        let mut inner = self.shared.lock();
        let has_other = inner.in_sync_mask() & !(1 << index) != 0;
        if has_other {
            self.fence_locked(&mut inner, index, State::Stale, reason);
        }
        has_other
    }

    /// As [`Mirror::fence`], after a write to the replica outside of its queue did not succeed.
    pub fn failed(&self, index: usize, error: &WriteError) {
        let (state, reason) = worker::outcome(error);
        self.fence(index, state, &reason);
    }

    fn fence_locked(&self, inner: &mut Inner, index: usize, state: State, reason: &str) {
        let Some(worker) = self.shared.worker(index).filter(|_| inner.takes_writes(index)) else { return };
        worker.device.fence(Problem::new(Code::Fenced, reason));
        fence(inner, index, &worker.queue, state, reason);
        self.shared.publish(inner);
        self.shared.notify_all();
    }

    /// Ends the workers once their queues are empty, so that the devices are free. The wait is bounded: a thread that
    /// hangs in the kernel is left behind.
    pub fn close(&self) {
        let workers = std::mem::take(&mut *self.shared.workers.write());
        workers.iter().flatten().for_each(|worker| worker.end());
        let deadline = Instant::now() + CLOSE_WAIT;
        workers.iter().flatten().for_each(|worker| worker.join(deadline));
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.close();
    }
}

fn fence(inner: &mut Inner, index: usize, queue: &Queue, state: State, reason: &str) {
    let status = &mut inner.replicas[index];
    if !matches!(status.state, State::InSync | State::Resyncing) {
        return;
    }
    log::error!("replica {index} is fenced: {reason}");
    status.state = state;
    status.since = SystemTime::now();
    status.reason = Some(reason.to_owned());
    for start in queue.drop_all() {
        inner.finish(start);
    }
    for ticket in &inner.tickets {
        ticket.asked.fetch_and(!(1 << index), Ordering::Release);
    }
}
