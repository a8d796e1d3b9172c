#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn an_orphan_lives_while_it_is_known() {
    let fs = new_fs();
    let attr = fs.mknod(&USER, Ino::ROOT, b"f", 0o600, 0).unwrap();
    fs.write(attr.ino, 0, b"secret").unwrap();
    fs.unlink(Ino::ROOT, b"f").unwrap();
    assert_eq!(fs.getattr(attr.ino).unwrap().nlink, 0);
    fails(fs.link(attr.ino, Ino::ROOT, b"g"), libc::ENOENT);
    assert_eq!(read_all(&fs, attr.ino), b"secret");
    fs.forget(attr.ino, 1);
    fails(fs.getattr(attr.ino), libc::ESTALE);
    sound(&fs);
}

#[test]
fn a_file_that_nobody_knows_goes_with_its_name() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.write(ino, 0, b"x").unwrap();
    fs.forget(ino, 1);
    fs.unlink(Ino::ROOT, b"f").unwrap();
    fails(fs.getattr(ino), libc::ESTALE);
    // Counts that were never given are not taken back.
    fs.forget(ino, 5);
    sound(&fs);
}

/// Whoever removes a file of many extents has others to serve: the rest is freed by somebody else. Whoever needs the space
/// meanwhile waits for it.
#[test]
fn the_space_of_a_large_orphan_is_waited_for() {
    let fs = sized_fs(8192);
    let ino = new_file(&fs, "scattered");
    // Every other block: no two extents become one.
    for at in 0..3000 {
        fs.write(ino, at * 8192, &[1; 4096]).unwrap();
    }
    let fill = new_file(&fs, "fill");
    let error = (0..).find_map(|at| fs.write(fill, at << 18, &[2; 1 << 18]).err()).unwrap();
    assert_eq!(error.errno(), libc::ENOSPC);
    fs.unlink(Ino::ROOT, b"scattered").unwrap();
    let orphan = fs.forget_soon(ino, 1).expect("more extents than are freed at once");
    assert!(fs.getattr(ino).is_ok_and(|attr| attr.nlink == 0 && attr.blocks < 3000 * 8), "a part is freed");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            fs.free_orphan(orphan);
        });
        let needed = new_file(&fs, "needed");
        for at in 0..2500 {
            assert_eq!(fs.write(needed, at * 4096, &[3; 4096]).unwrap(), 4096, "block {at}");
        }
    });
    fails(fs.getattr(ino), libc::ESTALE);
    sound(&fs);
}

#[test]
fn a_mount_finishes_what_a_crash_interrupted() {
    let fs = new_fs();
    let (orphan, cut) = (new_file(&fs, "a"), new_file(&fs, "b"));
    let dir = new_folder(&fs, Ino::ROOT, "d");
    for ino in [orphan, cut] {
        fs.write(ino, 0, &[1; 20_000]).unwrap();
    }
    fs.setxattr(orphan, b"user.a", b"1", 0).unwrap();
    fs.unlink(Ino::ROOT, b"a").unwrap();
    fs.rmdir(Ino::ROOT, b"d").unwrap();
    fs.change(|tx| {
        let mut inode = existing(tx, cut)?;
        inode.size = 4096;
        inode.set(crate::meta::FLAG_TRIM, true);
        tx.put_inode(&inode);
        Ok(tx.set_trim(cut, Some(1))?)
    })
    .unwrap();
    fs.sync().unwrap();
    let fs = remount(fs);
    fails(fs.getattr(orphan), libc::ESTALE);
    fails(fs.getattr(dir), libc::ESTALE);
    assert_eq!(fs.getattr(cut).unwrap().blocks, 8);
    assert_eq!(truncate(&fs, cut, 20_000).size, 20_000);
    assert!(read_all(&fs, cut)[4096..].iter().all(|byte| *byte == 0));
    sound(&fs);
}

#[test]
fn a_truncation_that_did_not_finish_is_finished_before_the_file_grows() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.write(ino, 0, &[1; 20_000]).unwrap();
    fs.change(|tx| {
        let mut inode = existing(tx, ino)?;
        inode.size = 4096;
        inode.set(crate::meta::FLAG_TRIM, true);
        tx.put_inode(&inode);
        Ok(tx.set_trim(ino, Some(1))?)
    })
    .unwrap();
    fs.write(ino, 16_384, &[2; 4096]).unwrap();
    assert!(read_all(&fs, ino)[4096..16_384].iter().all(|byte| *byte == 0));
    sound(&fs);
}

#[test]
fn sync_keeps_and_a_crash_forgets_the_rest() {
    let fs = new_fs();
    assert!(fs.dirty_since().is_none());
    let kept = new_file(&fs, "kept");
    fs.write(kept, 0, b"durable").unwrap();
    assert!(fs.dirty_since().is_some());
    fs.sync().unwrap();
    assert!(fs.dirty_since().is_none());
    fs.sync().unwrap();
    let lost = new_file(&fs, "lost");
    assert!(fs.dirty_since().is_some());
    let fs = remount(fs);
    assert_eq!(names(&fs, Ino::ROOT), [(b"kept".to_vec(), Kind::File)]);
    assert_eq!(read_all(&fs, kept), b"durable");
    assert!(new_file(&fs, "new") > lost, "inode numbers are not used again");
}

#[test]
fn a_store_that_takes_no_writes_is_read_only() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.write(ino, 0, b"here").unwrap();
    fs.sync().unwrap();
    fs.store.poison_quietly("test".into());
    fails(fs.write(ino, 0, b"x"), libc::EROFS);
    fails(fs.mkdir(&USER, Ino::ROOT, b"d", 0o755), libc::EROFS);
    fails(fs.setattr(ino, &SetAttr::default()), libc::EROFS);
    fails(fs.unlink(Ino::ROOT, b"f"), libc::EROFS);
    fails(fs.rename(Ino::ROOT, b"f", Ino::ROOT, b"g", RenameFlags::Plain), libc::EROFS);
    fails(fs.setxattr(ino, b"user.a", b"", 0), libc::EROFS);
    fails(fs.fallocate(ino, 0, 1, 0), libc::EROFS);
    assert_eq!(read_all(&fs, ino), b"here");
    assert_eq!(fs.lookup(Ino::ROOT, b"f").unwrap().ino, ino);
}

#[test]
fn attributes_are_set_all_at_once() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.write(ino, 0, b"0123456789").unwrap();
    let at = Time { s: -5, ns: 999_999_999 };
    let set = SetAttr {
        mode: Some(0o104_711),
        uid: Some(1),
        gid: Some(u32::MAX - 1),
        size: Some(3),
        atime: Some(SetTime::At(at)),
        mtime: Some(SetTime::At(Time { s: 1 << 33, ns: 1 })),
        ctime: None,
    };
    let attr = fs.setattr(ino, &set).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.size), (0o104_711, 1, u32::MAX - 1, 3));
    assert_eq!((attr.atime, attr.mtime), (at, Time { s: 1 << 33, ns: 1 }));
    assert_eq!(fs.getattr(ino).unwrap(), attr);
    let ctime = Time { s: 7, ns: 0 };
    assert_eq!(fs.setattr(ino, &SetAttr { ctime: Some(ctime), ..SetAttr::default() }).unwrap().ctime, ctime);
    let attr = truncate(&fs, ino, 2);
    assert!(attr.ctime == attr.mtime && attr.ctime.s > 7);
    assert_eq!(truncate(&fs, ino, 2).mtime, attr.mtime);
    fails(fs.setattr(Ino::ROOT, &SetAttr { size: Some(0), ..SetAttr::default() }), libc::EISDIR);
    let fifo = fs.mknod(&USER, Ino::ROOT, b"p", 0o010_644, 0).unwrap().ino;
    fails(fs.setattr(fifo, &SetAttr { size: Some(0), ..SetAttr::default() }), libc::EINVAL);
}
