//! Which registry was accepted last. A volume takes its trail along: so a host on which it was never mounted knows, too.
//! The host's witness names it as well, and knows also when the volume was set back.

use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::problem::{Code, Problem};
use crate::registry::{VerifiedRegistry, hex};

/// A registry that was in force.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Accepted {
    /// Its version.
    pub version: u64,
    /// SHA-256 of the document, in hexadecimal digits.
    pub sha256: String,
}

impl Accepted {
    /// This registry.
    pub fn of(registry: &VerifiedRegistry) -> Self {
        Self { version: registry.version(), sha256: hex(&registry.document_digest()) }
    }

    /// Whether `registry` can come after this one, which `by` has seen. Two documents of one version, both signed, mean
    /// that somebody shows different ones to different hosts.
    ///
    /// # Errors
    /// [`Code::RegistryRolledBack`], [`Code::RegistryEquivocal`].
    pub fn admits(&self, registry: &VerifiedRegistry, by: &str) -> Result<(), Problem> {
        let Self { version, sha256 } = Self::of(registry);
        let (seen, digest) = (self.version, &self.sha256);
        if version < seen {
            return Err(Problem::new(
                Code::RegistryRolledBack,
                format!("registry version {version}, {by} has seen {seen}"),
            ));
        }
        if version == seen && sha256 != *digest {
            let text = format!(
                "registry version {version} has the digest {sha256}; {by} has seen a version {seen} with the digest \
                 {digest}"
            );
            return Err(Problem::new(Code::RegistryEquivocal, text));
        }
        Ok(())
    }

    /// The last one that the trail names. `before` gives the last record before a number, as
    /// [`Fs::audit_last`](crate::fs::Fs::audit_last) does. Every mount names its registry, so the search ends at the last
    /// mount.
    ///
    /// # Errors
    /// Of `before`.
    pub fn last<E>(before: impl FnMut(u64) -> Result<Option<(u64, Vec<u8>)>, E>) -> Result<Option<Self>, E> {
        for record in Record::from_the_end(before) {
            if let Some(accepted) = record?.as_ref().and_then(Self::in_record) {
                return Ok(Some(accepted));
            }
        }
        Ok(None)
    }

    fn in_record(record: &Record) -> Option<Self> {
        let facts = match record.event.as_str() {
            "volume-created" | "mounted" => record.details.get("registry")?,
            "registry-accepted" => &record.details,
            _ => return None,
        };
        Some(Self { version: facts.get("version")?.as_u64()?, sha256: facts.get("sha256")?.as_str()?.to_owned() })
    }
}
