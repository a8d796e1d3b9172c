#![allow(clippy::unwrap_used)]

mod content;
mod life;
mod names;
mod xattrs;

use std::{fmt::Debug, sync::Arc};

use super::*;

/// Blocks of a test's volume.
const BLOCKS: u64 = 4096;

const USER: Caller = Caller { uid: 1000, gid: 100, umask: 0o022 };

/// An empty store: the only place that knows what it is made of.
fn store(blocks: u64) -> Arc<Store> {
    Store::stand_in(blocks)
}

fn new_fs() -> Fs {
    Fs::format(store(BLOCKS), 0o755, 0, 0).unwrap()
}

/// Another mount of the same volume. What was not synced is lost.
fn remount(fs: Fs) -> Fs {
    let store = Arc::clone(&fs.store);
    drop(fs);
    Fs::open(store).unwrap()
}

fn new_file(fs: &Fs, name: &str) -> Ino {
    fs.mknod(&USER, Ino::ROOT, name.as_bytes(), 0o644, 0).unwrap().ino
}

fn new_folder(fs: &Fs, parent: Ino, name: &str) -> Ino {
    fs.mkdir(&USER, parent, name.as_bytes(), 0o755).unwrap().ino
}

fn read_all(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut out = Vec::new();
    fs.read(ino, 0, usize::MAX, &mut out).unwrap();
    out
}

fn truncate(fs: &Fs, ino: Ino, size: u64) -> Attr {
    fs.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap()
}

#[track_caller]
fn fails<T: Debug>(result: Result<T>, errno: i32) {
    assert_eq!(result.unwrap_err().errno(), errno);
}

#[track_caller]
fn sound(fs: &Fs) {
    assert_eq!(fs.self_check().unwrap(), Vec::<String>::new());
}

/// Names and kinds in a folder, sorted, without "." and "..".
fn names(fs: &Fs, ino: Ino) -> Vec<(Vec<u8>, Kind)> {
    let mut found = Vec::new();
    fs.readdir(ino, 2, false, &mut |entry| {
        found.push((entry.name.to_vec(), entry.kind));
        true
    })
    .unwrap();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}
