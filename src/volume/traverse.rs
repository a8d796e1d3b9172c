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
//! # Going on later
//!
//! Between two chunks a traversal can say where it is ([`Cursor`]), and another one can go on from there, in a later mount
//! too. It visits what the first would have visited, but for what was written since.
//!
//! # Applications come first
//!
//! While applications use the volume, a traversal rests as long as it works, in slices of a fifth of a millisecond. So they
//! keep at least half of the processors' and the disks' time ([`Traversal::beside`]). On a volume that nobody uses it
//! does not rest.
//!
//! It can be held to a rate besides ([`Traversal::at_rate`]). Then a chunk ends early, and the waiting is done between two
//! chunks, where nothing is held.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::error::Error;
use crate::fs::Scanned;
use crate::fs::{Fs, Meters};
use crate::meta::ExtentRow;
use crate::pages::view::{self, CHUNK_TIME};
use crate::pages::{Store, Unit};
use crate::units::{BLOCK_SIZE, Ino, Run};

/// Extents whose rows are read at once, under the lock of the tables.
const EXTENTS_AT_ONCE: usize = 64;

/// How long a traversal works before it looks whether it has to rest.
const SLICE: Duration = Duration::from_micros(200);

/// The longest rest: a slice is long when a device is slow, and longer still when it hangs.
const REST_MAX: Duration = Duration::from_millis(50);

/// How long after an application's last operation a volume counts as in use.
const IN_USE: Duration = Duration::from_secs(1);

/// How long a traversal that is ahead of its rate sleeps before it looks whether it is to end.
const NAP: Duration = Duration::from_millis(50);

/// How far ahead of its rate a traversal may be.
const AHEAD: Duration = Duration::from_millis(10);

/// How far behind its rate a traversal may be before what it has not used is forgotten.
const BEHIND: Duration = Duration::from_millis(200);

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
    /// Says that so much is done, of so much in all.
    pub(super) fn set(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }

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

/// Holds a traversal to so many bytes a second.
struct Rate {
    per_s: u64,
    since: Cell<Instant>,
    bytes: Cell<u64>,
}

impl Rate {
    /// At least a block a second: less is as good as none.
    fn of(per_s: u64) -> Self {
        Self { per_s: per_s.max(BLOCK_SIZE as u64), since: Cell::new(Instant::now()), bytes: Cell::new(0) }
    }

    fn spend(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// How far ahead of the rate what was done is.
    fn ahead(&self) -> Duration {
        let (bytes, passed) = (self.bytes.get(), self.since.get().elapsed());
        let due = Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.per_s)).unwrap_or(u64::MAX),
        );
        if passed > due + BEHIND {
            self.since.set(Instant::now());
            self.bytes.set(0);
        }
        due.saturating_sub(passed)
    }
}

/// Where a traversal is between two chunks: what comes next. A new one begins at the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// Where in the trees, once it has begun there.
    metadata: Option<view::Cursor>,
    /// The metadata is done with.
    is_in_data: bool,
    /// The file and the last block in it that was visited.
    data: Option<(u64, u64)>,
}

/// A walk over all sealed units of a volume.
pub struct Traversal<'a> {
    store: &'a Store,
    progress: &'a Progress,
    go_on: &'a dyn Fn() -> bool,
    file: Cell<Option<Ino>>,
    pace: Option<Pace<'a>>,
    rate: Option<Rate>,
    cursor: Cell<Cursor>,
    /// What is done between two chunks.
    between: Option<&'a dyn Fn(Cursor)>,
}

impl<'a> Traversal<'a> {
    /// A traversal that ends early when `go_on` says no; `go_on` is asked before each item.
    pub fn new(store: &'a Store, progress: &'a Progress, go_on: &'a dyn Fn() -> bool) -> Self {
        let in_use = store.usage().total_blocks.saturating_sub(store.root().free_blocks);
        progress.done.store(0, Ordering::Relaxed);
        progress.total.store(in_use, Ordering::Relaxed);
        let (file, cursor) = (Cell::new(None), Cell::default());
        Self { store, progress, go_on, file, pace: None, rate: None, cursor, between: None }
    }

    /// Goes on from where another one was, which had visited `done` of `total` blocks.
    pub(super) fn set_behind(&self, cursor: Cursor, done: u64, total: u64) {
        self.progress.set(done, total);
        self.cursor.set(cursor);
    }

    /// The same, at so many bytes a second at most.
    #[must_use]
    pub fn at_rate(self, bytes_per_s: Option<u64>) -> Self {
        Self { rate: bytes_per_s.map(Rate::of), ..self }
    }

    /// The same, and `between` is told after each chunk where the traversal is. Nothing is held then.
    #[must_use]
    pub fn telling(self, between: &'a dyn Fn(Cursor)) -> Self {
        Self { between: Some(between), ..self }
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
        let begin = self.cursor.get();
        if begin.is_in_data {
            return Ok(true);
        }
        let mut units = begin.metadata.map_or_else(|| self.store.units(), |at| self.store.units_behind(at));
        let mut goes_on = true;
        loop {
            let is_more = units.chunk(&mut |unit| {
                goes_on = self.step(1, || visit(Item::Unit(*unit)))?;
                Ok::<bool, Error>(goes_on && !self.is_ahead())
            })?;
            if !goes_on {
                return Ok(false);
            }
            self.cursor.set(Cursor { metadata: units.cursor(), ..begin });
            self.between_chunks();
            if !is_more {
                self.leave_metadata();
                return Ok(true);
            }
        }
    }

    /// Goes on with the data, whatever is left of the metadata.
    pub(super) fn leave_metadata(&self) {
        self.cursor.set(Cursor { is_in_data: true, ..self.cursor.get() });
    }

    /// Visits every block of data of all files, and the space that they have reserved. Returns whether the walk came to
    /// its end.
    ///
    /// # Errors
    /// Of the metadata, or what `visit` returns.
    pub fn data(&self, fs: &Fs, visit: &mut dyn FnMut(Item) -> Result<(), Error>) -> Result<bool, Error> {
        self.extents(fs, None, &mut |scanned| self.extent(&scanned.extent, visit))
    }

    /// Visits the extents of all files, or of these `files`, which are in the order of their numbers. The caller counts
    /// what is done ([`Traversal::step`]), and says whether to go on. Returns whether the walk came to its end.
    ///
    /// # Errors
    /// Of the metadata, or what `visit` returns.
    pub(super) fn extents(
        &self,
        fs: &Fs,
        files: Option<&[Ino]>,
        visit: &mut dyn FnMut(&Scanned) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        loop {
            let mut after = self.cursor.get().data.map(|(ino, lblock)| (Ino(ino), lblock));
            let (begin, mut is_new) = (Instant::now(), false);
            {
                // The reader is taken before the rows are read: what they refer to then is not used again while it lives.
                let _reader = self.store.reader();
                for scanned in Self::next_extents(fs, files, after)? {
                    self.file.set(Some(scanned.ino));
                    if !visit(&scanned)? {
                        return Ok(false);
                    }
                    (after, is_new) = (Some((scanned.ino, scanned.extent.end() - 1)), true);
                    if begin.elapsed() >= CHUNK_TIME || self.is_ahead() {
                        break;
                    }
                }
            }
            if !is_new {
                return Ok(true);
            }
            self.cursor.set(Cursor { data: after.map(|(ino, lblock)| (ino.0, lblock)), ..self.cursor.get() });
            self.between_chunks();
        }
    }

    /// The next extents behind this place, of all files or of these.
    fn next_extents(fs: &Fs, files: Option<&[Ino]>, after: Option<(Ino, u64)>) -> Result<Vec<Scanned>, Error> {
        let Some(files) = files else { return Ok(fs.scan_behind(after, EXTENTS_AT_ONCE)?) };
        let first = after.map_or(0, |(ino, _)| files.partition_point(|file| *file < ino));
        for file in &files[first..] {
            let found = fs.scan_file(*file, after.filter(|(ino, _)| ino == file), EXTENTS_AT_ONCE)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    fn extent(&self, extent: &ExtentRow, visit: &mut dyn FnMut(Item) -> Result<(), Error>) -> Result<bool, Error> {
        let Some(tags) = &extent.tags else {
            return self.step(extent.blocks, || visit(Item::Reserved(extent.run())));
        };
        for (i, tag) in (0..).zip(tags) {
            let unit = self.store.data_unit(extent.addr.add(i), extent.id.add(i), *tag);
            if !self.step(1, || visit(Item::Unit(unit)))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Visits so many blocks, unless the traversal is to end, and rests. Returns whether it goes on.
    pub(super) fn step(&self, blocks: u64, visit: impl FnOnce() -> Result<(), Error>) -> Result<bool, Error> {
        if !(self.go_on)() {
            return Ok(false);
        }
        visit()?;
        self.pace.iter().for_each(Pace::keep);
        self.progress.done.fetch_add(blocks, Ordering::Relaxed);
        Ok(true)
    }

    /// Counts bytes that were read from each replica, for the rate.
    pub(super) fn spend(&self, bytes: u64) {
        self.rate.iter().for_each(|rate| rate.spend(bytes));
    }

    fn is_ahead(&self) -> bool {
        self.rate.as_ref().is_some_and(|rate| rate.ahead() > AHEAD)
    }

    /// Tells where the traversal is, and waits until it is not ahead of its rate any more.
    fn between_chunks(&self) {
        if let Some(between) = self.between {
            between(self.cursor.get());
        }
        while let Some(ahead) = self.rate.as_ref().map(Rate::ahead).filter(|ahead| !ahead.is_zero())
            && (self.go_on)()
        {
            std::thread::sleep(ahead.min(NAP));
        }
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

    #[test]
    fn a_rate_is_kept_and_what_was_not_used_of_it_is_forgotten() {
        let rate = Rate::of(1 << 20);
        assert_eq!(rate.ahead(), Duration::ZERO);
        rate.spend(1 << 19);
        let ahead = rate.ahead();
        assert!((Duration::from_millis(300)..=Duration::from_millis(500)).contains(&ahead), "{ahead:?}");
        // An hour in which nothing was read does not let it read for an hour.
        let hour = Duration::from_secs(3600);
        rate.since.set(rate.since.get().checked_sub(hour).unwrap_or_else(Instant::now));
        assert_eq!(rate.ahead(), Duration::ZERO);
        rate.spend(1 << 19);
        assert!(rate.ahead() > Duration::from_millis(300), "{:?}", rate.ahead());
        // A rate of nothing would never end.
        assert_eq!(Rate::of(0).per_s, BLOCK_SIZE as u64);
    }
}
