//! Which root a volume goes on from, and what each replica is then. Pure.
//!
//! A mount's epoch is greater than that of every mount before it, so of two roots the one with the greater (epoch,
//! generation) is the later one, also when a replica was away. A replica that the chosen root names holds everything
//! the root refers to, because data is flushed on every in-sync replica before a root is written; its own newest root
//! may be one commit behind (the power failed between the roots) but no more: otherwise somebody put an old copy there.
//!
//! A replica that the chosen root does not name was left behind, or went on by itself elsewhere. The root says which: it
//! records the mount ([`MountId`](crate::label::MountId)) whose root each replica was given last, and the roots of one mount are one
//! history.

use crate::label::Root;
use crate::mirror::State;

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Go on from here.
    pub root: Root,
    /// State of each replica, by index.
    pub states: Vec<State>,
    /// Replicas that the root names and that are missing or too old.
    pub absent: Vec<usize>,
}

/// Why there is no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// No root opens anywhere.
    NoRoot,
    /// Two replicas each went on without the other.
    Diverged {
        /// One of them.
        one: usize,
        /// The other.
        other: usize,
    },
}

/// Decides. `replicas[i]` is the newest root on replica `i`: `None` when there is no device, `Some(None)` when no root
/// opens on it.
///
/// # Errors
/// [`Conflict`].
pub fn choose(replicas: &[Option<Option<Root>>]) -> Result<Choice, Conflict> {
    let roots = || replicas.iter().enumerate().filter_map(|(i, r)| r.flatten().map(|root| (i, root)));
    let (holder, root) = roots().max_by_key(|(_, r)| (r.epoch(), r.generation)).ok_or(Conflict::NoRoot)?;
    let diverged = roots().find(|(i, r)| !is_past(r, *i, &root));
    if let Some((other, _)) = diverged {
        return Err(Conflict::Diverged { one: holder, other });
    }
    let state = |(index, found): (usize, &Option<Option<Root>>)| match found {
        None => State::Missing,
        Some(newest) => {
            let before = |r: Root| {
                r.generation.next() == root.generation && root.given.get(index).is_some_and(|g| *g == r.mount)
            };
            let current = newest.is_some_and(|r| r == root || before(r));
            if root.names(index) && current { State::InSync } else { State::Stale }
        }
    };
    let states: Vec<State> = replicas.iter().enumerate().map(state).collect();
    let absent = states.iter().enumerate().filter(|(i, s)| root.names(*i) && **s != State::InSync);
    let absent = absent.map(|(i, _)| i).collect();
    Ok(Choice { root, absent, states })
}

/// Whether `found`, on replica `index`, is `root` or comes before it in the same history, as far as `root` tells.
///
/// A replica that was given a later one and shows this one failed then, or is an old copy. Of an old copy's own history nothing
/// is known, unless `root` names it or shares a replica with it.
pub fn is_past(found: &Root, index: usize, root: &Root) -> bool {
    let given = root.given.get(index).copied().unwrap_or_default();
    let is_ours = found.mount == root.mount || found.mount == given;
    let is_old = found.epoch() < given.epoch && (root.names(index) || found.in_sync & root.in_sync != 0);
    *found == *root || (is_ours || is_old) && (found.epoch(), found.generation) < (root.epoch(), root.generation)
}

#[cfg(test)]
mod tests {
    use super::State::{InSync, Missing, Stale};
    use super::*;
    use crate::label::MountId;
    use crate::limits::REPLICAS_MAX;
    use crate::units::Generation;

    fn root(epoch: u32, generation: u64, in_sync: u64) -> Root {
        let mount = MountId { epoch, nonce: u64::from(epoch) };
        Root { mount, generation: Generation(generation), in_sync, given: given(&[]), ..Root::default() }
    }

    /// What the replicas were given last: a root of the mount of this epoch, the others one of the first.
    fn given(epochs: &[u32]) -> [MountId; REPLICAS_MAX] {
        std::array::from_fn(|i| {
            let epoch = epochs.get(i).copied().unwrap_or(1);
            MountId { epoch, nonce: u64::from(epoch) }
        })
    }

    #[test]
    fn the_table_of_start_ups() {
        type Row = (&'static str, Vec<Option<Option<Root>>>, Result<(u64, Vec<State>, Vec<usize>), Conflict>);
        let at = |e, g, m| Some(Some(root(e, g, m)));
        let table: Vec<Row> = vec![
            ("all there", vec![at(1, 9, 3), at(1, 9, 3)], Ok((9, vec![InSync, InSync], vec![]))),
            ("crash between the roots", vec![at(1, 8, 3), at(1, 9, 3)], Ok((9, vec![InSync, InSync], vec![]))),
            (
                "copy of a history that was given up",
                vec![at(1, 50, 3), at(2, 12, 3)],
                Ok((12, vec![Stale, InSync], vec![0])),
            ),
            ("old copy put back", vec![at(1, 7, 3), at(1, 9, 3)], Ok((9, vec![Stale, InSync], vec![0]))),
            ("one missing", vec![None, at(1, 9, 3)], Ok((9, vec![Missing, InSync], vec![0]))),
            ("one missing, known", vec![None, at(1, 9, 2)], Ok((9, vec![Missing, InSync], vec![]))),
            ("left behind", vec![at(1, 5, 3), at(2, 9, 2)], Ok((9, vec![Stale, InSync], vec![]))),
            (
                "left behind but with more commits",
                vec![at(1, 50, 3), at(2, 9, 2)],
                Ok((9, vec![Stale, InSync], vec![])),
            ),
            ("ring lost", vec![Some(None), at(1, 9, 3)], Ok((9, vec![Stale, InSync], vec![0]))),
            ("nothing", vec![None, Some(None)], Err(Conflict::NoRoot)),
            ("diverged", vec![at(2, 9, 1), at(3, 12, 2)], Err(Conflict::Diverged { one: 1, other: 0 })),
            ("diverged, same number", vec![at(2, 9, 1), at(2, 9, 2)], Err(Conflict::Diverged { one: 1, other: 0 })),
            (
                "three, one behind",
                vec![at(1, 3, 7), at(2, 9, 6), at(2, 9, 6)],
                Ok((9, vec![Stale, InSync, InSync], vec![])),
            ),
        ];
        for (name, found, expected) in table {
            let decided = choose(&found).map(|c| (c.root.generation.0, c.states, c.absent));
            assert_eq!(decided, expected, "{name}");
        }
        // Each went on with an epoch of the same number.
        let (mut one, mut other) = (root(2, 9, 1), root(2, 12, 2));
        other.mount.nonce = 99;
        let found = |one, other| [Some(Some(one)), Some(Some(other))];
        assert_eq!(choose(&found(one, other)), Err(Conflict::Diverged { one: 1, other: 0 }));
        // A copy of both went on, and one of it was put in the place of one of ours: one commit behind, by its number.
        (one.in_sync, other.in_sync, one.generation) = (3, 3, Generation(11));
        assert_eq!(choose(&found(one, other)), Err(Conflict::Diverged { one: 1, other: 0 }));
    }

    #[test]
    fn a_replica_that_was_left_behind_did_not_go_on_by_itself() {
        let of =
            |found: [Root; 2]| choose(&found.map(|root| Some(Some(root)))).map(|c| (c.root.generation.0, c.states));
        // In one mount replica 1 came back, and 0 left before any root named both.
        let (stopped, mut went_on) = (root(5, 7, 1), root(5, 900, 2));
        went_on.given = given(&[5, 5]);
        assert_eq!(of([stopped, went_on]), Ok((900, vec![Stale, InSync])));
        // The same some mounts later; replica 0 was not there.
        let later = Root { given: given(&[5, 8]), ..root(8, 2000, 2) };
        assert_eq!(of([stopped, later]), Ok((2000, vec![Stale, InSync])));
        // It was there once more, and failed at the first root that it was given.
        let later = Root { given: given(&[6, 8]), ..root(8, 2000, 3) };
        assert_eq!(of([stopped, later]), Ok((2000, vec![Stale, InSync])));
        // It was mounted by itself.
        let (alone, later) = (root(6, 8, 1), Root { given: given(&[5, 8]), ..root(8, 2000, 2) });
        assert_eq!(of([alone, later]), Err(Conflict::Diverged { one: 1, other: 0 }));
    }
}
