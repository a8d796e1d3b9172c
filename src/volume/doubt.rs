//! The last look before a volume goes on from a root whose commit was flushed before the root was written: what of that
//! commit is where, and whether to go on from it is for somebody to say. Nothing is written.
//!
//! # A replica that is one root behind
//!
//! A plain root N is written when all that it refers to is flushed on every replica that it names; and nobody is answered
//! before all of them have N. Let A have the root N, and let B, which N names, have none newer than N - 1.
//!
//! * **B has every block of N.** Then the power failed between the two roots. N is whole on B, whatever became of A: B is
//!   given the root, and A what it lacks. What B cannot give either is damaged on both, like any other block.
//! * **B lacks a block of N.** B had flushed it, or had said so. So B has lost N, or somebody put a state of B back that is
//!   one commit old. As far as B goes, N never was; the volume is whole there at N - 1, and N depends on the others alone.
//!
//! In the second case N may have been answered for, and what it wrote may have been damaged on A since. To go on from N
//! makes B like A: what of N - 1 was whole on B, and is not on A, is then lost. To go on from N - 1 undoes what was
//! answered for. Neither is done silently when a block of N is on no replica: [`Error::Unproven`] names both. When every
//! block of N is on some replica, nothing is lost by N, and B is resynced.
//!
//! # What is looked for
//!
//! 1. The pages and nodes that were born with N ([`Proof`]). That costs little, and is done at every mount.
//! 2. When some replica turns out to be of the second case, the data of N too. A root does not list the data of a plain
//!    commit. But what N wrote lies in blocks that are in use by N's map of the space and were free by that of N - 1,
//!    because a commit writes to free blocks alone. The rows of the tables say what belongs there.
//!
//! # Roots that are lost
//!
//! A replica whose ring is damaged may have held a later root than the newest that opens
//! ([`recovery::may_lack_newest`]). Another replica in sync whose ring is not tells what is newest: it would have been given
//! that root, too. When there is none, the newest root that opens is gone on from only when that is accepted, and the
//! slots that do not open are no longer expected to ([`Root::ring`]). A replica that went on by itself from there, and lost
//! the roots of that, is known to the witness of its host: nothing was answered before that had been written
//! (`pages::Store::on_departure`).
//!
//! # The way back
//!
//! The volume can go on from N - 1 when that is of the same mount, and what N - 1 itself wrote is whole. What N freed may
//! have been used again since, on A and on B; so a file that N removed or overwrote may be damaged at N - 1. Every block
//! that is read is authenticated, so that is an error and never a wrong byte. N stays in A's ring until the first commit of
//! the new mount takes its slot; a root that the others went on without is no way back then
//! ([`recovery::went_on_without`]).

use std::sync::Arc;

use super::assembled::{Assembled, Chosen, OpenOptions, acceptable};
use super::error::Error;
use super::recovery;
use crate::fs;
use crate::label::{self, Root};
use crate::meta::{ExtentRow, Meta};
use crate::mirror::State;
use crate::pages::provisional::Proof;
use crate::pages::{Finding, Store};
use crate::space::Bitmap;
use crate::units::{Generation, Ino};

/// Extents whose rows are read at once.
const EXTENTS_AT_ONCE: usize = 256;

/// A commit that was flushed, and that replicas which should have it do not show.
struct Doubt {
    /// Its root.
    root: Root,
    /// The replicas that are one root behind and lack some of it.
    behind: Vec<usize>,
}

/// What the administrator has accepted.
enum Answer {
    /// To go on from the commit in doubt, for this reason.
    On(String),
    /// To go on from the commit before.
    Before(Vec<recovery::Ring>, Box<Chosen>),
}

impl Assembled {
    /// Decides where the volume goes on from, and refuses what nobody has decided. Returns the rings as far as they count.
    ///
    /// # Errors
    /// [`Error::Unproven`], [`Error::Incomplete`], [`Error::Diverged`].
    pub(super) fn decide(&self, options: &OpenOptions) -> Result<(Vec<recovery::Ring>, Chosen), Error> {
        let found = self.rings();
        let (rings, mut chosen) = self.decide_on(found.clone(), options)?;
        let accepted = self.refuse_lost_roots(&found, &chosen.choice, options.accept_rollback)?;
        chosen.accepted = chosen.accepted.or(accepted);
        chosen.slots = in_sync(&chosen.choice)
            .fold(u64::MAX, |slots, index| slots & label::slots_of(recovery::ring_of(&found, index)));
        Ok((rings, chosen))
    }

    /// Refuses to go on from the newest root that opens when on every replica in sync a newer one may be lost. Returns what
    /// was accepted, if that was.
    fn refuse_lost_roots(
        &self,
        rings: &[recovery::Ring],
        choice: &recovery::Choice,
        given: Option<Generation>,
    ) -> Result<Option<String>, Error> {
        let roots = |index: usize| recovery::ring_of(rings, index);
        let generation = choice.root.generation;
        if in_sync(choice).any(|index| !recovery::may_lack_newest(roots(index))) {
            return Ok(None);
        }
        let damaged = |index: usize| {
            let lost = roots(index).first().map_or(0, |newest| newest.ring & !label::slots_of(roots(index)));
            format!("{} of the roots in the labels of {} are lost", lost.count_ones(), self.name(index))
        };
        let damaged: Vec<String> = in_sync(choice).map(damaged).collect();
        let why = format!(
            "{}, and that of a later commit may have been among them. Commit {generation} is the last that can be seen",
            damaged.join(", ")
        );
        if given == Some(generation) {
            let why = format!("{why}; the administrator accepted to go on from it");
            log::warn!("volume {}: {why}", self.header.volume);
            return Ok(Some(why));
        }
        Err(Error::Unproven { volume: self.header.volume, generation, acceptable: Some(generation), given, why })
    }

    /// Decides where the volume goes on from by what is found on the replicas.
    fn decide_on(
        &self,
        mut rings: Vec<recovery::Ring>,
        options: &OpenOptions,
    ) -> Result<(Vec<recovery::Ring>, Chosen), Error> {
        let accept = options.accept_rollback;
        let chosen = self.choose(&mut rings, options.degraded, accept)?;
        if let Some((block, error)) = &chosen.proof.unread {
            let why = format!("block {} is on no device that can read it ({error})", block.0);
            let acceptable = acceptable(&rings, &chosen.choice, &chosen.proof);
            let (volume, generation) = (self.header.volume, chosen.choice.root.generation);
            return Err(Error::Unproven { volume, generation, acceptable, given: accept, why });
        }
        self.refuse_left_commit(&chosen.choice, &rings)?;
        if chosen.choice.root.provisional.is_some() || chosen.incomplete.is_some() {
            return Ok((rings, chosen));
        }
        self.prove_flushed(rings, chosen.choice, options)
    }

    /// Proves the chosen root's commit where the root is not provisional: all that it refers to was flushed before it
    /// was written. So a replica that lacks some of it has lost what it had flushed, or is an old copy. What else it
    /// lacks is not known, and it becomes stale.
    fn prove_flushed(
        &self,
        rings: Vec<recovery::Ring>,
        mut choice: recovery::Choice,
        options: &OpenOptions,
    ) -> Result<(Vec<recovery::Ring>, Chosen), Error> {
        let origin = recovery::origin(&rings, &choice.root);
        let mut proof = self.prove(&origin, &choice);
        // What was flushed is gone on from, whatever of it can be read.
        self.refuse_loss(&choice, &proof, Some(choice.root.generation), options.accept_rollback)?;
        let doubt = doubt(&rings, &choice, &origin, &proof);
        let unread = proof.unread.take().map(|(block, error)| {
            format!("block {} of commit {} is on no device that can read it ({error})", block.0, origin.generation)
        });
        let is_damaged = unread.is_some() || proof.lost > 0;
        let lost = unread.or_else(|| {
            let lost = || format!("at least {} of its pages are on no replica that is here", proof.lost);
            (proof.lost > 0).then(lost)
        });
        let asked = doubt.as_ref().and_then(|doubt| {
            let lost = lost.or_else(|| self.lost_data(doubt, &rings, &choice))?;
            Some((doubt, lost))
        });
        let mut accepted = None;
        if let Some((doubt, lost)) = asked {
            match self.ask(doubt, &lost, &rings, options)? {
                Answer::Before(earlier, before) => return Ok((earlier, *before)),
                Answer::On(why) => accepted = Some(why),
            }
        }
        if is_damaged {
            let (volume, generation) = (self.header.volume, origin.generation);
            log::error!("volume {volume}: blocks of commit {generation} are damaged on every replica");
        }
        self.outdate(&mut choice, &origin, &mut proof);
        Ok((rings, Chosen { accepted, ..Chosen::new(choice, proof) }))
    }

    /// Makes those replicas stale that lack what another one has of a commit that was flushed.
    fn outdate(&self, choice: &mut recovery::Choice, origin: &Root, proof: &mut Proof) {
        let is_whole = |index: usize| proof.lacking_replicas >> index & 1 == 0;
        let some_are_whole = choice.states.iter().enumerate().any(|(i, state)| *state == State::InSync && is_whole(i));
        // What a provisional commit wrote is known to the last block, so it can be given.
        if origin.provisional.is_some() || !some_are_whole {
            return;
        }
        for (index, state) in choice.states.iter_mut().enumerate() {
            if *state == State::InSync && !is_whole(index) {
                log::error!(
                    "{} lacks blocks of commit {}, which it had flushed: it is stale",
                    self.name(index),
                    origin.generation
                );
                *state = State::Stale;
            }
        }
        proof.lacking.clear();
    }

    /// Goes on from the commit in doubt, or from the one before, as the administrator has accepted.
    fn ask(&self, doubt: &Doubt, lost: &str, rings: &[recovery::Ring], options: &OpenOptions) -> Result<Answer, Error> {
        let (volume, generation, given) = (self.header.volume, doubt.root.generation, options.accept_rollback);
        let before = self.before(rings, &doubt.root, options.degraded);
        let acceptable = before.as_ref().map_or(generation, |(_, before)| before.choice.root.generation);
        let behind = self.names(&doubt.behind);
        let why = format!("{lost}, and {behind}, which had flushed it, shows no more than the commit before it");
        if given == Some(generation) {
            let why = format!("{why}; the administrator accepted to go on from commit {generation} all the same");
            log::warn!("volume {volume}: {why}");
            return Ok(Answer::On(why));
        }
        match before {
            Some((earlier, before)) if given == Some(acceptable) => {
                let why = format!(
                    "{why}; the administrator accepted a rollback. The volume goes on from commit {acceptable}, and \
                     commit {generation} is lost"
                );
                log::warn!("volume {volume}: {why}");
                Ok(Answer::Before(earlier, Box::new(Chosen { accepted: Some(why), ..before })))
            }
            before => {
                let how = match before {
                    Some(_) => format!(
                        "From commit {acceptable} the volume is whole, and lacks what was written since; \
                         accept-rollback={generation} goes on from commit {generation}, and keeps what is left of that"
                    ),
                    None => format!("The commit before {generation} is not whole either"),
                };
                Err(Error::Unproven {
                    volume,
                    generation,
                    acceptable: Some(acceptable),
                    given,
                    why: format!("{why}. {how}"),
                })
            }
        }
    }

    /// The decision without the root of a commit; nothing when the commit before it is not whole.
    fn before(&self, rings: &[recovery::Ring], root: &Root, degraded: bool) -> Option<(Vec<recovery::Ring>, Chosen)> {
        let (earlier, mut choice) = recovery::choose_before(rings, root)?;
        self.admit(&choice, degraded).ok()?;
        let origin = recovery::origin(&earlier, &choice.root);
        let mut proof = self.prove(&origin, &choice);
        if proof.lost > 0 || proof.unread.is_some() {
            return None;
        }
        self.outdate(&mut choice, &origin, &mut proof);
        self.mark_unfit(&mut choice);
        Some((earlier, Chosen::new(choice, proof)))
    }

    /// What of the data of a commit is on no replica that is here, in words; also when the tables that would tell cannot
    /// be read. Nothing when the commit before cannot be gone on from anyway.
    fn lost_data(&self, doubt: &Doubt, rings: &[recovery::Ring], choice: &recovery::Choice) -> Option<String> {
        let (_, before) = recovery::choose_before(rings, &doubt.root)?;
        // The replicas behind are read too: what they have is authenticated as everything is.
        let (mirror, device_bytes) = self.mirror(&choice.states).ok()?;
        mirror.stop_repairing();
        let store = self.store_at(&doubt.root, 0, mirror, device_bytes).ok()?;
        let free = store.allocated_at(&before.root).ok()?;
        match lost_blocks(&store, &free, &in_sync(choice).collect::<Vec<_>>()) {
            Ok(0) => None,
            Ok(lost) => Some(format!("{lost} blocks of data of its are on no replica that is here")),
            Err(error) => Some(format!("which data it wrote cannot be told ({error})")),
        }
    }
}

/// The replicas in sync.
fn in_sync(choice: &recovery::Choice) -> impl Iterator<Item = usize> {
    choice.states.iter().enumerate().filter(|(_, state)| **state == State::InSync).map(|(index, _)| index)
}

/// The doubt about a commit, if there is any: a replica in sync does not show its root, and lacks some of it.
fn doubt(rings: &[recovery::Ring], choice: &recovery::Choice, origin: &Root, proof: &Proof) -> Option<Doubt> {
    let root = choice.root;
    let is_damaged = proof.lost > 0 || proof.unread.is_some();
    let is_behind = |index: &usize| {
        choice.states.get(*index) == Some(&State::InSync)
            && !recovery::ring_of(rings, *index).contains(&root)
            && (is_damaged || proof.lacking_replicas >> index & 1 == 1)
    };
    let behind: Vec<usize> = (0..choice.states.len()).filter(is_behind).collect();
    // A commit that wrote nothing has nothing to lose.
    (*origin == root && !behind.is_empty()).then_some(Doubt { root, behind })
}

/// How many blocks of data that were not in use by the map `before` none of the replicas has.
fn lost_blocks(store: &Arc<Store>, before: &Bitmap, replicas: &[usize]) -> Result<u64, fs::Error> {
    let meta = Meta::open(store.open_database()?)?;
    let is_lost = |extent: &ExtentRow, at: u64, tag| {
        let addr = extent.addr.add(at);
        let unit = store.data_unit(addr, extent.id.add(at), tag);
        !before.is_allocated(addr) && replicas.iter().all(|index| store.examine(&unit, *index) != Finding::Good)
    };
    let (mut after, mut lost) = ((Ino(0), 0), 0);
    loop {
        let found: Vec<(Ino, ExtentRow)> = meta.read(|view| view.all_extents(after.0, after.1, EXTENTS_AT_ONCE))?;
        let Some((ino, last)) = found.last() else { return Ok(lost) };
        after = (*ino, last.end() - 1);
        for (_, extent) in &found {
            let tags = (0..).zip(extent.tags.iter().flatten());
            lost += tags.filter(|(at, tag)| is_lost(extent, *at, **tag)).count() as u64;
        }
    }
}
