//! Has the kernel hold back no more than there is room for, and ask before the last of it is used. What is let through
//! is decided in [`crate::fs::room`].
//!
//! # How much the kernel holds back
//!
//! The kernel bounds the dirty pages of a mount when it is told to (`max_bytes` and `strict_limit` in sysfs, Linux 6.2):
//! a program that writes more waits until the daemon has taken some. With less room than twice what the kernel holds
//! back at most, the bound is a quarter of the room, and it follows the room down in steps of two. So what the kernel holds always fits.
//! While there is more room, nothing is bounded and nothing here costs anything but a look at a number.
//!
//! # How the kernel is made to ask
//!
//! Before each write(2) into its cache the kernel wants size and mode of the file (fs/fuse/file.c,
//! `fuse_cache_write_iter`). When it does not know them, it sends GETATTR with a file handle, and an error in the answer
//! is what write(2) returns. So near the end the kernel is made to forget the attributes of regular files:
//!
//! * All that it knows are called back with a notification, when room becomes short.
//! * An answer to GETATTR is preceded by a notification. The kernel then hands the answer to whoever asked, but does not
//!   keep it, because it is older than the notification.
//! * Other answers are followed by a notification, a few milliseconds later. For the time in between what was let
//!   through by then counts.
//!
//! An attribute's lifetime of zero would do the same, but then reading beyond the end of a file asks too, and cannot be
//! told from writing. A notification leaves the lifetime alone, and with it the size, which is all that reading wants.
//! Files without blocks have no lifetime (`attr`): there the two look the same, and [`crate::fs::room`] knows.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};

use super::tune::bound_dirty;
use crate::fs::room::held_max;
use crate::fs::{self, Fs};
use crate::os::process;
use crate::units::Ino;

/// With this bound on what the kernel holds back, or a smaller one, room is short: less than 32 MiB are left. Once short,
/// it is so until the bound would be four times as large.
const SHORT: u64 = 4 << 20;

/// When the kernel is made to forget an answer, after it was given. The kernel may not have taken it up by the first time.
const FORGET_AFTER: [Duration; 2] = [Duration::from_millis(3), Duration::from_millis(50)];

/// How often the bound is set anew, in milliseconds: the kernel keeps it as a share of its own limit, which moves.
const RENEWED_MS: u64 = 1000;

/// How many of the files written last are made to be forgotten first.
const RECENT: usize = 64;

/// No bound.
const UNBOUND: u64 = u64::MAX;

enum Work {
    /// Set the bound for the room that there is.
    Adapt,
    /// Have the kernel forget attributes that it was given at this time.
    Forget(INodeNo, Instant),
}

/// What the handlers share with the thread.
struct Shared {
    fs: Arc<Fs>,
    notifier: Arc<OnceLock<Notifier>>,
    /// The mount's folder in sysfs; set once it is mounted, unless it is read-only.
    bdi: OnceLock<PathBuf>,
    /// The most that it holds back when it is not told to hold less.
    dirty_max: u64,
    began: Instant,
    /// The most that the kernel may hold back, in bytes.
    held: AtomicU64,
    short: AtomicBool,
    /// Milliseconds since `began` when the bound was last set.
    renewed: AtomicU64,
    adapting: AtomicBool,
    recent: [AtomicU64; RECENT],
    next: AtomicUsize,
}

/// Keeps what the kernel holds back below the room that there is.
pub(super) struct Ration {
    shared: Arc<Shared>,
    queue: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Ration {
    /// Starts the thread. `notifier` is set before the first request comes.
    pub(super) fn start(fs: Arc<Fs>, notifier: Arc<OnceLock<Notifier>>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            fs,
            notifier,
            bdi: OnceLock::new(),
            dirty_max: process::dirty_max_bytes(),
            began: Instant::now(),
            held: AtomicU64::new(UNBOUND),
            short: AtomicBool::new(false),
            renewed: AtomicU64::new(0),
            adapting: AtomicBool::new(false),
            recent: [const { AtomicU64::new(0) }; RECENT],
            next: AtomicUsize::new(0),
        });
        let (queue, waiting) = mpsc::channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("ration".into()).spawn(move || theirs.work(&waiting))?;
        Ok(Self { shared, queue: Some(queue), thread: Some(thread) })
    }

    /// What begins all of this, to be called with the mount's folder in sysfs. Without it nothing is bounded.
    pub(super) fn starter(&self) -> impl FnOnce(PathBuf) + use<> {
        let (shared, queue) = (Arc::clone(&self.shared), self.queue.clone());
        move |bdi| {
            let _ = shared.bdi.set(bdi);
            let _ = queue.map(|queue| queue.send(Work::Adapt));
        }
    }

    /// To be called after anything that may have taken or freed much room; with the file, if it was written.
    pub(super) fn look(&self, written: Option<INodeNo>) {
        let shared = &*self.shared;
        if let Some(number) = written {
            let last = shared.next.load(Ordering::Relaxed);
            if shared.recent[last % RECENT].load(Ordering::Relaxed) != number.0 {
                let next = shared.next.fetch_add(1, Ordering::Relaxed) + 1;
                shared.recent[next % RECENT].store(number.0, Ordering::Relaxed);
            }
        }
        if shared.wants_change() && !shared.adapting.swap(true, Ordering::AcqRel) {
            self.send(Work::Adapt);
        }
    }

    /// Whether room is short, so that the kernel is to ask before each write.
    pub(super) fn is_short(&self) -> bool {
        self.shared.short.load(Ordering::Acquire)
    }

    /// Whether a write to the file may go on, which the kernel asks for.
    pub(super) fn may_write(&self, number: INodeNo) -> fs::Result<()> {
        self.look(None);
        if self.is_short() { self.shared.fs.may_write(Ino(number.0), self.held()) } else { Ok(()) }
    }

    /// Whether there is room for what will be written to a file that is about to be made.
    pub(super) fn may_create(&self) -> bool {
        self.look(None);
        !self.is_short() || self.shared.fs.may_create(self.held())
    }

    /// Has the kernel forget attributes of a regular file that it is being given, if room is short.
    pub(super) fn forget(&self, number: INodeNo) {
        if self.is_short() {
            self.send(Work::Forget(number, Instant::now()));
        }
    }

    /// What the kernel may hold back at this moment; nothing is known where the kernel cannot be bound.
    fn held(&self) -> u64 {
        match self.shared.held.load(Ordering::Acquire) {
            UNBOUND => fs::room::HELD_MIN,
            held => held,
        }
    }

    fn send(&self, work: Work) {
        // Invariant: the thread is there until the last request was served.
        let _ = self.queue.as_ref().map(|queue| queue.send(work));
    }
}

impl Drop for Ration {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The bound for the room that there is now, and whether it differs enough from the one in force.
    fn wanted(&self) -> (u64, bool) {
        let wanted = held_max(self.fs.room(), self.dirty_max).unwrap_or(UNBOUND);
        let held = self.held.load(Ordering::Acquire);
        (wanted, wanted < held || wanted > held.saturating_mul(2))
    }

    /// Milliseconds since the beginning.
    fn age(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn wants_change(&self) -> bool {
        let (wanted, differs) = self.wanted();
        let age = || self.age().saturating_sub(self.renewed.load(Ordering::Relaxed));
        self.bdi.get().is_some() && (differs || wanted != UNBOUND && age() > RENEWED_MS)
    }

    fn work(&self, waiting: &mpsc::Receiver<Work>) {
        let mut forgetting: VecDeque<(INodeNo, Instant)> = VecDeque::new();
        loop {
            let now = Instant::now();
            while forgetting.front().is_some_and(|(_, due)| *due <= now) {
                forgetting.pop_front().into_iter().for_each(|(number, _)| self.forget(number));
            }
            let work = match forgetting.front() {
                None => waiting.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some((_, due)) => waiting.recv_timeout(due.saturating_duration_since(now)),
            };
            match work {
                Ok(Work::Adapt) => self.adapt(),
                Ok(Work::Forget(number, given)) => {
                    for after in FORGET_AFTER {
                        let due = given + after;
                        let at = forgetting.partition_point(|(_, other)| *other <= due);
                        forgetting.insert(at, (number, due));
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn adapt(&self) {
        self.adapting.store(false, Ordering::Release);
        let (wanted, differs) = self.wanted();
        let held = if differs { wanted } else { self.held.load(Ordering::Acquire) };
        if let Some(Err(error)) = self.bdi.get().map(|bdi| bound_dirty(bdi, (held != UNBOUND).then_some(held))) {
            log::debug!("the kernel does not bound what it holds back: {error}");
        }
        self.renewed.store(self.age(), Ordering::Relaxed);
        self.held.store(held, Ordering::Release);
        let short = held <= SHORT;
        if short && !self.short.swap(true, Ordering::AcqRel) {
            log::info!("room is short: the kernel asks before each write");
            self.recent.iter().for_each(|number| self.forget(INodeNo(number.load(Ordering::Relaxed))));
            self.fs.known().into_iter().for_each(|ino| self.forget(INodeNo(ino.0)));
        } else if !short {
            self.short.store(false, Ordering::Release);
        }
    }

    fn forget(&self, number: INodeNo) {
        if number.0 != 0
            && let Some(Err(error)) = self.notifier.get().map(|notifier| notifier.inval_inode(number, -1, 0))
        {
            log::debug!("the kernel kept attributes of inode {}: {error}", number.0);
        }
    }
}
