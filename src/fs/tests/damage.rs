//! Blocks of the metadata that no replica can give: what they held is lost, and nothing else.

use super::*;
use crate::device::memory::Disk;
use crate::mirror::device_offset;
use crate::units::BlockAddr;
use std::collections::BTreeSet;

const FILES: usize = 1500;

fn name(i: usize) -> Vec<u8> {
    format!("a document of this court, number {i}").into_bytes()
}

/// Everything in the folder as the kernel lists it, call by call; and how the listing ended.
fn list(fs: &Fs, ino: Ino, plus: bool) -> (Vec<Vec<u8>>, Result<()>) {
    let mut no_attr = 0;
    let (mut found, mut cookie) = (Vec::new(), 0);
    loop {
        let mut room = 50;
        let listed = fs.readdir(ino, cookie, plus, &mut |entry| {
            if room == 0 {
                return false;
            }
            no_attr += usize::from(entry.attr.is_none());
            room -= 1;
            assert!(i64::try_from(entry.next_cookie).is_ok());
            found.push(entry.name.to_vec());
            cookie = entry.next_cookie;
            true
        });
        // A page holds so many rows of inodes, or all of them at its top.
        assert!(!plus || !(160..=FILES / 2).contains(&no_attr), "{no_attr}");
        if room == 50 {
            return (found, listed);
        }
    }
}

fn prepared() -> (Lab, Ino) {
    let lab = new_fs();
    let folder = new_folder(&lab, Ino::ROOT, "folder");
    for i in 0..FILES {
        lab.mknod(&USER, folder, &name(i), 0o644, 0).unwrap();
    }
    lab.checkpoint().unwrap();
    (lab, folder)
}

/// The blocks of units of a kind.
fn units_of(lab: &Lab, kind: crate::crypto::Kind) -> Vec<BlockAddr> {
    let (mut found, mut units) = (Vec::new(), lab.store.units());
    let mut visit = |unit: &pages::Unit| {
        if unit.at.kind == kind {
            found.push(unit.at.addr);
        }
        Ok::<bool, pages::Error>(true)
    };
    while units.chunk(&mut visit).unwrap() {}
    found
}

/// The same volume on a copy of its device with some blocks damaged; nothing when it does not open.
fn damaged(lab: &Lab, blocks: &[BlockAddr]) -> Result<Lab> {
    let mut disk: Disk = lab.device.disk();
    blocks.iter().for_each(|block| disk.write(device_offset(*block), &[0x5a; BLOCK_SIZE]));
    let device = Arc::new(MemoryDevice::from_disk("m0", disk));
    let root = label::read_roots(&*device, device.size_bytes(), &lab.key.keys(VOLUME), VOLUME).unwrap()[0];
    let epoch = lab.epoch + 1;
    let fs = Fs::open(open_store(&device, &lab.key, lab.blocks, root, epoch))?;
    Ok(Lab { fs, device, key: lab.key.clone(), blocks: lab.blocks, epoch })
}

#[test]
fn p4_a_folder_lists_all_names_but_those_that_were_in_a_damaged_block() {
    let (lab, folder) = prepared();
    let pages = units_of(&lab, crate::crypto::Kind::Page);
    let whole: BTreeSet<Vec<u8>> = list(&lab, folder, false).0.into_iter().collect();
    assert_eq!(whole.len(), FILES + 2);
    let (mut holes, mut refused, mut read_only, mut changed, mut asked_in_vain) = (0, 0, 0, 0, 0);
    for page in &pages {
        let Ok(lab) = damaged(&lab, &[*page]) else {
            refused += 1;
            continue;
        };
        if lab.getattr(folder).is_err() {
            // The row of the folder itself is lost, and of the folder that it is in.
            assert!(lab.getattr(Ino::ROOT).is_ok() && lab.lookup(Ino::ROOT, b"folder").is_err());
            assert!(lab.store.poisoned().is_some_and(|why| why.contains("the root folder")));
            continue;
        }
        for plus in [true, false] {
            let (names, end) = list(&lab, folder, plus);
            let found: BTreeSet<Vec<u8>> = names.iter().cloned().collect();
            assert_eq!(found.len(), names.len(), "a name came twice");
            assert!(found.is_subset(&whole));
            assert_eq!(end.is_err(), found.len() < whole.len(), "a listing is whole or says that it is not");
            if let Err(error) = end {
                assert_eq!(error.errno(), libc::EIO);
                holes += 1;
            }
            // A leaf of the B-tree, or all of them at its top.
            assert!(whole.len() - found.len() < 80 || found.len() < 80, "{} of {}", found.len(), whole.len());
        }
        // What was asked for in vain is known.
        let lost = lab.store.lost();
        assert!(lost.keys().all(|what| what == "the metadata"), "{lost:?}");
        asked_in_vain += usize::from(!lost.is_empty());
        let all_at_once = lab.readdir(folder, 0, false, &mut |_| true);
        assert_eq!(all_at_once.is_err(), list(&lab, folder, false).1.is_err());
        // An error is no reason to refuse anything else.
        for i in 0..FILES {
            if let Ok(attr) = lab.lookup(folder, &name(i)) {
                lab.forget(attr.ino, 1);
            }
        }
        match lab.store.poisoned() {
            None => {
                match lab.mknod(&USER, Ino::ROOT, b"another", 0o644, 0) {
                    Ok(attr) => {
                        assert_eq!(lab.lookup(Ino::ROOT, b"another").unwrap().ino, attr.ino);
                        lab.sync().unwrap();
                        changed += 1;
                    }
                    Err(error) => assert_eq!(error.errno(), libc::EIO),
                }
                assert!(lab.store.poisoned().is_none());
            }
            Some(why) => {
                assert!(why.contains("no place for a new one"), "{why}");
                read_only += 1;
            }
        }
    }
    println!(
        "{} pages, {holes} listings with a hole, {refused} refused, {read_only} read-only, {changed} changed",
        pages.len()
    );
    // Without the schema, or the key of the names' hashes, nothing can be found. A creation goes through a handful of pages,
    // which ones the hashes decide.
    assert!(holes > 20 && refused <= 2 && read_only == 1 && changed + 14 > pages.len() && asked_in_vain > 40);
}

#[test]
fn p4_a_folder_with_several_damaged_blocks_lists_what_is_between_them() {
    let (lab, folder) = prepared();
    let pages = units_of(&lab, crate::crypto::Kind::Page);
    let whole = list(&lab, folder, false).0.len();
    // Those that cost a part of the folder and no more.
    let leaves: Vec<BlockAddr> = pages
        .into_iter()
        .filter(|page| {
            let Ok(lab) = damaged(&lab, &[*page]) else { return false };
            let (names, end) = list(&lab, folder, false);
            end.is_err() && names.len() > whole / 2
        })
        .collect();
    assert!(leaves.len() > 10, "{}", leaves.len());
    let some: Vec<BlockAddr> = leaves.iter().copied().step_by(2).collect();
    let mut one_by_one = 0;
    for leaf in &some {
        one_by_one += whole - list(&damaged(&lab, &[*leaf]).unwrap(), folder, false).0.len();
    }
    for plus in [true, false] {
        let (names, end) = list(&damaged(&lab, &some).unwrap(), folder, plus);
        assert_eq!((whole - names.len(), end.is_err()), (one_by_one, true));
    }
}

#[test]
fn p4_a_volume_without_its_map_of_free_space_can_be_read() {
    let (lab, folder) = prepared();
    let maps = units_of(&lab, crate::crypto::Kind::SpacePage);
    assert!(!maps.is_empty());
    let whole = list(&lab, folder, true).0;
    let lab = damaged(&lab, &maps).unwrap();
    assert_eq!(list(&lab, folder, true).0, whole);
    assert!(lab.store.poisoned().is_some_and(|why| why.contains("which blocks are free")));
    fails(lab.mknod(&USER, folder, b"another", 0o644, 0), libc::EROFS);
}

#[test]
fn p4_a_file_that_no_replica_can_give_is_named_until_it_is_removed() {
    let lab = new_fs();
    let ino = new_file(&lab, "file");
    lab.write(ino, 0, &[7; 3 * BLOCK_SIZE]).unwrap();
    lab.forget(ino, 1);
    lab.checkpoint().unwrap();
    let block = lab.scan(None, 1).unwrap()[0].extent.addr;
    let lab = damaged(&lab, &[block]).unwrap();
    assert!(lab.store.lost().is_empty());
    let ino = lab.lookup(Ino::ROOT, b"file").unwrap().ino;
    fails(lab.read(ino, 0, 10, &mut Vec::new()).map(<[u8]>::to_vec), libc::EIO);
    assert_eq!(Vec::from_iter(lab.store.lost()), [(format!("the file with inode number {}", ino.0), 1)]);
    lab.unlink(Ino::ROOT, b"file").unwrap();
    lab.forget(ino, 1);
    assert!(lab.store.lost().is_empty());
}
