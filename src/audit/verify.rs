//! Verifying a trail with nothing but a public key: the seal and its signature, then record by record. Pure: it opens
//! neither files nor volumes.
//!
//! An export is lines of text, each ended by a line feed:
//!
//! | line | what |
//! |---|---|
//! | 1 | the [`Seal`]: JSON, says how many records follow and the digest of the last one |
//! | 2 | `{"signature":"…"}`: content of a minisign signature file over line 1, its line feed included |
//! | 3 … | the records, as they are in the volume |
//!
//! Every byte counts: the signature covers line 1 and is accepted in one spelling only. Line 1 covers the last record,
//! and each record covers the one before.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use super::record::{Chain, Digest, Record};
use crate::limits::AUDIT_RECORD_BYTES_MAX;
use crate::problem::Code;
use crate::registry::{public_key_of, verify_document};
use crate::units::Uuid;

/// Value of [`Seal::format`].
pub const FORMAT: &str = "scelle audit 1";

/// What the volume's key signs: the state of its trail at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// [`FORMAT`].
    pub format: String,
    /// The volume's UUID.
    pub volume: String,
    /// Its label.
    pub label: String,
    /// When the seal was made, as in records.
    pub sealed: String,
    /// How many records there are.
    pub records: u64,
    /// Digest of the last one, or the genesis.
    pub head: Digest,
    /// Last durable generation of the volume.
    pub generation: u64,
    /// Version of the registry in force.
    pub registry_version: u64,
    /// The public key that verifies the signature, as minisign writes it. Whoever verifies a seal compares this key
    /// with the one they know.
    pub key: String,
    /// Version of the program.
    pub program: String,
}

impl Seal {
    /// The line that is signed.
    pub fn line(&self) -> String {
        // Invariant: plain data with text keys.
        serde_json::to_string(self).expect("plain data") + "\n"
    }
}

/// What is wrong with a trail.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// What was given as public key is none.
    #[error("the public key given is none: {0}")]
    Key(String),
    /// Not an export, or its first lines were changed beyond recognition.
    #[error("it does not begin as an exported trail does: {0}")]
    NotAnExport(String),
    /// A format of the future.
    #[error("it is of format {0:?}, which this program does not know")]
    Newer(String),
    /// The seal names another key than the one given.
    #[error("it is sealed with another key: {found}, not {expected}. Another volume's trail, or somebody else made it")]
    OtherKey {
        /// The key given.
        expected: String,
        /// The key in the seal.
        found: String,
    },
    /// The signature does not fit the seal.
    #[error("the seal was changed, or its signature: {0}")]
    Signature(String),
    /// The first record is not the first of this volume's trail.
    #[error("record 1 does not begin the trail of volume {0}: these are records of another volume")]
    OtherVolume(String),
    /// Records are missing.
    #[error("records {from} to {to} are missing: they were cut out")]
    Missing {
        /// First of them.
        from: u64,
        /// Last of them.
        to: u64,
    },
    /// A record is where another belongs.
    #[error("record {found} is where record {expected} belongs: the records were reordered or repeated")]
    Order {
        /// Number that was expected.
        expected: u64,
        /// Number that was found.
        found: u64,
    },
    /// A record is not what it was.
    #[error("record {seq} is not what it was: {what}")]
    Altered {
        /// Its number.
        seq: u64,
        /// How that shows.
        what: &'static str,
    },
    /// The end is missing.
    #[error("it ends after record {found} of {sealed}: the end is missing")]
    Incomplete {
        /// Last record that is there.
        found: u64,
        /// Records when it was sealed.
        sealed: u64,
    },
    /// More than was sealed.
    #[error("something follows after the last record, number {0}: it was added")]
    Surplus(u64),
}

impl Fault {
    /// Stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::Io(_) => Code::AuditUnreadable,
            Self::Key(_) => Code::AuditKey,
            Self::NotAnExport(_) => Code::AuditNotAnExport,
            Self::Newer(_) => Code::AuditFormat,
            Self::OtherKey { .. } => Code::AuditOtherKey,
            Self::Signature(_) => Code::AuditSignature,
            Self::OtherVolume(_) => Code::AuditOtherVolume,
            Self::Missing { .. } => Code::AuditGap,
            Self::Order { .. } => Code::AuditOrder,
            Self::Altered { .. } => Code::AuditAltered,
            Self::Incomplete { .. } => Code::AuditIncomplete,
            Self::Surplus(_) => Code::AuditSurplus,
        }
    }
}

/// Verifies the records under a seal whose signature has been verified.
#[derive(Debug)]
pub struct Verifier {
    seal: Seal,
    chain: Chain,
}

impl Verifier {
    /// Verifies the signature of a seal, `line` with its line feed, with the public key `key` (base64, or a key file's
    /// content).
    ///
    /// # Errors
    /// [`Fault`].
    pub fn new(line: &str, signature: &str, key: &str) -> Result<Self, Fault> {
        let key = public_key_of(key).map_err(|error| Fault::Key(error.to_string()))?;
        let seal: Seal = serde_json::from_str(line).map_err(|error| Fault::NotAnExport(error.to_string()))?;
        if seal.key != key {
            return Err(Fault::OtherKey { expected: key, found: seal.key });
        }
        verify_document(&key, line.as_bytes(), signature).map_err(|error| Fault::Signature(error.to_string()))?;
        if seal.format != FORMAT {
            return Err(Fault::Newer(seal.format));
        }
        let volume = Uuid::parse(&seal.volume)
            .ok_or_else(|| Fault::NotAnExport(format!("{:?} is not a volume's UUID", seal.volume)))?;
        let chain = Chain::after(Digest::genesis(volume), None);
        Ok(Self { seal, chain })
    }

    /// What the seal says.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// Takes the next record's bytes, without line feed. Whether the record is unchanged is known only when the next
    /// record, or [`Verifier::finish`], agrees.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<Record, Fault> {
        let seq = self.chain.seq + 1;
        if seq > self.seal.records {
            return Err(Fault::Surplus(self.seal.records));
        }
        let record = Record::parse(bytes).ok_or(Fault::Altered { seq, what: "it cannot be read as a record" })?;
        if record.seq > seq {
            return Err(Fault::Missing { from: seq, to: record.seq - 1 });
        }
        if record.seq < seq {
            return Err(Fault::Order { expected: seq, found: record.seq });
        }
        if record.prev != self.chain.head {
            return Err(match seq {
                1 => Fault::OtherVolume(self.seal.volume.clone()),
                _ => Fault::Altered { seq: seq - 1, what: "its digest is not the one that the next record names" },
            });
        }
        self.chain = Chain { seq, head: Digest::of(bytes), time: None };
        Ok(record)
    }

    /// To be called when all records have been taken.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn finish(self) -> Result<Seal, Fault> {
        let Self { seal, chain } = self;
        if chain.seq < seal.records {
            return Err(Fault::Incomplete { found: chain.seq, sealed: seal.records });
        }
        if chain.head != seal.head {
            return Err(Fault::Altered { seq: chain.seq, what: "its digest is not the one that the seal names" });
        }
        Ok(seal)
    }
}

/// The second line of an export.
#[derive(Serialize, Deserialize)]
struct SignatureLine {
    signature: String,
}

/// The first two lines of an export.
pub fn export_head(seal: &str, signature: &str) -> String {
    // Invariant: plain data with text keys.
    let signature = serde_json::to_string(&SignatureLine { signature: signature.to_owned() }).expect("plain data");
    format!("{seal}{signature}\n")
}

/// Verifies an export from its first byte to its last, with the public key `key` (base64, or a key file's content).
/// Memory does not grow with its length.
///
/// # Errors
/// The first [`Fault`].
pub fn verify_export(mut input: impl BufRead, key: &str) -> Result<Seal, Fault> {
    let foreign = |what: &str| Fault::NotAnExport(what.to_owned());
    let mut text = || -> Result<String, Fault> {
        let line = read_line(&mut input)?.ok_or_else(|| foreign("it ends before the records"))?;
        String::from_utf8(line).map_err(|_| foreign("its head is not text"))
    };
    let (seal, signed) = (text()?, text()?);
    let signature: SignatureLine =
        serde_json::from_str(&signed).map_err(|error| Fault::NotAnExport(error.to_string()))?;
    if export_head("", &signature.signature) != format!("{signed}\n") {
        return Err(Fault::Signature("it is not written as it was made".into()));
    }
    let mut verifier = Verifier::new(&format!("{seal}\n"), &signature.signature, key)?;
    while let Some(line) = read_line(&mut input)? {
        let Err(fault) = verifier.push(&line) else { continue };
        if let Fault::Missing { from, .. } = fault {
            // Were the records in between cut out, or only moved to a later place?
            let found = Record::parse(&line).map_or(0, |record| record.seq);
            while let Some(line) = read_line(&mut input)? {
                if Record::parse(&line).is_some_and(|record| record.seq == from) {
                    return Err(Fault::Order { expected: from, found });
                }
            }
        }
        return Err(fault);
    }
    verifier.finish()
}

/// A line without its line feed; none at the end. A last line without line feed is incomplete.
fn read_line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, Fault> {
    let mut line = Vec::new();
    // The bound keeps a file without line feeds from being read into memory whole.
    let length = std::io::Read::take(&mut *input, AUDIT_RECORD_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if length > AUDIT_RECORD_BYTES_MAX => {
            Err(Fault::NotAnExport(format!("a line is longer than {AUDIT_RECORD_BYTES_MAX} bytes")))
        }
        Some(_) => Err(Fault::NotAnExport("its last line is incomplete".into())),
    }
}
