//! Answers `fsync` without starving the event loops: a commit waits for the devices, and an event loop that waits
//! serves nobody. What is committed for whom is [`Fs::sync`]'s.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use fuser::{Errno, ReplyEmpty};

use crate::fs::Fs;

/// Decides where an `fsync` waits. While another event loop is free, it waits in its event loop. Else it waits on a
/// thread of its own, which answers all that have gathered with one commit.
pub(super) struct Syncer {
    inline: AtomicUsize,
    inline_max: usize,
    queue: Option<mpsc::Sender<ReplyEmpty>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the thread, for `loops` event loops.
    pub(super) fn start(fs: Arc<Fs>, loops: usize) -> std::io::Result<Self> {
        let (queue, waiting) = mpsc::channel();
        let thread = std::thread::Builder::new().name("fsync".into()).spawn(move || answer(&fs, &waiting))?;
        Ok(Self {
            inline: AtomicUsize::new(0),
            inline_max: loops.saturating_sub(1),
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Replies once everything that has reached the daemon is durable.
    pub(super) fn sync(&self, fs: &Fs, reply: ReplyEmpty) {
        if self.inline.fetch_add(1, Ordering::Relaxed) < self.inline_max {
            finish(reply, outcome(fs));
        } else if let Some(Err(mpsc::SendError(reply))) = self.queue.as_ref().map(|queue| queue.send(reply)) {
            finish(reply, outcome(fs));
        }
        self.inline.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(fs: &Fs, waiting: &mpsc::Receiver<ReplyEmpty>) {
    while let Ok(first) = waiting.recv() {
        // Every caller that asked before the commit begins is served by it.
        let batch: Vec<ReplyEmpty> = std::iter::once(first).chain(waiting.try_iter()).collect();
        let result = outcome(fs);
        batch.into_iter().for_each(|reply| finish(reply, result));
    }
}

fn outcome(fs: &Fs) -> Result<(), Errno> {
    fs.meters().fsync.time(0, || fs.sync()).map_err(|error| super::reply::errno(&error))
}

fn finish(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
