//! `scelle replica add|remove|replace` (promise P10): a disk is exchanged on a Tuesday, and nobody notices.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use scelle::label::{Area, HEADER_BYTES, HeaderCopy};

use crate::lab::{Disk, Lab, SCELLE, fails, ok, run, stderr};
use crate::support::rng::Rng;
use crate::support::wait_for;

const MIB: u64 = 1 << 20;

fn replica(lab: &Lab, command: &str, arguments: &[&OsStr]) -> Output {
    run(Command::new(SCELLE).args(["replica", command]).arg(&lab.mountpoint).args(arguments))
}

/// A volume on the first two disks, mounted; the others are blank.
fn mounted(mib: &[u64]) -> Lab {
    let disk = |dir: &Path, (i, mib): (usize, &u64)| Disk::new(dir.join(format!("disk-{i}")), mib * MIB);
    let lab = Lab::of(|dir| mib.iter().enumerate().map(|one| disk(dir, one)).collect());
    let first: Vec<PathBuf> = lab.devices()[..2].to_vec();
    ok(&lab.with_documents("create", &[first[0].as_os_str(), first[1].as_os_str()]));
    ok(&lab.mount_devices(&first, ""));
    lab
}

fn device(lab: &Lab, index: usize) -> &Path {
    &lab.disks[index].device
}

/// Device node and state of each replica.
fn table(lab: &Lab) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let status = lab.status();
    let replicas = status["replicas"].as_array().cloned().unwrap_or_default();
    replicas.iter().map(|replica| (text(&replica["device"]), text(&replica["state"]))).collect()
}

fn in_sync(lab: &Lab, disks: &[usize]) -> Vec<(String, String)> {
    disks.iter().map(|index| (device(lab, *index).to_string_lossy().into_owned(), "in-sync".to_owned())).collect()
}

fn id_of(lab: &Lab, index: usize) -> String {
    let status = lab.status();
    let replicas = status["replicas"].as_array().unwrap();
    let ours = replicas.iter().find(|replica| replica["device"] == *device(lab, index).to_string_lossy());
    ours.unwrap()["registry_id"].as_str().unwrap().to_owned()
}

/// Whether no header and no root is left in either label area of a disk.
fn is_wiped(disk: &Disk) -> bool {
    let bytes = disk.bytes();
    let size = bytes.len() as u64;
    let areas = Area::BOTH.map(|area| usize::try_from(area.offset(size)).unwrap());
    areas.iter().all(|at| bytes[*at..*at + MIB as usize].iter().all(|byte| *byte == 0))
}

fn content(n: u64) -> Vec<u8> {
    Rng::new(n).bytes(30_000)
}

fn assert_all_there(lab: &Lab, count: u64) {
    for n in 0..count {
        assert!(fs::read(lab.mountpoint.join(format!("deed-{n}"))).unwrap() == content(n), "deed {n}");
    }
}

#[test]
fn p10_a_disk_is_exchanged_with_one_command_while_files_are_written() {
    let lab = mounted(&[48; 3]);
    let id = id_of(&lab, 0);
    let new = device(&lab, 2).as_os_str();
    let plan = replica(&lab, "replace", &[id.as_ref(), new, "--plan".as_ref()]);
    ok(&plan);
    let said = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(said.contains("3. then remove replica") && said.ends_with("Nothing was done.\n"), "{said}");
    assert!(is_wiped(&lab.disks[2]) && table(&lab) == in_sync(&lab, &[0, 1]));
    let (stop, mountpoint) = (AtomicBool::new(false), lab.mountpoint.clone());
    let write = || {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) || n < 40 {
            let path = mountpoint.join(format!("deed-{n}"));
            fs::write(&path, content(n)).unwrap();
            fs::File::open(&path).unwrap().sync_all().unwrap();
            n += 1;
        }
        n
    };
    let count = std::thread::scope(|scope| {
        let writer = scope.spawn(write);
        let done = replica(&lab, "replace", &[id.as_ref(), new, "--wait".as_ref()]);
        stop.store(true, Ordering::Relaxed);
        let count = writer.join().unwrap();
        ok(&done);
        count
    });
    assert_eq!(table(&lab), in_sync(&lab, &[1, 2]));
    assert_eq!(lab.status()["state"], "healthy");
    assert!(is_wiped(&lab.disks[0]), "the key slots are still on the disk that left");
    let trail = run(Command::new(SCELLE).args(["audit", "log", "--json"]).arg(&lab.mountpoint));
    let trail = String::from_utf8_lossy(&trail.stdout).into_owned();
    for event in ["replica-added", "replica-removed"] {
        let line = trail.lines().find(|line| line.contains(event)).unwrap_or_else(|| panic!("{event}: {trail}"));
        assert!(line.contains(&id), "{line}");
    }
    assert_all_there(&lab, count);
    ok(&lab.umount());
    // The disk that stayed dies: the new one has everything.
    ok(&lab.mount_devices(&[device(&lab, 2).to_owned()], "degraded"));
    assert_all_there(&lab, count);
    // A blank disk to two copies, and the dead one's row is gone: each one command.
    ok(&replica(&lab, "add", &[device(&lab, 0).as_os_str(), "--wait".as_ref()]));
    let dead =
        lab.status()["replicas"].as_array().unwrap().iter().find(|replica| replica["state"] == "missing").cloned();
    let dead = dead.unwrap()["registry_id"].as_str().unwrap().to_owned();
    let removed = replica(&lab, "remove", &[dead.as_ref()]);
    ok(&removed);
    assert!(String::from_utf8_lossy(&removed.stdout).contains("still has the key slots"), "{removed:?}");
    assert_eq!(table(&lab), in_sync(&lab, &[2, 0]));
    assert_eq!(lab.status()["state"], "healthy");
    ok(&lab.umount());
    // It comes back: it is left out, and the volume mounts without a word to be given.
    ok(&lab.mount());
    assert_eq!(table(&lab), in_sync(&lab, &[2, 0]));
    assert_all_there(&lab, count);
    ok(&lab.umount());
    let both = [2, 0].map(|index| device(&lab, index).as_os_str());
    ok(&lab.with_documents("check", &both));
}

#[test]
fn p10_a_killed_daemon_goes_on_with_an_exchange() {
    let lab = mounted(&[48; 3]);
    for n in 0..400 {
        fs::write(lab.mountpoint.join(format!("deed-{n}")), content(n)).unwrap();
    }
    fs::File::open(&lab.mountpoint).unwrap().sync_all().unwrap();
    ok(&replica(&lab, "replace", &[device(&lab, 1).as_os_str(), device(&lab, 2).as_os_str()]));
    lab.kill_daemon();
    ok(&run(Command::new("umount").arg(&lab.mountpoint)));
    ok(&lab.mount());
    wait_for("the exchange", || table(&lab) == in_sync(&lab, &[0, 2]) && is_wiped(&lab.disks[1]));
    assert_all_there(&lab, 400);
    ok(&lab.umount());
    let both = [0, 2].map(|index| device(&lab, index).as_os_str());
    ok(&lab.with_documents("check", &both));
}

#[test]
fn p1_no_byte_reaches_a_disk_that_cannot_become_a_replica() {
    let mut lab = mounted(&[48, 48, 48, 20]);
    // The officers list the small disk, and not this one.
    let strange = lab.path("strange");
    lab.disks.push(Disk::new(strange, 48 * MIB));
    let id = id_of(&lab, 0);
    let before = lab.images();
    let refused = |code: i32, reason: &str, command: &str, arguments: &[&OsStr]| {
        let out = replica(&lab, command, arguments);
        fails(&out, code, reason);
        for (index, before) in before.iter().enumerate().skip(2) {
            assert!(lab.disks[index].bytes() == *before, "{command} wrote to disk {index}: {}", stderr(&out));
        }
    };
    let node = |index: usize| device(&lab, index).as_os_str();
    refused(3, "device-not-listed", "add", &[node(4)]);
    refused(3, "device-not-listed", "replace", &[id.as_ref(), node(4)]);
    refused(2, "device-size", "add", &[node(3)]);
    refused(7, "replica-in-use", "replace", &[id.as_ref(), node(1)]);
    refused(7, "replica-in-use", "replace", &[id.as_ref(), node(0)]);
    refused(2, "replica-unknown", "replace", &["nobody".as_ref(), node(2)]);
    refused(2, "replica-unknown", "remove", &[node(2)]);
    ok(&run(Command::new("mkfs.ext4").arg("-q").arg(node(2))));
    let formatted = lab.disks[2].bytes();
    let out = replica(&lab, "add", &[node(2)]);
    fails(&out, 7, "device-not-empty");
    assert!(stderr(&out).contains("wipefs") && lab.disks[2].bytes() == formatted, "{}", stderr(&out));
    // The last one stays.
    ok(&replica(&lab, "remove", &[id.as_ref()]));
    let last = id_of(&lab, 1);
    fails(&replica(&lab, "remove", &[last.as_ref()]), 3, "replica-last");
    ok(&lab.umount());
    let header = |copy: HeaderCopy| usize::try_from(copy.offset(48 * MIB)).unwrap();
    let bytes = lab.disks[0].bytes();
    let gone = |copy: HeaderCopy| bytes[header(copy)..header(copy) + HEADER_BYTES].iter().all(|byte| *byte == 0);
    assert!(HeaderCopy::ALL.into_iter().all(gone));
}
