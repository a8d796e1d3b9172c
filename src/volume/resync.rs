//! Bringing a replica that was left behind back in sync, while the volume is in use.
//!
//! From the first commit of the mount on, the replica gets every write, as the others do: what is missing is what the
//! root of that moment refers to. That is read from the replicas in sync, verified, and written to it, but for what it has:
//! units of mounts before the last one in which the replica was in sync, and, when it was in sync in this mount, what lies
//! where nothing was written since ([`Mirror::is_missed`](crate::mirror::Mirror::is_missed)). Blocks that are freed meanwhile are not
//! used again before the copying of their part is done (a reader is held), so nothing new is overwritten with something
//! old. When all is copied and flushed the replica is in sync, and the next root says so. If the power fails
//! before, it is stale again and the next mount begins anew.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Error;
use super::audit::Audit;
use crate::fs::Fs;
use crate::mirror::State;
use crate::pages::{self, Store, Walk};
use crate::units::BLOCK_SIZE;

/// Extents that are copied under one reader.
const EXTENTS_AT_ONCE: usize = 256;

/// A replica to bring back, and how far that is.
pub(super) struct Resync {
    /// Its index.
    pub index: usize,
    /// It has every unit of the epochs before this one.
    pub since_epoch: u32,
    done_blocks: AtomicU64,
    total_blocks: AtomicU64,
}

impl Resync {
    pub fn new(index: usize, since_epoch: u32) -> Self {
        Self { index, since_epoch, done_blocks: AtomicU64::new(0), total_blocks: AtomicU64::new(0) }
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
        let go_on = || !stop.load(Ordering::Relaxed) && store.mirror().state(self.index).0 == State::Resyncing;
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
        store.mirror().flush().map_err(pages::Error::from)?;
        if !store.mirror().promote(self.index) {
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

    fn copy(&self, store: &Store, unit: &Walk) -> Result<(), Error> {
        if unit.id.epoch >= self.since_epoch && store.mirror().is_missed(self.index, unit.at.addr) {
            store.copy_unit(unit, self.index)?;
        }
        self.done_blocks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
