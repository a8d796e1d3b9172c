//! The power fails under the real daemon: its own transfers (io_submit(2), `RWF_DSYNC`), the kernel's block layer, loop
//! devices over disks that forget what was not flushed (`shelf`). At a change of the disks that the seed chooses nothing is
//! answered any more, the daemon is killed, and each disk keeps any subset of what it had not flushed. Then the volume is
//! mounted again, also from one disk alone: what was answered for is there.
//!
//! `SCELLE_SEED` repeats the operations of each writer, after how many changes the power fails, and what each disk forgets. It
//! does not repeat the order in which the threads of the writers, the daemon and the kernel come along. So a failure comes
//! back often, not always: its message says all that was chosen. `tests/crash` repeats states to the byte.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use scelle::device::raw::{Access, RawDevice};
use scelle::device::{AlignedBuf, BlockDevice, Write as DeviceWrite};

use crate::lab::{Disk, Lab, Memory, ok, run};
use crate::shelf::Shelf;
use crate::support::BOUND;
use crate::support::court::content;
use crate::support::images::Survival;
use crate::support::rng::{self, Rng};

/// Of each disk.
const BYTES: u64 = 96 << 20;

/// Threads that write at once.
const WRITERS: u64 = 3;

type Content = Option<Arc<[u8]>>;

/// Waits longer than other tests do: a passphrase takes a quarter of a gigabyte each time, and most of what is waited for
/// here begins with one. A mount on a busy machine had half a second of a processor in a minute.
#[track_caller]
fn patiently(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < 5 * BOUND, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a file may be after a crash.
#[derive(Clone, Debug, Default)]
struct Promise {
    /// One of these; `None` is that it is not there.
    one_of: Vec<Content>,
    /// It is being written in place: anything.
    anything: bool,
}

/// What every file may be, by name: kept outside of the volume.
type Promises = Mutex<BTreeMap<String, Promise>>;

fn promise(promises: &Promises, name: &str, one_of: &[Content]) {
    promises.lock().unwrap().insert(name.to_owned(), Promise { one_of: one_of.to_vec(), anything: false });
}

/// Writes, replaces and removes files, each by the rules of a careful application, until the volume is gone.
fn writer(dir: &Path, thread: u64, mut rng: Rng, promises: &Promises) {
    let mut step = || -> io::Result<()> {
        let sync = |path: &Path| File::open(path)?.sync_all();
        let name = format!("{thread}-{}", rng.below(5));
        let path = dir.join(&name);
        let before = promises.lock().unwrap().get(&name).and_then(|promise| promise.one_of[0].clone());
        let most = if rng.one_in(6) { 400_000 } else { 40_000 };
        let new: Arc<[u8]> = content(rng.next(), 1 + rng.below(most) as usize).into();
        match rng.below(4) {
            // write, fsync, rename, fsync of the folder
            0 | 1 => {
                let temporary = dir.join(format!("temporary-{thread}"));
                let mut file = File::create(&temporary)?;
                file.write_all(&new)?;
                file.sync_all()?;
                promise(promises, &name, &[before, Some(new.clone())]);
                fs::rename(&temporary, &path)?;
                sync(dir)?;
                promise(promises, &name, &[Some(new)]);
            }
            // in place
            2 => {
                promises.lock().unwrap().insert(name.clone(), Promise { one_of: vec![None], anything: true });
                let mut file = File::create(&path)?;
                file.write_all(&new)?;
                file.sync_data()?;
                promise(promises, &name, &[Some(new)]);
            }
            _ if before.is_some() => {
                promise(promises, &name, &[before, None]);
                fs::remove_file(&path)?;
                sync(dir)?;
                promise(promises, &name, &[None]);
            }
            _ => {}
        }
        Ok(())
    };
    while step().is_ok() {}
}

/// A daemon in front. It is killed when this goes.
struct Daemon(Child);

impl Daemon {
    fn kill(&self) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.0), Signal::KILL);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}

/// The power fails now at the latest: nobody is answered from before the daemon is killed until it can take no answer.
struct Cut<'a>(&'a Shelf, &'a Daemon);

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.0.fail();
        self.1.kill();
        self.0.let_go();
    }
}

/// A volume on two disks that forget.
struct Room {
    lab: Lab,
    shelf: Shelf,
    rng: Rng,
    promises: Promises,
    /// The volume is mounted, and healthy.
    daemon: Option<Daemon>,
    /// What was chosen, for messages.
    told: String,
}

impl Drop for Room {
    fn drop(&mut self) {
        // Nobody waits for a disk while the laboratory is taken down.
        self.shelf.let_go();
        self.daemon = None;
    }
}

impl Room {
    fn new(seed: u64, losetup: &[&str]) -> Self {
        let shelf = Shelf::new(2, BYTES);
        let lab = Lab::of(|_| shelf.images().into_iter().map(|image| Disk::with(image, losetup)).collect());
        ok(&lab.create());
        Self { lab, shelf, rng: Rng::new(seed), promises: Promises::default(), daemon: None, told: String::new() }
    }

    fn log(&self) -> PathBuf {
        self.lab.path("daemon.log")
    }

    fn start(&self, devices: &[PathBuf], options: &str) -> Daemon {
        let mut mount = self.lab.command(&["mount", "--foreground"]);
        let log = File::create(self.log()).unwrap();
        mount
            .args(["-o", options])
            .args(devices)
            .arg(&self.lab.mountpoint)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Daemon(mount.spawn().unwrap())
    }

    /// What the daemon has said, and what each of its threads waits for.
    fn doing(&self, daemon: &Daemon) -> String {
        let mut text = fs::read_to_string(self.log()).unwrap();
        for thread in fs::read_dir(format!("/proc/{}/task", daemon.0.id())).unwrap().flatten() {
            let of = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            text += &format!("{}{}{}\n", of("stat"), of("syscall"), of("stack"));
        }
        text
    }

    /// Without a question to the daemon, which may be waiting for a disk.
    fn is_mounted(&self) -> bool {
        let place = self.lab.mountpoint.to_str().unwrap();
        fs::read_to_string("/proc/self/mounts").unwrap().contains(place)
    }

    /// Mounts these disks, and waits until the volume is usable. What the daemon says when it ends before.
    fn mount(&self, devices: &[PathBuf], options: &str) -> Result<Daemon, String> {
        let mut daemon = self.start(devices, options);
        let (begin, mut ended) = (Instant::now(), false);
        while !ended && !self.is_mounted() {
            let doing = || format!("{}: neither mounted nor refused: {}", self.told, self.doing(&daemon));
            assert!(begin.elapsed() < 5 * BOUND, "{}", doing());
            std::thread::sleep(Duration::from_millis(5));
            ended = daemon.0.try_wait().unwrap().is_some();
        }
        if ended { Err(fs::read_to_string(self.log()).unwrap()) } else { Ok(daemon) }
    }

    /// The volume on both disks, healthy.
    fn mounted(&mut self) -> Result<Daemon, String> {
        let mounted = self.daemon.take().map_or_else(|| self.mount(&self.lab.devices(), ""), Ok);
        patiently("a healthy volume", || {
            let done = mounted.is_err() || self.lab.status()["state"] == "healthy";
            done || {
                std::thread::sleep(Duration::from_millis(100));
                false
            }
        });
        mounted.map_err(|error| format!("both: {error}"))
    }

    fn unmount(&mut self) -> Result<(), String> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let out = self.lab.umount();
        if !out.status.success() {
            return Err(format!("umount: {}", crate::lab::stderr(&out)));
        }
        daemon.0.wait().unwrap();
        Ok(())
    }

    /// Writers at work until the power fails, after some changes of the disks. Whether both replicas were in sync before.
    fn until_the_power_fails(&mut self) -> Result<bool, String> {
        let (early, seed) = (self.rng.one_in(4), self.rng.next());
        let changes = if early { self.rng.below(30) } else { 1 + self.rng.below(700) };
        self.told =
            format!("the power failed {changes} changes after {}", if early { "the start" } else { "the mount" });
        let daemon = if early {
            self.unmount()?;
            self.shelf.fail_after(changes);
            self.start(&self.lab.devices(), "")
        } else {
            let daemon = self.mounted()?;
            self.shelf.fail_after(changes);
            daemon
        };
        let (dir, promises) = (&self.lab.mountpoint, &self.promises);
        std::thread::scope(|scope| {
            let _cut = Cut(&self.shelf, &daemon);
            patiently("the mount or the end of the power", || self.shelf.has_failed() || self.is_mounted());
            if !self.shelf.has_failed() {
                for thread in 0..WRITERS {
                    scope.spawn(move || writer(dir, thread, Rng::new(seed + thread), promises));
                }
            }
            patiently("the end of the power", || self.shelf.has_failed());
        });
        drop(daemon);
        // Whatever the kernel has of the dead mount and of the disks is gone with the machine.
        run(Command::new("umount").arg("-l").arg(&self.lab.mountpoint));
        self.lab.disks.iter().for_each(Disk::detach);
        Ok(!early)
    }

    /// Every file is what it may be. With `settle` it is from now on what it was found to be.
    fn verify(&self, settle: bool) -> Result<(), String> {
        for (name, promise) in self.promises.lock().unwrap().iter_mut() {
            let found = match fs::read(self.lab.mountpoint.join(name)) {
                Ok(bytes) => Some(Arc::from(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(format!("{name}: {error}")),
            };
            if !promise.anything && !promise.one_of.contains(&found) {
                let lengths = |content: &Content| content.as_ref().map(|bytes| bytes.len());
                let allowed: Vec<_> = promise.one_of.iter().map(lengths).collect();
                return Err(format!("{name} has {:?} bytes, and may have {allowed:?}", lengths(&found)));
            }
            if settle {
                *promise = Promise { one_of: vec![found], anything: false };
            }
        }
        Ok(())
    }

    /// One disk by itself, which was in sync when the power failed, is the whole volume.
    fn verify_alone(&mut self, index: usize) -> Result<(), String> {
        let memory = {
            self.lab.disks[index].reattach();
            Memory::of(&self.lab.disks[index])
        };
        let before = self.shelf.left();
        let device = [self.lab.disks[index].device.clone()];
        let daemon = match self.mount(&device, "degraded") {
            // By itself it does not know whether its last commit was answered for: somebody has to say so.
            Err(refused) if refused.contains("[volume-unproven]") => {
                let rest = refused.split("accept-rollback=").nth(1).unwrap_or_else(|| panic!("no advice: {refused}"));
                let generation: String = rest.chars().take_while(char::is_ascii_digit).collect();
                self.mount(&device, &format!("degraded,accept-rollback={generation}"))
            }
            outcome => outcome,
        };
        self.daemon = Some(daemon.map_err(|error| format!("disk {index} alone: {error}"))?);
        self.verify(false).map_err(|error| format!("disk {index} alone: {error}"))?;
        self.unmount()?;
        self.lab.disks[index].detach();
        self.shelf.power_on_with(&before, &[Survival::All; 2], &mut Rng::new(0));
        memory.restore();
        Ok(())
    }

    /// The power fails, returns, and everything is looked at.
    fn cut(&mut self, forget: Option<Survival>) -> Result<(), String> {
        let both_in_sync = self.until_the_power_fails()?;
        let left = self.shelf.left();
        let survival = match forget {
            Some(survival) => {
                self.shelf.power_on_with(&left, &[survival; 2], &mut self.rng);
                vec![survival; 2]
            }
            None => self.shelf.power_on(&left, &mut self.rng),
        };
        self.told += &format!(", then {survival:?}");
        if both_in_sync && self.rng.one_in(2) {
            let alone = self.rng.below(2) as usize;
            self.verify_alone(alone)?;
        }
        self.lab.disks.iter_mut().for_each(Disk::reattach);
        self.daemon = Some(self.mounted()?);
        self.verify(true)
    }

    /// Every block of both replicas is as it must be.
    fn check(&mut self) -> Result<(), String> {
        self.unmount()?;
        let out = self.lab.check();
        if !out.status.success() {
            return Err(format!("check: {}{}", String::from_utf8_lossy(&out.stdout), crate::lab::stderr(&out)));
        }
        Ok(())
    }
}

fn cuts(count: u64, losetup: &[&str]) {
    let seed = rng::seed();
    let mut room = Room::new(seed, losetup);
    for number in 0..count * rng::soak() {
        let done = room.cut(None).and_then(|()| if number % 4 == 3 { room.check() } else { Ok(()) });
        if let Err(error) = done {
            panic!("SCELLE_SEED={seed}, cut {number}: {}: {error}", room.told);
        }
    }
    println!("{} power cuts, {} changes of the disks", count * rng::soak(), room.shelf.changes());
}

#[test]
fn p5_power_that_fails_under_the_daemon_loses_nothing_that_was_answered() {
    cuts(6, &["--direct-io=off"]);
}

#[test]
fn p5_power_that_fails_under_the_daemon_on_disks_without_the_kernels_cache() {
    cuts(6, &["--direct-io=on"]);
}

/// A test of the test: with flushes that do nothing, some cut loses what was answered.
#[test]
fn the_power_cut_notices_flushes_that_do_nothing() {
    let mut room = Room::new(7, &[]);
    room.shelf.lie();
    let noticed = (0..8).find_map(|_| room.cut(Some(Survival::None)).and_then(|()| room.check()).err());
    println!("{}: {}", room.told, noticed.expect("nobody noticed"));
}

/// All the above rests on it: the kernel hands each flush down to the disk, and no other time is anything durable.
#[test]
fn the_loop_driver_passes_flushes_on() {
    for losetup in ["--direct-io=off", "--direct-io=on"] {
        let shelf = Shelf::new(1, 8 << 20);
        let disk = Disk::with(shelf.images().remove(0), &[losetup]);
        let device = RawDevice::open(&disk.device, Access::Exclusive).unwrap();
        let mut block = AlignedBuf::zeroed(4096);
        block.fill(7);
        let go_on = || true;
        for round in 0..20 {
            let write = |at: u64| DeviceWrite { offset: at * 4096, bufs: vec![io::IoSlice::new(&block)] };
            device.write_together(&[write(round), write(100 + round)], false, &go_on).unwrap();
            assert_eq!(shelf.unflushed(0), 2, "{losetup}: durable without a flush");
            if round % 2 == 0 {
                device.flush().unwrap();
            } else {
                device.write_together(&[write(200 + round), write(300 + round)], true, &go_on).unwrap();
            }
            assert_eq!(shelf.unflushed(0), 0, "{losetup}: a flush did not reach the disk");
        }
    }
}
