#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::fs::room::{HELD_MIN, WRITE_MAX};

const MIB: usize = 1 << 20;

/// A volume that keeps more back than the least, and has no room: a file of 2 MiB, and one that takes the rest.
fn full() -> (Lab, Ino) {
    let fs = sized_fs(1 << 17);
    let (old, rest) = (new_file(&fs, "old"), new_file(&fs, "rest"));
    fs.write(old, 0, &vec![1; 2 * MIB]).unwrap();
    fs.sync().unwrap();
    let mut size = 0;
    while let left @ 1.. = fs.room() {
        fs.fallocate(rest, size, left.min(64 << 20), 0).unwrap();
        size += left.min(64 << 20);
    }
    fails(fs.write(rest, size, &[1; 4096]), libc::ENOSPC);
    (fs, old)
}

#[test]
fn a_full_volume_is_overwritten_in_place() {
    let (fs, old) = full();
    for round in 0..20u8 {
        assert_eq!(fs.may_write(old, HELD_MIN).map_err(|error| error.errno()), Ok(()), "{round}");
        if round % 2 == 0 {
            fs.write_back(old, 0, &vec![round; MIB]).unwrap();
        } else {
            fs.write(old, MIB as u64 - 1000, &vec![round; MIB]).unwrap();
        }
    }
    let found = read_all(&fs, old);
    assert!(
        found[..MIB - 1000].iter().all(|byte| *byte == 18)
            && found[MIB - 1000..2 * MIB - 1000].iter().all(|byte| *byte == 19)
    );
    nothing_is_lost(&fs);
    sound(&fs);
}

#[test]
fn a_file_that_grows_on_a_full_volume_is_let_through_once() {
    let (fs, old) = full();
    fails(fs.write(old, 2 * MIB as u64, &[1; 4096]), libc::ENOSPC);
    fs.may_write(old, HELD_MIN).unwrap();
    // What was let through finds its room.
    fs.write_back(old, 2 * MIB as u64, &vec![2; MIB]).unwrap();
    fails(fs.may_write(old, HELD_MIN), libc::ENOSPC);
    truncate(&fs, old, 2 * MIB as u64);
    fs.may_write(old, HELD_MIN).unwrap();
    // One that holds nothing may be about to be read; one that was made now is not.
    let (empty, new) = (new_file_anyhow(&fs, "empty"), new_file_anyhow(&fs, "new"));
    fs.refuse(new);
    fs.may_write(empty, HELD_MIN).unwrap();
    fails(fs.may_write(new, HELD_MIN), libc::ENOSPC);
    assert!(!fs.may_create(HELD_MIN));
    // With room again everything is.
    fs.unlink(Ino::ROOT, b"rest").unwrap();
    let rest = Ino(old.0 + 1);
    fs.forget(rest, 1);
    assert!(fs.may_create(HELD_MIN) && fs.may_write(new, HELD_MIN).is_ok());
    nothing_is_lost(&fs);
    sound(&fs);
}

/// A file with a name takes a block of the metadata, for which there is room when something was freed.
fn new_file_anyhow(fs: &Lab, name: &str) -> Ino {
    let rest = fs.lookup(Ino::ROOT, b"rest").unwrap();
    fs.forget(rest.ino, 1);
    truncate(fs, rest.ino, rest.size - 16 * 4096);
    new_file(fs, name)
}

#[test]
fn what_was_accepted_may_use_a_quarter_of_what_is_kept_back_and_no_more() {
    let (fs, _) = full();
    let usage = fs.store.usage();
    let file = new_file_anyhow(&fs, "f");
    let mut accepted = 0;
    let error = loop {
        match fs.write_back(file, accepted, &[1; 65536]) {
            Ok(count) => accepted += count as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(fs.store.usage().free_blocks >= usage.reserved_blocks * 3 / 4 - 16, "{:?}", fs.store.usage());
    assert!(accepted >= WRITE_MAX + HELD_MIN, "{accepted}");
    // It can still be removed, with everything else.
    for name in [b"f".as_slice(), b"rest", b"old"] {
        let ino = fs.lookup(Ino::ROOT, name).unwrap().ino;
        fs.unlink(Ino::ROOT, name).unwrap();
        fs.forget(ino, 2);
    }
    nothing_is_lost(&fs);
    assert!(fs.room() > 400 << 20);
}

/// Data that was let through may be more than the room, when the kernel is told too late to hold less.
#[test]
fn what_was_accepted_leaves_room_for_overwriting() {
    let (fs, old) = full();
    let grown = new_file_anyhow(&fs, "f");
    let mut size = 0;
    while let Ok(count) = fs.write_back(grown, size, &[1; 65536]) {
        size += count as u64;
    }
    for round in 0..40u8 {
        assert_eq!(fs.may_write(old, HELD_MIN).map_err(|error| error.errno()), Ok(()), "{round}");
        fs.write_back(old, u64::from(round) * 30_000, &vec![round; 10_000]).unwrap();
    }
    nothing_is_lost(&fs);
    sound(&fs);
}

/// The kernel forgets a removed file a moment later, by a request of its own.
#[test]
fn regression_a_write_waits_for_the_room_of_a_file_that_is_about_to_be_forgotten() {
    let fs = sized_fs(4096);
    for round in 0..10 {
        let (file, other) = (new_file(&fs, "f"), new_file(&fs, "g"));
        let size = fs.room();
        fs.fallocate(file, 0, size, 0).unwrap();
        fs.unlink(Ino::ROOT, b"f").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                fs.forget(file, 1);
            });
            fs.write(other, 0, &vec![1; MIB]).unwrap_or_else(|error| panic!("round {round}: {error}"));
        });
        fs.unlink(Ino::ROOT, b"g").unwrap();
        fs.forget(other, 1);
    }
    nothing_is_lost(&fs);
    sound(&fs);
}
