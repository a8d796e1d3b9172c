//! Signals that ask us to stop: the driver notices them wherever it waits, and cleans up as after any failure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Result};

/// Longest time until a signal is noticed by whoever waits.
pub const TICK: Duration = Duration::from_millis(250);

/// Whether a signal has come.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Remembers that a signal has come.
extern "C" fn remember(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Has the signals that end a program remembered instead, so that no folder and no machine stays behind.
pub fn listen() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does nothing but store into an atomic, which a signal handler may do at any point.
        unsafe { libc::signal(signal, remember as *const () as libc::sighandler_t) };
    }
}

/// Fails once a signal has come.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
}

/// Sleeps for a moment within a wait that ends at `until`; false when that time is over.
pub fn pause(until: Instant) -> Result<bool> {
    check()?;
    let left = until.saturating_duration_since(Instant::now());
    thread::sleep(left.min(Duration::from_millis(50)));
    Ok(!left.is_zero())
}
