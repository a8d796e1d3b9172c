//! The keys that hang from a volume key: HKDF-SHA-256 (RFC 5869), salt = volume UUID.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Cipher, VolumeKey};
use crate::units::Uuid;

/// Most data ciphers kept at hand. A volume that was mounted more often than this derives some anew (microseconds).
const DATA_CIPHERS_MAX: usize = 1024;

/// The working keys of an open volume. Shared between threads; wiped when dropped.
pub struct Keys {
    volume: Uuid,
    root_of_all: VolumeKey,
    page: Cipher,
    root: Cipher,
    label: Zeroizing<[u8; 32]>,
    data: RwLock<HashMap<u32, Arc<Cipher>>>,
}

impl Keys {
    /// Derives the keys of the volume named `volume`.
    pub fn derive(key: &VolumeKey, volume: Uuid) -> Self {
        let expand = |info: &[&[u8]]| expand(key, volume, info);
        Self {
            volume,
            page: Cipher::new(&expand(&[b"scelle v2 page"])),
            root: Cipher::new(&expand(&[b"scelle v2 root"])),
            label: expand(&[b"scelle v2 label"]),
            data: RwLock::default(),
            root_of_all: key.clone(),
        }
    }

    /// The volume that these are the keys of.
    pub fn volume(&self) -> Uuid {
        self.volume
    }

    /// Cipher of pages, page map nodes, space pages and space nodes.
    pub fn page(&self) -> &Cipher {
        &self.page
    }

    /// Cipher of root records.
    pub fn root(&self) -> &Cipher {
        &self.root
    }

    /// Cipher of the file data written in `epoch`.
    pub fn data(&self, epoch: u32) -> Arc<Cipher> {
        if let Some(cipher) = self.data.read().get(&epoch) {
            return Arc::clone(cipher);
        }
        let key = expand(&self.root_of_all, self.volume, &[b"scelle v2 data", &epoch.to_le_bytes()]);
        let mut cache = self.data.write();
        if cache.len() >= DATA_CIPHERS_MAX {
            cache.clear();
        }
        Arc::clone(cache.entry(epoch).or_insert_with(|| Arc::new(Cipher::new(&key))))
    }

    /// HMAC-SHA-256 (RFC 2104) with the label key.
    pub fn label_mac(&self, bytes: &[u8]) -> [u8; 32] {
        self.label_hmac(bytes).finalize().into_bytes().into()
    }

    /// Whether `mac` is the label MAC of `bytes`, in constant time.
    pub fn label_mac_verifies(&self, bytes: &[u8], mac: &[u8; 32]) -> bool {
        self.label_hmac(bytes).verify_slice(mac).is_ok()
    }

    /// Seed of the key that signs the audit trail.
    pub fn audit_seed(&self) -> Zeroizing<[u8; 32]> {
        expand(&self.root_of_all, self.volume, &[b"scelle v2 audit"])
    }

    /// The volume key itself, to wrap it for another key slot.
    pub fn volume_key(&self) -> &VolumeKey {
        &self.root_of_all
    }

    fn label_hmac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        // Invariant: HMAC takes keys of any length (RFC 2104 §2).
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.label[..]).expect("a key of any length");
        mac.update(bytes);
        mac
    }
}

impl VolumeKey {
    /// The working keys of the volume named `volume`: [`Keys::derive`].
    pub fn keys(&self, volume: Uuid) -> Keys {
        Keys::derive(self, volume)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.volume)
    }
}

fn expand(key: &VolumeKey, volume: Uuid, info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    // Invariant: RFC 5869 §2.3 allows 255 hashes of output; this is one.
    Hkdf::<Sha256>::new(Some(&volume.0), key.bytes())
        .expand_multi_info(info, &mut out[..])
        .expect("one hash of output");
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::crypto::Binding;
    use crate::units::{BlockAddr, WriteId};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// RFC 5869 appendix A.1: the primitive as we call it.
    #[test]
    fn rfc_5869_vector() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let mut okm = [0; 42];
        Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22]).expand_multi_info(&[&info[..4], &info[4..]], &mut okm).unwrap();
        assert_eq!(hex(&okm), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
    }

    /// Frozen, and computed with another implementation (in Python): format version 2. A change here makes every volume
    /// unreadable.
    #[test]
    fn frozen_vectors_of_the_hierarchy() {
        let key = VolumeKey::take(&mut [0x11; 32]);
        let volume = Uuid([0x44; 16]);
        assert_eq!(
            hex(&expand(&key, volume, &[b"scelle v2 page"])[..]),
            "c340b7d45c38de58e0b9e25c2e42e78bfd0db66bf0ba1005e89d860c136f5535"
        );
        let keys = key.keys(volume);
        assert_eq!(hex(&keys.label_mac(b"header")), "b1deddb918cb326ef4c34669d4c190d66ea7446df2274c5184a2aefc322bbffe");
        assert_eq!(hex(&keys.audit_seed()[..]), "f0accc1a6615b5ddafabd53d4b6d317a4414531364df40488b9a549ad4613037");
        let at = Binding::data(volume, BlockAddr(9));
        let id = WriteId { epoch: 2, counter: 3 };
        let mut block = [0x55; 32];
        let tag = keys.data(2).seal_in_place(&at, id, &mut block);
        assert_eq!(
            hex(&[&block[..], &tag[..]].concat()),
            "73fdc5b56e012e292e98a25dbdfecc0fc1b2015cb376d88c55649ad832ea2e87bd611eb1c748b5039625bb7981eb7dca"
        );
    }

    #[test]
    fn no_two_keys_are_the_same() {
        let key = VolumeKey::take(&mut [1; 32]);
        let keys = key.keys(Uuid([2; 16]));
        let other = key.keys(Uuid([3; 16]));
        let at = Binding::data(Uuid([2; 16]), BlockAddr(0));
        let id = WriteId { epoch: 0, counter: 0 };
        let mut seen = std::collections::HashSet::new();
        for cipher in [keys.page(), keys.root(), &keys.data(0), &keys.data(1), &keys.data(256), other.page()] {
            let mut block = [0; 16];
            assert!(seen.insert((cipher.seal_in_place(&at, id, &mut block), block)));
        }
        assert_eq!(seen.len(), 6);
    }

    #[test]
    fn data_cipher_cache_is_bounded() {
        let keys = VolumeKey::take(&mut [1; 32]).keys(Uuid([2; 16]));
        assert!(Arc::ptr_eq(&keys.data(7), &keys.data(7)));
        for epoch in 0..DATA_CIPHERS_MAX as u32 + 10 {
            keys.data(epoch);
        }
        assert!(keys.data.read().len() <= DATA_CIPHERS_MAX);
    }

    #[test]
    fn label_mac_verifies_only_its_bytes() {
        let keys = VolumeKey::take(&mut [1; 32]).keys(Uuid([2; 16]));
        let mac = keys.label_mac(b"abc");
        assert!(keys.label_mac_verifies(b"abc", &mac));
        assert!(!keys.label_mac_verifies(b"abd", &mac));
    }
}
