//! Why a volume could not be created, opened, checked or changed.

use super::side::Side;
use crate::limits::REPLICAS_MAX;
use crate::policy::{Refused, in_a_line};
use crate::problem::{Code, Problem};
use crate::units::{Generation, Uuid};
use crate::{audit, crypto, fs, label, pages};

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
    #[error("{device} already holds {content}; nothing was written")]
    NotEmpty {
        /// The device.
        device: String,
        /// Everything that was recognised.
        content: String,
        /// The commands that take it away.
        erase: String,
    },
    /// No device was given, or too many.
    #[error("{found} devices were given; a volume has 1 to {REPLICAS_MAX} replicas")]
    DeviceCount {
        /// How many.
        found: usize,
    },
    /// Two names of the same device.
    #[error("{first} and {second} are the same replica")]
    SameDevice {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// Devices of different volumes.
    #[error("{first} belongs to volume {first_volume}, {second} to volume {second_volume}")]
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
    /// No label that is here is the one that the last commit names.
    #[error(
        "volume {volume}: its last commit names label {named}, and the newest on the devices is {found}, or another one of that number"
    )]
    LabelOutdated {
        /// The volume.
        volume: Uuid,
        /// Sequence of the newest label on the devices.
        found: u64,
        /// Sequence of the label in force.
        named: u64,
    },
    /// A device that is another than the one that the replica was enrolled with.
    #[error("{0}")]
    Swapped(String),
    /// A device that stopped being approved before anything was written.
    #[error(transparent)]
    Device(#[from] Refused),
    /// The registry does not fit the volume, or the policy refuses its devices together: every reason.
    #[error("{}", in_a_line(.0))]
    Registry(Vec<Problem>),
    /// Replicas of the newest root are absent.
    #[error("volume {volume} is incomplete: {absent}")]
    Incomplete {
        /// The volume.
        volume: Uuid,
        /// What is missing, in words.
        absent: String,
        /// Whether the mount had accepted fewer copies.
        degraded: bool,
    },
    /// Replicas that each went on without the other.
    #[error("two diverged histories: {one}; {other}; each went on without the other")]
    Diverged {
        /// One of them.
        one: Box<Side>,
        /// The other.
        other: Box<Side>,
        /// How one of them is discarded, in words.
        way_out: String,
    },
    /// No root opens on any device.
    #[error("volume {0} has no root that verifies on any of the devices given: its label areas are damaged")]
    NoRoot(Uuid),
    /// The chosen root is older than what this host has seen.
    #[error("volume {volume} is at generation {found}, this host has answered for generation {seen}: {why}")]
    RolledBack {
        /// The volume.
        volume: Uuid,
        /// Generation on the devices.
        found: Generation,
        /// Generation in the witness.
        seen: Generation,
        /// What the mount accepts: another generation.
        given: Option<Generation>,
        /// How the two contradict each other, and which replica has the later one.
        why: String,
    },
    /// The host's witness cannot be read, or not in time.
    #[error("the witness of volume {volume} in {folder} cannot be read: {source}")]
    Witness {
        /// The volume.
        volume: Uuid,
        /// Where the witness is.
        folder: String,
        /// Generation on the devices.
        found: Generation,
        /// What the mount accepts: another generation.
        given: Option<Generation>,
        /// The system's error.
        source: std::io::Error,
    },
    /// Whether the last commit was answered for, and is whole, cannot be told from the replicas that are here.
    #[error("volume {volume}: what becomes of commit {generation} cannot be decided: {why}")]
    Unproven {
        /// The volume.
        volume: Uuid,
        /// The commit.
        generation: Generation,
        /// The generation that the volume can go on from all the same, if there is one.
        acceptable: Option<Generation>,
        /// What the mount accepts: another generation.
        given: Option<Generation>,
        /// What is not known, and who may know it.
        why: String,
    },
    /// Features this program only knows how to read.
    #[error("volume {0} uses features that this program can only read")]
    ReadOnlyFeatures(Uuid),
    /// A replica that is not taken back into the volume in use.
    #[error("{replica} is not taken back: {why}")]
    Rejoin {
        /// The replica or the device.
        replica: String,
        /// Why, as a code.
        code: Code,
        /// Why, and what to do.
        why: String,
    },
    /// The replica table is not changed.
    #[error("{what}: {why}")]
    Table {
        /// What was to be done.
        what: String,
        /// Why not, as a code.
        code: Code,
        /// Why not, and what to do.
        why: String,
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
    /// The audit trail.
    #[error(transparent)]
    Audit(#[from] audit::Error),
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
    /// Its code.
    pub fn code(&self) -> Code {
        match self {
            Self::Label { source, .. } => source.code(),
            Self::NotEmpty { .. } => Code::DeviceNotEmpty,
            Self::DeviceCount { .. } => Code::DeviceCount,
            Self::SameDevice { .. } => Code::DeviceTwice,
            Self::MixedVolumes { .. } => Code::DeviceOfAnotherVolume,
            Self::NotEnrolled { .. } => Code::DeviceNotEnrolled,
            Self::LabelOutdated { .. } => Code::LabelOutdated,
            Self::Swapped(_) => Code::DeviceSwapped,
            Self::Device(refused) => code_of(&refused.verdict.reasons, Code::DeviceNotListed),
            Self::Registry(reasons) => code_of(reasons, Code::RegistryOther),
            Self::Incomplete { .. } => Code::VolumeIncomplete,
            Self::Diverged { .. } => Code::VolumeDiverged,
            Self::Rejoin { code, .. } | Self::Table { code, .. } => *code,
            Self::NoRoot(_) => Code::VolumeNoRoot,
            Self::RolledBack { .. } => Code::VolumeRolledBack,
            Self::Witness { .. } => Code::WitnessUnavailable,
            Self::Unproven { .. } => Code::VolumeUnproven,
            Self::ReadOnlyFeatures(_) => Code::FormatReadOnly,
            Self::Crypto(error) => error.code(),
            Self::Store(error) if error.is_integrity() => Code::StoreDamaged,
            Self::Store(_) => Code::Store,
            Self::Fs(error) | Self::Audit(audit::Error::Fs(error)) if error.is_integrity() => Code::FilesystemDamaged,
            Self::Fs(_) | Self::Audit(audit::Error::Fs(_)) => Code::Filesystem,
            Self::Audit(audit::Error::Key(_)) | Self::System { .. } => Code::System,
        }
    }
}

impl Error {
    /// The generation that the volume goes on from, if somebody accepts that, and nothing else is refused.
    pub fn acceptable(&self) -> Option<Generation> {
        match self {
            Self::RolledBack { found, .. } | Self::Witness { found, .. } => Some(*found),
            Self::Unproven { acceptable, .. } => *acceptable,
            _ => None,
        }
    }

    /// The advice that names exactly the option which accepts what is refused.
    fn way_out(&self) -> Option<String> {
        let (first, given, loss) = match self {
            Self::RolledBack { given, .. } => (
                "Attach the replicas that the message names.",
                given,
                "If you restored \
                the devices on purpose, accept that state, and no other, with",
            ),
            Self::Witness { given, .. } => (
                "Look at that disk, and mount again.",
                given,
                "If the witness is lost, and you \
                know that the devices show the last state, accept it with",
            ),
            Self::Unproven { given, .. } => (
                "Attach the replicas that the message names, look at the devices and what connects them, and mount again.",
                given,
                "If what is missing is lost, go on without it with",
            ),
            _ => return None,
        };
        let Some(accept) = self.acceptable() else { return Some(first.to_owned()) };
        let other = given.map_or(String::new(), |given| {
            format!(" (accept-rollback={given}, which was given, accepts another state)")
        });
        Some(format!("{first} {loss} -o accept-rollback={accept}{other}. Leave the option out afterwards."))
    }
}

/// The first reason stands for all of them.
fn code_of(reasons: &[Problem], otherwise: Code) -> Code {
    reasons.first().map_or(otherwise, |reason| reason.code)
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Device(refused) => refused.into(),
            Error::Incomplete { degraded: true, .. } => Self::new(error.code(), error.to_string())
                .advise("Attach what is missing: no replica that is here holds the last commit, whatever is accepted."),
            Error::NotEmpty { ref erase, .. } => Self::new(error.code(), error.to_string())
                .advise(format!("If that is no longer needed, erase it first: {erase}")),
            Error::Diverged { ref way_out, .. } => Self::new(error.code(), error.to_string()).advise(way_out),
            error => {
                let problem = Self::new(error.code(), error.to_string());
                match error.way_out() {
                    Some(advice) => problem.advise(advice),
                    None => problem,
                }
            }
        }
    }
}

/// Shorthand for [`Error::System`].
pub(super) struct System;

impl System {
    pub(super) fn error(action: &str, source: std::io::Error) -> Error {
        Error::System { action: action.to_owned(), source }
    }
}
