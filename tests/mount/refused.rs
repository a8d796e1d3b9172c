//! Promise P2 on real mounts: what happens when devices are refused under a folder in use, and how they come back.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lab::{Lab, OFFICERS, SCELLE, fails, ok, run, stderr, wait_for};
use crate::support::Ending;

/// Edits the registry, gives it the next version and has it signed.
pub fn issue(lab: &Lab, change: impl FnOnce(String) -> String) -> u64 {
    static VERSION: AtomicU64 = AtomicU64::new(2);
    let version = VERSION.fetch_add(1, Ordering::Relaxed);
    let path = lab.path("registry.toml");
    let text = fs::read_to_string(&path).unwrap();
    let line = |line: &str| match line.starts_with("version = ") {
        true => format!("version = {version}\n"),
        false => format!("{line}\n"),
    };
    let text: String = change(text).lines().map(line).collect();
    // As a careful administrator does it: beside, then renamed; the signatures come when they come.
    fs::write(lab.path("registry.new"), text).unwrap();
    fs::rename(lab.path("registry.new"), &path).unwrap();
    lab.sign("registry.toml", &OFFICERS);
    version
}

/// Another status for the device number `index` of the registry.
pub fn set_status(text: &str, index: usize, status: &str) -> String {
    let mut parts: Vec<String> = text.split("status = ").map(str::to_owned).collect();
    let part = &mut parts[index + 1];
    let end = part.find('\n').unwrap();
    part.replace_range(..end, &format!("\"{status}\""));
    parts.join("status = ")
}

fn set_min_replicas(text: &str, min: u32) -> String {
    let line = |line: &str| if line.starts_with("min_replicas") { String::new() } else { format!("{line}\n") };
    let rest: String = text.lines().map(line).collect();
    rest.replacen("[policy]\n", &format!("[policy]\nmin_replicas = {min}\n"), 1)
}

fn state(lab: &Lab, index: usize) -> String {
    lab.status()["replicas"][index]["state"].as_str().unwrap_or_default().to_owned()
}

fn in_force(lab: &Lab, version: u64) {
    wait_for("the watch to see the new registry", || lab.status()["registry"]["version"] == version);
}

fn resync(lab: &Lab, arguments: &[&str]) -> Output {
    run(Command::new(SCELLE).args(["replica", "resync"]).arg(&lab.mountpoint).args(arguments))
}

#[test]
fn p1_a_device_revoked_under_heavy_writing_gets_not_one_byte_more() {
    let lab = Lab::mounted(2, 128);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&ended);
        scope.spawn(|| {
            // A large file, and a load of small ones that are fsynced.
            let block = vec![0x5a; 1 << 20];
            let large = File::create(lab.mountpoint.join("large")).unwrap();
            for round in 0u64.. {
                large.write_all_at(&block, (round % 24) << 20).unwrap();
                let mut small = File::create(lab.mountpoint.join(format!("small-{}", round % 8))).unwrap();
                small.write_all(&block[..5000]).unwrap();
                small.sync_all().unwrap();
                if ended.load(Ordering::Relaxed) {
                    break;
                }
            }
            large.sync_all().unwrap();
        });
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(300));
            issue(&lab, |text| set_status(&text, 1, "revoked"));
            let begin = Instant::now();
            wait_for("the revoked device to be fenced", || state(&lab, 1) == "refused");
            assert!(begin.elapsed() < Duration::from_secs(10), "noticed by the clock only");
            // A write that was under way has ended by now; from here on: nothing.
            std::thread::sleep(Duration::from_millis(200));
            let before = lab.disks[1].bytes();
            std::thread::sleep(Duration::from_millis(700));
            assert!(lab.disks[1].bytes() == before, "a revoked device was written to");
            assert_eq!(state(&lab, 0), "in-sync");
            issue(&lab, |text| set_status(&text, 1, "approved"));
            wait_for("the device to come back by itself", || state(&lab, 1) == "in-sync");
        }
    });
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn p2_too_few_replicas_and_back_without_a_remount() {
    let lab = Lab::new(2, 64);
    ok(&lab.create());
    let version = issue(&lab, |text| set_min_replicas(&text, 2));
    ok(&lab.mount());
    in_force(&lab, version);
    let root = &lab.mountpoint;
    fs::write(root.join("deed"), "kept").unwrap();
    let mut held = File::create(root.join("held")).unwrap();
    held.write_all(b"durable").unwrap();
    held.sync_all().unwrap();
    let version = issue(&lab, |text| set_status(&text, 0, "revoked"));
    in_force(&lab, version);
    // What is new is refused at once, what the kernel took for the daemon is reported, what was there is read.
    let refused = File::create(root.join("new")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::remove_file(root.join("deed")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    let late = held.write_all(b" and lost").and_then(|()| held.sync_all());
    assert_eq!(late.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(fs::read_to_string(root.join("deed")).unwrap(), "kept");
    let status = lab.status();
    assert_eq!((&status["state"], &status["replicas"][0]["state"]), (&"read-only".into(), &"refused".into()));
    let text = run(Command::new(SCELLE).arg("status").arg(root));
    assert!(String::from_utf8_lossy(&text.stdout).contains("too-few-replicas"), "{text:?}");
    // Asking does not help against the policy, and says why.
    let asked = resync(&lab, &[]);
    fails(&asked, 3, "device-revoked");
    drop(held);
    issue(&lab, |text| set_status(&text, 0, "approved"));
    let back = resync(&lab, &["--wait"]);
    ok(&back);
    assert_eq!(lab.status()["state"], "healthy", "{}", lab.status());
    fs::write(root.join("new"), "accepted again").unwrap();
    File::open(root.join("new")).unwrap().sync_all().unwrap();
    ok(&lab.umount());
    ok(&lab.check());
    ok(&lab.mount());
    assert_eq!(fs::read_to_string(root.join("new")).unwrap(), "accepted again");
    assert!(fs::read_to_string(root.join("held")).unwrap().starts_with("durable"));
    ok(&lab.umount());
}

#[test]
fn p6_a_device_that_was_missing_is_taken_in_without_a_remount() {
    let mut lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("before"), vec![1; 3 << 20]).unwrap();
    ok(&lab.umount());
    lab.disks[1].detach();
    ok(&lab.mount_devices(&lab.devices()[..1], "degraded"));
    fs::write(lab.mountpoint.join("without"), vec![2; 3 << 20]).unwrap();
    let id = lab.status()["replicas"][1]["registry_id"].as_str().unwrap().to_owned();
    fails(&resync(&lab, &[&id]), 6, "replica-missing");
    fails(&resync(&lab, &["no-such-replica"]), 2, "replica-unknown");
    fails(&resync(&lab, &["/dev/nonexistent"]), 2, "device-not-found");
    // Another device, which the registry does not name: refused, and not one byte is written to it.
    let image = lab.path("stranger");
    let stranger = crate::lab::Disk::new(image, 64 << 20);
    let before = stranger.bytes();
    let asked = resync(&lab, &[stranger.device.to_str().unwrap()]);
    assert_eq!(asked.status.code(), Some(3), "{}", stderr(&asked));
    assert!(stranger.bytes() == before);
    // The trail tells that it was tried.
    let trail = run(Command::new(SCELLE).args(["audit", "log", "--json"]).arg(&lab.mountpoint));
    let told = String::from_utf8_lossy(&trail.stdout);
    let told = told.lines().find(|line| line.contains("resync-refused")).expect("a record of the refusal");
    assert!(told.contains(stranger.device.to_str().unwrap()) && told.contains("device-not-listed"), "{told}");
    // There again, perhaps as another node: found by its label, or named.
    lab.disks[1].reattach();
    let node = lab.disks[1].device.clone();
    ok(&resync(&lab, &["--wait", node.to_str().unwrap()]));
    assert_eq!(lab.status()["state"], "healthy", "{}", lab.status());
    let again = resync(&lab, &[]);
    ok(&again);
    assert!(String::from_utf8_lossy(&again.stdout).contains("nothing to resync"));
    ok(&lab.umount());
    ok(&lab.check());
    ok(&lab.mount_devices(&lab.devices()[1..], "degraded"));
    assert!(fs::read(lab.mountpoint.join("without")).unwrap() == vec![2; 3 << 20]);
    ok(&lab.umount());
}

/// Points a bound loop device to another part of its file, as a hostile root would: `LOOP_SET_STATUS64` (linux/loop.h).
pub fn repoint(device: &Path, offset: u64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let file = File::open(device)?;
    // `struct loop_info64`: lo_offset is its fourth field.
    let mut info = [0u64; 29];
    // SAFETY: the structure has 232 bytes, as `info` does.
    if unsafe { libc::ioctl(file.as_raw_fd(), 0x4C05 as _, info.as_mut_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    info[3] = offset;
    // SAFETY: as above; the kernel only reads it.
    if unsafe { libc::ioctl(file.as_raw_fd(), 0x4C04 as _, info.as_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[test]
fn p1_a_device_repointed_under_the_mount_is_fenced() {
    let lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("deed"), "kept").unwrap();
    File::open(lab.mountpoint.join("deed")).unwrap().sync_all().unwrap();
    if let Err(error) = repoint(&lab.disks[1].device, 8 << 20) {
        // A kernel that does not let it happen needs no fence.
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
        return;
    }
    // Asking is a look at everything; the kernel's message and the clock are others.
    let asked = resync(&lab, &[]);
    assert_eq!(state(&lab, 1), "refused", "{asked:?} {}", lab.status());
    let before = lab.disks[1].bytes();
    fs::write(lab.mountpoint.join("later"), vec![7; 1 << 20]).unwrap();
    File::open(lab.mountpoint.join("later")).unwrap().sync_all().unwrap();
    assert!(lab.disks[1].bytes() == before, "a device that was re-pointed was written to");
    repoint(&lab.disks[1].device, 0).unwrap();
    ok(&resync(&lab, &["--wait"]));
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn p2_umount_ends_while_replicas_are_refused_and_resynced() {
    let lab = Lab::mounted(2, 128);
    fs::write(lab.mountpoint.join("deed"), vec![3; 20 << 20]).unwrap();
    let version = issue(&lab, |text| set_status(&text, 1, "revoked"));
    in_force(&lab, version);
    fs::write(lab.mountpoint.join("later"), vec![4; 40 << 20]).unwrap();
    // While one is refused.
    let begin = Instant::now();
    ok(&lab.umount());
    issue(&lab, |text| set_status(&text, 1, "approved"));
    ok(&lab.mount());
    // While it is being resynced, or just after.
    ok(&lab.umount());
    assert!(begin.elapsed() < Duration::from_secs(60));
    // While all are refused, and nothing is on its way.
    ok(&lab.mount());
    wait_for("the resync", || state(&lab, 1) == "in-sync");
    let version = issue(&lab, |text| set_status(&set_status(&text, 0, "revoked"), 1, "revoked"));
    in_force(&lab, version);
    assert_eq!(fs::read(lab.mountpoint.join("deed")).unwrap().len(), 20 << 20);
    assert_eq!(fs::write(lab.mountpoint.join("no"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    ok(&lab.umount());
    issue(&lab, |text| set_status(&set_status(&text, 0, "approved"), 1, "approved"));
    ok(&lab.mount());
    assert!(fs::read(lab.mountpoint.join("later")).unwrap() == vec![4; 40 << 20]);
    ok(&lab.umount());
    ok(&lab.check());
}
