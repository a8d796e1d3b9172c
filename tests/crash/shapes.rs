//! Promise P5 where the format is wide: both trees with two levels, free space at the borders of regions, and a ring of roots
//! that has gone round.

use std::collections::BTreeSet;

use scelle::label::{ROOT_SLOTS, slot_offsets};
use scelle::limits::LABEL_SIZE;
use scelle::space::REGION_BLOCKS;
use scelle::units::BLOCK_SIZE;

use super::support::court::{Court, Plan, put};
use super::support::images::{Event, Log};
use super::support::rng::{self, Rng};
use super::writers::writers_and_crashes;
use super::{Bench, SIZE, crash_everywhere, run_workload_with};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// More regions than one node of the tree above them can name.
const WIDE: u64 = 14 << 30;

/// Blocks on either side of a border that are free.
const AROUND: u64 = 6;

/// A full volume of which only blocks around the borders of some regions are free.
fn wide(replicas: usize) -> Bench {
    let court = Court::of(Plan { replicas, size: WIDE, ..Plan::default() });
    let mut bench = Bench { disks: court.disks(), court };
    let (open, devices) = bench.start(&Log::default());
    for number in 0..12 {
        let ino = put(open.fs(), format!("wide-{number}").as_bytes(), &[number; 1000]).unwrap();
        open.fs().setxattr(ino, b"user.a", &vec![number; 52_000], 0).unwrap();
    }
    open.close().unwrap();
    bench.keep(&devices);
    bench.fill(8000);
    // What was left of the first region, where the metadata of the mounts before was: the borders come next. A little at a
    // time, so that it is taken from there.
    for number in 0..3 {
        let (open, devices) = bench.start(&Log::default());
        let front = put(open.fs(), format!("front-{number}").as_bytes(), b"").unwrap();
        for part in 0..120 {
            let keep_size = libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();
            open.fs().fallocate(front, part * 20 * BLOCK, 20 * BLOCK, keep_size).unwrap();
        }
        open.close().unwrap();
        bench.keep(&devices);
    }
    let (open, devices) = bench.start(&Log::default());
    let fs = open.fs();
    let scanned = fs.scan(None, 100_000).unwrap();
    let mut freed = 0;
    for border in (1..100).map(|region| region * REGION_BLOCKS) {
        let holds = |addr: u64, blocks: u64| addr + AROUND <= border && border + AROUND <= addr + blocks;
        let Some(found) = scanned.iter().find(|found| holds(found.extent.addr.0, found.extent.blocks)) else {
            continue;
        };
        let from = found.extent.lblock + (border - AROUND - found.extent.addr.0);
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        fs.fallocate(found.ino, from * BLOCK, 2 * AROUND * BLOCK, punch.cast_unsigned()).unwrap();
        freed += 1;
    }
    assert!(freed > 80, "{freed}");
    fs.sync().unwrap();
    let root = open.store().root();
    assert_eq!((root.db.height, root.space.height), (2, 2), "{:?} {:?}", root.db, root.space);
    open.close().unwrap();
    bench.keep(&devices);
    bench
}

/// The regions that a log writes to.
fn regions(log: &[Event]) -> BTreeSet<u64> {
    let region = |event: &Event| match event {
        Event::Write(0, at, _) if (LABEL_SIZE..WIDE - LABEL_SIZE).contains(at) => {
            Some((at - LABEL_SIZE) / BLOCK / REGION_BLOCKS)
        }
        _ => None,
    };
    log.iter().filter_map(region).collect()
}

#[test]
fn p5_any_crash_where_the_trees_have_two_levels() {
    let seed = rng::seed();
    let mut tried = 0;
    for replicas in [1, 2] {
        let mut rng = Rng::new(seed + replicas);
        let mut bench = wide(replicas as usize);
        for _ in 0..2 * rng::soak() {
            let mut run = run_workload_with(&bench, 60, 4, &mut rng);
            run.every = 4;
            let (count, next) = crash_everywhere(&bench, &run, 1, &mut rng);
            tried += count;
            bench.disks = next;
        }
        let (count, log) = writers_and_crashes(&bench, seed, 15, 8);
        tried += count;
        let regions = regions(&log);
        assert!(regions.len() > 6, "the borders of regions were not written to: {regions:?}");
    }
    println!("{tried} crash states of a wide volume");
    assert!(tried >= 200, "only {tried} crash states");
}

/// More commits than the ring has slots: each overwrites the root of one that others have forgotten.
#[test]
fn p5_any_crash_while_the_ring_of_roots_goes_round() {
    let seed = rng::seed();
    let mut tried = 0;
    for replicas in [1, 2] {
        let mut rng = Rng::new(seed + replicas);
        let mut bench = Bench::new(replicas as usize);
        for _ in 0..rng::soak() {
            let mut run = run_workload_with(&bench, 300, 1, &mut rng);
            run.every = 8;
            let ring: BTreeSet<u64> = (0..ROOT_SLOTS).map(|slot| slot_offsets(slot, SIZE)[0]).collect();
            let is_root = |event: &&Event| matches!(event, Event::Write(0, at, _) if ring.contains(at));
            let roots = run.log.iter().filter(is_root).count() as u64;
            assert!(roots > ROOT_SLOTS + 10, "only {roots} roots");
            let (count, next) = crash_everywhere(&bench, &run, 1, &mut rng);
            tried += count;
            bench.disks = next;
        }
    }
    println!("{tried} crash states while the ring goes round");
    assert!(tried >= 200, "only {tried} crash states");
}
