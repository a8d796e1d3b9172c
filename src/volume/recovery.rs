//! Which root a volume goes on from, and what each replica is then. Pure.
//!
//! A mount's epoch is greater than that of every mount before it, so of two roots the one with the greater (epoch,
//! generation) is the later one, also when a replica was away. A replica that the chosen root names holds everything
//! the root refers to, because data is flushed on every in-sync replica before a root is written; its own newest root
//! may be one commit behind (the power failed between the roots) but no more: otherwise somebody put an old copy there.

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
/// opens on it. `has(i, root)` says whether replica `i` also shows that root: then its history went through it, and
/// whoever stopped there was left behind and did not go on by himself, whoever was in sync in between.
///
/// # Errors
/// [`Conflict`].
pub fn choose(replicas: &[Option<Option<Root>>], has: &dyn Fn(usize, &Root) -> bool) -> Result<Choice, Conflict> {
    let roots = || replicas.iter().enumerate().filter_map(|(i, r)| r.flatten().map(|root| (i, root)));
    let (holder, root) = roots().max_by_key(|(_, r)| (r.epoch, r.generation)).ok_or(Conflict::NoRoot)?;
    let diverged = roots().find(|(i, r)| {
        let left_behind = root.in_sync >> i & 1 == 0;
        (left_behind && r.in_sync & root.in_sync == 0 && !has(holder, r))
            || (r.generation == root.generation && r.epoch == root.epoch && *r != root)
    });
    if let Some((other, _)) = diverged {
        return Err(Conflict::Diverged { one: holder, other });
    }
    let state = |(index, found): (usize, &Option<Option<Root>>)| match found {
        None => State::Missing,
        Some(newest) => {
            let named = root.in_sync >> index & 1 == 1;
            let before = |r: Root| r.generation.next() == root.generation && r.epoch <= root.epoch;
            let current = newest.is_some_and(|r| r == root || before(r));
            if named && current { State::InSync } else { State::Stale }
        }
    };
    let states: Vec<State> = replicas.iter().enumerate().map(state).collect();
    let absent = states.iter().enumerate().filter(|(i, s)| root.in_sync >> i & 1 == 1 && **s != State::InSync);
    let absent = absent.map(|(i, _)| i).collect();
    Ok(Choice { root, absent, states })
}

#[cfg(test)]
mod tests {
    use super::State::{InSync, Missing, Stale};
    use super::*;
    use crate::units::Generation;

    fn root(epoch: u32, generation: u64, in_sync: u64) -> Root {
        Root { epoch, generation: Generation(generation), in_sync, ..Root::default() }
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
            let decided = choose(&found, &|_, _| false).map(|c| (c.root.generation.0, c.states, c.absent));
            assert_eq!(decided, expected, "{name}");
        }
        // Replica 1 was resynced and then went on alone: it shows the root at which the other stopped.
        let (stopped, went_on) = (root(1, 5, 1), root(1, 9, 2));
        let decided = choose(&[Some(Some(stopped)), Some(Some(went_on))], &|i, r| i == 1 && *r == stopped);
        assert_eq!(decided.map(|c| (c.root, c.states)), Ok((went_on, vec![Stale, InSync])));
    }
}
