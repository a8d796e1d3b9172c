//! Promise P6: a replica that was left behind is recognised and resynced, while the volume is in use, and whatever
//! interrupts it.

use std::time::{Duration, Instant};

use super::court::{states, wait_in_sync};
use super::support::court::{CALLER, Court, content, put};
use super::support::images::{Disks, Event, Log, Survival};
use super::support::rng::Rng;
use super::support::{BOUND, wait_for};
use super::workload::{self, Tree};
use super::{Bench, crash_everywhere, run_workload};
use scelle::device::faulty::{Effect, Fault, Operation};
use scelle::device::memory::Disk;
use scelle::mirror::State;
use scelle::problem::{Code, ExitCode};
use scelle::units::{BLOCK_SIZE, Ino};
use scelle::volume::{Item, OpenOptions, Outcome, Progress, Traversal};

/// A volume of which replica 1 was away for a while.
fn left_behind(rng: &mut Rng) -> Bench {
    let mut bench = Bench::new(2);
    for present in [[true, true], [true, false]] {
        let disks: Vec<Option<Disk>> = bench.disks.iter().zip(present).map(|(d, p)| p.then(|| d.clone())).collect();
        let (assembled, devices) = bench.assemble(&disks, &Log::default()).unwrap();
        let open = bench.open(assembled, true).unwrap();
        (0..60).for_each(|_| workload::step(open.fs(), rng));
        open.close().unwrap();
        for (disk, device) in bench.disks.iter_mut().zip(&devices) {
            *disk = device.disk();
        }
    }
    bench
}

#[test]
fn p6_a_replica_left_behind_is_resynced_while_the_volume_is_in_use() {
    let mut rng = Rng::seeded();
    let mut bench = left_behind(&mut rng);
    // The replica that was left behind does not open by itself once it is being resynced, and says why before.
    let log = Log::default();
    let (open, devices) = bench.start(&log);
    let begin = Instant::now();
    // Looked at once a round: it may be in sync a moment later.
    let state = || open.status().replicas[1].state;
    for found in std::iter::repeat_with(state).take_while(|state| *state != State::InSync) {
        assert!(found == State::Resyncing && begin.elapsed() < BOUND);
        workload::step(open.fs(), &mut rng);
    }
    (0..20).for_each(|_| workload::step(open.fs(), &mut rng));
    let tree: Tree = workload::look(open.fs()).unwrap();
    open.close().unwrap();
    bench.keep(&devices);
    let report = bench.check(&bench.all());
    assert!(report.count == 0 && report.skipped.is_empty(), "{report:?}");
    for alone in 0..2 {
        let mut one = vec![None, None];
        one[alone] = Some(bench.disks[alone].clone());
        let (assembled, _) = bench.assemble(&one, &log).unwrap();
        assert_eq!(workload::look(bench.open(assembled, true).unwrap().fs()).unwrap(), tree, "replica {alone} alone");
    }
}

#[test]
fn p6_a_crash_during_a_resync_loses_nothing() {
    let mut rng = Rng::seeded();
    let bench = left_behind(&mut rng);
    let mut run = run_workload(&bench, 45, &mut rng);
    run.whole = vec![0];
    let (tried, _) = crash_everywhere(&bench, &run, 2, &mut rng);
    println!("{tried} crash states");
    // How many depends on how far the copying is when the workload begins.
    assert!(tried > 100);
}

/// The replicas lose power together, and one of them may have lost all that was not flushed. The mount afterwards needs no
/// word from anybody: both replicas are there, and neither is too old.
#[test]
fn p6_a_power_failure_at_any_moment_of_a_resync_leaves_no_replica_too_old() {
    let mut rng = Rng::seeded();
    let bench = left_behind(&mut rng);
    let log = Log::default();
    let court = bench.court.on(&bench.all(), &log);
    let open = court.open();
    // Many commits while the replica is being resynced.
    court.devices[0].inject(slow_reads(2));
    let is_in_sync = || open.status().replicas[1].state == State::InSync;
    let mut commits = 0;
    while !is_in_sync() {
        workload::step(open.fs(), &mut rng);
        open.fs().sync().unwrap();
        commits += 1;
        if commits == 8 {
            court.devices[0].heal();
        }
    }
    open.close().unwrap();
    let events = log.lock().unwrap().clone();
    let mut disks = Disks::new(&bench.disks);
    for (point, event) in events.iter().enumerate() {
        disks.apply(event);
        // Between the writes of roots nothing else counts.
        if !matches!(event, Event::Durable(..) | Event::Flush(_)) {
            continue;
        }
        for survival in [[Survival::All, Survival::None], [Survival::None, Survival::All], [Survival::None; 2]] {
            let found = (0..2).map(|i| survival[i].apply(&disks.durable[i], &disks.pending[i], &mut rng));
            let found: Vec<Option<Disk>> = found.map(Some).collect();
            let court = bench.court.on(&found, &Log::default());
            if let Err(error) = court.open_with(&OpenOptions { read_only: true, ..OpenOptions::default() }) {
                panic!("power fails at event {point} of {}, {survival:?} is left: {error}", events.len());
            }
        }
    }
    println!("{commits} commits, {} events", events.len());
    assert!(commits >= 3, "{commits}");
}

#[test]
fn p6_half_a_resync_alone_is_refused() {
    let mut rng = Rng::new(5);
    let bench = left_behind(&mut rng);
    // The mount's first root reaches the replica, and says that it is not in sync.
    let (open, devices) = bench.start(&Log::default());
    let early = devices[1].disk();
    drop(open);
    let (assembled, _) = bench.assemble(&[None, Some(early)], &Log::default()).unwrap();
    match bench.open(assembled, true) {
        Ok(open) => assert_eq!(open.status().replicas[1].state, State::InSync, "already in sync by then"),
        Err(error) => assert_eq!(error.code().exit(), ExitCode::Degraded, "{error}"),
    }
}

/// What a resync copies is held for moments only: blocks that commits free meanwhile are used again while the metadata is still
/// being copied.
#[test]
fn p5_deletes_on_a_nearly_full_volume_go_on_beside_a_resync() {
    let court = Court::new(2);
    let open = court.open_of(&[0], true).unwrap();
    let (fs, store) = (open.fs(), open.store());
    let name = |n: u64| format!("a-deed-of-the-court-{n}").into_bytes();
    for n in 0..8000 {
        fs.forget(fs.mknod(&CALLER, Ino::ROOT, &name(n), 0o600, 0).unwrap().ino, 1);
    }
    fs.sync().unwrap();
    fs.checkpoint().unwrap();
    let filler = fs.mknod(&CALLER, Ino::ROOT, b"filler", 0o600, 0).unwrap().ino;
    let usage = store.usage();
    let room = usage.free_blocks - usage.reserved_blocks - 8;
    fs.fallocate(filler, 0, room * BLOCK_SIZE as u64, 0).unwrap();
    fs.forget(filler, 1);
    fs.sync().unwrap();
    court.devices[0].inject(slow_reads(50));
    assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
    // Under one reader the volume has room for some 170.
    for deleted in 0..400 {
        let done = fs.unlink(Ino::ROOT, &name(deleted)).and_then(|()| fs.sync());
        done.unwrap_or_else(|error| panic!("after {deleted}: {error}; {:?}", store.usage()));
    }
    assert_eq!((states(&open)[1], store.poisoned()), (State::Resyncing, None));
    court.devices[0].heal();
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
}

#[test]
fn a_traversal_comes_to_every_block_and_ends_when_it_is_told() {
    let court = Court::new(2);
    let open = court.open();
    let (fs, store) = (open.fs(), open.store());
    for n in 0..150 {
        put(fs, &format!("deed-{n}").into_bytes(), &content(n, 9000)).unwrap();
    }
    let reserved = fs.mknod(&CALLER, Ino::ROOT, b"reserved", 0o600, 0).unwrap().ino;
    fs.fallocate(reserved, 0, 40 * BLOCK_SIZE as u64, 0).unwrap();
    fs.sync().unwrap();
    // The second root refers to what the first one does, and frees what that one could have fallen back to.
    fs.checkpoint().unwrap();
    let progress = Progress::default();
    let (mut units, mut blocks) = (0, 0);
    let mut count = |item: Item| {
        match item {
            Item::Unit(_) => units += 1,
            Item::Reserved(run) => blocks += run.blocks,
        }
        Ok(())
    };
    let traversal = Traversal::new(store, &progress, &|| true);
    assert!(traversal.metadata(&mut count).unwrap() && traversal.data(fs, &mut count).unwrap());
    let usage = store.usage();
    assert_eq!((blocks, units + blocks), (40, usage.total_blocks - store.root().free_blocks));
    assert_eq!(progress.blocks(), (units + blocks, units + blocks));
    // Between two units, in the metadata and in the data.
    for (data, limit) in [(false, 5), (true, 70)] {
        let progress = Progress::default();
        let go_on = || progress.blocks().0 < limit;
        let traversal = Traversal::new(store, &progress, &go_on);
        let mut visit = |_| Ok(());
        let ended = if data { traversal.data(fs, &mut visit) } else { traversal.metadata(&mut visit) };
        assert_eq!((ended.unwrap(), progress.blocks().0), (false, limit));
    }
    fs.forget(reserved, 1);
    open.close().unwrap();
}

/// What the volume does by itself slows no resync down.
#[test]
fn a_volume_that_nobody_uses_counts_no_operations() {
    let court = Court::new(2);
    let open = court.open_of(&[0], true).unwrap();
    for i in 0..700 {
        put(open.fs(), format!("deed-{i}").as_bytes(), b"short").unwrap();
    }
    open.fs().sync().unwrap();
    let before = open.fs().meters().operations();
    open.members().take_in(court.approved(1)).unwrap();
    wait_in_sync(&open);
    std::thread::sleep(Duration::from_millis(1500));
    // What the trail notes of the replica is one each.
    let counted = open.fs().meters().operations() - before;
    assert!(counted <= 3, "{counted}");
    open.close().unwrap();
}

fn slow_reads(ms: u64) -> Fault {
    Fault::always(Operation::Read, Effect::Slow(Duration::from_millis(ms)))
}

/// A resync is a task: it can be cancelled, which leaves the replica behind, and begun again.
#[test]
fn p10_a_cancelled_resync_leaves_the_replica_behind_until_somebody_asks() {
    let court = Court::new(2);
    let open = court.open_of(&[0], true).unwrap();
    let (fs, members) = (open.fs(), open.members());
    let ino = fs.mknod(&CALLER, Ino::ROOT, b"deed", 0o600, 0).unwrap().ino;
    fs.write(ino, 0, &vec![0x5a; 4 << 20]).unwrap();
    fs.sync().unwrap();
    court.devices[0].inject(slow_reads(2));
    assert_eq!(members.take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
    let task = members.task(1).unwrap();
    wait_for("some of it is copied", || members.tasks().list()[0].progress.0 > 0);
    members.tasks().cancel(task).unwrap();
    wait_for("its end", || members.tasks().list()[0].ended.is_some());
    let ended = members.tasks().list()[0].clone();
    assert_eq!((ended.id, ended.ended.unwrap().1), (task, Outcome::Cancelled));
    assert!(ended.progress.0 < ended.progress.1, "{:?}", ended.progress);
    let replica = &open.status().replicas[1];
    assert_eq!(replica.state, State::Stale);
    assert!(replica.reason.as_ref().unwrap().contains("cancelled"), "{replica:?}");
    assert_eq!(members.tasks().cancel(task).unwrap_err().code, Code::TaskEnded);
    // The policy approves it as before, and does not bring it back.
    court.recheck(&open);
    assert_eq!(states(&open), [State::InSync, State::Stale]);
    court.devices[0].heal();
    assert_eq!(members.rejoin(1).unwrap(), State::Resyncing);
    wait_in_sync(&open);
    wait_for("its end", || members.tasks().list().iter().all(|task| task.ended.is_some()));
    let last = members.tasks().list().pop().unwrap();
    assert!(last.id > task && last.ended.unwrap().1 == Outcome::Done);
    open.close().unwrap();
    court.check();
}
