//! Blocks that no replica can give: known since somebody read them, or a resync wanted to copy them. The list is kept in
//! memory and bounded; what a block was part of is said by whoever notes it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{Error, Store};
use crate::units::{BlockAddr, Run};

/// Most blocks that are noted. Whoever finds more has no volume with a few damaged blocks.
const LOST_MAX: usize = 1024;

/// The blocks, each with what it is part of.
#[derive(Default)]
pub(super) struct Lost {
    any: AtomicBool,
    blocks: Mutex<BTreeMap<BlockAddr, String>>,
}

impl Store {
    /// Notes that no replica can give a block, and what the block is part of. Returns whether there is room for it in
    /// the list.
    pub fn note_lost(&self, addr: BlockAddr, what: String) -> bool {
        let mut blocks = self.lost.blocks.lock();
        let is_room = blocks.len() < LOST_MAX || blocks.contains_key(&addr);
        if is_room {
            blocks.insert(addr, what);
            self.lost.any.store(true, Ordering::Release);
        }
        is_room
    }

    /// Notes a block that `error` says no replica gives, and that was not known to be lost.
    pub(super) fn note_loss(&self, error: &Error, addr: Option<BlockAddr>, what: impl FnOnce() -> String) {
        let Some(addr) = addr.filter(|_| self.is_loss(error)) else { return };
        let mut blocks = self.lost.blocks.lock();
        if blocks.len() < LOST_MAX {
            blocks.entry(addr).or_insert_with(what);
            self.lost.any.store(true, Ordering::Release);
        }
    }

    /// Notes that these blocks are of no concern any more: nothing refers to them, or a replica gives them after all.
    pub fn forget_lost(&self, run: Run) {
        if !self.lost.any.load(Ordering::Acquire) {
            return;
        }
        let mut blocks = self.lost.blocks.lock();
        blocks.retain(|addr, _| *addr < run.addr || *addr >= run.end());
        self.lost.any.store(!blocks.is_empty(), Ordering::Release);
    }

    /// The blocks that are known to be lost.
    pub fn lost_blocks(&self) -> Vec<BlockAddr> {
        self.lost.blocks.lock().keys().copied().collect()
    }

    /// What is known to be lost: what it is part of, and how many blocks of that.
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let mut parts = BTreeMap::new();
        if self.lost.any.load(Ordering::Acquire) {
            self.lost.blocks.lock().values().for_each(|what| *parts.entry(what.clone()).or_insert(0) += 1);
        }
        parts
    }
}
