//! The status of a volume as plain data: the stable JSON of `scelle status --json`. Keys are added, never changed.

use serde::{Deserialize, Serialize};

use super::scrub::Scrub;
use crate::problem::Problem;

/// The document that `scelle status --json` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Every mounted volume, or the one that was asked for.
    pub volumes: Vec<VolumeStatus>,
    /// Mounts whose daemon has died.
    #[serde(default)]
    pub dead: Vec<DeadMount>,
}

/// A mount whose daemon has died: its volume is in the folder's place, and cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadMount {
    /// What was mounted, as the mount table names it.
    pub source: String,
    /// Where.
    pub mountpoint: String,
}

/// The state of a volume as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Every replica is in sync.
    Healthy,
    /// The volume goes on with fewer replicas than it has.
    Degraded,
    /// Changes are refused.
    ReadOnly,
}

/// One mounted volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The volume's UUID.
    pub uuid: String,
    /// Its label.
    pub label: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The volume's state as a whole.
    pub state: VolumeState,
    /// Whether the volume is of the kind `sovereign`.
    pub sovereign: bool,
    /// The kind of the volume: `sovereign`, `private` or `laboratory`.
    #[serde(default)]
    pub kind: String,
    /// What a sovereign volume has and this one lacks, a sentence each.
    #[serde(default)]
    pub not_sovereign: Vec<String>,
    /// Whether the host knew at the mount which commit was the last, or had nothing to know yet. If not, a state to which all
    /// devices were set back would not have shown.
    #[serde(default = "yes")]
    pub remembered: bool,
    /// Last durable commit.
    pub generation: u64,
    /// Room on each replica for file data and metadata, in bytes.
    pub capacity: Capacity,
    /// The registry in force.
    pub registry: RegistryStatus,
    /// Every replica of the volume.
    pub replicas: Vec<Replica>,
    /// The scrub that is under way or waits, else the last one.
    pub scrub: Scrub,
    /// Process number of the daemon.
    #[serde(default)]
    pub pid: u32,
    /// What is wrong and what to do, in sentences; empty when healthy.
    #[serde(default)]
    pub advice: Vec<Problem>,
    /// What makes the daemon check registry and devices again.
    #[serde(default)]
    pub watch: WatchStatus,
    /// Where the audit trail ends.
    #[serde(default)]
    pub audit: AuditStatus,
    /// The system's log, as the daemon can write to it.
    #[serde(default)]
    pub log: LogStatus,
    /// What was done since the mount, and how long it took.
    #[serde(default)]
    pub performance: Performance,
    /// Long work: under way, and ended lately.
    #[serde(default)]
    pub tasks: Vec<TaskReport>,
}

/// The system's log, as a daemon can write to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Messages that wait to be written.
    pub waiting: u64,
    /// Messages that were lost since the mount.
    pub lost: u64,
    /// Why the log cannot be written; none while it can, or when the daemon has none.
    pub error: Option<String>,
}

/// Long work on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Its number, unique while the volume is mounted.
    pub id: u64,
    /// What it does: `resync` or `scrub`.
    pub kind: String,
    /// What the task is about: of a resync, the replica's identifier in the registry; of a scrub, a path, or in words.
    pub subject: String,
    /// The task's state.
    pub state: TaskState,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// When it began, RFC 3339 in UTC.
    pub began: Option<String>,
    /// When it ended.
    pub ended: Option<String>,
    /// Why it failed.
    pub problem: Option<Problem>,
}

/// The state of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Under way.
    Running,
    /// All of it is done.
    Done,
    /// Somebody had it stop.
    Cancelled,
    /// It could not go on.
    Failed,
}

impl TaskState {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// What was done since the mount, and how long it took. Only successful calls count, and the durations include waiting
/// for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Performance {
    /// Milliseconds since the mount.
    pub since_ms: u64,
    /// Reads of files: what the kernel's cache did not have.
    pub read: Transfers,
    /// Writes to files, as the kernel hands them over.
    pub write: Transfers,
    /// Looks at the metadata: names, attributes, listings, extents.
    pub lookup: Latency,
    /// Changes of the metadata.
    pub change: Latency,
    /// What applications waited for an `fsync`.
    pub fsync: Latency,
    /// Commits.
    pub commit: Latency,
    /// Short reads of blocks, from memory or a device.
    pub cache: CacheStatus,
}

/// How many of something there were, and how long they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Half of the durations did not exceed this many nanoseconds; exact to about a tenth.
    pub median_ns: u64,
    /// All but one in a hundred of the durations did not exceed this many nanoseconds; exact to about a tenth.
    pub p99_ns: u64,
    /// The longest, in nanoseconds.
    pub longest_ns: u64,
}

/// As [`Latency`], with the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfers {
    /// Bytes of all together.
    pub bytes: u64,
    /// Number and durations.
    #[serde(flatten)]
    pub latency: Latency,
}

/// How much reading the cache of sealed blocks saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Short reads that needed no device.
    pub hits: u64,
    /// Short reads that did.
    pub misses: u64,
}

/// How long a device takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIo {
    /// Reads.
    pub read: Transfers,
    /// Writes.
    pub write: Transfers,
    /// Flushes.
    pub flush: Latency,
}

/// The end of the audit trail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// How many records there are.
    pub records: u64,
    /// SHA-384 of the last one, in hexadecimal digits.
    pub head: String,
    /// The public key that verifies exports, as minisign writes it.
    pub key: String,
}

/// What makes the daemon check registry and devices again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// The kernel's messages about devices.
    pub devices: bool,
    /// The kernel's messages about the registry's folder.
    pub files: bool,
    /// The clock: the longest time between two checks, in seconds.
    pub interval_s: u64,
}

/// Room on each replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What is in use, in bytes.
    pub used_bytes: u64,
}

/// The registry in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryStatus {
    /// Its version.
    pub version: u64,
    /// Last day it is valid, `YYYY-MM-DD`.
    pub valid_until: String,
    /// The officers whose signatures were verified.
    pub signatures: Vec<String>,
    /// The officers who may sign it.
    #[serde(flatten)]
    pub officers: Officers,
}

/// The officers whose signatures a registry needs. A daemon of an earlier version does not name them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Officers {
    /// Digest of the trust anchors, in hexadecimal digits.
    pub anchors: String,
    /// How many officers must sign.
    pub threshold: usize,
    /// How many officers there are.
    #[serde(rename = "officers")]
    pub count: usize,
}

/// Where a device is, and who answers for it, as the registry says; empty where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Identifier of the site.
    #[serde(rename = "site")]
    pub id: String,
    /// Name of the site.
    #[serde(rename = "site_name")]
    pub name: String,
    /// Country of the site, ISO 3166-1 alpha-2.
    pub country: String,
    /// Who owns the device.
    pub owner: String,
    /// Who administers it.
    pub administrator: String,
    /// Whose law can compel owner or administrator.
    pub jurisdictions: Vec<String>,
}

/// One replica: the device, the people who answer for it, and its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Device node, or empty when the replica is missing.
    pub device: String,
    /// Identifier of the device in the registry.
    pub registry_id: String,
    /// Where it is, and who answers for it, by the entry that approves the device now; empty when none does.
    #[serde(flatten)]
    pub site: Site,
    /// When nothing approves the device now: where it was, or was to be, by the last entry that is known of it.
    #[serde(default)]
    pub last_known: Option<Site>,
    /// Whether the registry in force lists the device that the replica was enrolled with.
    #[serde(default = "yes")]
    pub listed: bool,
    /// `in-sync`, `resyncing`, `stale`, `missing`, `faulty` or `refused`.
    pub state: String,
    /// Last commit the replica holds.
    pub generation: u64,
    /// The policy's verdict on the device.
    pub verdict: Verdict,
    /// What went wrong since the volume was mounted.
    pub errors: Errors,
    /// What went wrong with the replica over all mounts on this host.
    #[serde(default)]
    pub total: ErrorTotal,
    /// The replica in whose place this one comes once it has everything.
    #[serde(default)]
    pub replaces: Option<String>,
    /// Progress of a resync, when one is under way.
    pub resync: Option<Resync>,
    /// How long the device takes, since it came into use; null without a device.
    #[serde(default)]
    pub io: Option<DeviceIo>,
}

pub(super) fn yes() -> bool {
    true
}

/// The policy's verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the device may be written to.
    pub approved: bool,
    /// Why the device may not be written to.
    pub reasons: Vec<Problem>,
}

/// Counts of errors since the volume was mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// Reads the device failed.
    pub read: u64,
    /// Writes and flushes the device failed.
    pub write: u64,
    /// Blocks that did not authenticate.
    pub integrity: u64,
    /// Blocks that were rewritten from another replica.
    pub repaired: u64,
}

/// Counts of errors over all mounts on this host. They begin with the first of them, and anew when `scelle check` has
/// found the replica whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorTotal {
    /// Since when it is counted, RFC 3339 in UTC.
    pub since: Option<String>,
    /// Errors of the device and in what it gave.
    #[serde(flatten)]
    pub errors: Errors,
    /// How often the label was found written over while the replica was in use.
    pub labels: u64,
    /// How often the replica was resynced.
    pub resyncs: u64,
    /// When the last resync began that nobody had asked for, RFC 3339 in UTC.
    pub last_unasked: Option<String>,
}

/// Progress of a resync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// Bytes copied so far.
    pub done_bytes: u64,
    /// Bytes to copy in all.
    pub total_bytes: u64,
}

#[cfg(test)]
pub(super) fn sample() -> VolumeStatus {
    VolumeStatus {
        uuid: "a5a5a5a5-a5a5-45a5-a5a5-a5a5a5a5a5a5".into(),
        label: "greffe".into(),
        mountpoint: "/srv/greffe".into(),
        state: VolumeState::ReadOnly,
        sovereign: true,
        kind: "sovereign".into(),
        not_sovereign: Vec::new(),
        remembered: true,
        generation: 12,
        capacity: Capacity { total_bytes: 1 << 30, used_bytes: 4096 },
        registry: RegistryStatus {
            version: 7,
            valid_until: "2027-05-31".into(),
            signatures: vec!["officer-1".into()],
            officers: Officers { anchors: "ab".repeat(32), threshold: 2, count: 3 },
        },
        replicas: vec![Replica {
            device: "/dev/nvme0n1".into(),
            state: "in-sync".into(),
            listed: true,
            ..Replica::default()
        }],
        scrub: Scrub::default(),
        pid: 1,
        advice: Vec::new(),
        audit: AuditStatus { records: 3, head: "ab".into(), key: "RWQ".into() },
        watch: WatchStatus { devices: true, files: true, interval_s: 30 },
        log: LogStatus { waiting: 1, lost: 2, error: Some("/dev/log: connection refused".into()) },
        performance: Performance {
            since_ms: 1000,
            write: Transfers { bytes: 4096, latency: Latency { count: 1, median_ns: 7, p99_ns: 7, longest_ns: 7 } },
            ..Performance::default()
        },
        tasks: vec![TaskReport {
            id: 1,
            kind: "resync".into(),
            subject: "paris-nvme-01".into(),
            state: TaskState::Running,
            done_bytes: 1,
            total_bytes: 4,
            began: Some("2026-11-21T00:00:00Z".into()),
            ended: None,
            problem: None,
        }],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn status_keeps_its_keys() {
        let json = serde_json::to_value(StatusReport { volumes: vec![sample()], dead: Vec::new() }).unwrap();
        let volume = &json["volumes"][0];
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        for key in [
            "uuid",
            "label",
            "mountpoint",
            "state",
            "sovereign",
            "kind",
            "not_sovereign",
            "generation",
            "capacity",
            "registry",
        ] {
            assert!(keys(volume).iter().any(|k| k == key), "{key}");
        }
        assert_eq!(volume["state"], "read-only");
        assert_eq!(keys(&volume["capacity"]), ["total_bytes", "used_bytes"]);
        assert_eq!(
            keys(&volume["registry"]),
            ["anchors", "officers", "signatures", "threshold", "valid_until", "version"]
        );
        assert_eq!(keys(&volume["audit"]), ["head", "key", "records"]);
        let expected = "began bytes done_bytes ended errors findings interruptions last_finished not_looked_at repaired \
                        state subject total_bytes unrepaired why";
        assert_eq!(keys(&volume["scrub"]).join(" "), expected);
        let task = &volume["tasks"][0];
        let expected = "began done_bytes ended id kind problem state subject total_bytes";
        assert_eq!(keys(task).join(" "), expected);
        assert_eq!(task["state"], TaskState::Running.as_str());
        let performance = &volume["performance"];
        let expected = ["cache", "change", "commit", "fsync", "lookup", "read", "since_ms", "write"];
        assert_eq!(keys(performance), expected);
        assert_eq!(keys(&performance["commit"]), ["count", "longest_ns", "median_ns", "p99_ns"]);
        assert_eq!(keys(&performance["write"]), ["bytes", "count", "longest_ns", "median_ns", "p99_ns"]);
        assert_eq!(keys(&performance["cache"]), ["hits", "misses"]);
        let replica = &volume["replicas"][0];
        assert_eq!(
            keys(replica),
            [
                "administrator",
                "country",
                "device",
                "errors",
                "generation",
                "io",
                "jurisdictions",
                "last_known",
                "listed",
                "owner",
                "registry_id",
                "replaces",
                "resync",
                "site",
                "site_name",
                "state",
                "total",
                "verdict"
            ]
        );
        assert_eq!(keys(&replica["errors"]), ["integrity", "read", "repaired", "write"]);
        let expected = ["integrity", "labels", "last_unasked", "read", "repaired", "resyncs", "since", "write"];
        assert_eq!(keys(&replica["total"]), expected);
        assert!(replica["resync"].is_null());
    }

    /// The status of a daemon that was started before its program was updated.
    #[test]
    fn the_status_of_an_older_daemon_is_understood() {
        let mut json = serde_json::to_value(sample()).unwrap();
        let volume = json.as_object_mut().unwrap();
        for added in ["pid", "advice", "watch", "audit", "performance", "tasks", "kind", "not_sovereign", "remembered"]
        {
            assert!(volume.remove(added).is_some(), "{added}");
        }
        for added in ["io", "last_known", "listed", "total"] {
            assert!(volume["replicas"][0].as_object_mut().unwrap().remove(added).is_some(), "{added}");
        }
        let understood: VolumeStatus = serde_json::from_value(json).unwrap();
        assert_eq!(understood.performance, Performance::default());
        assert_eq!(understood.replicas, sample().replicas);
    }
}
