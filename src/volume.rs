//! The life of a volume: labels read ([`Sealed`]), key found ([`Assembled`]), in use ([`Open`]). Each step consumes the
//! one before it, so that nothing can be written before the labels agree, the key is right, the policy has approved
//! every device and the newest root is known.
//!
//! # What is done with every combination found at start-up
//!
//! | found | done |
//! |---|---|
//! | a device that is another, or no longer approved, when the first byte is about to be written | refused |
//! | labels of two volumes, one device twice, a device that the table does not name | refused |
//! | one label copy damaged | the other is used, the damaged one rewritten |
//! | both label copies damaged | refused, the device named |
//! | wrong secret | refused after the full cost of every key slot |
//! | registry of another kind, other trust anchors, or an older version than the volume has seen | refused |
//! | trust anchors that the officers of those in force have signed as their successors | in force from this mount's first commit |
//! | every replica of the newest root present, at most one root behind | mounted |
//! | one of them absent or further behind | refused unless `degraded` |
//! | a replica the newest root does not name | left behind: not read; resynced when mounted for writing, else `stale` |
//! | two replicas that each went on without the other | refused, both named |
//! | newest root older than the host's witness | refused: the whole volume was rolled back |

use std::path::PathBuf;
use std::sync::Arc;

use crate::crypto::{self, Keys, Secret, VolumeKey};
use crate::device::BlockDevice;
use crate::fs;
use crate::label::{self, Header, Root};
use crate::limits::REPLICAS_MAX;
use crate::mirror;
use crate::pages::{self, provisional::Proof};
use crate::policy::{ApprovedDevice, Reason, ReasonCode, Refused, in_a_line};
use crate::registry::VerifiedRegistry;
use crate::units::{Generation, Uuid};

pub mod audit;
mod check;
mod create;
mod members;
mod open;
mod place;
pub mod recovery;
mod resync;
pub mod witness;

pub use check::{CheckReport, Damage};
pub use create::{CreateOptions, create};
pub use members::{Members, News};
pub use open::{Open, ReplicaStatus, Status};
pub use place::{Holding, Place, Portion};

/// What kind of failure, for exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense.
    Usage,
    /// The policy, the registry or the trust anchors forbid it.
    Refused,
    /// No key slot opens with this secret.
    WrongKey,
    /// What was read is not what was written.
    Integrity,
    /// Somebody else uses it.
    Busy,
    /// Not a volume that this program can open.
    NotAVolume,
    /// Replicas are missing and `degraded` was not asked for.
    Degraded,
    /// A device or the system failed.
    Io,
}

/// Why a volume could not be created, opened or checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device's label.
    #[error("{device}: {source}")]
    Label {
        /// The device.
        device: String,
        /// What is wrong with it.
        source: label::Error,
    },
    /// A device that something else is stored on.
    #[error(
        "{device} already holds {content}; nothing was written. If it is no longer needed, erase its signature first (wipefs --all {device})"
    )]
    NotEmpty {
        /// The device.
        device: String,
        /// What was recognised.
        content: String,
    },
    /// No device was given, or too many.
    #[error("{found} devices were given; a volume has 1 to {REPLICAS_MAX} replicas")]
    DeviceCount {
        /// How many.
        found: usize,
    },
    /// Two names of the same device.
    #[error("{first} and {second} are the same replica: give each device once")]
    SameDevice {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// Devices of different volumes.
    #[error(
        "{first} belongs to volume {first_volume}, {second} to volume {second_volume}: give the devices of one volume"
    )]
    MixedVolumes {
        /// One device.
        first: String,
        /// Its volume.
        first_volume: Uuid,
        /// Another device.
        second: String,
        /// Its volume.
        second_volume: Uuid,
    },
    /// A device whose label is authentic but which the replica table does not name.
    #[error("{device} is not a replica of volume {volume} (any more)")]
    NotEnrolled {
        /// The device.
        device: String,
        /// The volume.
        volume: Uuid,
    },
    /// A device that stopped being approved before anything was written.
    #[error(transparent)]
    Device(#[from] Refused),
    /// The registry does not fit the volume, or the policy refuses its devices together: every reason.
    #[error("{}", in_a_line(.0))]
    Registry(Vec<Reason>),
    /// Replicas of the newest root are absent.
    #[error("volume {volume} is incomplete: {absent}. Attach what is missing, or accept fewer copies with -o degraded")]
    Incomplete {
        /// The volume.
        volume: Uuid,
        /// What is missing, in words.
        absent: String,
    },
    /// Replicas that each went on without the other.
    #[error("two diverged histories: {0}. Decide which one is right and mount only its devices")]
    Diverged(String),
    /// No root opens on any device.
    #[error("volume {0} has no root that verifies on any of the devices given: its label areas are damaged")]
    NoRoot(Uuid),
    /// Older than what this host has seen.
    #[error(
        "volume {volume} is at generation {found}, this host has seen generation {seen}: every device shows an older state. If you restored it on purpose, accept that with -o accept-rollback"
    )]
    RolledBack {
        /// The volume.
        volume: Uuid,
        /// Generation on the devices.
        found: Generation,
        /// Generation in the witness.
        seen: Generation,
    },
    /// Devices fail to read blocks of the last commit, and no other has them.
    #[error(
        "volume {volume}: whether its last commit, {generation}, is whole cannot be told: block {block} is on no device that can read it ({error}). Look at the devices and what connects them, and mount again. If it cannot be read any more, go on from the commit before with -o accept-rollback: that one is whole, what was written in the second after it is lost"
    )]
    Unproven {
        /// The volume.
        volume: Uuid,
        /// The last commit.
        generation: Generation,
        /// The first such block.
        block: u64,
        /// What the device says.
        error: String,
    },
    /// Features this program only knows how to read.
    #[error("volume {0} uses features that this program can only read: mount it read-only (-o ro)")]
    ReadOnlyFeatures(Uuid),
    /// A replica that is not taken back into the volume in use.
    #[error("{replica} is not taken back: {why}")]
    Rejoin {
        /// The replica or the device.
        replica: String,
        /// Stable reason code.
        code: &'static str,
        /// Why, and what to do.
        why: String,
        /// What kind of failure.
        kind: ErrorKind,
    },
    /// The key hierarchy.
    #[error(transparent)]
    Crypto(#[from] crypto::Error),
    /// The page store.
    #[error(transparent)]
    Store(#[from] pages::Error),
    /// The filesystem.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// The system.
    #[error("{action}: {source}")]
    System {
        /// What was being done.
        action: String,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Error {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Label { source, .. } => label_kind(source),
            Self::NotEmpty { .. } => ErrorKind::Busy,
            Self::DeviceCount { .. } | Self::SameDevice { .. } | Self::MixedVolumes { .. } => ErrorKind::Usage,
            Self::Device(_) | Self::Registry(_) | Self::RolledBack { .. } | Self::Diverged(_) => ErrorKind::Refused,
            Self::NotEnrolled { .. } | Self::ReadOnlyFeatures(_) => ErrorKind::NotAVolume,
            Self::Incomplete { .. } => ErrorKind::Degraded,
            Self::Rejoin { kind, .. } => *kind,
            Self::NoRoot(_) => ErrorKind::Integrity,
            Self::Crypto(crypto::Error::WrongKey) => ErrorKind::WrongKey,
            Self::Crypto(_) | Self::System { .. } | Self::Unproven { .. } => ErrorKind::Io,
            Self::Store(error) if error.is_integrity() => ErrorKind::Integrity,
            Self::Store(_) => ErrorKind::Io,
            Self::Fs(error) if error.is_integrity() => ErrorKind::Integrity,
            Self::Fs(_) => ErrorKind::Io,
        }
    }
}

fn label_kind(error: &label::Error) -> ErrorKind {
    match error {
        label::Error::Device(_) => ErrorKind::Io,
        label::Error::Crypto(crypto::Error::WrongKey) => ErrorKind::WrongKey,
        label::Error::Damaged
        | label::Error::Malformed { .. }
        | label::Error::ForgedHeader
        | label::Error::Stale { .. }
        | label::Error::CopiesDisagree { .. }
        | label::Error::NoKeySlot
        | label::Error::Truncated { .. } => ErrorKind::Integrity,
        label::Error::Crypto(_) => ErrorKind::Refused,
        label::Error::NotScelle
        | label::Error::DeviceSize { .. }
        | label::Error::UnsupportedVersion { .. }
        | label::Error::UnknownIncompatFeature { .. } => ErrorKind::NotAVolume,
    }
}

/// Shorthand for [`Error::System`].
struct System;

impl System {
    fn error(action: &str, source: std::io::Error) -> Error {
        Error::System { action: action.to_owned(), source }
    }
}

/// How a volume is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// No change, not even of the label.
    pub read_only: bool,
    /// Go on although a replica of the newest root is absent.
    pub degraded: bool,
    /// Go on although the witness has seen a later generation; the witness is then set back.
    pub accept_rollback: bool,
    /// Most bytes of sealed blocks that are kept in memory after they were read; 0: none.
    pub cache_bytes: u64,
    /// Folder of the host's witness; none: no rollback is recognised.
    pub witness: Option<PathBuf>,
}

struct Member {
    device: Arc<ApprovedDevice>,
    found: label::Found,
}

/// Devices whose labels were read and belong to one volume. Nothing of it is authenticated.
pub struct Sealed {
    uuid: Uuid,
    label: String,
    members: Vec<Member>,
}

impl Sealed {
    /// Reads the labels of approved devices.
    ///
    /// # Errors
    /// When one is not a replica, two are the same, or they belong to different volumes.
    pub fn read(devices: Vec<ApprovedDevice>) -> Result<Self, Error> {
        if devices.is_empty() || devices.len() > REPLICAS_MAX {
            return Err(Error::DeviceCount { found: devices.len() });
        }
        let mut members: Vec<Member> = Vec::with_capacity(devices.len());
        for device in devices {
            let found =
                label::read(&device).map_err(|source| Error::Label { device: device.name().to_owned(), source })?;
            for earlier in &members {
                let (ours, theirs) = (found.newest.claims(), earlier.found.newest.claims());
                if ours.volume != theirs.volume {
                    return Err(Error::MixedVolumes {
                        first: earlier.device.name().to_owned(),
                        first_volume: theirs.volume,
                        second: device.name().to_owned(),
                        second_volume: ours.volume,
                    });
                }
                if ours.device == theirs.device || ours.replica_index == theirs.replica_index {
                    return Err(Error::SameDevice {
                        first: earlier.device.name().to_owned(),
                        second: device.name().to_owned(),
                    });
                }
            }
            members.push(Member { device: Arc::new(device), found });
        }
        // Invariant: at least one device was given.
        let claims = members.first().map(|m| m.found.newest.claims()).ok_or(Error::DeviceCount { found: 0 })?;
        Ok(Self { uuid: claims.volume, label: claims.label.clone(), members })
    }

    /// The volume, as its labels claim.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The volume's label, as its labels claim.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Finds the volume key with `secret` and authenticates every label.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] after the full cost of every key slot; [`ErrorKind::Integrity`] for a label that the
    /// key does not authenticate.
    pub fn unlock(self, secret: &Secret) -> Result<Assembled, Error> {
        let mut members = self.members.into_iter();
        // Invariant: `read` does not return without a member.
        let Some(first) = members.next() else { return Err(Error::DeviceCount { found: 0 }) };
        let name = first.device.name().to_owned();
        let unlocked = first.found.unlock(secret).map_err(|source| match source {
            label::Error::Crypto(error) => Error::Crypto(error),
            source => Error::Label { device: name, source },
        })?;
        let keys = unlocked.keys;
        let first = Replica { device: first.device, header: unlocked.header, damaged: areas(unlocked.damaged) };
        Self::authenticate(keys, vec![first], members)
    }

    /// As [`Sealed::unlock`], by one who has got the volume key from a key slot before ([`Assembled::volume_key`]): to open
    /// a volume again without paying for the slot again.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] for a label that the key does not authenticate.
    pub fn unlock_again(self, key: &VolumeKey) -> Result<Assembled, Error> {
        Self::authenticate(key.keys(self.uuid), Vec::new(), self.members.into_iter())
    }

    fn authenticate(
        keys: Keys,
        mut replicas: Vec<Replica>,
        members: impl Iterator<Item = Member>,
    ) -> Result<Assembled, Error> {
        for member in members {
            let name = member.device.name().to_owned();
            let (header, damaged) =
                member.found.authenticate(&keys).map_err(|source| Error::Label { device: name, source })?;
            replicas.push(Replica { device: member.device, header, damaged: areas(damaged) });
        }
        Assembled::new(keys, replicas)
    }
}

fn areas(damaged: Vec<(label::Area, label::Error)>) -> Vec<label::Area> {
    damaged.into_iter().map(|(area, _)| area).collect()
}

struct Replica {
    device: Arc<ApprovedDevice>,
    header: Header,
    /// Label copies to write anew.
    damaged: Vec<label::Area>,
}

impl Replica {
    /// Whether the volume's newest label names this replica.
    fn is_enrolled_in(&self, volume: &Header) -> bool {
        let row = volume.replicas.get(usize::from(self.header.replica_index)).and_then(Option::as_ref);
        row.is_some_and(|row| row.device == self.header.device) && self.header.data_blocks == volume.data_blocks
    }
}

/// A volume whose key is known and whose labels are authentic.
pub struct Assembled {
    keys: Keys,
    header: Header,
    replicas: Vec<Replica>,
}

/// Where a volume goes on from.
struct Chosen {
    choice: recovery::Choice,
    /// What the replicas in sync lack of the root's commit.
    proof: Proof,
    /// Why that is not the newest root.
    cut_off: Option<String>,
}

impl Assembled {
    fn new(keys: Keys, mut replicas: Vec<Replica>) -> Result<Self, Error> {
        replicas.sort_by_key(|replica| replica.header.replica_index);
        // The newest label describes the volume: a replica that was away may have an older table.
        let newest = replicas.iter().max_by_key(|replica| replica.header.sequence);
        let header = newest.map(|replica| replica.header.clone()).ok_or(Error::DeviceCount { found: 0 })?;
        for replica in &replicas {
            if !replica.is_enrolled_in(&header) {
                let device = replica.device.name().to_owned();
                return Err(Error::NotEnrolled { device, volume: header.volume });
            }
        }
        Ok(Self { keys, header, replicas })
    }

    /// The volume.
    pub fn uuid(&self) -> Uuid {
        self.header.volume
    }

    /// Its label.
    pub fn label(&self) -> &str {
        &self.header.label
    }

    /// The volume key, for [`Sealed::unlock_again`].
    pub fn volume_key(&self) -> &VolumeKey {
        self.keys.volume_key()
    }

    /// The registry must be of the volume's kind, verified with the pinned anchors or with those that their officers have
    /// put in their place, and not older than what the volume has seen.
    fn check_registry(&self, registry: &VerifiedRegistry, root: &Root) -> Result<(), Error> {
        let refuse = |code, text: String| Err(Error::Registry(vec![Reason::new(code, text)]));
        if !registry.is_trusted_by(&root.trust_in_force(self.header.trust_digest)) {
            let text = "the trust anchors are neither those pinned in the volume nor have the officers pinned there put \
                        them in their place: another officer's key, another threshold, or an older trust.toml";
            return refuse(ReasonCode::RegistryOther, text.to_owned());
        }
        if registry.is_laboratory() == self.header.sovereign {
            let text = match self.header.sovereign {
                true => "the volume is sovereign: it cannot be mounted with a laboratory registry",
                false => "the volume was made with a laboratory registry: it cannot be mounted with another kind",
            };
            return refuse(ReasonCode::RegistryKindChanged, text.to_owned());
        }
        if registry.version() < root.registry_version {
            let text =
                format!("registry version {}, the volume has seen {}", registry.version(), root.registry_version);
            return refuse(ReasonCode::RegistryRolledBack, text);
        }
        Ok(())
    }

    /// Reads the roots of every replica, as [`recovery::choose`] wants them.
    fn rings(&self) -> Vec<recovery::Ring> {
        let count = self.header.replicas.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let mut found = vec![None; count];
        for replica in &self.replicas {
            let device = &replica.device;
            let roots = label::read_roots(&**device, replica.header.device_bytes, &self.keys, self.header.volume);
            let roots = match roots {
                Ok(roots) => roots,
                Err(error) => {
                    // Nothing is known of what it went through: as if it were not there.
                    log::warn!("{}: root ring: {error}", device.name());
                    continue;
                }
            };
            if let Some(slot) = found.get_mut(usize::from(replica.header.replica_index)) {
                *slot = Some(roots);
            }
        }
        found
    }

    /// Decides which root to go on from. Leaves out of `rings` the root of a commit that was cut off, or of which that is not
    /// known and the administrator accepts it.
    fn choose(&self, rings: &mut Vec<recovery::Ring>, degraded: bool, accept_rollback: bool) -> Result<Chosen, Error> {
        let choice = recovery::choose(rings).map_err(|conflict| match conflict {
            recovery::Conflict::NoRoot => Error::NoRoot(self.header.volume),
            recovery::Conflict::Diverged { one, other } => {
                Error::Diverged(format!("{} and {} each went on without the other", self.name(one), self.name(other)))
            }
        })?;
        self.admit(&choice, degraded)?;
        let proof = self.prove(&choice);
        let is_given_up = accept_rollback && proof.unread.is_some();
        if proof.lost == 0 && !is_given_up {
            return Ok(Chosen { choice, proof, cut_off: None });
        }
        let (volume, generation, lost) = (self.header.volume, choice.root.generation, proof.lost);
        let Some((earlier, before)) = recovery::choose_before(rings, &choice.root) else {
            log::error!(
                "volume {volume}: blocks of commit {generation} are damaged on every replica that is here, and the root of the \
                 commit before it is not there: what they held is lost"
            );
            return Ok(Chosen { choice, proof, cut_off: None });
        };
        self.admit(&before, degraded)?;
        let found = match lost {
            0 => "may have been cut off, and the administrator accepted a rollback: not every block of it can be read"
                .to_owned(),
            _ => format!(
                "was cut off, by a power failure it seems, before it was answered for: at least {lost} of its blocks are on no \
                 replica that is here"
            ),
        };
        let absent = match &*choice.absent {
            [] => String::new(),
            absent => format!("; {} may have them, and loses them when the volume goes on without", self.names(absent)),
        };
        let why =
            format!("commit {generation} {found}{absent}. The volume goes on from commit {}", before.root.generation);
        log::warn!("volume {volume}: {why}");
        *rings = earlier;
        Ok(Chosen { choice: before, proof: Proof::default(), cut_off: Some(why) })
    }

    /// Whether the volume can be used with this choice.
    fn admit(&self, choice: &recovery::Choice, degraded: bool) -> Result<(), Error> {
        let usable = choice.states.contains(&mirror::State::InSync);
        if !usable || !choice.absent.is_empty() && !degraded {
            let absent = format!("{} of the last commit is absent or too old", self.names(&choice.absent));
            return Err(Error::Incomplete { volume: self.header.volume, absent });
        }
        Ok(())
    }

    /// Looks for the blocks of the chosen root's commit on the replicas in sync. Writes nothing.
    fn prove(&self, choice: &recovery::Choice) -> Proof {
        let index = |replica: &Replica| usize::from(replica.header.replica_index);
        let in_sync = self.replicas.iter().filter(|r| choice.states.get(index(r)) == Some(&mirror::State::InSync));
        let devices: Vec<_> = in_sync.map(|r| (index(r), &*r.device as &dyn BlockDevice)).collect();
        Proof::of(&choice.root, &self.keys, self.header.volume, &devices)
    }

    /// How messages name a replica.
    fn name(&self, index: usize) -> String {
        let id = self.header.replicas.get(index).and_then(Option::as_ref).map_or("?", |row| &row.registry_id);
        let device = self.replicas.iter().find(|r| usize::from(r.header.replica_index) == index);
        match device {
            Some(replica) => format!("replica {index} ({id}, {})", replica.device.name()),
            None => format!("replica {index} ({id})"),
        }
    }

    fn names(&self, indices: &[usize]) -> String {
        indices.iter().map(|index| self.name(*index)).collect::<Vec<_>>().join(", ")
    }

    /// The replica set in the order of the replica table, with the size of each device as its label says.
    fn mirror(&self, states: &[mirror::State]) -> Result<(Arc<mirror::Mirror>, Vec<u64>), Error> {
        let mut rows: Vec<(Option<Arc<ApprovedDevice>>, mirror::State)> = states.iter().map(|s| (None, *s)).collect();
        let mut sizes = vec![0; states.len()];
        for replica in &self.replicas {
            let index = usize::from(replica.header.replica_index);
            if let (Some(row), Some(size)) = (rows.get_mut(index), sizes.get_mut(index)) {
                row.0 = Some(replica.device.clone());
                *size = replica.header.device_bytes;
            }
        }
        let mirror = mirror::Mirror::new(rows).map_err(|e| System::error("starting a replica's thread", e))?;
        Ok((Arc::new(mirror), sizes))
    }
}
