//! `scelle destroy`: what it overwrites, what it leaves alone, and who hears of it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use scelle::label::{Area, HeaderCopy};

use crate::lab::{Lab, SCELLE, fails, ok, run, stderr};

const MIB: usize = 1 << 20;

/// `scelle destroy ARGUMENTS`, with nobody there to answer.
fn destroy(lab: &Lab, arguments: &[&OsStr]) -> Output {
    let mut scelle = Command::new(SCELLE);
    scelle.arg("destroy").arg("--registry").arg(lab.path("registry.toml")).arg("--trust").arg(lab.path("trust.toml"));
    run(scelle.args(arguments).stdin(Stdio::null()))
}

fn destroy_of(lab: &Lab, volume: &str, devices: &[&Path]) -> Output {
    let mut arguments: Vec<&OsStr> = vec!["--volume".as_ref(), volume.as_ref()];
    arguments.extend(devices.iter().map(|device| device.as_os_str()));
    destroy(lab, &arguments)
}

fn volume(lab: &Lab) -> String {
    String::from_utf8(lab.create().stdout).unwrap().trim().to_owned()
}

#[test]
fn a_destroyed_replica_has_no_label_left_and_the_others_tell_of_it() {
    let lab = Lab::new(2, 32);
    let uuid = volume(&lab);
    let before = lab.disks[0].bytes();
    let (first, second) = (lab.disks[0].device.clone(), lab.disks[1].device.clone());
    let out = destroy_of(&lab, &uuid, &[&first]);
    ok(&out);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains(&format!("destroyed: {}: replica 0 of 2 of volume {uuid}", first.display())), "{said}");
    let after = lab.disks[0].bytes();
    for area in Area::BOTH.map(|area| usize::try_from(area.offset(before.len() as u64)).unwrap()) {
        assert!(before[area..area + MIB].iter().any(|byte| *byte != 0));
        assert!(after[area..area + MIB].iter().all(|byte| *byte == 0), "something is left of the label at {area}");
    }
    assert!(after[MIB..after.len() - MIB] == before[MIB..before.len() - MIB], "more than the labels was written");
    // It is no replica any more, and destroying it once more is refused.
    lab.refuses(2, "not-a-volume", || destroy_of(&lab, &uuid, &[&first]));
    ok(&lab.mount_devices(&[second], "degraded"));
    let trail = run(Command::new(SCELLE).args(["audit", "log", "--json"]).arg(&lab.mountpoint));
    let trail = String::from_utf8_lossy(&trail.stdout).into_owned();
    let destroyed = trail.lines().find(|line| line.contains("replica-destroyed")).unwrap_or_else(|| panic!("{trail}"));
    assert!(destroyed.contains(&*first.to_string_lossy()), "{destroyed}");
    ok(&lab.umount());
}

#[test]
fn a_device_whose_label_is_damaged_is_destroyed_by_whoever_says_so() {
    let lab = Lab::new(1, 32);
    let uuid = volume(&lab);
    let device = lab.disks[0].device.clone();
    let size = lab.disks[0].bytes().len() as u64;
    let file = std::fs::File::options().write(true).open(&device).unwrap();
    for copy in HeaderCopy::ALL {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 16], copy.offset(size) + 100).unwrap();
    }
    file.sync_all().unwrap();
    // Of which volume it is cannot be read, so its name is no answer.
    lab.refuses(2, "not-confirmed", || destroy_of(&lab, &uuid, &[&device]));
    // A new volume is not made over it, and the message says what to do.
    let out = lab.create();
    fails(&out, 7, "device-not-empty");
    assert!(stderr(&out).contains(&format!("scelle destroy {}", device.display())), "{}", stderr(&out));
    // On a terminal, somebody answers.
    let script = |answer: &str| {
        let (registry, trust) = (lab.path("registry.toml"), lab.path("trust.toml"));
        let command = format!(
            "{SCELLE} destroy --registry {} --trust {} {}",
            registry.display(),
            trust.display(),
            device.display()
        );
        let text = format!("echo {answer} | script --quiet --return --command '{command}' /dev/null");
        run(Command::new("bash").args(["-c", &text]))
    };
    let before = lab.images();
    let refused = script("yes");
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stdout));
    assert!(lab.images() == before, "another answer was taken for yes");
    let out = script("destroy");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    ok(&lab.create());
}

#[test]
fn p1_nothing_is_destroyed_that_is_not_meant_in_use_or_not_approved() {
    let lab = Lab::new(2, 32);
    let uuid = volume(&lab);
    let (first, second) = (lab.disks[0].device.clone(), lab.disks[1].device.clone());
    let other = "00000000-0000-4000-8000-000000000000";
    lab.refuses(2, "not-confirmed", || destroy_of(&lab, other, &[&first, &second]));
    lab.refuses(2, "volume-uuid", || destroy_of(&lab, "greffe", &[&first]));
    lab.refuses(2, "not-confirmed", || destroy(&lab, &[first.as_os_str()]));
    lab.refuses(2, "device-twice", || destroy_of(&lab, &uuid, &[&first, &first]));
    ok(&lab.mount());
    fails(&destroy_of(&lab, &uuid, &[&first]), 7, "device-in-use");
    assert_eq!(lab.status()["state"], "healthy");
    ok(&lab.umount());
    // One of two is not in the registry: the other one stays as it is, too.
    lab.approve(std::slice::from_ref(&first));
    let mut out = None;
    let before = lab.images();
    out.replace(destroy_of(&lab, &uuid, &[&first, &second]));
    assert_eq!(out.unwrap().status.code(), Some(3));
    assert!(lab.images() == before, "something was written");
}
