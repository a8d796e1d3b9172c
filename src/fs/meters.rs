//! How long the filesystem's work takes.

use std::time::Instant;

use crate::units::meter::Meter;

/// Durations of what succeeded since the filesystem was opened, each from the moment it was asked for: waiting for others
/// is in them.
pub struct Meters {
    /// When it was opened.
    pub since: Instant,
    /// Reads of files, and their bytes.
    pub read: Meter,
    /// Writes to files, and their bytes.
    pub write: Meter,
    /// Looks at the metadata: names, attributes, listings, extents.
    pub lookup: Meter,
    /// Changes of the metadata: an operation that changes anything is one.
    pub change: Meter,
    /// What applications waited for an `fsync`; one record for all who waited for the same.
    pub fsync: Meter,
    /// Commits, from freezing the batch to the root on every replica.
    pub commit: Meter,
}

impl Default for Meters {
    fn default() -> Self {
        let meter = Meter::default;
        Self {
            since: Instant::now(),
            read: meter(),
            write: meter(),
            lookup: meter(),
            change: meter(),
            fsync: meter(),
            commit: meter(),
        }
    }
}
