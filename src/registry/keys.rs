//! Officers' keys and signatures, in minisign's format, read so that signed bytes have one meaning.
//!
//! A signature file of minisign(1) says by two bytes what was signed: `Ed` a document itself, `ED` the document's
//! BLAKE2b-512. These two bytes are not signed. So somebody who gets an officer to sign a file of 64 bytes the first
//! way could hand it over as a signature, the second way, of any document with that hash. The trusted comment is
//! signed, by a second signature in the file. The tools that sign the second way end the comment with a tab and the
//! word [`HASHED`], and no signature counts without it.
//!
//! A signature file and a public key have exactly one spelling each: the one in which minisign writes them.

use std::io::Cursor;

use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox, SignatureBox};
use zeroize::Zeroizing;

use super::Error;
use crate::limits;
use crate::units::is_plain;

/// What the trusted comment ends with when the hash of the document was signed, after a tab: the first is minisign's
/// word, the second that of another tool of the same format (rsign).
const HASHED: [&str; 2] = ["hashed", "prehashed"];

/// Bytes of a public key: algorithm (2), key number (8), Ed25519 key (32).
const KEY_BYTES: usize = 42;

/// A new key pair, as the texts of the two files that minisign would write.
pub struct KeyFiles {
    /// Content of the secret key file.
    pub secret: Zeroizing<String>,
    /// Content of the public key file.
    pub public: String,
    /// The public key alone, as `trust.toml` has it.
    pub public_key: String,
}

/// Makes an officer's keys. Without a password the secret key file is not encrypted.
///
/// # Errors
/// [`Error::Key`] when the system gives no random bytes.
pub fn keygen(officer: &str, password: Option<&str>) -> Result<KeyFiles, Error> {
    check_officer(officer)?;
    let pair = match password {
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password.to_owned())),
        None => KeyPair::generate_unencrypted_keypair(),
    }
    .map_err(key_error)?;
    let comment = format!("scelle registry officer {officer}, secret key");
    Ok(KeyFiles {
        secret: Zeroizing::new(pair.sk.to_box(Some(&comment)).map_err(key_error)?.into_string()),
        public: pair.pk.to_box().map_err(key_error)?.into_string(),
        public_key: pair.pk.to_base64(),
    })
}

/// Refuses a name that trust anchors cannot have: nobody would look for a signature of that name.
///
/// # Errors
/// [`Error::OfficerName`].
pub fn check_officer(name: &str) -> Result<(), Error> {
    super::table::check_id(name).map_err(Error::OfficerName)
}

/// Whether a secret key file asks for a password.
///
/// # Errors
/// [`Error::Key`] when it is not a secret key file.
pub fn is_encrypted(secret_key_file: &str) -> Result<bool, Error> {
    // Algorithm (2 bytes), then key derivation (2 bytes): "Sc", or two zeros without a password; see minisign(1).
    let key = secret_key_file.lines().nth(1).ok_or_else(|| Error::Key("not a secret key file".into()))?;
    match decode_base64(key.trim()).as_deref() {
        Some([b'E', b'd', b'S', b'c', ..]) => Ok(true),
        Some([b'E', b'd', 0, 0, ..]) => Ok(false),
        _ => Err(Error::Key("not a secret key file of minisign".into())),
    }
}

/// Signs `document` with the content of a secret key file; returns the content of the `.minisig` file.
///
/// # Errors
/// [`Error::Key`] for a file that is no secret key or a wrong password.
pub fn sign(
    document: &[u8],
    secret_key_file: &str,
    password: Option<&str>,
    trusted_comment: &str,
) -> Result<String, Error> {
    let key_box = SecretKeyBox::from_string(secret_key_file).map_err(key_error)?;
    let key: SecretKey = match (is_encrypted(secret_key_file)?, password) {
        // minisign 0.11 leaves the checksum out of a key without password, and the library insists on one.
        (false, _) => key_box.into_unencrypted_secret_key().map_err(|e| {
            Error::Key(format!("{e}. A key that minisign made without a password is for minisign alone (-S -W)"))
        })?,
        (true, Some(password)) => key_box.into_secret_key(Some(password.to_owned())).map_err(key_error)?,
        (true, None) => return Err(Error::Key("this secret key asks for a password".into())),
    };
    let public = PublicKey::from_secret_key(&key).map_err(key_error)?;
    let comment = comment_of(trusted_comment);
    let signature = minisign::sign(
        Some(&public),
        &key,
        Cursor::new(document),
        Some(&comment),
        Some("signature of a scelle registry"),
    )
    .map_err(key_error)?;
    Ok(signature.into_string())
}

/// A trusted comment: this text in one line, and the word that says what was signed.
pub(super) fn comment_of(text: &str) -> String {
    let text: String = text.chars().filter(|c| is_plain(*c)).take(limits::REGISTRY_TEXT_MAX).collect();
    format!("{}\t{}", text.trim(), HASHED[0]).trim_start().to_owned()
}

/// The public key that `text` is, in minisign's spelling of it and no other.
///
/// A key of small order is refused: with such a key everybody can make signatures.
pub(super) fn public_key(text: &str) -> Result<PublicKey, String> {
    let key = PublicKey::from_base64(text).map_err(|e| e.to_string())?;
    let bytes = key.to_bytes();
    if bytes.len() != KEY_BYTES || !bytes.starts_with(b"Ed") || key.to_base64() != text {
        return Err("it is not an Ed25519 key as minisign writes it".to_owned());
    }
    // Algorithm and key number are the first 10 bytes.
    let point = ed25519_compact::PublicKey::from_slice(&bytes[10..]).map_err(|e| e.to_string())?;
    point.validate().map_err(|e| format!("it is no key that only one holder can sign with ({e})"))?;
    Ok(key)
}

/// Verifies one signature file, as the module's page says. The trusted comment must verify too.
pub(super) fn verify_signature(key: &PublicKey, document: &[u8], signature: &[u8]) -> Result<(), String> {
    let comment = verify_hashed(key, document, signature)?;
    if !comment.rsplit_once('\t').is_some_and(|(_, last)| HASHED.contains(&last)) {
        return Err("its trusted comment does not end with a tab and the word \"hashed\": sign it anew with scelle \
                    registry sign, or with minisign and without -t"
            .into());
    }
    Ok(())
}

/// As [`verify_signature`], but returns the trusted comment, whatever it says. Only for a key that no program signs with
/// but this one: no document itself was ever signed with it.
pub(super) fn verify_hashed(key: &PublicKey, document: &[u8], signature: &[u8]) -> Result<String, String> {
    if signature.len() > limits::SIGNATURE_BYTES_MAX {
        return Err("the signature file is too large".into());
    }
    let text = std::str::from_utf8(signature).map_err(|_| "the signature file is not text".to_owned())?;
    // The library reads only prefixes of what it decodes, and indexes into a global signature that may be too short. So
    // the exact lengths are checked here first: 2 + 8 + 64 bytes, and 64.
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() != 4
        || decode_base64(lines[1].trim()).map(|b| b.len()) != Some(74)
        || decode_base64(lines[3].trim()).map(|b| b.len()) != Some(64)
    {
        return Err("not a minisign signature".into());
    }
    let signature = SignatureBox::from_string(text).map_err(|e| e.to_string())?;
    let comment = signature.trusted_comment().map_err(|e| e.to_string())?;
    if !signature.is_prehashed() {
        return Err("it signs the document itself, not its hash (minisign -l): sign it anew without -l".into());
    }
    // Spaces, line ends and the unused bits of base64 are not signed. One spelling counts, so that nothing hides there.
    if signature.clone().into_string() != text {
        return Err("it is not written as minisign writes it: copy the file as it was made".into());
    }
    minisign::verify(key, &signature, Cursor::new(document), true, false, false).map_err(|e| e.to_string())?;
    Ok(comment)
}

/// Strict base64 (RFC 4648 §4) with padding.
pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
        return None;
    }
    let padding = bytes.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len() / 4 * 3);
    for (i, group) in bytes.chunks_exact(4).enumerate() {
        let last = (i + 1) * 4 == bytes.len();
        let mut bits = 0u32;
        for (j, &byte) in group.iter().enumerate() {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' if last && j >= 4 - padding => 0,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        out.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    out.truncate(out.len() - padding);
    Some(out)
}

pub(super) fn key_error(error: minisign::PError) -> Error {
    Error::Key(error.to_string())
}
