//! Reference-model test: seeded random operations on a volume and on a model in memory, answers compared one by one
//! and the whole tree now and then, with remounts in between. `SCELLE_SEED` repeats a run.

#![allow(clippy::unwrap_used)]

mod folder;
mod op;
mod reference;
mod rng;
mod target;

use folder::Folder;
use op::Op;
use reference::Reference;
use rng::Rng;
use target::Target;

/// Runs `count` operations drawn from `seed` on both.
fn run(seed: u64, count: usize, reference: &mut Reference, target: &mut dyn Target) {
    println!("seed {seed}: repeat with SCELLE_SEED={seed}");
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

/// The reference itself, against the filesystem that `SCELLE_MODEL_DIR` names (an empty folder on ext4, say): for whoever
/// changes the reference. Without the variable there is nothing to check it against.
#[test]
fn reference_agrees_with_a_kernel_filesystem() {
    let Some(dir) = std::env::var_os("SCELLE_MODEL_DIR") else { return };
    let mut target = Folder::new(dir.into(), Box::new(|| ()));
    let perm = target.stat(&Vec::new()).unwrap().mode & 0o7777;
    run(rng::seed(), 20_000, &mut Reference::new(perm), &mut target);
}
