//! Looking for data and holes in files that somebody has open for writing.
//!
//! With the writeback cache the kernel holds data that the daemon has not seen, and asks `lseek(SEEK_DATA)` without handing
//! it over first (fs/fuse/file.c, `fuse_lseek`): what was just written would count as a hole, and `cp` would leave it out.
//! So such a file's pages are first called in, with a notification that makes the kernel write them back and forget
//! them. The kernel answers the notification when the pages have arrived as writes of their own, which other event loops
//! serve: an event loop must not wait for that, so a thread does.
//!
//! A file that nobody has open for writing has no such pages: the kernel hands them over before it releases the last
//! descriptor or mapping.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;

use fuser::{INodeNo, Notifier, OpenFlags, ReplyLseek};

use super::handlers::errno;
use crate::fs::{Fs, Seek};
use crate::units::Ino;

/// A question that waits for the pages of its file.
struct Question {
    number: INodeNo,
    offset: u64,
    seek: Seek,
    reply: ReplyLseek,
}

/// Answers `SEEK_DATA` and `SEEK_HOLE`.
pub(super) struct Seeker {
    writers: Writers,
    queue: Option<mpsc::Sender<Question>>,
    thread: Option<JoinHandle<()>>,
}

impl Seeker {
    /// `notifier` is there when the first request is.
    pub(super) fn start(fs: Arc<Fs>, notifier: Arc<OnceLock<Notifier>>) -> std::io::Result<Self> {
        let (queue, waiting) = mpsc::channel::<Question>();
        let serve = move || {
            for question in waiting {
                if let Some(Err(error)) = notifier.get().map(|notifier| notifier.inval_inode(question.number, 0, 0)) {
                    log::warn!("the kernel kept written pages of inode {}: {error}", question.number.0);
                }
                answer(&fs, question);
            }
        };
        let thread = std::thread::Builder::new().name("seek".into()).spawn(serve)?;
        Ok(Self { writers: Writers::default(), queue: Some(queue), thread: Some(thread) })
    }

    /// Counts an open.
    pub(super) fn opened(&self, number: INodeNo, flags: OpenFlags) {
        self.writers.opened(number, flags.0);
    }

    /// Takes back an open with the same flags.
    pub(super) fn released(&self, number: INodeNo, flags: OpenFlags) {
        self.writers.released(number, flags.0);
    }

    /// Replies with the first offset of data or of a hole, from `offset` on.
    pub(super) fn seek(&self, fs: &Fs, number: INodeNo, offset: u64, seek: Seek, reply: ReplyLseek) {
        let question = Question { number, offset, seek, reply };
        match &self.queue {
            Some(queue) if self.writers.any(number) => {
                if let Err(mpsc::SendError(question)) = queue.send(question) {
                    answer(fs, question);
                }
            }
            _ => answer(fs, question),
        }
    }
}

impl Drop for Seeker {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(fs: &Fs, question: Question) {
    match fs.seek(Ino(question.number.0), question.offset, question.seek) {
        Ok(found) => question.reply.offset(found as i64),
        Err(error) => question.reply.error(errno(&error)),
    }
}

/// How often each inode is open for writing.
#[derive(Default)]
struct Writers(Mutex<HashMap<u64, u64>>);

impl Writers {
    fn counts(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self, number: INodeNo, flags: i32) {
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            *self.counts().entry(number.0).or_default() += 1;
        }
    }

    fn released(&self, number: INodeNo, flags: i32) {
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            let mut counts = self.counts();
            match counts.get_mut(&number.0) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(counts.remove(&number.0)),
            }
        }
    }

    fn any(&self, number: INodeNo) -> bool {
        self.counts().contains_key(&number.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_seek_knows_who_may_hold_unseen_data() {
        let (writers, a, b) = (Writers::default(), INodeNo(5), INodeNo(6));
        writers.opened(a, libc::O_RDONLY | libc::O_NOFOLLOW);
        assert!(!writers.any(a));
        writers.opened(a, libc::O_RDWR);
        writers.opened(a, libc::O_WRONLY | libc::O_APPEND);
        assert!(writers.any(a) && !writers.any(b));
        writers.released(a, libc::O_RDONLY);
        writers.released(a, libc::O_RDWR);
        assert!(writers.any(a));
        writers.released(a, libc::O_WRONLY | libc::O_APPEND);
        assert!(!writers.any(a));
        writers.released(a, libc::O_WRONLY);
        assert!(writers.counts().is_empty());
    }
}
