//! Real mounts on loop devices: the promises as whoever uses the command sees them.

#![allow(clippy::unwrap_used)]

#[path = "../lab/mod.rs"]
mod lab;

mod crash;
mod lifecycle;
mod posix;
mod refusals;
mod refused;
