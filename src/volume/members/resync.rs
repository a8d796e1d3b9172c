//! Bringing a replica that was left behind back in sync, while the volume is in use.
//!
//! From the moment at which it takes part, the replica gets every write, as the others do: what is missing is what the metadata
//! of that moment refers to, and what writes that were under way had sealed before: they are waited for
//! ([`Fs::wait_for_writers`](crate::fs::Fs::wait_for_writers)). That is read from the replicas in sync, verified, and written to it, but for what it has:
//! units of mounts before the last one in which the replica was in sync, and, when it was in sync in this mount, what lies
//! where nothing was written since ([`Mirror::is_missed`](crate::mirror::Mirror::is_missed)). Blocks that are freed meanwhile are not
//! used again before the copying of their part is done (a reader is held), so nothing new is overwritten with something
//! old. When all is copied and flushed the replica is in sync, and the next root says so. If the power fails
//! before, it is stale again and the next mount begins anew.
//!
//! # When all replicas were refused while something was on its way
//!
//! Then there is none in sync to copy from, and what the last commit did not make durable is, if anywhere, in the devices' caches:
//! a refused device may not be flushed. The metadata is still in memory, and it authenticates every block. So the first one that
//! comes back and holds the last root is resynced from itself and from whoever else can be read: each block that may not be
//! durable is read, verified, written again, and flushed. If all of them verify, nothing is lost, and the volume goes on.
//!
//! A block that verifies nowhere (it waited in a queue when the gates closed) is lost, and the volume then has to be mounted
//! again ([`is_lost`]). Three ways around that were weighed. Keeping every block in memory until it is flushed would save them; but
//! under load that is what the devices take in a second, hundreds of megabytes, for an event that is announced days before (a registry's end is
//! foreseen, and everything committed in time). Going back to the last root under running applications would show them files as
//! they were before what they have been told was done: only an unmount ends what they believe. And a commit that was cut off is
//! never tried again: what a failed flush has left behind is not known, and its root may be on one device and not on another, so that going
//! on from the root before it could make two histories that a later mount takes for divergence.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::error::Error;
use crate::audit::Audit;
use crate::fs::Fs;
use crate::mirror::{State, Stay};
use crate::pages::{Store, Walk};
use crate::problem::ExitCode;
use crate::units::BLOCK_SIZE;

/// Extents that are copied under one reader.
const EXTENTS_AT_ONCE: usize = 256;

/// Whether what was written last is lost: no replica that held the last root is away any more, and there is none in sync.
pub(in crate::volume) fn is_lost(store: &Store, error: &Error) -> bool {
    let mirror = store.mirror();
    let is_here = |index: usize| mirror.device(index).is_some_and(|device| device.verdict().approved);
    let mut holders = (0..mirror.len()).filter(|index| mirror.holds_last_root(*index));
    mirror.in_sync() == 0 && error.code().exit() == ExitCode::Integrity && holders.all(is_here)
}

/// A replica to bring back, and how far that is.
pub(in crate::volume) struct Resync {
    /// Its index.
    pub index: usize,
    /// Which of its stays in the set: one that was fenced and came back meanwhile is resynced by another.
    stay: Stay,
    /// It has every unit of the epochs before this one.
    pub since_epoch: u32,
    done_blocks: AtomicU64,
    total_blocks: AtomicU64,
}

impl Resync {
    pub fn new(index: usize, stay: Stay, since_epoch: u32) -> Self {
        Self { index, stay, since_epoch, done_blocks: AtomicU64::new(0), total_blocks: AtomicU64::new(0) }
    }

    /// Bytes looked at and, where needed, copied; and bytes in all.
    pub fn progress(&self) -> (u64, u64) {
        let bytes = |blocks: &AtomicU64| blocks.load(Ordering::Relaxed) * BLOCK_SIZE as u64;
        let total = bytes(&self.total_blocks);
        (bytes(&self.done_blocks).min(total), total)
    }

    /// Copies until all is there or `stop` is set. Returns whether the replica is in sync, durably.
    ///
    /// # Errors
    /// When no replica can give a unit, or the commit fails. A replica that fails is fenced, which is no error.
    pub fn run(&self, fs: &Fs, store: &Store, audit: &Audit, stop: &AtomicBool) -> Result<bool, Error> {
        let used = store.usage().total_blocks - store.persisted().free();
        self.total_blocks.store(used, Ordering::Relaxed);
        let go_on = || !stop.load(Ordering::Relaxed) && self.is_current(store);
        // Blocks that were sealed before the replica took part may be in no row yet.
        fs.wait_for_writers();
        {
            let _reader = store.reader();
            for unit in store.metadata_units()? {
                if !go_on() {
                    return Ok(false);
                }
                self.copy(store, &unit)?;
            }
        }
        let mut after = None;
        loop {
            let _reader = store.reader();
            let found = fs.scan(after.as_ref(), EXTENTS_AT_ONCE)?;
            for scanned in &found {
                let extent = &scanned.extent;
                for (i, tag) in (0..).zip(extent.tags.iter().flatten()) {
                    if !go_on() {
                        return Ok(false);
                    }
                    self.copy(store, &store.data_unit(extent.addr.add(i), extent.id.add(i), *tag))?;
                }
            }
            after = found.into_iter().next_back();
            if after.is_none() {
                break;
            }
        }
        // What was copied is on stable storage before any root can name the replica.
        let is_flushed = store.mirror().flush_resynced() >> self.index & 1 == 1;
        // A commit that is under way refers to the tables as they were when it began, and those were not looked at: what has been
        // overwritten since was not copied. It must not name the replica.
        if !is_flushed || !fs.between_commits(|| go_on() && store.mirror().promote(self.index, self.stay)) {
            return Ok(false);
        }
        // The root of this commit names the replica, and the trail in it says so.
        audit.observe();
        fs.checkpoint()?;
        let in_sync = store.mirror().state(self.index).0 == State::InSync;
        if in_sync {
            log::warn!("replica {} is in sync again", self.index);
        }
        Ok(in_sync)
    }

    /// Whether the replica is still being resynced, by this.
    pub fn is_current(&self, store: &Store) -> bool {
        store.mirror().is_resyncing(self.index, self.stay)
    }

    /// The resync cannot go on: the replica is stale, unless it is away already.
    pub fn give_up(&self, store: &Store, reason: &str) {
        store.mirror().give_up(self.index, self.stay, reason);
    }

    fn copy(&self, store: &Store, unit: &Walk) -> Result<(), Error> {
        if unit.id.epoch >= self.since_epoch && store.mirror().is_missed(self.index, unit.at.addr) {
            store.copy_unit(unit, self.index, self.stay)?;
        }
        self.done_blocks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
