//! Real mounts on loop devices: the promises as whoever uses the command sees them.

#![allow(clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "bytes and places are made from small numbers")]

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod contents;
mod crash;
mod damage;
mod destroy;
mod diverged;
mod full;
mod helper;
mod inputs;
mod keyless;
mod lifecycle;
mod place;
mod posix;
mod power;
mod refusals;
mod refused;
mod replicas;
mod scrub;
mod secrets;
mod semantics;
mod shelf;
mod silent;
mod strangers;
mod swap;
mod taken;
mod trust;
mod unflushed;

use support::lab;
