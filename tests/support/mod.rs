//! What tests, fuzzers and benchmarks share: a kernel and volumes that are made up, a laboratory of real devices, and dice.
//! Each target includes this file once. The doubles of devices are the crate's own, because its unit tests use them too:
//! `scelle::device::{memory, faulty}`.
#![allow(dead_code, reason = "every target includes all of it, and none needs all of it")]

pub mod court;
pub mod documents;
pub mod images;
pub mod kernel;
// It runs the command, and takes down what a test made: the fuzzers and the benchmarks have neither.
#[cfg(test)]
pub mod lab;
pub mod rng;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for anything.
pub const BOUND: Duration = Duration::from_secs(60);

/// Sets a flag when it goes, also after a panic: the threads that work until then would be waited for without end.
pub struct Ending<'a>(pub &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Waits until `condition` holds, or panics after [`BOUND`].
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < BOUND, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
