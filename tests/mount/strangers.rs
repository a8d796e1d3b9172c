//! Devices that claim to hold a replica and are not to be used: they are left out, loudly, and stop nothing.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::lab::{Disk, Lab, SCELLE, fails, ok, run, stderr, wait_for};

/// A volume on the first two disks, with a label that no other test's volume has.
fn labelled(disks: usize, label: &str) -> (Lab, String) {
    let lab = Lab::new(disks, 32);
    let label = format!("{label}-{}", std::process::id());
    create(&lab, &label, 2);
    (lab, label)
}

fn create(lab: &Lab, label: &str, disks: usize) {
    let nodes = lab.devices();
    let arguments = ["--label", label].map(OsStr::new).into_iter().chain(nodes[..disks].iter().map(|n| n.as_os_str()));
    ok(&lab.with_documents("create", &arguments.collect::<Vec<_>>()));
}

/// A device that no registry lists, with the first MiB of another.
fn stick(lab: &Lab, of: &Disk) -> Disk {
    let image = lab.path("stick");
    let mut head = vec![0; 1 << 20];
    File::open(&of.image).unwrap().read_exact_at(&mut head, 0).unwrap();
    fs::write(&image, &head).unwrap();
    File::options().write(true).open(&image).unwrap().set_len(32 << 20).unwrap();
    Disk::of(image)
}

fn mount(lab: &Lab, name: &str, options: &str) -> Output {
    lab.with_documents("mount", &["-o", options, name, lab.mountpoint.to_str().unwrap()].map(OsStr::new))
}

fn scelle(arguments: &[&str]) -> String {
    String::from_utf8_lossy(&run(Command::new(SCELLE).args(arguments)).stdout).into_owned()
}

/// That the status, the trail and the terminal name a device that was left out, with the reason.
#[track_caller]
fn names(lab: &Lab, said: &Output, device: &Path, reason: &str) {
    let (device, mountpoint) = (device.to_str().unwrap(), lab.mountpoint.to_str().unwrap());
    let status = scelle(&["status", mountpoint]);
    let trail = scelle(&["audit", "log", "--json", mountpoint]);
    let trail = trail.lines().find(|line| line.contains("device-left-out")).unwrap_or_default();
    for text in [stderr(said).as_str(), status.as_str(), trail] {
        assert!(text.contains(device) && text.contains(reason), "{device} and {reason} are not in: {text}");
    }
}

#[test]
fn p11_a_foreign_device_with_a_copied_label_stops_neither_mount_nor_check() {
    let (lab, label) = labelled(2, "stick");
    let stick = stick(&lab, &lab.disks[0]);
    let before = stick.bytes();
    let mounted = mount(&lab, &label, "");
    ok(&mounted);
    names(&lab, &mounted, &stick.device, "device-not-listed");
    assert!(lab.status()["replicas"].as_array().unwrap().iter().all(|replica| replica["state"] == "in-sync"));
    // The volume is called by its label everywhere.
    let other = lab.path("other");
    fs::create_dir(&other).unwrap();
    let again = lab.with_documents("mount", &[OsStr::new(&label), other.as_os_str()]);
    fails(&again, 7, "volume-mounted");
    assert!(stderr(&again).contains(&format!("{label} is mounted on {}", lab.mountpoint.display())), "{again:?}");
    ok(&run(Command::new(SCELLE).args(["umount", &label])));
    let checked = lab.with_documents("check", &[OsStr::new(&label)]);
    ok(&checked);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("left out: "), "{checked:?}");
    // Named by hand as well; and without the stick nothing is said of it.
    let nodes = [lab.devices(), vec![stick.device.clone()]].concat();
    ok(&lab.mount_devices(&nodes, ""));
    assert!(stick.bytes() == before, "a foreign device was written to");
    stick.detach();
    ok(&lab.umount());
    // It does not stand in for a replica: of one that is not there, the volume still says so.
    fails(&lab.mount_devices(&nodes[1..2], ""), 6, "volume-incomplete");
}

#[test]
fn p11_a_foreign_volume_of_the_same_name_stops_no_mount() {
    let (lab, label) = labelled(2, "name");
    let other = Lab::new(1, 32);
    create(&other, &label, 1);
    ok(&mount(&lab, &label, ""));
    ok(&lab.umount());
    // Two that are approved: which of them is meant, nobody can tell.
    let both = Lab::new(2, 32);
    for disk in &both.disks {
        ok(&both.with_documents(
            "create",
            &["--label", "twice-named"]
                .map(OsStr::new)
                .into_iter()
                .chain([disk.device.as_os_str()])
                .collect::<Vec<_>>(),
        ));
    }
    fails(&mount(&both, "twice-named", ""), 2, "volume-ambiguous");
}

#[test]
fn p11_a_replica_is_found_among_devices_that_only_claim_to_be_it() {
    let (lab, label) = labelled(2, "claims");
    // Beside the first disk: whichever of the two is looked at first.
    let stick = stick(&lab, &lab.disks[0]);
    let before = stick.bytes();
    ok(&lab.mount_devices(&lab.devices()[1..], "degraded"));
    ok(&run(Command::new(SCELLE).args(["replica", "resync", "--wait", &label, "laboratory-1"])));
    wait_for("the resync", || lab.status()["replicas"][0]["state"] == "in-sync");
    assert!(stick.bytes() == before);
    ok(&lab.umount());
}

#[test]
fn p11_a_copy_on_an_approved_device_does_not_stop_the_mount_of_the_first() {
    let (lab, label) = labelled(3, "copy");
    fs::copy(&lab.disks[0].image, lab.path("copied")).unwrap();
    let copied = fs::read(lab.path("copied")).unwrap();
    File::options().write(true).open(&lab.disks[2].device).unwrap().write_all_at(&copied, 0).unwrap();
    run(Command::new("sync").arg(&lab.disks[2].device));
    let before = lab.disks[2].bytes();
    let mounted = mount(&lab, &label, "");
    ok(&mounted);
    names(&lab, &mounted, &lab.disks[2].device, "device-swapped");
    ok(&run(Command::new(SCELLE).args(["umount", &label])));
    assert!(lab.disks[2].bytes() == before, "a copy was written to");
}

#[test]
fn who_is_not_root_is_told_so() {
    let lab = Lab::mounted(1, 32);
    let scelle = lab.path("scelle");
    fs::copy(SCELLE, &scelle).unwrap();
    for path in [lab.dir.path(), &scelle] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let somebody = |arguments: &[&str]| {
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        run(Command::new("setpriv").args(user).arg(&scelle).args(arguments))
    };
    fails(&somebody(&["status"]), 1, "needs-root");
    fails(&somebody(&["mount", "archives", "/mnt"]), 1, "needs-root");
    fails(&somebody(&["umount", lab.mountpoint.to_str().unwrap()]), 1, "needs-root");
    for command in [&["create", "/dev/loop0"][..], &["check", "archives"], &["replica", "enrol", "archives"]] {
        fails(&somebody(command), 1, "needs-root");
    }
}

#[test]
fn p11_the_status_names_a_mount_whose_daemon_was_killed() {
    let lab = Lab::mounted(1, 32);
    lab.kill_daemon();
    let mountpoint = lab.mountpoint.to_str().unwrap();
    for arguments in [&["status"][..], &["status", mountpoint], &["status", "--json"]] {
        let out = run(Command::new(SCELLE).args(arguments));
        assert_eq!(out.status.code(), Some(6), "{out:?}");
        assert!(String::from_utf8_lossy(&out.stdout).contains(mountpoint), "{out:?}");
    }
}
