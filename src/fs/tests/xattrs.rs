#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    fs::acl::tests::{extended, value},
    limits::{XATTR_BYTES_MAX, XATTR_VALUE_MAX},
};

const NO_ID: u32 = u32::MAX;

#[test]
fn attributes_are_set_listed_and_removed() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fails(fs.getxattr(ino, b"user.a"), libc::ENODATA);
    fails(fs.setxattr(ino, b"user.a", b"1", libc::XATTR_REPLACE), libc::ENODATA);
    fs.setxattr(ino, b"user.a", b"1", libc::XATTR_CREATE).unwrap();
    fails(fs.setxattr(ino, b"user.a", b"2", libc::XATTR_CREATE), libc::EEXIST);
    fs.setxattr(ino, b"user.a", b"2", libc::XATTR_REPLACE).unwrap();
    // Both is never true, and the errno says which of them it was.
    let both = libc::XATTR_CREATE | libc::XATTR_REPLACE;
    fails(fs.setxattr(ino, b"user.a", b"3", both), libc::EEXIST);
    fails(fs.setxattr(ino, b"user.b", b"3", both), libc::ENODATA);
    fails(fs.setxattr(ino, b"user.b", b"3", 4), libc::EINVAL);
    fs.setxattr(ino, b"security.b", b"", 0).unwrap();
    assert_eq!(fs.getxattr(ino, b"user.a").unwrap(), b"2");
    assert_eq!(fs.getxattr(ino, b"security.b").unwrap(), b"");
    assert_eq!(fs.listxattr(ino).unwrap(), b"security.b\0user.a\0");
    fs.removexattr(ino, b"user.a").unwrap();
    fails(fs.removexattr(ino, b"user.a"), libc::ENODATA);
    fs.removexattr(ino, b"security.b").unwrap();
    assert_eq!(fs.listxattr(ino).unwrap(), b"");
    sound(&fs);
}

#[test]
fn trusted_attributes_are_listed_for_those_who_may_see_them() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    for name in [&b"trusted.a"[..], b"trusted.b", b"user.a", b"user.trusted.b", b"security.c"] {
        fs.setxattr(ino, name, b"", 0).unwrap();
    }
    assert_eq!(fs.listxattr_as(ino, || true).unwrap(), fs.listxattr(ino).unwrap());
    assert_eq!(fs.listxattr_as(ino, || false).unwrap(), b"security.c\0user.a\0user.trusted.b\0");
    let plain = new_file(&fs, "plain");
    fs.setxattr(plain, b"user.a", b"", 0).unwrap();
    assert_eq!(fs.listxattr_as(plain, || unreachable!("there is nothing to hide")).unwrap(), b"user.a\0");
}

#[test]
fn attributes_have_bounds() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fails(fs.setxattr(ino, b"user.a", &vec![0; XATTR_VALUE_MAX + 1], 0), libc::E2BIG);
    fs.setxattr(ino, b"user.a", &vec![7; XATTR_VALUE_MAX], 0).unwrap();
    assert_eq!(fs.getxattr(ino, b"user.a").unwrap().len(), XATTR_VALUE_MAX);
    fails(fs.setxattr(ino, &[b'a'; 256], b"", 0), libc::ENAMETOOLONG);
    fails(fs.setxattr(ino, b"other.a", b"", 0), libc::EOPNOTSUPP);
    fails(fs.setxattr(ino, b"user.", b"", 0), libc::EINVAL);
    fails(fs.setxattr(ino, b"system.nfs4_acl", b"", 0), libc::EOPNOTSUPP);
    let name = |i: usize| [b"user.".to_vec(), format!("{i:0245}").into_bytes()].concat();
    let full = (0..).find(|i| fs.setxattr(ino, &name(*i), b"", 0).is_err()).unwrap();
    fails(fs.setxattr(ino, &name(full), b"", 0), libc::ENOSPC);
    assert!(fs.listxattr(ino).unwrap().len() <= 65536);
    fs.unlink(Ino::ROOT, b"f").unwrap();
    fs.forget(ino, 1);
    sound(&fs);
}

#[test]
fn the_attributes_of_an_inode_have_a_bound_all_together() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    let name = |i: u64| format!("user.{i}").into_bytes();
    let value = vec![7; XATTR_VALUE_MAX];
    let full = (0..).find(|i| fs.setxattr(ino, &name(*i), &value, 0).is_err()).unwrap();
    assert_eq!(full, XATTR_BYTES_MAX / XATTR_VALUE_MAX as u64 - 1, "names count, too");
    fails(fs.setxattr(ino, &name(full), &value, 0), libc::ENOSPC);
    // What replaces another takes that one's room.
    fs.setxattr(ino, &name(0), &value, libc::XATTR_REPLACE).unwrap();
    fs.removexattr(ino, &name(0)).unwrap();
    fs.setxattr(ino, &name(full), &value, 0).unwrap();
    // ACLs are beside it, with a bound of their own.
    fs.setxattr(ino, b"system.posix_acl_access", &extended(), 0).unwrap();
    sound(&fs);
}

#[test]
fn reserved_names_are_not_stored() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    for name in [&b"user.scelle.place"[..], b"user.scelle.x"] {
        fails(fs.setxattr(ino, name, b"forged", 0), libc::EPERM);
        fails(fs.removexattr(ino, name), libc::EPERM);
        fails(fs.getxattr(ino, name), libc::ENODATA);
    }
    fs.setxattr(ino, b"user.scelle", b"", 0).unwrap();
    assert_eq!(fs.listxattr(ino).unwrap(), b"user.scelle\0");
}

#[test]
fn what_was_written_when_is_known_without_reading() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.write(ino, 0, &[1; 10_000]).unwrap();
    fs.fallocate(ino, 1 << 20, 4096, 0).unwrap();
    let stored = fs.getattr(ino).unwrap().blocks * 512;
    let epoch = fs.written_before(ino, &(0..100).collect::<Vec<u32>>()).unwrap().unwrap();
    let first = epoch.iter().position(|bytes| *bytes == stored).unwrap();
    assert_eq!((epoch[0], stored), (4096, 4 * 4096), "what is reserved holds nothing that could be missing");
    assert!(epoch[..first].iter().all(|bytes| *bytes == 4096) && epoch[first..].iter().all(|bytes| *bytes == stored));
    assert_eq!(fs.written_before(Ino::ROOT, &[7]).unwrap(), None);
    fails(fs.written_before(Ino(999), &[]), libc::ESTALE);
}

#[test]
fn an_access_list_is_the_mode() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.setxattr(ino, acl::ACCESS, &extended(), 0).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mode, 0o100_774);
    let set = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    assert_eq!(fs.setattr(ino, &set).unwrap().mode, 0o100_640);
    let wanted = value(&[(1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (0x10, 4, NO_ID), (0x20, 0, NO_ID)]);
    assert_eq!(fs.getxattr(ino, acl::ACCESS).unwrap(), wanted);
    // A list that says no more than the mode is not kept.
    let minimal = value(&[(1, 7, NO_ID), (4, 1, NO_ID), (0x20, 0, NO_ID)]);
    fs.setxattr(ino, acl::ACCESS, &minimal, 0).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mode, 0o100_710);
    fails(fs.getxattr(ino, acl::ACCESS), libc::ENODATA);
    fs.removexattr(ino, acl::ACCESS).unwrap();
    fails(fs.setxattr(ino, acl::ACCESS, b"nonsense", 0), libc::EOPNOTSUPP);
    fails(fs.setxattr(ino, acl::DEFAULT, &minimal, 0), libc::EACCES);
    let link = fs.symlink(&USER, Ino::ROOT, b"l", b"f").unwrap().ino;
    fails(fs.setxattr(link, acl::ACCESS, &minimal, 0), libc::EOPNOTSUPP);
    sound(&fs);
}

#[test]
fn a_default_list_replaces_the_umask() {
    let fs = new_fs();
    let dir = new_folder(&fs, Ino::ROOT, "d");
    fs.setxattr(dir, acl::DEFAULT, &extended(), 0).unwrap();
    let caller = Caller { umask: 0o777, ..USER };
    let file = fs.mknod(&caller, dir, b"f", 0o666, 0).unwrap();
    assert_eq!(file.mode, 0o100_664);
    let inherited = value(&[(1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (0x10, 6, NO_ID), (0x20, 4, NO_ID)]);
    assert_eq!(fs.getxattr(file.ino, acl::ACCESS).unwrap(), inherited);
    fails(fs.getxattr(file.ino, acl::DEFAULT), libc::ENODATA);
    let sub = fs.mkdir(&caller, dir, b"s", 0o777).unwrap();
    assert_eq!(sub.mode, 0o040_774);
    assert_eq!(fs.getxattr(sub.ino, acl::DEFAULT).unwrap(), extended());
    assert_eq!(fs.symlink(&caller, dir, b"l", b"f").unwrap().mode, 0o120_777);
    // A trivial default list: the mode says it all.
    let minimal = value(&[(1, 7, NO_ID), (4, 5, NO_ID), (0x20, 0, NO_ID)]);
    fs.setxattr(dir, acl::DEFAULT, &minimal, 0).unwrap();
    let file = fs.mknod(&caller, dir, b"g", 0o666, 0).unwrap();
    assert_eq!(file.mode, 0o100_640);
    fails(fs.getxattr(file.ino, acl::ACCESS), libc::ENODATA);
    fs.setxattr(dir, acl::DEFAULT, &value(&[]), 0).unwrap();
    assert_eq!(fs.mknod(&USER, dir, b"h", 0o666, 0).unwrap().mode, 0o100_644);
    sound(&fs);
}

#[test]
fn regression_an_acl_by_a_stranger_to_the_group_takes_the_set_group_id_bit() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    let mode = |set: u32| {
        fs.setattr(ino, &SetAttr { mode: Some(set), gid: Some(100), ..SetAttr::default() }).unwrap();
    };
    for value in [extended(), value(&[(1, 7, NO_ID), (4, 7, NO_ID), (0x20, 7, NO_ID)])] {
        for (member, bit) in [(true, 0o2000), (false, 0)] {
            mode(0o2755);
            fs.setxattr_as(ino, acl::ACCESS, &value, 0, |gid| member && gid == 100).unwrap();
            assert_eq!(fs.getattr(ino).unwrap().mode & 0o2000, bit);
        }
    }
    // Another attribute has nothing to do with it.
    mode(0o2755);
    fs.setxattr_as(ino, b"user.a", b"", 0, |_| false).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mode & 0o2000, 0o2000);
    sound(&fs);
}
