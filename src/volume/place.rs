//! Which replicas hold a file, and how much of it: what can be said without reading the file.
//!
//! * A replica **in sync** holds all that the last root refers to, and is given every write since.
//! * So does a replica that has just left the set, as long as nothing was committed without it.
//! * Of **any other replica** only this is known: at some moment a root named it as in sync, and then it held all that
//!   this root referred to. Blocks are never changed in place. So what a file still has from mounts before that root's
//!   lies there as it did. What a file has from later mounts, and its name, attributes and place in the tree, may or
//!   may not be there.
//!
//! None of this says that a device still returns what it was given: `check` and scrub do.

use std::time::SystemTime;

use super::assembled::Assembled;
use super::open::Open;
use super::recovery;
use crate::fs::{self, Attr, Kind};
use crate::label::Root;
use crate::mirror::State;
use crate::units::Ino;

/// What a replica holds of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Portion {
    /// All of it. For a folder: all that is below it, too.
    Complete,
    /// It is being resynced, and will hold all of it when that is done.
    Resyncing {
        /// At least so many bytes of the file's space; unknown for what is not a file.
        bytes: Option<u64>,
    },
    /// It was left behind.
    LeftBehind {
        /// At least so many bytes of the file's space; unknown for what is not a file.
        bytes: Option<u64>,
    },
}

/// One replica's part in a [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Row of the replica table.
    pub index: usize,
    /// What it holds.
    pub portion: Portion,
    /// Since when it has been in its state, by the host's clock; at the earliest, since the mount.
    pub since: SystemTime,
}

/// Where a file, a folder or another inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its attributes.
    pub attr: Attr,
    /// Whether the file is durable as it is. It may not be when the volume can commit no more.
    pub committed: bool,
    /// The replicas, in the order of the replica table.
    pub replicas: Vec<Holding>,
}

impl Assembled {
    /// For each replica, the first epoch of which it may lack something, when the volume is opened with this choice.
    pub(super) fn has_before(&self, choice: &recovery::Choice, rings: &[recovery::Ring]) -> Vec<u32> {
        let after_the_root = choice.root.epoch().saturating_add(1);
        // A replica that is absent may lack some of a provisional root's commit, which was never known to be whole
        // there.
        let if_absent = if choice.root.provisional.is_some() { choice.root.epoch() } else { after_the_root };
        let of = |(index, state): (usize, &State)| {
            let is_here = self.replica(index).is_some();
            let is_named = choice.root.names(index);
            let told_by = |ring: &[Root]| recovery::last_epoch_in_sync(ring, index, &choice.root);
            match (state, is_here) {
                (State::InSync, _) => after_the_root,
                // The replica's own ring tells what is true of it: it may be an old copy that somebody put back.
                (_, true) => told_by(recovery::ring_of(rings, index)),
                (_, false) if is_named => if_absent,
                (_, false) => rings.iter().flatten().map(|ring| told_by(ring)).max().unwrap_or(0),
            }
        };
        choice.states.iter().enumerate().map(of).collect()
    }
}

impl Open {
    /// Where `ino` is now. Changes that wait for a commit are committed first, as by fsync(2), so that the answer is of
    /// durable things.
    ///
    /// # Errors
    /// Of the filesystem: [`fs::Error::Stale`] when it does not exist.
    pub fn place(&self, ino: Ino) -> fs::Result<Place> {
        let (fs, mirror) = (self.fs(), self.store().mirror());
        let indices = self.members().rows();
        let some_behind = indices.iter().any(|index| mirror.state(*index).0 != State::InSync);
        // Read before the commit and before the states: what is found is then durable, on every replica that is still
        // in sync.
        let attr = fs.getattr(ino)?;
        let bytes = if some_behind { fs.written_before(ino, &self.members().has_before())? } else { None };
        let committed = fs.sync().is_ok();
        let portion = |index: usize| {
            let bytes = bytes.as_ref().and_then(|bytes| bytes.get(index)).copied();
            match mirror.state(index).0 {
                State::InSync => Portion::Complete,
                State::Resyncing => Portion::Resyncing { bytes },
                _ if committed && mirror.holds_last_root(index) => Portion::Complete,
                _ => Portion::LeftBehind { bytes },
            }
        };
        let holding = |index: usize| Holding {
            index,
            portion: portion(index),
            since: mirror.since(index).unwrap_or(SystemTime::UNIX_EPOCH),
        };
        Ok(Place { attr, committed, replicas: indices.into_iter().map(holding).collect() })
    }
}

impl Place {
    /// Bytes of room that the file takes on each replica; `None` for what is not a file.
    pub fn stored_bytes(&self) -> Option<u64> {
        (self.attr.kind == Kind::File).then_some(self.attr.blocks * 512)
    }
}
