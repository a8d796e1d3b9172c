//! The label: what a device says about itself, and the ring of root records, in two copies.
//!
//! ```text
//! 0        1 MiB                                    end-1 MiB   end     end = device_bytes of the header
//! | area A | data area                              | area B    |
//! ```
//!
//! Each area of [`LABEL_SIZE`] bytes, offsets from its beginning:
//!
//! | offset | bytes | content |
//! |-------:|------:|---------|
//! | 0 | 24576 | header, see [`header`] |
//! | 24576 | 40960 | zero, reserved |
//! | 65536 | 262144 | root ring: 64 slots of 4096 bytes, see [`root`] |
//! | 327680 | 196608 | zero, reserved |
//! | 524288 | 24576 | in area A: the header again; in area B: zero |
//! | 548864 | 499712 | zero, reserved |
//!
//! The three headers of a device are equal, except while one of them is being rewritten ([`HeaderCopy`]). They are
//! written and flushed one after the other: so at any moment all but one are whole, whatever a power cut tears. Of the
//! headers that authenticate, the one with the higher sequence number wins, unless the volume's root names another one
//! ([`LabelId`]). Two copies lie at fixed places: area B of a device that has grown is found by them. Root records are
//! written to both areas before one flush.
//!
//! What a header says is a claim ([`RawHeader`]) until the label key has verified its MAC ([`Header`], another type).
//! This module writes to no device: it gives offsets and buffers to whoever holds an approved device.

use std::cmp::Reverse;

use crate::crypto::{self, Keys, random_bytes};
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::limits::{DEVICE_SIZE_MAX, DEVICE_SIZE_MIN, LABEL_SIZE};
use crate::problem::Code;
use crate::units::{BLOCK_SIZE, Uuid, to_usize};

mod codec;
pub mod header;
pub mod root;
mod unlock;

pub use header::{Fields, HEADER_BYTES, Header, KeySlot, RawHeader, ReplicaRow};
pub use root::{
    LINEAGE_MAX, LabelId, Lineage, MountId, PROVISIONAL_BLOCKS_MAX, Passed, Provisional, ROOT_BYTES, ROOT_SLOTS, Root,
    TreeRef, WrittenBlock, newest_roots, open_root, read_roots, seal_root, slot, slot_offsets, slots_of,
};
pub use unlock::{Opened, unlock};

/// Offset of the root ring in a label area, in bytes.
pub const RING_OFFSET: u64 = 64 << 10;

/// Bytes of the root ring.
pub const RING_BYTES: usize = to_usize(ROOT_SLOTS) * ROOT_BYTES;

/// Offset of the second header of area A, in bytes.
const A2_OFFSET: u64 = 512 << 10;

const _: () = assert!(to_usize(RING_OFFSET) >= HEADER_BYTES);
const _: () = assert!(RING_OFFSET + RING_BYTES as u64 <= A2_OFFSET);
const _: () = assert!(A2_OFFSET + HEADER_BYTES as u64 <= LABEL_SIZE);

/// Why a label was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The copy could not be read.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// No magic number where a header would be.
    #[error("not a scelle device: no label was found")]
    NotScelle,
    /// The device has a size that no volume can have: below or above the sizes that `create` accepts.
    #[error("a device of {bytes} bytes cannot hold a scelle volume, which takes {DEVICE_SIZE_MIN} bytes or more")]
    DeviceSize {
        /// Its size.
        bytes: u64,
    },
    /// The device is smaller than its header says.
    #[error("truncated device: its label was written for {expected} bytes, it has {found}")]
    Truncated {
        /// Size in the header.
        expected: u64,
        /// Size of the device.
        found: u64,
    },
    /// Another format version. A newer scelle is needed.
    #[error("format version {found} is not supported, this program reads version {}", header::FORMAT_VERSION)]
    UnsupportedVersion {
        /// The version in the header.
        found: u32,
    },
    /// Incompatible features this program does not know. A newer scelle is needed.
    #[error(
        "the volume uses features that this program does not know (bits {bits:#x}): it needs scelle {} or newer",
        if .needs.is_empty() { "of a later version" } else { .needs }
    )]
    UnknownIncompatFeature {
        /// The unknown bits.
        bits: u64,
        /// The oldest version that knows them, as the label claims; may be empty.
        needs: String,
    },
    /// The checksum does not match: damage, found before any key is known.
    #[error("damaged label copy: its checksum does not match")]
    Damaged,
    /// A field is outside its bounds although the checksum matches.
    #[error("malformed label: {field} is out of bounds")]
    Malformed {
        /// The field.
        field: &'static str,
    },
    /// The copy is older than the other one: a crash fell between the two writes.
    #[error("stale label copy: sequence {found}, the other copy has {newest}")]
    Stale {
        /// Sequence of this copy.
        found: u64,
        /// Sequence of the other.
        newest: u64,
    },
    /// Both copies authenticate, but are those of two devices.
    #[error("the two label copies disagree: one is of device {one}, the other of device {other}")]
    CopiesDisagree {
        /// Device of one copy.
        one: Uuid,
        /// Device of the other.
        other: Uuid,
    },
    /// The label is of another volume than those of the other devices.
    #[error("its label is of volume {found}, which the others are not")]
    OtherVolume {
        /// The volume that it names.
        found: Uuid,
    },
    /// The label in force does not name the device.
    #[error("the volume does not name it as a replica: it was removed, or had not been added when the power failed")]
    NotEnrolled,
    /// The MAC does not verify with the volume's own key: somebody without the key wrote the header.
    #[error("forged label: its authentication code does not verify")]
    ForgedHeader,
    /// No key slot is in use.
    #[error("the label has no key slot")]
    NoKeySlot,
    /// A secret, a key or a key slot's parameters were refused.
    #[error(transparent)]
    Crypto(#[from] crypto::Error),
}

impl Error {
    /// Its code.
    pub fn code(&self) -> Code {
        match self {
            Self::Device(_) => Code::DeviceIo,
            Self::NotScelle => Code::NotAVolume,
            Self::DeviceSize { .. } => Code::DeviceSize,
            Self::Truncated { .. } => Code::DeviceTruncated,
            Self::UnsupportedVersion { .. } | Self::UnknownIncompatFeature { .. } => Code::FormatNewer,
            Self::Damaged
            | Self::Malformed { .. }
            | Self::Stale { .. }
            | Self::CopiesDisagree { .. }
            | Self::ForgedHeader
            | Self::OtherVolume { .. }
            | Self::NoKeySlot => Code::LabelDamaged,
            Self::NotEnrolled => Code::DeviceNotEnrolled,
            Self::Crypto(error) => error.code(),
        }
    }

    /// When all copies fail, the error with the lower number says more about what happened.
    fn rank(&self) -> u8 {
        match self {
            Self::Truncated { .. } => 0,
            Self::UnsupportedVersion { .. } => 1,
            Self::UnknownIncompatFeature { .. } => 2,
            Self::Malformed { .. } => 3,
            Self::Damaged => 4,
            Self::Device(_) => 5,
            _ => 6,
        }
    }
}

/// One of the two label areas of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// At the beginning.
    A,
    /// At the end.
    B,
}

impl Area {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// Byte offset of the area on a device of `device_bytes` bytes, at least [`DEVICE_SIZE_MIN`].
    pub const fn offset(self, device_bytes: u64) -> u64 {
        match self {
            Self::A => 0,
            Self::B => usable_bytes(device_bytes) - LABEL_SIZE,
        }
    }
}

/// One of the headers of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderCopy {
    /// At the beginning of area A, where it is looked for first.
    A,
    /// In the middle of area A.
    A2,
    /// At the beginning of area B.
    B,
}

impl HeaderCopy {
    /// All, in the order in which a header is rewritten.
    pub const ALL: [Self; 3] = [Self::A, Self::A2, Self::B];

    /// Byte offset on a device of `device_bytes` bytes, at least [`DEVICE_SIZE_MIN`].
    pub const fn offset(self, device_bytes: u64) -> u64 {
        match self {
            Self::A => 0,
            Self::A2 => A2_OFFSET,
            Self::B => Area::B.offset(device_bytes),
        }
    }
}

/// How many bytes of a device of `device_bytes` bytes are used: its whole blocks.
pub const fn usable_bytes(device_bytes: u64) -> u64 {
    device_bytes - device_bytes % BLOCK_SIZE as u64
}

/// Blocks of the data area that a device of `device_bytes` bytes has room for; zero when it is too small.
pub const fn data_blocks(device_bytes: u64) -> u64 {
    usable_bytes(device_bytes).saturating_sub(2 * LABEL_SIZE) / BLOCK_SIZE as u64
}

/// The content of a label area of a new volume before it has a header: a root ring of random bytes, else zeros. The
/// random bytes hide how often the volume has committed since.
pub fn new_area() -> Result<AlignedBuf, crypto::Error> {
    let mut area = AlignedBuf::zeroed(to_usize(LABEL_SIZE));
    area[to_usize(RING_OFFSET)..][..RING_BYTES].copy_from_slice(&empty_ring()?[..RING_BYTES]);
    Ok(area)
}

/// A root ring without a root: random bytes.
pub fn empty_ring() -> Result<AlignedBuf, crypto::Error> {
    let mut ring = AlignedBuf::zeroed(RING_BYTES);
    for block in ring[..RING_BYTES].chunks_exact_mut(ROOT_BYTES) {
        block.copy_from_slice(&random_bytes::<ROOT_BYTES>()?);
    }
    Ok(ring)
}

/// What [`read`] found on a device: at least one whole header, not authenticated.
#[derive(Debug)]
pub struct Found {
    /// The whole header with the highest sequence number. Until it is authenticated it is only a claim.
    pub newest: RawHeader,
    /// What was found at each offset that was looked at.
    copies: Vec<(u64, Result<RawHeader, Error>)>,
}

/// Reads the headers of a device: the two of area A, and that of area B.
///
/// Where area B lies is only what area A claims, in either header. A device that has grown keeps area B where its label says; a forged
/// label may say anything. So a header is also looked for where area B of a device of this size lies.
///
/// # Errors
/// When no copy is whole: the error of the copy that says most. When no volume can have the device's size: what the
/// first copy tells, or [`Error::DeviceSize`].
pub fn read(device: &dyn BlockDevice) -> Result<Found, Error> {
    let size = device.size_bytes();
    if !(DEVICE_SIZE_MIN..=DEVICE_SIZE_MAX).contains(&size) {
        // A truncated device still has its first block, and the header there tells what was lost.
        let first =
            if size >= HEADER_BYTES as u64 { read_copy(device, 0) } else { Err(Error::DeviceSize { bytes: size }) };
        return Err(first.err().filter(|e| e.rank() < 6).unwrap_or(Error::DeviceSize { bytes: size }));
    }
    let mut copies: Vec<_> =
        [HeaderCopy::A, HeaderCopy::A2].map(|copy| copy.offset(size)).map(|at| (at, read_copy(device, at))).into();
    let claimed = copies.iter().filter_map(|(_, copy)| copy.as_ref().ok()).map(|raw| raw.claims().device_bytes);
    let mut ends: Vec<u64> = claimed.chain([size]).map(|bytes| HeaderCopy::B.offset(bytes)).collect();
    ends.sort_unstable();
    ends.dedup();
    copies.extend(ends.into_iter().map(|at| (at, read_copy(device, at))));
    let whole = copies.iter().filter_map(|(_, copy)| copy.as_ref().ok());
    // Of equals the first: that at the beginning.
    match whole.min_by_key(|raw| Reverse(raw.claims().sequence)).cloned() {
        Some(newest) => Ok(Found { newest, copies }),
        None => Err(copies
            .into_iter()
            .filter_map(|(_, copy)| copy.err())
            .min_by_key(Error::rank)
            // Invariant: area A was looked at.
            .unwrap_or(Error::NotScelle)),
    }
}

fn read_copy(device: &dyn BlockDevice, offset: u64) -> Result<RawHeader, Error> {
    let mut buf = AlignedBuf::zeroed(HEADER_BYTES);
    device.read_at(offset, &mut buf)?;
    // Invariant: the buffer was made with this length.
    let bytes = buf[..].try_into().expect("a buffer of HEADER_BYTES");
    RawHeader::decode(bytes, device.size_bytes())
}

impl Found {
    /// The whole headers, those with the higher sequence number first.
    pub fn whole(&self) -> Vec<&RawHeader> {
        let mut whole: Vec<&RawHeader> = self.copies.iter().filter_map(|(_, copy)| copy.as_ref().ok()).collect();
        whole.sort_by_key(|raw| Reverse(raw.claims().sequence));
        whole
    }

    /// Whether a copy claims to be of this volume.
    pub fn claims_volume(&self, volume: Uuid) -> bool {
        self.whole().iter().any(|raw| raw.claims().volume == volume)
    }

    /// Whether a copy verifies with `keys`.
    pub fn is_authentic(&self, keys: &Keys) -> bool {
        !self.authentic(keys).is_empty()
    }

    /// Every header whose MAC verifies with `keys`.
    pub fn authentic(&self, keys: &Keys) -> Vec<Header> {
        self.whole().into_iter().filter_map(|raw| raw.clone().authenticate(keys).ok()).collect()
    }

    /// The newest header whose MAC verifies, and which copies are to be rewritten.
    ///
    /// # Errors
    /// [`Error::ForgedHeader`] when no copy verifies, also because `keys` are another volume's.
    /// [`Error::CopiesDisagree`] when two verify that are of different devices.
    pub fn authenticate(self, keys: &Keys) -> Result<(Header, Vec<(HeaderCopy, Error)>), Error> {
        let judge = |(at, copy): (u64, Result<RawHeader, Error>)| (at, copy.and_then(|raw| raw.authenticate(keys)));
        let mut copies: Vec<(u64, Result<Header, Error>)> = self.copies.into_iter().map(judge).collect();
        let authentic = || copies.iter().filter_map(|(_, copy)| copy.as_ref().ok());
        let newest = authentic().min_by_key(|header| Reverse(header.sequence)).cloned().ok_or(Error::ForgedHeader)?;
        if let Some(other) = authentic().find(|header| header.device != newest.device) {
            return Err(Error::CopiesDisagree { one: newest.device, other: other.device });
        }
        let mut damaged = Vec::new();
        for place in HeaderCopy::ALL {
            let at = place.offset(newest.device_bytes);
            let copy = copies.iter().position(|(offset, _)| *offset == at).map(|index| copies.swap_remove(index).1);
            match copy.unwrap_or(Err(Error::Damaged)) {
                Ok(header) if header.sequence == newest.sequence => {}
                Ok(older) => {
                    damaged.push((place, Error::Stale { found: older.sequence, newest: newest.sequence }));
                }
                Err(error) => damaged.push((place, error)),
            }
        }
        Ok((newest, damaged))
    }
}

#[cfg(test)]
mod tests;
