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
    /// The replica has not yet answered a read that was abandoned.
    pub silent: bool,
    /// Reads under way on it.
    pub reading: usize,
}

/// The replicas to try, best first: those that answer come before the silent ones, then the least busy, then in turn by
/// address.
pub fn read_order(candidates: impl Iterator<Item = Candidate>, addr: BlockAddr) -> Vec<usize> {
    let mut usable: Vec<Candidate> = candidates.filter(|c| c.state == State::InSync).collect();
    let count = usable.len().max(1) as u64;
    let turn = |position: usize| (position as u64 + count - addr.0 / STRIPE_BLOCKS % count) % count;
    let key = |(position, c): (usize, Candidate)| (c.silent, c.reading, turn(position), c.index);
    let mut keyed: Vec<_> = usable.drain(..).enumerate().map(key).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(.., index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(states: &[(State, usize)]) -> Vec<Candidate> {
        let candidate = |(index, (state, reading)): (usize, &(State, usize))| Candidate {
            index,
            state: *state,
            silent: false,
            reading: *reading,
        };
        states.iter().enumerate().map(candidate).collect()
    }

    fn order(states: &[(State, usize)], addr: u64) -> Vec<usize> {
        read_order(candidates(states).into_iter(), BlockAddr(addr))
    }

    #[test]
    fn one_that_does_not_answer_is_last_however_busy_the_others_are() {
        let mut candidates = candidates(&[(State::InSync, 0), (State::InSync, 9), (State::InSync, 2)]);
        candidates[0].silent = true;
        assert_eq!(read_order(candidates.into_iter(), BlockAddr(0)), [2, 1, 0]);
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
