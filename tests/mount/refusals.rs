//! Every bad input has its own message and exit code, and not one byte is written.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Disk, Lab, OFFICERS, fails, ok, run};
use crate::refused::{issue, set_status};

fn volume(count: usize) -> Lab {
    let lab = Lab::new(count, 32);
    ok(&lab.create());
    lab
}

/// Overwrites blocks of a device, below every label check.
fn damage(disk: &Disk, offsets: &[u64], bytes: &[u8]) {
    let file = File::options().write(true).open(&disk.device).unwrap();
    for offset in offsets {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file.sync_all().unwrap();
}

#[test]
fn a_wrong_passphrase() {
    let lab = volume(2);
    fs::write(lab.path("passphrase"), "wrong").unwrap();
    lab.refuses(4, "wrong-key", || lab.mount());
    lab.refuses(4, "wrong-key", || lab.check());
    fs::write(lab.path("passphrase"), "").unwrap();
    lab.refuses(2, "passphrase-unusable", || lab.mount());
    fs::remove_file(lab.path("passphrase")).unwrap();
    lab.refuses(2, "passphrase-file", || lab.mount());
}

#[test]
fn a_device_without_a_volume() {
    let lab = Lab::new(2, 32);
    lab.refuses(2, "not-a-volume", || lab.mount());
    lab.refuses(2, "not-a-volume", || lab.check());
}

#[test]
fn a_device_the_registry_does_not_name() {
    let lab = Lab::new(3, 32);
    lab.approve(&lab.devices()[..2]);
    lab.refuses(3, "device-not-listed", || lab.create());
    let create = |devices: &[PathBuf]| {
        let arguments: Vec<&OsStr> = devices.iter().map(|device| device.as_os_str()).collect();
        lab.with_documents("create", &arguments)
    };
    ok(&create(&lab.devices()[..2]));
    lab.refuses(3, "device-not-listed", || lab.mount_devices(&lab.devices()[2..], ""));
    lab.refuses(3, "device-not-listed", || create(&lab.devices()[2..]));
}

#[test]
fn a_revoked_replica_is_left_out_when_it_may_be_missing() {
    let lab = volume(2);
    issue(&lab, |text| set_status(&text, 1, "revoked"));
    lab.refuses(3, "device-revoked", || lab.mount());
    let before = lab.disks[1].bytes();
    ok(&lab.mount_devices(&lab.devices(), "degraded"));
    ok(&lab.umount());
    assert!(lab.disks[1].bytes() == before, "a revoked device was written to");
}

#[test]
fn a_device_that_holds_something() {
    let lab = volume(2);
    lab.refuses(7, "device-not-empty", || lab.create());
    let lab = Lab::new(1, 32);
    ok(&run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&lab.disks[0].device)));
    lab.refuses(7, "device-not-empty", || lab.create());
}

#[test]
fn a_device_in_use() {
    let lab = Lab::new(1, 32);
    ok(&run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&lab.disks[0].device)));
    ok(&run(Command::new("mount").arg("-oro").arg(&lab.disks[0].device).arg(&lab.mountpoint)));
    lab.refuses(7, "device-in-use", || lab.create());
    ok(&run(Command::new("umount").arg(&lab.mountpoint)));
    let lab = Lab::mounted(1, 32);
    let other = lab.path("other");
    fs::create_dir(&other).unwrap();
    let device = lab.devices().remove(0);
    fails(&lab.with_documents("mount", &[device.as_os_str(), other.as_os_str()]), 7, "volume-mounted");
    assert_eq!(lab.status()["state"], "healthy", "the first mount goes on");
}

#[test]
fn the_same_device_twice_and_devices_of_two_volumes() {
    let lab = Lab::new(2, 32);
    let devices = lab.devices();
    let twice = [devices[0].clone(), devices[0].clone()];
    lab.refuses(2, "device-twice", || lab.with_documents("create", &[twice[0].as_os_str(), twice[1].as_os_str()]));
    ok(&lab.with_documents("create", &[devices[0].as_os_str()]));
    ok(&lab.with_documents("create", &[devices[1].as_os_str()]));
    lab.refuses(2, "device-twice", || lab.mount_devices(&twice, ""));
    lab.refuses(2, "device-of-another-volume", || lab.mount());
}

#[test]
fn a_copy_of_a_replica_is_not_another_replica() {
    let mut lab = volume(2);
    let image = lab.path("copy");
    fs::copy(&lab.disks[0].image, &image).unwrap();
    lab.disks.push(Disk::of(image));
    lab.refuses(3, "device-not-listed", || lab.mount_devices(&lab.devices()[1..], ""));
}

/// Where the headers of a device of 32 MiB are.
const LABELS: [u64; 3] = [0, 512 << 10, 31 << 20];

#[test]
fn damaged_labels() {
    let lab = volume(1);
    // Two copies: the third is used, and the damaged ones are written anew.
    for whole in LABELS {
        let others: Vec<u64> = LABELS.into_iter().filter(|at| *at != whole).collect();
        damage(&lab.disks[0], &others, &[0x5a; 4096]);
        ok(&lab.mount());
        ok(&lab.umount());
        ok(&lab.check());
    }
    damage(&lab.disks[0], &LABELS, &[0x5a; 4096]);
    lab.refuses(2, "not-a-volume", || lab.mount());
}

#[test]
fn labels_damaged_behind_the_magic_number() {
    let lab = volume(1);
    damage(&lab.disks[0], &LABELS.map(|at| at + 512), &[0x5a; 512]);
    lab.refuses(5, "label-damaged", || lab.mount());
}

#[test]
fn a_newer_format() {
    let lab = volume(1);
    let head = fs::read(&lab.disks[0].image).unwrap()[..512].to_vec();
    let mut newer = head.clone();
    // The version follows the magic number. A single changed byte would be recognised as damage.
    newer[8] = 3;
    newer[300] = 1;
    damage(&lab.disks[0], &LABELS, &newer);
    lab.refuses(2, "format-newer", || lab.mount());
}

#[test]
fn a_truncated_device() {
    let mut lab = volume(1);
    lab.disks[0].detach();
    File::options().write(true).open(&lab.disks[0].image).unwrap().set_len(24 << 20).unwrap();
    lab.disks[0].reattach();
    // The registry names the size too, so that is what refuses it first.
    lab.refuses(3, "size-mismatch", || lab.mount());
}

#[test]
fn a_registry_of_other_officers() {
    let lab = volume(1);
    // The same device, approved by keys that are not pinned in the volume.
    lab.approve(&lab.devices());
    lab.refuses(3, "registry-other", || lab.mount());
}

#[test]
fn registries_that_are_not_accepted() {
    let lab = volume(1);
    let registry = lab.path("registry.toml");
    let good = fs::read_to_string(&registry).unwrap();
    let signature = lab.path("registry.toml.officer-a.minisig");
    let signed = fs::read(&signature).unwrap();

    fs::remove_file(&signature).unwrap();
    lab.refuses(3, "registry-signatures", || lab.mount());
    fs::write(&signature, "garbage").unwrap();
    lab.refuses(3, "registry-signatures", || lab.mount());
    fs::write(&signature, signed).unwrap();
    // One byte changed: no signature counts any more.
    fs::write(&registry, good.replace("\"FR\"", "\"US\"")).unwrap();
    lab.refuses(3, "registry-signatures", || lab.mount());
    fs::write(&registry, [0xff; 100]).unwrap();
    lab.refuses(3, "registry-signatures", || lab.mount());
    // Well signed, but over.
    let set = |text: &str, key: &str, value: &str| -> String {
        let line = |line: &str| if line.starts_with(key) { format!("{key} = {value}\n") } else { format!("{line}\n") };
        text.lines().map(line).collect()
    };
    let expired = set(&set(&good, "issued", "2020-01-01"), "valid_until", "2020-12-31");
    fs::write(&registry, set(&set(&expired, "inspected", "2020-01-01"), "inspection_valid_until", "2020-12-31"))
        .unwrap();
    lab.sign("registry.toml", &OFFICERS);
    lab.refuses(3, "registry-expired", || lab.mount());
    fs::remove_file(&registry).unwrap();
    lab.refuses(2, "registry-unreadable", || lab.mount());
    fs::write(&registry, &good).unwrap();
    lab.sign("registry.toml", &OFFICERS);
    ok(&lab.mount());
    ok(&lab.umount());
    fs::write(lab.path("trust.toml"), "threshold = 0").unwrap();
    lab.refuses(2, "registry-syntax", || lab.mount());
}

/// Signs a second version of the registry, in which the last device is revoked, and waits until the daemon has it.
pub fn revoke_last_device(lab: &Lab) {
    let registry = lab.path("registry.toml");
    let text = fs::read_to_string(&registry).unwrap();
    let at = text.rfind("\"approved\"").expect("a device's status");
    let revoked = format!("{}\"revoked\"{}", &text[..at], &text[at + "\"approved\"".len()..]);
    // Signed elsewhere and put in place at once: the watch is not to see one without the other.
    let (folder, next) = (lab.path("next"), lab.path("next/registry.toml"));
    fs::create_dir(&folder).unwrap();
    fs::write(&next, revoked.replacen("version = 1", "version = 2", 1)).unwrap();
    lab.sign("next/registry.toml", &OFFICERS);
    for file in fs::read_dir(&folder).unwrap() {
        let file = file.unwrap();
        fs::rename(file.path(), lab.path(file.file_name().to_str().unwrap())).unwrap();
    }
    crate::lab::wait_for("the watch to see the new registry", || lab.status()["registry"]["version"] == 2);
}

#[test]
fn a_device_revoked_while_mounted_is_fenced() {
    let lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("deed"), "kept").unwrap();
    revoke_last_device(&lab);
    let status = lab.status();
    assert_eq!(status["replicas"][1]["verdict"]["approved"], false, "{status}");
    let before = lab.disks[1].bytes();
    let mut file = File::create(lab.mountpoint.join("later")).unwrap();
    file.write_all(b"goes to one device only").unwrap();
    file.sync_all().unwrap();
    assert!(lab.disks[1].bytes() == before, "a revoked device was written to");
    assert_eq!(lab.status()["replicas"][1]["state"], "refused", "{}", lab.status());
    assert_eq!(fs::read_to_string(lab.mountpoint.join("deed")).unwrap(), "kept");
    drop(file);
    ok(&lab.umount());
}

#[test]
fn mount_points_and_options_that_cannot_be() {
    let lab = volume(1);
    let device = lab.devices().remove(0);
    let at = |place: &Path| lab.with_documents("mount", &[device.as_os_str(), place.as_os_str()]);
    lab.refuses(2, "mountpoint", || at(Path::new("/nonexistent/folder")));
    lab.refuses(2, "mountpoint", || at(&lab.path("registry.toml")));
    lab.refuses(2, "mount-option-unknown", || lab.mount_devices(std::slice::from_ref(&device), "force"));
    let file = lab.path("registry.toml");
    let mountpoint = lab.mountpoint.as_os_str();
    lab.refuses(2, "device-kind", || lab.with_documents("mount", &[file.as_os_str(), mountpoint]));
    lab.refuses(2, "device-not-found", || lab.with_documents("mount", &["/dev/nonexistent".as_ref(), mountpoint]));
}
