//! Keeps processors from sleeping between two requests of a burst.
//!
//! A request is two wake-ups, the daemon's and the application's. A processor that has gone to sleep in between takes
//! longer to wake than the request takes to serve.
//!
//! While requests come, the kernel is told that no latency is tolerated (`/dev/cpu_dma_latency`,
//! Documentation/power/pm_qos_interface.rst). [`IDLE`] after the last request this is taken back. The cost is the power
//! of awake processors for that time; the mount option `powersave` does without.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

const DEVICE: &str = "/dev/cpu_dma_latency";

/// How long no request must come before processors may sleep.
const IDLE: Duration = Duration::from_millis(10);

/// The hold on the processors.
pub(super) struct Awake {
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

#[derive(Default)]
struct Shared {
    requests: AtomicU64,
    held: AtomicBool,
    ending: AtomicBool,
}

impl Awake {
    /// Starts the thread that keeps processors awake, unless `powersave` asks for none or the kernel offers no such
    /// device.
    pub fn start(powersave: bool) -> Self {
        let shared = Arc::new(Shared::default());
        if powersave || hold().is_none() {
            return Self { shared, thread: None };
        }
        let theirs = Arc::clone(&shared);
        let spawned = std::thread::Builder::new().name("awake".into()).spawn(move || theirs.run());
        Self { shared, thread: spawned.ok().map(|handle| handle.thread().clone()) }
    }

    /// To be called when a request has come.
    pub fn touch(&self) {
        let Some(thread) = &self.thread else { return };
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        if !self.shared.held.load(Ordering::Relaxed) && !self.shared.held.swap(true, Ordering::AcqRel) {
            thread.unpark();
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

impl Shared {
    fn run(&self) {
        while !self.ending.load(Ordering::Acquire) {
            if !self.held.load(Ordering::Acquire) {
                std::thread::park();
                continue;
            }
            let hold = hold();
            let mut seen = self.requests.load(Ordering::Relaxed);
            while !self.ending.load(Ordering::Acquire) {
                std::thread::sleep(IDLE);
                let now = self.requests.load(Ordering::Relaxed);
                if now == seen {
                    break;
                }
                seen = now;
            }
            drop(hold);
            self.held.store(false, Ordering::Release);
        }
    }
}

/// Asks the kernel for no latency. The kernel grants this as long as the file is open.
fn hold() -> Option<File> {
    let mut file = File::options().write(true).open(DEVICE).ok()?;
    file.write_all(&0i32.to_ne_bytes()).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_go_when_no_request_comes() {
        let awake = Awake::start(false);
        awake.touch();
        let Some(_) = &awake.thread else { return };
        assert!(awake.shared.held.load(Ordering::Relaxed));
        for _ in 0..200 {
            std::thread::sleep(IDLE);
            if !awake.shared.held.load(Ordering::Relaxed) {
                return;
            }
        }
        panic!("still held after two seconds");
    }
}
