//! `scelle where` and the attribute behind it: what is said of a file is true of that file, and anybody may ask.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::Value;

use crate::lab::{Lab, SCELLE, fails, ok, run, stderr, wait_for};
use crate::refusals::revoke_last_device;
use crate::refused::issue;

fn whereabouts(paths: &[&Path]) -> Output {
    run(Command::new(SCELLE).args(["where", "--json"]).args(paths))
}

/// The place of one path, and the exit code.
fn place(path: &Path) -> (Value, Option<i32>) {
    let out = whereabouts(&[path]);
    let document: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(&out)));
    (document["places"][0].clone(), out.status.code())
}

fn attribute(path: &Path) -> Output {
    run(Command::new("getfattr").args(["--only-values", "-n", "user.scelle.place"]).arg(path))
}

fn file(lab: &Lab, name: &str, bytes: usize) -> PathBuf {
    let path = lab.mountpoint.join(name);
    fs::write(&path, vec![7; bytes]).unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    path
}

#[test]
fn every_file_says_where_it_is() {
    let lab = Lab::mounted(2, 64);
    let deed = file(&lab, "deed", 10_000);
    fs::create_dir(lab.mountpoint.join("dossier")).unwrap();
    symlink("deed", lab.mountpoint.join("link")).unwrap();
    let (said, code) = place(&deed);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((&said["kind"], &said["committed"]), (&"file".into(), &true.into()));
    assert_eq!((&said["size_bytes"], &said["stored_bytes"]), (&10_000.into(), &12_288.into()));
    assert_eq!((&said["volume"]["sovereign"], &said["volume"]["kind"]), (&false.into(), &"laboratory".into()));
    assert_eq!(said["registry"]["signatures"].as_array().unwrap().len(), 2);
    for (replica, disk) in said["replicas"].as_array().unwrap().iter().zip(&lab.disks) {
        assert_eq!(replica["device"], disk.device.to_str().unwrap());
        assert_eq!((&replica["copy"], &replica["approved"]), (&"complete".into(), &true.into()));
        assert_eq!((&replica["country"], &replica["jurisdictions"][0]), (&"FR".into(), &"FR".into()));
        // In sync since the mount, changed after it.
        assert_eq!(replica["since"], said["changed"], "{said}");
        assert!(replica["inspection_age_days"].as_i64().unwrap() >= 0);
    }
    // The attribute is the same object; a link is what it leads to; a folder speaks of all that is below.
    let value: Value = serde_json::from_slice(&attribute(&deed).stdout).unwrap();
    assert_eq!(value["replicas"], said["replicas"]);
    assert_eq!(place(&lab.mountpoint.join("link")).0["replicas"], said["replicas"]);
    let (folder, code) = place(&lab.mountpoint);
    assert_eq!((&folder["kind"], code), (&"folder".into(), Some(0)));
    assert_eq!((&folder["replicas"][0]["copy"], &folder["replicas"][0]["since"]), (&"complete".into(), &Value::Null));
    let text = run(Command::new(SCELLE).arg("where").arg(&deed));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for piece in ["complete on 2 of 2 replicas", "law FR", "inspected on", "NOT SOVEREIGN", "measures a position"] {
        assert!(text.contains(piece), "{piece} is not in {text}");
    }
    // Several paths, one of them elsewhere: the others are answered.
    let out = whereabouts(&[Path::new("/dev/null"), &deed]);
    fails(&out, 2, "where-not-scelle");
    assert!(String::from_utf8_lossy(&out.stdout).contains("\"copy\":\"complete\""));
    ok(&run(Command::new("mkfifo").arg(lab.mountpoint.join("pipe"))));
    fails(&whereabouts(&[&lab.mountpoint.join("pipe")]), 2, "where-kind");
    ok(&lab.umount());
}

#[test]
fn who_may_read_a_file_may_ask_and_nobody_else() {
    let lab = Lab::mounted(1, 64);
    let scelle = lab.path("scelle");
    fs::copy(SCELLE, &scelle).unwrap();
    for path in [lab.dir.path(), &lab.mountpoint, &scelle] {
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let deed = file(&lab, "deed", 1);
    let as_somebody = || {
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        run(Command::new("setpriv").args(user).arg(&scelle).arg("where").arg(&deed))
    };
    fs::set_permissions(&deed, PermissionsExt::from_mode(0o644)).unwrap();
    ok(&as_somebody());
    fs::set_permissions(&deed, PermissionsExt::from_mode(0o600)).unwrap();
    fails(&as_somebody(), 1, "where-permission");
}

#[test]
fn copies_do_not_stumble_over_it_and_nobody_sets_it() {
    let lab = Lab::mounted(1, 64);
    let dir = lab.mountpoint.join("tree");
    fs::create_dir(&dir).unwrap();
    let deed = file(&lab, "tree/deed", 5);
    ok(&run(Command::new("setfattr").args(["-n", "user.case", "-v", "12/345"]).arg(&deed)));
    let listed = run(Command::new("getfattr").args(["-d", "-m", "-"]).arg(&deed));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("user.case") && !listed.contains("user.scelle"), "{listed}");
    for change in [&["-n", "user.scelle.place", "-v", "forged"][..], &["-x", "user.scelle.place"]] {
        let out = run(Command::new("setfattr").args(change).arg(&deed));
        assert!(stderr(&out).contains("Operation not permitted"), "{}", stderr(&out));
    }
    let copy = lab.mountpoint.join("copy");
    ok(&run(Command::new("cp").args(["-a", "--preserve=all"]).args([&dir, &copy])));
    ok(&run(Command::new("sh")
        .args(["-c", "tar --xattrs --xattrs-include='*' -cf - tree | tar --xattrs --xattrs-include='*' -xf - -C copy"])
        .current_dir(&lab.mountpoint)));
    for place in ["copy/deed", "copy/tree/deed"] {
        let value =
            run(Command::new("getfattr").args(["--only-values", "-n", "user.case"]).arg(lab.mountpoint.join(place)));
        assert_eq!(value.stdout, b"12/345", "{place}");
    }
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn of_a_missing_replica_only_what_is_certain_is_said() {
    let lab = Lab::mounted(2, 64);
    let old = file(&lab, "old", 8192);
    let mixed = file(&lab, "mixed", 8192);
    ok(&lab.umount());
    ok(&lab.mount_devices(&lab.devices()[..1], "degraded"));
    let new = file(&lab, "new", 8192);
    let both = fs::File::options().write(true).open(&mixed).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&both, &[9; 4096], 4096).unwrap();
    drop(both);
    let certain = |path: &Path| {
        let (said, code) = place(path);
        assert_eq!(code, Some(6), "{said}");
        let away = &said["replicas"][1];
        assert_eq!((&away["state"], &away["copy"]), (&"missing".into(), &"left-behind".into()), "{said}");
        assert_eq!((&said["replicas"][0]["copy"], &away["since"]), (&"complete".into(), &Value::Null));
        away["bytes_at_least"].as_u64()
    };
    assert_eq!([&old, &mixed, &new].map(|path| certain(path)), [Some(8192), Some(4096), Some(0)]);
    assert_eq!(certain(&lab.mountpoint), None);
    ok(&lab.umount());
    // Back again: resyncing, then complete, and the time of that is known.
    ok(&lab.mount());
    wait_for("the resync", || place(&new).0["replicas"][1]["copy"] == "complete");
    let (said, code) = place(&old);
    assert_eq!(code, Some(0), "{said}");
    let since = said["replicas"][1]["since"].as_str().unwrap();
    assert!(since > said["changed"].as_str().unwrap(), "complete there before it was brought back: {said}");
    assert_eq!(said["replicas"][1]["state_since"], since);
    ok(&lab.umount());
}

#[test]
fn a_refused_replica_is_said_to_hold_what_it_holds() {
    let lab = Lab::mounted(2, 64);
    let old = file(&lab, "old", 8192);
    ok(&lab.umount());
    ok(&lab.mount());
    revoke_last_device(&lab);
    let new = file(&lab, "new", 8192);
    for (path, bytes) in [(&old, 8192), (&new, 0)] {
        let (said, code) = place(path);
        let refused = &said["replicas"][1];
        assert_eq!((&refused["state"], code), (&"refused".into(), Some(6)), "{said}");
        assert_eq!((&refused["approved"], &refused["reasons"][0]), (&false.into(), &"device-revoked".into()));
        assert_eq!((&refused["copy"], &refused["bytes_at_least"]), (&"left-behind".into(), &bytes.into()), "{said}");
    }
    ok(&lab.umount());
}

#[test]
fn a_mount_that_hangs_or_is_dead_is_named_as_such() {
    let lab = Lab::mounted(1, 64);
    let deed = file(&lab, "deed", 1);
    let pid = lab.daemon().to_string();
    ok(&run(Command::new("kill").args(["-STOP", &pid])));
    let begin = Instant::now();
    let out = whereabouts(&[&deed, &lab.mountpoint]);
    ok(&run(Command::new("kill").args(["-CONT", &pid])));
    fails(&out, 1, "where-timeout");
    assert!(begin.elapsed().as_secs() < 25 && stderr(&out).contains("was not asked about"), "{}", stderr(&out));
    ok(&whereabouts(&[&deed]));
    lab.kill_daemon();
    fails(&whereabouts(&[&deed]), 1, "where-daemon-died");
}

#[test]
fn p11_a_cloned_replica_is_not_shown_at_the_place_of_the_first() {
    let lab = Lab::new(3, 64);
    let nodes = lab.devices();
    let create: Vec<&OsStr> = nodes[..2].iter().map(|node| node.as_os_str()).collect();
    ok(&lab.with_documents("create", &create));
    ok(&lab.mount_devices(&nodes[..2], ""));
    let deed = file(&lab, "deed", 5000);
    ok(&lab.umount());
    ok(&run(Command::new("dd")
        .args(["bs=1M", "conv=fsync", "status=none"])
        .args([format!("if={}", nodes[0].display()), format!("of={}", nodes[2].display())])));
    let cloned = [nodes[2].clone(), nodes[1].clone()];
    lab.refuses(3, "device-swapped", || lab.mount_devices(&cloned, ""));
    // What can be checked without it is, and it is said that a replica was not.
    let arguments: Vec<&OsStr> = cloned.iter().map(|node| node.as_os_str()).collect();
    let checked = lab.with_documents("check", &arguments);
    assert_eq!(checked.status.code(), Some(6), "{checked:?}");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    for piece in ["left out: ", "laboratory-1", "laboratory-3", "[device-swapped]"] {
        assert!(said.contains(piece), "{piece} is not in {said}");
    }
    // Of a replica that is not there, its place is told as what was known.
    ok(&lab.mount_devices(&nodes[1..2], "degraded"));
    let asked = run(Command::new(SCELLE).args(["replica", "resync"]).arg(&lab.mountpoint).arg(&nodes[2]));
    fails(&asked, 3, "device-swapped");
    let (said, _) = place(&deed);
    let away = &said["replicas"][0];
    assert_eq!((&away["site"], &away["last_known"]["site"]), (&"".into(), &"laboratory".into()), "{said}");
    assert_eq!((&said["replicas"][1]["site"], &away["inspected"]), (&"laboratory".into(), &Value::Null), "{said}");
    let shown = |command: &str| {
        let out = run(Command::new(SCELLE).arg(command).arg(if command == "where" { &deed } else { &lab.mountpoint }));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    for command in ["where", "status"] {
        assert!(shown(command).contains("    last known: at laboratory (Laboratory, FR)"), "{}", shown(command));
    }
    // Gone from the registry.
    let version = issue(&lab, |text| text.replacen("id = \"laboratory-1\"", "id = \"laboratory-9\"", 1));
    wait_for("the watch to see the new registry", || lab.status()["registry"]["version"] == version);
    for command in ["where", "status"] {
        assert!(shown(command).contains("    no longer listed in the registry\n"), "{}", shown(command));
    }
    ok(&lab.umount());
    // Called otherwise, it is refused until somebody has it enrolled so, which the trail tells.
    lab.refuses(3, "device-swapped", || lab.mount_devices(&nodes[..1], "degraded"));
    ok(&lab.mount_devices(&nodes[1..2], "degraded"));
    ok(&lab.umount());
    let out = lab.with_documents_of(&["replica", "enrol"], &create);
    ok(&out);
    assert!(String::from_utf8_lossy(&out.stdout).contains("laboratory-1, and is enrolled as laboratory-9"), "{out:?}");
    ok(&lab.mount_devices(&nodes[..2], ""));
    let trail = run(Command::new(SCELLE).args(["audit", "log", "--json"]).arg(&lab.mountpoint));
    assert!(String::from_utf8_lossy(&trail.stdout).contains("replica-enrolled"));
    ok(&lab.umount());
}
