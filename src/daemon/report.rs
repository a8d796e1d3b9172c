//! The status of an open volume as the control socket and `scelle status --json` show it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::scrub;
use crate::control::{
    AuditStatus, CacheStatus, Capacity, DeviceIo, ErrorTotal, Errors, Latency, LogStatus, Officers, Performance,
    RegistryStatus, Replica, Resync, Site, TaskReport, TaskState, Transfers, Verdict, VolumeState, VolumeStatus,
    WatchStatus,
};
use crate::mirror;
use crate::os::syslog::{Standing, Syslog};
use crate::pages::Usage;
use crate::policy::{ApprovedDevice, ApprovedEntry, Classified};
use crate::problem::{Code, Problem};
use crate::registry::{self, DeviceEntry, VerifiedRegistry, utc_second};
use crate::units::BLOCK_SIZE;
use crate::units::meter::{Meter, Reading};
use crate::volume::health::Tally;
use crate::volume::{Open, Outcome, ReplicaStatus, TaskKind, TaskStatus, Tasks};

/// The status of `open` now, under `registry`, which is of the kind `found`, mounted at `mountpoint`. `concerns` are what the caller knows beyond the
/// volume; for instance, that the registry file no longer verifies.
pub fn report(
    open: &Open,
    registry: &VerifiedRegistry,
    found: &Classified,
    mountpoint: &str,
    concerns: &[Problem],
) -> VolumeStatus {
    let status = open.status();
    let state = match &status.read_only {
        Some(_) => VolumeState::ReadOnly,
        None if status.is_healthy() => VolumeState::Healthy,
        None => VolumeState::Degraded,
    };
    let mut advice = concerns.to_vec();
    advice.extend(status.read_only.iter().map(|why| {
        let until =
            if status.needs_remount { "" } else { ". Changes are accepted again once enough replicas are in sync" };
        Problem::new(open.store().read_only_code(), format!("no change is accepted: {why}{until}"))
    }));
    advice.extend(status.replicas.iter().filter_map(advise));
    advice.extend(status.replicas.iter().flat_map(unreliable));
    advice.extend(lost(&status.lost));
    let scrub = scrub::shown(open.scrubs());
    advice.extend(scrub::concern(&scrub));
    let log = Syslog::in_use().map(Syslog::standing).unwrap_or_default();
    advice.extend(log_problem(&log));
    advice.extend(room_short(status.usage));
    let mirror = open.store().mirror();
    let replicas = status.replicas.iter().map(|status| {
        let device = mirror.device(status.index);
        Replica { io: device.as_deref().map(device_io), ..replica(status, registry, device.as_deref()) }
    });
    let audit = open.audit().head();
    VolumeStatus {
        uuid: status.uuid.to_string(),
        label: status.label,
        mountpoint: mountpoint.to_owned(),
        state,
        sovereign: found.is_sovereign(),
        kind: found.kind.to_string(),
        not_sovereign: found.lacking.clone(),
        remembered: !status.unremembered,
        generation: status.generation.0,
        capacity: Capacity {
            total_bytes: status.usage.total_blocks * BLOCK_SIZE as u64,
            used_bytes: status.usage.total_blocks.saturating_sub(status.usage.free_blocks) * BLOCK_SIZE as u64,
        },
        registry: RegistryStatus {
            version: registry.version(),
            valid_until: registry.valid_until().to_string(),
            signatures: registry.signers().to_vec(),
            officers: officers(found),
        },
        replicas: replicas.collect(),
        scrub,
        pid: std::process::id(),
        advice,
        audit: AuditStatus { records: audit.records, head: audit.digest.to_string(), key: audit.public_key },
        watch: WatchStatus::default(),
        log: LogStatus { waiting: log.waiting, lost: log.lost, error: log.error },
        performance: performance(open),
        tasks: tasks(open.members().tasks()),
    }
}

/// Whose signatures the registry needs.
pub(super) fn officers(found: &Classified) -> Officers {
    Officers { anchors: found.anchors.clone(), threshold: found.threshold, count: found.officers }
}

/// Most files that are named one by one.
const LOST_NAMED_MAX: usize = 20;

fn lost(lost: &BTreeMap<String, u64>) -> Vec<Problem> {
    let mut problems: Vec<Problem> = lost
        .iter()
        .take(LOST_NAMED_MAX)
        .map(|(what, blocks)| Problem::new(Code::BlocksLost, format!("{blocks} blocks of {what} are on no replica")))
        .collect();
    let more = lost.len().saturating_sub(LOST_NAMED_MAX);
    problems.extend((more > 0).then(|| Problem::new(Code::BlocksLost, format!("and so it is with {more} more files"))));
    problems
}

/// What is wrong with the system's log, when something is. The volume is none the worse for it.
pub(super) fn log_problem(log: &Standing) -> Option<Problem> {
    let error = log.error.as_ref().filter(|_| log.is_failing())?;
    let text =
        format!("the system's log cannot be written ({error}): {} messages wait, {} are lost", log.waiting, log.lost);
    Some(Problem::new(Code::LogUnavailable, text))
}

/// Percent of the room for users' data from which on the status warns.
const FULL: [u64; 3] = [95, 90, 80];

/// What is to be said of the room that is left, if anything: as `df` reckons it.
fn room_short(usage: Usage) -> Option<Problem> {
    let used = usage.total_blocks.saturating_sub(usage.free_blocks);
    let left = usage.free_blocks.saturating_sub(usage.reserved_blocks);
    let passed = FULL.into_iter().find(|percent| used * 100 > percent * (used + left))?;
    let mib = (left * BLOCK_SIZE as u64) >> 20;
    let text = format!("more than {passed} % of the room is used, {mib} MiB are left");
    Some(Problem::new(Code::RoomShort, text))
}

/// The tasks, as the status shows them.
pub fn tasks(tasks: &Tasks) -> Vec<TaskReport> {
    tasks.list().into_iter().map(task).collect()
}

fn task(status: TaskStatus) -> TaskReport {
    let TaskStatus { id, kind, progress, began, ended } = status;
    let (kind, subject) = match kind {
        TaskKind::Resync { replica } => ("resync", replica),
        TaskKind::Add { replica } => ("add", replica),
        TaskKind::Replace { replica, old } => ("replace", format!("{old} by {replica}")),
        TaskKind::Scrub { subject } => ("scrub", subject),
    };
    let (ended, outcome) = ended.unzip();
    let (state, problem) = match outcome {
        None => (TaskState::Running, None),
        Some(Outcome::Done) => (TaskState::Done, None),
        Some(Outcome::Cancelled) => (TaskState::Cancelled, None),
        Some(Outcome::Failed(problem)) => (TaskState::Failed, Some(problem)),
    };
    let (done_bytes, total_bytes) = progress;
    let (began, ended) = (utc(began), ended.and_then(utc));
    TaskReport { id, kind: kind.into(), subject, state, done_bytes, total_bytes, began, ended, problem }
}

/// A time as RFC 3339 has it, in UTC; `None` before 1970 and after 9999.
fn utc(time: SystemTime) -> Option<String> {
    Some(utc_second(time.duration_since(UNIX_EPOCH).ok()?.as_secs())? + "Z")
}

fn performance(open: &Open) -> Performance {
    let meters = open.fs().meters();
    let (hits, misses) = open.store().mirror().cache_counts();
    Performance {
        since_ms: u64::try_from(meters.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        read: transfers(&meters.read),
        write: transfers(&meters.write),
        lookup: latency(&meters.lookup),
        change: latency(&meters.change),
        fsync: latency(&meters.fsync),
        commit: latency(&meters.commit),
        cache: CacheStatus { hits, misses },
    }
}

fn device_io(device: &ApprovedDevice) -> DeviceIo {
    let meters = device.meters();
    DeviceIo { read: transfers(&meters.read), write: transfers(&meters.write), flush: latency(&meters.flush) }
}

fn latency(meter: &Meter) -> Latency {
    transfers(meter).latency
}

fn transfers(meter: &Meter) -> Transfers {
    let Reading { count, bytes, median_ns, p99_ns, longest_ns } = meter.reading();
    Transfers { bytes, latency: Latency { count, median_ns, p99_ns, longest_ns } }
}

/// Why a replica is not reliable, though it may be in sync.
fn unreliable(replica: &ReplicaStatus) -> impl Iterator<Item = Problem> {
    let id = &replica.registry_id;
    let label = replica.label.as_ref().map(|how| Problem::new(Code::LabelOverwritten, format!("{id}: {how}")));
    let told = replica.concerns.iter().map(move |why| Problem::new(why.code, format!("{id}: {}", why.text)));
    label.into_iter().chain(told)
}

fn advise(replica: &ReplicaStatus) -> Option<Problem> {
    let why = replica.reason.as_deref().unwrap_or("no further reason is known");
    let id = &replica.registry_id;
    let (code, what) = match replica.state {
        mirror::State::InSync | mirror::State::Resyncing => return None,
        mirror::State::Stale => (
            Code::ReplicaStale,
            format!("{id} was left behind by earlier commits: {why}. It is not written to until scelle replica resync"),
        ),
        mirror::State::Missing => match &replica.reason {
            Some(why) => (Code::ReplicaMissing, format!("{id} is not in use: {why}")),
            None => (
                Code::ReplicaMissing,
                format!(
                    "{id} is not there. Attach it, then scelle replica resync; or exchange it: scelle replica replace"
                ),
            ),
        },
        mirror::State::Faulty => (
            Code::ReplicaFaulty,
            format!(
                "{id} failed: {why}. Have the device looked at, then scelle replica resync; or exchange it: scelle replica replace"
            ),
        ),
        mirror::State::Refused => (
            Code::ReplicaRefused,
            format!(
                "{id} is refused by the policy: {why}. See scelle device inspect; once approved it comes back by itself"
            ),
        ),
    };
    Some(Problem::new(code, what))
}

/// A replica's device, and what the registry says of its place. That is told as of now only when a verdict approves the
/// device; the volume's label is not asked.
pub(super) fn replica(status: &ReplicaStatus, registry: &VerifiedRegistry, device: Option<&ApprovedDevice>) -> Replica {
    let verdict = device.map(ApprovedDevice::verdict).map_or_else(Verdict::default, |verdict| Verdict {
        approved: verdict.approved,
        reasons: verdict.reasons.clone(),
    });
    let is_enrolled =
        |entry: &&DeviceEntry| entry.id == status.registry_id && entry.identity.digest() == status.identity;
    let listed = registry.devices().iter().find(is_enrolled);
    // The entry that approved the device last; of a device that was not here, the entry that would approve it.
    let known = match device {
        Some(device) => Some(entry_site(&device.registry_entry())),
        None => listed.and_then(|entry| registry.site(&entry.site)).map(registry_site),
    };
    let (site, last_known) =
        if verdict.approved { (known.unwrap_or_default(), None) } else { (Site::default(), known) };
    Replica {
        device: status.device.clone(),
        registry_id: status.registry_id.clone(),
        site,
        last_known,
        listed: listed.is_some(),
        state: status.state.as_str().into(),
        generation: status.generation.0,
        verdict,
        errors: Errors {
            read: status.errors.read,
            write: status.errors.write,
            integrity: status.errors.integrity,
            repaired: status.errors.repaired,
        },
        total: total(&status.total),
        replaces: status.replaces.clone(),
        resync: status.resync.map(|(done_bytes, total_bytes)| Resync { done_bytes, total_bytes }),
        io: None,
    }
}

fn total(tally: &Tally) -> ErrorTotal {
    let &Tally { since_unix_s, read, write, integrity, repaired, labels, resyncs, .. } = tally;
    let time = |second: u64| utc_second(second).map(|time| time + "Z");
    let last_unasked = tally.unasked.last().copied().and_then(time);
    let errors = Errors { read, write, integrity, repaired };
    ErrorTotal { since: time(since_unix_s), errors, labels, resyncs, last_unasked }
}

fn entry_site(entry: &ApprovedEntry) -> Site {
    Site {
        id: entry.site.clone(),
        name: entry.site_name.clone(),
        country: entry.country.clone(),
        owner: entry.owner.clone(),
        administrator: entry.administrator.clone(),
        jurisdictions: entry.jurisdictions.clone(),
    }
}

fn registry_site(site: &registry::Site) -> Site {
    Site {
        id: site.id.clone(),
        name: site.name.clone(),
        country: site.country.clone(),
        owner: site.owner.clone(),
        administrator: site.administrator.clone(),
        jurisdictions: site.jurisdictions.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_warns_before_the_room_is_used_up() {
        let cases = [(1010, None), (210, None), (209, Some(80)), (110, Some(80)), (109, Some(90)), (60, Some(90))];
        for (free, said) in cases.into_iter().chain([(59, Some(95)), (10, Some(95)), (0, Some(95))]) {
            let usage = Usage { total_blocks: 1010, free_blocks: free, reserved_blocks: 10 };
            let found = room_short(usage).map(|problem| problem.text);
            let expected = said.map(|percent| format!("more than {percent} % of the room is used, 0 MiB are left"));
            assert_eq!(found, expected, "{free}");
        }
    }
}
