//! The process behind a mount, and what the commands that work on devices share with it.
//!
//! [`serve`] opens the volume, answers the kernel and the control socket, and closes the volume whatever ended the
//! mount. The watch checks the registry and the devices again and again (promise P2). [`devices`] leads from names to
//! devices that the policy approves. [`find`] leads from what a user calls a volume to its devices; [`gather`] leaves out
//! those that are not to be used.
//!
//! The daemon decides nothing about devices itself, which is [`crate::policy`]'s. What becomes of a volume's replicas
//! is [`crate::volume`]'s, and command lines are [`crate::cli`]'s.

pub mod devices;
pub mod find;
pub mod gather;
mod place;
mod ready;
pub mod refusal;
mod report;
mod request;
mod resync;
mod scrub;
pub mod serve;
mod watch;

pub use request::{Documents, MountOptions, Request, Sources, join};

/// Where the host remembers what it has seen of each volume.
pub const WITNESS_DIR: &str = "/var/lib/scelle";
