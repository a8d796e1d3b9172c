//! What goes wrong with a replica set.

use crate::units::BlockAddr;

/// Why the replica set could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No replica takes writes any more.
    #[error("no replica can be written: {0}")]
    NoReplica(String),
    /// No replica returned a block that verifies.
    #[error("block {} is damaged on every replica that could be read ({tried})", addr.0)]
    Integrity {
        /// The block.
        addr: BlockAddr,
        /// Number of replicas that were read.
        tried: usize,
    },
    /// No replica could be read at all.
    #[error("block {} cannot be read from any replica: {last}", addr.0)]
    Unreadable {
        /// The block.
        addr: BlockAddr,
        /// What the last replica said.
        last: String,
    },
}

impl Error {
    /// The block that could not be read.
    pub const fn block(&self) -> Option<BlockAddr> {
        match self {
            Self::NoReplica(_) => None,
            Self::Integrity { addr, .. } | Self::Unreadable { addr, .. } => Some(*addr),
        }
    }
}

/// Why a replica was not taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejoinError {
    /// The replica takes writes already.
    #[error("the replica is in use")]
    InUse,
    /// There is no device.
    #[error("the device is not there")]
    NoDevice,
    /// A write that the device was given before it was fenced has not returned yet.
    #[error("the device has not answered an earlier write yet")]
    StillWriting,
    /// The replica lacks something that no other replica can give.
    #[error("the replica lacks what was written last, and no replica that has it is in sync")]
    NoSource,
}

/// Result of an operation on the replica set.
pub type Result<T> = std::result::Result<T, Error>;
