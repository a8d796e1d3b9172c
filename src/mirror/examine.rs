//! Looking at what each replica holds, as it is on its device, while the volume is in use: for a scrub.
//!
//! A read for an application takes what one replica gives, and may take it from memory. Here every replica is read, each
//! by itself, and nothing comes from memory. Two things must not be mistaken for damage:
//!
//! * **What is still on its way.** A run is in its place on a device only when the queue has written it. So the caller
//!   waits for that first ([`Mirror::settled`]).
//! * **What a replica lacks because it left.** Then its queue was dropped. So what a replica gave counts only if the
//!   replica has stayed in sync until after the read ([`Mirror::has_stayed`]).

use std::sync::atomic::Ordering;

use super::{Incarnation, Mirror, State};
use crate::device::{self, AlignedBuf};
use crate::units::Run;

impl Mirror {
    /// The replicas in sync at a moment at which nothing of the run is on its way to any of them.
    pub fn settled(&self, run: Run) -> Vec<(usize, Incarnation)> {
        let inner = self.wait_for_writes(|inner| !inner.overlaps(run));
        let rows = inner.replicas.iter().enumerate();
        rows.filter(|(_, row)| row.state == State::InSync).map(|(index, row)| (index, row.incarnation)).collect()
    }

    /// Whether a replica that was in sync in that incarnation has been in sync ever since.
    pub fn has_stayed(&self, index: usize, incarnation: Incarnation) -> bool {
        let inner = self.shared.lock();
        inner.replicas.get(index).is_some_and(|row| row.state == State::InSync && row.incarnation == incarnation)
    }

    /// Reads a run from one replica as it is there. The device has ten seconds to answer: the caller holds a reader.
    ///
    /// # Errors
    /// The device's; [`device::Error::Unanswered`] when it takes longer, or has not answered an earlier read yet.
    pub fn examine(&self, index: usize, run: Run) -> device::Result<AlignedBuf> {
        self.ask(index, run, AlignedBuf::scratch(run.bytes()), Some(self.timeout / 6))
    }

    /// As [`Mirror::examine`], outside of the data area, and with a second or two to answer: whoever asks holds commits
    /// up.
    ///
    /// # Errors
    /// As [`Mirror::examine`].
    pub fn examine_label(&self, index: usize, offset: u64, bytes: usize) -> device::Result<AlignedBuf> {
        self.ask_at(index, offset, AlignedBuf::scratch(bytes), Some(self.timeout / 30))
    }

    /// Counts something that a replica gave and that is not what was written.
    pub fn count_wrong(&self, index: usize) {
        if let Some(replica) = self.replicas.get(index) {
            replica.counters.integrity.fetch_add(1, Ordering::Relaxed);
        }
    }
}
