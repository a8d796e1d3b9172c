//! What a traversal of a volume costs the commits beside it: `cargo bench --bench traversal -- [FILES]`.
//!
//! A volume with so many files (20,000, and four seconds a case, unless told otherwise) is opened anew, so that no node is in memory.
//! One thread creates a file and makes it durable, again and again. Another one traverses the metadata, one second out of two: so
//! that what else the machine does meets both halves. What a creation with its commit takes is printed for the halves. The devices
//! are memory that answers at once, or as solid-state drives or hard disks do.
#![allow(clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "bytes and places are made from small numbers")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use scelle::crypto::VolumeKey;
use scelle::device::faulty::{Effect, Fault, FaultyDevice, Operation};
use scelle::device::{BlockDevice, IdentifiedDevice, memory::MemoryDevice};
use scelle::fs::{Caller, Fs};
use scelle::label::{self, Root};
use scelle::limits::LABEL_SIZE;
use scelle::pages::{Finding, Store, StoreOptions};
use scelle::units::{BLOCK_SIZE, Ino, Uuid};
use scelle::volume::{Item, Progress, Traversal};
use support::documents::Documents;

const VOLUME: Uuid = Uuid([1; 16]);

const USER: Caller = Caller { uid: 1000, gid: 100, umask: 0o022 };

/// Files of a folder.
const FOLDER: u64 = 1000;

/// Files, when no number is given, and seconds that each case is measured: for somebody who runs all benchmarks, and for somebody
/// who wants to know.
const SHORT: (u64, u64) = (20_000, 4);
const LONG_SECONDS: u64 = 20;

/// How devices answer: name, microseconds of a read and of a flush.
const PACES: [(&str, u64, u64); 3] = [("memory", 0, 0), ("solid-state drives", 100, 500), ("hard disks", 5000, 8000)];

struct Lab {
    drives: Vec<Arc<FaultyDevice>>,
    key: VolumeKey,
    blocks: u64,
    epoch: u32,
}

impl Lab {
    /// Two drives with room for the metadata of so many files.
    fn new(files: u64) -> Self {
        let blocks = (files / 5).max(16 << 10);
        let bytes = blocks * BLOCK_SIZE as u64 + 2 * LABEL_SIZE;
        let drive = |name| Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new(name, bytes))));
        Self { drives: vec![drive("m0"), drive("m1")], key: VolumeKey::generate().unwrap(), blocks, epoch: 0 }
    }

    fn pace(&self, read_us: u64, flush_us: u64) {
        for drive in &self.drives {
            drive.heal();
            for (operation, us) in [(Operation::Read, read_us), (Operation::Flush, flush_us)] {
                if us > 0 {
                    drive.inject(Fault::always(operation, Effect::Slow(Duration::from_micros(us))));
                }
            }
        }
    }

    /// The store, as its newest root describes it.
    fn store(&mut self) -> Arc<Store> {
        let devices: Vec<Arc<dyn IdentifiedDevice>> = self.drives.iter().map(|drive| drive.clone() as _).collect();
        let documents = Documents::of(&devices);
        let mirror = documents.mirror(&devices);
        mirror.cache_reads(16 << 20);
        let size = self.drives[0].size_bytes();
        let keys = self.key.keys(VOLUME);
        let roots = label::read_roots(&*self.drives[0], size, &keys, VOLUME).unwrap();
        self.epoch += 1;
        let options = StoreOptions {
            keys,
            volume: VOLUME,
            total_blocks: self.blocks,
            device_bytes: vec![size; 2],
            root: roots.first().copied().unwrap_or(Root::default()),
            epoch: self.epoch,
        };
        Store::open(Arc::new(mirror), options).unwrap()
    }
}

fn fill(fs: &Fs, files: u64) {
    for folder in 0..files.div_ceil(FOLDER) {
        let name = format!("folder-{folder}");
        let dir = fs.mkdir(&USER, Ino::ROOT, name.as_bytes(), 0o755).unwrap().ino;
        for file in 0..FOLDER.min(files - folder * FOLDER) {
            let name = format!("a-deed-of-the-court-{file}");
            fs.forget(fs.mknod(&USER, dir, name.as_bytes(), 0o644, 0).unwrap().ino, 1);
        }
        fs.forget(dir, 1);
        if folder % 10 == 0 {
            fs.sync().unwrap();
        }
    }
    fs.sync().unwrap();
    fs.checkpoint().unwrap();
}

/// Traverses the metadata again and again. Returns how many units were visited.
fn traverse(fs: &Fs, verify: bool, ended: &AtomicBool) -> u64 {
    let (store, go_on) = (fs.store(), || !ended.load(Ordering::Relaxed));
    let mut units = 0;
    while go_on() {
        let progress = Progress::default();
        let mut visit = |item: Item| {
            if let (Item::Unit(unit), true) = (item, verify) {
                (0..2).for_each(|replica| assert_eq!(store.examine(&unit, replica), Finding::Good));
            }
            units += 1;
            Ok(())
        };
        Traversal::new(store, &progress, &go_on).beside(fs.meters()).metadata(&mut visit).unwrap();
    }
    units
}

/// Creates files and makes each durable for a second. Adds what each took.
fn commits(fs: &Fs, dir: Ino, took: &mut Vec<Duration>) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        let one = Instant::now();
        let name = format!("{}", fs.store().generation());
        fs.forget(fs.mknod(&USER, dir, name.as_bytes(), 0o644, 0).unwrap().ino, 1);
        fs.sync().unwrap();
        took.push(one.elapsed());
    }
}

fn show(name: &str, mut took: Vec<Duration>, visited: u64) {
    took.sort_unstable();
    let at = |part: usize| took[(took.len() - 1) * part / 1000].as_secs_f64() * 1e3;
    println!(
        "  {name:<22} {:>7} commits  median {:>8.3} ms  99 % {:>8.3} ms  longest {:>8.1} ms  {visited:>9} units",
        took.len(),
        at(500),
        at(990),
        at(1000),
    );
}

fn case(lab: &mut Lab, verify: bool, pace: (&str, u64, u64), seconds: u64) {
    lab.pace(0, 0);
    let store = lab.store();
    let fs = Fs::open(store.clone()).unwrap();
    let name = format!("{} {verify}", pace.0);
    let dir = fs.mkdir(&USER, Ino::ROOT, name.as_bytes(), 0o755).unwrap().ino;
    fs.sync().unwrap();
    lab.pace(pace.1, pace.2);
    let (mut alone, mut beside, mut visited) = (Vec::new(), Vec::new(), 0);
    for _ in 0..seconds.div_ceil(2) {
        commits(&fs, dir, &mut alone);
        let ended = AtomicBool::new(false);
        visited += std::thread::scope(|scope| {
            let traversal = scope.spawn(|| traverse(&fs, verify, &ended));
            commits(&fs, dir, &mut beside);
            ended.store(true, Ordering::Relaxed);
            traversal.join().unwrap()
        });
    }
    lab.pace(0, 0);
    println!("{}, a traversal that {}:", pace.0, if verify { "verifies each unit" } else { "reads nodes alone" });
    show("alone", alone, 0);
    show("beside the traversal", beside, visited);
    fs.checkpoint().unwrap();
}

fn main() {
    let asked = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let (files, seconds) = asked.map_or(SHORT, |files: u64| (files, LONG_SECONDS));
    let mut lab = Lab::new(files);
    let begin = Instant::now();
    let fs = Fs::format(lab.store(), 0o755, 0, 0).unwrap();
    fill(&fs, files);
    println!("{files} files, {} pages of metadata, made in {:.1?}", fs.store().root().db.pages, begin.elapsed());
    drop(fs);
    for pace in PACES {
        for verify in [false, true] {
            case(&mut lab, verify, pace, seconds);
        }
    }
}
