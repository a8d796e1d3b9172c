//! Promise P5 with several writers at once: each is promised what its own sync has answered, and the power fails anywhere.
//!
//! `SCELLE_SEED` repeats what each writer does, the points and what survives there; not how the writers meet. The model of
//! the whole tree, which one thread can be held to, is in `crash_everywhere`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use scelle::device::memory::Disk;
use scelle::fs::{Fs, RenameFlags};
use scelle::problem::Code;
use scelle::units::Ino;
use scelle::volume::{Open, OpenOptions};

use super::Bench;
use super::support::court::{CALLER, content};
use super::support::images::{Disks, Event, Log};
use super::support::rng::{self, Rng};

const WRITERS: u64 = 4;

/// What a file holds, or that it is not there.
type Content = Option<Arc<[u8]>>;

/// From this number of events on, this file is one of these; of a file with none of these nothing is known.
struct Promise {
    from: usize,
    name: Vec<u8>,
    one_of: Vec<Content>,
}

/// The promises in their order, beside the log that they are about.
struct Book {
    log: Log,
    promises: Mutex<Vec<Promise>>,
}

impl Book {
    fn note(&self, name: &[u8], one_of: &[Content]) {
        // Under the lock of the log: the order of promises is that of their places in it.
        let log = self.log.lock().unwrap();
        let promise = Promise { from: log.len(), name: name.to_vec(), one_of: one_of.to_vec() };
        self.promises.lock().unwrap().push(promise);
    }
}

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

fn find(open: &Open, name: &[u8]) -> Content {
    let fs = open.fs();
    match fs.lookup(Ino::ROOT, name) {
        Ok(attr) => {
            let mut scratch = Vec::new();
            let found = fs.read(attr.ino, 0, attr.size as usize, &mut scratch).map(Arc::from);
            fs.forget(attr.ino, 1);
            Some(found.unwrap())
        }
        Err(error) => {
            assert_eq!(error.errno(), libc::ENOENT, "{error}");
            None
        }
    }
}

/// Opens what a crash has left and asks for everything that is promised.
fn ask(
    bench: &Bench,
    present: &[Option<Disk>],
    promised: &BTreeMap<&[u8], &[Content]>,
    check: bool,
) -> Result<(), String> {
    let degraded = present.iter().any(Option::is_none);
    let mut court = bench.court.on(present, &Log::default());
    let open = match court.open_with(&OpenOptions { degraded, ..OpenOptions::default() }) {
        // By itself it does not know whether its last commit was answered for.
        Err(error) if degraded && error.code() == Code::VolumeUnproven => {
            court = bench.court.on(present, &Log::default());
            let accept = OpenOptions { degraded, accept_rollback: error.acceptable(), ..OpenOptions::default() };
            court.open_with(&accept)
        }
        outcome => outcome,
    };
    let open = open.map_err(|error| error.to_string())?;
    for (name, one_of) in promised {
        let found = find(&open, name);
        if !one_of.contains(&found) {
            let length = |content: &Content| content.as_ref().map(|bytes| bytes.len());
            let allowed: Vec<_> = one_of.iter().map(length).collect();
            let name = String::from_utf8_lossy(name);
            return Err(format!("{name} has {:?} bytes, and may have {allowed:?}", length(&found)));
        }
    }
    open.close().map_err(|error| error.to_string())?;
    if check {
        let report = court.report();
        assert!(report.count == 0 && report.blocks > 0, "{:?}", report.damages);
    }
    Ok(())
}

/// Has the writers work, and cuts the power at one in `every` of the events. Returns how many states were tried, and the log.
pub fn writers_and_crashes(bench: &Bench, seed: u64, steps: usize, every: u64) -> (usize, Vec<Event>) {
    let book = Book { log: Log::default(), promises: Mutex::default() };
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
    let mut promises = book.promises.lock().unwrap();
    let mut coming = promises.drain(..).peekable();
    let mut rng = Rng::new(seed);
    let mut disks = Disks::new(&bench.disks);
    let mut kept: BTreeMap<Vec<u8>, Vec<Content>> = BTreeMap::new();
    let mut tried = 0;
    for (point, event) in events.iter().enumerate() {
        disks.apply(event);
        while let Some(promise) = coming.next_if(|promise| promise.from <= point + 1) {
            kept.insert(promise.name, promise.one_of);
        }
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
        let promised = kept.iter().map(|(name, one_of)| (&name[..], &one_of[..])).collect();
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
    assert!(tried >= 300, "only {tried} crash states");
}
