//! Promise P5 where space is short: a commit that finds no room poisons nothing, and something can always be deleted.

use super::court::{Court, Plan, states, wait_in_sync};
use super::support::court::CALLER;
use super::{Bench, Log};
use scelle::device::faulty::{Effect, Fault, Operation};
use scelle::fs::{Fs, SetAttr};
use scelle::mirror::State;
use scelle::pages::Store;
use scelle::units::{BLOCK_SIZE, Ino};
use std::time::{Duration, Instant};

const BLOCK: u64 = BLOCK_SIZE as u64;

fn chmod(fs: &Fs, n: u32) -> Result<(), scelle::fs::Error> {
    fs.setattr(Ino::ROOT, &SetAttr { mode: Some(0o700 + n % 2), ..SetAttr::default() }).and_then(|_| fs.sync())
}

/// Takes what users may have, but for a little.
fn fill(fs: &Fs, store: &Store) {
    fs.sync().unwrap();
    fs.checkpoint().unwrap();
    let filler = fs.mknod(&CALLER, Ino::ROOT, b"filler", 0o600, 0).unwrap().ino;
    let usage = store.usage();
    let room = usage.free_blocks - usage.reserved_blocks - 16;
    fs.fallocate(filler, 0, room * BLOCK, libc::FALLOC_FL_KEEP_SIZE.cast_unsigned()).unwrap();
    fs.forget(filler, 1);
    fs.sync().unwrap();
}

/// Files whose blocks lie among each other's: the tags of each are all over their table.
fn interleaved(fs: &Fs) {
    let make = |i| fs.mknod(&CALLER, Ino::ROOT, format!("f{i}").as_bytes(), 0o600, 0).unwrap().ino;
    let files: Vec<Ino> = (0..7).map(make).collect();
    for chunk in 0..127u64 {
        for ino in &files {
            fs.write(*ino, chunk * 64 * BLOCK, &vec![7; 64 * BLOCK_SIZE]).unwrap();
        }
    }
    files.iter().for_each(|ino| fs.forget(*ino, 1));
}

fn emptied(fs: &Fs, store: &Store, names: &[&[u8]]) {
    for name in names {
        fs.unlink(Ino::ROOT, name).unwrap_or_else(|error| panic!("{error}; {:?}", store.usage()));
    }
    fs.sync().unwrap();
    assert_eq!(store.poisoned(), None);
}

#[test]
fn p5_a_reader_that_stays_poisons_no_nearly_full_volume() {
    let mut bench = Bench::new(1);
    bench.fill(64);
    let (open, _devices) = bench.start(&Log::default());
    let (fs, store) = (open.fs(), open.store());
    let reader = store.reader();
    let refused = (0..100_000).find_map(|n| chmod(fs, n).err()).unwrap();
    assert_eq!((refused.errno(), store.poisoned()), (libc::ENOSPC, None), "{refused}");
    // Nothing that was answered is lost: a commit finds room for all of it.
    fs.sync().unwrap();
    drop(reader);
    emptied(fs, store, &[b"full"]);
    chmod(fs, 0).unwrap();
    open.close().unwrap();
}

/// One deletion changes pages all over the database: it goes in steps, each as large as there is room for.
#[test]
fn p5_a_deletion_that_changes_many_pages_needs_no_more_room_than_there_is() {
    let court = Court::of(Plan { replicas: 1, size: 300 << 20, ..Plan::default() });
    let open = court.open();
    let (fs, store) = (open.fs(), open.store());
    interleaved(fs);
    fill(fs, store);
    let reader = store.reader();
    let refused = (0..100_000).find_map(|n| chmod(fs, n).err()).unwrap();
    assert_eq!(refused.errno(), libc::ENOSPC, "{refused}");
    for name in [&b"f0"[..], b"f2", b"f3"] {
        if let Err(error) = fs.unlink(Ino::ROOT, name).and_then(|()| fs.sync()) {
            assert_eq!(error.errno(), libc::ENOSPC, "{error}");
        }
        assert_eq!(store.poisoned(), None);
    }
    drop(reader);
    emptied(fs, store, &[b"f1", b"f4", b"f5", b"f6", b"filler"]);
    open.close().unwrap();
    court.check();
}

#[test]
fn p5_a_full_volume_can_be_emptied_while_a_replica_is_resynced() {
    let court = Court::of(Plan { size: 300 << 20, ..Plan::default() });
    let open = court.open_of(&[0], true).unwrap();
    let (fs, store) = (open.fs(), open.store());
    interleaved(fs);
    for n in 0..20_000 {
        let name = format!("a-name-of-a-court-document-{n}");
        fs.forget(fs.mknod(&CALLER, Ino::ROOT, name.as_bytes(), 0o600, 0).unwrap().ino, 1);
    }
    fill(fs, store);
    court.devices[0].inject(Fault::always(Operation::Read, Effect::Slow(Duration::from_millis(5))));
    assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
    let begin = Instant::now();
    let mut n = 0;
    while begin.elapsed() < Duration::from_secs(3) {
        n += 1;
        chmod(fs, n).unwrap_or_else(|error| panic!("after {n}: {error}; {:?}", store.usage()));
    }
    emptied(fs, store, &[b"f0", b"f1", b"f2", b"f3", b"f4", b"f5", b"f6", b"filler"]);
    assert_eq!(states(&open)[1], State::Resyncing);
    court.devices[0].heal();
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
}
