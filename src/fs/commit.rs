//! Group commit.

use std::{sync::atomic::Ordering, time::Instant};

use super::{Error, Fs, Result};
use crate::units::Generation;

/// What the last commit took along.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// `Fs::changes` when it began.
    changes: u64,
    /// The same of the last commit after which enough replicas for the policy were in sync.
    enough: u64,
}

impl Fs {
    /// Returns when every operation that was done before the call is on stable storage of every in-sync replica.
    ///
    /// The first caller commits for all who wait; whoever waited for a commit that began before its own operation commits
    /// next, again for all. Operations go on meanwhile: only taking the pages over holds them up.
    ///
    /// # Errors
    /// [`Error::NotDurable`] when the store takes no writes, or fewer replicas hold the operations than the policy asks for;
    /// else of the store; then nothing is known to be durable beyond the previous commit, and it takes no more writes.
    pub fn sync(&self) -> Result<()> {
        let wanted = self.changes.load(Ordering::Acquire);
        let mut committed = self.commit.lock();
        if committed.changes < wanted {
            self.commit_in(&mut committed).map_err(Error::of_accepted)?;
        }
        if committed.enough >= self.asked.load(Ordering::Acquire).min(wanted) {
            return Ok(());
        }
        // Too few replicas were in sync; those that came back have everything.
        self.store.writable().map_err(Error::NotDurable)?;
        committed.enough = committed.changes;
        Ok(())
    }

    /// As [`Fs::sync`], but commits even when no operation waits: for what else a root records, and to make freed
    /// blocks available.
    ///
    /// # Errors
    /// As [`Fs::sync`].
    pub fn checkpoint(&self) -> Result<()> {
        self.commit_in(&mut self.commit.lock())
    }

    /// Makes freed blocks available: waits for the commit in flight, which may hold them, and commits when others
    /// are left. Returns whether there may be more space than at generation `seen`: something was committed since, or blocks that
    /// were freed wait for a reader to end.
    pub(super) fn release_space(&self, seen: Generation) -> Result<bool> {
        let mut committed = self.commit.lock();
        if self.store.has_unreleased() {
            self.commit_in(&mut committed)?;
        }
        Ok(self.store.generation() != seen || self.store.has_unreleased())
    }

    /// Calls `f` while no commit is under way: none has taken its tables over and not yet published them.
    pub fn between_commits<T>(&self, f: impl FnOnce() -> T) -> T {
        let _committed = self.commit.lock();
        f()
    }

    fn commit_in(&self, committed: &mut Committed) -> Result<()> {
        // What no replica can take stays where it is, until one comes back.
        self.store.committable()?;
        let begin = Instant::now();
        let (batch, changes) = {
            let mut meta = self.meta();
            let batch = meta
                .commit(|| self.store.stage())
                .inspect_err(|error| self.store.poison(format!("the metadata cannot be committed: {error}")))?;
            let changes = self.changes.load(Ordering::Relaxed);
            self.staged.store(changes, Ordering::Relaxed);
            *self.dirty_since.lock() = None;
            (batch, changes)
        };
        self.store.commit(batch)?;
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
