//! What a volume is for: it keeps files, over remounts and with a device less.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::lab::{Lab, SCELLE, fails, ok, run, stderr, wait_for};

/// Checksums and attributes of everything in a tree.
fn checksums(dir: &Path) -> String {
    let script = "find . -type f -print0 | sort -z | xargs -0 sha256sum; find . -printf '%p %y %m %s %T@ %l\\n' | sort";
    let out = run(Command::new("sh").args(["-c", script]).current_dir(dir));
    ok(&out);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn a_tree_is_the_same_after_a_remount_and_on_both_replicas() {
    let lab = Lab::mounted(2, 256);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    ok(&run(Command::new("cp").arg("-a").arg(&source).arg(lab.mountpoint.join("tree"))));
    let before = checksums(&lab.mountpoint);
    ok(&lab.umount());
    assert_eq!(fs::read_dir(&lab.mountpoint).unwrap().count(), 0, "the folder is empty again");
    ok(&lab.check());
    ok(&lab.mount());
    assert_eq!(checksums(&lab.mountpoint), before);
    assert_eq!(lab.status()["state"], "healthy", "{}", lab.status());
    ok(&lab.umount());
    // Same bytes at the same address: everything between the two label areas.
    let (a, b) = (lab.disks[0].bytes(), lab.disks[1].bytes());
    let differs = |block: &usize| a[*block << 12..(block + 1) << 12] != b[*block << 12..(block + 1) << 12];
    let differing: Vec<usize> = (256..255 << 8).filter(differs).collect();
    assert!(differing.is_empty(), "the data areas differ in blocks {differing:?}");
    let needle = b"derive_slot_key";
    assert!(!a.windows(needle.len()).any(|window| window == needle), "the device shows what is in a file");
}

#[test]
fn status_says_who_holds_what() {
    let lab = Lab::mounted(2, 64);
    let status = lab.status();
    assert_eq!(status["state"], "healthy", "{status}");
    assert_eq!((&status["sovereign"], &status["kind"]), (&false.into(), &"laboratory".into()));
    assert_eq!((&status["registry"]["threshold"], &status["registry"]["officers"]), (&2.into(), &2.into()));
    assert_eq!(status["registry"]["anchors"].as_str().map(str::len), Some(64));
    assert_eq!(status["mountpoint"], lab.mountpoint.to_str().unwrap());
    assert_eq!(status["registry"]["signatures"].as_array().unwrap().len(), 2);
    for (replica, disk) in status["replicas"].as_array().unwrap().iter().zip(&lab.disks) {
        assert_eq!(replica["device"], disk.device.to_str().unwrap());
        assert_eq!(replica["state"], "in-sync");
        assert_eq!(replica["country"], "FR");
        assert_eq!(replica["verdict"]["approved"], true);
    }
    let text = run(Command::new(SCELLE).arg("status").arg(&lab.mountpoint));
    ok(&text);
    assert!(String::from_utf8_lossy(&text.stdout).contains("NOT SOVEREIGN: laboratory registry"));
    assert!(String::from_utf8_lossy(&text.stdout).contains(" ago: "), "{text:?}");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let devices: Vec<&str> = lab.disks.iter().map(|disk| disk.device.to_str().unwrap()).collect();
    let shown = format!("- fuse.scelle not-sovereign:laboratory-registry:{} ", devices.join(":"));
    assert!(table.contains(&shown), "{table}");
}

#[test]
fn status_tells_what_was_done_and_how_long_it_took() {
    let lab = Lab::mounted(2, 64);
    let deed = lab.mountpoint.join("deed");
    fs::write(&deed, vec![7; 1 << 20]).unwrap();
    fs::File::open(&deed).unwrap().sync_all().unwrap();
    ok(&lab.umount());
    ok(&lab.mount());
    let remounted = lab.status();
    assert_eq!(remounted["performance"]["write"]["bytes"], 0, "counted anew by each mount: {remounted}");
    assert_eq!(fs::read(&deed).unwrap().len(), 1 << 20);
    fs::write(lab.mountpoint.join("copy"), vec![8; 1 << 20]).unwrap();
    fs::File::open(lab.mountpoint.join("copy")).unwrap().sync_all().unwrap();
    let status = lab.status();
    let number = |of: &serde_json::Value| of.as_u64().unwrap_or_else(|| panic!("not a number in {status}"));
    let performance = &status["performance"];
    assert!(number(&performance["read"]["bytes"]) >= 1 << 20, "{status}");
    assert_eq!(number(&performance["write"]["bytes"]), 1 << 20, "{status}");
    for work in ["read", "write", "lookup", "change", "fsync", "commit"] {
        let work = &performance[work];
        assert!(number(&work["count"]) > 0, "{status}");
        let figures = ["median_ns", "p99_ns", "longest_ns"].map(|figure| number(&work[figure]));
        assert!(figures[0] > 0 && figures.is_sorted(), "{status}");
    }
    for replica in status["replicas"].as_array().unwrap() {
        let io = &replica["io"];
        assert!(number(&io["write"]["bytes"]) >= 1 << 20, "{status}");
        assert!(number(&io["flush"]["count"]) >= 2, "two flushes a commit: {status}");
    }
    let text = run(Command::new(SCELLE).arg("status").arg(&lab.mountpoint));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for expected in ["1.0 MiB written", "fsync ", "commit ", "    device: ", "flush in "] {
        assert!(text.contains(expected), "{expected:?} is not in: {text}");
    }
}

#[test]
fn status_watch_tells_what_is_being_done_until_the_unmount() {
    let lab = Lab::mounted(1, 64);
    let mut watch = Command::new(SCELLE);
    watch.args(["status", "--watch"]).arg(&lab.mountpoint).stdout(std::process::Stdio::piped());
    let watch = watch.spawn().unwrap();
    let begin = std::time::Instant::now();
    while begin.elapsed() < std::time::Duration::from_secs(4) {
        fs::write(lab.mountpoint.join("deed"), vec![7; 4 << 20]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    ok(&lab.umount());
    let out = watch.wait_with_output().unwrap();
    ok(&out);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("commits"), "no head: {text}");
    assert!(text.lines().nth(1).is_some_and(|line| line.contains(" MiB ") && line.contains('%')), "no rates: {text}");
}

#[test]
fn one_device_missing_needs_the_administrators_word() {
    let lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("deed"), "kept").unwrap();
    ok(&lab.umount());
    let one = lab.devices()[..1].to_vec();
    fails(&lab.mount_devices(&one, ""), 6, "volume-incomplete");
    ok(&lab.mount_devices(&one, "degraded"));
    assert_eq!(fs::read_to_string(lab.mountpoint.join("deed")).unwrap(), "kept");
    fs::write(lab.mountpoint.join("later"), "also kept").unwrap();
    assert_eq!(lab.status()["state"], "degraded");
    let status = run(Command::new(SCELLE).arg("status").arg(&lab.mountpoint));
    assert_eq!(status.status.code(), Some(6));
    ok(&lab.umount());
    // The other one has been left behind: it is brought back while the folder is in use.
    ok(&lab.mount());
    assert_eq!(fs::read_to_string(lab.mountpoint.join("later")).unwrap(), "also kept");
    wait_for("the resync", || lab.status()["replicas"][1]["state"] == "in-sync");
    assert_eq!(lab.status()["state"], "healthy");
    ok(&lab.umount());
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("deed"), "kept").unwrap();
    ok(&lab.umount());
    let before = lab.images();
    ok(&lab.mount_devices(&lab.devices(), "ro"));
    assert_eq!(fs::read_to_string(lab.mountpoint.join("deed")).unwrap(), "kept");
    let refused = fs::write(lab.mountpoint.join("new"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    ok(&lab.umount());
    assert!(lab.images() == before, "a read-only mount wrote");
}

#[test]
fn umount_refuses_while_somebody_is_inside_and_says_who() {
    let lab = Lab::mounted(1, 64);
    let open = fs::File::create(lab.mountpoint.join("open")).unwrap();
    let refused = lab.umount_once();
    fails(&refused, 7, "umount-busy");
    assert!(stderr(&refused).contains(&format!("process {}", std::process::id())), "{}", stderr(&refused));
    drop(open);
    ok(&lab.umount());
    fails(&lab.umount(), 2, "umount-not-mounted");
}

#[test]
fn a_signal_ends_the_mount_in_order() {
    let lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("deed"), "kept").unwrap();
    ok(&run(Command::new("kill").arg(lab.daemon().to_string())));
    wait_for("the daemon to unmount", || fs::read_dir(&lab.mountpoint).is_ok_and(|d| d.count() == 0));
    // The devices are free, or mount waits for them.
    ok(&lab.mount());
    assert_eq!(fs::read_to_string(lab.mountpoint.join("deed")).unwrap(), "kept");
    ok(&lab.umount());
}

#[test]
fn a_volume_is_found_by_label_and_uuid() {
    let lab = Lab::new(2, 64);
    let label = format!("lab {}", std::process::id());
    let devices = lab.devices();
    let arguments = ["--label".as_ref(), label.as_ref(), devices[0].as_os_str(), devices[1].as_os_str()];
    let created = lab.with_documents("create", &arguments);
    ok(&created);
    let uuid = String::from_utf8(created.stdout).unwrap();
    for name in [label.as_str(), uuid.trim()] {
        ok(&lab.with_documents("mount", &[name.as_ref(), lab.mountpoint.as_os_str()]));
        ok(&run(Command::new(SCELLE).args(["status", name])));
        ok(&lab.umount());
    }
    fails(&lab.with_documents("mount", &["no such".as_ref(), lab.mountpoint.as_os_str()]), 2, "volume-not-found");
}

#[test]
fn times_at_the_ends_of_the_scale_do_no_harm() {
    let lab = Lab::mounted(1, 64);
    let path = lab.mountpoint.join("old");
    fs::write(&path, "x").unwrap();
    for seconds in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 999_999_999 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        // Whether it is taken or refused: the daemon lives.
        let _ = rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty());
        assert!(fs::metadata(&path).is_ok(), "{seconds}");
    }
    ok(&lab.umount());
}

#[test]
fn what_applications_count_on() {
    let lab = Lab::mounted(2, 128);
    let root = &lab.mountpoint;
    // An unlinked file lives as long as it is open.
    let mut open = fs::File::options().read(true).write(true).create_new(true).open(root.join("gone")).unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    open.write_all(b"still here").unwrap();
    open.seek(SeekFrom::Start(0)).unwrap();
    assert_eq!(std::io::read_to_string(&open).unwrap(), "still here");
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    drop(open);
    // Appending from two descriptors loses nothing.
    let (a, b) = (append(&root.join("log")), append(&root.join("log")));
    for (index, mut file) in [&a, &b].into_iter().cycle().take(100).enumerate() {
        writeln!(file, "line {index}").unwrap();
    }
    assert_eq!(fs::read_to_string(root.join("log")).unwrap().lines().count(), 100);
    // Far out in a large file.
    let far = fs::File::create(root.join("far")).unwrap();
    far.write_all_at(b"end", (8 << 40) - 3).unwrap();
    assert_eq!(far.metadata().unwrap().len(), 8 << 40);
    assert!(far.metadata().unwrap().blocks() < 100, "holes take no room");
    // ACLs: the group bits of the mode are their mask.
    fs::write(root.join("acl"), "x").unwrap();
    ok(&run(Command::new("setfacl").args(["-m", "u:1234:rw"]).arg(root.join("acl"))));
    assert_eq!(fs::metadata(root.join("acl")).unwrap().permissions().mode() & 0o777, 0o664);
    let shown = run(Command::new("getfacl").args(["-cn"]).arg(root.join("acl")));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("user:1234:rw-"));
    // A lock held by another process.
    let script = format!("exec 9>{0}; flock 9; flock -n {0} true && exit 1; exit 0", root.join("lock").display());
    ok(&run(Command::new("sh").args(["-c", &script])));
    drop((a, b, far));
    ok(&lab.umount());
    ok(&lab.check());
}

fn append(path: &Path) -> fs::File {
    fs::File::options().append(true).create(true).open(path).unwrap()
}

#[test]
fn a_full_volume_says_so_and_recovers() {
    let lab = Lab::mounted(1, 32);
    let path = lab.mountpoint.join("big");
    let block = vec![7; 1 << 20];
    let file = fs::File::create(&path).unwrap();
    let mut count = 0;
    let error = loop {
        // fsync: with the writeback cache, that is where the room is taken.
        match file.write_all_at(&block, count << 20).and_then(|()| file.sync_all()) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 40, "more fits than there is");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(count >= 20, "only {count} MiB of 32 were usable");
    drop(file);
    fs::remove_file(&path).unwrap();
    fs::write(lab.mountpoint.join("small"), &block).unwrap();
    fs::File::open(lab.mountpoint.join("small")).unwrap().sync_all().unwrap();
    ok(&lab.umount());
    ok(&lab.check());
}

/// The process that a command has split off, once it has come so far that signals do not end it at once any more.
pub fn split_off(command: u32) -> u32 {
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    let mut daemon = 0;
    wait_for("the daemon", || {
        daemon = read(format!("/proc/{command}/task/{command}/children")).trim().parse().unwrap_or(0);
        // SIGTERM was blocked at least once: the log's descriptor comes before, the devices after.
        let fds = fs::read_dir(format!("/proc/{daemon}/fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to.to_string_lossy().starts_with("/dev/loop"))
    });
    daemon
}

#[test]
fn a_mount_that_is_interrupted_while_it_looks_for_the_key_leaves_nothing_behind() {
    let lab = Lab::new(1, 64);
    ok(&lab.create());
    let before = lab.images();
    for (whom, signal) in [("command", "INT"), ("command", "KILL"), ("daemon", "TERM"), ("daemon", "INT")] {
        let mount = lab.command(&["mount"]);
        // A shell has what it starts in the background ignore SIGINT, and these tests may be that.
        let mut command = Command::new("env")
            .arg("--default-signal=INT")
            .arg(mount.get_program())
            .args(mount.get_args())
            .args([&lab.disks[0].device, &lab.mountpoint])
            .spawn()
            .unwrap();
        let daemon = split_off(command.id());
        let pid = if whom == "daemon" { daemon } else { command.id() };
        ok(&run(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()])));
        assert!(!command.wait().unwrap().success(), "{signal} to the {whom}");
        wait_for("the daemon to end", || !Path::new(&format!("/proc/{daemon}")).exists());
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(lab.mountpoint.to_str().unwrap()));
        assert!(lab.images() == before, "{signal} to the {whom}: the volume was opened all the same");
    }
    ok(&lab.mount());
}
