//! The quorum: what the policy in force asks of the replicas together, and whether those in sync fulfil it.
//!
//! One replica by itself is judged at its gate ([`ApprovedDevice`](crate::policy::ApprovedDevice)). How many replicas,
//! at how many sites, must be in sync for users' changes is asked of all of them together, here. The quorum also keeps
//! what the next root records of the registry and of the trust anchors ([`Stamp`]).
//!
//! The answer holds for one set of replicas under one registry. It is kept, and [`Quorum::allows`] asks again only when
//! either has changed.
//!
//! The lock of a quorum comes before those of the replica set. No I/O happens under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Mirror;
use crate::label::{LabelId, Root};
use crate::policy::{ApprovedEntry, examine_set};
use crate::problem::Problem;
use crate::registry::VerifiedRegistry;

/// What a root records of the documents in force when it was published. After that root, no older registry and no other
/// officers are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Version of the newest registry that was in force.
    pub registry_version: u64,
    /// Digest of its document.
    pub registry: [u8; 32],
    /// Digest of the trust anchors in force.
    pub trust: [u8; 32],
    /// The header in force.
    pub label: LabelId,
}

impl Stamp {
    /// What a root records.
    pub fn of(root: &Root) -> Self {
        let Root { registry_version, registry, trust, label, .. } = *root;
        Self { registry_version, registry, trust, label }
    }
}

/// What the policy in force asks of the replicas of a set together.
pub struct Quorum {
    mirror: Arc<Mirror>,
    judgement: Mutex<Judgement>,
    /// The replicas in sync that were found to be enough; 0 when that has to be judged anew.
    enough: AtomicU64,
    /// What the next root records.
    stamp: Mutex<Stamp>,
}

#[derive(Default)]
struct Judgement {
    registry: Option<Arc<VerifiedRegistry>>,
    /// Why changes are refused at present.
    lacking: Option<String>,
    /// Why changes are refused until the policy has judged again, although no replica lacks yet.
    suspended: Option<String>,
}

impl Quorum {
    /// The quorum of a set whose last root was stamped with `stamp`. No registry is in force yet, so one replica is
    /// enough.
    pub fn new(mirror: Arc<Mirror>, stamp: Stamp) -> Self {
        Self { mirror, judgement: Mutex::default(), enough: AtomicU64::new(0), stamp: Mutex::new(stamp) }
    }

    /// Puts this registry in force. Its policy says how many replicas, at how many sites, must be in sync for changes.
    /// The next root records its version and digest, and after that neither an older registry nor another one of that
    /// version is accepted. Returns whether the version is newer than any before.
    pub fn saw_registry(&self, registry: &Arc<VerifiedRegistry>) -> bool {
        let mut judgement = self.judgement.lock();
        (judgement.registry, judgement.suspended) = (Some(registry.clone()), None);
        self.enough.store(0, Ordering::Release);
        let mut stamp = self.stamp.lock();
        let is_newer = stamp.registry_version < registry.version();
        if is_newer || stamp.registry == [0; 32] {
            (stamp.registry_version, stamp.registry) = (registry.version(), registry.document_digest());
        }
        is_newer
    }

    /// Puts the trust anchors of this digest in force. The next root records the digest, and only these anchors or
    /// their successors are accepted after that. Returns whether other anchors were in force before; the caller has
    /// seen that those trust these.
    pub fn saw_trust(&self, digest: [u8; 32]) -> bool {
        std::mem::replace(&mut self.stamp.lock().trust, digest) != digest
    }

    /// Puts a header in force that every replica in sync has on stable storage. The next root records it, and no older
    /// header is believed after that.
    pub fn saw_label(&self, label: LabelId) {
        self.stamp.lock().label = label;
    }

    /// The registry in force; none while the volume is being made.
    pub fn registry(&self) -> Option<Arc<VerifiedRegistry>> {
        self.judgement.lock().registry.clone()
    }

    /// The newest registry that was in force.
    pub fn registry_version(&self) -> u64 {
        self.stamp.lock().registry_version
    }

    /// What the next root records.
    pub fn stamp(&self) -> Stamp {
        *self.stamp.lock()
    }

    /// Refuses users' changes until the policy has judged again ([`Quorum::saw_registry`]).
    pub fn suspend(&self, reason: String) {
        self.judgement.lock().suspended = Some(reason);
        self.enough.store(0, Ordering::Release);
    }

    /// Whether the policy lets the replicas that are in sync at this moment take writes together. A refusal ends by
    /// itself once enough replicas are in sync again.
    ///
    /// # Errors
    /// Why it does not.
    pub fn allows(&self) -> std::result::Result<(), String> {
        let in_sync = self.mirror.in_sync();
        if in_sync != 0 && self.enough.load(Ordering::Acquire) == in_sync {
            return Ok(());
        }
        self.judge(in_sync).map_or(Ok(()), Err)
    }

    /// What the policy in force objects to replicas with these entries of the registry taking writes together.
    pub fn objections(&self, entries: &[Arc<ApprovedEntry>]) -> Vec<Problem> {
        let entries: Vec<&ApprovedEntry> = entries.iter().map(AsRef::as_ref).collect();
        self.registry().map_or_else(Vec::new, |registry| examine_set(&registry, &entries))
    }

    /// The entries of the registry of these replicas, as far as their devices are there.
    pub fn entries(&self, replicas: u64) -> Vec<Arc<ApprovedEntry>> {
        let members = (0..self.mirror.len()).filter(|index| replicas >> index & 1 == 1);
        members.filter_map(|index| Some(self.mirror.device(index)?.registry_entry())).collect()
    }

    /// Why the policy would not let these replicas take writes together; nothing when it would.
    pub fn lacks(&self, replicas: u64) -> Option<String> {
        self.examine_together(self.registry().as_deref(), replicas)
    }

    fn examine_together(&self, registry: Option<&VerifiedRegistry>, replicas: u64) -> Option<String> {
        if replicas == 0 {
            return Some(self.mirror.nothing_in_sync());
        }
        let registry = registry?;
        let entries = self.entries(replicas);
        let entries: Vec<&ApprovedEntry> = entries.iter().map(AsRef::as_ref).collect();
        let reasons: Vec<String> = examine_set(registry, &entries).iter().map(ToString::to_string).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Why the policy does not let the replicas `in_sync` take writes together; nothing when it does.
    fn judge(&self, in_sync: u64) -> Option<String> {
        let mut judgement = self.judgement.lock();
        let lacking =
            self.examine_together(judgement.registry.as_deref(), in_sync).or_else(|| judgement.suspended.clone());
        if lacking.is_none() {
            self.enough.store(in_sync, Ordering::Release);
        }
        if judgement.lacking.is_some() != lacking.is_some() {
            match &lacking {
                Some(reason) => log::error!("changes are refused until enough replicas are in sync: {reason}"),
                None => log::warn!("enough replicas are in sync again: changes are accepted"),
            }
        }
        judgement.lacking.clone_from(&lacking);
        lacking
    }
}
