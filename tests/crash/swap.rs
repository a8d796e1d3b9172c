//! Promise P1 at every step: at the n-th call to a device, for every n, while a volume is made, opened, resynced and brought
//! back, another device takes its place, or it is unplugged, or its approval ends. What comes of it is a refusal or the
//! right device, and the images say that not one byte landed on the other.
//!
//! Calls are counted where a volume meets the world: reading the registry, opening a device by its name, asking it who it
//! is, reading, writing and flushing it. `tests/mount/swap.rs` does the same to loop devices of the kernel.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scelle::device::BlockDevice;
use scelle::device::faulty::{Answer, FaultyDevice, Observer, Operation};
use scelle::device::memory::{Disk, MemoryDevice};
use scelle::mirror::State;
use scelle::policy::ApprovedDevice;
use scelle::problem::ExitCode;
use scelle::registry::{Status, VerifiedRegistry};
use scelle::volume::{self, Open, OpenOptions, Sealed};

use super::support::BOUND;
use super::support::court::{Court, Plan, content, create_options, get, put, secret, shut_after};

const SIZE: u64 = 16 << 20;

/// What happens to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swap {
    /// Its name leads to another device from now on; who has it open goes on having it.
    Renamed,
    /// It is gone for who has it open, and another device has its name.
    Unplugged,
    /// Another device answers, also behind descriptors that are open: a remapped LUN, a loop device given another file.
    Repointed,
    /// The registry revokes it.
    Revoked,
}

const SWAPS: [Swap; 4] = [Swap::Renamed, Swap::Unplugged, Swap::Repointed, Swap::Revoked];

/// A call, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Registry,
    Open,
    Device(Operation),
}

const LOOK: Step = Step::Device(Operation::Facts);

/// A place for a device, and the other device that comes to it.
struct Bay {
    ours: Arc<MemoryDevice>,
    other: Arc<MemoryDevice>,
    wire: Mutex<Wire>,
    /// Somebody has looked since the swap.
    seen: AtomicBool,
    /// A look has refused what is here: from now on nothing may come.
    shut: AtomicBool,
    /// Writes and flushes that came all the same.
    late: AtomicU64,
}

/// The calls so far, and the one from which on the swap is seen.
#[derive(Default)]
struct Wire {
    calls: Vec<Step>,
    swap: Option<(Swap, usize)>,
}

impl Bay {
    /// A call is made. Returns the swap, if it has happened by now.
    fn step(&self, step: Step) -> Option<Swap> {
        let mut wire = self.wire.lock().unwrap();
        let number = wire.calls.len();
        wire.calls.push(step);
        let swap = wire.swap.filter(|(_, from)| number >= *from).map(|(swap, _)| swap);
        let shows = |swap: Swap| step == if swap == Swap::Revoked { Step::Registry } else { LOOK };
        self.seen.fetch_or(swap.is_some_and(shows), Ordering::SeqCst);
        swap
    }

    /// From call `from` on (counted from now), `swap`; none: all is well again.
    fn plan(&self, swap: Option<(Swap, usize)>) {
        *self.wire.lock().unwrap() = Wire { calls: Vec::new(), swap };
        self.shut.store(false, Ordering::SeqCst);
        self.seen.store(false, Ordering::SeqCst);
    }

    fn calls(&self) -> Vec<Step> {
        self.wire.lock().unwrap().calls.clone()
    }

    /// Opens what has the name at this moment.
    fn open(self: &Arc<Self>) -> Arc<FaultyDevice> {
        let is_other = matches!(self.step(Step::Open), Some(Swap::Renamed | Swap::Unplugged));
        let device = if is_other { &self.other } else { &self.ours };
        Arc::new(FaultyDevice::new(device.clone()).observed_by(Arc::new(Handle { bay: self.clone(), is_other })))
    }
}

/// A descriptor of one of the two.
struct Handle {
    bay: Arc<Bay>,
    is_other: bool,
}

impl Observer for Handle {
    fn before(&self, operation: Operation) -> Answer {
        let answer = match self.bay.step(Step::Device(operation)) {
            _ if self.is_other => Answer::Itself,
            Some(Swap::Unplugged) => return Answer::Nobody,
            Some(Swap::Repointed) => Answer::Other(self.bay.other.clone()),
            Some(Swap::Renamed | Swap::Revoked) | None => Answer::Itself,
        };
        let is_late = operation.is_change() && self.bay.shut.load(Ordering::SeqCst);
        self.bay.late.fetch_add(u64::from(is_late), Ordering::SeqCst);
        answer
    }
}

/// What the swap is tried on.
struct Volume {
    court: Court,
    /// The next versions of the registry: the first, or the second device is revoked.
    revoking: [Arc<VerifiedRegistry>; 2],
    /// What the two devices hold: a volume with a file.
    images: [Disk; 2],
    /// The same of each after it went on without the other.
    alone: [Disk; 2],
    /// The same of both before and after a small commit, in the middle of a mount.
    running: [[Disk; 2]; 2],
}

/// What the devices hold at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Volume,
    /// That in the target bay was left behind.
    StaleVolume,
    /// The power failed before the one in the target bay had anything of the last commit.
    CrashedVolume,
}

/// Two bays for the devices of a volume.
struct Room<'a> {
    volume: &'a Volume,
    bays: [Arc<Bay>; 2],
    /// The bay in which the swap happens.
    target: usize,
}

impl Volume {
    fn new() -> Self {
        let court = Court::of(Plan { size: SIZE, ..Plan::default() });
        let revoking = [0, 1]
            .map(|revoked| court.documents.issue(2, |registry| registry.devices[revoked].status = Status::Revoked));
        let open = court.open();
        put(open.fs(), b"before", &content(1, 200_000)).unwrap();
        open.close().unwrap();
        let images = [0, 1].map(|i| court.memory[i].disk());
        let (alone, running) = (images.clone(), [images.clone(), images.clone()]);
        let mut volume = Self { court, revoking, images, alone, running };
        volume.alone = [0, 1].map(|i| {
            let room = volume.room(1 - i, Held::Volume);
            let open = room.open(&[i]).unwrap();
            put(open.fs(), b"without", &content(1, 300_000)).unwrap();
            open.close().unwrap();
            room.bays[i].ours.disk()
        });
        let room = volume.room(0, Held::Volume);
        let open = room.open(&[0, 1]).unwrap();
        open.fs().checkpoint().unwrap();
        let before = [0, 1].map(|i| room.bays[i].ours.disk());
        put(open.fs(), b"small", &content(1, 5000)).unwrap();
        open.fs().sync().unwrap();
        assert!(open.store().is_provisional());
        let running = [before, [0, 1].map(|i| room.bays[i].ours.disk())];
        drop(open);
        volume.running = running;
        volume
    }

    /// Two bays; the other device is a copy, so that only who it is tells it apart.
    fn room(&self, target: usize, held: Held) -> Room<'_> {
        let bays = [0, 1].map(|i| {
            let held = || match held {
                Held::Nothing => Disk::new(SIZE),
                Held::StaleVolume if i != target => self.alone[i].clone(),
                Held::CrashedVolume => self.running[usize::from(i != target)][i].clone(),
                Held::Volume | Held::StaleVolume => self.images[i].clone(),
            };
            let device = |name: String| Arc::new(MemoryDevice::from_disk(&name, held()));
            let flag = || AtomicBool::new(false);
            let (ours, other) = (device(format!("m{i}")), device(format!("other-{i}")));
            Arc::new(Bay { ours, other, wire: Mutex::default(), seen: flag(), shut: flag(), late: AtomicU64::new(0) })
        });
        Room { volume: self, bays, target }
    }
}

fn holds(open: &Open, name: &[u8], len: usize) -> bool {
    get(open.fs(), name) == content(1, len)
}

impl Room<'_> {
    fn bay(&self) -> &Arc<Bay> {
        &self.bays[self.target]
    }

    /// Reads the registry, as it is on the host at this moment.
    fn registry(&self) -> Arc<VerifiedRegistry> {
        match self.bay().step(Step::Registry) {
            Some(Swap::Revoked) => self.volume.revoking[self.target].clone(),
            _ => self.volume.court.documents.registry.clone(),
        }
    }

    fn approve(&self, registry: &VerifiedRegistry, bay: &Arc<Bay>) -> Result<ApprovedDevice, ExitCode> {
        let documents = &self.volume.court.documents;
        ApprovedDevice::approve(bay.open(), registry, &documents.host, documents.today).map_err(|_| ExitCode::Refused)
    }

    fn approve_all(&self, registry: &VerifiedRegistry) -> Result<Vec<ApprovedDevice>, ExitCode> {
        self.bays.iter().map(|bay| self.approve(registry, bay)).collect()
    }

    /// As `scelle mount` does it.
    fn open(&self, present: &[usize]) -> Result<Open, ExitCode> {
        let registry = self.registry();
        let devices: Result<Vec<_>, _> = present.iter().map(|i| self.approve(&registry, &self.bays[*i])).collect();
        let options = OpenOptions { degraded: present.len() < 2, ..OpenOptions::default() };
        let kind = |error: volume::Error| error.code().exit();
        let assembled = Sealed::read(devices?).map_err(kind)?.unlock_again(&self.volume.court.key).map_err(kind)?;
        let registry = self.registry();
        assembled.open(&registry, &options).map_err(kind)
    }

    /// As `scelle create` does it.
    fn create(&self) -> Result<(), ExitCode> {
        let registry = self.registry();
        let devices = self.approve_all(&registry)?;
        let registry = self.registry();
        volume::create(devices, &registry, &secret(), &create_options())
            .map(|_| ())
            .map_err(|error| error.code().exit())
    }

    /// As the daemon's watch does it, which begins with a look. What it refuses is shut off from then on.
    fn watch(&self, open: &Open) {
        let documents = &self.volume.court.documents;
        open.members().recheck(&self.registry(), &documents.host, documents.today);
        let gate = open.members().device(self.target);
        if let Some(gate) = gate.filter(|gate| !gate.verdict().approved) {
            shut_after(&gate, || self.bay().shut.store(true, Ordering::SeqCst));
        }
    }

    fn state(&self, open: &Open) -> State {
        open.members().state(self.target)
    }

    /// What the devices hold: ours, the other of the first bay, ours, the other of the second.
    fn images(&self) -> Vec<Disk> {
        self.bays.iter().flat_map(|bay| [bay.ours.disk(), bay.other.disk()]).collect()
    }

    /// Everything is as it was at first, and the volume is whole on the devices that are its own.
    fn check(&self) {
        self.bays.iter().for_each(|bay| bay.plan(None));
        let assembled = Sealed::read(self.approve_all(&self.volume.court.documents.registry).unwrap())
            .unwrap()
            .unlock_again(&self.volume.court.key);
        let report = assembled.unwrap().check(&mut |_, _| {}).unwrap();
        assert!(report.count == 0 && report.blocks > 0, "{report:?}");
    }
}

/// The moments that matter, by the calls that a run without a swap makes.
#[derive(Clone, Copy, Debug)]
struct Moments {
    /// The first write or flush.
    first_write: usize,
    /// The last look before it.
    last_look: usize,
    /// The last reading of the registry before it.
    last_registry: Option<usize>,
}

impl Moments {
    fn of(calls: &[Step]) -> Self {
        let writes = |step: &Step| matches!(step, Step::Device(operation) if operation.is_change());
        let first_write = calls.iter().position(writes).unwrap_or(calls.len());
        let last_look = calls[..first_write].iter().rposition(|step| *step == LOOK).unwrap();
        let last_registry = calls[..last_look].iter().rposition(|step| *step == Step::Registry);
        // Nothing slow is between the last look and the first byte: no label is read, no key derived, nobody asked.
        assert_eq!(first_write, last_look + 1, "{calls:?}");
        Self { first_write, last_look, last_registry }
    }

    /// Whether a swap at call `from` comes in time to be seen before the first byte.
    fn in_time(&self, swap: Swap, from: usize) -> bool {
        match swap {
            Swap::Revoked => self.last_registry.is_some_and(|last| from <= last),
            _ => from <= self.last_look,
        }
    }

    /// From which of so many calls on a swap is tried: every one up to some beyond the first write, then a few. A name is
    /// looked up early or never.
    fn tried(&self, swap: Swap, calls: usize) -> Vec<usize> {
        let all = self.first_write + 4;
        let later = (all..calls).step_by((calls.saturating_sub(all) / 4).max(1));
        let seldom = move |from: &usize| swap != Swap::Renamed || *from <= 4 || *from == all;
        (0..all).chain(later).filter(seldom).collect()
    }
}

/// What holds after every run: `before` are the images of [`Room::images`] at its beginning.
fn assert_nothing_landed(room: &Room<'_>, moments: Moments, swap: Swap, from: usize, before: &[Disk]) {
    let what = format!("{swap:?} of device {} from call {from} on ({moments:?})", room.target);
    let after = room.images();
    assert_eq!(room.bay().late.load(Ordering::SeqCst), 0, "{what}: written to after it was seen");
    // What answers in another's place between two looks, and without a trace in the kernel, cannot be told by anybody.
    let between_looks = swap == Swap::Repointed && !moments.in_time(swap, from);
    for (i, bay) in room.bays.iter().enumerate() {
        let is_other_untouched = after[2 * i + 1] == before[2 * i + 1];
        assert!(is_other_untouched || between_looks, "{what}: bytes landed on {}", bay.other.name());
    }
}

#[test]
fn p1_a_swap_at_any_step_of_a_mount_is_a_refusal_or_the_right_device() {
    let volume = Volume::new();
    let (mut refused, mut opened) = (0, 0);
    let each = |swap| {
        let of_second = [Held::StaleVolume, Held::CrashedVolume].map(|held| (swap, 1, held));
        [(swap, 0, Held::Volume), (swap, 1, Held::Volume)].into_iter().chain(of_second)
    };
    for (swap, target, held) in SWAPS.into_iter().flat_map(each) {
        let clean = volume.room(target, held);
        clean.open(&[0, 1]).unwrap().close().unwrap();
        let calls = clean.bay().calls();
        let moments = Moments::of(&calls);
        for from in moments.tried(swap, calls.len()) {
            let room = volume.room(target, held);
            let before = room.images();
            room.bay().plan(Some((swap, from)));
            match room.open(&[0, 1]) {
                Err(kind) => {
                    refused += 1;
                    if from < moments.first_write {
                        assert!(room.images() == before, "{swap:?} {from}: something was written before the refusal");
                        // One that is gone when its roots are read is a replica that is missing.
                        let gone = [ExitCode::Failed, ExitCode::Degraded].contains(&kind) && swap == Swap::Unplugged;
                        assert!(kind == ExitCode::Refused || gone, "{swap:?} {from}: {kind:?}");
                    }
                }
                Ok(open) => {
                    opened += 1;
                    // One that is gone before its label is read is left out, where the volume does not need it.
                    let is_absent = !matches!(room.state(&open), State::InSync | State::Resyncing);
                    let is_left_out = swap == Swap::Unplugged && is_absent;
                    let is_other = swap != Swap::Renamed && moments.in_time(swap, from);
                    assert!(is_left_out || !is_other, "{swap:?} {from}: not refused");
                    room.watch(&open);
                    let is_seen = swap != Swap::Renamed && room.bay().seen.load(Ordering::SeqCst);
                    let is_out = !matches!(room.state(&open), State::InSync | State::Resyncing);
                    // One that is gone also fails what is written to it.
                    assert!(is_out == is_seen || is_out && swap == Swap::Unplugged, "{swap:?} {from}");
                    let before = room.images();
                    put(open.fs(), b"after", &content(1, 100_000)).unwrap();
                    open.fs().sync().unwrap();
                    assert!(holds(&open, b"before", 200_000) && holds(&open, b"after", 100_000));
                    let here = 2 * target..2 * target + 2;
                    let is_untouched = room.images()[here.clone()] == before[here];
                    assert!(!is_seen || is_untouched, "{swap:?} {from}: written to after the look");
                    room.watch(&open);
                    open.close().unwrap();
                }
            }
            assert_nothing_landed(&room, moments, swap, from, &before);
            if swap != Swap::Repointed || from < moments.first_write {
                room.check_after(swap);
            }
        }
    }
    println!("{refused} mounts refused, {opened} went on with the right device");
    assert!(refused > 50 && opened > 50);
}

impl Room<'_> {
    /// The right devices hold the volume: both, when none was left behind, else the one that was not swapped.
    fn check_after(&self, swap: Swap) {
        self.bays.iter().for_each(|bay| bay.plan(None));
        if swap == Swap::Renamed {
            return self.check();
        }
        if swap == Swap::Revoked {
            // The volume may have seen the newer registry.
            self.bay().plan(Some((swap, 0)));
        }
        let open = self.open(&[1 - self.target]).or_else(|_| self.open(&[0, 1])).unwrap();
        assert!(holds(&open, b"before", 200_000));
    }
}

#[test]
fn p1_a_swap_at_any_step_of_create_is_a_refusal_or_the_right_device() {
    let volume = Volume::new();
    let mut refused = 0;
    let clean = volume.room(0, Held::Nothing);
    clean.create().unwrap();
    let moments = Moments::of(&clean.bay().calls());
    // Each run derives a key at its full cost: what cannot make a difference is not tried.
    let last_registry = moments.last_registry.unwrap();
    let matters = |swap: Swap, from: usize| match swap {
        Swap::Repointed => true,
        Swap::Revoked => [0, 1, last_registry, last_registry + 1].contains(&from),
        Swap::Renamed => from <= 2,
        Swap::Unplugged => from % 3 == 1 || from + 1 >= moments.last_look,
    };
    for (number, swap) in SWAPS.into_iter().enumerate() {
        for from in (0..moments.first_write + 2).filter(|from| matters(swap, *from)) {
            let room = volume.room((from + number) % 2, Held::Nothing);
            let before = room.images();
            room.bay().plan(Some((swap, from)));
            let outcome = room.create();
            if moments.in_time(swap, from) && swap != Swap::Renamed {
                assert!(outcome.is_err(), "{swap:?} {from}: not refused");
                assert!(room.images() == before, "{swap:?} {from}: something was written before the refusal");
            }
            refused += u64::from(outcome.is_err());
            assert_nothing_landed(&room, moments, swap, from, &before);
            if outcome.is_ok() && swap == Swap::Renamed {
                room.bays.iter().for_each(|bay| bay.plan(None));
                let devices = room.approve_all(&volume.court.documents.registry).unwrap();
                let report = Sealed::read(devices).unwrap().unlock(&secret()).unwrap().check(&mut |_, _| {});
                assert_eq!(report.unwrap().count, 0);
            }
        }
    }
    assert!(refused > 10, "{refused}");
}

/// Watches and writes until the replica is in sync or refused for good, then says whether it is in sync.
fn settle(room: &Room<'_>, open: &Open) -> bool {
    let begin = Instant::now();
    loop {
        room.watch(open);
        match room.state(open) {
            State::InSync => return true,
            State::Resyncing => {}
            _ => return false,
        }
        assert!(begin.elapsed() < BOUND, "{:?}", open.status().replicas);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A replica comes back, by `bring_back`, into a volume that has gone on without it; the swap meets it on the way.
fn swap_on_the_way_back(
    leave: impl Fn(&Room<'_>) -> Open,
    bring_back: impl Fn(&Room<'_>, &Open) -> Result<(), ExitCode>,
) {
    let volume = Volume::new();
    let (mut kept_out, mut came_back) = (0, 0);
    for (swap, target) in SWAPS.into_iter().flat_map(|swap| [(swap, 0), (swap, 1)]) {
        let prepare = |room: &Room<'_>| {
            let open = leave(room);
            put(open.fs(), b"without", &content(1, 300_000)).unwrap();
            open.fs().sync().unwrap();
            assert_ne!(room.state(&open), State::InSync);
            open
        };
        let clean = volume.room(target, Held::Volume);
        let open = prepare(&clean);
        clean.bay().plan(None);
        bring_back(&clean, &open).unwrap();
        // Writes come from other threads, perhaps only after this.
        let moments = Moments::of(&clean.bay().calls());
        assert!(settle(&clean, &open));
        open.close().unwrap();
        let calls = clean.bay().calls();
        for from in moments.tried(swap, calls.len()) {
            let room = volume.room(target, Held::Volume);
            let open = prepare(&room);
            let before = room.images();
            room.bay().plan(Some((swap, from)));
            let here = 2 * target..2 * target + 2;
            let outcome = bring_back(&room, &open);
            if moments.in_time(swap, from) && outcome.is_err() {
                assert!(room.images()[here.clone()] == before[here.clone()], "{swap:?} {from}: written to");
            }
            let is_back = outcome.is_ok() && settle(&room, &open);
            if is_back {
                came_back += 1;
                let is_seen = room.bay().seen.load(Ordering::SeqCst);
                assert!(swap == Swap::Renamed || !is_seen, "{swap:?} {from}: not refused");
            } else {
                kept_out += 1;
                // Whatever is written now, none of it reaches the bay.
                let before = room.images();
                put(open.fs(), b"after", &content(1, 100_000)).unwrap();
                open.fs().sync().unwrap();
                assert!(room.images()[here.clone()] == before[here.clone()], "{swap:?} {from}: written to");
            }
            assert!(holds(&open, b"before", 200_000) && holds(&open, b"without", 300_000));
            assert_nothing_landed(&room, moments, swap, from, &before);
            open.close().unwrap();
        }
    }
    println!("{kept_out} kept out, {came_back} came back");
    assert!(kept_out > 50 && came_back > 10);
}

#[test]
fn p1_a_swap_at_any_step_of_taking_in_a_device_is_a_refusal_or_the_right_device() {
    let leave = |room: &Room<'_>| room.open(&[1 - room.target]).unwrap();
    swap_on_the_way_back(leave, |room, open| {
        let registry = room.registry();
        let device = room.approve(&registry, room.bay())?;
        open.members().take_in(device).map(|_| ()).map_err(|error| error.code().exit())
    });
}

#[test]
fn p1_a_swap_at_any_step_of_coming_back_is_a_refusal_or_the_right_device() {
    let leave = |room: &Room<'_>| {
        let open = room.open(&[0, 1]).unwrap();
        room.bay().plan(Some((Swap::Unplugged, 0)));
        room.watch(&open);
        open
    };
    swap_on_the_way_back(leave, |room, open| {
        room.watch(open);
        Ok(())
    });
}
