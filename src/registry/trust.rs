//! Trust anchors: the officers' public keys and how many of them must sign.

use minisign::PublicKey;
use sha2::{Digest, Sha256};

use super::Error;
use super::table::{self, ID, Kind, check_id, document};
use crate::limits;

const WHAT: &str = "the trust anchors";

/// First bytes of the canonical encoding.
const MAGIC: &[u8; 16] = b"scelle anchors 1";

/// Bytes of a minisign public key: algorithm (2), key number (8), Ed25519 key (32).
const KEY_BYTES: usize = 42;

/// An officer who may sign registries.
#[derive(Clone, Debug)]
pub struct Officer {
    /// Name, also part of the signature file's name.
    pub name: String,
    pub(super) key: PublicKey,
}

impl Officer {
    /// The public key as minisign writes it (base64).
    pub fn public_key(&self) -> String {
        self.key.to_base64()
    }
}

/// Who signs registries, and how many of them must.
#[derive(Clone, Debug)]
pub struct TrustAnchors {
    threshold: usize,
    /// Sorted by name.
    officers: Vec<Officer>,
}

document! {
    /// `trust.toml`.
    pub(super) struct File {
        threshold: u32 = THRESHOLD; ["registry-signatures"]
            "How many distinct officers must sign.";
        officers as "officer": Vec<FileOfficer> = OFFICERS; ["registry-signatures"]
            "The officers, one table each, at most 32; no two have the same name or key.";
    }

    /// An officer.
    pub(super) struct FileOfficer {
        name: String = ID; []
            "Also part of the name of the signature file.";
        public_key: String = KEY; []
            "The second line of the officer's minisign public key file.";
    }
}

const THRESHOLD: Kind<u32> = Kind { shown: "number, 1 to that of officers", check: |_, _| Ok(()) };
const OFFICERS: Kind<Vec<FileOfficer>> =
    Kind { shown: "tables", check: |_, officers| officers.iter().try_for_each(FileOfficer::check) };
const KEY: Kind<String> = Kind { shown: "text", check: |_, _| Ok(()) };

impl TrustAnchors {
    /// Parses `trust.toml`: `threshold`, and an array `officer` of `name` and `public_key` (the second line of a
    /// minisign `.pub` file).
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Syntax`], [`Error::Invalid`]: also when two officers have the same name or key, or
    /// when the threshold is not between 1 and the number of officers.
    pub fn parse(document: &[u8]) -> Result<Self, Error> {
        let file: File = table::parse(WHAT, document, limits::TRUST_BYTES_MAX)?;
        file.check().map_err(invalid)?;
        let mut officers = Vec::new();
        for FileOfficer { name, public_key } in file.officers.into_iter().take(limits::OFFICERS_MAX + 1) {
            let key = PublicKey::from_base64(public_key.trim())
                .map_err(|e| invalid(format!("public key of {name:?}: {e}")))?;
            officers.push(Officer { name, key });
        }
        Self::new(file.threshold as usize, officers)
    }

    fn new(threshold: usize, mut officers: Vec<Officer>) -> Result<Self, Error> {
        if officers.is_empty() || officers.len() > limits::OFFICERS_MAX {
            return Err(invalid(format!("there must be 1 to {} officers", limits::OFFICERS_MAX)));
        }
        if threshold == 0 || threshold > officers.len() {
            return Err(invalid(format!("threshold must be 1 to {}, the number of officers", officers.len())));
        }
        officers.sort_by(|a, b| a.name.cmp(&b.name));
        for (i, officer) in officers.iter().enumerate() {
            check_id(&officer.name).map_err(invalid)?;
            let bytes = officer.key.to_bytes();
            if bytes.len() != KEY_BYTES || &bytes[..2] != b"Ed" {
                return Err(invalid(format!("public key of {:?} is not an Ed25519 key of minisign", officer.name)));
            }
            for other in &officers[..i] {
                if other.name == officer.name {
                    return Err(invalid(format!("two officers are named {:?}", officer.name)));
                }
                // The same key under another key number would let one person sign twice.
                if other.key == officer.key || other.key.keynum() == officer.key.keynum() {
                    return Err(invalid(format!("{:?} and {:?} have the same key", other.name, officer.name)));
                }
            }
        }
        Ok(Self { threshold, officers })
    }

    /// How many distinct officers must sign.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The officers, sorted by name.
    pub fn officers(&self) -> &[Officer] {
        &self.officers
    }

    /// The canonical encoding, to pin the anchors inside a volume: magic (16 bytes), threshold (u8), number of
    /// officers (u8), then for each, sorted by name: length of the name (u8), name, public key (42 bytes, as minisign
    /// encodes it).
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        // Both are at most OFFICERS_MAX, a name is at most REGISTRY_ID_MAX bytes: see the assertions in `limits`.
        bytes.push(self.threshold as u8);
        bytes.push(self.officers.len() as u8);
        for officer in &self.officers {
            bytes.push(officer.name.len() as u8);
            bytes.extend_from_slice(officer.name.as_bytes());
            bytes.extend_from_slice(&officer.key.to_bytes());
        }
        bytes
    }

    /// Decodes [`TrustAnchors::canonical_bytes`]; anything else, also a not canonical order, is refused.
    ///
    /// # Errors
    /// [`Error::Syntax`] or [`Error::Invalid`].
    pub fn from_canonical_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let broken = || Error::Syntax { what: WHAT, detail: "not the canonical encoding".into() };
        let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(broken)?;
        let mut take = |n: usize| -> Result<&[u8], Error> {
            let (head, tail) = rest.split_at_checked(n).ok_or_else(broken)?;
            rest = tail;
            Ok(head)
        };
        let threshold = take(1)?[0] as usize;
        let count = take(1)?[0] as usize;
        let mut officers = Vec::new();
        for _ in 0..count {
            let length = take(1)?[0] as usize;
            let name = std::str::from_utf8(take(length)?).map_err(|_| broken())?.to_owned();
            let key = PublicKey::from_bytes(take(KEY_BYTES)?).map_err(|_| broken())?;
            officers.push(Officer { name, key });
        }
        let anchors = Self::new(threshold, officers)?;
        if anchors.canonical_bytes() == bytes { Ok(anchors) } else { Err(broken()) }
    }

    /// SHA-256 of [`TrustAnchors::canonical_bytes`].
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.canonical_bytes()).into()
    }
}

fn invalid(detail: String) -> Error {
    Error::Invalid { what: WHAT, detail }
}
