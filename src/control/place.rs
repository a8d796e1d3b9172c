//! Where a file is, and under whose law: the value of the attribute `user.scelle.place` and what `scelle where --json`
//! prints. Keys are added to it, never changed; `man/scelle-where.8` says what each means.

use serde::{Deserialize, Serialize};

use super::status::{Officers, Site};
use crate::fs;
use crate::limits::XATTR_VALUE_MAX;

/// Where a file or a folder is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePlace {
    /// Its volume.
    pub volume: PlaceVolume,
    /// `file`, `folder` or `other`.
    pub kind: String,
    /// Size in bytes; of a folder, one block.
    pub size_bytes: u64,
    /// Room that the file takes on each replica, in bytes; none for anything but a file.
    pub stored_bytes: Option<u64>,
    /// Last change of its content or attributes by the host's clock (`st_ctime`), RFC 3339 in UTC, rounded up to a
    /// second.
    pub changed: Option<String>,
    /// Last durable commit of the volume.
    pub generation: u64,
    /// Whether what the answer speaks of is durable; false when the volume can commit no more.
    pub committed: bool,
    /// The registry in force.
    pub registry: PlaceRegistry,
    /// Every replica of the volume.
    pub replicas: Vec<PlaceReplica>,
    /// What the answer rests on, a sentence.
    pub basis: String,
}

/// The volume of a [`FilePlace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceVolume {
    /// Its UUID.
    pub uuid: String,
    /// Its label.
    pub label: String,
    /// Whether it is of the kind `sovereign`.
    pub sovereign: bool,
    /// Its kind: `sovereign`, `private` or `laboratory`.
    #[serde(default)]
    pub kind: String,
}

/// The registry of a [`FilePlace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceRegistry {
    /// Its version.
    pub version: u64,
    /// First day it is valid, `YYYY-MM-DD`.
    pub issued: String,
    /// Last day it is valid.
    pub valid_until: String,
    /// The officers whose signatures were verified.
    pub signatures: Vec<String>,
    /// The officers who may sign it.
    #[serde(flatten)]
    pub officers: Officers,
}

/// How much of the file a replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copy {
    /// All of it; for a folder, all that is below it, too.
    Complete,
    /// Not yet certainly all: it is being resynced.
    Resyncing,
    /// Not certainly all: it was left behind.
    LeftBehind,
}

/// One replica of a [`FilePlace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReplica {
    /// Identifier of the device in the registry.
    pub registry_id: String,
    /// Device node, or empty when the replica is missing.
    pub device: String,
    /// `in-sync`, `resyncing`, `stale`, `missing`, `faulty` or `refused`.
    pub state: String,
    /// Since when the replica has this state, at the earliest since the mount.
    pub state_since: Option<String>,
    /// How much of the file is there.
    pub copy: Copy,
    /// If the copy of a file is incomplete: how many of its `stored_bytes` are there at least.
    pub bytes_at_least: Option<u64>,
    /// If the copy of a file is complete: since when, at the latest.
    pub since: Option<String>,
    /// Last commit that the replica holds.
    pub generation: u64,
    /// Whether the policy approves the device now.
    pub approved: bool,
    /// Codes of the reasons why not.
    pub reasons: Vec<String>,
    /// Where it is, and who answers for it, by the entry that approves the device now; empty when none does.
    #[serde(flatten)]
    pub site: Site,
    /// When nothing approves the device now: where it was, or was to be, by the last entry that is known of it.
    #[serde(default)]
    pub last_known: Option<Site>,
    /// Whether the registry in force lists the device that the replica was enrolled with.
    #[serde(default = "super::status::yes")]
    pub listed: bool,
    /// Day of the site's last inspection.
    pub inspected: Option<String>,
    /// Last day on which that inspection counts.
    pub inspection_valid_until: Option<String>,
    /// Days since the inspection, today by the host's clock.
    pub inspection_age_days: Option<i64>,
}

impl FilePlace {
    /// The attribute's value.
    ///
    /// # Errors
    /// [`fs::Error::ValueTooLong`] when names and lists of the registry are so long that it does not fit an attribute.
    pub fn encode(&self) -> fs::Result<Vec<u8>> {
        let value = serde_json::to_vec(self).map_err(|_| fs::Error::Invalid)?;
        if value.len() > XATTR_VALUE_MAX { Err(fs::Error::ValueTooLong) } else { Ok(value) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> FilePlace {
        let replica = PlaceReplica {
            registry_id: "paris-nvme-01".into(),
            device: "/dev/nvme0n1".into(),
            state: "in-sync".into(),
            state_since: Some("2026-11-21T00:00:00Z".into()),
            copy: Copy::LeftBehind,
            bytes_at_least: Some(4096),
            since: None,
            generation: 12,
            approved: true,
            reasons: Vec::new(),
            site: Site {
                id: "tj-paris".into(),
                name: "Tribunal judiciaire de Paris".into(),
                country: "FR".into(),
                owner: "Ministère de la Justice".into(),
                administrator: "Ministère de la Justice".into(),
                jurisdictions: vec!["FR".into()],
            },
            last_known: None,
            listed: true,
            inspected: Some("2026-10-02".into()),
            inspection_valid_until: Some("2027-04-02".into()),
            inspection_age_days: Some(51),
        };
        FilePlace {
            volume: PlaceVolume { uuid: "u".into(), label: "greffe".into(), sovereign: true, kind: "sovereign".into() },
            kind: "file".into(),
            size_bytes: 5,
            stored_bytes: Some(4096),
            changed: Some("2026-11-21T00:00:00Z".into()),
            generation: 12,
            committed: true,
            registry: PlaceRegistry {
                version: 7,
                issued: "2026-11-21".into(),
                valid_until: "2027-05-31".into(),
                signatures: vec!["officer-a".into()],
                officers: Officers { anchors: "ab".repeat(32), threshold: 2, count: 3 },
            },
            replicas: vec![replica],
            basis: "What the officers signed.".into(),
        }
    }

    /// Every key at every depth, as `a.b`.
    fn keys(prefix: &str, value: &serde_json::Value, out: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| {
                out.push(format!("{prefix}{key}"));
                keys(&format!("{prefix}{key}."), value, out);
            }),
            serde_json::Value::Array(items) => items.iter().for_each(|item| keys(prefix, item, out)),
            _ => {}
        }
    }

    #[test]
    fn the_answer_keeps_its_keys_and_the_manual_has_them() {
        let value: serde_json::Value = serde_json::from_slice(&sample().encode().unwrap()).unwrap();
        let mut found = Vec::new();
        keys("", &value, &mut found);
        found.sort();
        found.dedup();
        let wanted = "basis changed committed generation kind registry registry.anchors registry.issued registry.officers registry.signatures registry.threshold \
            registry.valid_until registry.version replicas replicas.administrator replicas.approved \
            replicas.bytes_at_least replicas.copy replicas.country replicas.device replicas.generation \
            replicas.inspected replicas.inspection_age_days replicas.inspection_valid_until replicas.jurisdictions \
            replicas.last_known replicas.listed replicas.owner replicas.reasons replicas.registry_id replicas.since replicas.site replicas.site_name \
            replicas.state replicas.state_since size_bytes stored_bytes volume volume.kind volume.label volume.sovereign volume.uuid";
        assert_eq!(found, wanted.split_whitespace().collect::<Vec<_>>());
        let manual = include_str!("../../man/scelle-where.8");
        for key in &found {
            assert!(manual.contains(&format!("\n.B {key}\n")), "{key} is not in the manual");
        }
        let back: FilePlace = serde_json::from_value(value).unwrap();
        assert_eq!(back, sample());
    }

    #[test]
    fn an_answer_that_does_not_fit_an_attribute_is_refused_whole() {
        let mut long = sample();
        long.replicas[0].site.jurisdictions = vec!["x".repeat(256); 64];
        assert!(long.encode().is_ok());
        long.replicas = vec![long.replicas[0].clone(); 4];
        assert_eq!(long.encode().unwrap_err().errno(), libc::E2BIG);
    }
}
