//! A sample of each replica, taken at the mount. A label and a root prove nothing of the rest of a device: somebody may have
//! put the labels of a replica back on a disk that holds nothing else.
//!
//! So units at random places are read from every replica: pages of the database, and blocks of files. A replica that
//! gives several of them, or all that were looked at, as something else, while another one has them, is *hollow*: whatever
//! its roots say, nothing of it is believed, and it is resynced whole. A single damaged block makes no replica hollow; it
//! is read from another one when its time comes.
//!
//! A replica that lacks a part f of its blocks passes the sample with probability of about (1 - f)^32, and a little more
//! for the damaged blocks that are forgiven: of a quarter, about one time in two hundred.

use std::sync::Arc;

use crate::fs;
use crate::label::{Root, TreeRef};
use crate::meta::Meta;
use crate::pages::{Finding, Store, Unit};
use crate::units::Ino;

/// Units of each kind that are read.
const UNITS: usize = 16;

/// From so many units of the sample that are something else, a replica is hollow.
const DAMAGED_MIN: usize = 3;

/// What a sample says of the replicas: bit `i` for replica `i`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    /// Those that are hollow.
    pub hollow: u64,
    /// Those of which nothing was looked at: hardly anything is older than what they may lack.
    pub unproven: u64,
}

/// Takes a sample. Of each replica are given its index and the first epoch of which it may lack something. Nothing is
/// written.
/// What the sample cannot be taken from is left out.
pub(super) fn take(store: &Arc<Store>, replicas: &[(usize, u32)]) -> Sample {
    let mut sample = Sample::default();
    if replicas.len() < 2 {
        return sample;
    }
    let mut counts = vec![(0, 0); replicas.len()];
    for unit in units(store) {
        let has = |(index, since): &(usize, u32)| (unit.id.epoch < *since).then(|| store.examine(&unit, *index));
        let found: Vec<Option<Finding>> = replicas.iter().map(has).collect();
        if found.iter().flatten().any(|found| *found == Finding::Good) {
            for ((looked_at, damaged), found) in counts.iter_mut().zip(found) {
                *looked_at += usize::from(matches!(found, Some(Finding::Good | Finding::Damaged)));
                *damaged += usize::from(found == Some(Finding::Damaged));
            }
        }
    }
    for ((index, _), (looked_at, damaged)) in replicas.iter().zip(counts) {
        let is_hollow = damaged >= DAMAGED_MIN || damaged > 0 && damaged == looked_at;
        sample.hollow |= u64::from(is_hollow) << index;
        sample.unproven |= u64::from(looked_at == 0) << index;
    }
    sample
}

/// Different units, at most [`UNITS`] of each kind: of a small volume a place can be drawn several times.
fn units(store: &Arc<Store>) -> Vec<Unit> {
    let mut units = draw(store);
    units.sort_by_key(|unit| unit.at.addr);
    units.dedup_by_key(|unit| unit.at.addr);
    units
}

/// Places that depend on the root alone: the same state of a volume is looked at in the same places. Nobody without the key
/// foresees them, because the tags of a root are sealed with it.
struct Dice(u64);

impl Dice {
    fn of(root: &Root) -> Self {
        let tag = |tree: &TreeRef| u64::from_le_bytes(std::array::from_fn(|i| tree.tag[i]));
        Self(tag(&root.db) ^ tag(&root.space).rotate_left(32))
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn draw(store: &Arc<Store>) -> Vec<Unit> {
    let mut dice = Dice::of(&store.root());
    let mut below = |end: u64| dice.next() % end.max(1);
    let mut units = Vec::with_capacity(2 * UNITS);
    let mut view = store.view();
    for _ in 0..UNITS {
        let page = below(view.database_pages());
        // What cannot be found is damaged on every replica, which is another matter.
        units.extend(view.page_unit(page).ok().flatten());
    }
    drop(view);
    let Ok(meta) = store.open_database().map_err(fs::Error::from).and_then(|conn| Ok(Meta::open(conn)?)) else {
        return units;
    };
    // The store is not written to yet, so nothing of this is used again meanwhile.
    for _ in 0..UNITS {
        let after = Ino(below(meta.next_ino()));
        let found = meta.read(|view| {
            let found = view.all_extents(after, 0, 1)?;
            if found.is_empty() { view.all_extents(Ino(0), 0, 1) } else { Ok(found) }
        });
        let Some((_, extent)) = found.ok().and_then(|found: Vec<_>| found.into_iter().next()) else { continue };
        let Some(tags) = &extent.tags else { continue };
        let block = below(extent.blocks);
        if let Some(tag) = usize::try_from(block).ok().and_then(|at| tags.get(at)) {
            units.push(store.data_unit(extent.addr.add(block), extent.id.add(block), *tag));
        }
    }
    units
}
