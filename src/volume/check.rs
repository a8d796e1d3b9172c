//! Offline verification of everything: every label copy, every root, every node, page and data block on every replica,
//! the space map against what is referred to, and the metadata's tables against each other. Writes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::assembled::{Assembled, Chosen};
use super::error::Error;
use super::recovery::Choice;
use super::traverse::{Item, Progress, Traversal};
use crate::audit;
use crate::fs::Fs;
use crate::mirror::State;
use crate::pages::provisional::Proof;
use crate::pages::{Finding, Store, StoreOptions, Unit};
use crate::space::Bitmap;
use crate::units::{BlockAddr, Generation, Ino, Run, Uuid};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The device, or empty when it concerns the volume as a whole.
    pub device: String,
    /// What is wrong.
    pub what: String,
    /// Whether another replica still has it.
    pub recoverable: bool,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// The generation that was checked.
    pub generation: Generation,
    /// Blocks read and verified, over all replicas.
    pub blocks: u64,
    /// What is wrong, at most 1000 rows.
    pub damages: Vec<Damage>,
    /// Number of findings, also those not listed.
    pub count: u64,
    /// What has blocks that no replica can give, and how many: paths of files, as far as they are known.
    pub lost: BTreeMap<String, u64>,
    /// Replicas that could not be checked, and why.
    pub skipped: Vec<String>,
    /// The volume.
    pub volume: Uuid,
    /// The replicas that were read to the end and found whole: identifier in the registry, and digest of the identity.
    pub whole: Vec<(String, [u8; 32])>,
}

/// Most rows of a report.
pub const DAMAGES_MAX: usize = 1000;

impl CheckReport {
    fn add(&mut self, device: &str, what: String, recoverable: bool) {
        self.count += 1;
        if self.damages.len() < DAMAGES_MAX {
            self.damages.push(Damage { device: device.to_owned(), what, recoverable });
        }
    }
}

impl Assembled {
    /// Verifies the newest root and all that it refers to, on every replica present. `progress` is told blocks done
    /// and blocks in all.
    ///
    /// # Errors
    /// When there is no root to check from, or no replica has what the tables are found by.
    pub fn check(mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, Error> {
        self.presume_label();
        self.refuse_swapped()?;
        let Chosen { mut choice, mut proof, .. } = self.choose(&mut self.rings(), true, None)?;
        let volume = self.header.volume;
        let mut report = CheckReport { generation: choice.root.generation, volume, ..CheckReport::default() };
        match self.settle_label(&choice.root) {
            Err(outdated @ Error::LabelOutdated { .. }) => report.add("", outdated.to_string(), false),
            Ok(true) => Chosen { choice, proof, .. } = self.choose(&mut self.rings(), true, None)?,
            outcome => drop(outcome?),
        }
        self.check_labels(&mut report);
        let store = self.store_to_check(&choice)?;
        let unmapped = store.poisoned().map(str::to_owned);
        store.poison_quietly("opened to be checked".to_owned());
        let in_sync: Vec<usize> =
            choice.states.iter().enumerate().filter(|(_, s)| **s == State::InSync).map(|(i, _)| i).collect();
        self.skip(&choice, &mut report);
        let visited = Progress::default();
        let traversal = Traversal::new(&store, &visited, &|| true);
        let total = visited.blocks().1 * in_sync.len() as u64;
        let used = Bitmap::new(self.header.data_blocks);
        let mut examination = Examination {
            assembled: &self,
            store: &store,
            proof: &proof,
            in_sync: &in_sync,
            used,
            damaged: 0,
            lost: BTreeMap::new(),
            report,
        };
        let mut reserved: Vec<Run> = Vec::new();
        let mut visit = |item: Item| {
            match item {
                Item::Unit(unit) => {
                    examination.unit(&unit, traversal.file());
                    let blocks = examination.report.blocks;
                    if blocks.is_multiple_of(1024) {
                        progress(blocks, total);
                    }
                }
                Item::Reserved(run) => reserved.push(run),
            }
            Ok(())
        };
        let mut parts = Parts { store: &store, ended: unmapped.into_iter().collect() };
        parts.go_on("the metadata", traversal.metadata(&mut visit))?;
        let fs = Fs::open(store.clone())?;
        parts.go_on("the content of files", traversal.data(&fs, &mut visit))?;
        let trail = audit::check(&fs, self.header.volume).map_err(Error::from);
        let trail = parts.go_on("the audit trail", trail)?.unwrap_or_default();
        let Examination { mut used, mut report, damaged, lost, .. } = examination;
        let is_whole = parts.ended.is_empty();
        if is_whole {
            report.whole = self.found_whole(&in_sync, damaged);
        }
        name_lost(&mut report, &fs, lost, is_whole)?;
        parts.ended.into_iter().for_each(|what| report.add("", what, false));
        for run in reserved {
            if let Err(error) = used.set(run) {
                report.add("", format!("reserved space is stored in one place with something else: {error}"), false);
            }
        }
        fs.self_check()?.into_iter().chain(trail).for_each(|sentence| report.add("", sentence, false));
        if is_whole {
            compare(&mut report, &used, &store.persisted());
        }
        Ok(report)
    }

    /// Says which replicas, and which devices besides, are not checked.
    fn skip(&self, choice: &Choice, report: &mut CheckReport) {
        let is_row = |index: usize| self.header.replicas.get(index).is_some_and(Option::is_some);
        for (index, state) in choice.states.iter().enumerate().filter(|(index, _)| is_row(*index)) {
            if *state != State::InSync {
                report.skipped.push(format!("{} is {}: not checked", self.name(index), state.as_str()));
            }
        }
        report.skipped.extend(self.others().map(|other| format!("{other}: not checked")));
    }

    fn store_to_check(&self, choice: &Choice) -> Result<Arc<Store>, Error> {
        let (mirror, device_bytes) = self.mirror(&choice.states)?;
        mirror.stop_repairing();
        let options = StoreOptions {
            keys: self.keys.volume_key().keys(self.header.volume),
            volume: self.header.volume,
            total_blocks: self.header.data_blocks,
            device_bytes,
            root: choice.root,
            epoch: choice.root.epoch(),
        };
        Ok(Store::open(mirror, options)?)
    }

    /// The replicas among `in_sync` of which everything was read, their labels included, and nothing was `damaged`.
    fn found_whole(&self, in_sync: &[usize], damaged: u64) -> Vec<(String, [u8; 32])> {
        let has_label =
            |index: usize| self.replicas.iter().any(|r| r.index() == index && r.outdated(&self.header).is_empty());
        let is_whole = |index: &&usize| damaged >> **index & 1 == 0 && has_label(**index);
        let named = |index: &usize| self.header.replicas.get(*index)?.as_ref();
        let whole = in_sync.iter().filter(is_whole).filter_map(named);
        whole.map(|row| (row.registry_id.clone(), row.identity)).collect()
    }

    fn check_labels(&self, report: &mut CheckReport) {
        for replica in &self.replicas {
            for copy in replica.outdated(&self.header) {
                report.add(replica.device.name(), format!("label copy {copy:?} is damaged or outdated"), true);
            }
        }
        for unfit in &self.unfit {
            report.add(unfit.device.name(), format!("its label is not one of the volume's: {}", unfit.why), true);
        }
    }
}

/// The parts of a check. One that meets damage ends there, and the others go on.
struct Parts<'a> {
    store: &'a Store,
    /// What was not checked, and why.
    ended: Vec<String>,
}

impl Parts<'_> {
    fn go_on<T>(&mut self, part: &str, result: Result<T, Error>) -> Result<Option<T>, Error> {
        let is_damage = |error: &Error| match error {
            Error::Store(error) => self.store.is_loss(error),
            Error::Fs(error) => error.is_unreadable_page() || error.is_integrity(),
            _ => false,
        };
        match result {
            Err(error) if is_damage(&error) => {
                self.ended.push(format!("{part}, from here on, was not checked: {error}"));
                Ok(None)
            }
            result => result.map(Some),
        }
    }
}

/// What the replicas hold, unit by unit.
struct Examination<'a> {
    assembled: &'a Assembled,
    store: &'a Store,
    proof: &'a Proof,
    in_sync: &'a [usize],
    /// The blocks that units were found in.
    used: Bitmap,
    /// The replicas that gave something that was not as it must be: bit `i` for replica `i`.
    damaged: u64,
    /// The blocks that none of them has, with their files.
    lost: BTreeMap<BlockAddr, Option<Ino>>,
    report: CheckReport,
}

impl Examination<'_> {
    fn unit(&mut self, unit: &Unit, file: Option<Ino>) {
        if let Err(error) = self.used.set(Run::new(unit.at.addr, 1)) {
            self.report.add("", format!("two things are stored in one place: {error}"), false);
        }
        let found: Vec<Finding> = self.in_sync.iter().map(|replica| self.store.examine(unit, *replica)).collect();
        let recoverable = found.contains(&Finding::Good);
        if !recoverable {
            self.lost.insert(unit.at.addr, file);
        }
        for (replica, finding) in self.in_sync.iter().zip(found) {
            let what = match finding {
                Finding::Good => continue,
                // The power failed before the replica had the block: the next mount gives it.
                Finding::Damaged if self.proof.lacks(*replica, unit.at.addr) => continue,
                Finding::Damaged => "does not verify".to_owned(),
                Finding::Unreadable(error) => error,
            };
            self.damaged |= 1 << replica;
            let what = format!("block {} ({:?}): {what}", unit.at.addr.0, unit.at.kind);
            self.report.add(&self.assembled.name(*replica), what, recoverable);
        }
        self.report.blocks += self.in_sync.len() as u64;
    }
}

/// Names what has lost blocks. What an earlier mount knew counts only where not everything was looked at.
fn name_lost(
    report: &mut CheckReport,
    fs: &Fs,
    lost: BTreeMap<BlockAddr, Option<Ino>>,
    is_whole: bool,
) -> Result<(), Error> {
    let store = fs.store();
    if is_whole {
        store.lost_list().blocks.keys().for_each(|addr| store.forget_lost(Run::new(*addr, 1)));
    }
    for (addr, file) in lost {
        store.note_lost(addr, file);
    }
    let files = store.unnamed_lost();
    if !files.is_empty() {
        match fs.name_lost(&files, &|| true) {
            // Names are lost, too: the file keeps its number.
            Err(error) if error.is_unreadable_page() || error.is_integrity() => {}
            outcome => outcome?,
        }
    }
    report.lost = store.lost();
    Ok(())
}

/// Compares the blocks that are referred to with those that the space map has in use.
fn compare(report: &mut CheckReport, used: &Bitmap, stored: &Bitmap) {
    if used.allocated_runs() == stored.allocated_runs() {
        return;
    }
    for (from, against, what) in
        [(used, stored, "is in use and marked free"), (stored, used, "is marked in use, and nothing refers to it")]
    {
        let wrong = from
            .allocated_runs()
            .into_iter()
            .flat_map(|run| (0..run.blocks).map(move |i| run.addr.add(i)))
            .filter(|addr: &BlockAddr| !against.is_allocated(*addr));
        for addr in wrong {
            report.add("", format!("block {} {what}", addr.0), false);
        }
    }
}
