//! A daemon touches its own mount and no other, whatever was mounted over it, under it or in its place.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::lab::{Lab, Mount, SCELLE, fails, ok, run, wait_for};

fn tmpfs(place: &Path) -> Mount {
    Mount::new(Command::new("mount").args(["-t", "tmpfs", "other"]), place)
}

fn terminate(pid: u64) {
    ok(&run(Command::new("kill").arg(pid.to_string())));
}

fn has_ended(pid: u64) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Which filesystem types are mounted at `place`, the topmost last.
fn mounted_at(place: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = |line: &&str| line.split(' ').nth(4) == place.to_str();
    let kind = |line: &str| line.split(" - ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    table.lines().filter(at).map(kind).collect()
}

#[test]
fn what_was_mounted_in_the_place_of_a_mount_that_was_taken_away_stays() {
    for signalled in [false, true] {
        let lab = Lab::mounted(1, 64);
        let pid = lab.daemon();
        let held = fs::File::create(lab.mountpoint.join("held")).unwrap();
        ok(&run(Command::new("umount").arg("-l").arg(&lab.mountpoint)));
        let other = tmpfs(&lab.mountpoint);
        fs::write(lab.mountpoint.join("of the other"), "kept").unwrap();
        if signalled {
            terminate(pid);
        }
        drop(held);
        wait_for("the daemon's end", || has_ended(pid));
        assert_eq!(fs::read_to_string(lab.mountpoint.join("of the other")).unwrap(), "kept");
        // The folder is the other's now: the volume is not mounted over it, nor is the other unmounted.
        fails(&lab.mount(), 7, "mountpoint-taken");
        fails(&lab.umount_once(), 2, "umount-not-mounted");
        assert_eq!(mounted_at(&lab.mountpoint), ["tmpfs"]);
        drop(other);
        ok(&lab.mount());
        assert!(lab.mountpoint.join("held").exists());
        ok(&lab.umount());
    }
}

#[test]
fn what_is_mounted_on_a_volume_is_unmounted_by_its_owner_alone() {
    let lab = Lab::mounted(1, 64);
    let pid = lab.daemon();
    fs::create_dir(lab.mountpoint.join("inside")).unwrap();
    for place in [lab.mountpoint.clone(), lab.mountpoint.join("inside")] {
        let other = tmpfs(&place);
        fs::write(place.join("of the other"), "kept").unwrap();
        terminate(pid);
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!has_ended(pid), "the daemon ended under {}", place.display());
        assert_eq!(fs::read_to_string(place.join("of the other")).unwrap(), "kept");
        let refusal = if place == lab.mountpoint { (2, "umount-not-mounted") } else { (7, "umount-busy") };
        fails(&lab.umount_once(), refusal.0, refusal.1);
        assert_eq!(fs::read_to_string(place.join("of the other")).unwrap(), "kept");
        drop(other);
    }
    terminate(pid);
    wait_for("the daemon's end", || has_ended(pid));
    assert_eq!(mounted_at(&lab.mountpoint), Vec::<String>::new());
}

#[test]
fn nothing_is_mounted_over_another_mount() {
    let (lab, another) = (Lab::mounted(1, 64), Lab::new(1, 64));
    ok(&another.create());
    let mount_another = || {
        let device = another.devices()[0].clone();
        another.with_documents("mount", &[device.as_os_str(), lab.mountpoint.as_os_str()])
    };
    fails(&mount_another(), 7, "mountpoint-taken");
    assert_eq!(mounted_at(&lab.mountpoint), ["fuse.scelle"]);
    // A dead mount is cleared by its own volume, not by another one; also one that somebody still has open.
    let held = fs::File::open(&lab.mountpoint).unwrap();
    lab.kill_daemon();
    fails(&mount_another(), 7, "mountpoint-dead");
    ok(&lab.mount());
    assert_eq!(mounted_at(&lab.mountpoint), ["fuse.scelle"], "the dead one was cleared");
    assert_eq!(lab.status()["state"], "healthy");
    drop(held);
    ok(&lab.umount());
    assert_eq!(mounted_at(&lab.mountpoint), Vec::<String>::new(), "one mount, one unmount");
}

#[test]
fn an_unmount_waits_for_the_daemon_of_that_mount() {
    let (lab, another) = (Lab::mounted(1, 64), Lab::new(1, 64));
    ok(&another.create());
    let held = fs::File::create(lab.mountpoint.join("held")).unwrap();
    ok(&run(Command::new("umount").arg("-l").arg(&lab.mountpoint)));
    // Two daemons were asked to mount here. Only one of them does.
    let device = another.devices()[0].clone();
    ok(&another.with_documents("mount", &[device.as_os_str(), lab.mountpoint.as_os_str()]));
    let out = run(Command::new("timeout").arg("60").arg(SCELLE).arg("umount").arg(&lab.mountpoint));
    ok(&out);
    drop(held);
    ok(&lab.mount());
    ok(&lab.umount());
}
