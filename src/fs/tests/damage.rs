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
    let (mut found, mut cookie) = (Vec::new(), 0);
    loop {
        let mut room = 50;
        let listed = fs.readdir(ino, cookie, plus, &mut |entry| {
            if room == 0 {
                return false;
            }
            room -= 1;
            assert!(i64::try_from(entry.next_cookie).is_ok());
            found.push(entry.name.to_vec());
            cookie = entry.next_cookie;
            true
        });
        if listed.is_err() || room == 50 {
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

/// The blocks of the database's pages.
fn pages_of(lab: &Lab) -> Vec<BlockAddr> {
    let (mut found, mut units) = (Vec::new(), lab.store.units());
    let mut visit = |unit: &pages::Unit| {
        if unit.at.kind == crate::crypto::Kind::Page {
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
    let pages = pages_of(&lab);
    let whole: BTreeSet<Vec<u8>> = list(&lab, folder, false).0.into_iter().collect();
    assert_eq!(whole.len(), FILES + 2);
    let (mut holes, mut refused) = (0, 0);
    for page in &pages {
        let Ok(lab) = damaged(&lab, &[*page]) else {
            refused += 1;
            continue;
        };
        if lab.getattr(folder).is_err() {
            // The row of the folder itself is lost.
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
        // An error is no reason to refuse anything else.
        for i in 0..FILES {
            if let Ok(attr) = lab.lookup(folder, &name(i)) {
                lab.forget(attr.ino, 1);
            }
        }
        assert!(lab.store.poisoned().is_none());
    }
    println!("{} pages, {holes} listings with a hole, {refused} refused", pages.len());
    assert!(holes > 20 && refused < 5);
}

#[test]
fn p4_a_folder_with_several_damaged_blocks_lists_what_is_between_them() {
    let (lab, folder) = prepared();
    let pages = pages_of(&lab);
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
