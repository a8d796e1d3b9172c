//! What was written over or rotted under a volume: it costs what it held, and is told.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use scelle::label::HeaderCopy;
use scelle::limits::LABEL_SIZE;
use scelle::units::Uuid;

use crate::lab::{Disk, Lab, SCELLE, ok, run, wait_for};
use crate::support::rng::Rng;

const BLOCK: u64 = 4096;

/// Writes over a disk, below every check.
fn overwrite(disk: &Disk, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(&disk.device).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

fn advice(status: &serde_json::Value) -> String {
    status["advice"].to_string()
}

#[test]
fn p6_a_label_overwritten_under_a_mount_is_told_and_rewritten() {
    let lab = Lab::mounted(2, 64);
    assert_eq!(lab.status()["state"], "healthy");
    let disk = &lab.disks[0];
    let size = disk.bytes().len() as u64;
    let labels = HeaderCopy::ALL.map(|copy| copy.offset(size));
    let before: Vec<Vec<u8>> =
        labels.iter().map(|at| disk.bytes()[usize::try_from(*at).unwrap()..][..4096].to_vec()).collect();
    labels.iter().for_each(|at| overwrite(disk, *at, &[0x5a; 4096]));
    wait_for("the status to tell of it", || advice(&lab.status()).contains("label-overwritten"));
    let status = lab.status();
    assert_eq!(status["state"], "degraded");
    let id = status["replicas"][0]["registry_id"].as_str().unwrap();
    assert!(advice(&status).contains(&format!("{id}: its label")), "{}", advice(&status));
    let text = run(Command::new(SCELLE).arg("status").arg(&lab.mountpoint));
    assert_eq!(text.status.code(), Some(6));
    let trail = run(Command::new(SCELLE).args(["audit", "log", "--json"]).arg(&lab.mountpoint));
    let trail = String::from_utf8_lossy(&trail.stdout).into_owned();
    assert!(trail.contains("damage-found") && trail.contains("label-overwritten"), "{trail}");

    // The way to the key is there again, on this disk too.
    ok(&lab.umount());
    for (at, before) in labels.iter().zip(before) {
        assert_eq!(disk.bytes()[usize::try_from(*at).unwrap()..][..4096], before);
    }
    // Whoever wrote over the label may have written over more: that is told until a check has looked.
    ok(&lab.mount());
    assert_eq!(lab.status()["state"], "degraded");
    assert!(advice(&lab.status()).contains("label-overwritten"));
    assert_eq!(lab.status()["replicas"][0]["total"]["labels"], 1);
    ok(&lab.umount());
    let check = lab.check();
    assert!(String::from_utf8_lossy(&check.stdout).contains("begin anew"), "{check:?}");
    ok(&lab.mount());
    assert_eq!(lab.status()["state"], "healthy");
}

/// What a folder and those below it give: the files that can be read, and how many things could not.
fn look(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> u64 {
    let eio = |error: io::Error| assert_eq!(error.raw_os_error(), Some(libc::EIO), "{}: {error}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            return {
                eio(error);
                1
            };
        }
    };
    let mut lost = 0;
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                return {
                    eio(error);
                    lost + 1
                };
            }
        };
        match fs::symlink_metadata(&path) {
            Ok(attr) if attr.is_dir() => lost += look(&path, files),
            Ok(_) => match fs::read(&path) {
                Ok(bytes) => drop(files.insert(path, bytes)),
                Err(error) => {
                    eio(error);
                    lost += 1;
                }
            },
            Err(error) => {
                eio(error);
                lost += 1;
            }
        }
    }
    lost
}

#[test]
fn p4_blocks_that_are_damaged_on_all_disks_cost_what_they_held() {
    const ROUNDS: u64 = 6;
    let mut rng = Rng::seeded();
    let lab = Lab::mounted(2, 64);
    let mut written = BTreeMap::new();
    for folder in 0..6 {
        let folder = lab.mountpoint.join(format!("folder {folder}"));
        fs::create_dir(&folder).unwrap();
        for file in 0..50 {
            let path = folder.join(format!("{file} {}", "n".repeat(100)));
            let bytes = rng.bytes(200);
            fs::write(&path, &bytes).unwrap();
            written.insert(path, bytes);
        }
    }
    ok(&lab.umount());
    let images = lab.images();
    // The host must not find that the disks went back to what they were before.
    let witness = format!("/var/lib/scelle/{}.witness", Uuid(images[0][48..64].try_into().unwrap()));
    let remembered = fs::read(&witness).unwrap();
    let blocks = images[0].len() as u64 / BLOCK;
    let block = |number: u64| usize::try_from(number * BLOCK).unwrap();
    let inside = LABEL_SIZE / BLOCK..blocks - LABEL_SIZE / BLOCK - 1;
    let used: Vec<u64> = inside.filter(|at| images[0][block(*at)..][..4096].iter().any(|byte| *byte != 0)).collect();
    let (mut mounted, mut lost_in_all) = (0, 0);
    for round in 0..ROUNDS {
        let chosen: Vec<u64> = (0..8).map(|_| rng.pick(&used)).collect();
        for at in &chosen {
            lab.disks.iter().for_each(|disk| overwrite(disk, at * BLOCK + rng.below(4000), &[rng.next() as u8; 64]));
        }
        let out = lab.mount();
        if out.status.success() {
            let mut seen = BTreeMap::new();
            let lost = look(&lab.mountpoint, &mut seen);
            seen.iter().for_each(|(path, bytes)| assert_eq!(Some(bytes), written.get(path), "{}", path.display()));
            assert!(lost > 0 || seen.len() == written.len(), "round {round}: names are missing, and nobody was told");
            let status = lab.status();
            assert!(lost == 0 || status["state"] != "healthy", "{status}");
            assert!(lost == 0 || advice(&status).contains("blocks-lost"), "{status}");
            (mounted, lost_in_all) = (mounted + 1, lost_in_all + lost);
            // A volume whose map of free blocks is lost takes no last commit.
            assert!(matches!(lab.umount().status.code(), Some(0 | 5)));
        } else {
            assert_eq!(out.status.code(), Some(5), "round {round}: {}", String::from_utf8_lossy(&out.stderr));
        }
        // The check goes on to its end.
        let check = lab.check();
        assert_eq!(check.status.code(), Some(5), "round {round}: {}", String::from_utf8_lossy(&check.stderr));
        for (disk, image) in lab.disks.iter().zip(&images) {
            overwrite(disk, 0, image);
        }
        fs::write(&witness, &remembered).unwrap();
    }
    println!("{mounted} of {ROUNDS} were mounted, {lost_in_all} things were lost");
    assert!(mounted > 0 && lost_in_all > 0);
}

/// The places of a file's content on the disks, by what it holds: sealed blocks are not to be recognised, so they are those that
/// were written since `before`.
fn written_since(before: &[u8], after: &[u8]) -> Vec<u64> {
    let blocks = after.len() as u64 / BLOCK;
    let at = |image: &[u8], block: u64| image[usize::try_from(block * BLOCK).unwrap()..][..4096].to_vec();
    let inside = LABEL_SIZE / BLOCK..blocks - LABEL_SIZE / BLOCK;
    inside.filter(|block| at(before, *block) != at(after, *block)).collect()
}

/// A volume that is not mounted, with a file that no disk can give and that was read once; and a good file. Also where the lost
/// block is, and what it was.
fn with_a_lost_file() -> (Lab, u64, Vec<u8>) {
    let lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("good"), vec![1; 100_000]).unwrap();
    ok(&lab.umount());
    let before = lab.images();
    ok(&lab.mount());
    fs::create_dir(lab.mountpoint.join("case")).unwrap();
    fs::write(lab.mountpoint.join("case/lost"), vec![2; 2_000_000]).unwrap();
    fs::hard_link(lab.mountpoint.join("case/lost"), lab.mountpoint.join("case/second")).unwrap();
    ok(&lab.umount());
    let after = lab.images();
    let new = written_since(&before[0], &after[0]);
    // Most of what was written is the file's. Its middle is damaged, where no metadata is.
    let run = new.chunk_by(|one, other| one + 1 == *other).max_by_key(|run| run.len()).unwrap();
    assert!(run.len() > 200, "{}", run.len());
    let place = run[run.len() / 2] * BLOCK;
    let block = after[0][usize::try_from(place).unwrap()..][..4096].to_vec();
    lab.disks.iter().for_each(|disk| overwrite(disk, place, &[0x5a; 4096]));
    ok(&lab.mount());
    assert_eq!(lab.status()["state"], "healthy", "nobody has read it yet");
    assert_eq!(fs::read(lab.mountpoint.join("case/lost")).unwrap_err().raw_os_error(), Some(libc::EIO));
    wait_for("the status to name the file", || advice(&lab.status()).contains("/case/"));
    ok(&lab.umount());
    (lab, place, block)
}

fn names_the_file(lab: &Lab, state: &str) {
    let status = lab.status();
    assert_eq!(status["state"], state);
    let told = advice(&status);
    let named =
        ["1 blocks of /case/lost (and 1 more names of it)", "1 blocks of /case/second (and 1 more names of it)"];
    assert!(told.contains("blocks-lost") && named.iter().any(|name| told.contains(name)), "{told}");
    let text = run(Command::new(SCELLE).arg("status").arg(&lab.mountpoint));
    assert_eq!(text.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&text.stdout).contains("/case/"), "{text:?}");
}

#[test]
fn p4_a_lost_file_is_named_after_a_remount_before_anybody_reads_it() {
    let (lab, ..) = with_a_lost_file();
    let check = lab.check();
    let told = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.code() == Some(5) && told.contains("lost: 1 blocks of /case/"), "{told}");

    // On another host, which remembers nothing of the volume.
    let uuid = Uuid(lab.images()[0][48..64].try_into().unwrap());
    fs::remove_file(format!("/var/lib/scelle/{uuid}.witness")).unwrap();
    ok(&lab.mount());
    names_the_file(&lab, "degraded");
    let trail = run(Command::new(SCELLE).args(["audit", "log", "--json"]).arg(&lab.mountpoint));
    let trail = String::from_utf8_lossy(&trail.stdout).into_owned();
    let last = trail.rfind("\"mounted\"").unwrap();
    let found = trail[last..].lines().find(|line| line.contains("damage-found"));
    assert!(found.is_some_and(|line| line.contains("/case/")), "{trail}");
    // A good file that is read changes nothing of it.
    assert_eq!(fs::read(lab.mountpoint.join("good")).unwrap(), vec![1; 100_000]);
    names_the_file(&lab, "degraded");

    // When it is removed, the volume is healthy again, also after the next mount.
    fs::remove_file(lab.mountpoint.join("case/lost")).unwrap();
    fs::remove_file(lab.mountpoint.join("case/second")).unwrap();
    wait_for("the volume to be healthy", || lab.status()["state"] == "healthy");
    ok(&lab.umount());
    ok(&lab.mount());
    assert_eq!(lab.status()["state"], "healthy");
    ok(&lab.umount());
    assert_eq!(lab.check().status.code(), Some(0));
}

#[test]
fn p4_a_read_only_mount_names_a_lost_file_and_writes_nothing() {
    let (lab, ..) = with_a_lost_file();
    let images = lab.images();
    ok(&lab.mount_devices(&lab.devices(), "ro"));
    names_the_file(&lab, "read-only");
    ok(&lab.umount());
    assert!(lab.images() == images, "something was written");
}

#[test]
fn p4_a_lost_file_is_off_the_list_when_a_disk_gives_it_again() {
    let (lab, place, block) = with_a_lost_file();
    overwrite(&lab.disks[1], place, &block);
    ok(&lab.mount());
    // Nobody reads the file: the volume looks by itself.
    wait_for("the volume to be healthy", || lab.status()["state"] == "healthy");
    ok(&lab.umount());
    ok(&lab.mount());
    assert_eq!(lab.status()["state"], "healthy");
    assert!(fs::read(lab.mountpoint.join("case/lost")).unwrap() == vec![2; 2_000_000]);
    ok(&lab.umount());
    assert_eq!(lab.check().status.code(), Some(0));
}
