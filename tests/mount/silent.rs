//! A device of the kernel that does not answer: a loop device over a file whose filesystem stands still.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use scelle::device::raw::{Access, RawDevice};
use scelle::device::{AlignedBuf, BlockDevice, Error};

use crate::lab::{Disk, Lab, SCELLE, fails, ok, run, wait_for};

const SIZE: u64 = 8 << 20;

/// A daemon that is stopped, and goes on in any case.
struct Stopped(Pid);

impl Stopped {
    fn new(lab: &Lab) -> Self {
        let pid = Pid::from_raw(i32::try_from(lab.daemon()).unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        // On a busy machine a thread may go on for a while.
        let is_stopped = |thread: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        };
        let threads = format!("/proc/{}/task", pid.as_raw_nonzero());
        wait_for("every thread to stop", || std::fs::read_dir(&threads).unwrap().flatten().all(is_stopped));
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

/// `block` of 4096 bytes holds its number.
fn holds(buf: &[u8], block: u64) -> bool {
    buf.iter().all(|byte| u64::from(*byte) == block % 251)
}

#[test]
fn a_read_that_the_kernel_does_not_answer_is_abandoned_and_its_memory_kept() {
    let lab = Lab::mounted(2, 64);
    let image = lab.mountpoint.join("image");
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 4096 % 251) as u8).collect();
    let file = File::create(&image).unwrap();
    file.write_all_at(&content, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let disk = Disk::of(image);
    // What the kernel had in memory would need no daemon.
    ok(&run(Command::new("losetup").arg("--direct-io=on").arg(&disk.device)));
    let device = RawDevice::open(&disk.device, Access::ExclusiveRead).unwrap();
    let read = |block: u64, limit| device.read_within(block * 4096, AlignedBuf::zeroed(8192), limit);
    let soon = Duration::from_millis(300);
    assert!(holds(&read(1, Duration::from_secs(30)).unwrap()[..4096], 1));
    assert!(!device.is_silent());
    let stopped = Stopped::new(&lab);
    for block in [1000, 1500] {
        let begin = Instant::now();
        let error = read(block, soon).unwrap_err();
        assert!(matches!(error, Error::Unanswered { bytes: 8192, .. }), "{error}");
        assert!(begin.elapsed() >= soon && begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert!(device.is_silent());
    }
    drop(stopped);
    wait_for("the answers", || !device.is_silent());
    for block in [1000, 1500] {
        let back = read(block, Duration::from_secs(30)).unwrap();
        assert!(holds(&back[..4096], block) && holds(&back[4096..], block + 1));
    }

    // Closed before the answer has come: the memory that it goes to is never given to anybody else.
    let stopped = Stopped::new(&lab);
    let begin = Instant::now();
    assert!(matches!(read(500, soon), Err(Error::Unanswered { .. })));
    drop(device);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    drop(stopped);
    drop(disk);
    ok(&lab.umount());
}

#[test]
fn a_daemon_that_does_not_answer_is_said_to_be_there() {
    let lab = Lab::mounted(2, 64);
    let volume = lab.mountpoint.to_str().unwrap();
    let stopped = Stopped::new(&lab);
    let begin = Instant::now();
    let asked = [&["status"][..], &["status", volume], &["audit", "log", volume], &["replica", "resync", volume]];
    let asked = asked.map(|arguments| Command::new(SCELLE).args(arguments).stderr(Stdio::piped()).spawn().unwrap());
    for command in asked {
        fails(&command.wait_with_output().unwrap(), 6, "daemon-silent");
    }
    assert!(begin.elapsed() < Duration::from_secs(90), "{:?}", begin.elapsed());
    drop(stopped);
    ok(&lab.umount());
}
