#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    limits::{DEVICE_SIZE_MAX, DEVICE_SIZE_MIN, XATTR_VALUE_MAX},
    pages::room,
    space::REGION_BLOCKS,
};

/// Whatever a volume's size, and however much of it is metadata: the reserve is enough to remove a name, and then to free
/// a file step by step.
#[test]
fn p5_the_reserve_is_enough_for_a_deletion_on_a_volume_of_any_size() {
    let mut bytes = DEVICE_SIZE_MIN;
    while bytes <= DEVICE_SIZE_MAX {
        let total = (bytes - 2 * LABEL_SIZE) / BLOCK_SIZE as u64;
        for database in [0, total / 100, total / 10, total / 3] {
            // With what a commit changes by itself.
            let weight = removal(1).plus(Weight::rows(3));
            let need = room::need(total.div_ceil(REGION_BLOCKS), weight.pages(database), database);
            let kept = room::kept(room::reserve(total), Account::InPlace);
            assert!(need <= kept, "{total} blocks, {database} pages of metadata: {need} of {kept}");
        }
        bytes += bytes / 3;
    }
}

/// Names, attributes and extents as long as they may be, made and removed in any order, over more and more levels. The
/// debug build compares what each operation and each commit changes with what was owed to it.
#[test]
fn p5_no_commit_changes_more_pages_than_were_owed_to_it() {
    let fs = sized_fs(60_000);
    let mut seed = 7u64;
    let mut dice = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let name = |n: u64| format!("{n:0width$}", width = 20 + (n * 47 % 236) as usize).into_bytes();
    let mut living = Vec::new();
    for n in 0..6000u64 {
        if n % 3 < 2 || living.is_empty() {
            let attr = fs.mknod(&USER, Ino::ROOT, &name(n), 0o600, 0).unwrap();
            if dice(4) == 0 {
                let long = [900, 1500, 5000, XATTR_VALUE_MAX][dice(4) as usize];
                fs.setxattr(attr.ino, b"user.a", &vec![n as u8; long], 0).unwrap();
            }
            if dice(4) == 0 {
                let (from, blocks) = (dice(300), 1 + dice(20));
                fs.write(attr.ino, from * 4096, &vec![1; blocks as usize * 4096]).unwrap();
            }
            fs.forget(attr.ino, 1);
            living.push(n);
        } else {
            let gone = living.swap_remove(dice(living.len() as u64) as usize);
            fs.unlink(Ino::ROOT, &name(gone)).unwrap();
        }
        // A commit of one operation, and of many.
        if dice(3) == 0 {
            fs.sync().unwrap();
        }
    }
    sound(&fs);
}

/// A reader holds everything that commits free. Whatever is done then, the end is a refusal: nothing is poisoned, and
/// with the reader gone the volume goes on and can be emptied.
#[test]
fn p5_operations_without_room_are_refused_and_nothing_is_poisoned() {
    let fs = sized_fs(6000);
    let ino = new_file(&fs, "f");
    for i in 0..600 {
        fs.write(ino, i * 8192, &[1; 4096]).unwrap();
    }
    fs.setxattr(ino, b"user.a", &[1; XATTR_VALUE_MAX], 0).unwrap();
    let filler = new_file(&fs, "filler");
    fs.fallocate(filler, 0, (fs.statfs().blocks_available - 40) * 4096, 0).unwrap();
    fs.sync().unwrap();
    let store = Arc::clone(fs.store());
    let reader = store.reader();
    let mut n = 0;
    let error = loop {
        n += 1;
        let mode = Some(0o700 + n % 2);
        if let Err(error) = fs.setattr(Ino::ROOT, &SetAttr { mode, ..SetAttr::default() }).and_then(|_| fs.sync()) {
            break error;
        }
        assert!(n < 5000);
    };
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    fails(fs.rename(Ino::ROOT, b"f", Ino::ROOT, b"g", RenameFlags::Plain), libc::ENOSPC);
    fs.forget(ino, 1);
    // A deletion needs less.
    fs.unlink(Ino::ROOT, b"f").unwrap();
    assert_eq!((store.poisoned(), fs.sync().is_ok()), (None, true));
    drop(reader);
    fs.forget(filler, 1);
    fs.unlink(Ino::ROOT, b"filler").unwrap();
    fs.sync().unwrap();
    assert_eq!(store.poisoned(), None);
    nothing_is_lost(&fs);
    sound(&fs);
}
