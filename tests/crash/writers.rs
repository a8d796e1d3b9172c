//! Promise P5 with several writers at once: each is promised what its own sync has answered, and the power fails anywhere.
//!
//! `SCELLE_SEED` repeats what each writer does, the points and what survives there; not how the writers meet. The model of
//! the whole tree, which one thread can be held to, is in `crash_everywhere`.

use std::collections::BTreeMap;
use std::sync::Arc;

use scelle::device::memory::Disk;
use scelle::fs::{Fs, RenameFlags};
use scelle::units::Ino;

use super::Bench;
use super::promises::{Book, Content, Promised, kept, open_on};
use super::support::court::{CALLER, content};
use super::support::images::{Disks, Event};
use super::support::rng::{self, Rng};

const WRITERS: u64 = 4;

fn create(fs: &Fs, name: &[u8], bytes: &[u8]) -> scelle::fs::Result<()> {
    let ino = fs.mknod(&CALLER, Ino::ROOT, name, 0o600, 0)?.ino;
    let half = bytes.len() / 2;
    let done = fs.write(ino, 0, &bytes[..half]).and_then(|_| fs.write(ino, half as u64, &bytes[half..]));
    fs.forget(ino, 1);
    done.map(drop)
}

/// Makes, replaces and removes files of its own, each with a sync, for some steps.
fn writer(fs: &Fs, thread: u64, steps: usize, mut rng: Rng, book: &Book) {
    let mut live: BTreeMap<u64, Arc<[u8]>> = BTreeMap::new();
    let temporary = format!("{thread}-temporary").into_bytes();
    for _ in 0..steps {
        let number = rng.below(4);
        let name = format!("{thread}-{number}").into_bytes();
        let before: Content = live.get(&number).cloned();
        let most = if rng.one_in(5) { 200_000 } else { 30_000 };
        let new: Arc<[u8]> = content(rng.next(), 2 + rng.below(most) as usize).into();
        if before.is_some() && rng.one_in(3) {
            book.note(&name, &[before, None]);
            fs.unlink(Ino::ROOT, &name).unwrap();
            fs.sync().unwrap();
            book.note(&name, &[None]);
            live.remove(&number);
            continue;
        }
        // Where there is no room the file is as it was.
        let written = create(fs, &temporary, &new).and_then(|()| fs.sync());
        if written.is_err() {
            let _ = fs.unlink(Ino::ROOT, &temporary);
            continue;
        }
        book.note(&name, &[before, Some(new.clone())]);
        if fs.rename(Ino::ROOT, &temporary, Ino::ROOT, &name, RenameFlags::Plain).is_ok() {
            fs.sync().unwrap();
            book.note(&name, &[Some(new.clone())]);
            live.insert(number, new);
        }
    }
}

/// Opens what a crash has left and asks for everything that is promised.
fn ask(bench: &Bench, present: &[Option<Disk>], promised: &Promised, check: bool) -> Result<(), String> {
    let (court, open) = open_on(bench, present, true).map_err(|error| error.to_string())?;
    kept(&open, promised)?;
    open.close().map_err(|error| error.to_string())?;
    if check {
        let report = court.report();
        assert!(report.count == 0 && report.blocks > 0, "{:?}", report.damages);
    }
    Ok(())
}

/// Has the writers work, and cuts the power at one in `every` of the events. Returns how many states were tried, and the log.
pub fn writers_and_crashes(bench: &Bench, seed: u64, steps: usize, every: u64) -> (usize, Vec<Event>) {
    let book = Book::new();
    let (open, _devices) = bench.start(&book.log);
    let opening = book.log.lock().unwrap().len();
    std::thread::scope(|scope| {
        for thread in 0..WRITERS {
            let (fs, book) = (open.fs(), &book);
            scope.spawn(move || writer(fs, thread, steps, Rng::new(seed.wrapping_add(31 * thread)), book));
        }
    });
    open.close().unwrap();
    let events: Vec<Event> = book.log.lock().unwrap().clone();
    let mut coming = book.close();
    let mut rng = Rng::new(seed);
    let mut disks = Disks::new(&bench.disks);
    let mut promised = Promised::new();
    let mut tried = 0;
    for (point, event) in events.iter().enumerate() {
        disks.apply(event);
        coming.after(point + 1, &mut promised);
        if point < opening || !rng.one_in(every) {
            continue;
        }
        let (crashed, survival) = disks.crash(&mut rng);
        let only = (crashed.len() > 1 && rng.one_in(2)).then(|| rng.below(crashed.len() as u64) as usize);
        let present: Vec<Option<Disk>> = crashed
            .into_iter()
            .enumerate()
            .map(|(i, disk)| only.is_none_or(|only| only == i).then_some(disk))
            .collect();
        ask(bench, &present, &promised, rng.one_in(8)).unwrap_or_else(|error| {
            panic!("SCELLE_SEED={seed}, event {point} of {}, {survival:?}, only {only:?}: {error}", events.len())
        });
        tried += 1;
    }
    (tried, events)
}

#[test]
fn p5_any_crash_of_four_writers_at_once_keeps_what_each_was_answered() {
    let seed = rng::seed();
    let mut tried = 0;
    for round in 0..rng::soak() {
        for (replicas, room) in [(1, 500), (2, 500), (2, 2000)] {
            let mut bench = Bench::new(replicas);
            bench.fill(room);
            tried += writers_and_crashes(&bench, seed.wrapping_add(round), 12, 6).0;
        }
    }
    println!("{tried} crash states of four writers");
    assert!(tried >= 100, "only {tried} crash states");
}
