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
//! | 0 | 4096 | header, see [`header`] |
//! | 4096 | 61440 | zero, reserved |
//! | 65536 | 262144 | root ring: 64 slots of 4096 bytes, see [`root`] |
//! | 327680 | 720896 | zero, reserved |
//!
//! The two headers of a device are equal, except while one of them is being rewritten. A is written and flushed, then
//! B: so one of them is whole at any moment, whatever a power cut tears. The header with the higher sequence number
//! wins. Root records are written to both areas before one flush.
//!
//! What a header says is a claim ([`RawHeader`]) until the label key has verified its MAC ([`Header`], another type).
//! This module writes to no device: it gives offsets and buffers to whoever holds an approved device.

use crate::crypto::{self, Keys, Secret, VolumeKey, derive_slot_key, random_bytes, unwrap_key};
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::limits::{DEVICE_SIZE_MAX, DEVICE_SIZE_MIN, LABEL_SIZE};
use crate::problem::Code;
use crate::units::{BLOCK_SIZE, Uuid, to_usize};

mod codec;
pub mod header;
pub mod root;

pub use header::{Fields, HEADER_BYTES, Header, KeySlot, RawHeader, ReplicaRow};
pub use root::{
    LINEAGE_MAX, Lineage, MountId, PROVISIONAL_BLOCKS_MAX, Passed, Provisional, ROOT_BYTES, ROOT_SLOTS, Root, TreeRef,
    WrittenBlock, newest_roots, open_root, read_roots, seal_root, slot, slot_offsets,
};

/// Offset of the root ring in a label area, in bytes.
pub const RING_OFFSET: u64 = 64 << 10;

/// Bytes of the root ring.
pub const RING_BYTES: usize = to_usize(ROOT_SLOTS) * ROOT_BYTES;

const _: () = assert!(to_usize(RING_OFFSET) >= HEADER_BYTES);
const _: () = assert!(RING_OFFSET + RING_BYTES as u64 <= LABEL_SIZE);

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
    #[error("the volume uses incompatible features that this program does not know: bits {bits:#x}")]
    UnknownIncompatFeature {
        /// The unknown bits.
        bits: u64,
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
    /// Both copies are whole, but of different volumes or devices.
    #[error("the two label copies disagree: volume {a_volume} device {a_device}, volume {b_volume} device {b_device}")]
    CopiesDisagree {
        /// Volume of copy A.
        a_volume: Uuid,
        /// Device of copy A.
        a_device: Uuid,
        /// Volume of copy B.
        b_volume: Uuid,
        /// Device of copy B.
        b_device: Uuid,
    },
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
            | Self::NoKeySlot => Code::LabelDamaged,
            Self::Crypto(error) => error.code(),
        }
    }

    /// When both copies fail, the error with the lower number says more about what happened.
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
    /// Both, in the order in which a header is rewritten.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// Byte offset of the area on a device of `device_bytes` bytes, at least [`DEVICE_SIZE_MIN`].
    pub const fn offset(self, device_bytes: u64) -> u64 {
        match self {
            Self::A => 0,
            Self::B => usable_bytes(device_bytes) - LABEL_SIZE,
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

/// The content of a label area of a new volume: `header`, a root ring of random bytes, zeros. The random bytes hide how
/// often the volume has committed since.
pub fn new_area(header: &[u8; HEADER_BYTES]) -> Result<AlignedBuf, crypto::Error> {
    let mut area = AlignedBuf::zeroed(to_usize(LABEL_SIZE));
    area[..HEADER_BYTES].copy_from_slice(header);
    for block in area[to_usize(RING_OFFSET)..][..RING_BYTES].chunks_exact_mut(ROOT_BYTES) {
        block.copy_from_slice(&random_bytes::<ROOT_BYTES>()?);
    }
    Ok(area)
}

/// What [`read`] found on a device: at least one whole header, not authenticated.
#[derive(Debug)]
pub struct Found {
    /// The header with the highest sequence number.
    pub newest: RawHeader,
    /// The header of the other area, when it is whole too.
    pub other: Option<RawHeader>,
    /// Which areas hold a header to be rewritten, and why.
    pub damaged: Vec<(Area, Error)>,
}

/// The volume key, the key slot that gave it, and an authenticated header.
#[derive(Debug)]
pub struct Unlocked {
    /// The key.
    pub key: VolumeKey,
    /// The keys derived from it.
    pub keys: Keys,
    /// Number of the slot that opened.
    pub slot: usize,
    /// The newest header that authenticates.
    pub header: Header,
    /// Which areas hold a header to be rewritten, and why.
    pub damaged: Vec<(Area, Error)>,
}

/// Reads both headers of a device.
///
/// # Errors
/// When neither copy is whole: the error of the copy that says more. When both are, but of different volumes or
/// devices: [`Error::CopiesDisagree`]. When no volume can have the device's size: what the first copy tells, or
/// [`Error::DeviceSize`].
pub fn read(device: &dyn BlockDevice) -> Result<Found, Error> {
    let size = device.size_bytes();
    if !(DEVICE_SIZE_MIN..=DEVICE_SIZE_MAX).contains(&size) {
        // A truncated device still has its first block, and the header there tells what was lost.
        let first =
            if size >= HEADER_BYTES as u64 { read_copy(device, 0) } else { Err(Error::DeviceSize { bytes: size }) };
        return Err(first.err().filter(|e| e.rank() < 6).unwrap_or(Error::DeviceSize { bytes: size }));
    }
    let a = read_copy(device, 0);
    // A device that has grown keeps area B where its label says.
    let end = a.as_ref().map_or(size, |a| a.claims().device_bytes);
    let b = read_copy(device, Area::B.offset(end));
    fold(a, b)
}

fn read_copy(device: &dyn BlockDevice, offset: u64) -> Result<RawHeader, Error> {
    let mut buf = AlignedBuf::zeroed(HEADER_BYTES);
    device.read_at(offset, &mut buf)?;
    // Invariant: the buffer was made with this length.
    let bytes = buf[..].try_into().expect("a buffer of HEADER_BYTES");
    RawHeader::decode(bytes, device.size_bytes())
}

fn fold(a: Result<RawHeader, Error>, b: Result<RawHeader, Error>) -> Result<Found, Error> {
    match (a, b) {
        (Ok(a), Ok(b)) => {
            let (ca, cb) = (a.claims(), b.claims());
            if (ca.volume, ca.device) != (cb.volume, cb.device) {
                return Err(Error::CopiesDisagree {
                    a_volume: ca.volume,
                    a_device: ca.device,
                    b_volume: cb.volume,
                    b_device: cb.device,
                });
            }
            let (a_seq, b_seq) = (ca.sequence, cb.sequence);
            let stale = |area, found, newest| vec![(area, Error::Stale { found, newest })];
            Ok(match a_seq.cmp(&b_seq) {
                std::cmp::Ordering::Less => Found { newest: b, other: Some(a), damaged: stale(Area::A, a_seq, b_seq) },
                std::cmp::Ordering::Equal => Found { newest: a, other: Some(b), damaged: Vec::new() },
                std::cmp::Ordering::Greater => {
                    Found { newest: a, other: Some(b), damaged: stale(Area::B, b_seq, a_seq) }
                }
            })
        }
        (Ok(newest), Err(e)) => Ok(Found { newest, other: None, damaged: vec![(Area::B, e)] }),
        (Err(e), Ok(newest)) => Ok(Found { newest, other: None, damaged: vec![(Area::A, e)] }),
        (Err(a), Err(b)) => Err(if b.rank() < a.rank() { b } else { a }),
    }
}

impl Found {
    /// Tries `secret` on every key slot, and authenticates the header with the key that a slot gives. argon2id runs
    /// once for each slot in use until one opens, so a wrong secret costs the same at every try.
    ///
    /// # Errors
    /// [`crypto::Error::WrongKey`] when no slot opens; but if the parameters of a slot were refused, that refusal.
    /// [`Error::NoKeySlot`] when no slot is in use. [`Error::ForgedHeader`] when a slot opens but neither copy
    /// authenticates.
    pub fn unlock(self, secret: &Secret) -> Result<Unlocked, Error> {
        let mut tried: Vec<(KeySlot, [u8; 32])> = Vec::new();
        let mut refused = None;
        let mut opened = None;
        'copies: for raw in std::iter::once(&self.newest).chain(&self.other) {
            let aad = raw.wrap_digest();
            for (number, slot) in raw.claims().key_slots.iter().enumerate() {
                let Some(slot) = slot else { continue };
                // Two equal copies must not cost twice.
                if tried.iter().any(|(s, d)| s == slot && *d == aad) {
                    continue;
                }
                tried.push((slot.clone(), aad));
                let outcome = derive_slot_key(secret, &slot.salt, &slot.params)
                    .and_then(|slot_key| unwrap_key(&slot.wrapped, &slot_key, &aad));
                match outcome {
                    Ok(key) => {
                        opened = Some((key, number, raw.claims().volume));
                        break 'copies;
                    }
                    Err(crypto::Error::WrongKey) => {}
                    Err(e) => refused = refused.or(Some(e)),
                }
            }
        }
        if tried.is_empty() {
            return Err(Error::NoKeySlot);
        }
        let Some((key, slot, volume)) = opened else {
            return Err(refused.unwrap_or(crypto::Error::WrongKey).into());
        };
        let keys = key.keys(volume);
        let (header, damaged) = self.authenticate(&keys)?;
        Ok(Unlocked { key, keys, slot, header, damaged })
    }

    /// The newest header whose MAC verifies, and which areas hold a header to be rewritten.
    ///
    /// # Errors
    /// [`Error::ForgedHeader`] when no copy verifies, also because `keys` are another volume's.
    pub fn authenticate(self, keys: &Keys) -> Result<(Header, Vec<(Area, Error)>), Error> {
        let Self { newest, other, mut damaged } = self;
        // Which area each copy came from: with two copies, `damaged` names at most the stale one.
        let (newest_area, other_area) = match damaged.first() {
            Some((Area::A, _)) => (Area::B, Area::A),
            _ => (Area::A, Area::B),
        };
        let other = other.map(|raw| raw.authenticate(keys));
        match (newest.authenticate(keys), other) {
            (Ok(header), Some(Err(e))) => {
                damaged.retain(|(area, _)| *area != other_area);
                damaged.push((other_area, e));
                Ok((header, damaged))
            }
            (Ok(header), _) => Ok((header, damaged)),
            (Err(e), Some(Ok(header))) => Ok((header, vec![(newest_area, e)])),
            (Err(e), _) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests;
