//! The audit trail (promise P9): who did what to the volume, and what the program did and why. It is a chain of records
//! in the volume itself.
//!
//! This module knows what records say and how they are chained and proved. How they are stored is [`fs`]'s; when a
//! volume begins, ends and changes is noticed by [`crate::volume`] and [`crate::daemon`]. The form of a record is in
//! [`record`].
//!
//! # Where records are
//!
//! A record is a row of the metadata. So it is encrypted, it is on every replica, and it is part of the commit that it
//! is made in: it is there exactly when the operations before it are. Rows are added, and never changed or removed.
//!
//! A trail grows by some records a day, because what the program notices again and again is only counted
//! ([`REPEAT_WINDOW`]). A crash can take back what was not committed (a second at the most), and such a count; the log
//! has had both.
//!
//! Some things happen while nothing can be written: a mount is refused, or the volume is read-only. The host keeps
//! records of these ([`Reports`]). They go into the trail, marked as the host's word, when something can be written
//! again: in the same mount, or with the next one.
//!
//! Every record is also said to the log with its number and digest, so that a log on another machine holds heads of the
//! chain too.
//!
//! # What this proves
//!
//! * A record that was changed, removed, moved or inserted does not fit the digests after it ([`record`]). The last
//!   digest is in the metadata, which the page map authenticates. If all replicas were set back together, the host's
//!   witness shows it (promise P6).
//! * A seal ([`Seal`]) is signed with a key that is derived from the volume's. So an export comes from somebody who
//!   could open the volume, and is whole up to the seal.
//! * A trail that later does not continue an exported head was tampered with. It continues the head if `audit verify`
//!   accepts the newer export, and its record of the same number has the digest of the older one's head.
//! * It does not prove that what a record says is true. Root of the host holds the volume's key while it is mounted.
//!   Root can add any record, and could rewrite all of them, but not so that heads which left the host (exports, the
//!   log) fit.
//! * Nor does it prove that nothing is missing at the end: what root never recorded is not there.

use crate::{fs, registry};

mod accepted;
mod event;
pub mod record;
mod reports;
#[cfg(test)]
mod tests;
mod trail;
mod verify;

pub use accepted::Accepted;
pub use event::{Actor, Entry, Event, Known, Object, Reason, RegistryFacts, ReplicaFacts, ScrubFacts};
pub use reports::Reports;
pub use trail::{Audit, Head, REPEAT_WINDOW, begin_with, check, last_host};
pub use verify::{FORMAT, Fault, Seal, Verifier, export_head, verify_export};

/// Why the trail cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filesystem that it is in.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// Its signing key.
    #[error("making the key of the audit trail: {0}")]
    Key(registry::Error),
}
