//! A volume on devices that misbehave when they are told to: that show another identity, that fail, that hold a write up, that lose what
//! was not flushed.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scelle::crypto::{KdfParams, Secret, VolumeKey};
use scelle::device::memory::MemoryDevice;
use scelle::device::{BlockDevice, Error, IdentifiedDevice, Result, Write};
use scelle::fs::{self, Caller, Fs};
use scelle::mirror::State;
use scelle::pages::Finding;
use scelle::policy::ApprovedDevice;
use scelle::probe::host::HostFacts;
use scelle::probe::identity::{DeviceFacts, FactsError};
use scelle::registry::{Date, VerifiedRegistry};
use scelle::units::Ino;
use scelle::volume::{self, CreateOptions, Item, Open, OpenOptions, Progress, Sealed, Traversal};

use super::lab;
use super::rng::Rng;

pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0 };
pub const SIZE: u64 = 24 << 20;
/// Of a device that takes more than may be in flight (64 MiB).
pub const LARGE: u64 = 160 << 20;
pub const BOUND: Duration = Duration::from_secs(60);

/// What a device shows when it is asked who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    Itself,
    /// Another device in its place.
    Swapped,
    /// The kernel sees another disk than the one that was opened.
    Changed,
    /// Unplugged.
    Gone,
}

pub const OTHER_FACES: [Face; 3] = [Face::Swapped, Face::Changed, Face::Gone];

/// A device whose identity can change at any moment, and which notices every write that comes when none may come any more.
pub struct Turncoat {
    pub memory: MemoryDevice,
    pub face: Mutex<Face>,
    /// The refusal has taken effect: from now on nothing may come.
    pub shut: AtomicBool,
    pub writes: AtomicU64,
    pub late: AtomicU64,
    /// A write takes so long, in microseconds.
    pub slow_us: u64,
    /// A read takes so long, in microseconds.
    pub slow_read_us: AtomicU64,
    /// Writes and flushes do not end while it is set.
    pub held: AtomicBool,
    /// Writes and flushes fail while it is set, and what was not flushed before is lost.
    pub failing: AtomicBool,
    /// What was there before each write since the last flush.
    unflushed: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Turncoat {
    pub fn new(name: &str, size: u64, slow_us: u64) -> Self {
        Self {
            memory: MemoryDevice::new(name, size),
            face: Mutex::new(Face::Itself),
            shut: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            late: AtomicU64::new(0),
            slow_us,
            slow_read_us: AtomicU64::new(0),
            held: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            unflushed: Mutex::default(),
        }
    }

    pub fn show(&self, face: Face) {
        *self.face.lock().unwrap() = face;
    }

    /// Loses the last `writes` of those that were not flushed.
    pub fn lose(&self, writes: usize) {
        let mut unflushed = self.unflushed.lock().unwrap();
        for _ in 0..writes {
            let Some((offset, before)) = unflushed.pop() else { break };
            self.memory.write_at(offset, &[IoSlice::new(&before)]).unwrap();
        }
    }

    /// How many writes were not flushed.
    pub fn unflushed(&self) -> usize {
        self.unflushed.lock().unwrap().len()
    }

    /// A write or flush begins.
    fn touched(&self, action: &'static str) -> Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.late.fetch_add(u64::from(self.shut.load(Ordering::SeqCst)), Ordering::SeqCst);
        if self.slow_us > 0 {
            std::thread::sleep(Duration::from_micros(self.slow_us));
        }
        while self.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Also one that began before and is still at it.
        self.late.fetch_add(u64::from(self.shut.load(Ordering::SeqCst)), Ordering::SeqCst);
        if !self.failing.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.lose(usize::MAX);
        let source = std::io::Error::from_raw_os_error(libc::EIO);
        Err(Error::Io { action, offset: 0, bytes: 0, source })
    }

    /// After a refusal: waits until what had passed the gate is done, as the gate promises it can be, and watches from then on.
    pub fn shut_after(&self, gate: &ApprovedDevice) {
        let begin = Instant::now();
        while gate.writes_in_flight() > 0 {
            assert!(begin.elapsed() < BOUND, "writes in flight do not end");
            std::thread::yield_now();
        }
        self.shut.store(true, Ordering::SeqCst);
    }

    pub fn assert_untouched(&self, what: &str) {
        assert_eq!(self.late.load(Ordering::SeqCst), 0, "{what}: {} was written to after its refusal", self.name());
    }
}

impl BlockDevice for Turncoat {
    fn size_bytes(&self) -> u64 {
        self.memory.size_bytes()
    }

    fn logical_block_size(&self) -> u32 {
        self.memory.logical_block_size()
    }

    fn name(&self) -> &str {
        self.memory.name()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let slow_us = self.slow_read_us.load(Ordering::SeqCst);
        if slow_us > 0 {
            std::thread::sleep(Duration::from_micros(slow_us));
        }
        self.memory.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.touched("write")?;
        let mut before = vec![0; bufs.iter().map(|buf| buf.len()).sum()];
        self.memory.read_at(offset, &mut before)?;
        self.unflushed.lock().unwrap().push((offset, before));
        self.memory.write_at(offset, bufs)
    }

    fn flush(&self) -> Result<()> {
        self.touched("flush")?;
        self.unflushed.lock().unwrap().clear();
        Ok(())
    }

    /// What is written durably makes nothing else durable.
    fn write_together(&self, writes: &[Write<'_>], durable: bool) -> Result<()> {
        if !durable {
            return writes.iter().try_for_each(|write| self.write_at(write.offset, &write.bufs));
        }
        self.touched("write")?;
        writes.iter().try_for_each(|write| self.memory.write_at(write.offset, &write.bufs))
    }
}

impl IdentifiedDevice for Turncoat {
    fn facts(&self) -> std::result::Result<DeviceFacts, FactsError> {
        let device = self.name().to_owned();
        match *self.face.lock().unwrap() {
            Face::Itself => self.memory.facts(),
            Face::Swapped => {
                let mut facts = self.memory.facts()?;
                facts.root.name = "somebody-else".into();
                Ok(facts)
            }
            Face::Changed => Err(FactsError::Changed { device, detail: "disk sequence number 7 became 8".into() }),
            Face::Gone => Err(FactsError::Unreadable { device, detail: "no such device".into() }),
        }
    }
}

/// A volume on such devices.
pub struct Court {
    pub devices: Vec<Arc<Turncoat>>,
    pub registry: Arc<VerifiedRegistry>,
    pub host: HostFacts,
    pub today: Date,
    pub key: VolumeKey,
}

impl Court {
    pub fn new(replicas: usize, min_replicas: u32, slow_us: u64) -> Self {
        Self::of_size(SIZE, replicas, min_replicas, slow_us)
    }

    pub fn of_size(size: u64, replicas: usize, min_replicas: u32, slow_us: u64) -> Self {
        let device = |i| Arc::new(Turncoat::new(&format!("m{i}"), size, slow_us));
        let devices: Vec<_> = (0..replicas).map(device).collect();
        let named: Vec<Arc<dyn IdentifiedDevice>> = devices.iter().map(|d| d.clone() as _).collect();
        let (registry, host, today) =
            lab::registry_with(&named, |registry| registry.policy.min_replicas = min_replicas);
        let approve = |d: &Arc<Turncoat>| ApprovedDevice::approve(d.clone(), &registry, &host, today).unwrap();
        let secret = Secret::new(b"correct horse".to_vec()).unwrap();
        let options = CreateOptions { kdf: KdfParams::FLOOR, ..CreateOptions::default() };
        volume::create(devices.iter().map(approve).collect(), &registry, &secret, &options).unwrap();
        let sealed = Sealed::read(devices.iter().map(approve).collect()).unwrap();
        let key = sealed.unlock(&secret).unwrap().volume_key().clone();
        Self { devices, registry: Arc::new(registry), host, today, key }
    }

    pub fn approved(&self, index: usize) -> ApprovedDevice {
        ApprovedDevice::approve(self.devices[index].clone(), &self.registry, &self.host, self.today).unwrap()
    }

    pub fn open_with(&self, present: &[usize], degraded: bool) -> std::result::Result<Open, volume::Error> {
        let devices = present.iter().map(|index| self.approved(*index)).collect();
        let options = OpenOptions { degraded, ..OpenOptions::default() };
        Sealed::read(devices)?.unlock_again(&self.key)?.open(&self.registry, &options)
    }

    pub fn open(&self) -> Open {
        let all: Vec<usize> = (0..self.devices.len()).collect();
        self.open_with(&all, true).unwrap()
    }

    pub fn recheck(&self, open: &Open) {
        open.members().recheck(&self.registry, &self.host, self.today);
    }

    /// The devices `out` show another face, the policy looks, and from then on they are watched.
    pub fn refuse(&self, open: &Open, out: &[usize], face: Face) {
        out.iter().for_each(|index| self.devices[*index].show(face));
        self.recheck(open);
        for index in out {
            let gate = open.members().device(*index).unwrap();
            assert!(!gate.verdict().approved && gate.fence_reason().is_some());
            self.devices[*index].shut_after(&gate);
        }
    }

    /// They are themselves again, and the policy looks.
    pub fn restore(&self, open: &Open, back: &[usize]) {
        for index in back {
            let device = &self.devices[*index];
            device.assert_untouched("while it was refused");
            device.shut.store(false, Ordering::SeqCst);
            device.show(Face::Itself);
        }
        self.recheck(open);
    }

    pub fn check(&self) {
        let all = (0..self.devices.len()).map(|index| self.approved(index)).collect();
        let assembled = Sealed::read(all).unwrap().unlock_again(&self.key).unwrap();
        let report = assembled.check(&mut |_, _| {}).unwrap();
        assert!(report.count == 0 && report.blocks > 0 && report.skipped.is_empty(), "{report:?}");
    }
}

pub fn states(open: &Open) -> Vec<State> {
    open.status().replicas.iter().map(|replica| replica.state).collect()
}

pub fn wait_in_sync(open: &Open) {
    let begin = Instant::now();
    while states(open).iter().any(|state| *state != State::InSync) {
        assert!(begin.elapsed() < BOUND, "not in sync: {:?}", open.status().replicas);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Every replica by itself has every unit that the metadata names at this moment, without help from another.
pub fn assert_whole(open: &Open) {
    let (store, progress) = (open.store(), Progress::default());
    let mut units = 0;
    let mut visit = |item: Item| {
        if let Item::Unit(unit) = item {
            units += 1;
            for index in 0..store.mirror().len() {
                assert_eq!(store.examine(&unit, index), Finding::Good, "{unit:?} on replica {index}");
            }
        }
        Ok(())
    };
    let traversal = Traversal::new(store, &progress, &|| true);
    assert!(traversal.metadata(&mut visit).unwrap() && traversal.data(open.fs(), &mut visit).unwrap());
    assert!(units > 0);
}

/// Content that can be told from its seed alone.
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes()).take(len).collect()
}

pub fn put(fs: &Fs, name: &[u8], bytes: &[u8]) -> fs::Result<Ino> {
    let ino = match fs.mknod(&CALLER, Ino::ROOT, name, 0o600, 0) {
        Ok(attr) => attr.ino,
        Err(fs::Error::Exists) => fs.lookup(Ino::ROOT, name)?.ino,
        Err(error) => return Err(error),
    };
    let written = fs.write(ino, 0, bytes);
    fs.forget(ino, 1);
    written.map(|_| ino)
}

pub fn get(fs: &Fs, name: &[u8]) -> Vec<u8> {
    let attr = fs.lookup(Ino::ROOT, name).unwrap();
    let mut out = Vec::new();
    out.extend_from_slice(fs.read(attr.ino, 0, attr.size as usize, &mut Vec::new()).unwrap());
    fs.forget(attr.ino, 1);
    out
}

#[track_caller]
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < BOUND, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Court {
    /// One device of a court with this content, and the documents of the court.
    pub fn copy_of(court: &Self, index: usize, image: &[u8]) -> Self {
        let copy = Arc::new(Turncoat::new(court.devices[index].name(), SIZE, 0));
        copy.memory.write_at(0, &[IoSlice::new(image)]).unwrap();
        Self {
            devices: vec![copy],
            registry: court.registry.clone(),
            host: court.host.clone(),
            today: court.today,
            key: court.key.clone(),
        }
    }
}
