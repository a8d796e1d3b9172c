#![allow(clippy::unwrap_used)]

use super::*;
use crate::limits::{LINK_MAX, NAME_MAX};

#[test]
fn names_are_255_bytes_of_anything_but_slash_and_nul() {
    let fs = new_fs();
    let long = vec![0xff; NAME_MAX];
    let ino = fs.mknod(&USER, Ino::ROOT, &long, 0o644, 0).unwrap().ino;
    assert_eq!(fs.lookup(Ino::ROOT, &long).unwrap().ino, ino);
    fails(fs.mknod(&USER, Ino::ROOT, &[b'a'; NAME_MAX + 1], 0o644, 0), libc::ENAMETOOLONG);
    fails(fs.lookup(Ino::ROOT, &[b'a'; NAME_MAX + 1]), libc::ENAMETOOLONG);
    fails(fs.mkdir(&USER, Ino::ROOT, b"a/b", 0o755), libc::EINVAL);
    fails(fs.mkdir(&USER, Ino::ROOT, b"a\0b", 0o755), libc::EINVAL);
    fails(fs.mkdir(&USER, Ino::ROOT, b"", 0o755), libc::ENOENT);
    fails(fs.mkdir(&USER, Ino::ROOT, b"..", 0o755), libc::EEXIST);
    fails(fs.mkdir(&USER, Ino::ROOT, &long, 0o755), libc::EEXIST);
    fails(fs.lookup(ino, b"a"), libc::ENOTDIR);
    fails(fs.lookup(Ino::ROOT, b"a"), libc::ENOENT);
    fails(fs.lookup(Ino(999), b"a"), libc::ESTALE);
    fails(fs.mknod(&USER, ino, b"a", 0o644, 0), libc::ENOTDIR);
    sound(&fs);
}

#[test]
fn kinds_modes_and_numbers_are_kept() {
    let fs = new_fs();
    for (name, mode, rdev, kept) in [
        ("fifo", 0o010_666, 5, 0),
        ("char", 0o020_600, 0x103, 0x103),
        ("block", 0o060_600, 0x801, 0x801),
        ("socket", 0o140_755, 5, 0),
        ("file", 0o106_777, 5, 0),
    ] {
        let attr = fs.mknod(&USER, Ino::ROOT, name.as_bytes(), mode, rdev).unwrap();
        assert_eq!((attr.mode, attr.rdev, attr.nlink), (mode & !USER.umask, kept, 1), "{name}");
        assert_eq!((attr.uid, attr.gid, attr.size), (1000, 100, 0));
        assert_eq!(attr.kind, Kind::from_mode(mode).unwrap());
        assert_eq!(fs.lookup(Ino::ROOT, name.as_bytes()).unwrap(), attr);
    }
    fails(fs.mknod(&USER, Ino::ROOT, b"d", 0o040_755, 0), libc::EINVAL);
    let link = fs.symlink(&USER, Ino::ROOT, b"link", b"to/there").unwrap();
    assert_eq!((link.mode, link.size), (0o120_777, 8));
    assert_eq!(fs.readlink(link.ino).unwrap(), b"to/there");
    fails(fs.readlink(Ino::ROOT), libc::EINVAL);
    fails(fs.symlink(&USER, Ino::ROOT, b"l", b""), libc::ENOENT);
    fails(fs.symlink(&USER, Ino::ROOT, b"l", &[b'a'; 4096]), libc::ENAMETOOLONG);
    sound(&fs);
}

#[test]
fn a_setgid_folder_gives_its_group() {
    let fs = new_fs();
    let dir = new_folder(&fs, Ino::ROOT, "d");
    let set = SetAttr { mode: Some(0o2755), gid: Some(7), ..SetAttr::default() };
    fs.setattr(dir, &set).unwrap();
    let file = fs.mknod(&USER, dir, b"f", 0o644, 0).unwrap();
    assert_eq!((file.gid, file.mode), (7, 0o100_644));
    let sub = fs.mkdir(&USER, dir, b"s", 0o755).unwrap();
    assert_eq!((sub.gid, sub.mode), (7, 0o042_755));
}

#[test]
fn links_count_and_stop_at_the_limit() {
    let fs = new_fs();
    let ino = new_file(&fs, "a");
    assert_eq!(fs.link(ino, Ino::ROOT, b"b").unwrap().nlink, 2);
    fails(fs.link(ino, Ino::ROOT, b"b"), libc::EEXIST);
    fails(fs.link(Ino::ROOT, Ino::ROOT, b"c"), libc::EPERM);
    fs.unlink(Ino::ROOT, b"a").unwrap();
    assert_eq!(fs.getattr(ino).unwrap().nlink, 1);
    sound(&fs);
    fs.change(|tx| {
        let mut inode = existing(tx, ino)?;
        inode.nlink = LINK_MAX;
        tx.put_inode(&inode);
        Ok(())
    })
    .unwrap();
    fails(fs.link(ino, Ino::ROOT, b"c"), libc::EMLINK);
}

#[test]
fn removing_checks_the_kind_and_what_is_inside() {
    let fs = new_fs();
    let dir = new_folder(&fs, Ino::ROOT, "d");
    let sub = new_folder(&fs, dir, "s");
    assert_eq!(fs.getattr(dir).unwrap().nlink, 3);
    new_file(&fs, "f");
    fails(fs.unlink(Ino::ROOT, b"d"), libc::EISDIR);
    fails(fs.rmdir(Ino::ROOT, b"f"), libc::ENOTDIR);
    fails(fs.rmdir(Ino::ROOT, b"d"), libc::ENOTEMPTY);
    fails(fs.rmdir(dir, b"."), libc::EINVAL);
    fails(fs.rmdir(dir, b".."), libc::ENOTEMPTY);
    fails(fs.rmdir(dir, b"x"), libc::ENOENT);
    fs.rmdir(dir, b"s").unwrap();
    assert_eq!(fs.getattr(dir).unwrap().nlink, 2);
    // The kernel still knows the removed folder.
    assert_eq!(fs.getattr(sub).unwrap().nlink, 0);
    fails(fs.mkdir(&USER, sub, b"x", 0o755), libc::ENOENT);
    fs.forget(sub, 1);
    fails(fs.getattr(sub), libc::ESTALE);
    sound(&fs);
}

#[test]
fn changing_names_stamps_the_folder_and_the_inode() {
    let fs = new_fs();
    let (dir, other) = (new_folder(&fs, Ino::ROOT, "d"), new_folder(&fs, Ino::ROOT, "e"));
    let stamps = |ino| {
        let attr = fs.getattr(ino).unwrap();
        (attr.mtime, attr.ctime)
    };
    let file = fs.mknod(&USER, dir, b"f", 0o644, 0).unwrap();
    assert_eq!(stamps(dir), (file.mtime, file.ctime));
    let before = (stamps(dir), stamps(other), stamps(file.ino));
    tick();
    fs.rename(dir, b"f", other, b"g", RenameFlags::Plain).unwrap();
    let after = (stamps(dir), stamps(other), stamps(file.ino));
    assert!(before.0 < after.0 && before.0.1 < after.0.1);
    assert!(before.1 < after.1 && before.1.1 < after.1.1);
    assert!(before.2.0 == after.2.0 && before.2.1 < after.2.1);
    tick();
    fs.link(file.ino, dir, b"h").unwrap();
    assert!(stamps(file.ino).1 > after.2.1 && stamps(dir) > after.0);
    let before = stamps(file.ino).1;
    tick();
    fs.unlink(dir, b"h").unwrap();
    assert!(stamps(file.ino).1 > before);
}

#[test]
fn renaming_replaces_files_and_empty_folders() {
    let fs = new_fs();
    let (a, b) = (new_file(&fs, "a"), new_file(&fs, "b"));
    fs.forget(b, 1);
    fs.rename(Ino::ROOT, b"a", Ino::ROOT, b"b", RenameFlags::Plain).unwrap();
    assert_eq!(fs.lookup(Ino::ROOT, b"b").unwrap().ino, a);
    fails(fs.getattr(b), libc::ESTALE);
    fails(fs.rename(Ino::ROOT, b"a", Ino::ROOT, b"c", RenameFlags::Plain), libc::ENOENT);
    let (d, e) = (new_folder(&fs, Ino::ROOT, "d"), new_folder(&fs, Ino::ROOT, "e"));
    new_folder(&fs, e, "s");
    fails(fs.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", RenameFlags::Plain), libc::ENOTEMPTY);
    fails(fs.rename(Ino::ROOT, b"d", Ino::ROOT, b"b", RenameFlags::Plain), libc::ENOTDIR);
    fails(fs.rename(Ino::ROOT, b"b", Ino::ROOT, b"d", RenameFlags::Plain), libc::EISDIR);
    fs.rename(Ino::ROOT, b"d", e, b"s", RenameFlags::Plain).unwrap();
    assert_eq!((fs.getattr(e).unwrap().nlink, fs.getattr(Ino::ROOT).unwrap().nlink), (3, 3));
    assert_eq!(fs.lookup(d, b"..").unwrap().ino, e);
    sound(&fs);
}

#[test]
fn renaming_to_another_name_of_the_same_inode_does_nothing() {
    let fs = new_fs();
    let ino = new_file(&fs, "a");
    fs.link(ino, Ino::ROOT, b"b").unwrap();
    for (from, to) in [(b"a", b"b"), (b"a", b"a")] {
        fs.rename(Ino::ROOT, from, Ino::ROOT, to, RenameFlags::Plain).unwrap();
    }
    assert_eq!(names(&fs, Ino::ROOT).len(), 2);
    sound(&fs);
}

#[test]
fn a_folder_cannot_move_into_itself() {
    let fs = new_fs();
    let a = new_folder(&fs, Ino::ROOT, "a");
    let b = new_folder(&fs, a, "b");
    let c = new_folder(&fs, b, "c");
    fails(fs.rename(Ino::ROOT, b"a", a, b"x", RenameFlags::Plain), libc::EINVAL);
    fails(fs.rename(Ino::ROOT, b"a", c, b"x", RenameFlags::Plain), libc::EINVAL);
    fails(fs.rename(Ino::ROOT, b"a", b, b"c", RenameFlags::Plain), libc::EINVAL);
    fails(fs.rename(Ino::ROOT, b"a", b, b"c", RenameFlags::Exchange), libc::EINVAL);
    fails(fs.rename(b, b"c", Ino::ROOT, b"a", RenameFlags::Exchange), libc::EINVAL);
    fails(fs.rename(b, b"c", Ino::ROOT, b"a", RenameFlags::Plain), libc::ENOTEMPTY);
    fs.rename(a, b"b", Ino::ROOT, b"b", RenameFlags::Plain).unwrap();
    fs.rename(Ino::ROOT, b"a", c, b"a", RenameFlags::Plain).unwrap();
    sound(&fs);
}

#[test]
fn the_flags_of_renaming() {
    let fs = new_fs();
    let dir = new_folder(&fs, Ino::ROOT, "d");
    let (a, s) = (new_file(&fs, "a"), new_folder(&fs, dir, "s"));
    fails(fs.rename(Ino::ROOT, b"a", dir, b"s", RenameFlags::NoReplace), libc::EEXIST);
    fails(fs.rename(Ino::ROOT, b"a", dir, b"x", RenameFlags::Exchange), libc::ENOENT);
    fs.rename(Ino::ROOT, b"a", dir, b"s", RenameFlags::Exchange).unwrap();
    assert_eq!(fs.lookup(Ino::ROOT, b"a").unwrap().ino, s);
    assert_eq!(fs.lookup(dir, b"s").unwrap().ino, a);
    assert_eq!(fs.lookup(s, b"..").unwrap().ino, Ino::ROOT);
    assert_eq!((fs.getattr(dir).unwrap().nlink, fs.getattr(Ino::ROOT).unwrap().nlink), (2, 4));
    sound(&fs);
    fs.rename(dir, b"s", Ino::ROOT, b"b", RenameFlags::NoReplace).unwrap();
    fs.rename(Ino::ROOT, b"b", Ino::ROOT, b"a", RenameFlags::Exchange).unwrap();
    assert_eq!(fs.lookup(Ino::ROOT, b"a").unwrap().ino, a);
    fs.rename(Ino::ROOT, b"a", dir, b"a", RenameFlags::Whiteout).unwrap();
    let whiteout = fs.lookup(Ino::ROOT, b"a").unwrap();
    assert_eq!((whiteout.kind, whiteout.rdev, whiteout.mode & 0o7777), (Kind::CharDevice, 0, 0));
    sound(&fs);
}

#[test]
fn a_listing_resumes_anywhere_and_counts_what_was_taken() {
    let fs = new_fs();
    let dir = new_folder(&fs, Ino::ROOT, "d");
    for i in 0..200 {
        let attr = fs.mknod(&USER, dir, format!("file {i}").as_bytes(), 0o644, 0).unwrap();
        fs.forget(attr.ino, 1);
    }
    let (mut cookie, mut found) = (0, Vec::new());
    loop {
        let (begin, mut room) = (found.len(), 7);
        fs.readdir(dir, cookie, true, &mut |entry| {
            assert_eq!(entry.attr.unwrap().ino, entry.ino);
            assert!(entry.next_cookie > cookie);
            room -= 1;
            if room > 0 {
                found.push((entry.name.to_vec(), entry.ino));
                cookie = entry.next_cookie;
            }
            room > 0
        })
        .unwrap();
        if found.len() == begin {
            break;
        }
        // Removing what was listed does not disturb the rest.
        let (name, ino) = found.last().unwrap();
        if !name.starts_with(b".") {
            fs.unlink(dir, name).unwrap();
            assert_eq!(fs.getattr(*ino).unwrap().nlink, 0);
            fs.forget(*ino, 1);
            fails(fs.getattr(*ino), libc::ESTALE);
        }
    }
    assert_eq!(found[..2], [(b".".to_vec(), dir), (b"..".to_vec(), Ino::ROOT)]);
    let mut names: Vec<_> = found.iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 202);
    sound(&fs);
}

#[test]
fn dot_and_dot_dot_resolve_file_handles() {
    let fs = new_fs();
    let dir = new_folder(&fs, Ino::ROOT, "d");
    let file = fs.mknod(&USER, dir, b"f", 0o644, 0).unwrap().ino;
    assert_eq!(fs.lookup(file, b".").unwrap().ino, file);
    assert_eq!(fs.lookup(dir, b"..").unwrap().ino, Ino::ROOT);
    assert_eq!(fs.lookup(Ino::ROOT, b"..").unwrap().ino, Ino::ROOT);
    fails(fs.lookup(file, b".."), libc::ENOTDIR);
    fs.forget(file, 2);
    fs.unlink(dir, b"f").unwrap();
    fails(fs.lookup(file, b"."), libc::ESTALE);
}

#[test]
fn the_files_below_a_path_are_found_once_each() {
    let fs = new_fs();
    let dir = new_folder(&fs, Ino::ROOT, "d");
    let below = new_folder(&fs, dir, "below");
    let mut files = Vec::new();
    for i in 0..700 {
        let ino = fs.mknod(&USER, dir, format!("file {i}").as_bytes(), 0o644, 0).unwrap().ino;
        fs.write(ino, 0, b"a word").unwrap();
        files.push(ino);
    }
    // A second name, and what is no file.
    fs.link(files[0], below, b"again").unwrap();
    fs.symlink(&USER, below, b"link", b"nowhere").unwrap();
    let beside = new_file(&fs, "beside");
    let found = |path: &str| fs.files_below(path.as_bytes(), &|| true);
    assert_eq!(found("/d").unwrap(), (files.clone(), 700));
    assert_eq!(found("d/below/").unwrap(), (vec![files[0]], 1));
    assert_eq!(found("/d/./file 3").unwrap(), (vec![files[3]], 1));
    assert_eq!(found("/").unwrap().0.len(), 701);
    assert!(found("/").unwrap().0.contains(&beside));
    fails(found("/d/nobody"), libc::ENOENT);
    fails(found("/beside/below"), libc::ENOTDIR);
    sound(&fs);
}
