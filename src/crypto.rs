//! Secrets, the key hierarchy, sealing and opening. No input or output, no `unsafe`, one cipher.
//!
//! The module does not know where a sealed unit or a key slot is kept: [`label`](crate::label) and
//! [`pages`](crate::pages) do.
//!
//! ```text
//! Secret (passphrase or key file)
//!   └─ argon2id, parameters and salt of the key slot (RFC 9106) ──> SlotKey
//!        └─ opens the slot's wrapped key (AES-256-GCM-SIV, RFC 8452) ──> VolumeKey, 256 random bits
//!             └─ HKDF-SHA-256 (RFC 5869), salt = volume UUID, info = one of
//!                  "scelle v2 page"            ──> pages, page map, space pages and nodes
//!                  "scelle v2 root"            ──> root records
//!                  "scelle v2 label"           ──> HMAC-SHA-256 over the header
//!                  "scelle v2 data" ‖ u32 LE   ──> file data of one epoch
//!                  "scelle v2 audit"           ──> seed of the audit trail's signing key
//! ```
//!
//! There is nothing to negotiate: the format names no cipher, so no field on a device can choose a weaker one. A key
//! slot chooses only the cost of argon2id. That cost has a floor ([`KdfParams::FLOOR`]) and a ceiling
//! ([`KdfParams::CEILING`]) here.
//!
//! Passphrases, slot keys and volume keys live in memory of their own ([`Locked`](crate::os::Locked)), in containers that
//! wipe themselves and whose `Debug` shows nothing. The keys derived from a volume key ([`Keys`]) are wiped too, and not
//! shown either. Keeping all of a process out of swap and of core dumps is the process's business
//! ([`os::process`](crate::os::process)).

use sha2::{Digest, Sha256, Sha384};

use crate::problem::Code;

mod cipher;
mod kdf;
mod keys;
mod secret;
mod strength;
mod wrap;

pub use cipher::{Binding, Cipher, Forged, Kind};
pub use kdf::{KdfParams, SlotKey, derive_slot_key};
pub use keys::Keys;
pub use secret::{Secret, VolumeKey};
pub use strength::check_strength;
pub use wrap::{WrappedKey, unwrap_key, wrap_key};

/// Why a secret, a key or the key derivation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A passphrase or key file without a single byte.
    #[error("the passphrase is empty")]
    EmptySecret,
    /// A passphrase or key file above [`SECRET_BYTES_MAX`](crate::limits::SECRET_BYTES_MAX).
    #[error("the passphrase or key file has {bytes} bytes, at most {max} are allowed")]
    SecretTooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A new passphrase that is too easy to guess.
    #[error(
        "the passphrase is too easy to guess: it has {chars} characters, of at least {min}, and about 10^{digits} guesses \
         find it; at least 10^10 are asked for", min = crate::limits::PASSPHRASE_CHARS_MIN
    )]
    WeakPassphrase {
        /// How many characters it has.
        chars: usize,
        /// Guesses that find it, as a power of ten.
        digits: u32,
    },
    /// A new key file that holds too little.
    #[error(
        "the key file is too easy to guess: its bytes hold about {bits} bits, at least {min} are asked for",
        min = crate::limits::KEY_FILE_BITS_MIN
    )]
    WeakKeyFile {
        /// What its bytes hold.
        bits: u32,
    },
    /// Parameters below [`KdfParams::FLOOR`] in at least one field.
    #[error("weak key slot: argon2id with {found}, at least {floor} is required", floor = KdfParams::FLOOR)]
    WeakKdf {
        /// What the slot asks for.
        found: KdfParams,
    },
    /// Parameters above [`KdfParams::CEILING`] in at least one field.
    #[error("key slot asks for argon2id with {found}, more than the allowed {ceiling}", ceiling = KdfParams::CEILING)]
    ExcessiveKdf {
        /// What the slot asks for.
        found: KdfParams,
    },
    /// The slots that the labels show ask for more work than one attempt may cost; the rest was not tried.
    #[error(
        "no key slot opened within the work that an attempt may cost, and {untried} of the slots that the labels show were not tried"
    )]
    TooMuchWork {
        /// Slots that were not tried.
        untried: usize,
    },
    /// The memory that argon2id needs is not available.
    #[error("not enough memory for argon2id: {memory_kib} KiB are needed")]
    KdfMemory {
        /// What was asked for.
        memory_kib: u32,
    },
    /// The slot key does not open the wrapped key: another passphrase, or an altered slot or header. These causes
    /// cannot be told apart.
    #[error("wrong passphrase, or the key slot was altered")]
    WrongKey,
    /// The kernel gave no random bytes.
    #[error("the system's random number generator failed: {0}")]
    Random(String),
}

impl Error {
    /// Its code.
    pub fn code(&self) -> Code {
        match self {
            Self::EmptySecret | Self::SecretTooLong { .. } => Code::PassphraseUnusable,
            Self::WeakPassphrase { .. } | Self::WeakKeyFile { .. } => Code::PassphraseWeak,
            Self::WeakKdf { .. } | Self::ExcessiveKdf { .. } | Self::TooMuchWork { .. } => Code::KeySlotRefused,
            Self::KdfMemory { .. } | Self::Random(_) => Code::Crypto,
            Self::WrongKey => Code::WrongKey,
        }
    }
}

/// `N` bytes from the system's random number generator (getrandom(2)).
pub fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::Random(e.to_string()))?;
    Ok(bytes)
}

/// SHA-256 of the concatenation of `parts` (FIPS 180-4).
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// SHA-384 of the concatenation of `parts` (FIPS 180-4): the digest of the audit trail.
pub fn sha384(parts: &[&[u8]]) -> [u8; 48] {
    let mut hash = Sha384::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_over_the_concatenation() {
        // FIPS 180-4 example, "abc".
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hex: String = sha256(&[b"a", b"", b"bc"]).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn sha384_is_over_the_concatenation() {
        // FIPS 180-4 example, "abc".
        let expected = "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded163\
                        1a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7";
        let hex: String = sha384(&[b"a", b"", b"bc"]).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random_bytes::<32>(), random_bytes::<32>());
    }
}
