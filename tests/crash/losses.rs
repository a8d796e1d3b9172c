//! What is lost on every replica is known to the volume, over mounts, until it can be read again (promises P4, P11).

use scelle::crypto::Kind;
use scelle::device::memory::Disk;
use scelle::limits::LABEL_SIZE;
use scelle::pages::{self, Unit};
use scelle::problem::Code;
use scelle::units::{BLOCK_SIZE, Ino};
use scelle::volume::{Open, OpenOptions};

use super::Bench;
use super::support::court::{CALLER, Court};
use super::support::images::Log;
use super::support::wait_for;

const FILES: usize = 600;

fn name(i: usize) -> Vec<u8> {
    format!("a document of this court, number {i}").into_bytes()
}

fn open_on(bench: &Bench, disks: &[Disk]) -> Option<(Court, Open)> {
    let disks: Vec<Option<Disk>> = disks.iter().cloned().map(Some).collect();
    let court = bench.court.on(&disks, &Log::default());
    let open = court.open_with(&OpenOptions::default()).ok()?;
    Some((court, open))
}

fn lost(open: &Open) -> Vec<String> {
    open.status().lost.into_keys().collect()
}

/// Places of the pages of the database on the devices, in bytes.
fn pages_of(open: &Open) -> Vec<u64> {
    let (mut found, mut units) = (Vec::new(), open.store().units());
    let mut visit = |unit: &Unit| {
        if unit.at.kind == Kind::Page {
            found.push(LABEL_SIZE + unit.at.addr.0 * BLOCK_SIZE as u64);
        }
        Ok::<bool, pages::Error>(true)
    };
    while units.chunk(&mut visit).unwrap() {}
    found
}

#[test]
fn p4_lost_metadata_is_told_after_a_remount_until_it_can_be_read() {
    let mut bench = Bench::new(2);
    let (open, devices) = bench.start(&Log::default());
    for i in 0..FILES {
        let attr = open.fs().mknod(&CALLER, Ino::ROOT, &name(i), 0o600, 0).unwrap();
        open.fs().forget(attr.ino, 1);
    }
    open.fs().checkpoint().unwrap();
    let places = pages_of(&open);
    open.close().unwrap();
    bench.keep(&devices);
    let mut tried = 0;
    for at in places {
        let mut block = vec![0; BLOCK_SIZE];
        bench.disks[1].read(at, &mut block);
        let mut disks = bench.disks.clone();
        disks.iter_mut().for_each(|disk| disk.write(at, &[7; BLOCK_SIZE]));
        // Without some pages nothing can be found, and some are read by every mount.
        let Some((court, open)) = open_on(&bench, &disks) else { continue };
        let is_found = |i| open.fs().lookup(Ino::ROOT, &name(i)).map(|attr| open.fs().forget(attr.ino, 1)).is_ok();
        if open.store().poisoned().is_some() || !lost(&open).is_empty() || (0..FILES).all(is_found) {
            continue;
        }
        assert_eq!(lost(&open), ["the metadata"]);
        open.close().unwrap();

        let (again, open) = open_on(&bench, &court.disks()).unwrap();
        assert!(lost(&open) == ["the metadata"] && !open.status().is_healthy());
        let told = super::audit::trail(&open).into_iter().rfind(|record| record.event == "damage-found").unwrap();
        assert!(told.reasons.iter().any(|reason| reason.code == Code::BlocksLost.to_string()), "{told:?}");
        open.close().unwrap();

        let mut disks = again.disks();
        disks[1].write(at, &block);
        let (healed, open) = open_on(&bench, &disks).unwrap();
        wait_for("the list to be empty", || lost(&open).is_empty());
        assert!((0..FILES).all(|i| open.fs().lookup(Ino::ROOT, &name(i)).is_ok()));
        open.close().unwrap();
        let (_, open) = open_on(&bench, &healed.disks()).unwrap();
        assert!(lost(&open).is_empty() && open.status().is_healthy());
        tried += 1;
        if tried == 3 {
            return;
        }
    }
    panic!("no page was lost that a mount does without");
}
