//! Promise P4: whatever byte is changed, nothing wrong is ever read, and what another replica still has is repaired.

use super::Bench;
use super::support::images::Log;
use super::support::rng::Rng;
use super::workload::{self, Tree};
use scelle::device::memory::Disk;
use scelle::limits::LABEL_SIZE;
use scelle::problem::ExitCode;

const BLOCK: u64 = 4096;

/// A volume with a tree on two replicas, after a clean end.
fn prepared(rng: &mut Rng) -> (Bench, Tree) {
    let mut bench = Bench::new(2);
    let (open, devices) = bench.start(&Log::default());
    for _ in 0..60 {
        workload::step(open.fs(), rng);
    }
    let tree = workload::look(open.fs()).unwrap();
    open.close().unwrap();
    bench.keep(&devices);
    (bench, tree)
}

/// Changes one random byte of `block`.
fn flip(disk: &mut Disk, block: u64, rng: &mut Rng) {
    let mut bytes = [0; BLOCK as usize];
    disk.read(block * BLOCK, &mut bytes);
    bytes[rng.below(BLOCK) as usize] ^= 1 << rng.below(8);
    disk.write(block * BLOCK, &bytes);
}

#[test]
fn p4_damage_on_one_replica_is_never_seen_and_is_repaired_or_reported() {
    let mut rng = Rng::seeded();
    let (bench, tree) = prepared(&mut rng);
    let mut repaired = 0;
    for block in bench.disks[0].blocks() {
        let mut disks = bench.disks.clone();
        flip(&mut disks[0], block, &mut rng);
        let present: Vec<Option<Disk>> = disks.into_iter().map(Some).collect();
        let (assembled, devices) = bench.assemble(&present, &Log::default()).unwrap();
        let open = bench.open(assembled, false).unwrap();
        assert_eq!(workload::look(open.fs()).unwrap(), tree, "block {block}");
        repaired += open.status().replicas[0].errors.repaired;
        open.close().unwrap();
        // Whatever is left now is reported, and only on the replica that was damaged.
        let left: Vec<Option<Disk>> = devices.iter().map(|d| Some(d.disk())).collect();
        let report = bench.check(&left);
        assert!(report.damages.iter().all(|d| d.recoverable), "block {block}: {:?}", report.damages);
    }
    assert!(repaired > 0);
}

#[test]
fn p4_damage_on_all_replicas_is_an_error_and_never_wrong_bytes() {
    let mut rng = Rng::seeded();
    let (bench, tree) = prepared(&mut rng);
    let (mut errors, mut harmless) = (0, 0);
    let label_blocks = LABEL_SIZE / BLOCK;
    for block in bench.disks[0].blocks() {
        let mut disks = bench.disks.clone();
        let before = rng.next();
        for disk in &mut disks {
            flip(disk, block, &mut Rng::new(before));
        }
        let present: Vec<Option<Disk>> = disks.into_iter().map(Some).collect();
        let outcome = bench
            .assemble(&present, &Log::default())
            .and_then(|(assembled, _)| bench.open(assembled, false))
            .and_then(|open| Ok(workload::look(open.fs())?));
        match outcome {
            Ok(seen) => {
                assert_eq!(seen, tree, "block {block}: wrong bytes");
                harmless += 1;
            }
            Err(error) => {
                assert_eq!(error.code().exit(), ExitCode::Integrity, "block {block}: {error}");
                // A label has a second copy.
                assert!(block >= label_blocks, "block {block}: {error}");
                errors += 1;
            }
        }
    }
    println!("{errors} errors, {harmless} harmless");
    assert!(errors > 0 && harmless > 0);
}
