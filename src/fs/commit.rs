//! Group commit.

use std::{sync::atomic::Ordering, time::Instant};

use super::{Fs, Result, lock};
use crate::units::Generation;

/// What the last commit took along.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// `Fs::changes` when it began.
    changes: u64,
}

impl Fs {
    /// Returns when every operation that was done before the call is on stable storage of every in-sync replica.
    ///
    /// The first caller commits for all who wait; whoever waited for a commit that began before its own operation commits
    /// next, again for all. Operations go on meanwhile: only taking the pages over holds them up.
    ///
    /// # Errors
    /// Of the store; then nothing is known to be durable beyond the previous commit, and the store takes no more writes.
    pub fn sync(&self) -> Result<()> {
        let wanted = self.changes.load(Ordering::Acquire);
        let mut committed = lock(&self.commit);
        if committed.changes >= wanted { Ok(()) } else { self.commit_in(&mut committed) }
    }

    /// As [`Fs::sync`], but commits even when no operation waits: for what else a root records, and to make blocks free
    /// that were given up.
    ///
    /// # Errors
    /// As [`Fs::sync`].
    pub fn checkpoint(&self) -> Result<()> {
        self.commit_in(&mut lock(&self.commit))
    }

    /// Makes blocks free that were given up: waits for the commit in flight, which may hold them, and commits when others
    /// are left. Returns whether anything was committed after generation `seen`, so that there may be more space than then.
    pub(super) fn release_space(&self, seen: Generation) -> Result<bool> {
        let mut committed = lock(&self.commit);
        if self.store.has_unreleased() {
            self.commit_in(&mut committed)?;
        }
        Ok(self.store.generation() != seen)
    }

    fn commit_in(&self, committed: &mut Committed) -> Result<()> {
        let (batch, changes) = {
            let mut meta = self.meta();
            let batch = meta
                .commit(|| self.store.stage())
                .inspect_err(|error| self.store.poison(format!("the metadata cannot be committed: {error}")))?;
            let changes = self.changes.load(Ordering::Relaxed);
            self.staged.store(changes, Ordering::Relaxed);
            *lock(&self.dirty_since) = None;
            (batch, changes)
        };
        self.store.commit(batch)?;
        committed.changes = changes;
        self.durable.store(changes, Ordering::Release);
        Ok(())
    }

    /// How many operations since the mount are on stable storage. Never waits.
    pub fn durable_changes(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// When the oldest operation was done that no commit has begun to write; `None` when there is none.
    pub fn dirty_since(&self) -> Option<Instant> {
        *lock(&self.dirty_since)
    }
}
