//! Bringing a replica that was left behind back in sync, while the volume is in use.
//!
//! From the moment at which it takes part, the replica gets every write, as the others do. What it lacks is what was written
//! before: what the last root and the tables refer to, and what writes that were under way had sealed (they are waited for:
//! [`Fs::wait_for_writers`](crate::fs::Fs::wait_for_writers)). A [traversal](Traversal) visits that. Each unit is read from the
//! replicas in sync, verified, and written to the replica, but for what it has: units of mounts before the last one in which the
//! replica was in sync, and, when it was in sync in this mount, what lies where nothing was written since
//! ([`Mirror::is_missed`](crate::mirror::Mirror::is_missed)). When all is copied and flushed the replica is in sync, and the next
//! root says so. If the power fails before, it is stale again and the next mount begins anew.
//!
//! # Why nothing is missed
//!
//! The traversal goes in chunks, each at the newest root of its moment. Let a unit be referred to by the first root that names
//! the replica. If the unit was written after the replica took part, the replica was given it then. If it was written before, it
//! has been in use ever since, because a block that was freed is never referred to again as the same unit. So for a page or a node:
//!
//! * The replica takes part between commits. The unit was therefore written by the last root of that moment or by an earlier one, and
//!   it is in the first root of the traversal, which is that one or a later one.
//! * The traversal visits every place of its first root once, with the unit that is there then
//!   ([`pages::view`](crate::pages::view)). This unit has not moved, so it is the one that is visited.
//!
//! And for a block of data: its row has been in the tables since the writers were waited for, in one place of one file, so the
//! traversal of data comes to it.
//!
//! # Why nothing new is overwritten with something old
//!
//! A copy is queued for the replica while a reader is held. The block is used again only when that reader has ended, so what is
//! written to it later is queued behind the copy; a replica's queue keeps the order of writes to one place.
//!
//! A reader is held for one chunk, a tenth of a second or so. Under one that lasted as long as the copying of all metadata, a
//! nearly full volume had no room left for a commit.
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
//! they were before what they have been told was done: only an unmount ends what they believe. And an incomplete commit is
//! never tried again: what a failed flush has left behind is not known, and its root may be on one device and not on another, so that going
//! on from the root before it could make two histories that a later mount takes for divergence.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::error::Error;
use super::super::traverse::{Item, Progress, Traversal};
use crate::audit::Audit;
use crate::fs::Fs;
use crate::mirror::{Incarnation, State};
use crate::pages::{Store, Unit};
use crate::problem::ExitCode;
use crate::units::BLOCK_SIZE;

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
    /// Which of its incarnations: one that was fenced and came back meanwhile is resynced by another.
    incarnation: Incarnation,
    /// It has every unit of the epochs before this one.
    pub since_epoch: u32,
    progress: Progress,
}

impl Resync {
    pub fn new(index: usize, incarnation: Incarnation, since_epoch: u32) -> Self {
        Self { index, incarnation, since_epoch, progress: Progress::default() }
    }

    /// Bytes looked at and, where needed, copied; and bytes in all.
    pub fn progress(&self) -> (u64, u64) {
        let (done, total) = self.progress.blocks();
        (done * BLOCK_SIZE as u64, total * BLOCK_SIZE as u64)
    }

    /// Copies until all is there or `stop` is set. Returns whether the replica is in sync, durably.
    ///
    /// # Errors
    /// When no replica can give a unit, or the commit fails. A replica that fails is fenced, which is no error.
    pub fn run(&self, fs: &Fs, store: &Store, audit: &Audit, stop: &AtomicBool) -> Result<bool, Error> {
        let go_on = || !stop.load(Ordering::Relaxed) && self.is_current(store);
        // Blocks that were sealed before the replica took part may be in no row yet.
        fs.wait_for_writers();
        let traversal = Traversal::new(store, &self.progress, &go_on);
        let mut copy = |item: Item| match item {
            Item::Unit(unit) => self.copy(store, &unit),
            Item::Reserved(_) => Ok(()),
        };
        if !(traversal.metadata(&mut copy)? && traversal.data(fs, &mut copy)?) {
            return Ok(false);
        }
        // What was copied is on stable storage before any root can name the replica.
        let is_flushed = store.mirror().flush_resynced() >> self.index & 1 == 1;
        // A commit that is under way refers to the tables as they were when it began, and those were not looked at: what has been
        // overwritten since was not copied. It must not name the replica.
        if !is_flushed || !fs.between_commits(|| go_on() && store.mirror().promote(self.index, self.incarnation)) {
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
        store.mirror().is_resyncing(self.index, self.incarnation)
    }

    /// The resync cannot go on: the replica is stale, unless it is away already.
    pub fn abandon(&self, store: &Store, reason: &str) {
        store.mirror().abandon(self.index, self.incarnation, reason);
    }

    fn copy(&self, store: &Store, unit: &Unit) -> Result<(), Error> {
        if unit.id.epoch >= self.since_epoch && store.mirror().is_missed(self.index, unit.at.addr) {
            store.copy_unit(unit, self.index, self.incarnation)?;
        }
        Ok(())
    }
}
