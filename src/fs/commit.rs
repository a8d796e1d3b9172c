//! Group commit: when the page store commits, for whom, and what a caller is told when that fails.
//!
//! What a commit writes and in which order is the page store's business ([`crate::pages`]). How the tables hand their
//! pages over is [`Meta::commit`].
//!
//! # Who commits for whom
//!
//! `Fs::changes` numbers the operations. A commit takes along every operation that was done before it took the tables
//! over, whoever did it. [`Committed::changes`] is the number of the last of them.
//!
//! A caller of [`Fs::sync`] first notes the number of the last operation, then waits for the lock `commit`, which the
//! one commit in flight holds. When the caller has the lock, one of two things is true:
//!
//! * The last commit took all these operations along, because it began after them. The caller has nothing to do.
//! * The last commit began before one of them. Then this caller commits, and takes along the operations of everybody
//!   who waits by then.
//!
//! So of many callers that wait one commits, and the others find their operations durable. Operations go on during a
//! commit: only the moment in which the store takes the pages over holds them up, under the lock `meta`.
//!
//! # Who waits when commits are slow
//!
//! A batch is bounded, in operations and in bytes. An operation for which it has no place waits for the commit in flight
//! (`Fs::relieve`). So whatever a device does, memory holds two batches at most. A device that does not answer is fenced
//! after a while, and the commit goes on without it: that ends every wait, and lets a volume be unmounted.
//!
//! # When a commit fails
//!
//! | what failed | what is known then | what follows |
//! |---|---|---|
//! | [`Store::committable`], before anything is taken over | all: the batch is whole in memory | the batch waits |
//! | [`Meta::commit`] | what was answered may not be what the database holds | tables and store are poisoned |
//! | [`Store::commit`], for want of space | all: nothing has reached a device | the batch waits |
//! | [`Store::commit`], otherwise | not how much of it reached the devices | the store is poisoned |
//!
//! The first failure poisons nothing. Either no replica is in sync, and the batch waits until one comes back; or the
//! store was poisoned before. In the second case the tables poison themselves and this file poisons the store. It also
//! comes about when the tables were poisoned before, by an operation that could not be undone. In the last case the
//! store poisons itself.
//!
//! A poisoned store refuses every change and every further commit until the volume is mounted again. It still serves
//! reads: the pages that the failed commit took over stay in memory, as the only copy that readers have. Poisoned
//! tables answer nothing any more, not even reads. The next mount begins at the last root on the devices, of which a
//! failed commit has overwritten nothing.
//!
//! Nobody is told that an operation is durable when its commit failed. [`Committed::changes`] and `Fs::durable` move
//! only after [`Store::commit`] has succeeded. Each later [`Fs::sync`] waits for all operations done before it, those
//! of the failed commit among them. It finds a number that is too small, tries to commit, and is refused: it gets
//! [`Error::NotDurable`], however many callers got an error before it.
//!
//! # When a commit succeeds on too few replicas
//!
//! A commit goes to the replicas that are in sync, also when the policy asks for more of them. Nothing is poisoned
//! then, but [`Fs::sync`] reports [`Error::NotDurable`] for what users asked for. It stops doing so once enough
//! replicas are in sync, because a replica that came back holds everything that was committed meanwhile. Operations
//! that nobody asked for, such as the volume's own records of its audit trail, do not count here (`Fs::asked`).
//!
//! [`Meta::commit`]: crate::meta::Meta::commit
//! [`Store::commit`]: crate::pages::Store::commit
//! [`Store::committable`]: crate::pages::Store::committable

use std::{sync::atomic::Ordering, time::Instant};

use super::{Error, Fs, Result};
use crate::meta::Weight;
use crate::pages::{self, Account};
use crate::units::Generation;

/// How far commits have come, in operations.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// `Fs::changes` when the last successful commit took the tables over.
    changes: u64,
    /// The same number, of the last commit after which as many replicas were in sync as the policy asks for.
    enough: u64,
}

impl Fs {
    /// Returns when every operation that was done before the call is on stable storage of every in-sync replica.
    ///
    /// The first caller commits for all who wait. A caller that waited for a commit which began before its own
    /// operation commits next, again for all. Operations go on meanwhile: only taking the pages over holds them up.
    ///
    /// # Errors
    /// [`Error::NotDurable`] when the store can commit nothing, or when fewer replicas hold the operations than the
    /// policy asks for. Any other error is the tables' or the store's: then nothing is known to be durable beyond the
    /// previous commit, and the store takes no more writes.
    pub fn sync(&self) -> Result<()> {
        let wanted = self.changes.load(Ordering::Acquire);
        let mut committed = self.commit.lock();
        if committed.changes < wanted {
            self.commit_in(&mut committed).map_err(Error::of_accepted)?;
        }
        if committed.enough >= self.asked.load(Ordering::Acquire).min(wanted) {
            return Ok(());
        }
        // Too few replicas were in sync after the commit. If enough are now, those that came back have everything.
        self.store.writable().map_err(Error::NotDurable)?;
        committed.enough = committed.changes;
        Ok(())
    }

    /// As [`Fs::sync`], but commits even when no operation waits: for what else a root records, and to make freed
    /// blocks available. Too few replicas for the policy are no error here.
    ///
    /// # Errors
    /// [`Error::Store`] when the store can commit nothing; else as [`Fs::sync`].
    pub fn checkpoint(&self) -> Result<()> {
        self.commit_in(&mut self.commit.lock())
    }

    /// Waits for the commit in flight, and commits a batch that is full.
    ///
    /// # Errors
    /// As [`Fs::checkpoint`].
    pub(super) fn relieve(&self) -> Result<()> {
        let mut committed = self.commit.lock();
        // Of those who waited for the lock, the first commits.
        let is_full = self.is_batch_full(&self.meta());
        if is_full { self.commit_in(&mut committed) } else { Ok(()) }
    }

    /// Makes freed blocks available: waits for the commit in flight, which may free blocks, and commits when others are
    /// left.
    ///
    /// Returns whether there may be more space than at generation `seen`. That is so when something was committed
    /// since, when freed blocks still wait for a reader to end, or when something removed is still being freed.
    pub(super) fn release_space(&self, account: Account, seen: Generation) -> Result<bool> {
        let mut committed = self.commit.lock();
        if self.store.has_unreleased() || self.store.is_in_debt(account) {
            self.commit_in(&mut committed)?;
        }
        let unfreed = self.unfreed.load(Ordering::Acquire) > 0;
        Ok(unfreed || self.store.generation() != seen || self.store.has_unreleased())
    }

    /// Calls `f` while no commit is under way. A commit is under way from taking the tables over to publishing them.
    pub fn between_commits<T>(&self, f: impl FnOnce() -> T) -> T {
        let _committed = self.commit.lock();
        f()
    }

    fn commit_in(&self, committed: &mut Committed) -> Result<()> {
        // Without a replica that can take it, the batch stays in memory until one comes back.
        self.store.committable()?;
        let begin = Instant::now();
        let (batch, changes) = {
            let mut meta = self.meta();
            let waiting = meta.waiting(Weight::default());
            let most = self.store.pages_given() + waiting.pages(self.store.database_pages());
            let batch = meta
                .commit(|| self.store.stage())
                .inspect_err(|error| self.store.poison(format!("the metadata cannot be committed: {error}")))?;
            debug_assert!(batch.pages() <= most, "{} pages changed, not {most}: {waiting:?}", batch.pages());
            let changes = self.changes.load(Ordering::Relaxed);
            self.staged.store(changes, Ordering::Relaxed);
            *self.dirty_since.lock() = None;
            (batch, changes)
        };
        self.store.commit(batch).inspect_err(|error| {
            if matches!(error, pages::Error::NoSpace) {
                // The batch waits in the store, and the commit thread tries again.
                self.dirty_since.lock().get_or_insert_with(Instant::now);
            }
        })?;
        self.meters.commit.record(begin.elapsed(), 0);
        committed.changes = changes;
        self.durable.store(changes, Ordering::Release);
        if self.store.writable().is_ok() {
            committed.enough = changes;
        }
        Ok(())
    }

    /// How many operations since the mount are on stable storage. Never waits.
    pub fn durable_changes(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Whether every operation that somebody asked for is on the devices.
    pub fn is_clean(&self) -> bool {
        self.commit.lock().changes >= self.asked.load(Ordering::Acquire)
    }

    /// When the oldest operation was done that no commit has begun to write; `None` when there is none.
    pub fn dirty_since(&self) -> Option<Instant> {
        *self.dirty_since.lock()
    }
}
