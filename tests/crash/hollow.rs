//! Labels alone prove nothing: a disk on which only the labels of a replica are right is found at the mount, is copied whole,
//! and is never called in sync before (promise P6).

use scelle::device::memory::Disk;
use scelle::limits::LABEL_SIZE;
use scelle::mirror::{State, device_offset};
use scelle::volume::OpenOptions;

use super::court::{Court, Plan, content, get, put, states, wait_in_sync};
use super::support::rng::{self, Rng};

const SIZE: u64 = 48 << 20;
const MIB: u64 = 1 << 20;

fn name(i: usize) -> Vec<u8> {
    format!("deed-{i}").into_bytes()
}

/// A volume with a hundred files, and what its disks held when half of them were there.
fn court() -> (Court, Vec<Disk>) {
    let court = Court::of(Plan { size: SIZE, ..Plan::default() });
    let mut half = Vec::new();
    for begin in [0, 50] {
        let open = court.open();
        for i in begin..begin + 50 {
            put(open.fs(), &name(i), &content(i as u64, 100_000)).unwrap();
        }
        open.close().unwrap();
        if begin == 0 {
            half = court.disks();
        }
    }
    (court, half)
}

fn read(disk: &Disk, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    disk.read(at, &mut bytes);
    bytes
}

/// The disk with other bytes in its data area, a mebibyte at a time; `None` leaves one as it is.
fn with_data(disk: &Disk, mut data: impl FnMut(u64) -> Option<Vec<u8>>) -> Disk {
    let mut disk = disk.clone();
    for at in (LABEL_SIZE..SIZE - LABEL_SIZE).step_by(MIB as usize) {
        if let Some(bytes) = data(at) {
            disk.write(at, &bytes);
        }
    }
    disk
}

/// Opens the volume with another disk in the place of replica `index`, which has to be found, and copied whole.
fn is_found(court: &Court, index: usize, disk: Disk, what: &str) {
    let mut disks: Vec<Option<Disk>> = court.disks().into_iter().map(Some).collect();
    disks[index] = Some(disk);
    let copy = court.on(&disks, &Default::default());
    let looked = copy.open_with(&OpenOptions { read_only: true, degraded: true, ..OpenOptions::default() }).unwrap();
    assert_eq!(states(&looked)[index], State::Stale, "{what}: only read");
    assert!(!looked.status().is_healthy(), "{what}");
    looked.close().unwrap();
    let open = copy.open_with(&OpenOptions { degraded: true, ..OpenOptions::default() }).unwrap();
    // It may be in sync again by now; but then by a resync.
    assert_eq!(open.members().tasks().list().len(), 1, "{what}: {:?}", states(&open));
    wait_in_sync(&open);
    (0..100).for_each(|i| assert!(get(open.fs(), &name(i)) == content(i as u64, 100_000), "{what}: {i}"));
    open.close().unwrap();
    copy.check();
    let alone = copy.open_of(&[index], true).unwrap();
    (0..100).for_each(|i| assert!(get(alone.fs(), &name(i)) == content(i as u64, 100_000), "{what}: {i} alone"));
    alone.close().unwrap();
}

#[test]
fn p6_a_disk_with_only_the_labels_of_a_replica_is_found_and_copied_whole() {
    let (court, half) = court();
    let mut rng = Rng::new(rng::seed());
    for (index, (disk, half)) in court.disks().iter().zip(&half).enumerate() {
        is_found(&court, index, with_data(disk, |_| Some(vec![0; MIB as usize])), "zeros");
        is_found(&court, index, with_data(disk, |_| Some(rng.bytes(MIB as usize))), "noise");
        // All but one mebibyte in three.
        is_found(
            &court,
            index,
            with_data(disk, |at| (!(at / MIB).is_multiple_of(3)).then(|| vec![0; MIB as usize])),
            "two thirds",
        );
        is_found(&court, index, with_data(disk, |at| Some(read(half, at))), "an old copy under new labels");
        // It was left behind, too: what it is said to have had before it has not.
        is_found(&court, index, with_data(half, |_| Some(vec![0; MIB as usize])), "old labels alone");
    }
}

#[test]
fn a_few_damaged_blocks_make_no_replica_hollow() {
    let (court, _) = court();
    let open = court.open();
    let scanned = open.fs().scan(None, 100).unwrap();
    open.close().unwrap();
    let mut rng = Rng::new(rng::seed());
    for _ in 0..10 {
        let mut disks = court.disks();
        for _ in 0..2 {
            let extent = &scanned[rng.below(scanned.len() as u64) as usize].extent;
            disks[1].write(device_offset(extent.addr), &rng.bytes(4096));
        }
        let disks: Vec<Option<Disk>> = disks.into_iter().map(Some).collect();
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let open = court.on(&disks, &Default::default()).open_with(&options).unwrap();
        assert_eq!(states(&open), [State::InSync; 2]);
        open.close().unwrap();
    }
}

/// Of a volume with one file each block is drawn often. That is one damaged block, however often it is looked at.
#[test]
fn one_damaged_block_of_a_small_volume_makes_no_replica_hollow() {
    let court = Court::new(2);
    let open = court.open();
    put(open.fs(), b"deed", &content(1, 9000)).unwrap();
    open.fs().sync().unwrap();
    let scanned = open.fs().scan(None, 10).unwrap();
    let at = device_offset(scanned[0].extent.addr);
    open.close().unwrap();
    for _ in 0..20 {
        let mut disks = court.disks();
        disks[0].write(at, &[0x5a; 4096]);
        let disks: Vec<Option<Disk>> = disks.into_iter().map(Some).collect();
        let open = court.on(&disks, &Default::default()).open();
        assert_eq!(states(&open), [State::InSync; 2]);
        open.close().unwrap();
    }
}
