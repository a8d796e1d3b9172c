//! Which registry was accepted last. Each root of a volume names it: so a host on which the volume was never mounted
//! knows, too. The host's witness names it as well, and knows also when the volume was set back.

use serde::{Deserialize, Serialize};

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
        Self::recorded(registry.version(), &registry.document_digest())
    }

    /// What is recorded elsewhere: version and SHA-256 of the document.
    pub fn recorded(version: u64, digest: &[u8; 32]) -> Self {
        Self { version, sha256: hex(digest) }
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
}
