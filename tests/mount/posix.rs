//! What POSIX and Linux promise about files, where the kernel's caches take part: each of these once failed, or is what a
//! legacy application would notice first.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{SeekFrom, seek};

use crate::lab::{Lab, ok, run};

/// Modification and change time of everything in a folder.
fn times(dir: &Path) -> BTreeMap<String, (i64, i64, i64, i64)> {
    let stamp = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let found = entry.metadata().unwrap();
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        (entry.file_name().into_string().unwrap(), times)
    };
    fs::read_dir(dir).unwrap().map(stamp).collect()
}

#[test]
fn regression_data_not_yet_written_back_is_no_hole() {
    let lab = Lab::mounted(2, 64);
    let path = lab.mountpoint.join("f");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(b"x", 10 << 20).unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), 10 << 20);
    assert_eq!(seek(&file, SeekFrom::Hole(10 << 20)).unwrap(), (10 << 20) + 1);
    // cp trusts these answers; the writer still has the file open.
    file.write_all_at(b"y", 5 << 20).unwrap();
    let copy = lab.mountpoint.join("copy");
    ok(&run(Command::new("cp").arg("--sparse=auto").arg(&path).arg(&copy)));
    assert!(fs::read(&path).unwrap() == fs::read(&copy).unwrap(), "the copy differs");
}

#[test]
fn regression_truncation_by_open_takes_set_user_id_bits() {
    let lab = Lab::mounted(2, 64);
    fs::set_permissions(&lab.mountpoint, PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(lab.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = lab.mountpoint.join("program");
    fs::write(&path, "content").unwrap();
    chown(&path, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o6755)).unwrap();
    let as_owner = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", ": >\"$1\"", "sh"];
    ok(&run(Command::new("setpriv").args(as_owner).arg(&path)));
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.len(), found.mode() & 0o7777), (0, 0o755));
}

#[test]
fn regression_times_are_the_same_after_a_remount() {
    let lab = Lab::mounted(2, 64);
    for number in 0..50 {
        let path = lab.mountpoint.join(number.to_string());
        // Several within one tick of the kernel's clock.
        for _ in 0..4 {
            OpenOptions::new().append(true).create(true).open(&path).unwrap().write_all(&[1; 5000]).unwrap();
        }
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(number * 1000).unwrap();
    }
    let before = times(&lab.mountpoint);
    ok(&lab.umount());
    ok(&lab.mount());
    assert_eq!(times(&lab.mountpoint), before);
}

#[test]
fn a_full_volume_says_so_at_the_latest_on_fsync_and_recovers() {
    let lab = Lab::mounted(2, 64);
    let path = lab.mountpoint.join("fill");
    let file = fs::File::create(&path).unwrap();
    let filled = (0..100).try_for_each(|at| file.write_all_at(&[at as u8; 1 << 20], at << 20));
    let error = filled.and_then(|()| file.sync_all()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(28), "ENOSPC");
    drop(file);
    fs::remove_file(&path).unwrap();
    let file = fs::File::create(lab.mountpoint.join("after")).unwrap();
    file.write_all_at(&[7; 20 << 20], 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    ok(&lab.umount());
    ok(&lab.check());
    ok(&lab.mount());
    assert!(fs::read(lab.mountpoint.join("after")).unwrap() == [7; 20 << 20]);
}

#[test]
fn regression_an_acl_by_a_stranger_to_the_group_takes_the_set_group_id_bit() {
    let lab = Lab::mounted(1, 64);
    let path = lab.mountpoint.join("f");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&lab.mountpoint, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(lab.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(&path, Some(100), Some(100)).unwrap();
    for (groups, bit) in [
        ("--regid=100 --clear-groups", 0o2000),
        ("--regid=101 --clear-groups", 0),
        ("--regid=101 --groups=5,100", 0o2000),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
        let mut setfacl = Command::new("setpriv");
        setfacl.arg("--reuid=100").args(groups.split(' ')).args(["setfacl", "-m", "u::rwx,g::rwx,o::rwx"]).arg(&path);
        ok(&run(&mut setfacl));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777 | bit, "{groups}");
    }
    ok(&lab.umount());
}

#[test]
fn regression_times_are_in_the_order_of_what_happened() {
    let lab = Lab::mounted(1, 64);
    let file = fs::File::create(lab.mountpoint.join("file")).unwrap();
    // A written file's time is the kernel's, a new folder's the daemon's.
    let time = |found: fs::Metadata| (found.ctime(), found.ctime_nsec());
    for round in 0..200 {
        let made = lab.mountpoint.join(round.to_string());
        fs::create_dir(&made).unwrap();
        file.write_all_at(b"x", round).unwrap();
        let (made, written) = (time(fs::metadata(&made).unwrap()), time(file.metadata().unwrap()));
        assert!(made <= written, "round {round}: {made:?} was before {written:?}");
    }
    drop(file);
    ok(&lab.umount());
}
