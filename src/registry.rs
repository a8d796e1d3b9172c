//! The registry: the signed list of approved devices and sites, and the policy. Bytes in, verified document out; no
//! I/O.
//!
//! A registry counts only when at least `threshold` *distinct* officers named by the [`TrustAnchors`] have signed
//! exactly its bytes. The signatures have minisign's format, so that the stock `minisign` tool signs and verifies too.
//! [`verify`] is the only maker of a [`VerifiedRegistry`].
//!
//! The module knows no device and examines no validity dates: [`policy`](crate::policy) does that, against the day that
//! it is given.

mod date;
mod derived;
mod document;
mod identity;
mod keys;
mod table;
mod trust;

pub use date::{Date, utc_second};
pub use derived::{DerivedKey, public_key_of, verify_document};
pub use document::{Certification, DeviceEntry, Policy, Registry, Site, Status};
pub use identity::{Identity, IdentityField, Transport};
pub use keys::{KeyFiles, check_officer, is_encrypted, keygen, sign};
pub use table::{Field, same_but_for_case};
pub use trust::{Officer, TrustAnchors, hex, unhex};

use sha2::{Digest, Sha256};

use crate::limits;
use crate::problem::{Code, Problem};

/// The fields of the documents, table by table, as the manual has them.
pub const TABLES: [(&str, &[Field]); 7] = [
    ("trust.toml", trust::File::FIELDS),
    ("[[officer]]", trust::FileOfficer::FIELDS),
    ("registry.toml", Registry::FIELDS),
    ("[policy]", Policy::FIELDS),
    ("[[site]]", Site::FIELDS),
    ("certifications", Certification::FIELDS),
    ("[[device]]", DeviceEntry::FIELDS),
];

/// Why a registry, trust anchors, a key or a signature was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document is larger than its bound.
    #[error("{what} has {bytes} bytes, more than the {max} that are read")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// Not UTF-8, not TOML, or a field is missing, unknown or of the wrong type.
    #[error("{what} cannot be read: {detail}")]
    Syntax {
        /// Which document.
        what: &'static str,
        /// Line, column and cause.
        detail: String,
    },
    /// The document is well-formed, but a value is not acceptable.
    #[error("{what} is not acceptable: {detail}")]
    Invalid {
        /// Which document.
        what: &'static str,
        /// Which value and why.
        detail: String,
    },
    /// Too few officers' signatures count.
    #[error("{} of the {threshold} signatures required on {what} count{}", signers.len(), listed(problems))]
    TooFewSignatures {
        /// Which document.
        what: &'static str,
        /// The officers whose signatures count.
        signers: Vec<String>,
        /// How many are required.
        threshold: usize,
        /// Why each other signature does not count.
        problems: Vec<String>,
    },
    /// Trust anchors cannot name an officer so.
    #[error("officer's name: {0}")]
    OfficerName(String),
    /// A key file or its password is wrong, or keys cannot be made.
    #[error("key: {0}")]
    Key(String),
}

impl Error {
    /// Its code.
    pub fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } | Self::Syntax { .. } => Code::RegistrySyntax,
            Self::Invalid { .. } => Code::RegistryInvalid,
            Self::TooFewSignatures { .. } => Code::RegistrySignatures,
            Self::OfficerName(_) => Code::OfficerName,
            Self::Key(_) => Code::RegistryKey,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

fn listed(problems: &[String]) -> String {
    problems.iter().map(|p| format!("; {p}")).collect()
}

/// A signature file, under the name of the officer it is said to come from.
#[derive(Clone, Copy, Debug)]
pub struct SignatureFile<'a> {
    /// The officer's name in the trust anchors.
    pub officer: &'a str,
    /// Content of the `.minisig` file.
    pub bytes: &'a [u8],
}

/// A registry that enough officers have signed. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedRegistry {
    document: Registry,
    signers: Vec<String>,
    threshold: usize,
    officers: usize,
    document_digest: [u8; 32],
    anchors_digest: [u8; 32],
    anchors_replaced: Vec<[u8; 32]>,
}

impl VerifiedRegistry {
    /// Version of the document. A volume refuses a registry older than the last one that it has seen.
    pub fn version(&self) -> u64 {
        self.document.version
    }

    /// First day of validity.
    pub fn issued(&self) -> Date {
        self.document.issued
    }

    /// Last day of validity.
    pub fn valid_until(&self) -> Date {
        self.document.valid_until
    }

    /// The document.
    pub fn document(&self) -> &Registry {
        &self.document
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.document.policy
    }

    /// The sites.
    pub fn sites(&self) -> &[Site] {
        &self.document.sites
    }

    /// The site of this id.
    pub fn site(&self, id: &str) -> Option<&Site> {
        self.document.site(id)
    }

    /// The devices, approved and revoked.
    pub fn devices(&self) -> &[DeviceEntry] {
        &self.document.devices
    }

    /// Names of the officers whose signatures count, in the order of the trust anchors.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }

    /// How many signatures the trust anchors require.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// How many officers the trust anchors name.
    pub fn officers(&self) -> usize {
        self.officers
    }

    /// SHA-256 of the document's bytes.
    pub fn document_digest(&self) -> [u8; 32] {
        self.document_digest
    }

    /// [`TrustAnchors::digest`] of the anchors that the registry was verified with.
    pub fn anchors_digest(&self) -> [u8; 32] {
        self.anchors_digest
    }

    /// Whether the registry was verified with the anchors whose digest is `pinned`, or with anchors that have replaced
    /// them. Anchors are replaced by signatures of as many of their own officers as they require.
    pub fn is_trusted_by(&self, pinned: &[u8; 32]) -> bool {
        self.anchors_digest == *pinned || self.anchors_replaced.contains(pinned)
    }

    /// Whether this is a laboratory registry, i.e. its signed policy lists the transport `loop` or `memory`.
    pub fn is_laboratory(&self) -> bool {
        self.document.policy.is_laboratory()
    }
}

/// Verifies that at least the threshold of distinct officers signed exactly `document`, then parses it.
///
/// A signature by somebody whom the anchors do not name is not counted and does no other harm. The same holds for a
/// signature that does not verify. Two signatures of the same officer count once. Signatures are checked before the
/// document is parsed.
///
/// # Errors
/// [`Error::TooFewSignatures`] with the reason of each signature that does not count; otherwise as [`Registry::parse`].
pub fn verify(
    document: &[u8],
    signatures: &[SignatureFile<'_>],
    anchors: &TrustAnchors,
) -> Result<VerifiedRegistry, Error> {
    table::check_size(document::WHAT, document, limits::REGISTRY_BYTES_MAX)?;
    let signers = count(document::WHAT, document, signatures, anchors)?;
    Ok(VerifiedRegistry {
        document: Registry::parse(document)?,
        signers,
        threshold: anchors.threshold(),
        officers: anchors.officers().len(),
        document_digest: Sha256::digest(document).into(),
        anchors_digest: anchors.digest(),
        anchors_replaced: anchors.replaced().to_vec(),
    })
}

/// What a signature file of an officer is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// It signs exactly this document.
    Counts,
    /// It does not sign exactly this document; the text says why.
    Void(String),
    /// There is no signature file of the officer.
    Absent,
}

/// What each officer of `anchors` has signed, in the order of the anchors. A signature by somebody whom the anchors do
/// not name is not looked at.
pub fn signatures(document: &[u8], files: &[SignatureFile<'_>], anchors: &TrustAnchors) -> Vec<(String, Signature)> {
    let of = |officer: &Officer| {
        let mut found = Signature::Absent;
        for file in files.iter().take(limits::SIGNATURES_MAX).filter(|file| file.officer == officer.name) {
            match keys::verify_signature(&officer.key, document, file.bytes) {
                Ok(()) => return Signature::Counts,
                Err(detail) => found = Signature::Void(detail),
            }
        }
        found
    };
    anchors.officers().iter().map(|officer| (officer.name.clone(), of(officer))).collect()
}

/// The officers whose signatures count, if they are as many as the anchors require.
fn count(
    what: &'static str,
    document: &[u8],
    files: &[SignatureFile<'_>],
    anchors: &TrustAnchors,
) -> Result<Vec<String>, Error> {
    let (mut signers, mut problems) = (Vec::new(), Vec::new());
    for (officer, signature) in signatures(document, files, anchors) {
        match signature {
            Signature::Counts => signers.push(officer),
            Signature::Void(detail) => problems.push(format!("signature of {officer}: {detail}")),
            Signature::Absent => problems.push(format!("{officer} has not signed")),
        }
    }
    match signers.len() < anchors.threshold() {
        true => Err(Error::TooFewSignatures { what, signers, threshold: anchors.threshold(), problems }),
        false => Ok(signers),
    }
}

#[cfg(test)]
mod tests;
