//! How long the filesystem's work takes.

use std::time::Instant;

use crate::units::meter::Meter;

/// Durations of successful calls since the filesystem was opened. Each begins when the call was made, so waiting for
/// others is part of it.
pub struct Meters {
    /// When the filesystem was opened.
    pub since: Instant,
    /// Reads of files, and their bytes.
    pub read: Meter,
    /// Writes to files, and their bytes.
    pub write: Meter,
    /// Looks at the metadata: names, attributes, listings, extents.
    pub lookup: Meter,
    /// Changes of the metadata: an operation that changes anything is one.
    pub change: Meter,
    /// How long applications waited for an `fsync`; one record for all who waited for the same commit.
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

impl Meters {
    /// Operations of applications so far. What the volume does by itself is not among them.
    pub fn operations(&self) -> u64 {
        [&self.read, &self.write, &self.lookup, &self.change, &self.fsync].into_iter().map(Meter::count).sum()
    }
}
