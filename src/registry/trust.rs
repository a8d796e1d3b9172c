//! Trust anchors: the officers' public keys and how many of the officers must sign.
//!
//! Anchors change only by the officers whom they name. The next version of the document says, by a digest, which
//! anchors it replaces. It counts when as many officers of the replaced anchors have signed it as those anchors
//! require. The officers whom the new version names need not agree, and neither does whoever keeps the files.

use minisign::PublicKey;
use sha2::{Digest, Sha256};

use super::keys::public_key as public_key_of;
use super::table::{self, ID, Kind, check_id, document};
use super::{Error, SignatureFile, count};
use crate::limits;

const WHAT: &str = "the trust anchors";

/// First bytes of the canonical encoding: of anchors that replace none, and of anchors that replace others.
const MAGIC: [&[u8; 16]; 2] = [b"scelle anchors 1", b"scelle anchors 2"];

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
    version: u32,
    /// Digest of the anchors that these are said to replace.
    replaces: Option<[u8; 32]>,
    /// Digests of the anchors that these replace by their officers' signatures, the oldest first.
    replaced: Vec<[u8; 32]>,
    threshold: usize,
    /// Sorted by name.
    officers: Vec<Officer>,
}

document! {
    /// `trust.toml`.
    pub(super) struct File {
        version: u32 = COUNT, or "1" by "one"; []
            "Grows by one with each change of the officers or the threshold.";
        replaces: Option<String> = DIGEST, or "none, in version 1" by "Option::default"; ["registry-other"]
            "From version 2 on: digest of the anchors that these replace, as scelle registry verify shows it.";
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
            "The second line of the officer's minisign public key file, and nothing else.";
    }
}

fn one() -> u32 {
    1
}

const COUNT: Kind<u32> = Kind { shown: "number, from 1", check: |_, _| Ok(()) };
const DIGEST: Kind<Option<String>> = Kind {
    shown: "64 hexadecimal digits",
    check: |name, text| match text {
        Some(text) if unhex::<32>(text).is_none() => Err(format!("{name}: {text:?} is not a digest in hexadecimal")),
        _ => Ok(()),
    },
};
const THRESHOLD: Kind<u32> = Kind { shown: "number, 1 to that of officers", check: |_, _| Ok(()) };
const OFFICERS: Kind<Vec<FileOfficer>> =
    Kind { shown: "tables", check: |_, officers| officers.iter().try_for_each(FileOfficer::check) };
const KEY: Kind<String> = Kind { shown: "text", check: |_, _| Ok(()) };

impl TrustAnchors {
    /// Parses a document of trust anchors (scelle-registry(5)). If the document says that it replaces others, that is
    /// only a claim: see [`TrustAnchors::succeeded_by`].
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Syntax`], [`Error::Invalid`]: also when two officers have the same name or key, or
    /// when the threshold is not between 1 and the number of officers.
    pub fn parse(document: &[u8]) -> Result<Self, Error> {
        let file: File = table::parse(WHAT, document, limits::TRUST_BYTES_MAX)?;
        file.check().map_err(invalid)?;
        let mut officers = Vec::new();
        for FileOfficer { name, public_key } in file.officers.into_iter().take(limits::OFFICERS_MAX + 1) {
            let key = public_key_of(&public_key).map_err(|e| invalid(format!("public key of {name:?}: {e}")))?;
            officers.push(Officer { name, key });
        }
        let replaces = file.replaces.as_deref().and_then(unhex);
        Self::new(file.version, replaces, file.threshold as usize, officers)
    }

    fn new(
        version: u32,
        replaces: Option<[u8; 32]>,
        threshold: usize,
        mut officers: Vec<Officer>,
    ) -> Result<Self, Error> {
        if version == 0 || version > limits::TRUST_VERSIONS_MAX || (version == 1) != replaces.is_none() {
            return Err(invalid(format!(
                "version must be 1 to {}, and say which anchors it replaces exactly from version 2 on",
                limits::TRUST_VERSIONS_MAX
            )));
        }
        if officers.is_empty() || officers.len() > limits::OFFICERS_MAX {
            return Err(invalid(format!("there must be 1 to {} officers", limits::OFFICERS_MAX)));
        }
        if threshold == 0 || threshold > officers.len() {
            return Err(invalid(format!("threshold must be 1 to {}, the number of officers", officers.len())));
        }
        officers.sort_by(|a, b| a.name.cmp(&b.name));
        for (i, officer) in officers.iter().enumerate() {
            check_id(&officer.name).map_err(invalid)?;
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
        Ok(Self { version, replaces, replaced: Vec::new(), threshold, officers })
    }

    /// The anchors that `document` names, as the successors of the present ones. The document must be of the next
    /// version and say that it replaces exactly the present anchors. As many of the present officers must have signed
    /// it as the present anchors require.
    ///
    /// # Errors
    /// As [`TrustAnchors::parse`]; [`Error::TooFewSignatures`]; [`Error::Invalid`] when the document replaces others.
    pub fn succeeded_by(&self, document: &[u8], signatures: &[SignatureFile<'_>]) -> Result<Self, Error> {
        count(WHAT, document, signatures, self)?;
        let mut next = Self::parse(document)?;
        if next.replaces != Some(self.digest()) || next.version != self.version + 1 {
            return Err(invalid(format!(
                "they do not replace version {} ({}), which they would come after",
                self.version,
                hex(&self.digest())
            )));
        }
        next.replaced = self.replaced.clone();
        next.replaced.push(self.digest());
        Ok(next)
    }

    /// The document of the next anchors, without the officers `leaving` and with the officers `coming` (name and public
    /// key). The present officers have to sign it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when somebody in `leaving` is not an officer, or when the result is not acceptable.
    pub fn successor(
        &self,
        leaving: &[String],
        coming: &[(String, String)],
        threshold: Option<usize>,
    ) -> Result<String, Error> {
        if let Some(name) = leaving.iter().find(|name| !self.officers.iter().any(|o| o.name == **name)) {
            return Err(invalid(format!("{name:?} is not an officer")));
        }
        let staying = self.officers.iter().filter(|o| !leaving.contains(&o.name));
        let staying = staying.map(|o| (o.name.clone(), o.public_key()));
        let file = File {
            version: self.version + 1,
            replaces: Some(hex(&self.digest())),
            threshold: threshold.unwrap_or(self.threshold).try_into().unwrap_or(u32::MAX),
            officers: staying
                .chain(coming.iter().cloned())
                .map(|(name, public_key)| FileOfficer { name, public_key })
                .collect(),
        };
        let text = toml::to_string(&file).map_err(|e| invalid(e.to_string()))?;
        Self::parse(text.as_bytes())?;
        Ok(text)
    }

    /// Version of the document.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Digests of the anchors that these replace, the oldest first: each step was signed by enough of the officers
    /// before it.
    pub fn replaced(&self) -> &[[u8; 32]] {
        &self.replaced
    }

    /// How many distinct officers must sign.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The officers, sorted by name.
    pub fn officers(&self) -> &[Officer] {
        &self.officers
    }

    /// The canonical encoding: magic (16 bytes), threshold (u8), number of officers (u8), then the officers, sorted by
    /// name. Each officer is the length of the name (u8), the name, and the public key (42 bytes, as minisign encodes
    /// it). Anchors that replace others have, after the magic, their version (u32, little-endian) and the others'
    /// digest (32 bytes).
    fn canonical_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC[usize::from(self.replaces.is_some())].to_vec();
        if let Some(replaces) = &self.replaces {
            bytes.extend_from_slice(&self.version.to_le_bytes());
            bytes.extend_from_slice(replaces);
        }
        // Both numbers are at most OFFICERS_MAX, and a name is at most REGISTRY_ID_MAX bytes: see the assertions in
        // `limits`.
        bytes.push(u8::try_from(self.threshold).unwrap_or(u8::MAX));
        bytes.push(u8::try_from(self.officers.len()).unwrap_or(u8::MAX));
        for officer in &self.officers {
            bytes.push(u8::try_from(officer.name.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(officer.name.as_bytes());
            bytes.extend_from_slice(&officer.key.to_bytes());
        }
        bytes
    }

    /// What a volume pins: SHA-256 of the canonical encoding. The encoding is the same however the document is written.
    /// It covers the threshold and each officer's name and key; from version 2 on also the version and the digest of
    /// the anchors before.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.canonical_bytes()).into()
    }
}

/// Bytes in lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes for which [`hex`] gives `text`; any other text is refused.
pub fn unhex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut digest = [0; BYTES];
    let legal = text.len() == 2 * BYTES && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    for (i, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    legal.then_some(digest)
}

fn invalid(detail: String) -> Error {
    Error::Invalid { what: WHAT, detail }
}
