//! Containers of secret bytes.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

use super::Error;
use crate::limits::SECRET_BYTES_MAX;

/// A passphrase, or the content of a key file: 1 to [`SECRET_BYTES_MAX`] bytes of any value, wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over. Refused bytes are wiped too.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Error> {
        let bytes = Zeroizing::new(bytes);
        match bytes.len() {
            0 => Err(Error::EmptySecret),
            1..=SECRET_BYTES_MAX => Ok(Self(bytes)),
            n => Err(Error::SecretTooLong { bytes: n, max: SECRET_BYTES_MAX }),
        }
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

/// The key of a volume, 256 random bits, wiped when dropped. Everything on the devices hangs from it.
#[derive(Clone)]
pub struct VolumeKey(Box<Zeroizing<[u8; 32]>>);

impl VolumeKey {
    /// A new random key.
    pub fn generate() -> Result<Self, Error> {
        let mut key = Self::zero();
        getrandom::fill(&mut key.0[..]).map_err(|e| Error::Random(e.to_string()))?;
        Ok(key)
    }

    /// The key with these bytes, which are wiped where they came from.
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        let mut key = Self::zero();
        key.0.copy_from_slice(bytes);
        bytes.zeroize();
        key
    }

    /// A container to be filled in place, so that no copy of a key stays on a stack.
    pub(super) fn zero() -> Self {
        Self(Box::new(Zeroizing::new([0; 32])))
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; 32] {
        &mut self.0
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
