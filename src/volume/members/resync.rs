//! Resync: a replica that was left behind gets what it lacks, while the volume is in use.
//!
//! Whether a device may come back is decided before, in [`members`](super); what the replica is then given as writes is
//! the concern of [`mirror`](crate::mirror).
//!
//! # What is copied
//!
//! From the moment at which the replica takes part, it gets every write, as the others do. What it lacks was written
//! before. That is what the last root and the tables refer to, and what writes under way had sealed. Those writes are
//! waited for ([`Fs::wait_for_writers`](crate::fs::Fs::wait_for_writers)).
//!
//! 1. A [traversal](Traversal) visits all of it. Each unit is read from the replicas in sync, verified, and written to
//!    the replica.
//! 2. What the replica has is left out: the units of mounts before the last one in which it was in sync. When it was in
//!    sync in this mount, what lies where nothing was written since is left out, too
//!    ([`Mirror::is_missed`](crate::mirror::Mirror::is_missed)).
//! 3. When all is copied and flushed, the replica is in sync, and the next root says so.
//!
//! If the power fails before that root, the replica is stale again and the next mount begins anew.
//!
//! # Why nothing is missed
//!
//! The traversal goes in chunks, each at the newest root of its moment. Let U be a unit that the first root which names
//! the replica refers to.
//!
//! * **U was written after the replica took part.** Then the replica was given it.
//! * **U was written before.** Then U has been in use ever since, because a block that was freed is never referred to
//!   again as the same unit. Two cases:
//!     1. **U is a page or a node.** The replica takes part between commits. So U was written by the last root of that
//!        moment or by an earlier one. The first root of the traversal is that one or a later one, so U is in it. The
//!        traversal visits every place of its first root once, with the unit that is there then
//!        ([`pages::view`](crate::pages::view)). U has not moved, so U is the unit that is visited.
//!     2. **U is a block of data.** Its row has been in the tables since the writers were waited for, in one place of
//!        one file. So the traversal of data comes to it.
//!
//! # Why nothing new is overwritten with something old
//!
//! 1. A copy is queued for the replica while a reader is held.
//! 2. The block is used again only when that reader has ended. So what is written to the block later is queued behind
//!    the copy.
//! 3. A replica's queue keeps the order of writes to one place.
//!
//! A reader is held for one chunk, a tenth of a second or so. Under a reader that lasted as long as the copying of all
//! metadata, a nearly full volume had no room left for a commit.
//!
//! # When no replica can give a block
//!
//! Then the block is lost, whether this replica comes back or not. To end the resync would leave everything else without
//! its second copy, for ever. So the block is noted with the file that it is part of, and the resync goes on
//! ([`Resync::lose`]). The replica then has all that the others have. The volume is not healthy and names the file until
//! the file is removed or its block written anew; the task that brought the replica back has failed with that reason.
//!
//! The resync ends nevertheless
//!
//! * when no replica in sync answers reads at all: then nothing is known of the block;
//! * after 1024 blocks: that is no volume with a damaged block;
//! * when a node of a tree is lost: what is below it cannot even be named;
//! * and when no replica is in sync, as follows.
//!
//! # When all replicas were refused while something was on its way
//!
//! Then no replica is in sync to copy from. What the last commit did not make durable is, if anywhere, in the devices'
//! caches: a refused device may not be flushed. But the metadata is still in memory, and it authenticates every block.
//!
//! So the first replica that comes back and holds the last root is resynced from itself and from every other that can
//! be read. Each block that may not be durable is read, verified, written again, and flushed. If all of them verify,
//! nothing is lost, and the volume goes on.
//!
//! A block that verifies nowhere (it waited in a queue when the gates closed) is lost, and the volume then has to be
//! mounted again ([`is_lost`]). Three ways around that were weighed:
//!
//! 1. *Keep every block in memory until it is flushed.* That would save the block. But under load those blocks are what
//!    the devices take in a second, hundreds of megabytes. And the event is announced days before: a registry's end is
//!    foreseen, and everything committed in time.
//! 2. *Go back to the last root under running applications.* That would show them files as they were before what they
//!    have been told was done. Only an unmount ends what they believe.
//! 3. *Try the incomplete commit again.* What a failed flush has left behind is not known. The root of that commit may
//!    be on one device and not on another. To go on from the root before it could make two histories, which a later
//!    mount takes for divergence. So an incomplete commit is never tried again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::super::error::Error;
use super::super::traverse::{Item, Progress, Traversal};
use crate::audit::Audit;
use crate::crypto::Kind;
use crate::fs::Fs;
use crate::mirror::{Incarnation, State};
use crate::pages::{self, Store, Unit};
use crate::problem::ExitCode;
use crate::units::{BLOCK_SIZE, Ino, Run};

/// Whether what was written last is lost. It is when `error` says that a unit does not verify, no replica is in sync,
/// and every replica that held the last root is here and approved.
pub(in crate::volume) fn is_lost(store: &Store, error: &Error) -> bool {
    let mirror = store.mirror();
    let is_here = |index: usize| mirror.device(index).is_some_and(|device| device.verdict().approved);
    let mut holders = (0..mirror.len()).filter(|index| mirror.holds_last_root(*index));
    mirror.in_sync() == 0 && error.code().exit() == ExitCode::Integrity && holders.all(is_here)
}

/// A replica to bring back, and how far its resync is.
pub(in crate::volume) struct Resync {
    /// Index of the replica.
    pub index: usize,
    /// The incarnation of the replica that this resync is for. A replica that was fenced and came back meanwhile is
    /// resynced by another.
    incarnation: Incarnation,
    /// The replica has every unit of the epochs before this one.
    pub since_epoch: u32,
    progress: Progress,
    lost: Mutex<Vec<LostBlock>>,
}

/// A block that no replica can give.
struct LostBlock {
    /// The file that it is part of; none for metadata.
    file: Option<Ino>,
    /// That file's path, as soon as it is known.
    what: String,
}

/// Most files that one message names.
const NAMED_MAX: usize = 20;

impl Resync {
    pub fn new(index: usize, incarnation: Incarnation, since_epoch: u32) -> Self {
        Self { index, incarnation, since_epoch, progress: Progress::default(), lost: Mutex::default() }
    }

    /// Bytes looked at and, where needed, copied; and bytes in all.
    pub fn progress(&self) -> (u64, u64) {
        let (done, total) = self.progress.blocks();
        (done * BLOCK_SIZE as u64, total * BLOCK_SIZE as u64)
    }

    /// Copies until the replica has everything or `stop` is set. Returns whether the replica is in sync, and a durable
    /// root says so.
    ///
    /// # Errors
    /// When no replica can give a unit, or the commit fails. A replica that fails a write is fenced, which is no error.
    pub fn run(&self, fs: &Fs, store: &Store, audit: &Audit, stop: &AtomicBool) -> Result<bool, Error> {
        let go_on = || !stop.load(Ordering::Relaxed) && self.is_current(store);
        // Blocks that were sealed before the replica took part may be in no row yet.
        fs.wait_for_writers();
        let traversal = Traversal::new(store, &self.progress, &go_on).beside(fs.meters());
        let mut copy = |item: Item| match item {
            Item::Unit(unit) => {
                self.copy(store, &unit).or_else(|error| self.lose(store, &unit, traversal.file(), error))
            }
            Item::Reserved(_) => Ok(()),
        };
        if !(traversal.metadata(&mut copy)? && traversal.data(fs, &mut copy)?) {
            return Ok(false);
        }
        self.name_lost(fs, store, &go_on)?;
        // What was copied must be on stable storage before any root can name the replica.
        let is_flushed = store.mirror().flush_resynced(self.index, self.incarnation);
        // The replica is promoted between commits. A commit under way refers to the tables as they were when it began,
        // and the traversal did not look at those. What has been overwritten since was not copied, so the root of that
        // commit must not name the replica.
        // It was given no roots since it takes part. The first root that names it may be all that a power failure leaves,
        // on another replica. So it is given the root before that one first: it is never further behind than one root.
        let promote = || -> Result<bool, Error> {
            let is_level = go_on() && store.give_last_root(self.index, self.incarnation)?;
            Ok(is_level && store.mirror().promote(self.index, self.incarnation))
        };
        if !is_flushed || !fs.between_commits(promote)? {
            return Ok(false);
        }
        // The root of this commit names the replica, and the trail that it commits says so.
        audit.observe();
        fs.checkpoint()?;
        let in_sync = store.mirror().state(self.index).0 == State::InSync;
        match self.lost() {
            Some(lost) if in_sync => log::error!("replica {} has what the others have, but {lost}", self.index),
            None if in_sync => log::warn!("replica {} is in sync again", self.index),
            _ => {}
        }
        Ok(in_sync)
    }

    /// Whether the replica is still being resynced, and by this resync.
    pub fn is_current(&self, store: &Store) -> bool {
        store.mirror().is_resyncing(self.index, self.incarnation)
    }

    /// Ends a resync that cannot go on: the replica is stale, unless it has left the set already.
    pub fn abandon(&self, store: &Store, reason: &str) {
        store.mirror().abandon(self.index, self.incarnation, reason);
    }

    /// What no replica could give for the copy, in words; nothing when all was copied.
    pub fn lost(&self) -> Option<String> {
        let lost = self.lost.lock();
        (!lost.is_empty()).then(|| {
            let mut parts: Vec<&str> = lost.iter().map(|lost| lost.what.as_str()).collect();
            parts.sort_unstable();
            parts.dedup();
            let more = parts.len().saturating_sub(NAMED_MAX);
            parts.truncate(NAMED_MAX);
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{} blocks are on no replica: of {}{rest}", lost.len(), parts.join(", "))
        })
    }

    fn copy(&self, store: &Store, unit: &Unit) -> Result<(), Error> {
        if unit.id.epoch >= self.since_epoch && store.mirror().is_missed(self.index, unit.at.addr) {
            store.copy_unit(unit, self.index, self.incarnation)?;
            store.forget_lost(Run::new(unit.at.addr, 1));
        }
        Ok(())
    }

    /// Goes on without a block that no replica can give, if that is what `error` says.
    fn lose(&self, store: &Store, unit: &Unit, file: Option<Ino>, error: Error) -> Result<(), Error> {
        let is_damaged = error.code().exit() == ExitCode::Integrity;
        let is_unread = matches!(&error, Error::Store(pages::Error::Io(_)));
        let is_node = matches!(unit.at.kind, Kind::MapNode | Kind::SpaceNode);
        // A device that answers no read says nothing of one block. The top of the space map is read by every mount.
        let known = Run::new(store.root().space.addr, 1);
        let mirror = store.mirror();
        let in_sync = mirror.in_sync();
        let answers = |index: usize| in_sync >> index & 1 == 1 && mirror.read_from(index, known).is_ok();
        let goes_on = (is_damaged || is_unread) && !is_node && (0..mirror.len()).any(answers);
        let what = file.map_or("the metadata".to_owned(), |ino| format!("the file with inode number {}", ino.0));
        if !goes_on || !store.note_lost(unit.at.addr, file) {
            return Err(error);
        }
        log::error!("resync of replica {}: {error}; a block of {what} is lost, and the resync goes on", self.index);
        self.lost.lock().push(LostBlock { file, what });
        Ok(())
    }

    /// Finds the names of the files that have lost something.
    fn name_lost(&self, fs: &Fs, store: &Store, go_on: &dyn Fn() -> bool) -> Result<(), Error> {
        let files: BTreeSet<Ino> = self.lost.lock().iter().filter_map(|lost| lost.file).collect();
        if files.is_empty() {
            return Ok(());
        }
        fs.name_lost(&files, go_on)?;
        let names = store.lost_names();
        for lost in self.lost.lock().iter_mut() {
            if let Some(name) = lost.file.and_then(|ino| names.get(&ino)) {
                lost.what.clone_from(name);
            }
        }
        Ok(())
    }
}
