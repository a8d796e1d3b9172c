//! Reference-model test: seeded random operations on a volume and on a model in memory, answers compared one by one
//! and the whole tree now and then, with remounts in between. `SCELLE_SEED` repeats a run.

#![allow(clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "bytes and places are made from small numbers")]

mod folder;
mod inprocess;
mod op;
mod reference;
#[path = "../support/mod.rs"]
mod support;
mod target;

use std::process::Command;

use folder::Folder;
use op::Op;
use reference::Reference;
use support::court::{Court, Plan};
use support::lab::{self, Mount};
use support::rng::{self, Rng};
use target::Target;

/// Runs `count` operations drawn from `seed` on both.
fn run(seed: u64, count: usize, reference: &mut Reference, target: &mut dyn Target) {
    let mut rng = Rng::new(seed);
    for number in 0..count {
        let op = Op::draw(&mut rng);
        step(number, &op, reference, target);
    }
    step(count, &Op::Remount, reference, target);
    target::compare(reference, target);
}

fn step(number: usize, op: &Op, reference: &mut Reference, target: &mut dyn Target) {
    let expected = reference.apply(op);
    let got = target.apply(op);
    assert!(
        reference.plausible(op, &expected, &got),
        "operation {number}, {}: expected {}, got {}",
        brief(op),
        brief(&expected),
        brief(&got)
    );
    if matches!(op, Op::Compare) {
        target::compare(reference, target);
        // The comparison has read every file.
        reference.nodes.values_mut().for_each(|node| node.atime = None);
    }
}

fn brief(value: &dyn std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.chars().take(300).collect()
}

/// Operations straight on the filesystem: many more, with remounts and a check of the devices at the end.
#[test]
fn the_filesystem_does_what_the_reference_does() {
    let court = Court::of(Plan { size: 1 << 30, ..Plan::default() });
    let mut target = inprocess::InProcess::new(&court);
    run(rng::seed(), 5_000, &mut Reference::new(0o755), &mut target);
    target.close();
    court.check();
}

/// Operations through the kernel, on a real mount. An unmount and mount takes a second, so there are few.
#[test]
fn a_mounted_volume_does_what_the_reference_does() {
    let lab = lab::Lab::mounted(2, 512);
    let remount = || {
        lab::ok(&lab.umount());
        lab::ok(&lab.mount());
    };
    let mut target = Folder::new(lab.mountpoint.clone(), Box::new(remount));
    run(rng::seed(), 5_000, &mut Reference::new(0o755), &mut target);
    drop(target);
    lab::ok(&lab.umount());
    lab::ok(&lab.check());
}

/// The reference itself, against ext4: otherwise we would only know that two of our programs agree.
#[test]
fn the_reference_does_what_ext4_does() {
    let dir = tempfile::tempdir().unwrap();
    let (image, mountpoint) = (dir.path().join("image"), dir.path().join("mnt"));
    std::fs::create_dir(&mountpoint).unwrap();
    std::fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
    // With ea_inode, extended attributes may be larger than a block.
    lab::ok(&lab::run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096", "-O", "ea_inode"]).arg(&image)));
    let _mount = Mount::new(Command::new("mount").args(["-o", "loop"]).arg(&image), &mountpoint);
    let root = mountpoint.join("root");
    std::fs::create_dir(&root).unwrap();
    let mut target = Folder::new(root, Box::new(|| ()));
    let perm = target.stat(&Vec::new()).unwrap().mode & 0o7777;
    run(rng::seed(), 20_000, &mut Reference::new(perm), &mut target);
}
