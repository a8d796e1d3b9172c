//! Sealing and opening of units: AES-256-GCM-SIV (RFC 8452) with the unit's identity bound in.
//!
//! The nonce is the [`WriteId`]. The associated data has this fixed layout of 48 bytes, integers little-endian:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0  | 1  | `S` (0x53) |
//! | 1  | 1  | format version, 2 |
//! | 2  | 1  | [`Kind`] |
//! | 3  | 1  | zero |
//! | 4  | 4  | length of the unit in bytes |
//! | 8  | 16 | volume UUID |
//! | 24 | 8  | address, in blocks of the data area |
//! | 32 | 8  | context 0: by kind, see [`Kind`] |
//! | 40 | 8  | context 1 |
//!
//! So a unit opens only at the address, as the kind and with the write identity that it was sealed with. A device that
//! answers with another block, an older version of the block, or the block of another volume gives [`Forged`].

use std::fmt;

use aes_gcm_siv::aead::inout::InOutBuf;
use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};

use crate::units::{BlockAddr, Tag, Uuid, WriteId};

const FORMAT_VERSION: u8 = 2;

/// What a unit is. Its number is in the associated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A block of a file; context zero.
    Data = 1,
    /// A page of the metadata database; context: page number, 0.
    Page = 2,
    /// A node of the page map; context: index in its level, level.
    MapNode = 3,
    /// A page of the space bitmap; context: page number, 0.
    SpacePage = 4,
    /// A node of the space map; context: index in its level, level.
    SpaceNode = 5,
    /// A root record; context: slot of the ring, 0.
    Root = 6,
}

/// What a unit is bound to, besides its [`WriteId`] and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The volume.
    pub volume: Uuid,
    /// What the unit is.
    pub kind: Kind,
    /// Where the unit is.
    pub addr: BlockAddr,
    /// Which unit of its kind it is; see [`Kind`].
    pub context: [u64; 2],
}

impl Binding {
    /// A block of file data at `addr`.
    pub const fn data(volume: Uuid, addr: BlockAddr) -> Self {
        Self { volume, kind: Kind::Data, addr, context: [0; 2] }
    }

    fn associated_data(&self, len: usize) -> [u8; 48] {
        // Invariant: no unit is near 4 GiB; requests are bounded at 1 MiB.
        let len = u32::try_from(len).expect("length of a unit");
        let mut aad = [0; 48];
        aad[0] = b'S';
        aad[1] = FORMAT_VERSION;
        aad[2] = self.kind as u8;
        aad[4..8].copy_from_slice(&len.to_le_bytes());
        aad[8..24].copy_from_slice(&self.volume.0);
        aad[24..32].copy_from_slice(&self.addr.0.to_le_bytes());
        aad[32..40].copy_from_slice(&self.context[0].to_le_bytes());
        aad[40..48].copy_from_slice(&self.context[1].to_le_bytes());
        aad
    }
}

/// The unit is not what was sealed under this identity: altered, moved, stale, or of another volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the block does not authenticate")]
pub struct Forged;

/// A key, ready to seal and open units. Shared between threads; wiped when dropped.
#[derive(Clone)]
pub struct Cipher(Aes256GcmSiv);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

impl Cipher {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(Aes256GcmSiv::new(key.into()))
    }

    /// Seals `plain` into `out`, which has the same length; returns the tag to keep.
    ///
    /// # Panics
    /// When the lengths differ, which is a fault of the caller.
    #[must_use = "without its tag a unit cannot be opened again"]
    pub fn seal_block(&self, at: &Binding, id: WriteId, plain: &[u8], out: &mut [u8]) -> Tag {
        let buffer = InOutBuf::new(plain, out).expect("equal lengths are the caller's contract");
        self.seal(at, id, buffer)
    }

    /// Seals `block` in place; returns the tag to keep.
    #[must_use = "without its tag a unit cannot be opened again"]
    pub fn seal_in_place(&self, at: &Binding, id: WriteId, block: &mut [u8]) -> Tag {
        self.seal(at, id, block.into())
    }

    /// Opens `sealed` into `out`, which has the same length. After [`Forged`], `out` is zero: no byte that was not
    /// authenticated is left in it.
    ///
    /// # Panics
    /// When the lengths differ, which is a fault of the caller.
    pub fn open_block(
        &self,
        at: &Binding,
        id: WriteId,
        tag: &Tag,
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), Forged> {
        let buffer = InOutBuf::new(sealed, out).expect("equal lengths are the caller's contract");
        let opened = self.open(at, id, tag, buffer);
        if opened.is_err() {
            // The primitive decrypts before it compares the tags. To undo that it applies the key stream to its input
            // once more: with separate buffers the input is still sealed, and the plaintext would stay in `out`.
            out.fill(0);
        }
        opened
    }

    /// Opens `block` in place. After [`Forged`], `block` is sealed as before.
    pub fn open_in_place(&self, at: &Binding, id: WriteId, tag: &Tag, block: &mut [u8]) -> Result<(), Forged> {
        self.open(at, id, tag, block.into())
    }

    fn seal(&self, at: &Binding, id: WriteId, buffer: InOutBuf<'_, '_, u8>) -> Tag {
        let aad = at.associated_data(buffer.len());
        // Invariant: RFC 8452 §6 allows 2^36 bytes; `associated_data` has bounded the length to 32 bits.
        let tag = self.0.encrypt_inout_detached(&Nonce::from(id.nonce()), &aad, buffer);
        tag.expect("a unit is within the cipher's bounds").into()
    }

    fn open(&self, at: &Binding, id: WriteId, tag: &Tag, buffer: InOutBuf<'_, '_, u8>) -> Result<(), Forged> {
        let aad = at.associated_data(buffer.len());
        self.0.decrypt_inout_detached(&Nonce::from(id.nonce()), &aad, buffer, &(*tag).into()).map_err(|_| Forged)
    }
}

#[cfg(test)]
mod tests;
