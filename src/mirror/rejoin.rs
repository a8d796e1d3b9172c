//! How a replica comes back into the set: taken back, given what it lacks, in sync.

use std::sync::Arc;
use std::time::SystemTime;

use super::lane::Lane;
use super::queue::Job;
use super::{COPIES_AHEAD_MAX, Inner, Mirror, RejoinError, State, Stay, device_offset, written};
use crate::device::AlignedBuf;
use crate::policy::ApprovedDevice;
use crate::units::BlockAddr;

impl Mirror {
    /// Takes a replica back that was not in the set: with the device that it had, or with another that shows the same
    /// replica. `knows_what_it_has` says that its content is what it was when it left; else it counts as lacking everything
    /// that is not told otherwise. Returns its new state and stay: in sync when it lacks nothing, else resyncing; then everything
    /// for which [`is_missed`](Self::is_missed) holds is to be copied to it, and it is to be [promoted](Self::promote).
    ///
    /// `first`, bytes and their two byte offsets, is made durable on it before anything else is written.
    ///
    /// # Errors
    /// [`RejoinError`]; then nothing has changed. The device is written to only as far as the policy's gate is open.
    pub fn rejoin(
        &self,
        index: usize,
        device: Option<Arc<ApprovedDevice>>,
        knows_what_it_has: bool,
        first: Option<([u64; 2], Arc<AlignedBuf>)>,
    ) -> std::result::Result<(State, Stay), RejoinError> {
        let fresh = device.map(|device| Lane::start(index, device, &self.shared)).transpose();
        let fresh = fresh.map_err(|_| RejoinError::NoDevice)?;
        let outcome = self.rejoin_with(index, fresh.clone(), knows_what_it_has, first);
        if let (Err(_), Some(lane)) = (&outcome, fresh) {
            lane.end();
        }
        outcome
    }

    fn rejoin_with(
        &self,
        index: usize,
        fresh: Option<Arc<Lane>>,
        knows_what_it_has: bool,
        first: Option<([u64; 2], Arc<AlignedBuf>)>,
    ) -> std::result::Result<(State, Stay), RejoinError> {
        // Let go of after the lock: closing a device can take its time.
        let old = self.shared.lane(index);
        let mut inner = self.shared.lock();
        let others = inner.replicas.iter().any(|status| status.state == State::InSync);
        let is_source = others || knows_what_it_has && self.holds_last_root(index);
        let Some(status) = inner.replicas.get(index).cloned() else { return Err(RejoinError::NoDevice) };
        if inner.takes_writes(index) {
            return Err(RejoinError::InUse);
        }
        let lane = fresh.clone().or_else(|| old.clone()).ok_or(RejoinError::NoDevice)?;
        if fresh.is_none() && !(lane.queue.is_at_rest() && lane.device.writes_in_flight() == 0) {
            return Err(RejoinError::StillWriting);
        }
        let since = if knows_what_it_has { status.flushed } else { written::NEVER };
        let state = match (inner.written.is_any_missed(since), is_source) {
            (false, _) => State::InSync,
            (true, true) => State::Resyncing,
            (true, false) => return Err(RejoinError::NoSource),
        };
        let status = &mut inner.replicas[index];
        (status.state, status.reason, status.flushed) = (state, None, since);
        status.stay = Stay(status.stay.0 + 1);
        let stay = status.stay;
        if let (Some(_), Some(old)) = (&fresh, &old) {
            old.end();
        }
        lane.device.lift_fence();
        if let Some((offsets, data)) = first
            && lane.queue.push(Job::Publish { offsets, data, ticket: Arc::default() })
        {
            lane.queue.wake();
        }
        if let Some(place) = self.shared.lanes.write().get_mut(index) {
            *place = Some(lane);
        }
        self.shared.publish(&inner);
        Ok((state, stay))
    }

    /// Whether a replica that is taken back may lack this block (`written`).
    pub fn is_missed(&self, index: usize, addr: BlockAddr) -> bool {
        let inner = self.shared.lock();
        inner.replicas.get(index).is_some_and(|status| inner.written.is_missed(addr, status.flushed))
    }

    /// Queues a block for a replica that is being resynced, behind all that it was given before: what is written to the same
    /// place later comes later there too. Waits first while too much is queued; does nothing when the replica is not being
    /// resynced in this stay any more. A failure fences it, as any failed write.
    pub fn copy(&self, index: usize, stay: Stay, addr: BlockAddr, sealed: Arc<AlignedBuf>) {
        let Some(lane) = self.shared.lane(index) else { return };
        let resyncing = |inner: &Inner| inner.is_resyncing(index, stay);
        let inner = self.wait_for_writes(|inner| !resyncing(inner) || lane.queue.len() < COPIES_AHEAD_MAX);
        if !resyncing(&inner) {
            return;
        }
        let asleep = lane.queue.push(Job::Write { offset: device_offset(addr), data: sealed, run: None });
        drop(inner);
        if asleep {
            lane.queue.wake();
        }
    }

    /// Whether a replica is being resynced, and has not left the set since the stay began.
    pub fn is_resyncing(&self, index: usize, stay: Stay) -> bool {
        self.shared.lock().is_resyncing(index, stay)
    }

    /// A resync is complete: the replica is in sync, unless it was fenced since the stay began, also when it is back. Says
    /// whether it is.
    pub fn promote(&self, index: usize, stay: Stay) -> bool {
        let mut inner = self.shared.lock();
        if !inner.is_resyncing(index, stay) {
            return false;
        }
        let status = &mut inner.replicas[index];
        (status.state, status.since) = (State::InSync, SystemTime::now());
        self.shared.publish(&inner);
        true
    }

    /// A resync cannot be finished: the replica is stale, unless it was fenced since the stay began.
    pub fn give_up(&self, index: usize, stay: Stay, reason: &str) {
        let mut inner = self.shared.lock();
        if inner.is_resyncing(index, stay) {
            self.fence_locked(&mut inner, index, State::Stale, reason);
        }
    }
}
