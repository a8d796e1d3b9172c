//! Calls of the host's filesystems that may hang: a disk that does not answer holds whoever asks it in the kernel, where
//! no signal reaches him.

use std::io::{self, Error, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Makes calls on a thread of their own, and waits for each with a bound.
///
/// While a call that was late has not come back, no other is made: what hangs takes one thread, and its caller's patience
/// once.
#[derive(Clone, Debug)]
pub struct Patience {
    bound: Duration,
    away: Arc<AtomicBool>,
}

impl Patience {
    /// Waits so long, and no longer.
    pub fn new(bound: Duration) -> Self {
        Self { bound, away: Arc::default() }
    }

    /// The outcome of `call`. A call that is late goes on by itself, and what it returns is dropped.
    ///
    /// # Errors
    /// Those of the call; [`ErrorKind::TimedOut`] when it is late, or an earlier one still is; that no thread can be
    /// started.
    pub fn call<T: Send + 'static>(&self, call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        if self.away.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::TimedOut, "an earlier call has not been answered yet"));
        }
        let (done, outcome) = mpsc::sync_channel(1);
        let away = self.away.clone();
        let run = move || {
            let result = call();
            away.store(false, Ordering::Release);
            // Nobody listens any more when this is too late.
            drop(done.send(result));
        };
        self.away.store(true, Ordering::Release);
        let started = std::thread::Builder::new().name("patience".to_owned()).spawn(run);
        if let Err(error) = started {
            self.away.store(false, Ordering::Release);
            return Err(error);
        }
        let late = |_| Error::new(ErrorKind::TimedOut, format!("no answer for {} s", self.bound.as_secs()));
        outcome.recv_timeout(self.bound).map_err(late)?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_call_that_hangs_costs_its_patience_once() {
        let patience = Patience::new(Duration::from_millis(200));
        assert_eq!(patience.call(|| Ok(7)).unwrap(), 7);
        assert_eq!(
            patience.call(|| Err::<(), _>(Error::from(ErrorKind::NotFound))).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        let (release, hang) = mpsc::channel::<()>();
        let hangs = move || {
            let _ = hang.recv();
            Ok(())
        };
        assert_eq!(patience.call(hangs).unwrap_err().kind(), ErrorKind::TimedOut);
        let begin = std::time::Instant::now();
        for _ in 0..50 {
            assert_eq!(patience.clone().call(|| Ok(())).unwrap_err().kind(), ErrorKind::TimedOut);
        }
        assert!(begin.elapsed() < Duration::from_millis(200), "{:?}", begin.elapsed());
        release.send(()).unwrap();
        while patience.call(|| Ok(())).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it never came back");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
