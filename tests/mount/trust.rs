//! What a volume trusts only moves on. When officers are replaced, it takes over what its own officers have signed, at a
//! mount that writes, and never goes back.

use std::fs;
use std::process::Command;

use crate::lab::{Lab, OFFICERS, SCELLE, fails, ok, run};

/// `scelle registry COMMAND ARGUMENTS` in the laboratory's folder.
fn registry(lab: &Lab, arguments: &[&str]) -> std::process::Output {
    run(Command::new(SCELLE).arg("registry").args(arguments).current_dir(lab.dir.path()))
}

/// Asserts that a mount is refused and no image was written to.
#[track_caller]
fn refused(lab: &Lab, reason: &str) {
    lab.refuses(3, reason, || lab.mount());
}

#[track_caller]
fn mounts(lab: &Lab, options: &str) {
    ok(&lab.mount_devices(&lab.devices(), options));
    ok(&lab.umount());
}

/// A volume of the officers a and b, both of whom must sign, and the next trust anchors, of a and c, not yet signed.
fn succession() -> Lab {
    let lab = Lab::new(2, 32);
    ok(&lab.create());
    ok(&registry(&lab, &["keygen", "officer-c", "--no-password"]));
    mounts(&lab, "");
    let succeed = ["succeed", "--trust", "trust.toml", "--without", "officer-b", "--with", "officer-c.pub"];
    ok(&registry(&lab, &succeed));
    // What is there is never overwritten.
    fails(&registry(&lab, &succeed), 3, "registry-signatures");
    lab
}

#[test]
fn an_officer_is_replaced_by_those_whom_the_volume_trusts() {
    let lab = succession();
    refused(&lab, "registry-signatures");
    // The one who comes does not count, and one of two is not enough.
    lab.sign("trust.toml.2", &["officer-c", "officer-a"]);
    refused(&lab, "registry-signatures");
    lab.sign("trust.toml.2", &["officer-b"]);
    // The registry still lacks a signature of the new officers.
    refused(&lab, "registry-signatures");
    lab.sign("registry.toml", &["officer-c"]);
    mounts(&lab, "");
    mounts(&lab, "");
    // Whoever hides the succession, with everything that the old officers have signed, is refused.
    fs::rename(lab.path("trust.toml.2"), lab.path("hidden")).unwrap();
    refused(&lab, "registry-other");
    fs::rename(lab.path("hidden"), lab.path("trust.toml.2")).unwrap();
    mounts(&lab, "");
    // The second succession rests on the first.
    ok(&registry(&lab, &["keygen", "officer-d", "--no-password"]));
    ok(&registry(&lab, &["succeed", "--trust", "trust.toml", "--without", "officer-a", "--with", "officer-d.pub"]));
    lab.sign("trust.toml.3", &OFFICERS);
    refused(&lab, "registry-signatures");
    lab.sign("trust.toml.3", &["officer-c"]);
    lab.sign("registry.toml", &["officer-d"]);
    mounts(&lab, "");
    let shown = registry(&lab, &["verify", "registry.toml", "--trust", "trust.toml"]);
    ok(&shown);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("trust anchors version 3"), "{shown}");
}

#[test]
fn a_mount_that_does_not_write_takes_nothing_over() {
    let lab = succession();
    lab.sign("trust.toml.2", &OFFICERS);
    lab.sign("registry.toml", &["officer-c"]);
    let before = lab.images();
    mounts(&lab, "ro");
    assert!(lab.images() == before);
    fs::remove_file(lab.path("trust.toml.2")).unwrap();
    mounts(&lab, "");
}

/// The succession is durable before the folder is usable, so no crash undoes it.
#[test]
fn a_daemon_that_dies_has_taken_the_succession_over() {
    let lab = succession();
    lab.sign("trust.toml.2", &OFFICERS);
    lab.sign("registry.toml", &["officer-c"]);
    ok(&lab.mount());
    lab.kill_daemon();
    ok(&run(Command::new("umount").arg("-l").arg(&lab.mountpoint)));
    fs::rename(lab.path("trust.toml.2"), lab.path("hidden")).unwrap();
    refused(&lab, "registry-other");
    fs::rename(lab.path("hidden"), lab.path("trust.toml.2")).unwrap();
    mounts(&lab, "");
}

#[test]
fn an_older_registry_is_refused_although_it_is_signed() {
    let lab = Lab::new(1, 32);
    ok(&lab.create());
    let older = fs::read_to_string(lab.path("registry.toml")).unwrap();
    let newer = older.replacen("version = 1\n", "version = 2\n", 1);
    assert_ne!(older, newer);
    fs::write(lab.path("registry.toml"), newer).unwrap();
    lab.sign("registry.toml", &OFFICERS);
    mounts(&lab, "");
    fs::write(lab.path("registry.toml"), older).unwrap();
    lab.sign("registry.toml", &OFFICERS);
    refused(&lab, "registry-rolled-back");
}
