//! `scelle scrub` as an administrator sees it: it repairs what rots on a disk under applications, names what is lost, goes on
//! after a crash, and says what it did.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use scelle::limits::LABEL_SIZE;

use crate::lab::{Disk, Lab, SCELLE, fails, ok, run, wait_for};
use crate::refused::{issue, set_status};
use crate::support::Ending;
use crate::support::rng::Rng;

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

fn scrub(lab: &Lab, arguments: &[&str]) -> Output {
    run(Command::new(SCELLE).arg("scrub").arg(&lab.mountpoint).args(arguments))
}

fn stdout(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn status(lab: &Lab, arguments: &[&str]) -> Output {
    run(Command::new(SCELLE).arg("status").args(arguments).arg(&lab.mountpoint))
}

/// Writes over blocks of a disk, below every check.
fn overwrite(disk: &Disk, blocks: &[usize], rng: &mut Rng) {
    let file = File::options().write(true).open(&disk.device).unwrap();
    for block in blocks {
        file.write_all_at(&rng.bytes(BLOCK), (block * BLOCK) as u64).unwrap();
    }
    file.sync_all().unwrap();
}

/// Writes a file, durable, and returns its content.
fn write(lab: &Lab, name: &str, bytes: usize, rng: &mut Rng) -> (PathBuf, Vec<u8>) {
    let (path, content) = (lab.mountpoint.join(name), rng.bytes(bytes));
    fs::write(&path, &content).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    (path, content)
}

/// The blocks in which two images differ, outside of the labels.
fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    let label = LABEL_SIZE as usize / BLOCK;
    let blocks = before.chunks(BLOCK).zip(after.chunks(BLOCK)).enumerate();
    let inside = label..before.len() / BLOCK - label;
    blocks.filter(|(at, (a, b))| inside.contains(at) && a != b).map(|(at, _)| at).collect()
}

#[test]
fn p4_a_scrub_repairs_a_twentieth_of_a_disk_under_applications() {
    let mut rng = Rng::seeded();
    let lab = Lab::mounted(2, 160);
    let written: BTreeMap<PathBuf, Vec<u8>> =
        (0..24).map(|i| write(&lab, &format!("deed {i}"), 2 << 20, &mut rng)).collect();
    let image = lab.disks[1].bytes();
    let used = changed(&vec![0; image.len()], &image);
    let chosen: Vec<usize> = (0..used.len() / 20).map(|_| rng.pick(&used)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&over);
        let (over, folder) = (&over, lab.mountpoint.clone());
        scope.spawn(move || {
            for i in 0_u64.. {
                if over.load(Ordering::Acquire) {
                    return;
                }
                fs::write(folder.join(format!("work {}", i % 5)), Rng::new(i).bytes(300_000)).unwrap();
            }
        });
        overwrite(&lab.disks[1], &chosen, &mut rng);
        let out = scrub(&lab, &["--wait"]);
        ok(&out);
        let text = stdout(&out);
        assert!(text.contains("0 not repaired") && text.contains("/deed "), "{text}");
        let found = lab.status()["scrub"].clone();
        assert_eq!((found["state"].as_str(), found["unrepaired"].as_u64()), (Some("finished"), Some(0)), "{found}");
        assert!(found["errors"].as_u64().unwrap() > chosen.len() as u64 / 2, "{found}");
        let second = scrub(&lab, &["--wait"]);
        ok(&second);
        assert!(stdout(&second).contains("nothing found"), "{}", stdout(&second));
    });
    for (path, content) in &written {
        assert!(fs::read(path).unwrap() == *content, "{}", path.display());
    }
    let trail = run(Command::new(SCELLE).args(["audit", "log"]).arg(&lab.mountpoint));
    assert_eq!(stdout(&trail).matches("scrub-ended").count(), 2, "{}", stdout(&trail));
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn p11_what_a_scrub_cannot_repair_is_named_with_its_place() {
    let mut rng = Rng::seeded();
    let lab = Lab::mounted(2, 96);
    let before = lab.images();
    write(&lab, "deed", 8 << 20, &mut rng);
    let after = lab.images();
    // The same bytes lie at the same places: those of the file are most of what has changed.
    let used = changed(&before[0], &after[0]);
    let damaged = used[used.len() / 2];
    lab.disks.iter().for_each(|disk| overwrite(disk, &[damaged], &mut rng));
    let out = scrub(&lab, &["--wait"]);
    fails(&out, 5, "scrub-damage");
    let text = stdout(&out);
    assert_eq!(text.matches("/deed at byte ").count(), 2, "{text}");
    assert!(text.contains("NOT REPAIRED"), "{text}");
    let shown = status(&lab, &["--verbose"]);
    assert_eq!(shown.status.code(), Some(6));
    let shown = stdout(&shown);
    assert!(shown.contains("/deed are on no replica") && shown.contains("/deed at byte "), "{shown}");
    assert!(shown.contains("[scrub-damage]"), "{shown}");
    let line = stdout(&status(&lab, &[]));
    assert!(line.contains("scrub: finished at") && line.contains("2 not repaired"), "{line}");
    // It is not lost any more once it is written anew.
    write(&lab, "deed", 8 << 20, &mut rng);
    ok(&scrub(&lab, &["--wait"]));
    assert_eq!(status(&lab, &[]).status.code(), Some(0));
}

#[test]
fn p10_a_scrub_goes_on_where_it_was_after_its_daemon_was_killed() {
    let mut rng = Rng::seeded();
    let lab = Lab::mounted(2, 96);
    write(&lab, "deed", 24 << 20, &mut rng);
    let begun = scrub(&lab, &["--rate", "3M"]);
    ok(&begun);
    assert!(stdout(&begun).contains("has begun"), "{}", stdout(&begun));
    let seen = || lab.status()["scrub"].clone();
    let done = |scrub: &serde_json::Value| scrub["done_bytes"].as_u64().unwrap();
    let begin = Instant::now();
    wait_for("a part of it", || done(&seen()) > 14 * MIB);
    // It keeps to its rate.
    assert!(begin.elapsed() > Duration::from_secs(4), "{:?}", begin.elapsed());
    let at_crash = done(&seen());
    lab.kill_daemon();
    run(Command::new("umount").arg("-l").arg(&lab.mountpoint));
    ok(&lab.mount());
    let found = seen();
    assert_eq!(found["state"], "interrupted", "{found}");
    // Two seconds, and the commit after them.
    assert!(done(&found) + 12 * MIB > at_crash, "{found}");
    assert!(stdout(&status(&lab, &[])).contains("scrub: interrupted"));
    let out = scrub(&lab, &["--rate", "1G", "--wait"]);
    ok(&out);
    assert!(stdout(&out).contains("goes on where it was"), "{}", stdout(&out));
    let ended = seen();
    assert_eq!((ended["state"].as_str(), ended["errors"].as_u64()), (Some("finished"), Some(0)), "{ended}");
    let bytes = ended["bytes"][0]["bytes"].as_u64().unwrap();
    let total = ended["total_bytes"].as_u64().unwrap();
    assert!(
        (total..total + 2 * MIB).contains(&bytes),
        "what was read after the crash had not been read before: {ended}"
    );
}

#[test]
fn p10_a_scrub_is_paused_and_stopped_and_refuses_what_it_cannot_do() {
    let mut rng = Rng::seeded();
    let lab = Lab::mounted(2, 64);
    write(&lab, "deed", 8 << 20, &mut rng);
    fails(&scrub(&lab, &["--pause"]), 1, "scrub-none");
    fails(&scrub(&lab, &["--stop"]), 1, "scrub-none");
    fails(&scrub(&lab, &["/nobody"]), 2, "scrub-path");
    fails(&run(Command::new(SCELLE).args(["scrub", "no such volume"])), 2, "volume-not-mounted");
    assert_eq!(scrub(&lab, &["--rate", "fast"]).status.code(), Some(2));
    assert_eq!(scrub(&lab, &["--known", "/deed"]).status.code(), Some(2));
    ok(&scrub(&lab, &["--rate", "100K"]));
    fails(&scrub(&lab, &[]), 7, "scrub-running");
    ok(&scrub(&lab, &["--pause"]));
    let paused = stdout(&status(&lab, &[]));
    assert!(paused.contains("scrub: paused"), "{paused}");
    fails(&scrub(&lab, &["/deed"]), 7, "scrub-waits");
    ok(&scrub(&lab, &["--stop"]));
    assert!(stdout(&status(&lab, &[])).contains("scrub: stopped"));
    // A file by its path in the volume, and by that of the mounted folder.
    let deed = lab.mountpoint.join("deed");
    for path in ["/deed", deed.to_str().unwrap()] {
        let out = scrub(&lab, &[path, "--wait"]);
        ok(&out);
        let read = lab.status()["scrub"]["bytes"][0]["bytes"].as_u64().unwrap();
        assert_eq!((read, lab.status()["scrub"]["subject"].as_str()), (8 * MIB, Some("/deed")), "{}", stdout(&out));
    }
    // A volume is unmounted at once while it is scrubbed.
    ok(&scrub(&lab, &["--rate", "100K"]));
    let begin = Instant::now();
    ok(&lab.umount());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    ok(&lab.mount_devices(&lab.devices(), "ro"));
    let out = scrub(&lab, &["--wait", "--rate", "1G"]);
    ok(&out);
    assert!(
        stdout(&out).contains("goes on where it was") && stdout(&out).contains("nothing found"),
        "{}",
        stdout(&out)
    );
}

#[test]
fn p11_a_scrub_goes_on_without_a_disk_that_is_refused_meanwhile() {
    let mut rng = Rng::seeded();
    let lab = Lab::mounted(2, 64);
    write(&lab, "deed", 12 << 20, &mut rng);
    ok(&scrub(&lab, &["--rate", "4M"]));
    issue(&lab, |text| set_status(&text, 1, "revoked"));
    wait_for("the refusal", || lab.status()["replicas"][1]["state"] == "refused");
    wait_for("the end", || lab.status()["scrub"]["state"] == "finished");
    let found = lab.status()["scrub"].clone();
    assert_eq!(found["errors"], 0, "{found}");
    assert!(found["bytes"][1]["left_out"].as_str().unwrap().contains("refused"), "{found}");
    assert!(stdout(&status(&lab, &[])).contains("not everything was looked at"));
}
