//! Why a volume could not be created, opened, checked or changed.

use crate::limits::REPLICAS_MAX;
use crate::policy::{Reason, Refused, in_a_line};
use crate::units::{Generation, Uuid};
use crate::{audit, crypto, fs, label, pages};

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
            Self::Fs(error) | Self::Audit(audit::Error::Fs(error)) if error.is_integrity() => ErrorKind::Integrity,
            Self::Fs(_) | Self::Audit(_) => ErrorKind::Io,
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
pub(super) struct System;

impl System {
    pub(super) fn error(action: &str, source: std::io::Error) -> Error {
        Error::System { action: action.to_owned(), source }
    }
}
