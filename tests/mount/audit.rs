//! Promise P9 as an auditor sees it: a trail that is exported from a mount, and verified elsewhere.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::lab::{Lab, PASSPHRASE, SCELLE, fails, ok, run, stderr, wait_for};
use crate::refusals::revoke_last_device;

fn audit(arguments: &[&OsStr]) -> Output {
    run(Command::new(SCELLE).arg("audit").args(arguments))
}

fn records(lab: &Lab) -> Vec<Value> {
    let out = audit(&["log".as_ref(), "--json".as_ref(), lab.mountpoint.as_os_str()]);
    ok(&out);
    String::from_utf8(out.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn export(lab: &Lab, to: &Path) {
    ok(&audit(&["export".as_ref(), lab.mountpoint.as_os_str(), "--output".as_ref(), to.as_os_str()]));
}

fn verify(file: &Path, key: &str) -> Output {
    audit(&["verify".as_ref(), file.as_os_str(), "--key".as_ref(), key.as_ref()])
}

fn text(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).unwrap()
}

#[test]
fn p9_a_trail_is_exported_and_verified_without_us() {
    let lab = Lab::mounted(2, 64);
    ok(&lab.umount());
    fs::write(lab.path("passphrase"), "wrong").unwrap();
    fails(&lab.mount(), 4, "wrong-key");
    fs::write(lab.path("passphrase"), PASSPHRASE).unwrap();
    ok(&lab.mount());
    revoke_last_device(&lab);
    wait_for("the trail to tell that the replica left", || {
        records(&lab).iter().any(|r| r["event"] == "replica-state" && r["details"]["to"] == "refused")
    });
    let told = records(&lab);
    let events: Vec<String> = told.iter().map(|r| r["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(
        events,
        [
            "volume-created",
            "mounted",
            "unmounted",
            "mount-refused",
            "mounted",
            "registry-accepted",
            "device-refused",
            "replica-state"
        ]
    );
    assert_eq!(told[3]["reasons"][0]["code"], "wrong-key");
    assert_eq!(told[3]["reported"]["intact"], true);
    assert_eq!(told[5]["details"]["version"], 2);
    assert_eq!(told[6]["reasons"][0]["code"], "device-revoked");
    let shown = audit(&["log".as_ref(), lab.mountpoint.as_os_str()]);
    ok(&shown);
    assert!(text(&shown).contains("device-revoked") && text(&shown).contains("reported by host"), "{}", text(&shown));
    let since = audit(&["log".as_ref(), lab.mountpoint.as_os_str(), "--since".as_ref(), "9999-01-01".as_ref()]);
    assert_eq!(text(&since).lines().count(), 1, "{}", text(&since));
    ok(&audit(&["verify".as_ref(), lab.mountpoint.as_os_str()]));

    let status = lab.status();
    let key = status["audit"]["key"].as_str().unwrap().to_owned();
    let file = lab.path("trail");
    export(&lab, &file);
    let again = audit(&["export".as_ref(), lab.mountpoint.as_os_str(), "--output".as_ref(), file.as_os_str()]);
    fails(&again, 2, "output-file");
    ok(&lab.umount());
    lab.disks.iter().for_each(|disk| disk.detach());

    // No volume, no passphrase, no daemon: the file, the key.
    let good = verify(&file, &key);
    ok(&good);
    assert!(text(&good).starts_with("good: ") && text(&good).contains("8 records"), "{}", text(&good));
    let mut piped = Command::new(SCELLE);
    piped.args(["audit", "verify", "-", "--key", &key]).stdin(fs::File::open(&file).unwrap());
    ok(&run(&mut piped));
    fails(&audit(&["verify".as_ref(), file.as_os_str()]), 2, "audit-key-missing");
    tampered(&lab, &file, &key);
    without_us(&lab, &file, &key);
}

/// What was done to a file is said, with exit code 5.
fn tampered(lab: &Lab, file: &Path, key: &str) {
    let whole = fs::read_to_string(file).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let edited = whole.replace("wrong-key", "right-key");
    let cut = lines[..lines.len() - 1].join("\n") + "\n";
    let gap = [&lines[..4], &lines[5..]].concat().join("\n") + "\n";
    let mut swapped = lines.clone();
    swapped.swap(4, 5);
    let swapped = swapped.join("\n") + "\n";
    let seal = whole.replacen("\"records\":8", "\"records\":7", 1);
    for (content, code) in [
        (edited, "audit-altered"),
        (cut, "audit-incomplete"),
        (gap, "audit-gap"),
        (swapped, "audit-order"),
        (seal, "audit-signature"),
        (whole.clone() + &lines[9].replace("\"seq\":8", "\"seq\":9") + "\n", "audit-surplus"),
        (String::from("{}\n"), "audit-not-an-export"),
    ] {
        let forged = lab.path("forged");
        fs::write(&forged, content).unwrap();
        fails(&verify(&forged, key), 5, code);
    }
    // The trail of another volume, and the key of an officer.
    let other = Lab::mounted(1, 32);
    let theirs = other.path("trail");
    export(&other, &theirs);
    fails(&verify(&theirs, key), 5, "audit-other-key");
    fails(&verify(file, other.path("officer-a.pub").to_str().unwrap()), 5, "audit-other-key");
    let head: String = whole.lines().take(2).map(|line| format!("{line}\n")).collect();
    let body: String = fs::read_to_string(&theirs).unwrap().lines().skip(2).map(|line| format!("{line}\n")).collect();
    fs::write(lab.path("forged"), head + &body).unwrap();
    fails(&verify(&lab.path("forged"), key), 5, "audit-other-volume");
}

/// The same verdict from minisign and sha384sum, as the manual tells: these are its lines.
fn without_us(lab: &Lab, file: &Path, key: &str) {
    let manual = include_str!("../../man/scelle-audit.5");
    let (_, section) = manual.split_once(".SH VERIFYING WITHOUT SCELLE\n.nf\n").unwrap();
    let (script, _) = section.split_once(".fi\n").unwrap();
    let script = script.replace("\\-", "-").replace("\\fIKEY\\fR", key);
    let folder = lab.path("expert");
    fs::create_dir(&folder).unwrap();
    let whole = fs::read_to_string(file).unwrap();
    let edited = whole.replace("wrong-key", "right-key");
    for (content, good) in [(&whole, true), (&edited, false)] {
        fs::write(folder.join("trail"), content).unwrap();
        let out = run(Command::new("sh").args(["-euc", &script]).current_dir(&folder));
        ok(&out);
        let said = text(&out);
        let lines: Vec<&str> = said.lines().collect();
        assert!(said.contains("Signature and comment signature verified"), "{said}");
        assert_eq!(lines[lines.len() - 1].len(), 96, "{said}");
        // An edit shows where the chain breaks, although its end was not touched.
        assert_eq!(lines[lines.len() - 2], lines[lines.len() - 1], "{said}");
        assert_eq!(stderr(&out).contains("broken"), !good, "{}", stderr(&out));
    }
}

#[test]
fn p9_an_export_goes_on_where_an_earlier_one_ended() {
    let lab = Lab::mounted(1, 64);
    let registry = lab.path("registry.toml");
    let good = fs::read(&registry).unwrap();
    // A registry that is not signed, then the good one: the daemon says so once, and counts. Written again each time: what
    // changes before the watch begins to watch is only seen at its next look at everything.
    wait_for("the trail to tell of the registry", || {
        fs::write(&registry, "garbage").unwrap();
        records(&lab)
            .iter()
            .any(|r| r["event"] == "registry-refused" && r["reasons"][0]["code"] == "registry-signatures")
    });
    fs::write(&registry, good).unwrap();
    let before = records(&lab).len();
    for _ in 0..3 {
        ok(&lab.umount());
        ok(&lab.mount());
    }
    let told = records(&lab);
    assert_eq!(told.iter().filter(|r| r["event"] == "mounted").count(), 4);
    assert!(told.len() >= before + 6);
    let seqs: Vec<u64> = told.iter().map(|r| r["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=told.len() as u64).collect::<Vec<_>>());
    // Nobody reads to the end: that is no failure.
    let mut log = Command::new(SCELLE);
    log.args(["audit", "log", "--json"]).arg(&lab.mountpoint).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = log.spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    // An export goes on where an earlier one ended.
    let (old, new) = (lab.path("old"), lab.path("new"));
    export(&lab, &old);
    ok(&lab.umount());
    ok(&lab.mount());
    export(&lab, &new);
    let body = |path: &Path| fs::read_to_string(path).unwrap().lines().skip(2).map(String::from).collect::<Vec<_>>();
    assert!(body(&new).starts_with(&body(&old)));
}
