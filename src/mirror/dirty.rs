//! The dirty-time log (DTL, as ZFS calls it): when each part of the data area was last written. Together with the last
//! flush of a replica it says what the replica lacks that was in sync for a while.
//!
//! Time is counted in **rounds**: each flush begins one. A part is stamped with the round in which it was last
//! submitted. Then:
//!
//! 1. A replica that has done the flush which began round `r` has everything of the rounds before `r` on stable
//!    storage.
//! 2. So a replica that left with round `r` lacks at most the parts stamped `r` or later.
//! 3. When no part has such a stamp, the replica lacks nothing.
//!
//! The log costs one number for each 16 MiB: 2 MiB of memory for 4 TiB that were written all over. It knows no
//! replicas, and it ends with the mount; what a replica has from earlier mounts is told by its roots
//! (`volume::recovery`).

use crate::units::{BlockAddr, Run};

/// Blocks of a part, as a power of two: 16 MiB.
const PART_SHIFT: u32 = 12;

/// The round of a replica that was never in sync while the volume was open: the stamp of every part is this round or
/// later.
pub(super) const NEVER: u64 = 0;

/// The round of a replica that is in sync when the volume is opened: no part has been stamped yet.
pub(super) const FIRST: u64 = 1;

/// When each part was last submitted.
pub(super) struct DirtyTimeLog {
    round: u64,
    stamps: Vec<u64>,
}

impl DirtyTimeLog {
    pub fn new() -> Self {
        Self { round: FIRST, stamps: Vec::new() }
    }

    /// Notes that a run is submitted.
    pub fn stamp(&mut self, run: Run) {
        let (first, last) = (part(run.addr), part(BlockAddr(run.end().0.saturating_sub(1))));
        if self.stamps.len() <= last {
            self.stamps.resize(last + 1, NEVER);
        }
        self.stamps[first..=last].fill(self.round);
    }

    /// Notes that a flush begins. What is submitted from now on is of the round that this returns.
    pub fn next_round(&mut self) -> u64 {
        self.round += 1;
        self.round
    }

    /// Whether a replica that left with round `since` may lack this block.
    pub fn is_missed(&self, addr: BlockAddr, since: u64) -> bool {
        self.stamps.get(part(addr)).copied().unwrap_or(NEVER) >= since
    }

    /// Whether a replica that left with round `since` may lack anything.
    pub fn is_any_missed(&self, since: u64) -> bool {
        since == NEVER || self.stamps.iter().any(|stamp| *stamp >= since)
    }
}

fn part(addr: BlockAddr) -> usize {
    (addr.0 >> PART_SHIFT) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_misses_what_came_after_its_last_flush_and_no_more() {
        let mut log = DirtyTimeLog::new();
        let at = |part: u64| BlockAddr(part << PART_SHIFT);
        assert!(!log.is_any_missed(FIRST) && log.is_any_missed(NEVER));
        log.stamp(Run::new(at(3), 1));
        assert!(log.is_missed(at(3), FIRST) && !log.is_missed(at(2), FIRST));
        let flushed = log.next_round();
        assert!(!log.is_any_missed(flushed));
        // A run over the end of a part is in both; what was never written is missed by who was never there.
        log.stamp(Run::new(BlockAddr(at(5).0 - 1), 2));
        let missed: Vec<u64> = (0..8).filter(|part| log.is_missed(at(*part), flushed)).collect();
        assert_eq!(missed, [4, 5]);
        assert!((0..8).all(|part| log.is_missed(at(part), NEVER)));
    }
}
