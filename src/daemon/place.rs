//! Where an inode of the open volume is: the answer to `scelle where`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::report;
use crate::control::{Copy, FilePlace, PlaceRegistry, PlaceReplica, PlaceVolume, Replica};
use crate::fs::{self, Kind};
use crate::policy::{ApprovedEntry, Classified};
use crate::registry::{Date, VerifiedRegistry, utc_second};
use crate::units::Ino;
use crate::volume::{self, Holding, Open, Portion};

/// The basis of every answer, said in every answer.
const BASIS: &str = "The officers named here signed that these devices may hold this volume. Each device that is \
    approved showed, when it was last looked at, the identity of the entry whose site is named here, and the replica on it \
    was enrolled with that entry. Of other devices only what was known last is said. Where a device stands, who owns and administers it and whose law can compel \
    its operator is what the registry states; the inspection of its site vouches for that on its day. Nothing here \
    measures a position.";

/// The place of an inode of `open` now, under `registry`, which is of the kind `found`.
///
/// # Errors
/// Of the filesystem.
pub fn place(open: &Open, registry: &VerifiedRegistry, found: &Classified, ino: Ino) -> fs::Result<FilePlace> {
    let place = open.place(ino)?;
    let status = open.status();
    let mirror = open.store().mirror();
    let (is_file, changed) = (place.attr.kind == Kind::File, (place.attr.ctime.s, place.attr.ctime.ns));
    // A replica that came or went in between is in one of them only.
    let status_of = |holding: &Holding| status.replicas.iter().find(|replica| replica.index == holding.index);
    let with_holding = place.replicas.iter().filter_map(|holding| Some((status_of(holding)?, holding)));
    let replicas = with_holding.map(|(status, holding)| {
        let device = mirror.device(status.index);
        let entry = device.as_ref().map(|device| device.registry_entry());
        let shown = report::replica(status, registry, device.as_deref());
        replica(shown, entry.as_deref(), holding, is_file && place.committed, changed)
    });
    Ok(FilePlace {
        volume: PlaceVolume {
            uuid: status.uuid.to_string(),
            label: status.label,
            sovereign: found.is_sovereign(),
            kind: found.kind.to_string(),
        },
        kind: match place.attr.kind {
            Kind::File => "file".into(),
            Kind::Directory => "folder".into(),
            _ => "other".into(),
        },
        size_bytes: place.attr.size,
        stored_bytes: place.stored_bytes(),
        changed: utc(changed),
        generation: status.generation.0,
        committed: place.committed,
        registry: PlaceRegistry {
            version: registry.version(),
            issued: registry.issued().to_string(),
            valid_until: registry.valid_until().to_string(),
            signatures: registry.signers().to_vec(),
            officers: report::officers(found),
        },
        replicas: replicas.collect(),
        basis: BASIS.into(),
    })
}

fn replica(
    shown: Replica,
    entry: Option<&ApprovedEntry>,
    holding: &volume::Holding,
    is_file_committed: bool,
    changed: (i64, u32),
) -> PlaceReplica {
    let (copy, bytes_at_least) = match holding.portion {
        Portion::Complete => (Copy::Complete, None),
        Portion::Resyncing { bytes } => (Copy::Resyncing, bytes),
        Portion::LeftBehind { bytes } => (Copy::LeftBehind, bytes),
    };
    let state_since = since_epoch(holding.since);
    // A folder's own change says nothing of what is below the folder. A copy on a device that left the set is complete
    // because nothing changed since.
    let is_known = is_file_committed && copy == Copy::Complete && shown.state == "in-sync";
    // The inspection of the entry that the place is told from.
    let entry = entry.filter(|_| shown.verdict.approved);
    let age = |inspected: Date| Some(Date::today()?.unix_day() - inspected.unix_day());
    PlaceReplica {
        registry_id: shown.registry_id,
        device: shown.device,
        state: shown.state,
        state_since: utc(state_since),
        copy,
        bytes_at_least,
        since: if is_known { utc(changed.max(state_since)) } else { None },
        generation: shown.generation,
        approved: shown.verdict.approved,
        reasons: shown.verdict.reasons.into_iter().map(|reason| reason.code.to_string()).collect(),
        site: shown.site,
        last_known: shown.last_known,
        listed: shown.listed,
        inspected: entry.map(|entry| entry.inspected.to_string()),
        inspection_valid_until: entry.map(|entry| entry.inspection_valid_until.to_string()),
        inspection_age_days: entry.and_then(|entry| age(entry.inspected)),
    }
}

/// Seconds and nanoseconds since 1970.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

/// A time as RFC 3339 has it, in UTC, rounded up to a second, because it is the latest at which something began. `None`
/// before 1970 and after 9999.
fn utc((seconds, nanoseconds): (i64, u32)) -> Option<String> {
    let seconds = u64::try_from(seconds).ok()?.checked_add(u64::from(nanoseconds > 0))?;
    Some(utc_second(seconds)? + "Z")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_rounded_up() {
        assert_eq!(utc((0, 0)).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(utc((1_795_219_199, 1)).unwrap(), "2026-11-21T00:00:00Z");
        assert_eq!(utc((1_795_219_199, 0)).unwrap(), "2026-11-20T23:59:59Z");
        assert_eq!(utc((-1, 999_999_999)), None);
        assert_eq!(utc((i64::MAX, 1)), None);
    }
}
