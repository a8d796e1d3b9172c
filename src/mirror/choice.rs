//! Which replica to read from: a pure function.

use super::State;
use crate::units::BlockAddr;

/// Blocks that are read from the same replica in a row, so that sequential reads stay sequential: 1 MiB.
const STRIPE_BLOCKS: u64 = 256;

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The replica.
    pub index: usize,
    /// Only in-sync replicas are read.
    pub state: State,
    /// Reads under way on it.
    pub reading: usize,
}

/// The replicas to try, best first: the least busy, then in turn by address.
pub fn read_order(candidates: impl Iterator<Item = Candidate>, addr: BlockAddr) -> Vec<usize> {
    let mut usable: Vec<Candidate> = candidates.filter(|c| c.state == State::InSync).collect();
    let count = usable.len().max(1) as u64;
    let turn = |position: usize| (position as u64 + count - addr.0 / STRIPE_BLOCKS % count) % count;
    let mut keyed: Vec<(usize, u64, usize)> =
        usable.drain(..).enumerate().map(|(position, c)| (c.reading, turn(position), c.index)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, _, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(states: &[(State, usize)], addr: u64) -> Vec<usize> {
        let candidates = states.iter().enumerate().map(|(index, (state, reading))| Candidate {
            index,
            state: *state,
            reading: *reading,
        });
        read_order(candidates, BlockAddr(addr))
    }

    #[test]
    fn the_table_of_choices() {
        use State::{Faulty, InSync, Missing, Refused, Resyncing, Stale};
        assert_eq!(order(&[(InSync, 0), (InSync, 0)], 0), [0, 1]);
        assert_eq!(order(&[(InSync, 0), (InSync, 0)], 255), [0, 1]);
        assert_eq!(order(&[(InSync, 0), (InSync, 0)], 256), [1, 0]);
        assert_eq!(order(&[(InSync, 1), (InSync, 0)], 0), [1, 0]);
        assert_eq!(order(&[(Stale, 0), (InSync, 9)], 0), [1]);
        assert_eq!(order(&[(Resyncing, 0), (Missing, 0), (Faulty, 0), (Refused, 0)], 0), [] as [usize; 0]);
        assert_eq!(order(&[(InSync, 0), (Faulty, 0), (InSync, 0)], 256), [2, 0]);
        assert_eq!(order(&[], 0), [] as [usize; 0]);
    }
}
