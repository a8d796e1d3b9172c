//! Room for metadata: what the operations that wait for a commit will take is kept for them.
//!
//! A commit takes fresh blocks before it makes any available. So a volume without enough free blocks could neither
//! commit nor delete, and what had been answered would be lost. Two things prevent that:
//!
//! 1. **The reserve.** Data never takes the last blocks ([`reserve`], [`kept`]). They are enough for the deletion of
//!    anything, which goes in steps as small as the room asks for.
//! 2. **The account.** Before an operation is done, the blocks that the batch takes with it are owed to it
//!    ([`Store::owe`]). When that is more than is free, the operation waits for a commit, and for readers that hold what
//!    earlier commits have freed. In the end it is refused, and nothing has happened.
//!
//! # What a commit takes
//!
//! * The pages of the database that were changed. How many that may be is the tables' business (`meta::weight`).
//! * The nodes above them: at most one a page on each level, and no more than the level has.
//! * The pages of the space map. Every block that is taken or freed may be in another region, and the place of that
//!   region's own page in yet another. So all of them count, and all nodes above them. They are one for 32768 blocks of
//!   the volume. The reserve is at least four times as many.
//! * One more node on each level of a tree, for what growth puts on top.
//!
//! So what is owed is at least what a commit takes. Two numbers are kept under the lock of the free space: what is owed
//! to the batch being filled, and what is promised to the batch being committed and not taken yet. **Together they are
//! never more than what is free:**
//!
//! * [`Store::owe`] raises the first only as far as that allows;
//! * data leaves both untouched (`Space::for_data`);
//! * a commit takes a block and needs one less;
//! * nothing else takes blocks.
//!
//! The debug build compares every commit with what was promised to it. Should a commit find no block all the same, it
//! gives back what it has planned, and the batch waits for the next commit (`pages::commit`). Nothing is poisoned then,
//! because nothing has reached a device.

use super::tree::FANOUT;
use super::{Account, Store, Usage};
use crate::space::{Allocator, Goal, REGION_BLOCKS};
use crate::units::Run;

/// Least and most blocks kept back for metadata, the latter of a volume of less than 512 GiB.
const RESERVE_BLOCKS_MIN: u64 = 512;
const RESERVE_BLOCKS_MAX: u64 = 16_384;

/// Blocks that a deletion may need on a volume whose reserve is small; of a smaller reserve nothing is given away.
const KEPT_BLOCKS_MIN: u64 = 768;

/// Blocks of a volume of `total` that are kept back for metadata.
pub fn reserve(total: u64) -> u64 {
    (total / 48).clamp(RESERVE_BLOCKS_MIN, RESERVE_BLOCKS_MAX.max(total / (REGION_BLOCKS / 4)))
}

/// How much of a reserve stays untouched by data on an account. It is enough for a deletion on each.
pub fn kept(reserve: u64, account: Account) -> u64 {
    match account {
        Account::Users => reserve,
        Account::Accepted => (reserve - reserve / 4).max(KEPT_BLOCKS_MIN).min(reserve),
        Account::InPlace => (reserve - reserve / 2).max(KEPT_BLOCKS_MIN).min(reserve),
    }
}

/// The free space, and to whom it is owed.
pub(super) struct Space {
    allocator: Allocator,
    /// Kept back from users' data.
    reserve: u64,
    /// What the batch being filled takes at most.
    owed: u64,
    /// What the batch being committed takes at most, and has not taken yet.
    promised: u64,
}

impl Space {
    pub fn new(allocator: Allocator) -> Self {
        let reserve = reserve(allocator.map().total());
        Self { allocator, reserve, owed: 0, promised: 0 }
    }

    pub fn usage(&self) -> Usage {
        let map = self.allocator.map();
        Usage { total_blocks: map.total(), free_blocks: map.free(), reserved_blocks: self.reserve }
    }

    /// Blocks that data may take.
    pub fn for_data(&self, account: Account) -> u64 {
        self.free().saturating_sub(kept(self.reserve, account).max(self.owed + self.promised))
    }

    fn free(&self) -> u64 {
        self.allocator.map().free()
    }

    /// Takes a run for data. The caller has asked [`Space::for_data`].
    pub fn take_for_data(&mut self, want: u64) -> Option<Run> {
        self.allocator.take(want, Goal::Data)
    }

    /// Takes a run for the commit in flight.
    pub fn take_for_commit(&mut self, want: u64) -> Option<Run> {
        let run = self.allocator.take(want, Goal::Metadata)?;
        self.promised = self.promised.saturating_sub(run.blocks);
        Some(run)
    }

    /// Gives back what the commit in flight has taken for nothing.
    pub fn untake(&mut self, run: Run) -> super::Result<()> {
        self.promised += run.blocks;
        self.give_back(run)
    }

    /// Makes a run available.
    pub fn give_back(&mut self, run: Run) -> super::Result<()> {
        Ok(self.allocator.give_back(run)?)
    }

    /// The batch is about to be committed, and takes at most so many blocks.
    pub fn promise(&mut self, blocks: u64) {
        (self.owed, self.promised) = (0, blocks);
    }

    /// The commit in flight takes no more.
    pub fn settle(&mut self) {
        self.promised = 0;
    }

    /// The commit in flight could not be planned: its batch waits with the one being filled.
    pub fn defer(&mut self) {
        self.owed += std::mem::take(&mut self.promised);
    }
}

impl Store {
    /// Owes the batch being filled what a commit of all that it holds takes. `pages` says how many pages the batch may
    /// have that the store was not given yet, in a database of so many pages. Returns whether there is room; else the
    /// account stays as it was. To be called under the metadata lock, before each operation is done.
    pub fn owe(&self, pages: impl FnOnce(u64) -> u64) -> bool {
        let (database, given) = {
            let staging = self.staging.lock();
            (staging.db_pages, staging.current.len() as u64)
        };
        let need = self.need(given.saturating_add(pages(database)), database);
        let mut space = self.space.lock();
        let fits = need.saturating_add(space.promised) <= space.free();
        if fits {
            space.owed = need;
        }
        fits
    }

    /// Pages of the batch being filled that the store has been given.
    pub fn pages_given(&self) -> u64 {
        self.staging.lock().current.len() as u64
    }

    /// Pages that one operation may change, so that several of its kind fit in the room that there is.
    pub fn room_for_a_step(&self) -> u64 {
        let space = self.space.lock();
        space.free().saturating_sub(space.promised).saturating_sub(self.need(0, 0)) / 8
    }

    /// Blocks that data may take now.
    pub fn room_for_data(&self, account: Account) -> u64 {
        self.space.lock().for_data(account)
    }

    /// Whether a commit would make room for data on this account: operations that wait for one are owed more than is kept
    /// back from it.
    pub fn is_in_debt(&self, account: Account) -> bool {
        let space = self.space.lock();
        space.owed + space.promised > kept(space.reserve, account)
    }

    /// Blocks that a commit of so many pages takes at most. The database has `database` pages without the new ones.
    pub(super) fn need(&self, pages: u64, database: u64) -> u64 {
        need(self.regions, pages, database)
    }
}

/// Blocks that a commit of so many pages takes at most, in a volume of so many regions. The database has `database`
/// pages without the new ones.
pub fn need(regions: u64, pages: u64, database: u64) -> u64 {
    let trees = nodes_above(pages, database.saturating_add(pages)).saturating_add(nodes_above(regions, regions));
    pages.saturating_add(regions).saturating_add(trees)
}

/// Nodes above `pages` pages of a tree that has `all`, and one more on each level.
fn nodes_above(pages: u64, all: u64) -> u64 {
    let (mut nodes, mut level) = (0u64, all);
    loop {
        level = level.div_ceil(FANOUT);
        nodes = nodes.saturating_add(pages.min(level)).saturating_add(1);
        if level <= 1 {
            return nodes;
        }
    }
}
