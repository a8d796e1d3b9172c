//! The return of a replica into the set: it is taken back, given what it lacks, and in sync.
//!
//! Whether a device may come back at all is decided in `volume::members`, and so is what has to be copied. Here are the
//! states, and the order of what is written to the replica.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::queue::Job;
use super::worker::Worker;
use super::{COPIES_AHEAD_MAX, Incarnation, Inner, Mirror, RejoinError, State, Status, device_offset, dirty};
use crate::device::AlignedBuf;
use crate::policy::ApprovedDevice;
use crate::units::BlockAddr;

impl Mirror {
    /// Adds the row `index`, below [`REPLICAS_MAX`](crate::limits::REPLICAS_MAX), for a replica that is missing until it is taken in.
    pub fn enrol(&self, index: usize) {
        let mut inner = self.shared.lock();
        let mut workers = self.shared.workers.write();
        while inner.replicas.len() <= index {
            inner.replicas.push(Status::new(State::Missing));
            workers.push(None);
        }
        self.len.fetch_max(inner.replicas.len(), Ordering::AcqRel);
    }

    /// Has a replica that is not in use leave its row, which is as if it had never been used. Its device is closed when
    /// nobody else holds it.
    pub fn retire(&self, index: usize) {
        // Dropped after the lock is released, because closing a device can take its time.
        let old = self.shared.worker(index);
        let mut inner = self.shared.lock();
        if inner.takes_writes(index) {
            return;
        }
        let Some(status) = inner.replicas.get_mut(index) else { return };
        // A resync of before is void for whoever comes next.
        let incarnation = Incarnation(status.incarnation.0 + 1);
        *status = Status { incarnation, ..Status::new(State::Missing) };
        if let Some(place) = self.shared.workers.write().get_mut(index) {
            *place = None;
        }
        if let Some(replica) = self.replicas.get(index) {
            replica.counters.read.store(0, Ordering::Relaxed);
            replica.counters.integrity.store(0, Ordering::Relaxed);
        }
        drop(inner);
        if let Some(old) = old {
            old.end();
        }
    }

    /// Writes `data` at a byte offset outside the data area of a replica in use, and makes it durable. Returns whether it
    /// is. A replica that fails, or does not answer in time, is fenced.
    pub fn write_label(&self, index: usize, offset: u64, data: &Arc<AlignedBuf>) -> bool {
        let mut inner = self.shared.lock();
        if !inner.takes_writes(index) {
            return false;
        }
        let asked = 1 << index;
        let ticket = inner.ticket(None, asked);
        self.queue(inner, asked, |_| [Job::Label { offset, data: data.clone(), ticket: ticket.clone() }]);
        self.wait_for_ticket(&ticket).1 & asked != 0
    }

    /// Takes back a replica that was not in the set: with the device that it had, or with another that shows the same
    /// replica. Returns the replica's new state and incarnation.
    ///
    /// * **In sync**, when the replica lacks nothing.
    /// * **Resyncing** otherwise. Then the caller copies everything for which [`is_missed`](Self::is_missed) holds, and
    ///   [promotes](Self::promote) the replica.
    ///
    /// `knows_what_it_has` says that the replica's content is what it was when it left. Without that the replica counts
    /// as one that lacks everything.
    ///
    /// `first`, bytes and their two byte offsets, is made durable on the replica before anything else is written.
    ///
    /// # Errors
    /// [`RejoinError`]; then nothing has changed. The device is written to only as far as the policy's gate is open.
    pub fn rejoin(
        &self,
        index: usize,
        device: Option<Arc<ApprovedDevice>>,
        knows_what_it_has: bool,
        first: Option<([u64; 2], Arc<AlignedBuf>)>,
    ) -> std::result::Result<(State, Incarnation), RejoinError> {
        let fresh = device.map(|device| Worker::start(index, device, &self.shared)).transpose();
        let fresh = fresh.map_err(|_| RejoinError::NoDevice)?;
        let outcome = self.rejoin_with(index, fresh.clone(), knows_what_it_has, first);
        if let (Err(_), Some(worker)) = (&outcome, fresh) {
            worker.end();
        }
        outcome
    }

    fn rejoin_with(
        &self,
        index: usize,
        fresh: Option<Arc<Worker>>,
        knows_what_it_has: bool,
        first: Option<([u64; 2], Arc<AlignedBuf>)>,
    ) -> std::result::Result<(State, Incarnation), RejoinError> {
        // Dropped after the lock is released, because closing a device can take its time.
        let old = self.shared.worker(index);
        let mut inner = self.shared.lock();
        let others = inner.replicas.iter().any(|status| status.state == State::InSync);
        let is_source = others || knows_what_it_has && self.holds_last_root(index);
        let Some(status) = inner.replicas.get(index).cloned() else { return Err(RejoinError::NoDevice) };
        if inner.takes_writes(index) {
            return Err(RejoinError::InUse);
        }
        let worker = fresh.clone().or_else(|| old.clone()).ok_or(RejoinError::NoDevice)?;
        if fresh.is_none() && !(worker.queue.is_at_rest() && worker.device.writes_in_flight() == 0) {
            return Err(RejoinError::StillWriting);
        }
        let since = if knows_what_it_has { status.flushed } else { dirty::NEVER };
        let state = match (inner.dirty.is_any_missed(since), is_source) {
            (false, _) => State::InSync,
            (true, true) => State::Resyncing,
            (true, false) => return Err(RejoinError::NoSource),
        };
        let status = &mut inner.replicas[index];
        (status.state, status.reason, status.flushed) = (state, None, since);
        // Its newest root may still name it. The next one does not.
        status.told = false;
        status.incarnation = Incarnation(status.incarnation.0 + 1);
        let incarnation = status.incarnation;
        if let (Some(_), Some(old)) = (&fresh, &old) {
            old.end();
        }
        worker.device.lift_fence();
        if let Some((offsets, data)) = first
            && worker.queue.push(Job::Publish { offsets, data, ticket: Arc::default() })
        {
            worker.queue.wake();
        }
        if let Some(place) = self.shared.workers.write().get_mut(index) {
            *place = Some(worker);
        }
        self.shared.publish(&inner);
        Ok((state, incarnation))
    }

    /// Whether a replica that was taken back may lack this block (`dirty`).
    pub fn is_missed(&self, index: usize, addr: BlockAddr) -> bool {
        let inner = self.shared.lock();
        inner.replicas.get(index).is_some_and(|status| inner.dirty.is_missed(addr, status.flushed))
    }

    /// Queues a block for a replica that is being resynced, behind all that the replica was given before. What is
    /// written to the same place later comes later on the replica, too.
    ///
    /// Waits first while too much is queued. Does nothing when the replica is not being resynced in this incarnation
    /// any more. A failure fences the replica, as any failed write does.
    pub fn copy(&self, index: usize, incarnation: Incarnation, addr: BlockAddr, sealed: Arc<AlignedBuf>) {
        let Some(worker) = self.shared.worker(index) else { return };
        let resyncing = |inner: &Inner| inner.is_resyncing(index, incarnation);
        let inner = self.wait_for_writes(|inner| !resyncing(inner) || worker.queue.len() < COPIES_AHEAD_MAX);
        if !resyncing(&inner) {
            return;
        }
        let asleep = worker.queue.push(Job::Write { offset: device_offset(addr), data: sealed, run: None });
        drop(inner);
        if asleep {
            worker.queue.wake();
        }
    }

    /// Whether a replica is being resynced, and has not left the set since that incarnation began.
    pub fn is_resyncing(&self, index: usize, incarnation: Incarnation) -> bool {
        self.shared.lock().is_resyncing(index, incarnation)
    }

    /// Ends a resync that is complete: the replica is in sync from now on. Not when it was fenced since that
    /// incarnation began, even if it has come back. Returns whether it is in sync.
    pub fn promote(&self, index: usize, incarnation: Incarnation) -> bool {
        let mut inner = self.shared.lock();
        if !inner.is_resyncing(index, incarnation) {
            return false;
        }
        let status = &mut inner.replicas[index];
        (status.state, status.since) = (State::InSync, SystemTime::now());
        self.shared.publish(&inner);
        true
    }

    /// Ends a resync that cannot be finished: the replica is stale, unless it was fenced since that incarnation began.
    pub fn abandon(&self, index: usize, incarnation: Incarnation, reason: &str) {
        let mut inner = self.shared.lock();
        if inner.is_resyncing(index, incarnation) {
            self.fence_locked(&mut inner, index, State::Stale, reason);
        }
    }
}
