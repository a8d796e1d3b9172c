#![allow(clippy::unwrap_used)]

mod content;
mod damage;
mod full;
mod life;
mod names;
mod room;
mod xattrs;

use std::{fmt::Debug, ops::Deref, sync::Arc};

use super::*;
use crate::{
    crypto::VolumeKey,
    device::{BlockDevice, memory::MemoryDevice},
    label::{self, Root},
    limits::LABEL_SIZE,
    mirror::{Mirror, State},
    pages::StoreOptions,
    policy::laboratory,
    space::Bitmap,
    units::{Run, Uuid},
};

/// Blocks of a test's volume.
const BLOCKS: u64 = 4096;

const VOLUME: Uuid = Uuid([1; 16]);

const USER: Caller = Caller { uid: 1000, gid: 100, umask: 0o022 };

/// A filesystem on one replica in memory.
struct Lab {
    fs: Fs,
    device: Arc<MemoryDevice>,
    key: VolumeKey,
    blocks: u64,
    epoch: u32,
}

impl Deref for Lab {
    type Target = Fs;

    fn deref(&self) -> &Fs {
        &self.fs
    }
}

fn open_store(device: &Arc<MemoryDevice>, key: &VolumeKey, blocks: u64, root: Root, epoch: u32) -> Arc<Store> {
    let approved = laboratory::approve(std::slice::from_ref(device)).remove(0);
    let mirror = Mirror::new(vec![(Some(approved), State::InSync)]).unwrap();
    mirror.cache_reads(1 << 20);
    let options = StoreOptions {
        keys: key.keys(VOLUME),
        volume: VOLUME,
        total_blocks: blocks,
        device_bytes: vec![device.size_bytes()],
        root,
        epoch,
    };
    Store::open(Arc::new(mirror), options).unwrap()
}

fn sized_fs(blocks: u64) -> Lab {
    let device = Arc::new(MemoryDevice::new("m0", blocks * BLOCK_SIZE as u64 + 2 * LABEL_SIZE));
    let key = VolumeKey::generate().unwrap();
    let store = open_store(&device, &key, blocks, Root::default(), 1);
    let fs = Fs::format(store, 0o755, 0, 0).unwrap();
    fs.sync().unwrap();
    Lab { fs, device, key, blocks, epoch: 1 }
}

fn new_fs() -> Lab {
    sized_fs(BLOCKS)
}

/// Another mount of the same volume. What was not synced is lost.
fn remount(lab: Lab) -> Lab {
    let Lab { fs, device, key, blocks, epoch } = lab;
    drop(fs);
    let root = label::read_roots(&*device, device.size_bytes(), &key.keys(VOLUME), VOLUME).unwrap()[0];
    let epoch = epoch + 1;
    let fs = Fs::open(open_store(&device, &key, blocks, root, epoch)).unwrap();
    Lab { fs, device, key, blocks, epoch }
}

/// Commits; then the blocks in use must be those of the pages and of the extents, no more and no less.
#[track_caller]
fn nothing_is_lost(lab: &Lab) {
    lab.checkpoint().unwrap();
    let mut used = Bitmap::new(lab.blocks);
    let mut units = lab.store.units();
    let mut visit = |unit: &pages::Unit| {
        used.set(Run::new(unit.at.addr, 1)).unwrap();
        Ok::<bool, pages::Error>(true)
    };
    while units.chunk(&mut visit).unwrap() {}
    let mut last: Option<Scanned> = None;
    loop {
        let found = lab.scan(last.as_ref(), 10).unwrap();
        for scanned in &found {
            used.set(scanned.extent.run()).unwrap();
        }
        match found.into_iter().next_back() {
            Some(scanned) => last = Some(scanned),
            None => break,
        }
    }
    assert_eq!(used.allocated_runs(), lab.store.persisted().allocated_runs());
}

/// Waits until the clock of the times has moved on.
fn tick() {
    let before = now();
    while now() == before {
        std::thread::yield_now();
    }
}

fn new_file(fs: &Fs, name: &str) -> Ino {
    fs.mknod(&USER, Ino::ROOT, name.as_bytes(), 0o644, 0).unwrap().ino
}

fn new_folder(fs: &Fs, parent: Ino, name: &str) -> Ino {
    fs.mkdir(&USER, parent, name.as_bytes(), 0o755).unwrap().ino
}

fn read_all(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(fs.read(ino, 0, usize::MAX, &mut Vec::new()).unwrap());
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
