//! Real mounts on loop devices: the promises as whoever uses the command sees them.

#![allow(clippy::unwrap_used)]

#[path = "../lab/mod.rs"]
mod lab;
// The model's dice, not all of which are thrown here.
#[allow(dead_code)]
#[path = "../model/rng.rs"]
mod rng;

mod audit;
mod crash;
mod helper;
mod lifecycle;
mod place;
mod posix;
mod refusals;
mod refused;
mod semantics;
mod silent;
mod swap;
mod trust;
