//! `scelle check --keyless`: an auditor compares disks without the passphrase.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output, Stdio};

use scelle::limits::LABEL_SIZE;

use crate::lab::{Lab, SCELLE, fails, ok, run};
use crate::support::rng::Rng;

fn keyless(lab: &Lab, disks: usize) -> Output {
    let mut scelle = Command::new(SCELLE);
    scelle.args(["check", "--keyless"]).stdin(Stdio::null());
    for (option, file) in [("--registry", "registry.toml"), ("--trust", "trust.toml")] {
        scelle.arg(option).arg(lab.path(file));
    }
    run(scelle.args(&lab.devices()[..disks]))
}

#[test]
fn p11_replicas_are_compared_without_a_key() {
    let mut rng = Rng::seeded();
    let lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("deed"), rng.bytes(4 << 20)).unwrap();
    // The disks are in use.
    fails(&keyless(&lab, 2), 7, "device-in-use");
    ok(&lab.umount());
    let before = lab.images();
    let equal = keyless(&lab, 2);
    ok(&equal);
    let text = String::from_utf8_lossy(&equal.stdout).into_owned();
    assert!(text.contains(", 0 differ") && text.contains("nothing was verified"), "{text}");
    fails(&keyless(&lab, 1), 2, "arguments");
    // Two runs, one of them of three blocks; and a label, which is each device's own.
    let file = File::options().write(true).open(&lab.disks[1].device).unwrap();
    for (block, count) in [(100, 3), (9000, 1)] {
        file.write_all_at(&rng.bytes(count * 4096), LABEL_SIZE + block * 4096).unwrap();
    }
    file.sync_all().unwrap();
    let damaged = lab.images();
    let differs = keyless(&lab, 2);
    assert_eq!(differs.status.code(), Some(6), "{differs:?}");
    let text = String::from_utf8_lossy(&differs.stdout).into_owned();
    for line in
        ["blocks 100 to 102 (3 blocks, 12288 bytes", "blocks 9000 to 9000 (1 blocks", ", 4 differ", "not in use"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(lab.images() == damaged && before[0] == damaged[0], "nothing was written");
}
