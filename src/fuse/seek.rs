//! Looking for data and holes in files, part of whose content the kernel may still hold.
//!
//! With the writeback cache the kernel holds data that the daemon has not seen. It asks `lseek(SEEK_DATA)` without
//! handing this data over first (fs/fuse/file.c, `fuse_lseek`). Data that was just written would count as a hole, and
//! `cp` would leave it out.
//!
//! So the file's pages are first called in, with a notification that makes the kernel write them back and forget them.
//! The kernel answers the notification only when the pages have arrived, as writes of their own which other event loops
//! serve. An event loop must not wait for that, so a thread does.
//!
//! Programs ask for files that look sparse; the pages of those are then read once more.

use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

use fuser::{Errno, INodeNo, Notifier, ReplyLseek};

use super::reply::errno;
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
    queue: Option<mpsc::Sender<Question>>,
    thread: Option<JoinHandle<()>>,
}

impl Seeker {
    /// Starts the thread. `notifier` is set before the first request comes.
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
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Replies with the first offset of data or of a hole, from `offset` on.
    pub(super) fn seek(&self, number: INodeNo, offset: u64, seek: Seek, reply: ReplyLseek) {
        let question = Question { number, offset, seek, reply };
        // Invariant: the queue and its thread are there until the last request was served.
        if let Some(Err(mpsc::SendError(question))) = self.queue.as_ref().map(|queue| queue.send(question)) {
            question.reply.error(Errno::EIO);
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
        Ok(found) => question.reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
        Err(error) => question.reply.error(errno(&error)),
    }
}
