//! Storing the audit trail: records are bytes here. What they say and how they are chained is [`crate::audit`]'s.

use super::{Fs, Result};
use crate::{limits::AUDIT_RECORD_BYTES_MAX, meta::Weight};

impl Fs {
    /// Adds the records that `make` returns, at most `most`, to the audit trail in one operation. They are committed together with all
    /// other operations, and in their order. `make` is called once, with the number and bytes of the last record, and
    /// nothing else is added meanwhile.
    ///
    /// The records are durable when [`Fs::durable_changes`] is at least the number returned.
    ///
    /// # Errors
    /// When the volume can commit nothing; then nothing was added.
    pub fn append_audit(&self, most: usize, make: impl FnOnce(Option<(u64, Vec<u8>)>) -> Vec<Vec<u8>>) -> Result<u64> {
        self.store.committable()?;
        let weight = Weight { rows: most as u64, bytes: (most * AUDIT_RECORD_BYTES_MAX) as u64, ..Weight::default() };
        let ((), number) = self.change_numbered(weight, |tx| {
            let last = tx.audit_last(u64::MAX)?;
            let mut seq = last.as_ref().map_or(0, |(seq, _)| *seq);
            for record in make(last) {
                seq += 1;
                tx.append_audit(seq, &record)?;
            }
            Ok(())
        })?;
        Ok(number)
    }

    /// The records of the audit trail after number `after`, in order, until they are `bytes` long together. An empty
    /// list means that there are no more.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn audit(&self, after: u64, bytes: usize) -> Result<Vec<(u64, Vec<u8>)>> {
        self.view(|view| Ok(view.audit(after, bytes)?))
    }

    /// The last record of the audit trail before number `before`.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn audit_last(&self, before: u64) -> Result<Option<(u64, Vec<u8>)>> {
        self.view(|view| Ok(view.audit_last(before)?))
    }
}
