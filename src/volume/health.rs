//! What went wrong with a volume's replicas, over all mounts on this host.
//!
//! A mount counts for itself ([`ErrorCounts`]). A disk that goes bad slowly would look well after every remount. So the
//! host remembers the sums in its [`witness`](super::witness), for each replica by the identity that its device was
//! enrolled with. A disk that was put in another's place therefore begins with nothing.
//!
//! The counts start anew when `scelle check` has read everything on the replica and found nothing wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::label::{Header, ReplicaRow};
use crate::mirror::ErrorCounts;
use crate::problem::{Code, Problem};
use crate::registry::{hex, utc_second};

/// From so many blocks of one replica that were not what was written, the volume is not healthy: a disk has a bad block now
/// and then, and a disk that lies has thousands.
pub const INTEGRITY_ERRORS_MAX: u64 = 64;

/// From so many resyncs in a row that nobody asked for, the volume is not healthy.
pub const RESYNCS_MAX: usize = 3;

/// What counts as in a row, in seconds: a day.
pub const RESYNCS_WITHIN_S: u64 = 24 * 60 * 60;

/// Most times of resyncs that are remembered.
const TIMES_MAX: usize = 8;

/// Most that is counted: what a TOML file can hold.
const COUNT_MAX: u64 = i64::MAX as u64;

/// What the host remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Health {
    /// What went wrong with each replica, by the digest of its device's identity in hexadecimal digits.
    pub replicas: BTreeMap<String, Tally>,
}

/// What went wrong with one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Tally {
    /// Since when it is counted, in seconds since 1970.
    pub since_unix_s: u64,
    /// Reads that the device failed.
    pub read: u64,
    /// Writes or flushes that the device failed.
    pub write: u64,
    /// Blocks that did not verify.
    pub integrity: u64,
    /// Blocks that were written anew from another replica.
    pub repaired: u64,
    /// How often the label was found written over while the replica was in use.
    pub labels: u64,
    /// How often the replica was resynced.
    pub resyncs: u64,
    /// When the last resyncs began that nobody had asked for, in seconds since 1970.
    pub unasked: Vec<u64>,
}

impl Tally {
    /// A count that begins now.
    pub fn since(now_unix_s: u64) -> Self {
        Self { since_unix_s: now_unix_s.min(COUNT_MAX), ..Self::default() }
    }

    /// Whether the device has given so many blocks that were not what was written that it is not to be trusted.
    pub fn is_untrue(&self) -> bool {
        self.integrity >= INTEGRITY_ERRORS_MAX
    }

    /// How many resyncs nobody asked for have begun within a day before `now_unix_s`. Times that are ahead of the clock
    /// by no more count, too: the clock was set back.
    pub fn unasked_lately(&self, now_unix_s: u64) -> usize {
        self.unasked.iter().filter(|at| at.abs_diff(now_unix_s) < RESYNCS_WITHIN_S).count()
    }

    /// Whether the replica is left behind again and again.
    pub fn is_unsteady(&self, now_unix_s: u64) -> bool {
        self.unasked_lately(now_unix_s) >= RESYNCS_MAX
    }

    /// Why the volume is not healthy with such a replica, and what to do; nothing when that is no reason.
    pub fn concerns(&self, now_unix_s: u64) -> Vec<Problem> {
        let since = utc_second(self.since_unix_s).map_or_else(String::new, |time| format!(" since {time}Z"));
        let mut concerns = Vec::new();
        if self.is_untrue() {
            let (integrity, repaired) = (self.integrity, self.repaired);
            let what = format!(
                "it has given {integrity} blocks{since} that were not what was written; {repaired} of them were repaired. Have \
                 the device looked at, and replaced if it goes on. The count begins anew when scelle check finds the replica whole"
            );
            concerns.push(Problem::new(Code::ReplicaFaulty, what));
        }
        if self.is_unsteady(now_unix_s) {
            let what = format!(
                "it was resynced {} times within a day, and nobody had asked for it. Look at its cable, its power and the \
                 kernel's messages, and replace the device if it goes on. This is told until a day has passed",
                self.unasked_lately(now_unix_s)
            );
            concerns.push(Problem::new(Code::ReplicaUnsteady, what));
        }
        if self.labels > 0 {
            let what = format!(
                "its label was not what it had to be, {} times{since}. Find out what wrote to the device, then see with scelle \
                 check what else it wrote over. This is told until a check finds the replica whole",
                self.labels
            );
            concerns.push(Problem::new(Code::LabelOverwritten, what));
        }
        concerns
    }

    fn and(&self, more: ErrorCounts) -> Self {
        let sum = |a: u64, b: u64| a.saturating_add(b).min(COUNT_MAX);
        Self {
            read: sum(self.read, more.read),
            write: sum(self.write, more.write),
            integrity: sum(self.integrity, more.integrity),
            repaired: sum(self.repaired, more.repaired),
            labels: sum(self.labels, 0),
            resyncs: sum(self.resyncs, 0),
            since_unix_s: sum(self.since_unix_s, 0),
            unasked: self.unasked.iter().rev().take(TIMES_MAX).rev().map(|at| (*at).min(COUNT_MAX)).collect(),
        }
    }

    /// What is left of this when a check has found the replica whole. That the replica comes and goes is another matter,
    /// and passes by itself.
    fn found_whole(&self, now_unix_s: u64) -> Self {
        Self { unasked: self.unasked.clone(), ..Self::since(now_unix_s) }
    }
}

impl Health {
    /// Notes that a check has found the replicas of these identities whole. Returns whose counts start anew because of
    /// that.
    pub fn found_whole(&mut self, identities: &[[u8; 32]], now_unix_s: u64) -> Vec<[u8; 32]> {
        let mut anew = Vec::new();
        for identity in identities {
            let Some(tally) = self.replicas.get_mut(&hex(identity)) else { continue };
            let whole = tally.found_whole(now_unix_s);
            if *tally != (Tally { since_unix_s: tally.since_unix_s, ..whole.clone() }) {
                *tally = whole;
                anew.push(*identity);
            }
        }
        anew
    }
}

/// The counts of a volume in use.
pub(super) struct Ledger(Mutex<Vec<Row>>);

/// One replica.
struct Row {
    /// Nothing when the table has no replica in this row.
    identity: Option<String>,
    /// Everything but the [`ErrorCounts`] of this mount.
    tally: Tally,
    /// Whether the trail knows already that the replica is not reliable.
    told: BTreeSet<Code>,
}

impl Ledger {
    /// The counts of the replicas in `header`, which go on from what the host remembers.
    pub fn new(header: &Header, remembered: &Health, now_unix_s: u64) -> Self {
        let row = |known: &Option<ReplicaRow>| {
            let identity = known.as_ref().map(|known| hex(&known.identity));
            let remembered = identity.as_ref().and_then(|identity| remembered.replicas.get(identity));
            let tally = remembered.cloned().unwrap_or_else(|| Tally::since(now_unix_s));
            let told = codes(&tally, now_unix_s);
            Row { identity, tally, told }
        };
        Self(Mutex::new(header.replicas.iter().map(row).collect()))
    }

    /// A row of the table has a device with this identity from now on, or none. It begins with nothing.
    pub fn set_replica(&self, index: usize, identity: Option<&[u8; 32]>, now_unix_s: u64) {
        if let Some(row) = self.0.lock().get_mut(index) {
            let identity = identity.map(|identity| hex(identity));
            *row = Row { identity, tally: Tally::since(now_unix_s), told: BTreeSet::new() };
        }
    }

    /// What went wrong with a replica in all, when `errors` did in this mount.
    pub fn total(&self, index: usize, errors: ErrorCounts) -> Tally {
        self.0.lock().get(index).map_or_else(Tally::default, |row| row.tally.and(errors))
    }

    /// What is to be remembered, when these errors were counted in this mount.
    pub fn health(&self, errors: impl Fn(usize) -> ErrorCounts) -> Health {
        let rows = self.0.lock();
        let sum = |(index, row): (usize, &Row)| Some((row.identity.clone()?, row.tally.and(errors(index))));
        Health { replicas: rows.iter().enumerate().filter_map(sum).collect() }
    }

    /// Why a replica is not reliable, as far as that is new since the last call. What was so at the mount is not new.
    pub fn news(&self, index: usize, errors: ErrorCounts, now_unix_s: u64) -> Vec<Problem> {
        let mut rows = self.0.lock();
        let Some(row) = rows.get_mut(index) else { return Vec::new() };
        let total = row.tally.and(errors);
        let told = std::mem::replace(&mut row.told, codes(&total, now_unix_s));
        // The trail tells of each label by itself.
        let is_new = |problem: &Problem| !told.contains(&problem.code) && problem.code != Code::LabelOverwritten;
        total.concerns(now_unix_s).into_iter().filter(is_new).collect()
    }

    /// Notes that a replica's label was found written over.
    pub fn label_overwritten(&self, index: usize) {
        if let Some(row) = self.0.lock().get_mut(index) {
            row.tally.labels = row.tally.labels.saturating_add(1);
        }
    }

    /// Notes that a resync of a replica begins, and whether somebody asked for it.
    pub fn resynced(&self, index: usize, asked: bool, now_unix_s: u64) {
        let mut rows = self.0.lock();
        let Some(tally) = rows.get_mut(index).map(|row| &mut row.tally) else { return };
        tally.resyncs = tally.resyncs.saturating_add(1);
        if !asked {
            let more = tally.unasked.len().saturating_sub(TIMES_MAX - 1);
            tally.unasked.drain(..more);
            tally.unasked.push(now_unix_s);
        }
    }
}

fn codes(tally: &Tally, now_unix_s: u64) -> BTreeSet<Code> {
    tally.concerns(now_unix_s).iter().map(|problem| problem.code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_blocks_that_were_not_what_was_written_are_too_many() {
        let tally = Tally { integrity: 60, ..Tally::default() };
        let and = |integrity| tally.and(ErrorCounts { integrity, ..ErrorCounts::default() });
        assert!(!and(3).is_untrue() && and(4).is_untrue() && and(u64::MAX).is_untrue());
        assert_eq!(and(u64::MAX).integrity, COUNT_MAX);
    }

    #[test]
    fn resyncs_that_nobody_asked_for_count_for_a_day() {
        let at = |times: &[u64]| Tally { unasked: times.to_vec(), ..Tally::default() };
        let day = RESYNCS_WITHIN_S;
        for (times, now, unsteady) in [
            (&[10, 20][..], 30, false),
            (&[10, 20, 30], 30, true),
            (&[10, 20, 30], day + 9, true),
            (&[10, 20, 30], day + 10, false),
            // The clock was set back by a little, and by years.
            (&[10_000, 20_000, 30_000], 5_000, true),
            (&[day * 900, day * 901, day * 902], day * 3, false),
        ] {
            assert_eq!(at(times).is_unsteady(now), unsteady, "{times:?} at {now}");
        }
    }

    #[test]
    fn a_check_sets_the_counts_of_whole_replicas_back() {
        let bad = Tally { integrity: 70, labels: 1, resyncs: 4, unasked: vec![5], ..Tally::since(1) };
        let good = Tally { unasked: vec![5], ..Tally::since(1) };
        let of = |replicas: [(u8, &Tally); 2]| Health {
            replicas: replicas.into_iter().map(|(id, tally)| (hex(&[id; 32]), tally.clone())).collect(),
        };
        let mut health = of([(1, &bad), (2, &good)]);
        assert_eq!(health.found_whole(&[[1; 32], [2; 32], [3; 32]], 9), [[1; 32]]);
        assert_eq!(health, of([(1, &Tally { since_unix_s: 9, ..good.clone() }), (2, &good)]));
    }
}
