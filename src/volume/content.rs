//! What already lies on a device that is to become a replica: everything is named, so that nobody's data are destroyed by
//! mistake.
//!
//! libblkid knows the formats. [`MAGICS`] has what Debian 12's does not know (2.38), or takes for nothing because only a
//! part is left. A disk of zeros, and one of random bytes, holds nothing.

use super::error::{Error, System};
use crate::device::{AlignedBuf, BlockDevice};
use crate::label;
use crate::os::blkid::{Signature, Usage};
use crate::policy::ApprovedDevice;
use crate::units::{BLOCK_SIZE, to_usize};

/// A magic number: what has it, the byte offset (negative: from the device's end), the bytes.
type Magic = (&'static str, i64, &'static [u8]);

/// The magic number of bcachefs (fs/bcachefs/bcachefs_format.h: `BCHFS_MAGIC`).
const BCHFS: &[u8] = &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef];
const BTRFS: &[u8] = b"_BHRfS_M";
const GPT: &[u8] = b"EFI PART";
const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

/// What is looked for besides libblkid. A row counts when libblkid reports nothing at the same offset.
///
/// Each has four bytes or more: of random bytes, not one disk in a hundred million has one. wipefs(8) takes none of them
/// away.
const MAGICS: [Magic; 22] = [
    // libblkid knows bcachefs from 2.39 on. It lies where bcache does, with a copy after 2 MiB and one before the end. The
    // older formats of both begin alike.
    ("a bcachefs or bcache device", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6]),
    ("a copy of the superblock of a bcachefs filesystem", (2 << 20) + 24, BCHFS),
    ("a copy of the superblock of a bcachefs filesystem", -(1 << 20) + 24, BCHFS),
    // libblkid wants several uberblocks of the ring that begins here, or (since 2.39) a whole label before it.
    ("a member of a ZFS pool", 128 << 10, &[0x0c, 0xb1, 0xba, 0x00]),
    ("a member of a ZFS pool", 132 << 10, &[0x0c, 0xb1, 0xba, 0x00]),
    // libblkid does not look at the copies of btrfs, from which `btrfs rescue super-recover` brings everything back.
    ("a btrfs filesystem", (64 << 10) + 64, BTRFS),
    ("a copy of the superblock of a btrfs filesystem", (64 << 20) + 64, BTRFS),
    ("a copy of the superblock of a btrfs filesystem", (256 << 30) + 64, BTRFS),
    // Superblocks and headers that libblkid takes for nothing when a field is out of bounds, or a checksum is wrong.
    ("an XFS filesystem", 0, b"XFSB"),
    ("an F2FS filesystem", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("a copy of the superblock of an F2FS filesystem", 4096 + 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an encrypted LUKS volume", 0, b"LUKS\xba\xbe"),
    ("a copy of the header of an encrypted LUKS volume", 0x4000, b"SKUL\xba\xbe"),
    ("an LVM physical volume", 512 + 24, b"LVM2 001"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a member of an md array", 4096, MD),
    ("a member of an md array", 0, MD),
    // The table's blocks are the disk's: 512 or 4096 bytes, and a disk may have been behind a bridge that shows others.
    ("a partition table (GPT)", 512, GPT),
    ("a partition table (GPT)", 4096, GPT),
    ("a copy of a GPT", -512, GPT),
    ("a copy of a GPT", -4096, GPT),
    ("a Ceph BlueStore device", 0, b"bluestore block device"),
];

/// The last two bytes of a boot sector, which alone say little: they count when there is nothing else. One disk of random
/// bytes in 65536 has them, as it has the two bytes of ext4.
const BOOT: Magic = ("a partition table or a boot sector", 510, &[0x55, 0xaa]);

/// What was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// In words, with the place.
    pub text: String,
    /// Byte offset.
    offset: Option<u64>,
    /// Whether wipefs(8) takes it away.
    wipefs: bool,
}

/// Refuses a device that is too small or carries a label or another system's signature.
///
/// # Errors
/// [`Error::NotEmpty`] with all that was recognised. Also when the device cannot be read: what is not seen is not
/// overwritten.
pub(super) fn refuse(device: &ApprovedDevice) -> Result<(), Error> {
    refuse_label(device)?;
    let failed = |source| System::error(&format!("looking for what already lies on {}", device.name()), source);
    let signatures = device.signatures().map_err(failed)?;
    let contents = all(device, &signatures).map_err(|source| failed(std::io::Error::other(source)))?;
    if contents.is_empty() {
        return Ok(());
    }
    let content = contents.iter().map(|content| content.text.as_str()).collect::<Vec<_>>().join(", and ");
    let wipefs = contents.iter().any(|content| content.wipefs).then(|| format!("wipefs --all {}", device.name()));
    let rest = contents.iter().filter(|content| !content.wipefs).filter_map(|content| content.offset);
    Err(not_empty(device, content, wipefs.into_iter().chain(zeroes(device, rest))))
}

/// Refuses a device with a label of our own: of a volume, or of what was one.
fn refuse_label(device: &ApprovedDevice) -> Result<(), Error> {
    let content = match label::read(device) {
        Ok(found) => {
            let claims = found.newest.claims();
            format!("scelle volume {} ({:?})", claims.volume, claims.label)
        }
        Err(label::Error::NotScelle) => return Ok(()),
        Err(source @ (label::Error::DeviceSize { .. } | label::Error::Device(_))) => {
            return Err(Error::Label { device: device.name().to_owned(), source });
        }
        Err(other) => format!("a scelle label ({other})"),
    };
    Err(not_empty(device, content, std::iter::once(format!("scelle destroy {}", device.name()))))
}

fn not_empty(device: &ApprovedDevice, content: String, erase: impl Iterator<Item = String>) -> Error {
    let erase = erase.collect::<Vec<_>>().join("; ");
    Error::NotEmpty { device: device.name().to_owned(), content, erase }
}

/// The commands that overwrite the blocks at these offsets.
fn zeroes(device: &ApprovedDevice, offsets: impl Iterator<Item = u64>) -> impl Iterator<Item = String> {
    let blocks: std::collections::BTreeSet<u64> = offsets.map(|offset| offset / BLOCK_SIZE as u64).collect();
    let name = device.name().to_owned();
    blocks.into_iter().map(move |block| format!("dd if=/dev/zero of={name} bs={BLOCK_SIZE} count=1 seek={block}"))
}

/// Everything that is recognised on a device, of which libblkid says this much.
pub(super) fn all(device: &dyn BlockDevice, signatures: &[Signature]) -> crate::device::Result<Vec<Content>> {
    let mut contents: Vec<Content> = signatures.iter().map(of_signature).collect();
    for magic in &MAGICS {
        if let Some(offset) = find(device, magic)?
            && contents.iter().all(|content| content.offset != Some(offset))
        {
            contents.push(of_magic(magic, offset));
        }
    }
    if contents.is_empty()
        && let Some(offset) = find(device, &BOOT)?
    {
        contents.push(of_magic(&BOOT, offset));
    }
    Ok(contents)
}

fn of_magic((name, ..): &Magic, offset: u64) -> Content {
    Content { text: format!("{name} (at byte {offset})"), offset: Some(offset), wipefs: false }
}

fn of_signature(signature: &Signature) -> Content {
    let what = match (signature.kind.as_str(), signature.usage) {
        ("swap", _) => "swap space",
        ("swsuspend", _) => "a hibernated system",
        ("linux_raid_member", _) => "a member of an md array",
        ("LVM1_member" | "LVM2_member", _) => "an LVM physical volume",
        ("zfs_member", _) => "a member of a ZFS pool",
        ("bcache", _) => "a bcache device",
        ("drbd", _) => "a DRBD device",
        ("crypto_LUKS", _) => "an encrypted LUKS volume",
        ("ceph_bluestore", _) => "a Ceph BlueStore device",
        (_, Usage::Filesystem) => "a filesystem",
        (_, Usage::Raid) => "a member of an array or a pool",
        (_, Usage::Crypto) => "an encrypted volume",
        (_, Usage::PartitionTable) => "a partition table",
        (_, Usage::Other) => "something else",
    };
    let mut text = format!("{what} ({}", signature.kind);
    if let Some(label) = &signature.label {
        text += &format!(", label \"{label}\"");
    }
    if let Some(offset) = signature.offset {
        text += &format!(", at byte {offset}");
    }
    if signature.damaged {
        text += ", with a wrong checksum";
    }
    Content { text: text + ")", offset: signature.offset, wipefs: true }
}

/// The offset of a magic number, if the device has it there.
fn find(device: &dyn BlockDevice, (_, offset, bytes): &Magic) -> crate::device::Result<Option<u64>> {
    let size = device.size_bytes();
    let at = if *offset < 0 { size.checked_sub(offset.unsigned_abs()) } else { Some(offset.unsigned_abs()) };
    let Some(at) = at.filter(|at| at + bytes.len() as u64 <= size) else { return Ok(None) };
    let start = at - at % BLOCK_SIZE as u64;
    // The last block of a device may be a part of one.
    let len = to_usize((BLOCK_SIZE as u64).min(size - start));
    let mut block = AlignedBuf::zeroed(len);
    device.read_at(start, &mut block[..len])?;
    Ok(block[to_usize(at - start)..].starts_with(bytes).then_some(at))
}

#[cfg(test)]
mod tests;
