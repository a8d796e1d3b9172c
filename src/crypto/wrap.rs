//! Wrapping the volume key with a slot key.

use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};

use super::{Error, SlotKey, VolumeKey, random_bytes};
use crate::units::Tag;

/// The volume key under a slot key, as a key slot holds it: 60 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// Random nonce.
    pub nonce: [u8; 12],
    /// The volume key, sealed.
    pub ciphertext: [u8; 32],
    /// Full-length tag.
    pub tag: Tag,
}

/// Seals the volume key under a slot key (AES-256-GCM-SIV, random nonce). The associated data `aad` is the digest of
/// the header's immutable part.
pub fn wrap_key(key: &VolumeKey, slot: &SlotKey, aad: &[u8]) -> Result<WrappedKey, Error> {
    Ok(wrap_with_nonce(key, slot, aad, random_bytes()?))
}

fn wrap_with_nonce(key: &VolumeKey, slot: &SlotKey, aad: &[u8], nonce: [u8; 12]) -> WrappedKey {
    let mut ciphertext = *key.bytes();
    // Invariant: RFC 8452 §6 allows 2^36 bytes of either input; these are 32 and a digest.
    let tag = cipher(slot)
        .encrypt_inout_detached(&Nonce::from(nonce), aad, ciphertext.as_mut_slice().into())
        .expect("32 bytes are within the cipher's bounds");
    WrappedKey { nonce, ciphertext, tag: tag.into() }
}

/// Opens a wrapped key.
///
/// # Errors
/// [`Error::WrongKey`] for another slot key, another `aad` or an altered wrapped key.
pub fn unwrap_key(wrapped: &WrappedKey, slot: &SlotKey, aad: &[u8]) -> Result<VolumeKey, Error> {
    let mut key = VolumeKey::zero();
    key.bytes_mut().copy_from_slice(&wrapped.ciphertext);
    cipher(slot)
        .decrypt_inout_detached(
            &Nonce::from(wrapped.nonce),
            aad,
            key.bytes_mut().as_mut_slice().into(),
            &wrapped.tag.into(),
        )
        .map_err(|_| Error::WrongKey)?;
    Ok(key)
}

fn cipher(slot: &SlotKey) -> Aes256GcmSiv {
    Aes256GcmSiv::new(slot.0.get().into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::crypto::secret::KeyBytes;
    use crate::crypto::{KdfParams, Secret, derive_slot_key};

    fn slot(byte: u8) -> SlotKey {
        let mut key = KeyBytes::zero();
        key.get_mut().fill(byte);
        SlotKey(key)
    }

    #[test]
    fn wrapped_key_opens_only_with_its_slot_key_and_header() {
        let key = VolumeKey::generate().unwrap();
        let wrapped = wrap_key(&key, &slot(1), b"header").unwrap();
        assert_ne!(&wrapped.ciphertext, key.bytes());
        assert_eq!(unwrap_key(&wrapped, &slot(1), b"header").unwrap().bytes(), key.bytes());
        assert_eq!(unwrap_key(&wrapped, &slot(2), b"header").unwrap_err(), Error::WrongKey);
        assert_eq!(unwrap_key(&wrapped, &slot(1), b"Header").unwrap_err(), Error::WrongKey);
        let mut altered = wrapped;
        altered.tag[15] ^= 1;
        assert_eq!(unwrap_key(&altered, &slot(1), b"header").unwrap_err(), Error::WrongKey);
        altered = wrapped;
        altered.nonce[0] ^= 1;
        assert_eq!(unwrap_key(&altered, &slot(1), b"header").unwrap_err(), Error::WrongKey);
    }

    #[test]
    fn each_wrap_has_its_own_nonce() {
        let key = VolumeKey::generate().unwrap();
        assert_ne!(wrap_key(&key, &slot(1), b"").unwrap().nonce, wrap_key(&key, &slot(1), b"").unwrap().nonce);
    }

    /// Frozen, and computed with another implementation (OpenSSL): format version 2, as in version 1. A change here makes every volume
    /// unreadable.
    #[test]
    fn frozen_vector_from_passphrase_to_wrapped_key() {
        let secret = Secret::new(b"scelle test passphrase".to_vec()).unwrap();
        let slot = derive_slot_key(&secret, &[0x5a; 32], &KdfParams::FLOOR).unwrap();
        let key = VolumeKey::take(&mut [0x11; 32]);
        let wrapped = wrap_with_nonce(&key, &slot, &[0x22; 32], [0x33; 12]);
        let bytes = [&wrapped.ciphertext[..], &wrapped.tag[..]].concat();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "0eed10f0aaae710f1f8fece9b187afc46d424c76d2d5fafadbaa38069c2ff93e4db770dc1d8de81d613a7c702f08cb19"
        );
    }
}
