//! Signatures in minisign's format, by a key that is derived from a seed and kept nowhere. The stock `minisign`
//! verifies them too.

use std::io::Cursor;

use ed25519_compact::{KeyPair, Seed};
use minisign::{PublicKey, SecretKey};
use zeroize::Zeroizing;

use super::{Error, keys};
use crate::crypto;

/// First line of a signature. minisign does not authenticate this line; it is fixed, so that any other line is
/// recognised as altered.
const COMMENT: &str = "signature of a scelle audit trail";

/// A signing key made from a seed. Its parts are in the process's memory, and so is the volume key that the seed comes
/// from.
pub struct DerivedKey {
    secret: SecretKey,
    public: PublicKey,
}

impl DerivedKey {
    /// The Ed25519 key of `seed` (RFC 8032 §5.1.5). minisign names keys by a key number: here it is the first 8 bytes
    /// of the SHA-384 of the public key.
    ///
    /// # Errors
    /// [`Error::Key`]; no seed is known to cause it.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, Error> {
        let pair = KeyPair::from_seed(Seed::new(*seed));
        let number = &crypto::sha384(&[&pair.pk[..]])[..8];
        // A secret key of minisign(1): algorithm, no key derivation, checksum algorithm; salt (32 bytes) and two limits
        // (8 bytes each) of the derivation; key number; key (seed and public key); checksum (32 bytes, read only with a
        // password).
        let parts: [&[u8]; 6] = [b"Ed\0\0B2", &[0; 48], number, &pair.sk[..], &[0; 32], &[]];
        let bytes = Zeroizing::new(parts.concat());
        let secret = SecretKey::from_bytes(&bytes).map_err(keys::key_error)?;
        let public = PublicKey::from_secret_key(&secret).map_err(keys::key_error)?;
        Ok(Self { secret, public })
    }

    /// The public key as minisign writes it (base64).
    pub fn public_key(&self) -> String {
        self.public.to_base64()
    }

    /// Signs `document`; returns the content of a `.minisig` file.
    ///
    /// # Errors
    /// [`Error::Key`] when the system gives no random bytes.
    pub fn sign(&self, document: &[u8], trusted_comment: &str) -> Result<String, Error> {
        let comment = keys::comment_of(trusted_comment);
        let signature =
            minisign::sign(Some(&self.public), &self.secret, Cursor::new(document), Some(&comment), Some(COMMENT));
        Ok(signature.map_err(keys::key_error)?.into_string())
    }
}

/// The public key in `text`: the content of a public key file of minisign, or its second line alone.
///
/// # Errors
/// [`Error::Key`] when there is none.
pub fn public_key_of(text: &str) -> Result<String, Error> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with("untrusted comment:"));
    let line = line.ok_or_else(|| Error::Key("there is no public key".into()))?;
    Ok(keys::public_key(line).map_err(Error::Key)?.to_base64())
}

/// Verifies a signature of [`DerivedKey::sign`]. Every character of the signature counts, also the first line, which
/// nobody signs.
///
/// # Errors
/// [`Error::Key`] with what is wrong with the key or the signature.
pub fn verify_document(public_key: &str, document: &[u8], signature: &str) -> Result<(), Error> {
    let key = keys::public_key(public_key).map_err(Error::Key)?;
    keys::verify_hashed(&key, document, signature.as_bytes()).map_err(Error::Key)?;
    if !signature.starts_with(&format!("untrusted comment: {COMMENT}\n")) {
        return Err(Error::Key("the signature is not written as it was made".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// RFC 8032 §7.1, test 1: seed and public key.
    #[test]
    fn the_key_of_a_seed_is_rfc_8032s() {
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let key = DerivedKey::from_seed(&seed.try_into().unwrap()).unwrap();
        assert_eq!(key.public.to_bytes()[10..], public);
        assert_eq!(public_key_of(&key.public_key()).unwrap(), key.public_key());
        let file = key.public.to_box().unwrap().into_string();
        assert_eq!(public_key_of(&file).unwrap(), key.public_key());
        assert!(public_key_of("").is_err() && public_key_of("RWQ").is_err());
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn any_changed_character_of_a_signature_counts() {
        let key = DerivedKey::from_seed(&[7; 32]).unwrap();
        let signature = key.sign(b"document", "trusted").unwrap();
        verify_document(&key.public_key(), b"document", &signature).unwrap();
        assert!(verify_document(&key.public_key(), b"documenT", &signature).is_err());
        let other = DerivedKey::from_seed(&[8; 32]).unwrap();
        assert!(verify_document(&other.public_key(), b"document", &signature).is_err());
        for at in 0..signature.len() {
            for to in [b'A', b'B', b'/', b'=', b' ', b'\n'] {
                let mut changed = signature.clone().into_bytes();
                if changed[at] == to {
                    continue;
                }
                changed[at] = to;
                let changed = String::from_utf8(changed).unwrap();
                assert!(verify_document(&key.public_key(), b"document", &changed).is_err(), "{at}: {changed}");
            }
        }
    }
}
