//! Blocks that no replica can give: known since somebody read them, or a resync wanted to copy them. The list is bounded.
//! Which file a block is part of is said by whoever notes it, and what the file is called by whoever looks that up.
//!
//! The list belongs to the volume. It is kept in the tables (`fs::lost`), so that the next mount knows it before anybody
//! reads the blocks; here is what is true at this moment, and whether the tables know it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{Error, Store};
use crate::units::{BlockAddr, Ino, Run};

/// Most blocks that are noted. Whoever finds more has no volume with a few damaged blocks.
pub const LOST_MAX: usize = 1024;

/// Most blocks beyond those that are told apart, so that none is counted twice.
const BEYOND_MAX: usize = 1 << 16;

/// Stands for a node of a map: which block it was in is not told. No block of a volume has this address.
pub const SOME_NODE: BlockAddr = BlockAddr((1 << 48) - 1);

/// Blocks that are lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostList {
    /// Each with the file that it is part of; none for metadata.
    pub blocks: BTreeMap<BlockAddr, Option<Ino>>,
    /// How many more there are, for which there was no room.
    pub more: u64,
}

/// What is known to be lost.
#[derive(Default)]
pub(super) struct Lost {
    any: AtomicBool,
    /// Whether the list is another than the tables have.
    is_changed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    list: LostList,
    /// Blocks for which there was no room in the list.
    beyond: BTreeSet<BlockAddr>,
    /// How many there were in earlier mounts.
    beyond_before: u64,
    names: BTreeMap<Ino, String>,
    /// Counts what changes the list.
    version: u64,
}

impl State {
    /// Returns whether there is room for the block.
    fn note(&mut self, addr: BlockAddr, file: Option<Ino>) -> bool {
        let is_room = self.list.blocks.len() < LOST_MAX || self.list.blocks.contains_key(&addr);
        let is_new = match is_room {
            true => self.beyond.remove(&addr) | (self.list.blocks.insert(addr, file) != Some(file)),
            false => self.beyond.len() < BEYOND_MAX && self.beyond.insert(addr),
        };
        self.version += u64::from(is_new);
        is_room
    }

    fn forget(&mut self, run: Run) {
        let blocks: Vec<BlockAddr> = self.list.blocks.range(run.addr..run.end()).map(|(addr, _)| *addr).collect();
        for addr in &blocks {
            self.list.blocks.remove(addr);
        }
        let beyond: Vec<BlockAddr> = self.beyond.range(run.addr..run.end()).copied().collect();
        for addr in &beyond {
            self.beyond.remove(addr);
        }
        self.version += (blocks.len() + beyond.len()) as u64;
        if self.list.blocks.is_empty() {
            // Which blocks those of earlier mounts are is not known. Whoever reads one of them notes it anew.
            self.beyond_before = 0;
            self.names.clear();
        }
    }
}

impl Lost {
    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let before = state.version;
        let value = f(&mut state);
        state.list.more = state.beyond_before + state.beyond.len() as u64;
        if state.version != before {
            self.is_changed.store(true, Ordering::Release);
        }
        self.any.store(!state.list.blocks.is_empty() || state.list.more > 0, Ordering::Release);
        value
    }
}

impl Store {
    /// Notes that no replica can give a block, and which file it is part of; none for metadata. Returns whether there is
    /// room for it in the list.
    pub fn note_lost(&self, addr: BlockAddr, file: Option<Ino>) -> bool {
        self.lost.change(|state| state.note(addr, file))
    }

    /// Notes a block that `error` says no replica gives.
    pub(super) fn note_loss(&self, error: &Error, addr: Option<BlockAddr>, file: Option<Ino>) {
        if let Some(addr) = addr.filter(|_| self.is_loss(error)) {
            self.note_lost(addr, file);
        }
    }

    /// Notes that these blocks are of no concern any more: nothing refers to them, or a replica gives them after all.
    pub fn forget_lost(&self, run: Run) {
        if self.lost.any.load(Ordering::Acquire) {
            self.lost.change(|state| state.forget(run));
        }
    }

    /// Takes over what an earlier mount knew.
    pub fn remember_lost(&self, list: LostList) {
        let was_changed = self.lost.is_changed.load(Ordering::Acquire);
        self.lost.change(|state| {
            state.beyond_before = list.more;
            for (addr, file) in list.blocks {
                state.note(addr, file);
            }
        });
        self.lost.is_changed.store(was_changed, Ordering::Release);
    }

    /// The list.
    pub fn lost_list(&self) -> LostList {
        self.lost.state.lock().list.clone()
    }

    /// The list, if it is another than the tables have. The caller puts it there, or says that it did not.
    pub fn take_lost_changes(&self) -> Option<LostList> {
        self.lost.is_changed.swap(false, Ordering::AcqRel).then(|| self.lost_list())
    }

    /// The tables do not have the list.
    pub fn keep_lost_changes(&self) {
        self.lost.is_changed.store(true, Ordering::Release);
    }

    /// Files of the list whose names have not been looked up.
    pub fn unnamed_lost(&self) -> BTreeSet<Ino> {
        if !self.lost.any.load(Ordering::Acquire) {
            return BTreeSet::new();
        }
        let state = self.lost.state.lock();
        state.list.blocks.values().flatten().filter(|ino| !state.names.contains_key(ino)).copied().collect()
    }

    /// Notes what files are called.
    pub fn name_lost(&self, names: BTreeMap<Ino, String>) {
        self.lost.state.lock().names.extend(names);
    }

    /// What the files of the list are called, as far as that was looked up.
    pub fn lost_names(&self) -> BTreeMap<Ino, String> {
        self.lost.state.lock().names.clone()
    }

    /// What is known to be lost: what it is part of, and how many blocks of that.
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let mut parts = BTreeMap::new();
        if self.lost.any.load(Ordering::Acquire) {
            let state = self.lost.state.lock();
            for file in state.list.blocks.values() {
                *parts.entry(said(file.as_ref(), &state.names)).or_insert(0) += 1;
            }
            if state.list.more > 0 {
                parts.insert("what is not listed here".to_owned(), state.list.more);
            }
        }
        parts
    }
}

/// How messages name what a block is part of.
fn said(file: Option<&Ino>, names: &BTreeMap<Ino, String>) -> String {
    match file.map(|ino| (ino, names.get(ino))) {
        None => "the metadata".to_owned(),
        Some((_, Some(name))) => name.clone(),
        Some((ino, None)) => format!("the file with inode number {}", ino.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_bounded_and_counts_what_is_beyond() {
        let lost = Lost::default();
        let note = |addr: u64| lost.change(|state| state.note(BlockAddr(addr), Some(Ino(addr % 3 + 2))));
        let more = || lost.state.lock().list.more;
        let max = LOST_MAX as u64;
        assert!((0..max).all(note) && !note(max) && !note(max) && !note(max + 1) && note(5));
        assert_eq!((more(), lost.is_changed.swap(false, Ordering::AcqRel)), (2, true));
        assert!(note(7) && !lost.is_changed.load(Ordering::Acquire), "nothing new");
        lost.change(|state| state.forget(Run::new(BlockAddr(max), 1)));
        assert_eq!((more(), lost.is_changed.swap(false, Ordering::AcqRel)), (1, true));
        lost.change(|state| state.forget(Run::new(BlockAddr(0), 10)));
        assert!(note(max + 1));
        assert_eq!(more(), 0);
        lost.change(|state| state.forget(Run::new(BlockAddr(0), 2 * max)));
        assert!(!lost.any.load(Ordering::Acquire));
    }
}
