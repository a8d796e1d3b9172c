//! Promises P1 and P2 against the clock: devices stop being approved at any moment, in the middle of a large write, a commit, a
//! resync, and from then on not one byte reaches them; when the cause is mended they come back, and nothing that was synced
//! is lost.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scelle::crypto::{KdfParams, Secret, VolumeKey};
use scelle::device::host::HostFacts;
use scelle::device::identity::{DeviceFacts, FactsError};
use scelle::device::memory::MemoryDevice;
use scelle::device::{BlockDevice, IdentifiedDevice};
use scelle::fs::{Caller, Fs};
use scelle::mirror::State;
use scelle::pages::Finding;
use scelle::policy::{ApprovedDevice, ReasonCode};
use scelle::registry::{Date, VerifiedRegistry};
use scelle::units::Ino;
use scelle::volume::{self, CreateOptions, Open, OpenOptions, Sealed};

use super::lab;
use super::rng::{self, Rng};

const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0 };
const SIZE: u64 = 24 << 20;
/// Of a device that takes more than may be in flight (64 MiB).
const LARGE: u64 = 160 << 20;
const BOUND: Duration = Duration::from_secs(60);

/// What a device shows when it is asked who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Face {
    Itself,
    /// Another device in its place.
    Swapped,
    /// The kernel sees another disk than the one that was opened.
    Changed,
    /// Unplugged.
    Gone,
}

const OTHER_FACES: [Face; 3] = [Face::Swapped, Face::Changed, Face::Gone];

/// A device whose identity can change at any moment, and which notices every write that comes when none may come any more.
struct Turncoat {
    memory: MemoryDevice,
    face: Mutex<Face>,
    /// The refusal has taken effect: from now on nothing may come.
    shut: AtomicBool,
    writes: AtomicU64,
    late: AtomicU64,
    /// A write takes so long, in microseconds.
    slow_us: u64,
    /// Writes and flushes do not end while it is set.
    held: AtomicBool,
}

impl Turncoat {
    fn new(name: &str, size: u64, slow_us: u64) -> Self {
        Self {
            memory: MemoryDevice::new(name, size),
            face: Mutex::new(Face::Itself),
            shut: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            late: AtomicU64::new(0),
            slow_us,
            held: AtomicBool::new(false),
        }
    }

    fn show(&self, face: Face) {
        *self.face.lock().unwrap() = face;
    }

    /// A write or flush begins.
    fn touched(&self) {
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
    }

    /// After a refusal: waits until what had passed the gate is done, as the gate promises it can be, and watches from then on.
    fn shut_after(&self, gate: &ApprovedDevice) {
        let begin = Instant::now();
        while gate.writes_in_flight() > 0 {
            assert!(begin.elapsed() < BOUND, "writes in flight do not end");
            std::thread::yield_now();
        }
        self.shut.store(true, Ordering::SeqCst);
    }

    fn assert_untouched(&self, what: &str) {
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

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> scelle::device::Result<()> {
        self.memory.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> scelle::device::Result<()> {
        self.touched();
        self.memory.write_at(offset, bufs)
    }

    fn flush(&self) -> scelle::device::Result<()> {
        self.touched();
        self.memory.flush()
    }
}

impl IdentifiedDevice for Turncoat {
    fn facts(&self) -> Result<DeviceFacts, FactsError> {
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
struct Court {
    devices: Vec<Arc<Turncoat>>,
    registry: Arc<VerifiedRegistry>,
    host: HostFacts,
    today: Date,
    key: VolumeKey,
}

impl Court {
    fn new(replicas: usize, min_replicas: u32, slow_us: u64) -> Self {
        Self::of_size(SIZE, replicas, min_replicas, slow_us)
    }

    fn of_size(size: u64, replicas: usize, min_replicas: u32, slow_us: u64) -> Self {
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

    fn approved(&self, index: usize) -> ApprovedDevice {
        ApprovedDevice::approve(self.devices[index].clone(), &self.registry, &self.host, self.today).unwrap()
    }

    fn open_with(&self, present: &[usize], degraded: bool) -> Result<Open, volume::Error> {
        let devices = present.iter().map(|index| self.approved(*index)).collect();
        let options = OpenOptions { degraded, ..OpenOptions::default() };
        Sealed::read(devices)?.unlock_again(&self.key)?.open(&self.registry, &options)
    }

    fn open(&self) -> Open {
        let all: Vec<usize> = (0..self.devices.len()).collect();
        self.open_with(&all, true).unwrap()
    }

    fn recheck(&self, open: &Open) {
        open.members().recheck(&self.registry, &self.host, self.today);
    }

    /// The devices `out` show another face, the policy looks, and from then on they are watched.
    fn refuse(&self, open: &Open, out: &[usize], face: Face) {
        out.iter().for_each(|index| self.devices[*index].show(face));
        self.recheck(open);
        for index in out {
            let gate = open.members().device(*index).unwrap();
            assert!(!gate.verdict().approved && gate.fence_reason().is_some());
            self.devices[*index].shut_after(&gate);
        }
    }

    /// They are themselves again, and the policy looks.
    fn restore(&self, open: &Open, back: &[usize]) {
        for index in back {
            let device = &self.devices[*index];
            device.assert_untouched("while it was refused");
            device.shut.store(false, Ordering::SeqCst);
            device.show(Face::Itself);
        }
        self.recheck(open);
    }

    fn check(&self) {
        let all = (0..self.devices.len()).map(|index| self.approved(index)).collect();
        let assembled = Sealed::read(all).unwrap().unlock_again(&self.key).unwrap();
        let report = assembled.check(&mut |_, _| {}).unwrap();
        assert!(report.count == 0 && report.blocks > 0 && report.skipped.is_empty(), "{report:?}");
    }
}

fn states(open: &Open) -> Vec<State> {
    open.status().replicas.iter().map(|replica| replica.state).collect()
}

fn wait_in_sync(open: &Open) {
    let begin = Instant::now();
    while states(open).iter().any(|state| *state != State::InSync) {
        assert!(begin.elapsed() < BOUND, "not in sync: {:?}", open.status().replicas);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Every replica by itself has every unit that the metadata names at this moment, without help from another.
fn assert_whole(open: &Open) {
    let _reader = open.store().reader();
    let mut units = open.store().metadata_units().unwrap();
    for scanned in open.fs().scan(None, usize::MAX >> 1).unwrap() {
        let extent = &scanned.extent;
        for (i, tag) in (0..).zip(extent.tags.iter().flatten()) {
            units.push(open.store().data_unit(extent.addr.add(i), extent.id.add(i), *tag));
        }
    }
    assert!(!units.is_empty());
    for index in 0..open.status().replicas.len() {
        for unit in &units {
            assert_eq!(open.store().examine(unit, index), Finding::Good, "{unit:?} on replica {index}");
        }
    }
}

/// Content that can be told from its seed alone.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes()).take(len).collect()
}

fn put(fs: &Fs, name: &[u8], bytes: &[u8]) -> Result<Ino, scelle::fs::Error> {
    let ino = match fs.mknod(&CALLER, Ino::ROOT, name, 0o600, 0) {
        Ok(attr) => attr.ino,
        Err(scelle::fs::Error::Exists) => fs.lookup(Ino::ROOT, name)?.ino,
        Err(error) => return Err(error),
    };
    let written = fs.write(ino, 0, bytes);
    fs.forget(ino, 1);
    written.map(|_| ino)
}

fn get(fs: &Fs, name: &[u8]) -> Vec<u8> {
    let attr = fs.lookup(Ino::ROOT, name).unwrap();
    let mut out = Vec::new();
    out.extend_from_slice(fs.read(attr.ino, 0, attr.size as usize, &mut Vec::new()).unwrap());
    fs.forget(attr.ino, 1);
    out
}

#[test]
fn p1_no_write_passes_a_gate_that_closed_whatever_the_moment() {
    let seed = rng::seed();
    println!("seed {seed}: repeat with SCELLE_SEED={seed}");
    let mut rng = Rng::new(seed);
    let device = Arc::new(Turncoat::new("m0", SIZE, 0));
    let (registry, host, today) = lab::registry_of(&[device.clone() as _]);
    let gate = ApprovedDevice::approve(device.clone(), &registry, &host, today).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (gate, ended) = (&gate, &ended);
            scope.spawn(move || {
                let block = [thread as u8; 4096];
                while !ended.load(Ordering::Relaxed) {
                    let _ = gate.write_at(4096 * thread, &[IoSlice::new(&block)]);
                    let _ = gate.flush();
                }
            });
        }
        for flip in 0..4000 {
            let face = rng.pick(&OTHER_FACES);
            device.show(face);
            let verdict = gate.recheck(&registry, &host, today);
            assert!(!verdict.approved, "{face:?}");
            device.shut_after(&gate);
            (0..rng.below(200)).for_each(|_| std::hint::spin_loop());
            device.assert_untouched(&format!("flip {flip}, {face:?}"));
            device.shut.store(false, Ordering::SeqCst);
            device.show(Face::Itself);
            assert!(gate.recheck(&registry, &host, today).approved);
            (0..rng.below(200)).for_each(|_| std::hint::spin_loop());
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert!(device.writes.load(Ordering::SeqCst) > 1000, "hardly anything was written meanwhile");
}

/// What a writer may count on: the content that a sync has answered for.
type Promised = Mutex<Vec<(Vec<u8>, u64, usize)>>;

/// Writes large and small, syncs, and remembers what was synced. A file that is being overwritten is promised nothing.
fn writer(fs: &Fs, thread: u64, seed: u64, ended: &AtomicBool, promised: &Promised) {
    let mut rng = Rng::new(seed + thread);
    let mut round = 0;
    while !ended.load(Ordering::Relaxed) {
        round += 1;
        let name = format!("{thread}-{}", round % 3).into_bytes();
        promised.lock().unwrap().retain(|(other, ..)| *other != name);
        let (content_seed, len) = (rng.next(), if thread == 0 { 1 << 20 } else { 1 + rng.below(60_000) as usize });
        let truncated = fs.lookup(Ino::ROOT, &name).and_then(|attr| {
            fs.forget(attr.ino, 1);
            fs.unlink(Ino::ROOT, &name)
        });
        let done = match truncated {
            Err(error) if error.errno() != libc::ENOENT => Err(error),
            _ => put(fs, &name, &content(content_seed, len)).and_then(|_| fs.sync()),
        };
        match done {
            Ok(()) => promised.lock().unwrap().push((name, content_seed, len)),
            Err(error) => {
                assert!(matches!(error.errno(), libc::EROFS | libc::EIO), "{error}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

#[test]
fn p2_refusals_at_any_moment_of_a_volume_in_use() {
    let seed = rng::seed();
    println!("seed {seed}: repeat with SCELLE_SEED={seed}");
    let mut rng = Rng::new(seed);
    let (mut flips, mut remounts, mut all_at_once) = (0, 0, 0);
    for round in 0..3u64 {
        let court = Court::new(3, 1 + (round % 2) as u32, rng.pick(&[0, 50]));
        let mut open = court.open();
        let promised = Promised::default();
        for _ in 0..6 {
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (fs, ended, promised, seed) = (open.fs(), &ended, &promised, seed + 100 * round);
                    scope.spawn(move || writer(fs, thread, seed, ended, promised));
                }
                for _ in 0..60 {
                    let mut out: Vec<usize> = (0..3).filter(|_| rng.one_in(3)).collect();
                    if rng.one_in(20) {
                        out = vec![0, 1, 2];
                        all_at_once += 1;
                    }
                    court.refuse(&open, &out, rng.pick(&OTHER_FACES));
                    flips += out.len();
                    std::thread::sleep(Duration::from_micros(rng.below(4000)));
                    court.restore(&open, &out);
                    std::thread::sleep(Duration::from_micros(rng.below(4000)));
                }
                ended.store(true, Ordering::Relaxed);
            });
            if open.status().needs_remount || !states(&open).contains(&State::InSync) {
                // All of them were refused while something was on its way: that is not durable, and only what was promised is.
                remounts += 1;
                let _ = open.close();
                open = court.open();
            }
            // The watch looks every now and then: a resync that was cut off begins again.
            let begin = Instant::now();
            while states(&open).iter().any(|state| *state != State::InSync) {
                assert!(begin.elapsed() < BOUND, "not in sync: {:?}", open.status().replicas);
                court.recheck(&open);
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_whole(&open);
            for (name, content_seed, len) in promised.lock().unwrap().iter() {
                assert!(get(open.fs(), name) == content(*content_seed, *len), "{}", String::from_utf8_lossy(name));
            }
        }
        open.close().unwrap();
        court.check();
    }
    println!("{flips} refusals, {all_at_once} of all at once, {remounts} remounts");
    assert!(flips > 500);
}

#[test]
fn p2_a_refused_flush_is_a_refusal_and_no_fault() {
    let court = Court::new(2, 1, 0);
    let open = court.open();
    put(open.fs(), b"a", &content(1, 50_000)).unwrap();
    court.devices[1].show(Face::Swapped);
    // Only the gate knows, as when the verdict turns while a commit is under way.
    let gate = open.members().device(1).unwrap();
    assert!(
        gate.recheck(&court.registry, &court.host, court.today).has(ReasonCode::DeviceSwapped)
            || !gate.verdict().approved
    );
    open.fs().sync().unwrap();
    let replica = &open.status().replicas[1];
    assert_eq!((replica.state, replica.errors.write), (State::Refused, 0), "{replica:?}");
    assert_eq!(open.status().replicas[0].state, State::InSync);
}

#[test]
fn p2_too_few_replicas_refuse_what_is_new_report_what_is_lost_and_come_back_without_a_remount() {
    let court = Court::new(2, 2, 0);
    let open = court.open();
    let fs = open.fs();
    let ino = put(fs, b"durable", &content(1, 300_000)).unwrap();
    fs.sync().unwrap();
    court.refuse(&open, &[1], Face::Changed);
    // At once, with no commit in between.
    assert_eq!(fs.mknod(&CALLER, Ino::ROOT, b"new", 0o600, 0).unwrap_err().errno(), libc::EROFS);
    assert_eq!(fs.unlink(Ino::ROOT, b"durable").unwrap_err().errno(), libc::EROFS);
    assert_eq!(fs.write(ino, 0, b"x").unwrap_err().errno(), libc::EROFS);
    // What the kernel still held was accepted: that is a loss.
    assert_eq!(fs.write_back(ino, 0, b"x").unwrap_err().errno(), libc::EIO);
    assert!(get(fs, b"durable") == content(1, 300_000));
    fs.sync().unwrap();
    let status = open.status();
    assert!(status.read_only.as_ref().is_some_and(|why| why.contains("too-few-replicas")), "{status:?}");
    assert!(!status.needs_remount);
    assert_eq!(status.replicas[1].state, State::Refused);
    // Nothing was written since: it comes back in sync at once, and changes with it.
    let before = open.store().generation();
    court.restore(&open, &[1]);
    wait_in_sync(&open);
    assert!(open.status().read_only.is_none());
    put(fs, b"new", &content(2, 100_000)).unwrap();
    fs.sync().unwrap();
    assert!(open.store().generation() > before);
    open.close().unwrap();
    court.check();
}

#[test]
fn p5_what_was_answered_before_a_refusal_is_committed_but_fsync_does_not_call_it_safe() {
    let court = Court::new(2, 2, 0);
    let open = court.open();
    refuse_with_data_on_its_way(&court, &open, b"a", &content(3, 200_000), &[0]);
    // On one replica only, where the policy asks for two.
    for _ in 0..2 {
        assert_eq!(open.fs().sync().unwrap_err().errno(), libc::EIO);
    }
    court.restore(&open, &[0]);
    wait_in_sync(&open);
    open.fs().sync().unwrap();
    open.close().unwrap();
    court.check();
    for alone in 0..2 {
        let one = court.open_with(&[alone], true).unwrap();
        assert!(get(one.fs(), b"a") == content(3, 200_000), "replica {alone}");
    }
}

#[test]
fn p2_all_refused_while_nothing_is_on_its_way_come_back_without_a_remount() {
    let court = Court::new(2, 1, 0);
    let open = court.open();
    put(open.fs(), b"a", &content(4, 500_000)).unwrap();
    open.fs().sync().unwrap();
    court.refuse(&open, &[0, 1], Face::Gone);
    assert!(get(open.fs(), b"a") == content(4, 500_000), "reads go on");
    assert_eq!(open.fs().mkdir(&CALLER, Ino::ROOT, b"d", 0o700).unwrap_err().errno(), libc::EROFS);
    court.restore(&open, &[0, 1]);
    wait_in_sync(&open);
    open.fs().mkdir(&CALLER, Ino::ROOT, b"d", 0o700).unwrap();
    open.fs().sync().unwrap();
    open.close().unwrap();
    court.check();
}

#[test]
fn p2_a_registry_that_ends_with_the_day_leaves_nothing_on_its_way() {
    let court = Court::new(2, 1, 0);
    let named: Vec<Arc<dyn IdentifiedDevice>> = court.devices.iter().map(|d| d.clone() as _).collect();
    let (today, tomorrow) = (court.today, Date::new(2026, 1, 2).unwrap());
    let registry = |version, until| {
        let change =
            |registry: &mut scelle::registry::Registry| (registry.version, registry.valid_until) = (version, until);
        Arc::new(lab::registry_with(&named, change).0)
    };
    let (ending, renewed) = (registry(2, today), registry(3, Date::new(2026, 12, 31).unwrap()));
    let open = court.open();
    open.members().recheck(&ending, &court.host, today);
    put(open.fs(), b"late", &content(7, 1 << 20)).unwrap();
    // The evening: nothing new is taken, and what was is made durable.
    open.members().follow(open.members().foresee(&ending, &court.host, tomorrow));
    assert!(open.fs().is_clean());
    assert_eq!(put(open.fs(), b"later", b"x").unwrap_err().errno(), libc::EROFS);
    open.members().recheck(&ending, &court.host, tomorrow);
    assert_eq!(states(&open), [State::Refused; 2]);
    assert!(get(open.fs(), b"late") == content(7, 1 << 20));
    // The morning: renewed, and no remount.
    open.members().recheck(&renewed, &court.host, tomorrow);
    wait_in_sync(&open);
    put(open.fs(), b"later", &content(8, 10_000)).unwrap();
    open.fs().sync().unwrap();
    // An evening that changes nothing takes nothing away.
    open.members().follow(open.members().foresee(&renewed, &court.host, tomorrow));
    put(open.fs(), b"later", &content(9, 10_000)).unwrap();
    open.close().unwrap();
    court.check();
}

#[test]
fn p5_all_refused_with_data_that_the_devices_took_lose_nothing() {
    // The other one comes back first, later, or not before the end.
    for order in [&[0, 1][..], &[1, 0], &[1]] {
        let court = Court::new(2, 1, 0);
        let open = court.open();
        put(open.fs(), b"safe", &content(5, 100_000)).unwrap();
        open.fs().sync().unwrap();
        refuse_with_data_on_its_way(&court, &open, b"taken", &content(6, 1 << 20), &[0, 1]);
        // Not durable, and that was said.
        assert_eq!(open.fs().sync().unwrap_err().errno(), libc::EIO);
        assert!(get(open.fs(), b"taken") == content(6, 1 << 20), "reads go on");
        for index in order {
            court.restore(&open, &[*index]);
            let begin = Instant::now();
            while states(&open)[*index] != State::InSync {
                assert!(begin.elapsed() < BOUND && !open.status().needs_remount, "{:?}", open.status());
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        open.fs().sync().unwrap();
        put(open.fs(), b"next", &content(7, 10_000)).unwrap();
        open.close().unwrap();
        if order.len() == 2 {
            court.check();
        }
        court.devices.iter().for_each(|device| {
            device.shut.store(false, Ordering::SeqCst);
            device.show(Face::Itself);
        });
        let alone = court.open_with(&[order[0]], true).unwrap();
        for (name, seed, len) in [(&b"safe"[..], 5, 100_000), (b"taken", 6, 1 << 20), (b"next", 7, 10_000)] {
            assert!(get(alone.fs(), name) == content(seed, len), "{order:?}");
        }
    }
}

#[test]
fn p5_all_refused_with_data_in_their_queues_say_that_it_is_lost_and_what_to_do() {
    // Slow enough for what a replica's thread does not take at once (4 MiB) to be queued behind that when the gates close.
    let court = Court::new(2, 1, 30_000);
    let open = court.open();
    put(open.fs(), b"safe", &content(5, 100_000)).unwrap();
    open.fs().sync().unwrap();
    let begin = Instant::now();
    loop {
        let generation = open.store().generation();
        (0..12).for_each(|i| drop(put(open.fs(), b"lost", &content(6 + i, 1 << 20))));
        let gates = [0, 1].map(|index| open.members().device(index).unwrap());
        court.devices.iter().for_each(|device| device.show(Face::Gone));
        gates.iter().for_each(|gate| drop(gate.recheck(&court.registry, &court.host, court.today)));
        if open.store().generation() == generation && !open.fs().is_clean() {
            court.refuse(&open, &[0, 1], Face::Gone);
            break;
        }
        assert!(begin.elapsed() < BOUND, "the volume always commits first");
        court.restore(&open, &[0, 1]);
        wait_in_sync(&open);
    }
    assert_eq!(open.fs().sync().unwrap_err().errno(), libc::EIO);
    // One alone cannot know that the other does not have it.
    court.restore(&open, &[0]);
    let ended = || states(&open)[0] == State::Stale;
    wait_until("the resync to end", || ended() || open.status().needs_remount);
    court.restore(&open, &[1]);
    wait_until("what is lost to be known", || {
        court.recheck(&open);
        open.status().needs_remount
    });
    let why = open.members().rejoin(0).unwrap_err().to_string();
    assert!(why.contains("unmount and mount again") && why.contains("What was fsynced is safe"), "{why}");
    assert!(open.close().is_err(), "what was answered is lost, and that is said");
    let open = court.open();
    wait_in_sync(&open);
    assert!(get(open.fs(), b"safe") == content(5, 100_000));
    open.close().unwrap();
    court.check();
}

#[test]
fn p9_what_the_host_kept_goes_into_the_trail_when_writing_begins_again() {
    let court = Court::new(2, 1, 0);
    let host = tempfile::tempdir().unwrap();
    let devices = (0..2).map(|index| court.approved(index)).collect();
    let options = OpenOptions { witness: Some(host.path().to_owned()), ..OpenOptions::default() };
    let open =
        Sealed::read(devices).unwrap().unlock_again(&court.key).unwrap().open(&court.registry, &options).unwrap();
    court.refuse(&open, &[0, 1], Face::Gone);
    let reports = host.path().join(format!("{}.reports", open.uuid()));
    wait_until("the host to keep what the volume cannot", || reports.exists());
    court.restore(&open, &[0, 1]);
    wait_in_sync(&open);
    wait_until("the volume to take it back", || !reports.exists());
    let text: Vec<String> =
        open.audit().page(0).unwrap().into_iter().map(|record| String::from_utf8(record).unwrap()).collect();
    let told = |event: &str| text.iter().filter(|line| line.contains(event) && line.contains("\"reported\"")).count();
    assert_eq!((told("device-refused"), told("read-only")), (2, 1), "{text:#?}");
    open.close().unwrap();
    court.check();
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < BOUND, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes, and has devices refused before the volume's own commit comes.
fn refuse_with_data_on_its_way(court: &Court, open: &Open, name: &[u8], bytes: &[u8], out: &[usize]) {
    let begin = Instant::now();
    loop {
        let generation = open.store().generation();
        put(open.fs(), name, bytes).unwrap();
        // A reader waits until what it reads has been written.
        assert!(get(open.fs(), name) == bytes);
        out.iter().for_each(|index| court.devices[*index].show(Face::Gone));
        // Only the gates, not yet the volume: no commit comes of it.
        for index in out {
            let gate = open.members().device(*index).unwrap();
            assert!(!gate.recheck(&court.registry, &court.host, court.today).approved);
        }
        if open.store().generation() == generation {
            court.refuse(open, out, Face::Gone);
            return;
        }
        assert!(begin.elapsed() < BOUND, "the volume always commits first");
        out.iter().for_each(|index| court.devices[*index].show(Face::Itself));
        court.recheck(open);
        wait_in_sync(open);
    }
}

#[test]
fn p6_a_replica_that_comes_back_is_given_what_it_lacks() {
    let court = Court::new(2, 1, 0);
    let open = court.open();
    for i in 0..16u64 {
        put(open.fs(), format!("big-{i}").as_bytes(), &content(i, 1 << 20)).unwrap();
    }
    open.fs().sync().unwrap();
    let before = open.store().generation();
    court.refuse(&open, &[1], Face::Swapped);
    put(open.fs(), b"small", &content(99, 10_000)).unwrap();
    open.fs().sync().unwrap();
    assert_eq!(open.status().replicas[1].generation, before);
    assert!(open.store().generation() > before);
    court.restore(&open, &[1]);
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
    let alone = court.open_with(&[1], true).unwrap();
    assert!(get(alone.fs(), b"small") == content(99, 10_000));
}

/// Its first blocks are on the other replica already, and its row comes after the resync has looked for rows.
#[test]
fn regression_p6_a_write_that_began_before_a_replica_came_back_reaches_it() {
    let court = Court::of_size(LARGE, 2, 1, 0);
    let open = court.open();
    let ino = put(open.fs(), b"large", b"x").unwrap();
    open.fs().sync().unwrap();
    court.refuse(&open, &[1], Face::Gone);
    let bytes = content(7, 72 << 20);
    std::thread::scope(|scope| {
        court.devices[0].held.store(true, Ordering::SeqCst);
        let writer = scope.spawn(|| open.fs().write(ino, 0, &bytes).unwrap());
        // What the first replica does not take holds the write up in its midst.
        wait_until("most of the write to be sealed", || {
            let usage = open.store().usage();
            usage.total_blocks - usage.free_blocks >= (64 << 20) / 4096
        });
        court.restore(&open, &[1]);
        // Enough for a resync that does not wait for the write to have looked for its row in vain.
        std::thread::sleep(Duration::from_millis(300));
        assert!(!writer.is_finished() && states(&open) == [State::InSync, State::Resyncing]);
        court.devices[0].held.store(false, Ordering::SeqCst);
        writer.join().unwrap();
    });
    wait_in_sync(&open);
    assert_whole(&open);
    open.close().unwrap();
    court.check();
}

#[test]
fn p1_a_refusal_in_the_middle_of_a_resync_stops_it() {
    let seed = rng::seed();
    println!("seed {seed}: repeat with SCELLE_SEED={seed}");
    let mut rng = Rng::new(seed);
    let court = Court::new(2, 1, 100);
    let mut stopped = 0;
    for round in 0..12u64 {
        let open = court.open();
        wait_in_sync(&open);
        court.refuse(&open, &[1], Face::Changed);
        for i in 0..3 {
            put(open.fs(), format!("f-{i}").as_bytes(), &content(round * 10 + i, 1 << 20)).unwrap();
        }
        open.fs().sync().unwrap();
        court.restore(&open, &[1]);
        std::thread::sleep(Duration::from_micros(rng.below(6000)));
        stopped += u64::from(states(&open)[1] == State::Resyncing);
        court.refuse(&open, &[1], Face::Gone);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(states(&open)[1], State::Refused);
        court.restore(&open, &[1]);
        wait_in_sync(&open);
        open.close().unwrap();
        court.check();
    }
    assert!(stopped > 0, "no resync was under way when the refusal came");
}

#[test]
fn p6_a_device_that_was_away_is_taken_in_and_another_is_not() {
    let court = Court::new(2, 1, 0);
    let stranger = Court::new(1, 1, 0);
    let open = court.open();
    put(open.fs(), b"before", &content(1, 100_000)).unwrap();
    open.close().unwrap();
    let open = court.open_with(&[0], true).unwrap();
    put(open.fs(), b"without", &content(2, 2 << 20)).unwrap();
    open.fs().sync().unwrap();
    let refused = open.members().take_in(stranger.approved(0)).unwrap_err();
    assert_eq!(refused.kind(), volume::ErrorKind::Usage, "{refused}");
    assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
    wait_in_sync(&open);
    assert_eq!(open.members().take_in(court.approved(1)).unwrap_err().kind(), volume::ErrorKind::Busy);
    put(open.fs(), b"with", &content(3, 50_000)).unwrap();
    // Unplugged, and there again as another device node: another object with the same content.
    court.refuse(&open, &[1], Face::Gone);
    put(open.fs(), b"after", &content(4, 50_000)).unwrap();
    open.fs().sync().unwrap();
    court.devices[1].shut.store(false, Ordering::SeqCst);
    court.devices[1].show(Face::Itself);
    assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
    let alone = court.open_with(&[1], true).unwrap();
    for (name, seed, len) in [(&b"without"[..], 2, 2 << 20), (b"with", 3, 50_000), (b"after", 4, 50_000)] {
        assert!(get(alone.fs(), name) == content(seed, len));
    }
}

#[test]
fn p6_a_device_that_went_on_elsewhere_or_was_set_back_is_recognised() {
    let court = Court::new(2, 1, 0);
    let open = court.open();
    put(open.fs(), b"a", &content(1, 100_000)).unwrap();
    open.fs().sync().unwrap();
    let old = court.devices[1].memory.image();
    for i in 0..3 {
        put(open.fs(), b"a", &content(2 + i, 100_000)).unwrap();
        open.fs().sync().unwrap();
    }
    // Out of its shelf, an old copy put on it, back again: it has everything of before, by its own word.
    court.refuse(&open, &[1], Face::Gone);
    court.devices[1].memory.write_at(0, &[IoSlice::new(&old)]).unwrap();
    court.restore(&open, &[1]);
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
    // Mounted alone elsewhere meanwhile.
    let open = court.open();
    court.refuse(&open, &[1], Face::Gone);
    let taken = court.devices[1].memory.image();
    put(open.fs(), b"here", &content(9, 10_000)).unwrap();
    open.fs().sync().unwrap();
    let elsewhere = Court::copy_of(&court, 1, &taken);
    let other = elsewhere.open_with(&[0], true).unwrap();
    put(other.fs(), b"there", &content(8, 10_000)).unwrap();
    other.close().unwrap();
    let changed = elsewhere.devices[0].memory.image();
    court.devices[1].memory.write_at(0, &[IoSlice::new(&changed)]).unwrap();
    court.restore(&open, &[1]);
    assert_eq!(states(&open)[1], State::Refused);
    let why = open.members().rejoin(1).unwrap_err();
    assert!(why.to_string().contains("changed elsewhere"), "{why}");
    open.close().unwrap();
}

impl Court {
    /// One device of a court with this content, and the documents of the court.
    fn copy_of(court: &Self, index: usize, image: &[u8]) -> Self {
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
