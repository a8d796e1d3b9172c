//! Work that one caller may make as long as it likes: copies, truncations, punching, freeing of what was removed. An event
//! loop that does it serves nobody else, so threads of its own do it, in the order in which it was asked for. Whoever asks
//! for much waits for others who do, and nobody else does.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::fs::Fs;

/// How many there are: one such work does not make another wait for it, and processors are left for the event loops.
const THREADS: usize = 2;

/// Most bytes that a request changes or copies in its event loop. A block is at most one extent, so this bounds the
/// extents too.
pub(super) const SHORT_BYTES: u64 = 256 << 10;

type Work = Box<dyn FnOnce(&Fs) + Send>;

/// The threads, and the work that waits for them.
pub(super) struct Long {
    queue: Option<mpsc::Sender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

impl Long {
    /// Starts the threads.
    pub(super) fn start(fs: &Arc<Fs>) -> std::io::Result<Self> {
        let (queue, waiting) = mpsc::channel::<Work>();
        let waiting = Arc::new(Mutex::new(waiting));
        let mut threads = Vec::with_capacity(THREADS);
        for _ in 0..THREADS {
            let (fs, waiting) = (Arc::clone(fs), Arc::clone(&waiting));
            let serve = move || {
                loop {
                    let next = waiting.lock().recv();
                    let Ok(work) = next else { return };
                    work(&fs);
                }
            };
            threads.push(std::thread::Builder::new().name("long".into()).spawn(serve)?);
        }
        Ok(Self { queue: Some(queue), threads })
    }

    /// Has `work` done here when it is `short`, else by a thread.
    pub(super) fn run(&self, fs: &Fs, short: bool, work: impl FnOnce(&Fs) + Send + 'static) {
        let Some(queue) = self.queue.as_ref().filter(|_| !short) else { return work(fs) };
        // The threads end after the queue does, so it takes everything; but work must not be lost.
        if let Err(mpsc::SendError(work)) = queue.send(Box::new(work)) {
            work(fs);
        }
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
