#![allow(clippy::unwrap_used)]
//! One suite for every kind of block device.

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::faulty::{Answer, Change, Effect, Face, Fault, FaultyDevice, Observer, Operation};
use super::memory::MemoryDevice;
use super::raw::{Access, OpenError, RawDevice};
use super::{AlignedBuf, BlockDevice, Error, IdentifiedDevice, Write};
use crate::os::DevNo;
use crate::probe::sys::Kernel;
use crate::probe::{Doubt, chain};
use crate::registry::Transport;

const SIZE: u64 = 4 << 20;

fn pattern(len: usize, seed: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    for (i, byte) in buf.iter_mut().enumerate() {
        *byte = (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed;
    }
    buf
}

/// Everything that [`BlockDevice`] promises, on a fresh device of [`SIZE`] zero bytes.
fn suite(device: &dyn BlockDevice) {
    assert_eq!(device.size_bytes(), SIZE);
    assert!(matches!(device.logical_block_size(), 512 | 4096));
    let mut all = AlignedBuf::zeroed(SIZE as usize);
    device.read_at(0, &mut all).unwrap();
    assert!(all.iter().all(|b| *b == 0));

    reads_what_was_written(device);
    refuses_what_does_not_fit(device);
    gathers_many_slices(device);
    takes_unaligned_memory(device);
    goes_on_only_as_long_as_it_may(device);
    writes_several_together(device);
    device.flush().unwrap();
}

fn reads_what_was_written(device: &dyn BlockDevice) {
    for (offset, len) in [(0, 4096), (8192, 65536), (SIZE - 4096, 4096), (1 << 20, 1 << 20)] {
        let data = pattern(len, offset as u8);
        device.write_at(offset, &[IoSlice::new(&data)]).unwrap();
        device.flush().unwrap();
        let mut back = AlignedBuf::zeroed(len);
        device.read_at(offset, &mut back).unwrap();
        assert!(back[..] == data[..], "{len} bytes at {offset}");
    }
    let mut untouched = AlignedBuf::zeroed(4096);
    device.read_at(4096, &mut untouched).unwrap();
    assert!(untouched.iter().all(|b| *b == 0));
}

fn refuses_what_does_not_fit(device: &dyn BlockDevice) {
    let mut buf = AlignedBuf::zeroed(8192);
    let before = {
        let mut before = AlignedBuf::zeroed(4096);
        device.read_at(SIZE - 4096, &mut before).unwrap();
        before
    };
    for offset in [SIZE - 4096, SIZE, u64::MAX - 4095, 1, 511] {
        assert!(matches!(device.read_at(offset, &mut buf), Err(Error::OutOfRange { .. })), "{offset}");
        let data = IoSlice::new(&buf);
        assert!(matches!(device.write_at(offset, &[data]), Err(Error::OutOfRange { .. })), "{offset}");
    }
    assert!(matches!(device.read_at(0, &mut buf[..100]), Err(Error::OutOfRange { .. })));
    assert!(matches!(device.write_at(0, &[IoSlice::new(&buf[..100])]), Err(Error::OutOfRange { .. })));
    let mut after = AlignedBuf::zeroed(4096);
    device.read_at(SIZE - 4096, &mut after).unwrap();
    assert!(after[..] == before[..], "a refused write changed the device");
}

fn gathers_many_slices(device: &dyn BlockDevice) {
    // More slices than one system call takes, some of them empty.
    let data = pattern(1100 * 512, 9);
    let mut slices: Vec<IoSlice<'_>> = data[..1100 * 512].chunks(512).map(IoSlice::new).collect();
    slices.insert(3, IoSlice::new(&[]));
    if device.logical_block_size() == 512 {
        device.write_at(4096 * 3, &slices).unwrap();
        let mut back = AlignedBuf::zeroed(1100 * 512);
        device.read_at(4096 * 3, &mut back[..1100 * 512]).unwrap();
        assert!(back[..1100 * 512] == data[..1100 * 512]);
    }
    device.write_at(0, &[]).unwrap();
    device.read_at(0, &mut []).unwrap();
}

fn writes_several_together(device: &dyn BlockDevice) {
    let data = pattern(256 << 10, 5);
    for durable in [false, true] {
        // More than are under way at a time, in pieces, one of them at an odd address.
        for odd in [0, 1] {
            let place = |i: usize| (SIZE - 8192 * (i as u64 + 1), &data[i * 4096 + odd..][..4096]);
            let places: Vec<(u64, &[u8])> = (0..50).map(place).collect();
            let writes: Vec<Write<'_>> = places
                .iter()
                .map(|(offset, bytes)| {
                    let (a, b) =
                        if device.logical_block_size() == 512 { bytes.split_at(512) } else { bytes.split_at(4096) };
                    Write { offset: *offset, bufs: vec![IoSlice::new(a), IoSlice::new(b)] }
                })
                .collect();
            device.write_together(&writes, durable, &|| true).unwrap();
            let mut back = AlignedBuf::zeroed(4096);
            for (offset, bytes) in &places {
                device.read_at(*offset, &mut back).unwrap();
                assert!(back[..] == **bytes, "{offset}");
            }
        }
    }
    // One that does not fit: none is carried out.
    let before = pattern(4096, 1);
    device.write_at(0, &[IoSlice::new(&before)]).unwrap();
    let one = |offset| Write { offset, bufs: vec![IoSlice::new(&data[..4096])] };
    assert!(matches!(device.write_together(&[one(SIZE), one(0)], true, &|| true), Err(Error::OutOfRange { .. })));
    let mut back = AlignedBuf::zeroed(4096);
    device.read_at(0, &mut back).unwrap();
    assert!(back[..] == before[..]);
    device.write_together(&[], true, &|| true).unwrap();
}

/// Writes that are begun one after the other end when they may not go on. These are: their memory is not aligned.
fn goes_on_only_as_long_as_it_may(device: &dyn BlockDevice) {
    let (data, zeros) = (pattern(4 * 4096 + 1, 9), vec![0; 4096]);
    let place = |i: u64| i * 8192;
    for allowed in [0, 2] {
        (0..4).for_each(|i| device.write_at(place(i), &[IoSlice::new(&zeros)]).unwrap());
        let piece = |i: u64| IoSlice::new(&data[1..][crate::units::to_usize(i) * 4096..][..4096]);
        let writes: Vec<Write<'_>> = (0..4).map(|i| Write { offset: place(i), bufs: vec![piece(i)] }).collect();
        let asked = std::cell::Cell::new(0);
        let may_go_on = || asked.replace(asked.get() + 1) < allowed;
        let error = device.write_together(&writes, true, &may_go_on).unwrap_err();
        assert!(
            matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied),
            "{error}"
        );
        let mut back = AlignedBuf::zeroed(4096);
        let arrived = (0..4).filter(|i| {
            device.read_at(place(*i), &mut back).unwrap();
            back[..] != zeros[..]
        });
        assert!(arrived.count() <= allowed);
    }
}

fn takes_unaligned_memory(device: &dyn BlockDevice) {
    let data = pattern(3 * 4096, 77);
    // Two slices that together are whole blocks, at odd addresses.
    let (a, b) = data[1..=8192].split_at(1000);
    device.write_at(65536, &[IoSlice::new(a), IoSlice::new(b)]).unwrap();
    let mut back = AlignedBuf::zeroed(3 * 4096);
    device.read_at(65536, &mut back[1..=8192]).unwrap();
    assert!(back[1..=8192] == data[1..=8192]);
}

#[test]
fn memory_keeps_the_promises() {
    suite(&MemoryDevice::new("memory", SIZE));
}

#[test]
fn faulty_without_faults_keeps_the_promises() {
    suite(&FaultyDevice::new(Arc::new(MemoryDevice::new("memory", SIZE))));
}

/// What the device itself counts: the kernel turns a durable write into a flush where the device knows no other way.
#[test]
fn durable_writes_are_flushed_by_the_device() {
    let disk = LoopDisk::new(SIZE, 512);
    let device = RawDevice::open(&disk.path, Access::Exclusive).unwrap();
    let name = disk.path.file_name().unwrap().to_str().unwrap();
    let flushes = || -> u64 {
        let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        text.split_whitespace().nth(15).unwrap().parse().unwrap()
    };
    let data = pattern(4096, 3);
    let two = |at: u64| [0, 1 << 20].map(|offset| Write { offset: at + offset, bufs: vec![IoSlice::new(&data)] });
    device.write_together(&two(0), false, &|| true).unwrap();
    let before = flushes();
    device.write_together(&two(8192), false, &|| true).unwrap();
    assert_eq!(flushes(), before);
    device.write_together(&two(4096), true, &|| true).unwrap();
    assert!(flushes() > before);
    // By the kernel's asynchronous writes, and not one after the other because there are none.
    assert!(device.is_asynchronous());
}

#[test]
fn raw_keeps_the_promises() {
    let disk = LoopDisk::new(SIZE, 512);
    suite(&RawDevice::open(&disk.path, Access::Exclusive).unwrap());
    let disk = LoopDisk::new(SIZE, 4096);
    let device = RawDevice::open(&disk.path, Access::Exclusive).unwrap();
    assert_eq!(device.logical_block_size(), 4096);
    suite(&device);
}

/// A loop device of a sparse file, unbound and removed at the end.
pub(crate) struct LoopDisk {
    pub(crate) path: PathBuf,
    pub(crate) image: PathBuf,
    _folder: tempfile::TempDir,
}

impl LoopDisk {
    pub(crate) fn new(size: u64, block: u32) -> Self {
        Self::bind(size, &["--sector-size", &block.to_string()])
    }

    fn bind(size: u64, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(&image)
            .output()
            .expect("losetup (util-linux) must be installed");
        assert!(
            output.status.success(),
            "losetup failed; this test needs root and the loop driver: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Self { path, image, _folder: folder }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

#[test]
fn a_loop_device_says_what_the_driver_says() {
    use std::os::unix::fs::MetadataExt;
    let disk = LoopDisk::new(SIZE, 512);
    let device = RawDevice::open(&disk.path, Access::Exclusive).unwrap();
    let root = device.facts().unwrap().root;
    let image = std::fs::metadata(&disk.image).unwrap();
    let file = root.loop_file.as_ref().unwrap();
    assert_eq!(root.transport, Transport::Loop);
    assert_eq!((root.size_bytes, root.logical_block), (SIZE, 512));
    assert_eq!((file.fs_device, file.inode, file.offset), (DevNo::from_raw(image.dev()), image.ino(), 0));
    assert!(root.problems.is_empty(), "{:?}", root.problems);
    assert_eq!(root.dev, Some(device.dev()));
    assert!(root.diskseq.is_some() && root.write_cache.is_some());
    // A filesystem on a block device is followed down to it.
    assert_eq!(root.children.len(), usize::from(file.fs_device.major != 0));
}

#[test]
fn a_cache_that_is_no_longer_flushed_is_noticed_until_it_is_again() {
    let disk = LoopDisk::new(SIZE, 512);
    let name = disk.path.file_name().unwrap().to_str().unwrap();
    let attribute = PathBuf::from(format!("/sys/block/{name}/queue/write_cache"));
    let device = RawDevice::open(&disk.path, Access::Exclusive).unwrap();
    let problems = || device.facts().unwrap().root.problems;
    let set = |mode: &str| std::fs::write(&attribute, mode).unwrap();
    set("write back");
    assert_eq!(problems(), []);
    set("write through");
    assert!(matches!(problems()[..], [Doubt::CacheNotFlushed(_)]));
    set("write back");
    assert_eq!(problems(), []);
    // One that was never flushed has nothing to flush, as far as the kernel knows.
    set("write through");
    let other = RawDevice::open(&disk.path, Access::SharedRead).unwrap();
    assert_eq!(other.facts().unwrap().root.problems, []);
    set("write back");
}

#[test]
fn a_loop_device_is_known_by_its_file_whatever_its_path() {
    let disk = LoopDisk::new(SIZE, 512);
    let device = RawDevice::open(&disk.path, Access::Exclusive).unwrap();
    let before = device.facts().unwrap().root;
    // Another file under the path that sysfs shows.
    std::fs::rename(&disk.image, disk.image.with_file_name("moved")).unwrap();
    std::fs::File::create(&disk.image).unwrap().set_len(SIZE).unwrap();
    assert_eq!(device.facts().unwrap().root.identity(), before.identity());
    // Without the open descriptor, by its node.
    let node = chain::read(&Kernel, before.dev.unwrap());
    assert_eq!((node.identity(), &node.problems[..]), (before.identity(), &[][..]));
}

#[test]
fn a_loop_device_that_gets_another_file_is_another_disk() {
    // Under an open descriptor that is possible for a read-only one, and a file of the same size.
    let disk = LoopDisk::bind(SIZE, &["--read-only"]);
    let device = RawDevice::open(&disk.path, Access::SharedRead).unwrap();
    device.facts().unwrap();
    let other = disk.image.with_file_name("other");
    std::fs::File::create(&other).unwrap().set_len(SIZE).unwrap();
    let (node, other) = (std::fs::File::open(&disk.path).unwrap(), std::fs::File::open(&other).unwrap());
    // SAFETY: LOOP_CHANGE_FD (0x4C06, linux/loop.h) takes a descriptor.
    let result = unsafe { libc::ioctl(node.as_raw_fd(), 0x4C06 as _, other.as_raw_fd()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    let error = device.facts().unwrap_err().to_string();
    assert!(error.contains("disk sequence number"), "{error}");
}

#[test]
fn a_loop_device_of_a_loop_device_is_followed() {
    let disk = LoopDisk::new(SIZE, 512);
    let out = Command::new("losetup").args(["--find", "--show"]).arg(&disk.path).output().unwrap();
    let upper = PathBuf::from(String::from_utf8(out.stdout).unwrap().trim());
    let facts = RawDevice::open(&upper, Access::SharedRead).map(|device| device.facts());
    assert!(Command::new("losetup").arg("--detach").arg(&upper).status().unwrap().success());
    let root = facts.unwrap().unwrap().root;
    assert!(root.loop_file.is_none() && root.problems.is_empty(), "{root:?}");
    assert_eq!(Path::new("/dev").join(&root.children[0].name), disk.path);
    assert!(root.children[0].loop_file.is_some());
}

#[test]
fn a_file_in_memory_is_named_by_its_filesystem() {
    let shm = Path::new("/dev/shm");
    let Ok(folder) = tempfile::tempdir_in(shm) else { panic!("{} must be there", shm.display()) };
    let image = folder.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let out = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
    let path = PathBuf::from(String::from_utf8(out.stdout).unwrap().trim());
    let facts = RawDevice::open(&path, Access::SharedRead).map(|device| device.facts());
    assert!(Command::new("losetup").arg("--detach").arg(&path).status().unwrap().success());
    let root = facts.unwrap().unwrap().root;
    let file = root.loop_file.unwrap();
    assert_eq!((file.fs_type.as_deref(), file.fs_device.major), (Some("tmpfs"), 0));
}

#[test]
fn only_the_node_of_the_right_number_is_asked() {
    use crate::probe::sys::{System, Target};
    let disk = LoopDisk::new(SIZE, 512);
    let dev = RawDevice::open(&disk.path, Access::SharedRead).unwrap().dev();
    let name = disk.path.file_name().unwrap().to_str().unwrap();
    let ask = |name: &str, dev| Kernel.loop_status(&Target { name, dev, open: None });
    assert!(ask(name, dev).is_ok());
    let other = DevNo { minor: dev.minor + 1000, ..dev };
    for (name, dev) in [(name, other), ("null", dev), ("none", dev)] {
        assert!(ask(name, dev).is_err(), "{name} {dev}");
    }
    // A loop device is neither of these, and says so.
    let target = Target { name, dev, open: None };
    assert!(Kernel.nvme_identify(&target).is_err() && Kernel.scsi_inquiry(&target, true).is_err());
    assert!(Kernel.dm_table(dev).is_err());
}

#[test]
fn what_is_in_use_or_no_block_device_is_not_opened() {
    let disk = LoopDisk::new(SIZE, 512);
    let first = RawDevice::open(&disk.path, Access::Exclusive).unwrap();
    for access in [Access::Exclusive, Access::ExclusiveRead] {
        assert!(matches!(RawDevice::open(&disk.path, access), Err(OpenError::InUse { .. })));
    }
    let reader = RawDevice::open(&disk.path, Access::SharedRead).unwrap();
    assert!(reader.write_at(0, &[IoSlice::new(&pattern(512, 0)[..512])]).is_err());
    // Who holds it for a moment is waited for.
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        RawDevice::open(&disk.path, Access::Exclusive).unwrap();
    });

    let link = disk.image.with_file_name("link");
    std::os::unix::fs::symlink(&disk.path, &link).unwrap();
    let through_link = RawDevice::open(&link, Access::Exclusive).unwrap();
    assert_eq!(Path::new(through_link.name()), disk.path);
    for other in [disk.image.as_path(), Path::new("/dev/null"), Path::new("/tmp")] {
        assert!(matches!(RawDevice::open(other, Access::Exclusive), Err(OpenError::NotBlockDevice { .. })));
    }
    assert!(matches!(RawDevice::open(Path::new("/dev/none"), Access::Exclusive), Err(OpenError::Io { .. })));
}

#[test]
fn what_was_closed_can_be_opened_at_once() {
    let disk = LoopDisk::new(SIZE, 512);
    // After one opening in a thousand the kernel still holds what was read from.
    for _ in 0..4000 {
        let device = RawDevice::open(&disk.path, Access::Exclusive).unwrap();
        device.read_within(0, AlignedBuf::zeroed(4096), Duration::from_secs(60)).unwrap();
    }
}

#[test]
fn a_disk_resized_under_the_open_file_is_noticed() {
    let disk = LoopDisk::new(SIZE, 512);
    let device = RawDevice::open(&disk.path, Access::Exclusive).unwrap();
    device.facts().unwrap();
    std::fs::OpenOptions::new().write(true).open(&disk.image).unwrap().set_len(SIZE * 2).unwrap();
    assert!(Command::new("losetup").arg("--set-capacity").arg(&disk.path).status().unwrap().success());
    let error = device.facts().unwrap_err().to_string();
    assert!(error.contains("its size was"), "{error}");
}

#[test]
fn a_read_only_disk_is_refused_for_writing() {
    let disk = LoopDisk::bind(SIZE, &["--read-only"]);
    let error = RawDevice::open(&disk.path, Access::Exclusive);
    assert!(matches!(error, Err(OpenError::ReadOnly { .. } | OpenError::Io { .. })));
    RawDevice::open(&disk.path, Access::ExclusiveRead).unwrap();
}

#[test]
fn faults_do_what_they_say() {
    let memory = Arc::new(MemoryDevice::new("memory", SIZE));
    let device = FaultyDevice::new(memory.clone());
    let data = pattern(8192, 1);
    let write = |offset| device.write_at(offset, &[IoSlice::new(&data)]);

    device.inject(Fault { skip: 1, times: 1, ..Fault::always(Operation::Write, Effect::Error(libc::EIO)) });
    assert!(write(0).is_ok() && write(0).is_err() && write(0).is_ok());

    device.heal();
    device.inject(Fault { range: 65536..69632, ..Fault::always(Operation::Write, Effect::Torn(1000)) });
    assert!(write(0).is_ok() && write(61440).is_err());
    let image = memory.image();
    assert!(image[61440..61952] == data[..512] && image[61952..69632].iter().all(|b| *b == 0));

    device.heal();
    device.inject(Fault::always(Operation::Write, Effect::Lost));
    device.inject(Fault::always(Operation::Flush, Effect::Error(libc::EIO)));
    assert!(write(1 << 20).is_ok() && device.flush().is_err());
    assert!(memory.image()[1 << 20..][..8192].iter().all(|b| *b == 0));

    device.heal();
    device.inject(Fault { range: 0..4096, ..Fault::always(Operation::Read, Effect::Corrupt(0xff)) });
    let mut back = AlignedBuf::zeroed(8192);
    device.read_at(0, &mut back).unwrap();
    assert!(back[..4096].iter().zip(&data[..4096]).all(|(a, b)| *a == !*b) && back[4096..] == data[4096..]);

    device.unplug();
    assert!(device.read_at(0, &mut back).is_err() && device.flush().is_err() && device.facts().is_err());
    device.heal();
    assert!(device.read_at(0, &mut back).is_ok() && device.facts().is_ok());
}

#[test]
fn a_device_with_a_cache_loses_what_was_not_flushed() {
    let memory = Arc::new(MemoryDevice::new("memory", SIZE));
    let device = FaultyDevice::new(memory.clone()).with_cache();
    let write = |at: usize, byte: u8| device.write_at(at as u64, &[IoSlice::new(&[byte; 4096])]);
    let holds = |at: usize| memory.image()[at];
    write(0, 1).unwrap();
    device.flush().unwrap();
    for (at, byte) in [(0, 2), (4096, 3), (0, 4)] {
        write(at, byte).unwrap();
    }
    device.lose(2).unwrap();
    assert_eq!((holds(0), holds(4096), device.unflushed()), (2, 0, 1));
    // What is written durably makes nothing else durable.
    let data = [5; 4096];
    device.write_together(&[Write { offset: 8192, bufs: vec![IoSlice::new(&data)] }], true, &|| true).unwrap();
    device.inject(Fault::always(Operation::Flush, Effect::Forgotten));
    assert!(device.flush().is_err());
    assert_eq!((holds(0), holds(8192), device.unflushed()), (1, 5, 0));
    device.heal();
    assert!(device.flush().is_ok());
}

#[test]
fn a_device_shows_what_it_is_told_to_and_is_watched() {
    struct Watch(Mutex<Vec<String>>);
    impl Observer for Watch {
        fn before(&self, operation: Operation) -> Answer {
            self.0.lock().unwrap().push(format!("{operation:?}"));
            match operation {
                Operation::Read => Answer::Other(Arc::new(MemoryDevice::from_image("other", vec![9; SIZE as usize]))),
                Operation::Facts => Answer::Nobody,
                Operation::Write | Operation::Flush => Answer::Itself,
            }
        }
        fn after(&self, change: &Change<'_>) {
            self.0.lock().unwrap().push(match change {
                Change::Write { offset, bytes } => format!("{} at {offset}", bytes.len()),
                _ => format!("{change:?}"),
            });
        }
    }
    let watch = Arc::new(Watch(Mutex::default()));
    let named = |name| Arc::new(MemoryDevice::new(name, SIZE));
    let device = FaultyDevice::new(named("memory")).observed_by(watch.clone());
    let data = [5; 4096];
    device.write_together(&[Write { offset: 8192, bufs: vec![IoSlice::new(&data)] }], true, &|| true).unwrap();
    let mut back = [0; 512];
    device.read_at(8192, &mut back).unwrap();
    assert!(back == [9; 512] && device.facts().is_err());
    let told = ["Write", "4096 at 8192", "Flush", "Durable { writes: 1 }", "Read", "Facts"];
    assert_eq!(*watch.0.lock().unwrap(), told);
    let device = FaultyDevice::new(named("memory"));
    device.show(Face::Swapped);
    assert_eq!(device.facts().unwrap().root.name, "somebody-else");
    for face in [Face::Changed, Face::Gone] {
        device.show(face);
        assert!(device.facts().is_err() && device.read_at(0, &mut [0; 512]).is_ok());
    }
    device.heal();
    device.replace(named("other"));
    assert_eq!((device.name(), device.facts().unwrap().root.name.as_str()), ("memory", "other"));
    device.heal();
    assert_eq!(device.facts().unwrap().root.name, "memory");
    assert_eq!(device.late(), 0);
    device.shut();
    assert!(device.flush().is_ok() && device.late() > 0);
    device.reopen();
}
