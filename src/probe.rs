//! What a device is and what everything runs on: identity, transport and backing chain of a block device, and the host.
//!
//! [`identity`] holds the facts as plain data. [`chain`] reads them from the kernel through [`sys`], down to the last
//! device on the way. [`live`] has each device confirm what the kernel remembers of it. [`host`] says on what kind of
//! machine all of this runs.
//!
//! Nothing here decides: the [`policy`](crate::policy) does. `tests/policy` holds this module against recorded and
//! made-up trees of sysfs, `scripts/hardware-test` against a running kernel.

mod attributes;
pub mod chain;
pub mod host;
pub mod identity;
pub mod live;
pub mod mounts;
pub mod sys;
mod transport;

pub use identity::{DeviceFacts, Doubt, FactsError, Node};
