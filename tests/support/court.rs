//! A volume on devices in memory, each of which misbehaves when it is told to, with the documents that approve them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scelle::crypto::{KdfParams, Secret, VolumeKey};
use scelle::device::faulty::FaultyDevice;
use scelle::device::memory::{Disk, MemoryDevice};
use scelle::device::{BlockDevice, IdentifiedDevice};
use scelle::fs::{self, Caller, Fs};
use scelle::policy::ApprovedDevice;
use scelle::units::Ino;
use scelle::volume::{self, Assembled, CheckReport, CreateOptions, Open, OpenOptions, Sealed};

use super::BOUND;
use super::documents::Documents;
use super::images::{Log, Recorder};
use super::rng::Rng;

pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0 };

/// What a court is made of.
#[derive(Clone, Copy)]
pub struct Plan {
    pub replicas: usize,
    /// Devices besides, which are approved and blank.
    pub spares: usize,
    /// Of each device, in bytes.
    pub size: u64,
    pub min_replicas: u32,
    /// How long a write takes.
    pub delay: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { replicas: 2, spares: 0, size: 24 << 20, min_replicas: 1, delay: Duration::ZERO }
    }
}

/// The volume. Its devices are `m0`, `m1` and so on; several courts may have the same documents and key.
pub struct Court {
    pub documents: Arc<Documents>,
    pub key: VolumeKey,
    pub devices: Vec<Arc<FaultyDevice>>,
    /// What the devices hold, beneath everything that is made to go wrong with them.
    pub memory: Vec<Arc<MemoryDevice>>,
}

impl Court {
    pub fn new(replicas: usize) -> Self {
        Self::of(Plan { replicas, ..Plan::default() })
    }

    pub fn of(plan: Plan) -> Self {
        let memory: Vec<_> = (0..plan.replicas + plan.spares)
            .map(|i| Arc::new(MemoryDevice::new(&format!("m{i}"), plan.size)))
            .collect();
        let devices: Vec<_> = memory.iter().map(|memory| faulty(memory, plan.delay)).collect();
        let named: Vec<Arc<dyn IdentifiedDevice>> = devices.iter().map(|device| device.clone() as _).collect();
        let documents = Documents::with(&named, |registry| registry.policy.min_replicas = plan.min_replicas);
        let approved = || named.iter().take(plan.replicas).map(|device| documents.approve(device.clone())).collect();
        volume::create(approved(), &documents.registry, &secret(), &create_options()).unwrap();
        let key = Sealed::read(approved()).unwrap().unlock(&secret()).unwrap().volume_key().clone();
        Self { documents: Arc::new(documents), key, devices, memory }
    }

    /// The same volume on copies of these disks, whose writes are logged; `None` is a device that is not there.
    pub fn on(&self, disks: &[Option<Disk>], log: &Log) -> Self {
        let present = disks.iter().enumerate().filter_map(|(i, disk)| Some((i, disk.clone()?)));
        let copy = |(i, disk): (usize, Disk)| {
            let memory = Arc::new(MemoryDevice::from_disk(self.memory[i].name(), disk));
            let recorder = Arc::new(Recorder { device: i, log: log.clone() });
            (Arc::new(FaultyDevice::new(memory.clone()).observed_by(recorder)), memory)
        };
        let (devices, memory) = present.map(copy).unzip();
        Self { documents: self.documents.clone(), key: self.key.clone(), devices, memory }
    }

    pub fn disks(&self) -> Vec<Disk> {
        self.memory.iter().map(|memory| memory.disk()).collect()
    }

    pub fn images(&self) -> Vec<Vec<u8>> {
        self.memory.iter().map(|memory| memory.image()).collect()
    }

    pub fn approved(&self, index: usize) -> ApprovedDevice {
        self.documents.approve(self.devices[index].clone())
    }

    /// What the devices of `present` hold, unlocked.
    pub fn assembled_of(&self, present: &[usize]) -> Result<Assembled, volume::Error> {
        let devices = present.iter().map(|index| self.approved(*index)).collect();
        Sealed::read(devices)?.unlock_again(&self.key)
    }

    pub fn assembled(&self) -> Result<Assembled, volume::Error> {
        self.assembled_of(&Vec::from_iter(0..self.devices.len()))
    }

    pub fn open_with(&self, options: &OpenOptions) -> Result<Open, volume::Error> {
        self.assembled()?.open(&self.documents.registry, options)
    }

    pub fn open_of(&self, present: &[usize], degraded: bool) -> Result<Open, volume::Error> {
        let options = OpenOptions { degraded, ..OpenOptions::default() };
        self.assembled_of(present)?.open(&self.documents.registry, &options)
    }

    pub fn open(&self) -> Open {
        self.open_with(&OpenOptions::default()).unwrap()
    }

    pub fn report(&self) -> CheckReport {
        self.assembled().unwrap().check(&mut |_, _| {}).unwrap()
    }

    /// Asserts that every block of every replica is as it must be.
    pub fn check(&self) {
        let report = self.report();
        assert!(report.count == 0 && report.blocks > 0 && report.skipped.is_empty(), "{report:?}");
    }
}

fn faulty(memory: &Arc<MemoryDevice>, delay: Duration) -> Arc<FaultyDevice> {
    Arc::new(FaultyDevice::new(memory.clone()).slow(delay).with_cache())
}

pub fn secret() -> Secret {
    Secret::new(b"correct horse".to_vec()).unwrap()
}

/// The least that a key may cost.
pub fn create_options() -> CreateOptions {
    CreateOptions { kdf: KdfParams::FLOOR, ..CreateOptions::default() }
}

/// After a refusal: waits until what had passed the gate is done, as the gate promises it can be. From then on nothing may
/// come.
pub fn shut_after(gate: &ApprovedDevice, shut: impl FnOnce()) {
    let begin = Instant::now();
    while gate.writes_in_flight() > 0 {
        assert!(begin.elapsed() < BOUND, "writes in flight do not end");
        std::thread::yield_now();
    }
    shut();
}

/// Content that can be told from its seed alone.
pub fn content(seed: u64, len: usize) -> Vec<u8> {
    Rng::new(seed).bytes(len)
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
