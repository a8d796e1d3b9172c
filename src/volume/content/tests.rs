//! What is recognised on a device, and that nothing is recognised where there is nothing.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::device::IdentifiedDevice;
use crate::device::faulty::{Effect, Fault, FaultyDevice, Operation};
use crate::device::memory::MemoryDevice;
use crate::policy::laboratory;
use crate::problem::ExitCode;

/// What mkfs programs leave: see the head of the file.
const IMAGES: &str = include_str!("images.table");

const MIB: u64 = 1 << 20;

/// Pieces of an image: offset and bytes.
type Pieces = Vec<(u64, Vec<u8>)>;

/// Each image of the table: size, logical block size, text, pieces.
fn images() -> Vec<(u64, u32, &'static str, Pieces)> {
    let mut images: Vec<(u64, u32, &str, Pieces)> = Vec::new();
    for line in IMAGES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix("= ") {
            let [mib, block, text] = head.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
            images.push((mib.parse::<u64>().unwrap() * MIB, block.parse().unwrap(), text, Vec::new()));
        } else {
            let (offset, hex) = line.split_once(' ').unwrap();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes = (0..hex.len()).step_by(2).map(byte).collect();
            images.last_mut().unwrap().3.push((u64::from_str_radix(offset, 16).unwrap(), bytes));
        }
    }
    images
}

/// The pieces of the image whose text begins so.
fn image(text: &str) -> (u64, Pieces) {
    let (size, _, _, pieces) = images().into_iter().find(|(_, _, t, _)| t.starts_with(text)).unwrap();
    (size, pieces)
}

fn device(size: u64, pieces: &[(u64, Vec<u8>)]) -> Arc<dyn IdentifiedDevice> {
    let mut bytes = vec![0; size as usize];
    for (offset, piece) in pieces {
        bytes[*offset as usize..][..piece.len()].copy_from_slice(piece);
    }
    Arc::new(MemoryDevice::from_image("disk", bytes))
}

/// How a device is refused, if it is.
fn refusal(device: Arc<dyn IdentifiedDevice>) -> Option<Error> {
    let device = Arc::new(FaultyDevice::new(device));
    refuse(&laboratory::approve(std::slice::from_ref(&device))[0]).err()
}

/// What is said to be on a device, and how to take it away.
#[track_caller]
fn said(size: u64, pieces: &[(u64, Vec<u8>)]) -> (String, String) {
    match refusal(device(size, pieces)) {
        Some(Error::NotEmpty { content, erase, .. }) => (content, erase),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_mkfs_programs_leave_is_named() {
    // What has blocks of 4096 bytes needs a device that has them: tests/mount has one.
    for (size, _, text, pieces) in images().into_iter().filter(|(_, block, ..)| *block == 512) {
        let (content, erase) = said(size, &pieces);
        assert!(content.starts_with(text), "{content:?} instead of {text:?}");
        let by_hand = content.contains("bcachefs");
        assert_eq!(erase.contains("wipefs --all disk"), !by_hand, "{content}: {erase}");
    }
}

#[test]
fn every_magic_number_of_our_own_is_found() {
    // 256 GiB, for the copy of btrfs that lies there, are not kept in memory.
    for magic @ (name, offset, bytes) in MAGICS.iter().chain([&BOOT]).filter(|magic| magic.1 < 1 << 30) {
        let at = if *offset < 0 { (80 * MIB).strict_add_signed(*offset) } else { offset.cast_unsigned() };
        let found = all(&*device(80 * MIB, &[(at, bytes.to_vec())]), &[]).unwrap();
        assert!(found.contains(&of_magic(magic, at)), "{name}: {found:?}");
    }
}

#[test]
fn an_empty_device_is_taken() {
    assert!(refusal(device(16 * MIB, &[])).is_none());
    // The last bytes of a device whose size is no multiple of 4096 are looked at too.
    assert!(refusal(device(16 * MIB + 512, &[])).is_none());
    assert!(said(16 * MIB + 512, &[(16 * MIB, GPT.to_vec())]).0.contains("a copy of a GPT"));
}

/// A generator of bytes that look random (xorshift64*).
fn dice(mut seed: u64) -> impl FnMut() -> [u8; 8] {
    move || {
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        seed.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    }
}

#[test]
fn random_bytes_are_taken() {
    for seed in 1..=8 {
        let mut next = dice(seed);
        let bytes = (0..2 * MIB).flat_map(|_| next()).collect();
        let found = refusal(Arc::new(MemoryDevice::from_image("disk", bytes)));
        assert!(found.is_none(), "seed {seed}: {found:?}");
    }
}

/// libblkid 2.38 takes these for the Atari's: an active entry, three letters, sizes that fit.
#[test]
fn letters_that_happen_to_look_like_an_atari_are_taken() {
    let entry = |id: &[u8]| [&[1][..], id, &[0, 0, 0, 2, 0, 0, 0, 9]].concat();
    let disk = |id| vec![(0x1c2, vec![0, 0, 0x80, 0]), (0x1c6, entry(id))];
    assert!(refusal(device(64 * MIB, &disk(b"q7Z"))).is_none());
    assert!(said(64 * MIB, &disk(b"BGM")).0.starts_with("a partition table (atari, at byte 454)"));
}

#[test]
fn everything_is_named() {
    let (size, mut pieces) = image("a partition table (gpt, at byte 512");
    // Between the table and the first partition, and in that.
    pieces.extend(image("a member of a ZFS pool").1);
    pieces.push(((64 << 10) + 64, BTRFS.to_vec()));
    pieces.push(((2 << 20) + 24, BCHFS.to_vec()));
    let (content, erase) = said(size, &pieces);
    for part in ["(gpt, at byte 512)", "(zfs_member", "(btrfs, at byte 65600)", "superblock of a bcachefs"] {
        assert!(content.contains(part), "{part}: {content}");
    }
    assert!(erase.starts_with("wipefs --all disk; dd if=/dev/zero of=disk bs=4096 count=1 seek="), "{erase}");
    assert!(erase.contains(" seek=33;") && erase.ends_with(" seek=512"), "{erase}");
}

/// What is left when the beginning of a device was overwritten, and what has a field that makes no sense.
#[test]
fn what_is_left_of_something_is_named() {
    let (size, gpt) = image("a partition table (gpt, at byte 512");
    let header = gpt.iter().find(|(offset, _)| *offset == 512).unwrap().1.clone();
    let broken: Pieces = vec![(512, header.iter().map(|b| b & 0x7f).collect())];
    assert!(said(size, &broken).0.contains("a partition table (GPT) (at byte 512)"));
    assert!(said(size, &[(size - 512, header)]).0.contains("a copy of a GPT"));
    assert!(said(size, &[(0, b"XFSB".to_vec())]).0.contains("an XFS filesystem (at byte 0)"));
    let copy = (64 * MIB + 64, BTRFS.to_vec());
    let (content, erase) = said(65 * MIB, &[copy]);
    assert_eq!(content, "a copy of the superblock of a btrfs filesystem (at byte 67108928)");
    assert_eq!(erase, "dd if=/dev/zero of=disk bs=4096 count=1 seek=16384");
    let (size, mut lvm) = image("an LVM physical volume");
    // The UUID.
    lvm.iter_mut().find(|(offset, _)| *offset == 528).unwrap().1[18] ^= 1;
    let text = "an LVM physical volume (LVM2_member, at byte 536, with a wrong checksum)";
    assert_eq!(said(size, &lvm).0, text);
}

/// Whoever wrote a disk chose its label: it is shown as it is in ASCII, escaped else.
#[test]
fn a_label_cannot_write_to_the_terminal() {
    let (size, mut pieces) = image("a filesystem (ext4");
    pieces.push((1024 + 0x78, b"\x1b[2J\"ok\r\n\xff\xc3\xa9".to_vec()));
    let content = said(size, &pieces).0;
    let text = r#"a filesystem (ext4, label "\u{1b}[2J\"ok\r\n\u{fffd}\u{e9}", "#;
    assert!(content.starts_with(text), "{content}");
    assert!(content.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{content}");
}

#[test]
fn what_cannot_be_read_is_not_overwritten() {
    for range in [70_000..70_001, 5 * MIB..5 * MIB + 1, 16 * MIB - 1..16 * MIB] {
        let faulty = Arc::new(FaultyDevice::new(device(16 * MIB, &[])));
        let approved = laboratory::approve(std::slice::from_ref(&faulty));
        faulty.inject(Fault { range: range.clone(), ..Fault::always(Operation::Read, Effect::Error(libc::EIO)) });
        let error = refuse(&approved[0]).unwrap_err();
        assert_eq!(error.code().exit(), ExitCode::Failed, "{range:?}: {error}");
        assert!(error.to_string().contains("disk"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// libblkid reads what strangers wrote: any change of what it recognises leaves something that is read to the end.
    #[test]
    fn damaged_images_are_survived(index in 0..64usize, at in any::<prop::sample::Index>(), byte in any::<u8>(), n in 1..9usize) {
        let images: Vec<_> = images().into_iter().filter(|(size, ..)| *size <= 64 * MIB).collect();
        let (size, _, _, mut pieces) = images[index % images.len()].clone();
        for step in 0..n {
            let count = pieces.len();
            let piece = &mut pieces[(at.index(count) + step) % count].1;
            let place = at.index(piece.len());
            piece[place] = byte.wrapping_mul(step as u8 + 1);
        }
        let _ = refusal(device(size, &pieces));
    }
}
