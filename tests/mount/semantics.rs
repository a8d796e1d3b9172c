//! What scelle(7) promises to applications and has no proof elsewhere: errors, users and groups, mount options, and what is
//! large, deep or many.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags, SeekFrom, fallocate, mkdirat, openat, renameat, seek};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::lab::{Lab, ok, run, stderr, wait_for};

/// A volume whose folder other users may enter.
fn open_to_all(mib: u64) -> Lab {
    let lab = Lab::mounted(2, mib);
    enter(&lab);
    lab
}

fn enter(lab: &Lab) {
    for folder in [lab.dir.path(), &lab.mountpoint] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
}

/// Runs a shell script in the mounted folder as a user with one group.
fn as_user(lab: &Lab, uid: u32, gid: u32, script: &str) -> Output {
    let [user, group] = [format!("--reuid={uid}"), format!("--regid={gid}")];
    let who = [user.as_str(), group.as_str(), "--clear-groups", "sh", "-euc", script];
    run(Command::new("setpriv").args(who).current_dir(&lab.mountpoint))
}

#[track_caller]
fn refused<T>(result: io::Result<T>, errno: i32) {
    let error = result.err().expect("it was not refused");
    assert_eq!(error.raw_os_error(), Some(errno), "{error}");
}

#[test]
fn errors_are_those_of_ext4() {
    let lab = Lab::mounted(1, 64);
    let at = |name: &str| lab.mountpoint.join(name);
    fs::write(at("file"), "content").unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/x"), "").unwrap();
    fs::create_dir(at("empty")).unwrap();
    symlink("circle", at("circle")).unwrap();
    refused(File::create(at(&"n".repeat(256))), libc::ENAMETOOLONG);
    refused(symlink("t".repeat(4096), at("long")), libc::ENAMETOOLONG);
    refused(fs::metadata(at(&"./".repeat(2100))), libc::ENAMETOOLONG);
    refused(File::open(at("circle")), libc::ELOOP);
    refused(fs::remove_dir(at("full")), libc::ENOTEMPTY);
    refused(fs::rename(at("empty"), at("full")), libc::ENOTEMPTY);
    refused(fs::rename(at("full"), at("full/inside")), libc::EINVAL);
    refused(fs::rename(at("file"), at("empty")), libc::EISDIR);
    refused(fs::rename(at("empty"), at("file")), libc::ENOTDIR);
    refused(fs::rename(at("file"), lab.path("elsewhere")), libc::EXDEV);
    refused(fs::hard_link(at("file"), lab.path("elsewhere")), libc::EXDEV);
    refused(fs::hard_link(at("full"), at("folder")), libc::EPERM);
    refused(fs::metadata(at("file/x")), libc::ENOTDIR);
    refused(fs::metadata(at("none")), libc::ENOENT);
    refused(fs::create_dir(at("full")), libc::EEXIST);
    refused(OpenOptions::new().write(true).open(at("full")), libc::EISDIR);
    refused(File::open(at("file")).unwrap().write_all_at(b"x", 0), libc::EBADF);
    // A program that runs is not written, and one that is written does not run.
    fs::copy("/bin/sleep", at("program")).unwrap();
    let mut running = Command::new(at("program")).arg("60").spawn().unwrap();
    let written = OpenOptions::new().write(true).open(at("program"));
    running.kill().unwrap();
    running.wait().unwrap();
    refused(written, libc::ETXTBSY);
    let open = OpenOptions::new().write(true).open(at("program")).unwrap();
    refused(Command::new(at("program")).arg("0").status(), libc::ETXTBSY);
    drop(open);
    ok(&run(Command::new(at("program")).arg("0")));
}

/// Found by writing beyond the largest file, which was 16 TiB then: the kernel does not know of such a bound, its cache took
/// the write, and it was lost.
#[test]
fn regression_a_write_beyond_the_largest_file_is_refused_at_once() {
    let lab = Lab::mounted(1, 64);
    let path = lab.mountpoint.join("f");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let largest = i64::MAX as u64;
    for offset in [1 << 44, 1 << 62, largest - 1] {
        file.write_all_at(b"x", offset).unwrap();
        file.sync_all().unwrap();
    }
    // Beyond it there is no number for the end.
    refused(file.write_all_at(b"x", largest), libc::EINVAL);
    refused(fallocate(&file, rustix::fs::FallocateFlags::empty(), largest, 1).map_err(Into::into), libc::EFBIG);
    assert_eq!(seek(&file, SeekFrom::Data((1 << 44) + 4096)).unwrap(), 1 << 62);
    drop(file);
    ok(&lab.umount());
    ok(&lab.check());
    ok(&lab.mount());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().blocks()), (largest, 3 * 8));
    let mut byte = [0];
    file.read_exact_at(&mut byte, largest - 1).unwrap();
    assert_eq!(&byte, b"x");
    file.set_len(0).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
}

#[test]
fn users_and_groups_have_what_the_mode_gives_them() {
    let lab = open_to_all(64);
    let root = &lab.mountpoint;
    fs::create_dir(root.join("chamber")).unwrap();
    chown(root.join("chamber"), Some(1001), Some(2000)).unwrap();
    fs::set_permissions(root.join("chamber"), Permissions::from_mode(0o2770)).unwrap();
    // What is made in a set-group-id folder belongs to its group, and folders in it go on like that.
    let clerk =
        as_user(&lab, 1001, 1001, "umask 027; echo deed >chamber/deed; mkdir chamber/sub; echo x >chamber/sub/f");
    ok(&clerk);
    for (name, mode) in [("deed", 0o100_640), ("sub", 0o42_750), ("sub/f", 0o100_640)] {
        let found = fs::metadata(root.join("chamber").join(name)).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode()), (1001, 2000, mode), "{name}");
    }
    ok(&as_user(&lab, 1002, 2000, "cat chamber/deed"));
    for (uid, gid, script) in [
        (1002, 2000, "echo x >>chamber/deed"),
        (1003, 1003, "ls chamber"),
        (1003, 1003, "cat chamber/deed"),
        (1002, 2000, "chmod 777 chamber/deed"),
        (1002, 2000, "chown 1002 chamber/deed"),
        (1001, 1001, "chown 1002 chamber/deed"),
        (1001, 1001, "chgrp 4000 chamber/deed"),
        (1002, 2000, "touch -d 2020-01-01 chamber/deed"),
        (1002, 2000, "setfattr -n user.note -v x chamber/deed"),
        (1001, 1001, "setfattr -n trusted.note -v x chamber/deed"),
        (1001, 1001, "mknod chamber/device c 1 3"),
    ] {
        let out = as_user(&lab, uid, gid, script);
        let text = stderr(&out);
        let denied = text.contains("ermission denied") || text.contains("not permitted");
        assert!(!out.status.success() && denied, "{uid}:{gid} {script}: {text}");
    }
    // What administrators note is not even listed for others.
    ok(&run(Command::new("setfattr").args(["-n", "trusted.note", "-v", "x"]).arg(root.join("chamber/deed"))));
    for (uid, shown) in [(0, true), (1001, false)] {
        let out = as_user(&lab, uid, 2000, "getfattr -m - chamber/deed");
        assert_eq!(String::from_utf8_lossy(&out.stdout).contains("trusted.note"), shown, "{uid}");
    }
    // In a sticky folder one removes only one's own.
    fs::create_dir(root.join("tray")).unwrap();
    fs::set_permissions(root.join("tray"), Permissions::from_mode(0o1777)).unwrap();
    ok(&as_user(&lab, 1001, 1001, "echo x >tray/a"));
    for script in ["rm -f tray/a", "mv tray/a tray/b"] {
        assert!(!as_user(&lab, 1003, 1003, script).status.success(), "{script}");
    }
    ok(&as_user(&lab, 1001, 1001, "rm tray/a"));
}

#[test]
fn access_lists_are_inherited_and_obeyed() {
    let lab = open_to_all(64);
    let root = &lab.mountpoint;
    fs::create_dir(root.join("case")).unwrap();
    let lists = ["-m", "u:1001:rwx,o::-,d:u:1001:rwx,d:g:2000:r-x,d:o::-"];
    ok(&run(Command::new("setfacl").args(lists).arg(root.join("case"))));
    ok(&as_user(&lab, 1001, 1001, "umask 077; mkdir case/part; echo deed >case/part/deed"));
    for mounted_again in [false, true] {
        let shown = run(Command::new("getfacl").args(["-cpn"]).arg(root.join("case/part/deed")));
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        // The default list has taken the place of the umask; the mask is the group's part of the mode asked for.
        for line in ["user::rw-", "user:1001:rwx", "group:2000:r-x", "mask::rw-", "other::---"] {
            assert!(shown.contains(line), "{mounted_again}: {line} is not in {shown}");
        }
        ok(&as_user(&lab, 1001, 1001, "echo more >>case/part/deed"));
        assert!(!as_user(&lab, 1002, 2000, "cat case/part/deed").status.success(), "case itself is closed to them");
        if !mounted_again {
            ok(&lab.umount());
            ok(&lab.mount());
        }
    }
    ok(&run(Command::new("setfacl").args(["-m", "g:2000:x"]).arg(root.join("case"))));
    ok(&as_user(&lab, 1002, 2000, "cat case/part/deed"));
    assert!(!as_user(&lab, 1002, 2000, "echo x >>case/part/deed").status.success());
    assert!(!as_user(&lab, 1003, 1003, "cat case/part/deed").status.success());
}

/// The options of the mount, as the kernel shows them.
fn options(lab: &Lab) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = format!(" {} ", lab.mountpoint.display());
    let line = table.lines().rfind(|line| line.contains(&here)).expect("it is mounted");
    line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
}

#[test]
fn set_user_id_bits_and_device_nodes_count_only_when_asked_for() {
    let lab = open_to_all(64);
    let null = lab.mountpoint.join("null");
    ok(&run(Command::new("mknod").arg("-m666").arg(&null).args(["c", "1", "3"])));
    let program = lab.mountpoint.join("id");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o4755)).unwrap();
    for asked in [false, true] {
        if asked {
            ok(&lab.umount());
            ok(&lab.mount_devices(&lab.devices(), "suid,dev,noexec,exec"));
        }
        let shown = options(&lab);
        assert_eq!(["nosuid", "nodev"].map(|name| shown.iter().any(|option| option == name)), [!asked; 2]);
        assert_eq!(File::open(&null).is_ok(), asked, "a device node");
        let effective = as_user(&lab, 1001, 1001, "./id -u");
        assert_eq!(String::from_utf8_lossy(&effective.stdout).trim(), if asked { "0" } else { "1001" });
    }
    ok(&lab.umount());
    ok(&lab.mount_devices(&lab.devices(), "noexec"));
    refused(Command::new(&program).status(), libc::EACCES);
}

#[test]
fn set_id_bits_go_with_the_content_and_the_owner() {
    const CHANGES: [&str; 9] = [
        "echo x >>f",
        "dd if=other of=f bs=4096 count=1 conv=notrunc oflag=direct status=none",
        ": >f",
        "truncate -s 5 f",
        "fallocate -l 100000 f",
        "fallocate -p -l 4096 f",
        // `cat` copies in the kernel (copy_file_range).
        "cat other >f",
        "chgrp 1001 f",
        "chown 1001 f",
    ];
    let lab = open_to_all(64);
    let path = lab.mountpoint.join("f");
    fs::write(lab.mountpoint.join("other"), [7; 8192]).unwrap();
    fs::write(&path, [1; 8192]).unwrap();
    for change in CHANGES {
        let owner_changes = change.starts_with("ch");
        for (uid, before, after) in [
            (1001, 0o6775, 0o775),
            (1001, 0o4755, 0o755),
            // Without execution by the group: only for who could not have set it.
            (1001, 0o2765, 0o765),
            (0, 0o6775, if owner_changes { 0o775 } else { 0o6775 }),
        ] {
            chown(&path, Some(1001), Some(2000)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            ok(&as_user(&lab, uid, uid, change));
            let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
            assert_eq!(mode, after, "{change} by {uid}, {before:o}: {mode:o}");
        }
    }
    // chown(2) to nobody else is for everybody, but takes no bits from other people's files.
    for (uid, before, after) in [(1002, 0o4755, 0o4755), (1001, 0o4755, 0o755), (1002, 0o755, 0o755)] {
        chown(&path, Some(1001), Some(2000)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
        let refused = uid == 1002 && before == 0o4755;
        assert_eq!(as_user(&lab, uid, uid, "chown : f").status.success(), !refused, "by {uid}, {before:o}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, after, "by {uid}, {before:o}");
    }
    // A process that is root in a namespace of its own only is not.
    chown(&path, Some(1001), Some(1001)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o4755)).unwrap();
    ok(&as_user(&lab, 1001, 1001, "unshare --user --map-root-user truncate -s 7 f"));
    assert_eq!(fs::metadata(&path).unwrap().mode(), 0o100_755);
    // What setcap(8) writes goes too.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(&path, "security.capability", &capability, rustix::fs::XattrFlags::empty()).unwrap();
    ok(&as_user(&lab, 1001, 1001, "echo x >>f"));
    let found = rustix::fs::getxattr(&path, "security.capability", &mut [0; 32][..]);
    assert_eq!(found.unwrap_err(), rustix::io::Errno::NODATA);
}

#[test]
fn reading_changes_no_access_time_and_setting_one_lasts() {
    let lab = Lab::mounted(1, 64);
    let path = lab.mountpoint.join("f");
    fs::write(&path, "content").unwrap();
    let set = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
    File::open(&path).unwrap().set_times(fs::FileTimes::new().set_accessed(set)).unwrap();
    ok(&lab.umount());
    for option in ["", "noatime,relatime,nodiratime"] {
        ok(&lab.mount_devices(&lab.devices(), option));
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
        assert_eq!(fs::metadata(&path).unwrap().accessed().unwrap(), set, "{option}");
        assert!(options(&lab).contains(&"noatime".to_owned()), "what is not kept is not claimed");
        ok(&lab.umount());
    }
    crate::lab::fails(&lab.mount_devices(&lab.devices(), "strictatime"), 2, "mount-option-unknown");
}

#[test]
fn a_mount_nobody_uses_ends_by_itself_when_asked_to() {
    let lab = Lab::new(2, 64);
    ok(&lab.create());
    ok(&lab.mount_devices(&lab.devices(), "idle=1s"));
    let path = lab.mountpoint.join("deed");
    fs::write(&path, "kept").unwrap();
    let mounted = || fs::metadata(&path).is_ok();
    // An open file holds it, and so does being looked at again and again, although the kernel answers that alone.
    let open = File::open(&path).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(mounted());
    drop(open);
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(100));
        assert!(mounted());
    }
    let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    wait_for("the mount to end", || !table().contains(lab.mountpoint.to_str().unwrap()));
    ok(&lab.mount());
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn the_kernel_remounts_read_only_and_back() {
    let lab = Lab::mounted(2, 64);
    let path = lab.mountpoint.join("deed");
    let remount = |how| run(Command::new("mount").args(["-i", "-o", how]).arg(&lab.mountpoint));
    let open = File::create(&path).unwrap();
    assert!(!remount("remount,ro").status.success(), "a file is open for writing");
    open.write_all_at(b"kept", 0).unwrap();
    drop(open);
    ok(&remount("remount,ro"));
    refused(File::create(lab.mountpoint.join("new")), libc::EROFS);
    refused(OpenOptions::new().write(true).open(&path), libc::EROFS);
    refused(fs::set_permissions(&path, Permissions::from_mode(0o600)), libc::EROFS);
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    ok(&remount("remount,rw"));
    fs::write(&path, "changed").unwrap();
    ok(&lab.umount());
    ok(&lab.mount());
    assert_eq!(fs::read_to_string(&path).unwrap(), "changed");
}

#[test]
fn names_are_any_bytes_and_stay_what_they_are() {
    let lab = Lab::mounted(1, 64);
    let names: Vec<Vec<u8>> = vec![
        vec![0xff, 0xfe],
        vec![0xed, 0xa0, 0x80],
        "caf\u{e9}".into(),
        "cafe\u{301}".into(),
        "Caf\u{e9}".into(),
        b"\n\t\x01 \x7f\\".to_vec(),
        b"-rf *".to_vec(),
        b"...".to_vec(),
        (1..=255).filter(|byte| *byte != b'/').collect(),
        [b"x".to_vec(), vec![0xff; 254]].concat(),
    ];
    for name in &names {
        fs::write(lab.mountpoint.join(OsStr::from_bytes(name)), name).unwrap();
    }
    ok(&lab.umount());
    ok(&lab.check());
    ok(&lab.mount());
    let mut found: Vec<Vec<u8>> =
        fs::read_dir(&lab.mountpoint).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    found.sort();
    let mut expected = names.clone();
    expected.sort();
    assert_eq!(found, expected);
    for name in &names {
        assert_eq!(&fs::read(lab.mountpoint.join(OsStr::from_bytes(name))).unwrap(), name);
    }
}

#[test]
fn a_volume_that_fills_while_data_is_on_its_way_keeps_what_was_durable() {
    let lab = Lab::mounted(2, 64);
    let durable = lab.mountpoint.join("durable");
    fs::write(&durable, vec![5; 8 << 20]).unwrap();
    File::open(&durable).unwrap().sync_all().unwrap();
    // dd does not fsync here: what close(2) says is all it has.
    let of = format!("of={}", lab.mountpoint.join("fill").display());
    let out = run(Command::new("dd").args(["if=/dev/zero", &of, "bs=1M", "count=100"]));
    assert!(!out.status.success() && stderr(&out).contains("No space left"), "{}", stderr(&out));
    let late = File::create(lab.mountpoint.join("late")).unwrap();
    refused(late.write_all_at(&vec![1; 8 << 20], 0).and_then(|()| late.sync_all()), libc::ENOSPC);
    drop(late);
    lab.kill_daemon();
    ok(&lab.mount());
    assert!(fs::read(&durable).unwrap() == vec![5; 8 << 20]);
    fs::remove_file(lab.mountpoint.join("fill")).unwrap();
    fs::write(lab.mountpoint.join("late"), "there is room again").unwrap();
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn ten_thousand_files_are_open_at_once() {
    let lab = Lab::mounted(1, 128);
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: most, maximum: most }).unwrap();
    let open = |number: u64| {
        let path = lab.mountpoint.join(format!("file-{number}"));
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.write_all_at(&number.to_le_bytes(), number).unwrap();
        file
    };
    let files: Vec<File> = (0..10_000).map(open).collect();
    for number in (0..10_000).step_by(2) {
        fs::remove_file(lab.mountpoint.join(format!("file-{number}"))).unwrap();
    }
    for (number, file) in (0u64..).zip(&files) {
        let mut found = [0; 8];
        file.read_exact_at(&mut found, number).unwrap();
        assert_eq!(u64::from_le_bytes(found), number);
        assert_eq!(file.metadata().unwrap().nlink(), number % 2);
    }
    drop(files);
    assert_eq!(fs::read_dir(&lab.mountpoint).unwrap().count(), 5_000);
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn a_tree_is_deeper_than_any_path_is_long() {
    const DEPTH: usize = 2000;
    let lab = Lab::mounted(1, 64);
    let top = File::open(&lab.mountpoint).unwrap();
    let (folder, look) = (Mode::from_raw_mode(0o755), OFlags::RDONLY | OFlags::DIRECTORY);
    mkdirat(&top, "a", folder).unwrap();
    let mut at = openat(&top, "a", look, Mode::empty()).unwrap();
    for _ in 1..DEPTH {
        mkdirat(&at, "folder", folder).unwrap();
        at = openat(&at, "folder", look, Mode::empty()).unwrap();
    }
    openat(&at, "end", OFlags::CREATE | OFlags::WRONLY, folder).unwrap();
    // A folder that far down cannot be put below itself, nor above it be removed.
    refused(renameat(&top, "a", &at, "b").map_err(io::Error::from), libc::EINVAL);
    drop((at, top));
    ok(&lab.umount());
    ok(&lab.check());
    ok(&lab.mount());
    let count = "find a -type d | wc -l; find a -name end | wc -l; rm -r a; ls | wc -l";
    let out = run(Command::new("sh").args(["-euc", count]).current_dir(&lab.mountpoint));
    ok(&out);
    assert_eq!(String::from_utf8_lossy(&out.stdout).split_whitespace().collect::<Vec<_>>(), ["2000", "1", "0"]);
}

#[test]
fn a_file_of_100_gib_costs_what_is_in_it() {
    let lab = Lab::mounted(1, 64);
    let path = lab.mountpoint.join("sparse");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let places = [0, 7 << 30, 50 << 30, (100 << 30) - 4096];
    for place in places {
        file.write_all_at(&[9; 4096], place).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    let copy = lab.mountpoint.join("copy");
    ok(&run(Command::new("cp").arg("--sparse=always").args([&path, &copy])));
    ok(&lab.umount());
    ok(&lab.mount());
    for path in [&path, &copy] {
        let file = File::open(path).unwrap();
        let found = file.metadata().unwrap();
        assert_eq!((found.len(), found.blocks()), (100 << 30, 4 * 8), "{}", path.display());
        let mut next = 0;
        for place in places {
            assert_eq!(seek(&file, SeekFrom::Data(next)).unwrap(), place);
            next = seek(&file, SeekFrom::Hole(place)).unwrap();
            assert_eq!(next, place + 4096);
        }
        let mut bytes = [1; 8192];
        file.read_exact_at(&mut bytes, (50 << 30) - 4096).unwrap();
        assert!(bytes[..4096] == [0; 4096] && bytes[4096..] == [9; 4096]);
    }
}

/// The same inode whatever leads to it: two names, a file descriptor, a descriptor that outlives its name.
#[test]
fn a_file_renamed_over_keeps_its_readers() {
    let lab = Lab::mounted(1, 64);
    let at = |name: &str| lab.mountpoint.join(name);
    let replace = |content: &str| {
        fs::write(at("new"), content).unwrap();
        fs::rename(at("new"), at("file")).unwrap();
    };
    replace("first");
    let readers: Vec<File> = (0..10)
        .map(|round| {
            let reader = OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(at("file")).unwrap();
            replace(&format!("round {round}"));
            reader
        })
        .collect();
    let contents: Vec<String> = readers.iter().map(|file| io::read_to_string(file).unwrap()).collect();
    assert_eq!(contents[0], "first");
    assert!(contents[1..].iter().enumerate().all(|(round, found)| *found == format!("round {round}")));
    assert!(readers.iter().all(|file| file.metadata().unwrap().nlink() == 0));
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "round 9");
    assert_eq!(names(&lab.mountpoint), ["file"]);
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
