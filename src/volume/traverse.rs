//! A traversal: one streaming walk over every sealed unit of a volume, for a caller that verifies or copies all of it.
//!
//! What is done with a unit is the caller's. First come the nodes and pages of both trees, by views of the page store
//! ([`pages::view`](crate::pages::view)). Then comes the data of all files, by the tables ([`Fs::scan`]).
//!
//! Both go in chunks. A chunk holds a reader, so that what it visits is not overwritten meanwhile. Commits and
//! operations go on: they wait only while the rows of a few extents are read from the tables. Between two chunks
//! nothing is held.
//!
//! # What is visited
//!
//! * On a volume that nobody changes: every unit, once.
//! * On a volume in use, of the metadata: the pages and nodes that the page store says.
//! * On a volume in use, of the data: every block that a file has when the traversal of data begins and still has when
//!   its chunk is reached. A block that is written while the traversal goes on may be visited or not.
//!
//! A block's file and place in the file decide when the block is visited. No operation moves a block from one place to
//! another.
//!
//! # Applications come first
//!
//! While applications use the volume, a traversal rests as long as it works, in slices of a fifth of a millisecond. So they
//! keep at least half of the processors' and the disks' time ([`Traversal::beside`]). On a volume that nobody uses it
//! does not rest.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::error::Error;
use crate::fs::{Fs, Meters};
use crate::meta::ExtentRow;
use crate::pages::view::CHUNK_TIME;
use crate::pages::{Store, Unit};
use crate::units::{Ino, Run};

/// Extents whose rows are read at once, under the lock of the tables.
const EXTENTS_AT_ONCE: usize = 64;

/// How long a traversal works before it looks whether it has to rest.
const SLICE: Duration = Duration::from_micros(200);

/// The longest rest: a slice is long when a device is slow, and longer still when it hangs.
const REST_MAX: Duration = Duration::from_millis(50);

/// How long after an application's last operation a volume counts as in use.
const IN_USE: Duration = Duration::from_secs(1);

/// What a traversal visits.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    /// A sealed unit.
    Unit(Unit),
    /// Space that a file has reserved and never written.
    Reserved(Run),
}

/// How far a traversal is, in blocks. Another thread may look at it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Blocks that were visited, and blocks in all: those that were in use when the traversal began.
    pub fn blocks(&self) -> (u64, u64) {
        let total = self.total.load(Ordering::Relaxed);
        (self.done.load(Ordering::Relaxed).min(total), total)
    }
}

/// Rests while applications use a volume.
pub(super) struct Pace<'a> {
    meters: &'a Meters,
    /// Their operations, when that was looked at last.
    operations: Cell<u64>,
    /// When that number changed last; `None` when it has not yet.
    used: Cell<Option<Instant>>,
    /// When the slice began.
    begin: Cell<Instant>,
}

impl<'a> Pace<'a> {
    pub(super) fn of(meters: &'a Meters) -> Self {
        let operations = Cell::new(meters.operations());
        Self { meters, operations, used: Cell::new(None), begin: Cell::new(Instant::now()) }
    }

    /// Rests at the end of a slice.
    pub(super) fn keep(&self) {
        let worked = self.begin.get().elapsed();
        if worked >= SLICE {
            std::thread::sleep(self.rest(worked));
            self.begin.set(Instant::now());
        }
    }

    /// How long to rest after so much work.
    fn rest(&self, worked: Duration) -> Duration {
        let operations = self.meters.operations();
        if self.operations.replace(operations) != operations {
            self.used.set(Some(Instant::now()));
        }
        let is_in_use = self.used.get().is_some_and(|used| used.elapsed() < IN_USE);
        if is_in_use { worked.min(REST_MAX) } else { Duration::ZERO }
    }
}

/// A walk over all sealed units of a volume.
pub struct Traversal<'a> {
    store: &'a Store,
    progress: &'a Progress,
    go_on: &'a dyn Fn() -> bool,
    file: Cell<Option<Ino>>,
    pace: Option<Pace<'a>>,
}

impl<'a> Traversal<'a> {
    /// A traversal that ends early when `go_on` says no; `go_on` is asked before each item.
    pub fn new(store: &'a Store, progress: &'a Progress, go_on: &'a dyn Fn() -> bool) -> Self {
        let in_use = store.usage().total_blocks.saturating_sub(store.root().free_blocks);
        progress.done.store(0, Ordering::Relaxed);
        progress.total.store(in_use, Ordering::Relaxed);
        Self { store, progress, go_on, file: Cell::new(None), pace: None }
    }

    /// The same, beside the applications whose operations these meters count.
    #[must_use]
    pub fn beside(self, meters: &'a Meters) -> Self {
        Self { pace: Some(Pace::of(meters)), ..self }
    }

    /// The file whose block is being visited; none while metadata is.
    pub fn file(&self) -> Option<Ino> {
        self.file.get()
    }

    /// Visits every node and page of both trees. Returns whether the walk came to its end.
    ///
    /// # Errors
    /// When a node cannot be read from any replica, or what `visit` returns.
    pub fn metadata(&self, visit: &mut dyn FnMut(Item) -> Result<(), Error>) -> Result<bool, Error> {
        let mut units = self.store.units();
        let mut goes_on = true;
        while goes_on {
            let is_more = units.chunk(&mut |unit| {
                goes_on = self.visit(Item::Unit(*unit), 1, visit)?;
                Ok::<bool, Error>(goes_on)
            })?;
            if !is_more {
                break;
            }
        }
        Ok(goes_on)
    }

    /// Visits every block of data of all files, and the space that they have reserved. Returns whether the walk came to
    /// its end.
    ///
    /// # Errors
    /// Of the metadata, or what `visit` returns.
    pub fn data(&self, fs: &Fs, visit: &mut dyn FnMut(Item) -> Result<(), Error>) -> Result<bool, Error> {
        let mut after = None;
        loop {
            let begin = Instant::now();
            // The reader is taken before the rows are read: what they refer to then is not used again while it lives.
            let _reader = self.store.reader();
            let found = fs.scan(after.as_ref(), EXTENTS_AT_ONCE)?;
            if found.is_empty() {
                return Ok(true);
            }
            for scanned in found {
                self.file.set(Some(scanned.ino));
                if !self.extent(&scanned.extent, visit)? {
                    return Ok(false);
                }
                after = Some(scanned);
                if begin.elapsed() >= CHUNK_TIME {
                    break;
                }
            }
        }
    }

    fn extent(&self, extent: &ExtentRow, visit: &mut dyn FnMut(Item) -> Result<(), Error>) -> Result<bool, Error> {
        let Some(tags) = &extent.tags else {
            return self.visit(Item::Reserved(extent.run()), extent.blocks, visit);
        };
        for (i, tag) in (0..).zip(tags) {
            let unit = self.store.data_unit(extent.addr.add(i), extent.id.add(i), *tag);
            if !self.visit(Item::Unit(unit), 1, visit)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn visit(&self, item: Item, blocks: u64, visit: &mut dyn FnMut(Item) -> Result<(), Error>) -> Result<bool, Error> {
        if !(self.go_on)() {
            return Ok(false);
        }
        visit(item)?;
        self.pace.iter().for_each(Pace::keep);
        self.progress.done.fetch_add(blocks, Ordering::Relaxed);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traversal_rests_as_long_as_it_works_while_applications_use_the_volume() {
        let meters = Meters::default();
        meters.change.record(Duration::from_millis(1), 0);
        let pace = Pace::of(&meters);
        let (short, hung) = (Duration::from_millis(3), Duration::from_secs(30));
        assert_eq!(pace.rest(short), Duration::ZERO, "nobody has used it since");
        for meter in [&meters.read, &meters.write, &meters.lookup, &meters.change, &meters.fsync] {
            meter.record(Duration::from_millis(1), 0);
            assert_eq!((pace.rest(short), pace.rest(hung)), (short, REST_MAX));
            pace.used.set(pace.used.get().and_then(|used| used.checked_sub(IN_USE)));
            assert_eq!(pace.rest(short), Duration::ZERO, "it is not in use any more");
        }
        meters.commit.record(Duration::from_millis(1), 0);
        assert_eq!(pace.rest(short), Duration::ZERO, "a commit by itself is no application");
    }
}
