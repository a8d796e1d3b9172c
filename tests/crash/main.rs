//! Crash test (promise P5): every device logs its writes; at any point of the log the power fails, any subset of what
//! was not flushed survives, torn at 512 bytes, on each replica by itself. What is found then must be a state that the
//! filesystem passed through, no older than the last sync that had returned, and whole in every check.
//!
//! Corruption test (promise P4): any byte of anything is changed, on one replica or on all.
//!
//! `SCELLE_SEED` repeats what a run chooses: its operations, the points of the log, what survives there. From one log the
//! same states come, to the byte. The log itself is of threads: each replica has a worker, and the volume commits once a second.
//! So the order between the replicas, and where a commit of its own falls, may be another the next time.

#![allow(clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "bytes and places are made from small numbers")]

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod corruption;
mod court;
mod diverged;
mod enrolment;
mod failing;
mod health;
mod hollow;
mod labels;
mod losses;
mod members;
mod outage;
mod pairs;
mod promises;
mod provisional;
mod refusal;
mod regions;
mod resync;
mod room;
mod scrub;
mod shapes;
mod storm;
mod swap;
mod weather;
mod witness;
mod workload;
mod writers;

use std::sync::Arc;

use scelle::device::memory::{Disk, MemoryDevice};
use scelle::problem::Code;
use scelle::units::{BLOCK_SIZE, Ino};
use scelle::volume::{self, Assembled, OpenOptions};
use support::court::{CALLER, Court, Plan};
use support::images::{Disks, Event, Log};
use support::rng::{self, Rng};
use workload::Tree;

/// Little, so that clusters make room for one another.
const CACHE_BYTES: u64 = 1 << 20;

const SIZE: u64 = 17 << 20;

/// A volume as what its disks hold, with what is needed to open any copy of them.
struct Bench {
    court: Court,
    disks: Vec<Disk>,
}

impl Bench {
    fn new(replicas: usize) -> Self {
        let court = Court::of(Plan { replicas, size: SIZE, ..Plan::default() });
        Self { disks: court.disks(), court }
    }

    /// All the disks.
    fn all(&self) -> Vec<Option<Disk>> {
        self.disks.iter().cloned().map(Some).collect()
    }

    /// From now on the disks hold what these devices do.
    fn keep(&mut self, devices: &[Arc<MemoryDevice>]) {
        self.disks = devices.iter().map(|device| device.disk()).collect();
    }

    /// The volume on copies of `disks`; `None` is a device that is not there.
    fn assemble(
        &self,
        disks: &[Option<Disk>],
        log: &Log,
    ) -> Result<(Assembled, Vec<Arc<MemoryDevice>>), volume::Error> {
        let copy = self.court.on(disks, log);
        Ok((copy.assembled()?, copy.memory))
    }

    /// Opens the volume on copies of all its disks.
    fn start(&self, log: &Log) -> (volume::Open, Vec<Arc<MemoryDevice>>) {
        let (assembled, devices) = self.assemble(&self.all(), log).unwrap();
        (self.open(assembled, false).unwrap(), devices)
    }

    /// What a check of copies of these disks finds.
    fn check(&self, disks: &[Option<Disk>]) -> volume::CheckReport {
        self.court.on(disks, &Log::default()).report()
    }

    /// Leaves this many blocks free, so that what is freed is soon used again.
    fn fill(&mut self, room: u64) {
        let (open, devices) = self.start(&Log::default());
        let (fs, usage) = (open.fs(), open.store().usage());
        let file = fs.mknod(&CALLER, Ino::ROOT, b"full", 0o600, 0).unwrap();
        let blocks = usage.free_blocks - usage.reserved_blocks - room;
        fs.fallocate(file.ino, 0, blocks * BLOCK_SIZE as u64, libc::FALLOC_FL_KEEP_SIZE as u32).unwrap();
        fs.forget(file.ino, 1);
        open.close().unwrap();
        self.keep(&devices);
    }

    fn open(&self, assembled: Assembled, degraded: bool) -> Result<volume::Open, volume::Error> {
        assembled.open(
            &self.court.documents.registry,
            &OpenOptions { degraded, cache_bytes: CACHE_BYTES, ..OpenOptions::default() },
        )
    }
}

/// What a run of the workload left: the log, and the tree after each operation.
#[derive(Clone)]
struct Run {
    log: Vec<Event>,
    states: Vec<Tree>,
    /// Events before the volume was open: what an earlier crash left on one replica alone may be older until then.
    opening: usize,
    /// Replicas that were in sync at the beginning: each of them alone is the whole volume.
    whole: Vec<usize>,
    /// Events during which a thread of the volume's own committed in the middle of a step, which has states in between.
    blurred: Vec<std::ops::Range<usize>>,
    /// The power fails at one in this many events.
    every: u64,
}

fn run_workload(bench: &Bench, steps: usize, rng: &mut Rng) -> Run {
    run_workload_with(bench, steps, 4, rng)
}

/// The same, with a sync after one in `sync` steps.
fn run_workload_with(bench: &Bench, steps: usize, sync: u64, rng: &mut Rng) -> Run {
    let log = Log::default();
    let (open, _devices) = bench.start(&log);
    let fs = open.fs();
    let mut states = vec![workload::look(fs).unwrap()];
    let opening = log.lock().unwrap().len() + 2;
    // The very beginning is durable: it is what the disks hold.
    log.lock().unwrap().splice(0..0, [Event::State, Event::Synced(0)]);
    let mut blurred = Vec::new();
    for _ in 0..steps {
        let begin = log.lock().unwrap().len();
        workload::step(fs, rng);
        let tree = workload::look(fs).unwrap();
        if states.last() != Some(&tree) {
            states.push(tree);
            log.lock().unwrap().push(Event::State);
        }
        let flush = |event: &Event| matches!(event, Event::Flush(_));
        let interrupted = log.lock().unwrap()[begin..].iter().any(flush);
        if interrupted || rng.one_in(sync) {
            let state = states.len() - 1;
            fs.sync().unwrap();
            let mut log = log.lock().unwrap();
            log.push(Event::Synced(state));
            if interrupted {
                blurred.push(begin..log.len());
            }
        }
    }
    let log = log.lock().unwrap().clone();
    Run { log, states, opening, whole: (0..bench.disks.len()).collect(), blurred, every: 1 }
}

/// Every crash state that is tried; returns how many, and one of them to go on from.
fn crash_everywhere(bench: &Bench, run: &Run, per_point: usize, rng: &mut Rng) -> (usize, Vec<Disk>) {
    let mut disks = Disks::new(&bench.disks);
    let (mut synced, mut reached, mut tried) = (0, 0, 0);
    let mut next = bench.disks.clone();
    for (point, event) in run.log.iter().enumerate() {
        disks.apply(event);
        match event {
            // States are pushed after the operation, whose writes may be in flight already: but not committed, or blurred.
            Event::State => reached += 1,
            Event::Synced(state) => synced = *state,
            Event::Write(..) | Event::Flush(_) | Event::Durable(..) => {}
        }
        if run.blurred.iter().any(|range| range.contains(&point)) || !rng.one_in(run.every) {
            continue;
        }
        for _ in 0..per_point {
            let (disks, survival) = disks.crash(rng);
            // One replica alone must do as well as all of them.
            let only = (disks.len() > 1 && point >= run.opening && rng.one_in(3)).then(|| rng.pick(&run.whole));
            let present: Vec<Option<Disk>> =
                disks.iter().enumerate().map(|(i, d)| only.is_none_or(|o| o == i).then(|| d.clone())).collect();
            let whole_check = rng.one_in(8);
            let what = || format!("crash at event {point} of {}, {survival:?}, only {only:?}", run.log.len());
            let tree = recover(bench, &present, whole_check).unwrap_or_else(|error| panic!("{}: {error}", what()));
            let last = reached.min(run.states.len());
            let found = run.states[synced..last].iter().position(|state| *state == tree);
            assert!(found.is_some(), "{}: a state that never was, or older than state {synced}: {tree:#?}", what());
            tried += 1;
            if only.is_none() && rng.one_in(run.log.len() as u64 * per_point as u64 / 4) {
                next = disks;
            }
        }
    }
    (tried, next)
}

fn recover(bench: &Bench, disks: &[Option<Disk>], whole_check: bool) -> Result<Tree, volume::Error> {
    let log = Log::default();
    let degraded = disks.iter().any(Option::is_none);
    let (assembled, mut devices) = bench.assemble(disks, &log)?;
    let open = match bench.open(assembled, degraded) {
        // A replica by itself does not know whether its last commit was answered for: somebody has to say so.
        Err(error) if degraded && error.code() == Code::VolumeUnproven => {
            let court = bench.court.on(disks, &log);
            let accept = OpenOptions { degraded, accept_rollback: error.acceptable(), ..OpenOptions::default() };
            let open = court.open_with(&accept)?;
            devices = court.memory;
            open
        }
        outcome => outcome?,
    };
    let tree = workload::look(open.fs())?;
    let status = open.status();
    assert!(status.read_only.is_none());
    assert!(
        status.replicas.iter().all(|r| r.errors == scelle::mirror::ErrorCounts::default()),
        "{:?}",
        status.replicas
    );
    open.close()?;
    if whole_check {
        let mut left = devices.iter().map(|d| d.disk());
        let disks: Vec<Option<Disk>> = disks.iter().map(|d| d.as_ref().and_then(|_| left.next())).collect();
        let report = bench.assemble(&disks, &log)?.0.check(&mut |_, _| {})?;
        assert!(report.count == 0 && report.blocks > 0, "{:?}", report.damages);
    }
    Ok(tree)
}

fn campaign(mut bench: Bench, seed: u64, rounds: usize, steps: usize, per_point: usize) -> usize {
    let replicas = bench.disks.len();
    let mut rng = Rng::new(seed);
    let mut tried = 0;
    for _ in 0..rounds * rng::soak() as usize {
        let run = run_workload(&bench, steps, &mut rng);
        let (count, next) = crash_everywhere(&bench, &run, per_point, &mut rng);
        tried += count;
        // The next round begins with what a crash left behind.
        bench.disks = next;
    }
    println!("{tried} crash states with {replicas} replicas");
    tried
}

#[test]
fn p5_any_crash_leaves_a_state_the_filesystem_passed_through() {
    let seed = rng::seed();
    let of = |replicas: u64| campaign(Bench::new(replicas as usize), seed + replicas, 3, 40, 3);
    let tried = [1, 2, 3].into_iter().map(of).sum::<usize>();
    assert!(tried >= 2000, "only {tried} crash states");
}

/// Where space is scarce, what one commit freed is what the next one takes.
#[test]
fn p5_any_crash_of_a_volume_that_is_nearly_full() {
    let seed = rng::seed();
    let of = |replicas: u64| {
        let mut bench = Bench::new(replicas as usize);
        bench.fill(300);
        campaign(bench, seed + replicas, 3, 40, 3)
    };
    let tried = [1, 2].into_iter().map(of).sum::<usize>();
    assert!(tried >= 1000, "only {tried} crash states");
}

/// A test of the test: when flushes are lies, or writes that should be durable are not, some crash loses what was synced.
#[test]
fn the_crash_test_notices_flushes_that_do_nothing() {
    let mut rng = Rng::new(7);
    let bench = Bench::new(1);
    let run = run_workload(&bench, 150, &mut rng);
    let is_flush = |event: &Event| matches!(event, Event::Flush(_));
    let is_durable = |event: &Event| matches!(event, Event::Durable(..));
    let lies: [&dyn Fn(&Event) -> bool; 2] = [&is_flush, &is_durable];
    for lie in lies {
        let log = run.log.iter().filter(|event| !lie(event)).cloned().collect();
        let run = Run { log, ..run.clone() };
        let outcome = std::panic::catch_unwind(|| crash_everywhere(&bench, &run, 4, &mut Rng::new(8)));
        assert!(outcome.is_err(), "nobody noticed");
    }
}

/// What [`Bench`] shares between threads that panic on purpose is not changed by them.
impl std::panic::RefUnwindSafe for Bench {}
