//! What the audit trail tells of: actors, objects, events, reasons.
//!
//! To add an event, add a variant. The variant's name in kebab case is the event's code in the trail, for ever, and its
//! fields are the event's details. Fields may be added to a variant, but never change their meaning. A reader of a
//! trail takes codes and fields that it does not know as they are.

use serde::{Deserialize, Serialize};

use crate::limits::{AUDIT_REASONS_MAX, AUDIT_TEXT_MAX};
use crate::mirror::{ErrorCounts, State};
use crate::os::process::Identity;
use crate::policy::kind;
use crate::problem::{Code, Problem};
use crate::registry::{VerifiedRegistry, hex};
use crate::units::is_plain;

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Actor {
    /// The program by itself: it noticed something, and did what it must.
    System {
        /// Process number.
        pid: u32,
    },
    /// A user who ran the command.
    User {
        /// Real user of the process.
        uid: u32,
        /// Real group of the process.
        gid: u32,
        /// Process number.
        pid: u32,
        /// The user who logged in, whatever user the session changed to since; none for a service.
        login_uid: Option<u32>,
        /// Name of the user who logged in, else of `uid`, as the host knew it then.
        name: Option<String>,
    },
}

impl Actor {
    /// The program itself.
    pub fn system() -> Self {
        Self::System { pid: std::process::id() }
    }

    /// The user who runs this process.
    pub fn user(identity: &Identity) -> Self {
        let Identity { uid, gid, pid, login_uid, ref name, .. } = *identity;
        Self::User { uid, gid, pid, login_uid, name: name.as_deref().map(cut) }
    }
}

/// What something was done to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Object {
    /// The volume as a whole.
    Volume,
    /// A replica of it.
    Replica {
        /// Row of the replica table.
        index: usize,
        /// Its entry in the registry.
        registry_id: String,
        /// Device node; empty when there is none.
        device: String,
    },
    /// A device that is not (yet) a replica.
    Device {
        /// Device node.
        device: String,
    },
    /// A registry.
    Registry {
        /// Its version, when it could be verified.
        version: Option<u64>,
    },
}

/// A registry, as the trail names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryFacts {
    /// Its version.
    pub version: u64,
    /// SHA-256 of the document, in hexadecimal digits.
    pub sha256: String,
    /// SHA-256 of the trust anchors that it was verified with, in hexadecimal digits.
    #[serde(default)]
    pub trust: String,
    /// How many officers must sign.
    #[serde(default)]
    pub threshold: usize,
    /// How many officers there are.
    #[serde(default)]
    pub officers: usize,
    /// `sovereign`, `private` or `laboratory`.
    #[serde(default)]
    pub kind: String,
    /// Last day of validity.
    pub valid_until: String,
    /// The officers whose signatures were verified.
    pub signers: Vec<String>,
}

impl RegistryFacts {
    /// A registry, and what kind it is on this host.
    pub fn of(registry: &VerifiedRegistry) -> Self {
        Self {
            version: registry.version(),
            sha256: hex(&registry.document_digest()),
            trust: hex(&registry.anchors_digest()),
            threshold: registry.threshold(),
            officers: registry.officers(),
            kind: kind::on_this_host(registry).kind.to_string(),
            valid_until: registry.valid_until().to_string(),
            signers: registry.signers().to_vec(),
        }
    }
}

/// What a device is enrolled as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Known {
    /// Its entry in the registry.
    pub registry_id: String,
    /// Digest of its identity, in hexadecimal digits.
    pub identity: String,
}

/// A replica at the moment of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaFacts {
    /// Row of the replica table.
    pub index: usize,
    /// Its entry in the registry.
    pub registry_id: String,
    /// Device node; empty when there is none.
    pub device: String,
    /// The site of the entry that approves the device; nothing when there is no device.
    pub site: Option<String>,
    /// Its state when it was found.
    pub state: State,
}

impl ReplicaFacts {
    /// A replica.
    pub fn new(index: usize, registry_id: &str, device: &str, site: Option<&str>, state: State) -> Self {
        Self { index, registry_id: cut(registry_id), device: cut(device), site: site.map(cut), state }
    }
}

/// How much a scrub has read of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScrubFacts {
    /// Its entry in the registry.
    pub registry_id: String,
    /// Bytes.
    pub bytes: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", content = "details", rename_all = "kebab-case")]
pub enum Event {
    /// The volume was made; the first record of its trail.
    VolumeCreated {
        /// Its label.
        label: String,
        /// Whether the volume is sovereign.
        sovereign: bool,
        /// The registry that approved the devices.
        registry: RegistryFacts,
        /// The devices.
        replicas: Vec<ReplicaFacts>,
    },
    /// The volume is older than its trail, which begins here.
    TrailBegun,
    /// The volume was opened for use.
    Mounted {
        /// Name of the host.
        host: String,
        /// Version of the program.
        program: String,
        /// Whether it takes no changes. If nobody asked for that, the reasons say why.
        read_only: bool,
        /// Whether missing replicas were accepted beforehand.
        degraded: bool,
        /// Whether the trail has no `unmounted` for the mount before: that one ended by a crash, or with the power.
        after_crash: bool,
        /// The generation that was found.
        generation: u64,
        /// The registry in force.
        registry: RegistryFacts,
        /// The replicas as they were found.
        replicas: Vec<ReplicaFacts>,
    },
    /// The volume was closed. Its last commit follows this record.
    Unmounted,
    /// Somebody wanted to mount it, and was refused for these reasons.
    MountRefused,
    /// An older state than the host had seen was accepted with the option `accept-rollback`, which named it.
    RollbackAccepted {
        /// The generation that the host had seen.
        seen: u64,
        /// The generation that was found.
        found: u64,
    },
    /// The host had no witness of the volume, though it was mounted before: a rollback would not have shown.
    WitnessMissing,
    /// A clock that shows an earlier time than one that has been was accepted with the option `accept-clock`; the reason
    /// says which.
    ClockAccepted,
    /// A replica came into another state, for these reasons. `refused` is the policy's word, `faulty` the device's.
    /// `resyncing` and then `in-sync` are a resync that began and ended well.
    ReplicaState {
        /// Before.
        from: State,
        /// From now on.
        to: State,
    },
    /// A replica's device was enrolled anew, because the registry lists it otherwise than before.
    ReplicaEnrolled {
        /// What was enrolled before.
        before: Known,
        /// What is enrolled from now on.
        now: Known,
    },
    /// Somebody had a device added as a replica, which is given everything from now on.
    ReplicaAdded {
        /// What it is enrolled as.
        now: Known,
        /// The replica in whose place it comes once it has everything.
        replaces: Option<String>,
    },
    /// A replica was removed: somebody asked for it, or another has taken its place.
    ReplicaRemoved {
        /// What it was enrolled as.
        before: Known,
        /// The replica that has taken its place.
        replaced_by: Option<String>,
    },
    /// Somebody had the label and the key slots of a replica overwritten.
    ReplicaDestroyed,
    /// A replica had gone on without the others, and somebody has chosen to discard what it went on to.
    HistoryDiscarded {
        /// Its last commit.
        generation: u64,
        /// When that was made, by the clock of its host.
        committed: String,
        /// The host that mounted it last.
        host: Option<String>,
        /// How many files and folders only it had, as far as they were counted.
        only_there: u64,
        /// How many records its own trail had.
        records: u64,
        /// Digest of the last of them.
        head: String,
    },
    /// Somebody asked that a device be brought back as a replica, and was refused for these reasons.
    ResyncRefused,
    /// A device that shows a label of the volume was left out at a mount, for these reasons.
    DeviceLeftOut,
    /// The policy does not approve a replica's device any more, for these reasons.
    DeviceRefused,
    /// A device that had been refused is approved again.
    DeviceApproved,
    /// Errors of a replica since the last such record, or since the mount.
    ReplicaErrors(ErrorCounts),
    /// What these reasons name was found damaged: no replica could give it, or the label of a replica was overwritten.
    DamageFound,
    /// A scrub has ended. The reasons are what could not be repaired.
    ScrubEnded {
        /// How: `finished`, `stopped` by somebody, or `failed`.
        state: String,
        /// What was looked at: a path, or `all`, or `known damage`.
        of: String,
        /// When it began.
        began: String,
        /// When it ended.
        ended: String,
        /// How often it was paused or interrupted.
        interruptions: u64,
        /// How much was read of each replica.
        read: Vec<ScrubFacts>,
        /// What was not as it must be, counted for each replica by itself.
        found: u64,
        /// How much of that is as it must be again.
        repaired: u64,
        /// How much is not.
        unrepaired: u64,
    },
    /// A replica is not reliable any more, though it may be in sync, for these reasons.
    ReplicaUnreliable,
    /// A registry came into force.
    RegistryAccepted(RegistryFacts),
    /// The registry file is not the registry in force any more, for these reasons; the one in force stays.
    RegistryRefused,
    /// No change is accepted from now on, for these reasons.
    ReadOnly,
    /// Changes are accepted again.
    ReadWrite,
    /// The system's log cannot be written, for these reasons.
    LogUnavailable {
        /// Messages that wait to be written.
        waiting: u64,
        /// Messages that were lost since the mount.
        lost: u64,
    },
    /// The system's log can be written again.
    LogAvailable {
        /// Messages that were lost since the mount.
        lost: u64,
    },
    /// The clock shows an earlier time than the record before.
    ClockWentBack {
        /// Time of the record before.
        from: String,
    },
    /// The host could not keep some reports, because there were too many.
    ReportsLost {
        /// How many.
        count: u64,
    },
}

/// Why something happened, as records keep it. The code was stable when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable code.
    pub code: String,
    /// The reason in words, for people.
    pub text: String,
}

impl Reason {
    /// A reason; texts are cut at [`AUDIT_TEXT_MAX`] bytes.
    pub fn new(code: Code, text: &str) -> Self {
        Self { code: code.to_string(), text: cut(text) }
    }
}

impl From<&Problem> for Reason {
    fn from(problem: &Problem) -> Self {
        Self::new(problem.code, &problem.text)
    }
}

/// Something to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(super) actor: Actor,
    pub(super) object: Object,
    pub(super) event: Event,
    pub(super) reasons: Vec<Reason>,
}

impl Entry {
    /// An entry for what the program noticed or did by itself. Repetitions of it are counted rather than recorded one
    /// by one.
    pub fn noticed(object: Object, event: Event) -> Self {
        Self { actor: Actor::system(), object, event, reasons: Vec::new() }
    }

    /// An entry for what somebody did. Each time is recorded.
    pub fn done(by: Actor, object: Object, event: Event) -> Self {
        Self { actor: by, object, event, reasons: Vec::new() }
    }

    /// The entry with reasons. At most [`AUDIT_REASONS_MAX`] are kept; if there were more, the last of them says how
    /// many.
    #[must_use]
    pub fn because(mut self, reasons: impl IntoIterator<Item = Reason>) -> Self {
        self.reasons.extend(reasons);
        let more = self.reasons.len().saturating_sub(AUDIT_REASONS_MAX);
        if more > 0 {
            self.reasons.truncate(AUDIT_REASONS_MAX - 1);
            self.reasons.push(Reason::new(Code::MoreReasons, &format!("and {} more", more + 1)));
        }
        self
    }
}

/// At most [`AUDIT_TEXT_MAX`] bytes of a text; what does not show itself becomes a space.
pub(super) fn cut(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if is_plain(c) { c } else { ' ' };
        if out.len() + c.len_utf8() > AUDIT_TEXT_MAX {
            break;
        }
        out.push(c);
    }
    out
}
