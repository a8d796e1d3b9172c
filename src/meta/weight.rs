//! How many pages of the database a batch of changes touches at most. Space for them must be there before a change is
//! made: afterwards nobody could be told that there is none.
//!
//! # The bound
//!
//! SQLite keeps each table and index in a B-tree of pages.
//!
//! 1. **One row.** A row that is added, changed or removed touches one leaf. The leaf may have to be balanced with its
//!    neighbours: SQLite takes at most three pages of one level and makes at most five of them (`balance_nonroot`). So
//!    at most five pages of that level are touched, two of them new. Then the same may be so one level higher, up to the
//!    root, which may get a level below it.
//! 2. **How many levels.** After a balance a page is at least a third full, and an inner page has at least
//!    [`LEAST_FANOUT`] children, for the longest rows that the tables with names and extents can have. So there are at
//!    most as many levels as [`levels`] says. Rows of extended attributes can be three times as long: each counts as two
//!    rows, because twice as many levels are the most that they make.
//! 3. **Many rows.** No level has more pages than the database, divided by the fan-out once for each level below, and
//!    the new ones.
//! 4. **Neighbours.** Rows of one file's extents stand next to each other. The pages that hold `n` of them are at most
//!    `n` / 7 and the two at the ends, for the longest such row and pages that are a third full. They count as a page
//!    for two rows and, for what is beside and above them, as one row by itself at each end.
//! 5. **Removed tags.** Their table is found by number, and its inner pages hold numbers alone. A removal there touches
//!    three pages of a level, and makes none.
//! 6. **Long values** lie in pages of their own. Whatever frees pages touches the list of free pages, which has a page
//!    for each thousand.
//!
//! The debug build compares the bound with what each commit really has.

use crate::units::BLOCK_SIZE;

/// Least number of children of an inner page.
const LEAST_FANOUT: u64 = 6;

/// B-trees in the database: each has a root, however few rows it has.
const TREES: u64 = 11;

/// Bytes of a long value in one of its own pages.
const OVERFLOW_BYTES: u64 = BLOCK_SIZE as u64 - 4;

/// Pages that any change may touch beside its rows: the first of the database, three of the list of free pages.
const ALWAYS: u64 = 4;

/// What is changed in the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Rows, each perhaps somewhere else.
    pub rows: u64,
    /// Rows of extents, all of them neighbours.
    pub extents: u64,
    /// Rows of tags that are removed, each perhaps somewhere else.
    pub removed_tags: u64,
    /// Bytes of long values.
    pub bytes: u64,
}

impl Weight {
    /// So many rows.
    #[must_use]
    pub const fn rows(rows: u64) -> Self {
        Self { rows, extents: 0, removed_tags: 0, bytes: 0 }
    }

    /// What removes at most `count` extents of a file, in one range. A part of the first and of the last may stay. The
    /// tags of an extent may be in a table of their own.
    #[must_use]
    pub const fn removed_extents(count: u64) -> Self {
        Self { rows: 2, extents: count.saturating_add(2), removed_tags: count, bytes: 0 }
    }

    /// What puts at most `count` extents, of which `long` have their tags elsewhere, in the place of `blocks` blocks of a
    /// file. Extents of more than eight blocks have them elsewhere.
    #[must_use]
    pub const fn replaced_blocks(blocks: u64, count: u64, long: u64) -> Self {
        let extents = blocks.saturating_add(2).saturating_add(count);
        Self { rows: long.saturating_add(2), extents, removed_tags: blocks / 9 + 2, bytes: 0 }
    }

    /// Both together. Neighbours of two changes are not each other's.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        let ends = if self.extents > 0 && other.extents > 0 { 2 } else { 0 };
        Self {
            rows: self.rows.saturating_add(other.rows).saturating_add(ends),
            extents: self.extents.saturating_add(other.extents),
            removed_tags: self.removed_tags.saturating_add(other.removed_tags),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// Whether it is no more than `other`.
    #[must_use]
    pub const fn is_within(self, other: Self) -> bool {
        let rows = self.rows <= other.rows && self.removed_tags <= other.removed_tags;
        rows && self.extents <= other.extents && self.bytes <= other.bytes
    }

    /// Pages of a database of `database` pages that are touched at most.
    #[must_use]
    pub fn pages(self, database: u64) -> u64 {
        let Self { rows, extents, removed_tags, bytes } = self;
        if rows == 0 && extents == 0 && removed_tags == 0 {
            return 0;
        }
        let apart = rows.saturating_add(if extents > 0 { 2 } else { 0 });
        let (mut pages, mut level) = (0u64, database);
        for _ in 0..levels(database) {
            let there = level.saturating_add(TREES).saturating_add(apart.saturating_mul(2));
            let touched = apart.saturating_mul(5).saturating_add(removed_tags.saturating_mul(3));
            pages = pages.saturating_add(touched.min(there));
            level /= LEAST_FANOUT;
        }
        let pages = pages.saturating_add(extents / 2).saturating_add(bytes.div_ceil(OVERFLOW_BYTES));
        pages.saturating_add(pages / 512).saturating_add(ALWAYS)
    }
}

/// Most levels of a B-tree in a database of so many pages, with the one that a change may add.
fn levels(database: u64) -> u32 {
    database.checked_ilog(LEAST_FANOUT).unwrap_or(0) + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_a_row_touches_more_in_a_deeper_tree_and_never_more_than_there_is() {
        let row = Weight::rows(1);
        let of = |database| row.pages(database);
        assert_eq!([of(0), of(40), of(40_000), of(4_000_000)], [14, 24, 39, 54]);
        let storm = Weight::rows(1 << 40);
        assert!(storm.pages(1 << 20) > 1 << 40, "new pages count");
        assert_eq!(Weight::default().pages(1 << 30), 0);
    }
}
