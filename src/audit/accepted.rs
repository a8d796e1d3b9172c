//! Which registry a trail says was accepted last. A volume takes its trail along: so a host on which it was never
//! mounted knows, too.

use super::record::Record;

/// A registry that was in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its version.
    pub version: u64,
    /// SHA-256 of the document, in hexadecimal digits.
    pub sha256: String,
}

impl Accepted {
    /// The last one that the trail names. `before` gives the last record before a number, as
    /// [`Fs::audit_last`](crate::fs::Fs::audit_last) does. Every mount names its registry, so the search ends at the last
    /// mount.
    ///
    /// # Errors
    /// Of `before`.
    pub fn last<E>(before: impl FnMut(u64) -> Result<Option<(u64, Vec<u8>)>, E>) -> Result<Option<Self>, E> {
        for record in Record::from_the_end(before) {
            if let Some(accepted) = record?.as_ref().and_then(Self::of) {
                return Ok(Some(accepted));
            }
        }
        Ok(None)
    }

    fn of(record: &Record) -> Option<Self> {
        let facts = match record.event.as_str() {
            "volume-created" | "mounted" => record.details.get("registry")?,
            "registry-accepted" => &record.details,
            _ => return None,
        };
        Some(Self { version: facts.get("version")?.as_u64()?, sha256: facts.get("sha256")?.as_str()?.to_owned() })
    }
}
