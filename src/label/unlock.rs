//! From a secret to the volume key: the key slots that labels claim, tried in an order that a forged label cannot turn
//! against the owner.
//!
//! # What a label claims
//!
//! Before the key is known every slot is a claim, and each try costs a derivation of argon2id. A hostile device can claim
//! slots that nothing opens: cheap ones, so that they come first, or costly ones, so that each takes long.
//!
//! # The order
//!
//! A slot that several devices show is tried once, and they share what it costs. Each time the turn is with the device
//! that has then paid least. An honest device shows the slots of the volume, so:
//!
//! * One hostile replica adds at most what trying every slot of the volume costs. Beside two honest replicas it adds
//!   half of that, beside three a third.
//! * Slots on which most devices agree are cheap for each of them, and come first.
//! * A costly slot waits until the others have paid as much.
//!
//! All tries together cost at most [`KDF_OPENING_WORK_MAX`].

use super::{Error, Found, KeySlot};
use crate::crypto::{self, Secret, VolumeKey, derive_slot_key, unwrap_key};
use crate::limits::KDF_OPENING_WORK_MAX;
use crate::units::Uuid;

/// The volume key, and where it came from.
#[derive(Debug)]
pub struct Opened {
    /// The key.
    pub key: VolumeKey,
    /// The volume that it is the key of.
    pub volume: Uuid,
    /// Number of the slot that opened.
    pub slot: usize,
    /// The slot. Whether the volume still has it, its root tells.
    pub way: KeySlot,
}

/// A key slot that a label claims, with what its wrapped key is bound to.
#[derive(PartialEq, Eq)]
struct Way {
    volume: Uuid,
    aad: [u8; 32],
    number: usize,
    slot: KeySlot,
}

/// Tries `secret` on the key slots that the labels claim for any of `volumes`. A wrong secret costs the same at every
/// try, and each distinct slot is tried once.
///
/// # Errors
/// [`crypto::Error::WrongKey`] when no slot opens; but [`crypto::Error::KdfMemory`] when memory was short for one, and
/// the refusal of a slot's parameters when no slot could be tried. [`crypto::Error::TooMuchWork`] when the slots ask for
/// more than an attempt may cost. [`Error::NoKeySlot`] when no slot is in use.
pub fn unlock(labels: &[&Found], volumes: &[Uuid], secret: &Secret) -> Result<Opened, Error> {
    let mut ways: Vec<Way> = Vec::new();
    let claims: Vec<Vec<usize>> = labels.iter().map(|found| claimed(found, volumes, &mut ways)).collect();
    let works: Vec<u64> = ways.iter().map(|way| way.slot.params.work()).collect();
    let (mut left, mut failure) = (KDF_OPENING_WORK_MAX, None);
    let order = order(&claims, &works);
    for (tried, way) in order.iter().map(|&way| &ways[way]).enumerate() {
        let Some(rest) = left.checked_sub(way.slot.params.work()) else {
            return Err(crypto::Error::TooMuchWork { untried: order.len() - tried }.into());
        };
        left = rest;
        let outcome = derive_slot_key(secret, &way.slot.salt, &way.slot.params)
            .and_then(|slot_key| unwrap_key(&way.slot.wrapped, &slot_key, &way.aad));
        match outcome {
            Ok(key) => return Ok(Opened { key, volume: way.volume, slot: way.number, way: way.slot.clone() }),
            Err(error) => failure = worse(failure, error),
        }
    }
    Err(failure.map_or(Error::NoKeySlot, Error::Crypto))
}

/// Of two reasons why slots did not open, the one that says more. That the secret is wrong is known only of slots that
/// were tried.
fn worse(one: Option<crypto::Error>, other: crypto::Error) -> Option<crypto::Error> {
    let rank = |error: &crypto::Error| match error {
        crypto::Error::KdfMemory { .. } => 0,
        crypto::Error::WrongKey => 1,
        _ => 2,
    };
    one.into_iter().chain([other]).min_by_key(rank)
}

/// The numbers of the ways that a device claims, in the order of its slots, those of its newest header first. Ways that
/// nobody has claimed before are added to `ways`.
fn claimed(found: &Found, volumes: &[Uuid], ways: &mut Vec<Way>) -> Vec<usize> {
    let mut claimed = Vec::new();
    for raw in found.whole() {
        let (volume, aad) = (raw.claims().volume, raw.wrap_digest());
        for (number, slot) in raw.claims().key_slots.iter().enumerate() {
            let Some(slot) = slot.clone().filter(|_| volumes.contains(&volume)) else { continue };
            let way = Way { volume, aad, number, slot };
            let index = ways.iter().position(|known| *known == way).unwrap_or_else(|| {
                ways.push(way);
                ways.len() - 1
            });
            if !claimed.contains(&index) {
                claimed.push(index);
            }
        }
    }
    claimed
}

/// The order in which ways are tried: `claims[d]` are those that device `d` claims, `works[w]` is what way `w` costs.
fn order(claims: &[Vec<usize>], works: &[u64]) -> Vec<usize> {
    let share: Vec<u64> = (0..works.len())
        .map(|way| works[way] / claims.iter().filter(|claimed| claimed.contains(&way)).count().max(1) as u64)
        .collect();
    let mut paid = vec![0u64; claims.len()];
    let mut is_tried = vec![false; works.len()];
    let mut order = Vec::with_capacity(works.len());
    loop {
        let turn = |(device, claimed): (usize, &Vec<usize>)| {
            let next = *claimed.iter().find(|way| !is_tried[**way])?;
            Some((paid[device].saturating_add(share[next]), next))
        };
        let Some((_, next)) = claims.iter().enumerate().filter_map(turn).min() else { return order };
        for (device, _) in claims.iter().enumerate().filter(|(_, claimed)| claimed.contains(&next)) {
            paid[device] = paid[device].saturating_add(share[next]);
        }
        is_tried[next] = true;
        order.push(next);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is spent up to and with way `right`.
    fn spent(claims: &[Vec<usize>], works: &[u64], right: usize) -> u64 {
        let order = order(claims, works);
        let until = order.iter().position(|way| *way == right).map_or(order.len(), |at| at + 1);
        order[..until].iter().map(|way| works[*way]).sum()
    }

    #[test]
    fn each_way_has_its_turn_once() {
        assert!(order(&[], &[]).is_empty());
        assert_eq!(order(&[vec![0, 1], vec![1, 2], vec![]], &[5, 4, 3]).len(), 3);
        // What two agree on comes before what one claims, although that is cheaper.
        assert_eq!(order(&[vec![0], vec![1], vec![1]], &[5, 8])[0], 1);
        assert_eq!(order(&[vec![1, 0]], &[1, 9]), [1, 0]);
    }

    proptest! {
        /// Honest devices show slots of the same work; one hostile device anything, those of the honest included.
        #[test]
        fn a_hostile_replica_at_most_doubles_the_work(
            honest in 1usize..6,
            slots in 1usize..=8,
            right in 0usize..8,
            place in 0usize..7,
            forged in proptest::collection::vec(1u64..=4 * 7560, 0..=24),
            copied in proptest::collection::vec(0usize..8, 0..4),
        ) {
            // A work that every number of honest devices divides, so that shares are exact.
            let (right, work) = (right % slots, 7560u64);
            let mut claims = vec![(0..slots).collect::<Vec<_>>(); honest];
            let mut hostile: Vec<usize> = copied.into_iter().filter(|way| *way < slots).collect();
            hostile.dedup();
            hostile.extend(slots..slots + forged.len());
            claims.insert(place % (honest + 1), hostile);
            let works: Vec<u64> = (0..slots).map(|_| work).chain(forged).collect();
            let alone = slots as u64 * work;
            prop_assert!(spent(&claims, &works, right) <= alone + alone / honest as u64);
        }
    }
}
