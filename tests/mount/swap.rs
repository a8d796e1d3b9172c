//! Promise P1 with devices of the kernel. A device is exchanged while a volume is opened on loop devices, at every call
//! that asks the kernel something, and at any moment of a real mount. The name leads to another device, the node is
//! replaced by another device's, the loop device is bound to another file, or to another part of its file. Images say where
//! bytes landed.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions as FileOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use scelle::crypto::{Secret, VolumeKey};
use scelle::device::faulty::{Answer, FaultyDevice, Observer, Operation};
use scelle::device::raw::{Access, RawDevice};
use scelle::os::DevNo;
use scelle::os::ioctl::{DmTable, LoopStatus};
use scelle::os::ioctl::{NvmeAnswers, ScsiAnswers};
use scelle::policy::{ApprovedDevice, load};
use scelle::probe::host::HostFacts;
use scelle::probe::sys::{Kernel, System, Target};
use scelle::registry::{Date, VerifiedRegistry};
use scelle::volume::{Open, OpenOptions, Sealed};

use crate::lab::{ATTACHING, Disk, Lab, PASSPHRASE, ok, wait_for};
use crate::refused::repoint;
use crate::support::rng::Rng;

const MIB: u64 = 16;

/// How another device comes to the place of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swap {
    /// A symbolic link leads to another node.
    Link,
    /// The node at the path is replaced by one of another device.
    Node,
    /// The loop device is detached, and bound to another file; while it is in use the kernel puts that off.
    Rebound,
    /// The loop device shows another part of its file, also to who has it open; newer kernels refuse that to others.
    Offset,
}

const SWAPS: [Swap; 4] = [Swap::Link, Swap::Node, Swap::Rebound, Swap::Offset];

/// A disk of the laboratory, a foreign copy of it, and a name that leads to the first.
struct Stage {
    name: PathBuf,
    ours: PathBuf,
    image: PathBuf,
    other: Disk,
    /// Whether the kernel let it happen.
    happened: AtomicBool,
}

impl Stage {
    fn new(lab: &Lab) -> Self {
        let (image, copy) = (lab.disks[0].image.clone(), lab.path("other"));
        fs::copy(&image, &copy).unwrap();
        let (name, ours) = (lab.path("name"), lab.disks[0].device.clone());
        let stage = Self { name, ours, image, other: Disk::of(copy), happened: AtomicBool::new(false) };
        stage.restore(Swap::Link);
        stage
    }

    /// Puts something else in the place of the name, at once.
    fn replace(&self, make: impl FnOnce(&Path)) -> bool {
        let beside = self.name.with_extension("beside");
        make(&beside);
        fs::rename(beside, &self.name).is_ok()
    }

    fn swap(&self, swap: Swap) {
        let happened = match swap {
            Swap::Link => self.replace(|path| symlink(&self.other.device, path).unwrap()),
            Swap::Node => self.replace(|path| node(path, &self.other.device)),
            Swap::Rebound => rebind(&self.ours, &self.other.image),
            Swap::Offset => repoint(&self.ours, 4096).is_ok(),
        };
        self.happened.store(happened, Ordering::SeqCst);
    }

    /// Our device is at our name again.
    fn restore(&self, swap: Swap) {
        match swap {
            Swap::Node => self.replace(|path| node(path, &self.ours)),
            _ => self.replace(|path| symlink(&self.ours, path).unwrap()),
        };
        match swap {
            // What was put off while it was in use is done by now.
            Swap::Rebound => wait_for("our file to be bound again", || {
                is_bound(&self.ours, &self.image) || rebind(&self.ours, &self.image)
            }),
            // The kernel may hold what was closed for some ticks yet.
            Swap::Offset => wait_for("our part of the file to be shown again", || repoint(&self.ours, 0).is_ok()),
            Swap::Link | Swap::Node => {}
        }
        self.happened.store(false, Ordering::SeqCst);
    }
}

/// A node of the same device.
fn node(path: &Path, device: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let number = fs::metadata(device).unwrap().rdev();
    // SAFETY: `path` is a C string that outlives the call.
    assert_eq!(unsafe { libc::mknod(path.as_ptr(), libc::S_IFBLK | 0o600, number) }, 0, "mknod");
}

fn is_bound(device: &Path, image: &Path) -> bool {
    let name = device.file_name().unwrap().to_str().unwrap();
    fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"))
        .is_ok_and(|path| path.trim() == image.to_str().unwrap())
}

/// Detaches a loop device and binds it to another file. Says whether it is.
fn rebind(device: &Path, image: &Path) -> bool {
    // Nobody else looks for a free one meanwhile.
    let _alone = ATTACHING.lock().unwrap();
    let file = FileOptions::new().read(true).write(true).open(image).unwrap();
    let control = |request: libc::Ioctl, argument: libc::c_int| {
        let Ok(node) = FileOptions::new().read(true).write(true).open(device) else { return false };
        // SAFETY: both requests (linux/loop.h) take an integer or nothing.
        unsafe { libc::ioctl(node.as_raw_fd(), request, argument) == 0 }
    };
    const SET_FD: libc::Ioctl = 0x4C00;
    const CLR_FD: libc::Ioctl = 0x4C01;
    control(CLR_FD, 0);
    control(SET_FD, file.as_raw_fd())
}

/// The kernel, and from call number `at` on, of all that are made, another device.
#[derive(Default)]
struct Meddler {
    calls: AtomicUsize,
    /// The number of the first write or flush.
    first_write: AtomicUsize,
    at: usize,
    swap: Option<(Arc<Stage>, Swap)>,
}

impl Meddler {
    fn new(at: usize, swap: Option<(Arc<Stage>, Swap)>) -> Arc<Self> {
        Arc::new(Self { at, swap, first_write: AtomicUsize::new(usize::MAX), ..Self::default() })
    }

    fn idle() -> Arc<Self> {
        Self::new(usize::MAX, None)
    }

    fn step(&self) {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let Some((stage, swap)) = self.swap.as_ref().filter(|_| number == self.at) else { return };
        // From the first write to the next look nobody can tell. Not every time is it the same call: a device that is still held
        // from the time before is opened more than once.
        if *swap != Swap::Offset || self.first_write.load(Ordering::SeqCst) == usize::MAX {
            stage.swap(*swap);
        }
    }

    fn step_to_write(&self) {
        self.first_write.fetch_min(self.calls.load(Ordering::SeqCst), Ordering::SeqCst);
        self.step();
    }
}

impl System for Meddler {
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.step();
        Kernel.resolve(path)
    }

    fn open(&self, node: &Path, how: &FileOptions) -> io::Result<File> {
        self.step();
        Kernel.open(node, how)
    }

    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
        self.step();
        Kernel.read(path, max)
    }

    fn list(&self, path: &Path, max: usize) -> io::Result<Vec<String>> {
        self.step();
        Kernel.list(path, max)
    }

    fn loop_status(&self, target: &Target<'_>) -> io::Result<LoopStatus> {
        self.step();
        Kernel.loop_status(target)
    }

    fn dm_table(&self, dev: DevNo) -> io::Result<DmTable> {
        Kernel.dm_table(dev)
    }

    fn nvme_identify(&self, target: &Target<'_>) -> io::Result<NvmeAnswers> {
        Kernel.nvme_identify(target)
    }

    fn nvme_identify_by(&self, controller: &Target<'_>, nsid: u32) -> io::Result<NvmeAnswers> {
        Kernel.nvme_identify_by(controller, nsid)
    }

    fn scsi_inquiry(&self, target: &Target<'_>, ata: bool) -> io::Result<ScsiAnswers> {
        Kernel.scsi_inquiry(target, ata)
    }
}

/// Transfers of the device are steps too.
impl Observer for Meddler {
    fn before(&self, operation: Operation) -> Answer {
        match operation {
            Operation::Read | Operation::Facts => self.step(),
            Operation::Write | Operation::Flush => self.step_to_write(),
        }
        Answer::Itself
    }
}

/// What a mount does, with the meddler between it and the kernel.
fn open(name: &Path, meddler: &Arc<Meddler>, registry: &VerifiedRegistry, key: &VolumeKey) -> Result<Open, String> {
    let device = approve(name, meddler, registry)?;
    let sealed = Sealed::read(vec![device]).map_err(|error| error.to_string())?;
    let assembled = sealed.unlock_again(key).map_err(|error| error.to_string())?;
    assembled.open(registry, &OpenOptions::default()).map_err(|error| error.to_string())
}

fn approve(name: &Path, meddler: &Arc<Meddler>, registry: &VerifiedRegistry) -> Result<ApprovedDevice, String> {
    let device = RawDevice::open_with(name, Access::Exclusive, meddler.clone()).map_err(|error| error.to_string())?;
    let device = Arc::new(FaultyDevice::new(Arc::new(device)).observed_by(meddler.clone()));
    let (host, today) = (HostFacts::read(&Kernel), Date::today().unwrap());
    ApprovedDevice::approve(device, registry, &host, today).map_err(|error| error.to_string())
}

#[test]
fn p1_a_loop_device_swapped_at_any_call_to_the_kernel_is_refused_or_the_right_one() {
    let lab = Lab::new(1, MIB);
    ok(&lab.create());
    let (registry, _) = load::load(&lab.path("registry.toml"), &lab.path("trust.toml")).unwrap();
    let secret = Secret::new(PASSPHRASE.as_bytes().to_vec()).unwrap();
    let stage = Arc::new(Stage::new(&lab));
    let device = approve(&stage.name, &Meddler::idle(), &registry).unwrap();
    let key = Sealed::read(vec![device]).unwrap().unlock(&secret).unwrap().volume_key().clone();
    // Without a swap, to know which calls there are.
    let clean = Meddler::idle();
    open(&stage.name, &clean, &registry, &key).unwrap().close().unwrap();
    let (calls, first_write) = (clean.calls.load(Ordering::SeqCst), clean.first_write.load(Ordering::SeqCst));
    let (mut refused, mut opened) = (0, 0);
    for swap in SWAPS {
        let matters = |at: &usize| match swap {
            // The name is looked up by the first call, the node opened by the second; what is open is not rebound.
            Swap::Link | Swap::Node | Swap::Rebound => *at < 4 || at.is_multiple_of(16),
            Swap::Offset => *at < first_write,
        };
        for at in (0..calls).filter(matters) {
            let before = (lab.disks[0].bytes(), stage.other.bytes());
            let meddler = Meddler::new(at, Some((stage.clone(), swap)));
            match open(&stage.name, &meddler, &registry, &key) {
                // What was opened is ours, whatever has become of its name.
                Ok(volume) => {
                    opened += 1;
                    let offset = swap == Swap::Offset && stage.happened.load(Ordering::SeqCst);
                    assert!(!offset, "call {at}: opened although it shows another part of its file");
                    volume.close().unwrap();
                }
                Err(_) => {
                    refused += 1;
                    assert!(lab.disks[0].bytes() == before.0, "{swap:?} at call {at}: written to before the refusal");
                }
            }
            assert!(stage.other.bytes() == before.1, "{swap:?} at call {at}: bytes landed on the other device");
            stage.restore(swap);
        }
    }
    println!("{calls} calls: {refused} refused, {opened} went on with the right device");
    assert!(refused > 3 && opened > 10);
    ok(&lab.check());
}

#[test]
fn p1_a_loop_device_swapped_at_any_moment_of_a_mount_is_refused_or_the_right_one() {
    let mut rng = Rng::seeded();
    let lab = Lab::new(1, MIB);
    ok(&lab.create());
    let stage = Stage::new(&lab);
    let mount = || lab.mount_devices(std::slice::from_ref(&stage.name), "");
    let begin = Instant::now();
    ok(&mount());
    let length_us = begin.elapsed().as_micros() as u64;
    ok(&lab.umount());
    let (mut refused, mut mounted) = (0, 0);
    for round in 0..8 {
        let swap = [Swap::Link, Swap::Node, Swap::Rebound][round % 3];
        let before = (lab.disks[0].bytes(), stage.other.bytes());
        // Names are looked up at the very beginning; most of the time goes into the key.
        let most = if round < 5 { length_us / 100 } else { length_us };
        let moment = if round < 2 { Duration::ZERO } else { Duration::from_micros(rng.below(most)) };
        let outcome = std::thread::scope(|scope| {
            if moment.is_zero() {
                stage.swap(swap);
            } else {
                scope.spawn(|| {
                    std::thread::sleep(moment);
                    stage.swap(swap);
                });
            }
            mount()
        });
        if outcome.status.success() {
            mounted += 1;
            let mut file = File::create(lab.mountpoint.join(format!("deed-{round}"))).unwrap();
            file.write_all(&[7; 50_000]).and_then(|()| file.sync_all()).unwrap();
            drop(file);
            ok(&lab.umount());
        } else {
            refused += 1;
            assert!(lab.disks[0].bytes() == before.0, "{swap:?} after {moment:?}: written to before the refusal");
        }
        assert!(stage.other.bytes() == before.1, "{swap:?} after {moment:?}: bytes landed on the other device");
        stage.restore(swap);
    }
    println!("{refused} refused, {mounted} mounted the right device");
    assert!(refused >= 2);
    ok(&lab.check());
}
