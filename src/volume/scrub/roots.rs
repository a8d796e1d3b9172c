//! The rings of roots: every slot that is to hold a root holds it, in both areas of every replica in sync.
//!
//! # Which root a slot is to hold
//!
//! Of a replica, the latest of these, as far as the history of this mount went through them:
//!
//! * the roots that the slot holds in one of the replica's own areas;
//! * the roots that it holds on other replicas in sync and that name this replica: those were written to it;
//! * the newest root of the volume.
//!
//! If there is none, nothing is known of the slot, and it is left alone: a ring that has not gone round yet has random
//! bytes there. A root of a history that was abandoned is neither copied nor overwritten.
//!
//! # When it is written
//!
//! All rings are read first, beside commits. A slot that is then not as it must be may just be being written. So such a slot
//! is read once more between two commits, and only what is found then counts. The repair is queued there. The root of the
//! next commit is queued behind it.

use crate::device::{self, AlignedBuf};
use crate::fs::Fs;
use crate::label::{Area, RING_BYTES, RING_OFFSET, ROOT_BYTES, ROOT_SLOTS, Root, slot, slot_offsets};
use crate::pages::Store;
use crate::units::to_usize;

use super::job::Job;
use super::report::ScrubFinding;

/// What a slot of an area holds.
enum Held {
    Root(Box<Root>, Vec<u8>),
    /// No root of this volume.
    Nothing,
    /// The device did not give it.
    Unread(String),
}

/// One area of one replica.
struct Place {
    index: usize,
    area: usize,
    held: Held,
}

/// Looks at all rings.
pub(super) fn look(job: &Job, store: &Store, fs: &Fs, go_on: &dyn Fn() -> bool) {
    let in_sync = store.mirror().in_sync();
    let replicas: Vec<usize> = (0..store.mirror().len()).filter(|index| in_sync >> index & 1 == 1).collect();
    let rings: Vec<(usize, usize, device::Result<AlignedBuf>)> = replicas
        .iter()
        .flat_map(|index| Area::BOTH.map(|area| (*index, area as usize, read_ring(store, *index, area))))
        .collect();
    rings.iter().for_each(|(index, ..)| job.read(*index, RING_BYTES as u64));
    for number in 0..ROOT_SLOTS {
        if !go_on() {
            return;
        }
        let held = |(index, area, ring): &(usize, usize, device::Result<AlignedBuf>)| {
            let block = ring.as_ref().ok().map(|ring| &ring[to_usize(number) * ROOT_BYTES..][..ROOT_BYTES]);
            let held = match block {
                Some(block) => held(store, number, block),
                None => reread(store, *index, *area, number),
            };
            Place { index: *index, area: *area, held }
        };
        let places: Vec<Place> = rings.iter().map(held).collect();
        if !replicas.iter().all(|index| is_whole(store, number, *index, &places)) {
            // Between commits nobody else writes to a ring.
            fs.between_commits(|| settle(job, store, number, &replicas));
        }
    }
}

fn read_ring(store: &Store, index: usize, area: Area) -> device::Result<AlignedBuf> {
    let offset = area.offset(store.device_bytes(index)) + RING_OFFSET;
    store.mirror().examine_label(index, offset, RING_BYTES)
}

fn held(store: &Store, number: u64, block: &[u8]) -> Held {
    match store.root_in(number, block) {
        Some(root) => Held::Root(Box::new(root), block.to_vec()),
        None => Held::Nothing,
    }
}

fn reread(store: &Store, index: usize, area: usize, number: u64) -> Held {
    let offset = slot_offsets(number, store.device_bytes(index))[area];
    match store.mirror().examine_label(index, offset, ROOT_BYTES) {
        Ok(block) => held(store, number, &block),
        Err(error) => Held::Unread(error.to_string()),
    }
}

/// The root that a slot of a replica is to hold, with its sealed bytes.
fn wanted(store: &Store, number: u64, index: usize, places: &[Place]) -> Option<(Root, Vec<u8>)> {
    let ours = store.root();
    let known = places.iter().filter_map(|place| match &place.held {
        Held::Root(root, bytes) if place.index == index || root.names(index) => Some((**root, bytes.clone())),
        _ => None,
    });
    let past = known.filter(|(root, _)| ours.went_through(root));
    let latest = past.max_by_key(|(root, _)| (root.epoch(), root.generation));
    let is_newest = |root: &Root| root.epoch() == ours.epoch() && root.generation == ours.generation;
    if slot(ours.generation) != number || latest.as_ref().is_some_and(|(root, _)| is_newest(root)) {
        return latest;
    }
    // No ring has the newest root: it is sealed anew.
    let sealed = store.sealed_root(&ours).ok()?;
    Some((ours, sealed.to_vec()))
}

fn is_whole(store: &Store, number: u64, index: usize, places: &[Place]) -> bool {
    let own = || places.iter().filter(|place| place.index == index);
    match wanted(store, number, index, places) {
        None => !own().any(|place| matches!(place.held, Held::Unread(_))),
        Some((root, _)) => own().all(|place| matches!(&place.held, Held::Root(held, _) if **held == root)),
    }
}

/// Looks at a slot while no commit is under way, and has it written anew where it is not as it must be.
fn settle(job: &Job, store: &Store, number: u64, replicas: &[usize]) {
    let mirror = store.mirror();
    let areas = replicas.iter().flat_map(|index| [(*index, 0), (*index, 1)]);
    let places: Vec<Place> =
        areas.map(|(index, area)| Place { index, area, held: reread(store, index, area, number) }).collect();
    for place in &places {
        let Place { index, area, held } = place;
        if mirror.in_sync() >> index & 1 == 0 {
            continue;
        }
        let wanted = wanted(store, number, *index, &places);
        let how = match (&wanted, held) {
            (Some((root, _)), Held::Root(held, _)) if **held == *root || !store.root().went_through(held) => continue,
            // The power failed before both areas had it.
            (Some(_), Held::Root(..)) => None,
            (Some(_), Held::Nothing) => Some("it is damaged".to_owned()),
            (None, Held::Nothing | Held::Root(..)) => continue,
            (_, Held::Unread(why)) => Some(why.clone()),
        };
        let write = |(root, bytes): &(Root, Vec<u8>)| {
            mirror.rewrite(*index, slot_offsets(number, store.device_bytes(*index))[*area], bytes)
                && matches!(reread(store, *index, *area, number), Held::Root(now, _) if *now == *root)
        };
        let repaired = wanted.as_ref().is_some_and(write);
        if let Some(how) = how {
            if !matches!(held, Held::Unread(_)) {
                mirror.count_wrong(*index);
            }
            let what = format!("the root in slot {number} of label area {}", ["A", "B"][*area]);
            job.add(*index, repaired, ScrubFinding { what, how, ..ScrubFinding::default() });
        }
    }
}
