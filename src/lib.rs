//! scelle: an encrypted, replicated filesystem that writes only to devices a signed registry approves.
//!
//! The modules below are listed from the bottom up; a module uses only those above it in the list
//! (`tests/house.rs` enforces it).

pub mod units;

pub mod limits;

pub mod problem;

pub mod os;

pub mod space;

pub mod crypto;

pub mod registry;

pub mod probe;

pub mod device;

pub mod policy;

pub mod label;

pub mod mirror;

pub mod pages;

pub mod meta;

pub mod fs;

pub mod audit;

pub mod volume;

pub mod fuse;

pub mod control;

pub mod daemon;

pub mod cli;
