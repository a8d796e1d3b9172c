//! Faults in pairs (promises P5, P6): what each of two replicas shows after a commit that was answered for, with one of them
//! away and back again. Nothing that was answered for is lost without a refusal, as long as one replica has it.

use scelle::device::memory::Disk;
use scelle::mirror::State;
use scelle::problem::Code;
use scelle::volume::{self, Open, OpenOptions};

use super::provisional::{Commit, is_label};
use super::support::court::content;
use super::support::images::{Disks, Event, Log};
use super::support::rng::{self, Rng};
use super::support::wait_for;

const BLOCK: u64 = 4096;

/// What a replica shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// All that it was given.
    Honest,
    /// What it had one commit before.
    OneBehind,
    /// The commit's root, and none of the blocks.
    NoBlocks,
    /// A page or node of the commit with one bit changed.
    Damaged,
    /// The commit but for one block of its file, which a large commit's root does not prove.
    DamagedData,
    /// The commit's blocks, and not its root: the power failed between the roots of the replicas.
    NoRoot,
    /// Nothing: it is away.
    Absent,
}

use Shows::{Absent, Damaged, DamagedData, Honest, NoBlocks, NoRoot, OneBehind};

const ALL: [Shows; 5] = [Honest, OneBehind, NoBlocks, Damaged, Absent];

/// What a mount must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The commit is there.
    There,
    /// The commit before is there. A host that remembers the commit refuses.
    Before,
    /// Refused: a replica that is away may have the commit.
    Unproven,
    /// Refused: one replica never showed the commit, and the other lacks some of it.
    Undecided,
    /// Refused: one replica has the commit, and the other went on without it.
    Diverged,
    /// Every replica lacks some of what it had flushed: refused, or the file cannot be read.
    Unreadable,
}

use Outcome::{Before, Diverged, There, Undecided, Unproven, Unreadable};

/// The table of outcomes.
fn expected(pair: [Shows; 2], provisional: bool) -> Outcome {
    match pair {
        _ if pair.contains(&Honest) => There,
        [Damaged, Damaged | NoRoot] | [NoRoot, Damaged] => There,
        [OneBehind, OneBehind | Absent] | [Absent, OneBehind] => Before,
        _ if pair.contains(&Absent) => Unproven,
        // As after a power failure before the flush.
        _ if provisional => Before,
        [OneBehind, _] | [_, OneBehind] => Undecided,
        _ => Unreadable,
    }
}

struct Cell<'a> {
    commit: &'a Commit,
    file: Vec<u8>,
    pair: [Shows; 2],
    provisional: bool,
    seed: u64,
}

impl Cell<'_> {
    /// What replica `index` holds when it shows this.
    fn disk(&self, index: usize, shows: Shows) -> Option<Disk> {
        let mut disks = Disks::new(&self.commit.bench.disks);
        let events = self.commit.events.iter().filter(|event| !matches!(event, Event::State | Event::Synced(_)));
        match shows {
            Absent => return None,
            OneBehind => {}
            Honest | Damaged | DamagedData => events.for_each(|event| disks.apply(event)),
            NoBlocks => {
                let is_block = |event: &&Event| matches!(event, Event::Write(_, at, _) if !is_label(*at));
                events.filter(|event| !is_block(event)).for_each(|event| disks.apply(event));
            }
            NoRoot => {
                let is_root = |event: &&Event| match event {
                    Event::Write(_, at, _) => is_label(*at),
                    event => matches!(event, Event::Durable(..)),
                };
                events.filter(|event| !is_root(event)).for_each(|event| disks.apply(event));
            }
        }
        let mut disk = disks.durable[index].clone();
        if matches!(shows, Damaged | DamagedData) {
            // Another one on each replica.
            let blocks = match shows {
                DamagedData => self.commit.data.iter().copied().collect(),
                _ => self.commit.provable(index),
            };
            let half = blocks.len() / 2;
            let part = if index == 0 { &blocks[..half] } else { &blocks[half..] };
            let mut rng = Rng::new(self.seed);
            let block = part[rng.below(part.len() as u64) as usize];
            let mut bytes = [0; BLOCK as usize];
            disk.read(block * BLOCK, &mut bytes);
            bytes[rng.below(BLOCK) as usize] ^= 1 << rng.below(8);
            disk.write(block * BLOCK, &bytes);
        }
        Some(disk)
    }

    fn disks(&self) -> Vec<Option<Disk>> {
        self.pair.iter().enumerate().map(|(index, shows)| self.disk(index, *shows)).collect()
    }

    /// Mounts, and waits for what is resynced. Returns what comes of it, and the disks afterwards.
    fn mount(&self, disks: &[Option<Disk>], options: &OpenOptions) -> (Outcome, Vec<Option<Disk>>) {
        let options = OpenOptions { degraded: disks.iter().any(Option::is_none), ..options.clone() };
        let court = self.commit.bench.court.on(disks, &Log::default());
        let (outcome, is_open) = match court.open_with(&options) {
            Ok(open) => (self.look(open, options.accept_rollback.is_some()), true),
            Err(error) => (refused(&error, self), false),
        };
        let mut left = court.disks().into_iter();
        let left: Vec<Option<Disk>> = disks.iter().map(|disk| disk.as_ref().and_then(|_| left.next())).collect();
        // A damaged replica that was accepted for the whole volume still lacks what it lacks.
        let is_accepted = options.accept_rollback.is_some() && outcome == There;
        if is_open && outcome != Unreadable && expected(self.pair, self.provisional) != Unreadable && !is_accepted {
            let report = self.commit.bench.check(&left);
            assert_eq!(report.count, 0, "{self:?}: in sync, and damaged: {:?}", report.damages.first());
        }
        (outcome, left)
    }

    /// Accepts what the refusal of these disks names.
    fn accepting(&self, disks: &[Option<Disk>]) -> OpenOptions {
        let options = OpenOptions { degraded: disks.iter().any(Option::is_none), ..OpenOptions::default() };
        let court = self.commit.bench.court.on(disks, &Log::default());
        let accept_rollback = match court.open_with(&options).err().unwrap() {
            volume::Error::Diverged { one, .. } => Some(one.generation),
            error => error.acceptable(),
        };
        OpenOptions { accept_rollback, ..options }
    }

    fn look(&self, open: Open, accepted: bool) -> Outcome {
        let is_resyncing = || open.status().replicas.iter().any(|replica| replica.state == State::Resyncing);
        wait_for("the resync", || !is_resyncing());
        let outcome = match open.fs().lookup(scelle::units::Ino::ROOT, b"after") {
            Ok(attr) => match open.fs().read(attr.ino, 0, self.file.len(), &mut Vec::new()) {
                Ok(bytes) => {
                    assert!(bytes == self.file, "{self:?}: wrong bytes");
                    There
                }
                Err(_) => Unreadable,
            },
            Err(error) if error.errno() == libc::ENOENT => Before,
            Err(_) => Unreadable,
        };
        if accepted && outcome == Before && expected(self.pair, self.provisional) == Undecided {
            let mounted = super::audit::trail(&open).into_iter().rfind(|record| record.event == "mounted").unwrap();
            let is_told = mounted.reasons.iter().any(|reason| reason.code == Code::VolumeUnproven.to_string());
            assert!(is_told, "{self:?}: what was accepted is not in the trail: {mounted:?}");
        }
        let closed = open.close();
        assert!(closed.is_ok() || outcome == Unreadable, "{self:?}: {closed:?}");
        outcome
    }

    /// Everything that is to be seen of this pair.
    fn run(&self) {
        let wanted = expected(self.pair, self.provisional);
        let (found, left) = self.mount(&self.disks(), &OpenOptions::default());
        // What is damaged may be something else than the file.
        let found = if wanted == Unreadable && found == There { Unreadable } else { found };
        assert_eq!(found, wanted, "{self:?}");
        let returned = |left: &[Option<Disk>]| -> Vec<Option<Disk>> {
            left.iter().enumerate().map(|(i, disk)| disk.clone().or_else(|| self.disk(i, Honest))).collect()
        };
        match wanted {
            There => {
                // Whoever was away comes back, and each is the volume by itself.
                let (found, both) = self.mount(&returned(&left), &OpenOptions::default());
                assert_eq!(found, There, "{self:?}: the second mount");
                for alone in [[both[0].clone(), None], [None, both[1].clone()]] {
                    assert_eq!(self.mount(&alone, &OpenOptions::default()).0, There, "{self:?}: alone");
                }
            }
            Before if self.pair.contains(&Absent) => {
                // The one that comes back has the commit: it is not overwritten before somebody says so.
                let returned = returned(&left);
                for options in [OpenOptions::default(), self.accepting(&returned)] {
                    assert_eq!(self.mount(&returned, &options).0, Diverged, "{self:?}: the return");
                }
            }
            Before => assert_eq!(self.mount(&left, &OpenOptions::default()).0, Before, "{self:?}: the second mount"),
            Unproven => {
                // Nothing was written: the one that was away brings the commit along.
                assert!(left == self.disks(), "{self:?}: something was written");
                assert_eq!(self.mount(&returned(&left), &OpenOptions::default()).0, There, "{self:?}: the return");
                let (accepted, left) = self.mount(&self.disks(), &self.accepting(&self.disks()));
                let unreadable = matches!(accepted, Unreadable | There);
                assert!(if self.provisional { accepted == Before } else { unreadable }, "{self:?}: {accepted:?}");
                if accepted == Before {
                    assert_eq!(self.mount(&returned(&left), &OpenOptions::default()).0, Diverged, "{self:?}: later");
                }
            }
            Undecided => self.decide(&left),
            Diverged | Unreadable => {}
        }
    }

    /// What can be said of a commit that one replica never showed and that the other lacks some of.
    fn decide(&self, left: &[Option<Disk>]) {
        assert!(left == self.disks(), "{self:?}: something was written");
        // Whoever has lost the commit is exchanged for its copy: nothing was lost by the refusal.
        for index in (0..2).filter(|index| self.pair[*index] != OneBehind) {
            let mut disks = self.disks();
            disks[index] = self.disk(index, Honest);
            assert_eq!(self.mount(&disks, &OpenOptions::default()).0, There, "{self:?}: the return");
        }
        let back = self.accepting(&self.disks());
        let (found, both) = self.mount(&self.disks(), &back);
        assert_eq!(found, Before, "{self:?}: the rollback");
        for disks in [both.clone(), vec![both[0].clone(), None], vec![None, both[1].clone()]] {
            assert_eq!(self.mount(&disks, &OpenOptions::default()).0, Before, "{self:?}: after the rollback");
        }
        let on = back.accept_rollback.map(|generation| generation.next());
        let (found, _) = self.mount(&self.disks(), &OpenOptions { accept_rollback: on, ..back });
        assert!(matches!(found, Unreadable | There), "{self:?}: what is left of the commit: {found:?}");
    }
}

impl std::fmt::Debug for Cell<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, SCELLE_SEED={}", self.pair, self.seed)
    }
}

fn refused(error: &volume::Error, cell: &Cell<'_>) -> Outcome {
    match error.code() {
        Code::VolumeUnproven if cell.pair.contains(&Absent) => Unproven,
        Code::VolumeUnproven => Undecided,
        Code::VolumeDiverged => Diverged,
        Code::StoreDamaged | Code::FilesystemDamaged => Unreadable,
        code => panic!("{cell:?}: {code:?}: {error}"),
    }
}

fn every_pair(len: usize, provisional: bool) {
    let commit = Commit::of(2, len);
    let seed = rng::seed();
    let pairs = ALL.iter().flat_map(|one| ALL.iter().map(move |other| [*one, *other]));
    for pair in pairs.filter(|pair| *pair != [Absent, Absent]) {
        Cell { commit: &commit, file: content(1, len), pair, provisional, seed }.run();
    }
}

/// Whichever block is damaged: the commit is whole nowhere, and the one before is.
#[test]
fn p6_a_commit_is_not_decided_silently_when_it_is_damaged_beside_a_replica_that_never_showed_it() {
    let commit = Commit::of(2, 600_000);
    let (first, file) = (rng::seed(), content(1, 600_000));
    for seed in (0..24).map(|more| first.wrapping_add(more)) {
        for pair in [[OneBehind, Damaged], [Damaged, OneBehind]] {
            Cell { commit: &commit, file: file.clone(), pair, provisional: false, seed }.run();
        }
    }
}

/// That one had flushed the commit's blocks: nothing is lost, and nobody is asked.
#[test]
fn p6_a_damaged_commit_is_completed_from_a_replica_that_lacks_its_root_alone() {
    for (len, provisional) in [(30_000, true), (600_000, false)] {
        let commit = Commit::of(2, len);
        for (seed, pair) in (rng::seed()..).zip([[NoRoot, Damaged], [Damaged, NoRoot]]) {
            Cell { commit: &commit, file: content(1, len), pair, provisional, seed }.run();
        }
    }
}

/// The root of a large commit does not say where its data is.
#[test]
fn p6_a_commit_is_not_decided_silently_when_its_data_is_damaged_beside_a_replica_that_never_showed_it() {
    let commit = Commit::of(2, 600_000);
    let (first, file) = (rng::seed(), content(1, 600_000));
    for (seed, pair) in (first..).zip([[DamagedData, OneBehind], [OneBehind, DamagedData], [DamagedData, Honest]]) {
        Cell { commit: &commit, file: file.clone(), pair, provisional: false, seed }.run();
    }
}

#[test]
fn p6_every_pair_of_faults_after_a_small_commit() {
    every_pair(30_000, true);
}

#[test]
fn p6_every_pair_of_faults_after_a_large_commit() {
    every_pair(600_000, false);
}
