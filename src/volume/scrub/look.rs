//! A scrub at work: each unit is read from every replica, verified, and repaired.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::error::Error;
use super::super::traverse::{Cursor, Item, Traversal};
use super::job::Job;
use super::report::{Scope, ScrubFinding, Unfinished};
use super::roots;
use crate::device::{self, AlignedBuf};
use crate::fs::Scanned;
use crate::label::{HEADER_BYTES, HeaderCopy};
use crate::mirror::{Incarnation, State, device_offset};
use crate::pages::{self, Store, Unit};
use crate::units::{BLOCK_SIZE, BlockAddr, Ino, Run};

/// From so many blocks on all replicas are read at once, each by a thread of its own.
const TOGETHER_MIN: usize = 4;

const METADATA: &str = "the metadata";

/// Looks at everything until `stop` is set. Returns whether it came to its end.
///
/// # Errors
/// Of the metadata; when no replica is in sync, or none answers.
pub(super) fn run(job: &Job, stop: &AtomicBool) -> Result<bool, Error> {
    let go_on = || !stop.load(Ordering::Relaxed);
    let Unfinished { report, cursor, labels_done, rate } = job.unfinished.lock().clone();
    job.note_absent();
    if report.scope == Scope::All && !labels_done {
        look_at_labels(job, &go_on);
        if !go_on() {
            return Ok(false);
        }
        job.unfinished.lock().labels_done = true;
    }
    let between = |cursor: Cursor| job.keep(cursor);
    let traversal = Traversal::new(&job.store, &job.progress, &go_on);
    let traversal = traversal.beside(job.fs.meters()).at_rate(rate).telling(&between);
    let in_use = job.progress.blocks().1;
    let (done, total) = (report.done_blocks, report.total_blocks);
    traversal.set_behind(cursor, done, total);
    let (files, blocks) = match &report.scope {
        Scope::Below(path) => {
            let (files, blocks) = job.fs.files_below(path.as_bytes(), &go_on)?;
            (Some(files), blocks)
        }
        Scope::All | Scope::Known => (None, in_use),
    };
    if !go_on() {
        return Ok(false);
    }
    let total = if total == 0 { blocks } else { total };
    traversal.set_behind(cursor, done, total);
    job.unfinished.lock().report.total_blocks = total;
    let mut look = Look::new(job, &traversal);
    look.only = (report.scope == Scope::Known).then(|| job.store.lost_list().blocks.into_keys().collect());
    match files {
        Some(files) => {
            traversal.leave_metadata();
            traversal.extents(&job.fs, Some(&files), &mut |scanned| look.extent(scanned))
        }
        None => look.everything(),
    }
}

/// Looks at the headers and the rings of the replicas in sync.
fn look_at_labels(job: &Job, go_on: &dyn Fn() -> bool) {
    for index in (0..job.store.mirror().len()).filter(|index| job.members.state(*index) == State::InSync) {
        if !go_on() {
            return;
        }
        job.read(index, (HeaderCopy::ALL.len() * HEADER_BYTES) as u64);
        if let Some((how, repaired)) = job.members.scrub_label(index) {
            job.add(index, repaired, ScrubFinding { what: "the label".to_owned(), how, ..ScrubFinding::default() });
        }
    }
    roots::look(job, &job.store, &job.fs, go_on);
}

/// What one replica holds in the place of a block.
#[derive(Clone)]
enum Sight {
    Good,
    Damaged,
    Unreadable(String),
    Unanswered,
}

/// What one replica holds in the place of a run.
struct Seen {
    index: usize,
    incarnation: Incarnation,
    sealed: Option<AlignedBuf>,
    blocks: Vec<Sight>,
}

impl Seen {
    fn good(&self, block: usize) -> Option<&[u8]> {
        let is_good = matches!(self.blocks[block], Sight::Good);
        self.sealed.as_ref().filter(|_| is_good).map(|sealed| &sealed[block * BLOCK_SIZE..][..BLOCK_SIZE])
    }
}

/// The walk over the units.
struct Look<'a> {
    job: &'a Job,
    store: &'a Store,
    traversal: &'a Traversal<'a>,
    /// Nothing else is looked at.
    only: Option<BTreeSet<BlockAddr>>,
    /// The replicas in sync when that was looked at last: bit `i` for replica `i`.
    in_sync: u64,
    /// The replicas whose devices fail every read.
    unread: u64,
    /// Blocks of a last commit that replicas may lack, because the volume is only read after a crash.
    excused: BTreeSet<BlockAddr>,
}

impl<'a> Look<'a> {
    fn new(job: &'a Job, traversal: &'a Traversal<'a>) -> Self {
        let store = &*job.store;
        let root = store.root();
        let last = root.provisional.filter(|_| store.committable().is_err());
        let excused = last.iter().flat_map(|last| last.blocks()).map(|block| block.addr).collect();
        let in_sync = store.mirror().in_sync();
        Self { job, store, traversal, only: None, in_sync, unread: 0, excused }
    }

    /// Looks at the metadata, then at the files. A part that meets damage ends there, and that is said.
    fn everything(&mut self) -> Result<bool, Error> {
        let traversal = self.traversal;
        let metadata = traversal.metadata(&mut |item| match item {
            Item::Unit(unit) if self.is_wanted(unit.at.addr) => self.units(&[unit], None),
            _ => Ok(()),
        });
        if !self.part(METADATA, metadata)? {
            return Ok(false);
        }
        traversal.leave_metadata();
        let fs = self.job.fs.clone();
        let data = traversal.extents(&fs, None, &mut |scanned| self.extent(scanned));
        self.part("the content of files", data)
    }

    /// Whether the walk goes on after a part of it.
    fn part(&self, part: &str, result: Result<bool, Error>) -> Result<bool, Error> {
        let is_damage = |error: &Error| match error {
            Error::Store(error) => self.store.is_loss(error),
            Error::Fs(error) => error.is_unreadable_page() || error.is_integrity(),
            _ => false,
        };
        match result {
            Err(error) if is_damage(&error) && self.store.mirror().in_sync() != 0 => {
                let why = format!("{part}, from here on: {error}");
                let mut unfinished = self.job.unfinished.lock();
                unfinished.report.not_looked_at.push(why);
                // It stands for something that could not be repaired.
                unfinished.report.found += 1;
                Ok(true)
            }
            result => result,
        }
    }

    fn is_wanted(&self, addr: BlockAddr) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&addr))
    }

    /// Looks at the blocks of an extent.
    fn extent(&mut self, scanned: &Scanned) -> Result<bool, Error> {
        let Scanned { ino, extent } = scanned;
        let traversal = self.traversal;
        traversal.step(extent.blocks, || {
            let Some(tags) = &extent.tags else { return Ok(()) };
            let unit = |i: u64, tag| self.store.data_unit(extent.addr.add(i), extent.id.add(i), tag);
            let units: Vec<Unit> = (0..).zip(tags).map(|(i, tag)| unit(i, *tag)).collect();
            if self.only.is_none() {
                return self.units(&units, Some((*ino, extent.lblock)));
            }
            for (i, unit) in (0..).zip(&units).filter(|(_, unit)| self.is_wanted(unit.at.addr)).collect::<Vec<_>>() {
                self.units(std::slice::from_ref(unit), Some((*ino, extent.lblock + i)))?;
            }
            Ok(())
        })
    }

    /// Looks at units that lie one after the other, on every replica in sync: blocks of a file from this one on, or of the
    /// metadata. A reader is held by the caller.
    fn units(&mut self, units: &[Unit], of: Option<(Ino, u64)>) -> Result<(), Error> {
        let Some(first) = units.first() else { return Ok(()) };
        let run = Run::new(first.at.addr, units.len() as u64);
        let (store, mirror) = (self.store, self.store.mirror());
        let in_sync = mirror.settled(run);
        self.note_leaving(&in_sync);
        let asked: Vec<(usize, Incarnation)> =
            in_sync.iter().copied().filter(|(index, _)| self.unread >> index & 1 == 0).collect();
        if asked.is_empty() {
            return Err(Error::Store(pages::Error::Io(format!("no replica can be read: {}", mirror.reasons()))));
        }
        let see = |(index, incarnation): &(usize, Incarnation)| see(store, units, run, *index, *incarnation);
        let seen: Vec<Seen> = if asked.len() == 1 || units.len() < TOGETHER_MIN {
            asked.iter().map(see).collect()
        } else {
            std::thread::scope(|scope| {
                let threads: Vec<_> = asked.iter().map(|replica| scope.spawn(move || see(replica))).collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
            })
        };
        self.traversal.spend(run.bytes() as u64);
        // What a replica gave that has left is of no account.
        let seen: Vec<Seen> = seen.into_iter().filter(|seen| mirror.has_stayed(seen.index, seen.incarnation)).collect();
        let is_complete = seen.len() == in_sync.len();
        for seen in &seen {
            let silent = seen.blocks.iter().filter(|sight| matches!(sight, Sight::Unanswered)).count() as u64;
            self.job.read(seen.index, (units.len() as u64 - silent) * BLOCK_SIZE as u64);
            if silent > 0 {
                let why = "its device did not answer in time, so not every block was looked at".to_owned();
                self.job.leave_out(seen.index, why);
            }
        }
        for (i, unit) in units.iter().enumerate() {
            self.block(i, unit, of.map(|(ino, lblock)| (ino, lblock + i as u64)), &seen, is_complete);
        }
        Ok(())
    }

    /// Looks at what the replicas hold in the place of one block.
    fn block(&mut self, i: usize, unit: &Unit, of: Option<(Ino, u64)>, seen: &[Seen], is_complete: bool) {
        let (store, mirror, addr) = (self.store, self.store.mirror(), unit.at.addr);
        let good = seen.iter().find_map(|seen| seen.good(i));
        if good.is_some() {
            store.forget_lost(Run::new(addr, 1));
        }
        let bad = seen.iter().filter(|seen| matches!(seen.blocks[i], Sight::Damaged | Sight::Unreadable(_)));
        let bad: Vec<&Seen> = bad.filter(|_| !self.excused.contains(&addr)).collect();
        if bad.is_empty() {
            return;
        }
        // A device that fails every read says nothing of one block.
        let fails = |seen: &Seen| matches!(seen.blocks[i], Sight::Unreadable(_)) && !self.answers(seen.index);
        let gone: Vec<usize> = bad.iter().filter(|seen| fails(seen)).map(|seen| seen.index).collect();
        for index in &gone {
            self.unread |= 1 << index;
            self.job.leave_out(*index, "its device failed every read from some moment on".to_owned());
        }
        let is_known = is_complete && gone.is_empty() && bad.len() == seen.len();
        if good.is_none() && is_known && !self.lose(addr, of) {
            // Nobody has the block any more.
            return;
        }
        for seen in bad.into_iter().filter(|seen| !gone.contains(&seen.index)) {
            let how = match &seen.blocks[i] {
                Sight::Unreadable(why) => why.clone(),
                _ => "it does not verify".to_owned(),
            };
            if matches!(seen.blocks[i], Sight::Damaged) {
                mirror.count_wrong(seen.index);
            }
            let repaired = good.is_some_and(|sealed| {
                mirror.rewrite(seen.index, device_offset(addr), sealed)
                    && mirror.examine(seen.index, Run::new(addr, 1)).is_ok_and(|now| store.opens(unit, &now))
            });
            let what = of.map_or_else(|| METADATA.to_owned(), |(ino, _)| numbered(ino));
            let (ino, offset) = (of.map(|(ino, _)| ino.0), of.map(|(_, lblock)| lblock * BLOCK_SIZE as u64));
            self.job.add(seen.index, repaired, ScrubFinding { what, ino, offset, how, ..ScrubFinding::default() });
        }
    }

    /// Notes a block that no replica can give. Returns whether it is still in use, as far as is known.
    fn lose(&self, addr: BlockAddr, of: Option<(Ino, u64)>) -> bool {
        let is_in_use = match of {
            Some((ino, lblock)) => self.job.fs.note_lost(ino, lblock, addr).unwrap_or(true),
            None => {
                self.store.note_lost(addr, None);
                true
            }
        };
        if is_in_use {
            self.job.lost.lock().push((addr, of));
        }
        is_in_use
    }

    /// Whether the device of a replica gives anything at all. The tops of both trees are read by every mount.
    fn answers(&self, index: usize) -> bool {
        let root = self.store.root();
        [root.space.addr, root.db.addr]
            .iter()
            .any(|addr| self.store.mirror().examine(index, Run::new(*addr, 1)).is_ok())
    }

    /// Notes which replicas have left since the last look.
    fn note_leaving(&mut self, in_sync: &[(usize, Incarnation)]) {
        let now = in_sync.iter().fold(0, |mask, (index, _)| mask | 1 << index);
        let before = std::mem::replace(&mut self.in_sync, now);
        for index in (0..self.store.mirror().len()).filter(|index| before & !now & 1 << index != 0) {
            let (state, why) = self.store.mirror().state(index);
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            log::warn!("the scrub goes on without replica {index}");
            self.job.leave_out(index, format!("it left while the scrub was under way: it is {}{why}", state.as_str()));
        }
    }
}

fn numbered(ino: Ino) -> String {
    format!("the file with inode number {}", ino.0)
}

/// Reads units from one replica and verifies them.
fn see(store: &Store, units: &[Unit], run: Run, index: usize, incarnation: Incarnation) -> Seen {
    let seen = |sealed, blocks| Seen { index, incarnation, sealed, blocks };
    match store.mirror().examine(index, run) {
        Ok(sealed) => {
            let each = units.iter().zip(sealed.chunks_exact(BLOCK_SIZE));
            let sight = |(unit, sealed)| if store.opens(unit, sealed) { Sight::Good } else { Sight::Damaged };
            let blocks = each.map(sight).collect();
            seen(Some(sealed), blocks)
        }
        Err(device::Error::Unanswered { .. }) => seen(None, vec![Sight::Unanswered; units.len()]),
        Err(error) if units.len() == 1 => seen(None, vec![Sight::Unreadable(error.to_string())]),
        // One unreadable sector must not condemn its neighbours.
        Err(_) => {
            let mut whole = AlignedBuf::zeroed(run.bytes());
            let mut blocks = Vec::with_capacity(units.len());
            for (i, unit) in units.iter().enumerate() {
                let one = see(store, std::slice::from_ref(unit), Run::new(unit.at.addr, 1), index, incarnation);
                if let Some(sealed) = one.sealed {
                    whole[i * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(&sealed);
                }
                blocks.extend(one.blocks);
            }
            seen(Some(whole), blocks)
        }
    }
}
