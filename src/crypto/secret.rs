//! Containers of secret bytes.

use std::fmt;

use unicode_normalization::UnicodeNormalization;
use zeroize::{Zeroize, Zeroizing};

use super::Error;
use crate::limits::SECRET_BYTES_MAX;
use crate::os::Locked;

/// A passphrase, or the content of a key file: 1 to [`SECRET_BYTES_MAX`] bytes of any value, in locked memory, wiped when
/// dropped.
#[derive(Clone)]
pub struct Secret(Locked);

impl Secret {
    /// Takes the bytes over. They are wiped where they were, also when they are refused.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::copied(&Zeroizing::new(bytes))
    }

    /// Copies the bytes.
    pub fn copied(bytes: &[u8]) -> Result<Self, Error> {
        match bytes.len() {
            0 => Err(Error::EmptySecret),
            1..=SECRET_BYTES_MAX => Ok(Self(Locked::copied(bytes))),
            n => Err(Error::SecretTooLong { bytes: n, max: SECRET_BYTES_MAX }),
        }
    }

    /// What a person typed, or the content of a file, however that was encoded: text is brought into the normal form NFC
    /// (UAX #15). So an é that a keyboard or a program made of two characters is the é of all others. What is not UTF-8 is
    /// taken as it is, so a key file of random bytes is never changed; and one that is text is changed always in the same
    /// way.
    pub fn of_text_or_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let Ok(text) = std::str::from_utf8(bytes) else { return Self::copied(bytes) };
        // No text grows to more than three times its length (UAX #15, section 13).
        let mut normal = Locked::zeroed(3 * bytes.len());
        let mut length = 0;
        for char in text.nfc() {
            length += char.encode_utf8(&mut normal[length..]).len();
        }
        Self::copied(&normal[..length])
    }

    /// The bytes, for a key derivation or for comparing two typed passphrases.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// 32 bytes of key in locked memory, wiped when dropped. They are filled in place, so that no copy stays on a stack.
#[derive(Clone)]
pub(super) struct KeyBytes(Locked);

impl KeyBytes {
    pub(super) fn zero() -> Self {
        Self(Locked::zeroed(32))
    }

    pub(super) fn get(&self) -> &[u8; 32] {
        // Invariant: 32 bytes were allocated.
        self.0[..].try_into().expect("32 bytes of key")
    }

    pub(super) fn get_mut(&mut self) -> &mut [u8; 32] {
        // Invariant: as above.
        (&mut self.0[..]).try_into().expect("32 bytes of key")
    }
}

/// The key of a volume, 256 random bits, in locked memory, wiped when dropped. Everything on the devices hangs from it.
#[derive(Clone)]
pub struct VolumeKey(KeyBytes);

impl VolumeKey {
    /// A new random key.
    pub fn generate() -> Result<Self, Error> {
        let mut key = Self::zero();
        getrandom::fill(key.bytes_mut()).map_err(|e| Error::Random(e.to_string()))?;
        Ok(key)
    }

    /// The key with these bytes, which are wiped where they came from.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        let mut key = Self::zero();
        key.bytes_mut().copy_from_slice(bytes);
        bytes.zeroize();
        key
    }

    /// A container to be filled in place.
    pub(super) fn zero() -> Self {
        Self(KeyBytes::zero())
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        self.0.get()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; 32] {
        self.0.get_mut()
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::crypto::{KdfParams, Keys, derive_slot_key};
    use crate::units::Uuid;

    #[test]
    fn secret_is_bounded() {
        assert_eq!(Secret::new(Vec::new()).unwrap_err(), Error::EmptySecret);
        assert!(Secret::new(vec![0; SECRET_BYTES_MAX]).is_ok());
        assert!(matches!(Secret::new(vec![0; SECRET_BYTES_MAX + 1]), Err(Error::SecretTooLong { .. })));
    }

    #[test]
    fn text_has_one_form_and_bytes_keep_theirs() {
        let of = |bytes: &[u8]| Secret::of_text_or_bytes(bytes).unwrap().expose().to_vec();
        assert_eq!(of("scellé".as_bytes()), of("scelle\u{301}".as_bytes()));
        assert_eq!(of("scelle\u{301}".as_bytes()), "scellé".as_bytes());
        assert_ne!(of("scellé".as_bytes()), of("scelle".as_bytes()));
        // One character that grows to three in this form.
        assert_eq!(of("\u{1d160}".as_bytes()), "\u{1d158}\u{1d165}\u{1d16e}".as_bytes());
        for kept in [&b"\xff\xfee\xcc\x81"[..], b"plain", b"\0\r\n"] {
            assert_eq!(of(kept), kept);
        }
        let longest = "\u{1d160}".repeat(SECRET_BYTES_MAX / 4);
        assert!(matches!(Secret::of_text_or_bytes(longest.as_bytes()), Err(Error::SecretTooLong { .. })));
        assert_eq!(Secret::of_text_or_bytes(b"").unwrap_err(), Error::EmptySecret);
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = Secret::new(b"correct horse".to_vec()).unwrap();
        let slot = derive_slot_key(&secret, &[7; 32], &KdfParams::FLOOR).unwrap();
        let mut bytes = [0x41; 32];
        let key = VolumeKey::take(&mut bytes);
        assert_eq!(bytes, [0; 32]);
        let keys = Keys::derive(&key, Uuid([3; 16]));
        let data = keys.data(1);
        let shown = format!("{secret:?} {slot:?} {key:?} {keys:?} {:?} {data:?}", keys.page());
        assert_eq!(
            shown,
            "Secret(..) SlotKey(..) VolumeKey(..) Keys(03030303-0303-0303-0303-030303030303) Cipher(..) Cipher(..)"
        );
    }
}
