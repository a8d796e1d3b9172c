//! Promise P6 in seeded bad weather: a replica that was left behind comes back while its source is slow or damaged, commits
//! are slow, the volume is full or the ring of roots goes round.
//!
//! The resync is interrupted, by a close, by the end of the process or by a power cut of both, and again, and again. In the
//! end nothing is lost that was answered for. Whoever is called in sync is the whole volume by itself, and nobody is resynced
//! for ever.
//!
//! `SCELLE_SEED` repeats the weather, the operations, the points and what survives there; not how far a resync has come.

use std::sync::Arc;
use std::time::Duration;

use scelle::device::faulty::{Effect, Fault, Operation};
use scelle::device::memory::Disk;
use scelle::fs::SetAttr;
use scelle::limits::LABEL_SIZE;
use scelle::mirror::State;
use scelle::problem::{Code, ExitCode};
use scelle::units::{BLOCK_SIZE, Ino};
use scelle::volume::Open;

use super::Bench;
use super::court::states;
use super::promises::{Book, Content, Promised, find, kept, open_on};
use super::support::court::{content, put};
use super::support::images::{Disks, Event};
use super::support::rng::{self, Rng};
use super::support::wait_for;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What goes wrong besides the interruptions.
#[derive(Clone, Copy, Debug)]
struct Weather {
    /// A block of the source is damaged, and no other replica has it.
    damaged: bool,
    full: bool,
    /// More commits than the ring has slots go by while the resync runs.
    turning: bool,
    slow_commits: bool,
}

impl Weather {
    fn draw(rng: &mut Rng) -> Self {
        let [damaged, full, turning, slow_commits] = std::array::from_fn(|_| rng.one_in(3));
        // A hundred slow commits would take too long.
        Self { damaged, full, turning, slow_commits: slow_commits && !turning }
    }
}

struct Storm {
    bench: Bench,
    weather: Weather,
    promised: Promised,
    /// What the damaged file held.
    victim: Content,
    rng: Rng,
}

impl Storm {
    /// Replica 1 was left behind.
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let weather = Weather::draw(&mut rng);
        let mut storm = Self { bench: Bench::new(2), weather, promised: Promised::new(), victim: None, rng };
        storm.commits(&[true, true], "both", 6);
        storm.commits(&[true, false], "alone", 12);
        if weather.damaged {
            storm.damage();
        }
        storm
    }

    /// Files that are synced while these replicas are there.
    fn commits(&mut self, present: &[bool], name: &str, files: u64) {
        let disks: Vec<_> = self.bench.disks.iter().zip(present).map(|(disk, is)| is.then(|| disk.clone())).collect();
        let (court, open) = open_on(&self.bench, &disks, false).unwrap();
        for number in 0..files {
            let bytes = content(self.rng.next(), 1 + self.rng.below(60_000) as usize);
            let name = format!("{name}-{number}").into_bytes();
            put(open.fs(), &name, &bytes).unwrap();
            self.promised.insert(name, vec![Some(bytes.into())]);
        }
        open.fs().sync().unwrap();
        let is_alone = present.contains(&false);
        if is_alone {
            let bytes = content(self.rng.next(), 300_000);
            put(open.fs(), b"victim", &bytes).unwrap();
            self.victim = Some(bytes.into());
        }
        if is_alone && self.weather.full {
            open.fs().sync().unwrap();
            open.fs().checkpoint().unwrap();
            let usage = open.store().usage();
            let blocks = usage.free_blocks - usage.reserved_blocks - 100;
            let filler = put(open.fs(), b"filler", b"").unwrap();
            let keep_size = libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();
            open.fs().fallocate(filler, 0, blocks * BLOCK, keep_size).unwrap();
        }
        open.close().unwrap();
        let mut left = court.disks().into_iter();
        for (disk, _) in self.bench.disks.iter_mut().zip(present).filter(|(_, is)| **is) {
            *disk = left.next().unwrap();
        }
    }

    /// One block of a file that only replica 0 has.
    fn damage(&mut self) {
        let alone = [Some(self.bench.disks[0].clone()), None];
        let (_, open) = open_on(&self.bench, &alone, false).unwrap();
        let victim = open.fs().lookup(Ino::ROOT, b"victim").unwrap().ino;
        let scanned = open.fs().scan(None, 10_000).unwrap();
        let extent = scanned.iter().rfind(|found| found.ino == victim && found.extent.tags.is_some()).unwrap();
        let at = LABEL_SIZE + (extent.extent.addr.0 + self.rng.below(extent.extent.blocks)) * BLOCK;
        drop(open);
        let disk = &mut self.bench.disks[0];
        let mut bytes = [0; BLOCK_SIZE];
        disk.read(at, &mut bytes);
        bytes[self.rng.below(BLOCK) as usize] ^= 1 << self.rng.below(8);
        disk.write(at, &bytes);
    }

    /// Both are mounted in this weather, and it ends in some way. Takes over what is left on the disks.
    fn interrupted(&mut self) {
        let book = Book::new();
        let court = self.bench.court.on(&self.bench.all(), &book.log);
        let slow = |operation, ms| Fault::always(operation, Effect::Slow(Duration::from_millis(ms)));
        court.devices[0].inject(slow(Operation::Read, self.rng.below(3)));
        if self.weather.slow_commits {
            court.devices[self.rng.below(2) as usize].inject(slow(Operation::Flush, 20 + self.rng.below(60)));
        }
        let open = court.open();
        let opening = book.log.lock().unwrap().len();
        self.work(&open, &book);
        if self.rng.one_in(3) {
            court.devices.iter().for_each(|device| device.heal());
            open.close().unwrap();
        } else {
            // As when the process ends: what was not handed over is lost.
            drop(open);
        }
        let events: Vec<Event> = book.log.lock().unwrap().clone();
        let mut disks = Disks::new(&self.bench.disks);
        // A power cut at any moment, or none.
        let end = match self.rng.one_in(4) {
            true => events.len(),
            false => opening + self.rng.below((events.len() - opening) as u64 + 1) as usize,
        };
        events[..end].iter().for_each(|event| disks.apply(event));
        book.close().after(end, &mut self.promised);
        self.bench.disks = if end == events.len() { court.disks() } else { disks.crash(&mut self.rng).0 };
    }

    /// Makes and removes files, each with a sync.
    fn work(&mut self, open: &Open, book: &Book) {
        let fs = open.fs();
        for _ in 0..self.rng.below(14) {
            let name = format!("{}", self.rng.below(5)).into_bytes();
            let before = find(fs, &name).unwrap();
            if before.is_some() {
                book.note(&name, &[before, None]);
                fs.unlink(Ino::ROOT, &name).unwrap();
                fs.sync().unwrap();
                book.note(&name, &[None]);
                continue;
            }
            let bytes: Arc<[u8]> = content(self.rng.next(), 1 + self.rng.below(40_000) as usize).into();
            book.note(&name, &[]);
            let done = put(fs, &name, &bytes).and_then(|_| fs.sync());
            if let Err(error) = &done {
                assert_eq!(error.errno(), libc::ENOSPC, "{error}");
                let _ = fs.unlink(Ino::ROOT, &name);
                fs.sync().unwrap();
            }
            book.note(&name, &[done.is_ok().then_some(bytes)]);
        }
        for n in 0..if self.weather.turning { 70 } else { 0 } {
            let attr = SetAttr { mode: Some(0o700 + n % 2), ..SetAttr::default() };
            fs.setattr(Ino::ROOT, &attr).and_then(|_| fs.sync()).unwrap();
        }
    }

    /// Everything that was answered for is there; of the damaged file an error may be.
    fn look(&self, open: &Open) -> Result<(), String> {
        kept(open, &self.promised)?;
        match find(open.fs(), b"victim") {
            Ok(found) if found == self.victim => Ok(()),
            Err(error) if error.errno() == libc::EIO && self.weather.damaged => Ok(()),
            outcome => Err(format!("the large file: {:?}", outcome.map(|found| found.map(|bytes| bytes.len())))),
        }
    }

    fn alone(&self, index: usize) -> Vec<Option<Disk>> {
        (0..2).map(|other| (other == index).then(|| self.bench.disks[other].clone())).collect()
    }

    /// Whoever mounts by itself has everything. Replica 0 always does.
    fn each_alone(&self) -> Result<(), String> {
        let (_, open) = open_on(&self.bench, &self.alone(0), true).map_err(|error| error.to_string())?;
        self.look(&open).map_err(|error| format!("replica 0 alone: {error}"))?;
        match open_on(&self.bench, &self.alone(1), false) {
            Ok((_, open)) => self.look(&open).map_err(|error| format!("replica 1 alone: {error}")),
            Err(error) if error.code() == Code::VolumeUnproven => Ok(()),
            Err(error) if error.code().exit() == ExitCode::Degraded => Ok(()),
            Err(error) => Err(format!("replica 1 alone: {error}")),
        }
    }

    /// The weather is good again.
    fn end(&mut self) -> Result<(), String> {
        let (court, open) = open_on(&self.bench, &self.bench.all(), false).map_err(|error| error.to_string())?;
        let states = || states(&open);
        wait_for("the end of the resync", || !states().contains(&State::Resyncing));
        if states() != [State::InSync; 2] {
            return Err(format!("{:?}", open.status().replicas));
        }
        self.look(&open)?;
        open.close().map_err(|error| error.to_string())?;
        let report = court.report();
        if report.count > 0 && !self.weather.damaged || !report.skipped.is_empty() {
            return Err(format!("{report:?}"));
        }
        self.bench.disks = court.disks();
        for index in 0..2 {
            let (_, open) = open_on(&self.bench, &self.alone(index), false)
                .map_err(|error| format!("replica {index} in sync, and alone: {error}"))?;
            self.look(&open).map_err(|error| format!("replica {index} in sync, and alone: {error}"))?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<usize, String> {
        let interruptions = 1 + self.rng.below(4) as usize;
        for _ in 0..interruptions {
            self.interrupted();
            if self.rng.one_in(2) {
                self.each_alone()?;
            }
        }
        self.end().map(|()| interruptions)
    }
}

#[test]
fn p6_a_resync_in_any_weather_ends_and_loses_nothing() {
    let first = rng::seed();
    let (mut storms, mut interruptions) = (0, 0);
    for seed in (0..20 * rng::soak()).map(|more| first.wrapping_add(more)) {
        let mut storm = Storm::new(seed);
        let done = storm.run();
        interruptions += done.unwrap_or_else(|error| panic!("SCELLE_SEED={seed}, {:?}: {error}", storm.weather));
        storms += 1;
    }
    println!("{storms} storms, {interruptions} interruptions");
}
