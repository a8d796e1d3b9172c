//! The readers at work, by the generation in which each began: freed blocks wait for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Active readers by the generation they began in.
#[derive(Default)]
pub(super) struct Readers {
    active: Mutex<BTreeMap<u64, usize>>,
    /// Whether freed runs wait for a reader to end.
    waiting: AtomicBool,
}

impl Readers {
    /// Registers a reader. The generation is read under the lock. So a commit that looks for older readers afterwards
    /// sees this one, or has already published the map that this reader will use.
    pub fn enter(&self, generation: &AtomicU64) -> ReadGuard<'_> {
        let mut active = self.active.lock();
        let began = generation.load(Ordering::Acquire);
        *active.entry(began).or_insert(0) += 1;
        ReadGuard { readers: self, began }
    }

    /// Whether every active reader began in `generation` or later.
    pub fn none_before(&self, generation: u64) -> bool {
        let active = self.active.lock();
        active.first_key_value().is_none_or(|(oldest, _)| *oldest >= generation)
    }

    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    pub fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// A reader. While it lives, blocks that were in use when it was made are not written to.
pub struct ReadGuard<'a> {
    readers: &'a Readers,
    began: u64,
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        let mut active = self.readers.active.lock();
        if let Some(count) = active.get_mut(&self.began) {
            *count -= 1;
            if *count == 0 {
                active.remove(&self.began);
            }
        }
    }
}
