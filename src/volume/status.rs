//! What is true of a volume in use, as `scelle status` shows it.

use std::collections::BTreeMap;

use super::health::Tally;
use super::open::Open;
use crate::mirror::{ErrorCounts, State};
use crate::pages::Usage;
use crate::policy::clock;
use crate::problem::Problem;
use crate::units::{Generation, Uuid};

/// One replica, as the status shows it.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// Its row of the replica table.
    pub index: usize,
    /// Device node; empty when the replica is missing.
    pub device: String,
    /// Its entry in the registry.
    pub registry_id: String,
    /// Digest of the identity that it was enrolled with.
    pub identity: [u8; 32],
    /// The identifier of the replica in whose place it comes once it has everything.
    pub replaces: Option<String>,
    /// Its state.
    pub state: State,
    /// Why it is in this state, when it is not in sync.
    pub reason: Option<String>,
    /// The last generation it holds.
    pub generation: Generation,
    /// Errors since the mount.
    pub errors: ErrorCounts,
    /// Bytes done and bytes in all of a resync that is under way.
    pub resync: Option<(u64, u64)>,
    /// How its label was found damaged during this mount, if it was.
    pub label: Option<String>,
    /// What went wrong over all mounts on this host.
    pub total: Tally,
    /// Why it is not reliable, though it may be in sync, and what to do.
    pub concerns: Vec<Problem>,
}

/// What `scelle status` shows of an open volume.
#[derive(Clone, Debug)]
pub struct Status {
    /// The volume.
    pub uuid: Uuid,
    /// Its label.
    pub label: String,
    /// Why no change is accepted, when none is.
    pub read_only: Option<String>,
    /// Whether changes stay refused until the volume is mounted again, whatever becomes of the replicas.
    pub needs_remount: bool,
    /// The last durable generation.
    pub generation: Generation,
    /// Space.
    pub usage: Usage,
    /// Whether the host had no witness of the volume, though it was mounted before: a rollback would not have shown.
    pub unremembered: bool,
    /// The replicas, in the order of the replica table.
    pub replicas: Vec<ReplicaStatus>,
    /// What has blocks that no replica can give, and how many: paths of files, as far as they are known.
    pub lost: BTreeMap<String, u64>,
}

impl Open {
    /// What is true at this moment.
    pub fn status(&self) -> Status {
        let mirror = self.store().mirror();
        let generation = self.store().generation();
        let replica = |index: usize| {
            let (state, reason) = mirror.state(index);
            let total = self.members().total(index);
            ReplicaStatus {
                device: mirror.device_name(index),
                index,
                registry_id: self.members().registry_id(index),
                replaces: self.members().replaces(index).map(|old| self.members().registry_id(old)),
                identity: self.members().identity(index),
                state,
                reason,
                generation: self.members().generation(index),
                errors: mirror.errors(index),
                resync: self.members().progress(index),
                label: self.members().label_damage(index),
                concerns: total.concerns(clock::now_unix_s()),
                total,
            }
        };
        Status {
            uuid: self.members().volume(),
            label: self.members().volume_label().to_owned(),
            read_only: self.store().writable().err().map(|error| error.to_string()),
            needs_remount: self.store().poisoned().is_some(),
            generation,
            usage: self.store().usage(),
            unremembered: self.unremembered,
            replicas: self.members().rows().into_iter().map(replica).collect(),
            lost: self.store().lost(),
        }
    }
}

impl Status {
    /// Whether every replica is in sync and reliable, changes are accepted, and no block is known to be lost.
    pub fn is_healthy(&self) -> bool {
        let whole = |replica: &ReplicaStatus| {
            replica.state == State::InSync && replica.concerns.is_empty() && replica.label.is_none()
        };
        self.replicas.iter().all(whole) && self.read_only.is_none() && self.lost.is_empty()
    }
}
