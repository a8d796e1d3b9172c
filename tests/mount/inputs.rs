//! What a user can get wrong around a mount, and what a host may lack: refused or said, in words that lead on.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::lab::{Lab, SCELLE, fails, ok, run, stderr};

/// Runs a shell script in a mount namespace of its own. `mount` and `umount` are scelle's, of the laboratory's volume;
/// arguments of `mount` come before the devices.
fn script(lab: &Lab, text: &str) -> Output {
    let devices: Vec<&str> = lab.disks.iter().map(|disk| disk.device.to_str().unwrap()).collect();
    let text = format!(
        "set -eu
         scelle_mount() {{ $SCELLE mount --registry $dir/registry.toml --trust $dir/trust.toml \
             --passphrase-file $dir/passphrase \"$@\" $devices $mnt; }}
         {text}"
    );
    run(Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-c", &text])
        .env("SCELLE", SCELLE)
        .env("devices", devices.join(" "))
        .env("mnt", &lab.mountpoint)
        .env("dir", lab.dir.path()))
}

fn volume() -> Lab {
    let lab = Lab::new(2, 32);
    ok(&lab.create());
    lab
}

#[track_caller]
fn says(out: &Output, pieces: &[&str]) {
    for piece in pieces {
        assert!(stderr(out).contains(piece), "{piece:?} is not in\n{}", stderr(out));
    }
}

#[test]
fn a_host_without_fuse_is_told_which_module() {
    let lab = volume();
    let hidden = "mount -t tmpfs none /mnt; cp -a /dev/null /dev/urandom /dev/loop* /mnt; mount --move /mnt /dev; ";
    let mut out = None;
    lab.refuses(1, "fuse-unavailable", || {
        let attempt = script(&lab, &format!("{hidden}scelle_mount"));
        out = Some(attempt.clone());
        attempt
    });
    says(&out.unwrap(), &["/dev/fuse: No such file or directory", "modprobe fuse"]);
}

#[test]
fn a_host_folder_that_cannot_be_written_is_named_before_a_device_is_opened() {
    let lab = volume();
    for (folder, what) in [("/run/scelle", "scelle status and scelle umount"), ("/var/lib/scelle", "set back")] {
        let read_only = format!("mkdir -p {folder}; mount -t tmpfs -o ro none {folder}; ");
        let mut out = None;
        lab.refuses(1, "host-folder", || {
            let attempt = script(&lab, &format!("{read_only}scelle_mount"));
            out = Some(attempt.clone());
            attempt
        });
        says(&out.unwrap(), &[&format!("{folder} cannot be written: Read-only file system"), what]);
    }
    // Who only reads leaves nothing to be remembered.
    let read = "mkdir -p /var/lib/scelle; mount -t tmpfs -o ro none /var/lib/scelle
                scelle_mount -o ro; ls $mnt; $SCELLE umount $mnt";
    ok(&script(&lab, read));
}

#[test]
fn arguments_in_the_wrong_order_are_recognised() {
    let lab = volume();
    let (mountpoint, device) = (lab.mountpoint.clone(), lab.devices().remove(0));
    let mount = |arguments: &[&Path]| {
        let mut command = lab.command(&["mount"]);
        run(command.current_dir(lab.dir.path()).args(arguments))
    };
    for arguments in [
        [mountpoint.as_path(), Path::new("archives")],
        [mountpoint.as_path(), device.as_path()],
        // A word that is no volume, but a folder here.
        [Path::new("mnt"), Path::new("archives")],
        [Path::new("mnt"), device.as_path()],
    ] {
        let out = mount(&arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {}", stderr(&out));
        says(&out, &["the mount point comes last"]);
    }
    let out = mount(&[device.as_path(), Path::new("archives")]);
    fails(&out, 2, "mountpoint");
    says(&out, &[&format!("no such mount point: {}", lab.path("archives").display())]);
    assert!(!stderr(&out).contains("comes last"), "{}", stderr(&out));
}

#[test]
fn a_folder_that_is_not_empty_is_mounted_on_with_a_warning() {
    let lab = volume();
    fs::write(lab.mountpoint.join("forgotten"), "here").unwrap();
    let out = lab.mount();
    ok(&out);
    says(&out, &[&format!("{} is not empty", lab.mountpoint.display())]);
    ok(&lab.umount());
    fs::remove_file(lab.mountpoint.join("forgotten")).unwrap();
    let out = lab.mount();
    ok(&out);
    assert_eq!(stderr(&out), "");
}

#[test]
fn a_mount_that_succeeds_says_nothing_on_the_terminal() {
    let lab = volume();
    for options in ["ro", "", "ro,noexec"] {
        let out = lab.mount_devices(&lab.devices(), options);
        ok(&out);
        assert_eq!((stderr(&out), out.stdout.len()), (String::new(), 0), "{options}");
        ok(&lab.umount());
    }
}

#[test]
fn a_host_that_has_lost_its_witness_says_so() {
    let lab = Lab::mounted(2, 32);
    let witness = format!("/var/lib/scelle/{}.witness", lab.status()["uuid"].as_str().unwrap());
    assert_eq!(lab.status()["remembered"], true);
    ok(&lab.umount());
    fs::remove_file(witness).unwrap();
    let out = lab.mount();
    ok(&out);
    says(&out, &["this host has no witness of the volume", "set back"]);
    assert_eq!(lab.status()["remembered"], false);
    let shown = run(Command::new(SCELLE).arg("status").arg(&lab.mountpoint));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("a rollback would not have shown"));
    ok(&lab.umount());
    let out = lab.mount();
    ok(&out);
    assert_eq!((stderr(&out), &lab.status()["remembered"]), (String::new(), &true.into()));
}
