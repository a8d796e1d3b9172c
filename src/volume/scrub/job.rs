//! One scrub: how far it is, what it has found, and what is kept of that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::members::Members;
use super::super::task::Work;
use super::super::traverse::{Cursor, Progress};
use super::report::{ScrubFinding, ScrubReport, Unfinished, keep, sentence, told_path};
use crate::fs::{Fs, KeptScrub};
use crate::mirror::State;
use crate::pages::Store;
use crate::units::{BLOCK_SIZE, BlockAddr, Ino, Run};

/// How often the scrub keeps in the volume where it is.
const KEEP_INTERVAL: Duration = Duration::from_secs(2);

/// A block that is on no replica; the file and the block's number in it, unless it is of the metadata.
pub(super) type LostBlock = (BlockAddr, Option<(Ino, u64)>);

/// One scrub, from its beginning or from where it was.
pub(super) struct Job {
    pub members: Arc<Members>,
    pub store: Arc<Store>,
    pub fs: Arc<Fs>,
    pub progress: Progress,
    /// What is shown of its progress is never less than this.
    floor: AtomicU64,
    pub unfinished: Mutex<Unfinished>,
    /// What was lost: the block, the file and the block's number in it.
    pub lost: Mutex<Vec<LostBlock>>,
    /// Something was repaired since it was kept where the scrub is.
    is_repaired: AtomicBool,
    kept: Mutex<Instant>,
    /// It is to be forgotten when it ends.
    pub is_stopped: AtomicBool,
}

impl Work for Job {
    fn progress(&self) -> (u64, u64) {
        let report = self.report();
        (report.done_blocks * BLOCK_SIZE as u64, report.total_blocks * BLOCK_SIZE as u64)
    }
}

impl Job {
    pub fn new(members: Arc<Members>, store: Arc<Store>, fs: Arc<Fs>, unfinished: Unfinished) -> Self {
        let floor = AtomicU64::new(unfinished.report.done_blocks);
        Self {
            members,
            store,
            fs,
            progress: Progress::default(),
            floor,
            unfinished: Mutex::new(unfinished),
            lost: Mutex::default(),
            is_repaired: AtomicBool::new(false),
            kept: Mutex::new(Instant::now()),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// What it has found so far.
    pub fn report(&self) -> ScrubReport {
        self.now().report
    }

    /// What is to be kept of it now.
    pub fn now(&self) -> Unfinished {
        let mut unfinished = self.unfinished.lock().clone();
        let report = &mut unfinished.report;
        // Until the traversal begins, what is known is what was kept.
        let (done, total) = self.progress.blocks();
        report.total_blocks = if total == 0 { report.total_blocks } else { total };
        report.done_blocks = self.floor.fetch_max(done, Ordering::AcqRel).max(done);
        unfinished
    }

    /// Keeps where the scrub is, now and then in the volume, too.
    pub fn keep(&self, cursor: Cursor) {
        self.unfinished.lock().cursor = cursor;
        let mut kept = self.kept.lock();
        if kept.elapsed() < KEEP_INTERVAL || self.store.committable().is_err() {
            return;
        }
        if self.is_repaired.swap(false, Ordering::AcqRel) {
            // A scrub that goes on does not come here again. A flush that fails fences the replica.
            let _ = self.store.mirror().flush();
        }
        if let Err(error) = keep(&self.fs, KeptScrub::Unfinished, Some(&self.now())) {
            log::warn!("where the scrub is cannot be kept in the volume: {error}");
        }
        *kept = Instant::now();
    }

    /// Counts what was read of a replica.
    pub fn read(&self, index: usize, bytes: u64) {
        let mut unfinished = self.unfinished.lock();
        let row = unfinished.report.replica(index);
        if row.replica.is_empty() {
            // It was added meanwhile.
            row.replica = self.members.registry_id(index).to_owned();
        }
        row.bytes += bytes;
    }

    /// Adds something that a replica does not hold as it must.
    pub fn add(&self, index: usize, repaired: bool, finding: ScrubFinding) {
        let device = self.store.mirror().device_name(index);
        let finding = ScrubFinding {
            replica: self.members.registry_id(index).to_owned(),
            device: if device.is_empty() { "-".to_owned() } else { device },
            repaired,
            ..finding
        };
        log::warn!("scrub: {}{}", sentence(&finding), if repaired { ", and was repaired" } else { "" });
        self.is_repaired.fetch_or(repaired, Ordering::AcqRel);
        self.unfinished.lock().report.add(finding);
    }

    /// Notes that not everything on a replica is looked at. The first reason stays.
    pub fn leave_out(&self, index: usize, why: String) {
        self.unfinished.lock().report.replica(index).left_out.get_or_insert(why);
    }

    /// Notes which replicas cannot be looked at, by the table.
    pub fn note_absent(&self) {
        for index in 0..self.store.mirror().len() {
            let id = self.members.registry_id(index).to_owned();
            if id.is_empty() {
                continue;
            }
            self.unfinished.lock().report.replica(index).replica = id;
            let state = self.members.state(index);
            if state != State::InSync {
                self.leave_out(index, format!("it was {} when the scrub came to it", state.as_str()));
            }
        }
    }

    /// Finds the paths of the files in which something was found. What was freed meanwhile is forgotten.
    pub fn name_files(&self, go_on: &dyn Fn() -> bool) {
        let lost = std::mem::take(&mut *self.lost.lock());
        let mut files: BTreeSet<Ino> = lost.iter().filter_map(|(_, of)| of.map(|(ino, _)| ino)).collect();
        files.extend(self.unfinished.lock().report.findings.iter().filter_map(|finding| finding.ino.map(Ino)));
        if lost.iter().any(|(_, of)| of.is_none()) {
            let in_use = self.store.persisted();
            let metadata = lost.iter().filter(|(_, of)| of.is_none()).map(|(addr, _)| *addr);
            metadata
                .filter(|addr| !in_use.is_allocated(*addr))
                .for_each(|addr| self.store.forget_lost(Run::new(addr, 1)));
        }
        if files.is_empty() {
            return;
        }
        let names = match self.fs.paths(&files, go_on) {
            Ok(names) => names,
            Err(error) => return log::error!("the files in which a scrub found something have no names: {error}"),
        };
        let of_lost = lost.iter().filter_map(|(_, of)| of.map(|(ino, _)| ino));
        self.store.name_lost(of_lost.filter_map(|ino| Some((ino, told_path(names.get(&ino)?)))).collect());
        for finding in &mut self.unfinished.lock().report.findings {
            if let Some(path) = finding.ino.and_then(|ino| names.get(&Ino(ino))) {
                (finding.what, finding.ino) = (told_path(path), None);
            }
        }
    }
}
