//! Units and identities: numbers as types of their own, so that an address, a generation and an inode number cannot be
//! taken for each other.
//!
//! The module does not know what the numbers are used for. [`meter`] counts how long something takes.

pub mod meter;
mod text;

use std::fmt;

pub use text::{is_plain, shown};

/// Bytes in a block: the unit of allocation, of sealing and of every device transfer.
pub const BLOCK_SIZE: usize = 4096;

/// [`BLOCK_SIZE`] as a shift.
pub const BLOCK_SHIFT: u32 = 12;

const _: () = assert!(usize::BITS == 64, "scelle runs on 64-bit systems only");

/// A number as an index or a length in memory. Both types have 64 bits, so nothing is lost.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits: see the assertion")]
pub const fn to_usize(number: u64) -> usize {
    number as usize
}

/// Address of a block in the data area, in blocks from its beginning. The same on every replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockAddr(pub u64);

impl BlockAddr {
    /// Byte offset from the beginning of the data area.
    pub const fn bytes(self) -> u64 {
        self.0 << BLOCK_SHIFT
    }

    /// The address `blocks` further on.
    #[must_use]
    pub const fn add(self, blocks: u64) -> Self {
        Self(self.0 + blocks)
    }
}

/// A run of consecutive blocks in the data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// First block.
    pub addr: BlockAddr,
    /// Number of blocks, at least one.
    pub blocks: u64,
}

impl Run {
    /// The run of `blocks` blocks from `addr`.
    pub const fn new(addr: BlockAddr, blocks: u64) -> Self {
        Self { addr, blocks }
    }

    /// Length in bytes.
    pub const fn bytes(self) -> usize {
        to_usize(self.blocks) * BLOCK_SIZE
    }

    /// First block after the run.
    pub const fn end(self) -> BlockAddr {
        self.addr.add(self.blocks)
    }
}

/// Number of a commit. Generation 0 is "nothing was ever committed".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The next commit's number.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of one sealed unit: the mount's epoch and a counter within it. It is the AEAD's 96-bit nonce,
/// unique by construction because an epoch is durable before its first write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId {
    /// Number of the mount that wrote.
    pub epoch: u32,
    /// Number of the unit within the mount.
    pub counter: u64,
}

impl WriteId {
    /// The identity of the unit `n` further on in the same run of units.
    #[must_use]
    pub const fn add(self, n: u64) -> Self {
        Self { epoch: self.epoch, counter: self.counter + n }
    }

    /// The AEAD nonce: epoch, then counter, both little-endian.
    pub fn nonce(self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.epoch.to_le_bytes());
        nonce[4..].copy_from_slice(&self.counter.to_le_bytes());
        nonce
    }
}

/// Authentication tag of a sealed unit, full length (RFC 8452).
pub type Tag = [u8; 16];

/// Inode number. Never reused within a volume's life; 1 is the root folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root folder, as FUSE numbers it.
    pub const ROOT: Self = Self(1);
}

/// A random 128-bit identity, written as a UUID (RFC 9562, version 4).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A UUID of version 4 from 16 random bytes.
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// Parses the usual 36-character form, of either case.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 36 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 16];
        let mut at = 0;
        for (i, byte) in bytes.iter_mut().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                if text.as_bytes()[at] != b'-' {
                    return None;
                }
                at += 1;
            }
            let pair = &text.as_bytes()[at..at + 2];
            if !pair.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
            at += 2;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_round_trips_through_its_text() {
        let uuid = Uuid::from_random([0xa5; 16]);
        assert_eq!(Uuid::parse(&uuid.to_string()), Some(uuid));
        assert_eq!(uuid.to_string(), "a5a5a5a5-a5a5-45a5-a5a5-a5a5a5a5a5a5");
        for bad in ["", "a5a5a5a5-a5a5-45a5-a5a5-a5a5a5a5a5a", "a5a5a5a5_a5a5-45a5-a5a5-a5a5a5a5a5a5"] {
            assert_eq!(Uuid::parse(bad), None);
        }
    }

    #[test]
    fn nonces_of_neighbours_differ() {
        let first = WriteId { epoch: 7, counter: u64::from(u32::MAX) };
        assert_ne!(first.nonce(), first.add(1).nonce());
        assert_eq!(first.nonce()[..4], [7, 0, 0, 0]);
    }
}
