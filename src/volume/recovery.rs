//! Which root a volume goes on from, and what state each replica is then in. Pure: it reads nothing. Whether a
//! provisional root's commit is whole is proved in [`pages::provisional`](crate::pages::provisional); what is done with
//! the decision is in `volume::open`.
//!
//! # The later root
//!
//! A mount's epoch is greater than that of every mount before it. So of two roots the one with the greater (epoch,
//! generation) is the later one, even when a replica was away.
//!
//! # A replica that the chosen root names
//!
//! Such a replica holds everything that the root refers to. That was flushed on every in-sync replica before the root
//! was written, or the replica is given it now ([`Proof`](crate::pages::provisional::Proof)).
//!
//! The replica's own newest root of this history may be one commit behind, because the power failed between the roots.
//! If it is further behind, somebody put an old copy there. One that is a single commit behind and lacks blocks of that
//! commit besides is looked at in `volume::doubt`.
//!
//! Of another history the replica can have the root of a commit that was incomplete when the power failed, and that the
//! volume did not go on from.
//!
//! # A replica that the chosen root does not name
//!
//! Such a replica was left behind, or it went on by itself elsewhere. The root says which: it records through which
//! mounts its history went, and how far ([`Lineage`](crate::label::Lineage)). Two histories are never joined.

use crate::label::{self, Passed, Root};
use crate::mirror::State;
use crate::units::Generation;

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

/// The roots that open on a replica, the newest first; `None` when there is no device.
pub type Ring = Option<Vec<Root>>;

/// The newest root of a replica.
pub fn newest(ring: &Ring) -> Option<Root> {
    ring.as_ref()?.first().copied()
}

/// What replica `index` shows; nothing when it is not there.
pub fn ring_of(rings: &[Ring], index: usize) -> &[Root] {
    rings.get(index).and_then(Option::as_deref).unwrap_or_default()
}

/// Decides which root to go on from. `replicas[i]` is what replica `i` shows.
///
/// # Errors
/// [`Conflict`].
pub fn choose(replicas: &[Ring]) -> Result<Choice, Conflict> {
    let roots = || replicas.iter().enumerate().filter_map(|(i, ring)| Some((i, newest(ring)?)));
    // Of two first roots of the same number, which both hold nothing new, the one that names more replicas.
    let order = |r: &Root| (r.epoch(), r.generation, r.in_sync.count_ones());
    let (holder, root) = roots().max_by_key(|(_, r)| order(r)).ok_or(Conflict::NoRoot)?;
    let diverged = roots().find(|(i, r)| !is_past(r, *i, &root));
    if let Some((other, _)) = diverged {
        return Err(Conflict::Diverged { one: holder, other });
    }
    let state = |(index, ring): (usize, &Ring)| match ring {
        None => State::Missing,
        Some(ring) => {
            let newest = ring.iter().find(|found| root.went_through(found));
            let current = newest.is_some_and(|r| *r == root || r.generation.next() == root.generation);
            if root.names(index) && current { State::InSync } else { State::Stale }
        }
    };
    let states: Vec<State> = replicas.iter().enumerate().map(state).collect();
    let absent = states.iter().enumerate().filter(|(i, s)| root.names(*i) && **s != State::InSync);
    let absent = absent.map(|(i, _)| i).collect();
    Ok(Choice { root, absent, states })
}

/// Whether the newest root of a replica may have been lost, with its whole slot, so that what the replica shows is older
/// than what it held. `roots` are all that open there, the newest first.
///
/// Let G be the newest of them, and let the replica have held a later one, which does not open. A replica in sync is given
/// every root, so the slot of G + 1 does not open. That alone is what a power failure leaves behind that tears the root of
/// the commit under way: nobody was answered for that one. But no more than one root is under way, so no crash explains a
/// second slot that does not open. Whether it should is said by G, for slots that were never written do not open either
/// ([`Root::ring`]): those of a new volume, and of a replica that was added, or whose ring was emptied.
///
/// So there is no false alarm after a crash, and one lost slot, in both copies of the ring, is taken for a crash's. What was
/// answered in the last commit then is known to the host's witness alone.
pub fn may_lack_newest(roots: &[Root]) -> bool {
    let Some(newest) = roots.first() else { return false };
    let (has, next) = (label::slots_of(roots), 1 << label::slot(newest.generation.next()));
    has & next == 0 && newest.ring & !has & !next != 0
}

/// Decides again without the root `incomplete`, whose commit is incomplete. Returns the rings without it, and the
/// choice.
///
/// Returns nothing when the root chosen then is not the one directly before: no other commit can be incomplete. The
/// root directly before was durable on every replica that it names before the incomplete commit was begun. So a replica
/// that does not have it is an old copy.
pub fn choose_before(replicas: &[Ring], incomplete: &Root) -> Option<(Vec<Ring>, Choice)> {
    let without = |ring: &Vec<Root>| ring.iter().filter(|root| *root != incomplete).copied().collect();
    let earlier: Vec<Ring> = replicas.iter().map(|ring| ring.as_ref().map(without)).collect();
    let mut choice = choose(&earlier).ok()?;
    let root = choice.root;
    if root.generation.next() != incomplete.generation || root.mount != incomplete.mount {
        return None;
    }
    for (index, (state, ring)) in choice.states.iter_mut().zip(&earlier).enumerate() {
        if *state == State::InSync && !ring.as_ref().is_some_and(|ring| ring.contains(&root)) {
            *state = State::Stale;
            choice.absent.push(index);
        }
    }
    Some((earlier, choice))
}

/// The last epoch of the history of `root` in which replica `index` was in sync, as far as `ring` tells; else 0.
pub fn last_epoch_in_sync(ring: &[Root], index: usize, root: &Root) -> u32 {
    let naming = ring.iter().filter(|found| found.names(index) && root.went_through(found));
    naming.map(Root::epoch).max().unwrap_or(0)
}

/// Whether `found`, on replica `index`, is `root`, or was left behind by the history of `root`, as far as `root` tells.
///
/// * Left behind is a root that the history went through.
/// * So is the first root of another mount that went on from this history. It holds nothing that the root before it does
///   not: only the mount's epoch.
/// * So is the next root after one of this history, if it names a replica which does not hold it. Its commit was
///   incomplete, unless that replica has lost it ([`went_on_without`]).
/// * A root that is longer ago than `root` remembers counts as left behind if `root` names this replica, or shares
///   another with it. Else nothing is known of it.
pub fn is_past(found: &Root, index: usize, root: &Root) -> bool {
    if found == root {
        return true;
    }
    let number = |root: &Root| (root.epoch(), root.generation);
    let before = found.lineage.iter().next();
    if before.is_some_and(|before| is_first_after(found, before, root)) && number(found) <= number(root) {
        return true;
    }
    if number(found) >= number(root) {
        return false;
    }
    let shares = found.in_sync & root.in_sync != 0;
    let is_next = |last: Generation| found.generation == last.next() && shares;
    let last = root.lineage.last_of(found.mount);
    let is_forgotten = root.lineage.forgot(before.map_or(found.epoch(), |before| before.mount.epoch));
    root.went_through(found) || last.is_some_and(is_next) || is_forgotten && (root.names(index) || shares)
}

/// Whether `found` is the first root of a mount that went on from the mount `before` where the history of `root` did.
fn is_first_after(found: &Root, before: &Passed, root: &Root) -> bool {
    let went_on_there = root.mount != before.mount && root.lineage.last_of(before.mount) == Some(before.last);
    went_on_there && found.generation == before.last.next()
}

/// Whether the history of `root` went on without the commit of `found`, which names a replica that is said not to hold
/// it. Nobody was answered for that commit if it is incomplete. If it is whole where it was found, then perhaps
/// somebody was, and the other replica has lost it.
///
/// `rings` are those of all replicas: a root with the same trees as an earlier one holds nothing new.
pub fn went_on_without(found: &Root, root: &Root, rings: &[Ring]) -> bool {
    let Some(last) = root.lineage.last_of(found.mount) else { return false };
    let is_same = |other: &Root| {
        other.mount == found.mount
            && other.generation <= last
            && (other.db, other.space) == (found.db, found.space)
            && other.provisional.is_none()
    };
    found.generation > last && !rings.iter().flatten().flatten().any(is_same)
}

/// The root whose commit wrote the newest of what `root` refers to. It is another than `root` when later commits of the
/// mount had nothing to write.
pub fn origin(rings: &[Ring], root: &Root) -> Root {
    let is_same = |other: &&Root| {
        other.mount == root.mount
            && other.generation < root.generation
            && (other.db, other.space) == (root.db, root.space)
    };
    rings.iter().flatten().flatten().filter(is_same).min_by_key(|other| other.generation).copied().unwrap_or(*root)
}

#[cfg(test)]
mod tests {
    use super::State::{InSync, Missing, Stale};
    use super::*;
    use crate::label::{LINEAGE_MAX, MountId, TreeRef};
    use crate::units::BlockAddr;

    /// A root of the mount of this epoch, of a history that went through no other.
    fn root(epoch: u32, generation: u64, in_sync: u64) -> Root {
        let mount = MountId { epoch, nonce: u64::from(epoch) };
        Root { mount, generation: Generation(generation), in_sync, ..Root::default() }
    }

    /// The same, of a history that went on from `before`.
    fn after(before: Root, epoch: u32, generation: u64, in_sync: u64) -> Root {
        Root { lineage: before.lineage_after(), ..root(epoch, generation, in_sync) }
    }

    #[test]
    fn the_table_of_start_ups() {
        type Row = (&'static str, Vec<Ring>, Result<(u64, Vec<State>, Vec<usize>), Conflict>);
        let first = |g, m| Some(vec![root(1, g, m)]);
        let later = |g, m, from: u64| Some(vec![after(root(1, from, 3), 2, g, m)]);
        let table: Vec<Row> = vec![
            ("all there", vec![first(9, 3), first(9, 3)], Ok((9, vec![InSync, InSync], vec![]))),
            ("crash between the roots", vec![first(8, 3), first(9, 3)], Ok((9, vec![InSync, InSync], vec![]))),
            (
                "crash between the first roots of a mount",
                vec![first(8, 3), later(9, 3, 8)],
                Ok((9, vec![InSync, InSync], vec![])),
            ),
            ("old copy put back", vec![first(7, 3), first(9, 3)], Ok((9, vec![Stale, InSync], vec![0]))),
            ("one missing", vec![None, first(9, 3)], Ok((9, vec![Missing, InSync], vec![0]))),
            ("one missing, known", vec![None, first(9, 2)], Ok((9, vec![Missing, InSync], vec![]))),
            ("left behind", vec![first(5, 3), later(9, 2, 5)], Ok((9, vec![Stale, InSync], vec![]))),
            (
                "gone on alone in the mount that the other went on from",
                vec![first(50, 1), later(9, 2, 5)],
                Err(Conflict::Diverged { one: 1, other: 0 }),
            ),
            ("ring lost", vec![Some(vec![]), first(9, 3)], Ok((9, vec![Stale, InSync], vec![0]))),
            ("nothing", vec![None, Some(vec![])], Err(Conflict::NoRoot)),
            (
                "diverged",
                vec![later(9, 1, 5), Some(vec![after(root(1, 5, 3), 3, 12, 2)])],
                Err(Conflict::Diverged { one: 1, other: 0 }),
            ),
            (
                "diverged, same number",
                vec![later(9, 1, 5), later(9, 2, 5)],
                Err(Conflict::Diverged { one: 1, other: 0 }),
            ),
            (
                "the root of an incomplete commit and that nobody went on from, then a crash between the first roots of a mount",
                vec![Some(vec![root(1, 9, 3), root(1, 8, 3)]), later(9, 3, 8)],
                Ok((9, vec![InSync, InSync], vec![])),
            ),
            (
                "the same, with an old copy",
                vec![Some(vec![root(1, 9, 3), root(1, 7, 3)]), later(9, 3, 8)],
                Ok((9, vec![Stale, InSync], vec![0])),
            ),
            (
                "three, one behind",
                vec![first(3, 7), later(9, 6, 5), later(9, 6, 5)],
                Ok((9, vec![Stale, InSync, InSync], vec![])),
            ),
        ];
        for (name, found, expected) in table {
            let decided = choose(&found).map(|c| (c.root.generation.0, c.states, c.absent));
            assert_eq!(decided, expected, "{name}");
        }
    }

    fn of(found: [Root; 2]) -> Result<(u64, Vec<State>), Conflict> {
        choose(&found.map(|root| Some(vec![root]))).map(|c| (c.root.generation.0, c.states))
    }

    const DIVERGED: Result<(u64, Vec<State>), Conflict> = Err(Conflict::Diverged { one: 1, other: 0 });

    #[test]
    fn a_replica_that_was_left_behind_did_not_go_on_by_itself() {
        let left = |generation| Ok((generation, vec![Stale, InSync]));
        // In one mount replica 1 came back, and 0 left before any root named both.
        let (stopped, went_on) = (root(5, 7, 1), root(5, 900, 2));
        assert_eq!(of([stopped, went_on]), left(900));
        // The same some mounts later.
        let later = after(after(went_on, 6, 1000, 2), 8, 2000, 2);
        assert_eq!(of([stopped, later]), left(2000));
        // Of the history of before, but further than it went: replica 0 answered for that alone.
        assert_eq!(of([root(5, 901, 1), later]), DIVERGED);
        // Mounted by itself, past the first root; so too with an epoch that the other's mount has by chance.
        assert_eq!(of([after(went_on, 7, 902, 1), later]), DIVERGED);
        let mut twin = after(went_on, 8, 902, 1);
        twin.mount.nonce = 99;
        assert_eq!(of([twin, later]), DIVERGED);
        // A copy of both went on, and one of it was put in the place of one of ours: one commit behind, by its number.
        let mut copy = after(went_on, 8, 1999, 3);
        copy.mount.nonce = 99;
        assert_eq!(of([copy, Root { in_sync: 3, ..later }]), DIVERGED);
    }

    #[test]
    fn the_root_of_an_incomplete_commit_is_no_history() {
        let left = |generation| Ok((generation, vec![Stale, InSync]));
        let last = root(5, 7, 3);
        // The first root of a mount, and one in the midst of a mount, reached replica 0 only; then 1 went on alone.
        assert_eq!(of([after(last, 6, 8, 3), after(last, 7, 20, 2)]), left(20));
        assert_eq!(of([root(5, 8, 3), after(last, 7, 20, 2)]), left(20));
        // It named nobody of those: then it was answered for.
        assert_eq!(of([root(5, 8, 1), after(last, 7, 20, 2)]), DIVERGED);
        // The first root of a mount holds nothing, whomever it names; also when another mount has the same number.
        assert_eq!(of([after(last, 6, 8, 1), after(last, 7, 20, 2)]), left(20));
        let mut twin = after(last, 7, 8, 2);
        twin.mount.nonce = 99;
        let with_last = |found: [Root; 2]| {
            let rings = found.map(|root| Some(vec![root, last]));
            choose(&rings).map(|choice| (choice.root.generation.0, choice.states))
        };
        assert_eq!(with_last([after(last, 7, 8, 3), twin]), Ok((8, vec![InSync, InSync])));
        assert_eq!(with_last([after(last, 7, 9, 3), twin]), Ok((9, vec![InSync, Stale])));
        // It was not the next.
        assert_eq!(of([after(last, 6, 9, 3), after(last, 7, 20, 2)]), DIVERGED);
        assert_eq!(of([root(5, 9, 3), after(last, 7, 20, 2)]), DIVERGED);
    }

    #[test]
    fn a_commit_that_was_given_up_is_known_by_what_it_wrote() {
        let wrote = |root: Root, addr: u64| Root { db: TreeRef { addr: BlockAddr(addr), ..root.db }, ..root };
        let last = wrote(root(5, 7, 3), 70);
        let now = after(last, 6, 20, 2);
        let rings = [Some(vec![last]), Some(vec![now])];
        assert!(went_on_without(&wrote(root(5, 8, 3), 80), &now, &rings));
        assert!(!went_on_without(&wrote(root(5, 8, 3), 70), &now, &rings), "it had nothing to write");
        assert!(!went_on_without(&last, &now, &rings) && !went_on_without(&now, &now, &rings));
        assert!(!went_on_without(&wrote(after(last, 6, 8, 3), 70), &now, &rings), "the first root of a mount");
        // What an empty commit refers to was written by the one before.
        let [wrote_it, empty, next] = [(8, 80), (9, 80), (10, 90)].map(|(g, addr)| wrote(root(5, g, 3), addr));
        let rings = [Some(vec![empty, wrote_it, last]), None];
        assert_eq!((origin(&rings, &empty), origin(&rings, &next)), (wrote_it, next));
    }

    #[test]
    fn only_the_last_commit_can_be_incomplete() {
        let ring = |roots: &[Root]| Some(roots.to_vec());
        let (last, before) = (root(1, 9, 3), root(1, 8, 3));
        let before_it = |rings: &[Ring]| choose_before(rings, &last).map(|(_, c)| (c.root, c.states));
        assert_eq!(before_it(&[ring(&[last, before]), ring(&[before])]), Some((before, vec![InSync, InSync])));
        assert_eq!(before_it(&[ring(&[last, before]), None]), Some((before, vec![InSync, Missing])));
        // It was durable on both before the last one began.
        let old = ring(&[root(1, 7, 3)]);
        assert_eq!(before_it(&[ring(&[last, before]), old.clone()]), Some((before, vec![InSync, Stale])));
        let choice = choose_before(&[ring(&[last, before]), old], &last).map(|(_, choice)| choice.absent);
        assert_eq!(choice, Some(vec![1]));
        // One who was away since then does not stand in for those who were there.
        let behind = ring(&[root(1, 5, 7)]);
        let of_two = Root { in_sync: 6, ..before };
        let three = [behind.clone(), ring(&[last, of_two]), ring(&[of_two])];
        assert_eq!(before_it(&three), Some((of_two, vec![Stale, InSync, InSync])));
        assert_eq!(before_it(&[ring(&[last]), behind]), None);
        assert_eq!(before_it(&[ring(&[last, root(1, 7, 3)]), None]), None);
        assert_eq!(before_it(&[ring(&[last]), ring(&[])]), None);
        assert_eq!(before_it(&[ring(&[last, Root { mount: MountId { epoch: 1, nonce: 9 }, ..before }])]), None);
    }

    #[test]
    fn a_newest_root_may_be_lost_when_more_slots_do_not_open_than_a_crash_explains() {
        let all: Vec<Root> =
            (37..=100).rev().map(|generation| Root { ring: u64::MAX, ..root(1, generation, 3) }).collect();
        let without = |gone: &[u64]| {
            let left: Vec<Root> = all.iter().filter(|root| !gone.contains(&root.generation.0)).copied().collect();
            may_lack_newest(&left)
        };
        assert!(!without(&[]) && !without(&[50, 60, 70]), "the newest root was never followed by another");
        assert!(!without(&[100]) && !without(&[37]), "a torn root");
        assert!(without(&[100, 99]) && without(&[100, 60]) && without(&[37, 38]));
        // The ring began with root 98, and then with root 100.
        let young = [(100, 0b11 << 34), (99, 1 << 34), (98, 0)].map(|(g, ring)| Root { ring, ..root(1, g, 3) });
        assert!(!may_lack_newest(&young) && !may_lack_newest(&young[1..]) && !may_lack_newest(&[]));
        assert!(may_lack_newest(&young[..1]));
    }

    #[test]
    fn what_is_longer_ago_than_a_root_remembers_is_known_by_whom_it_names() {
        let forgotten = root(1, 7, 3);
        let mut now = forgotten;
        for epoch in 2..LINEAGE_MAX as u32 + 2 {
            now = after(now, epoch, u64::from(epoch) * 10, 2);
        }
        assert_eq!(of([Root { in_sync: 1, ..forgotten }, now]), Ok((now.generation.0, vec![Stale, InSync])));
        now = after(now, now.epoch() + 1, 5000, 2);
        assert_eq!(of([forgotten, now]), Ok((5000, vec![Stale, InSync])));
        assert_eq!(of([Root { in_sync: 1, ..forgotten }, now]), DIVERGED);
    }
}
