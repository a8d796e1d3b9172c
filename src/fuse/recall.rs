//! Answers that need what the kernel holds of a file: where its data and holes are, and whether it has any data.
//!
//! With the writeback cache the kernel holds data that the daemon has not seen. It asks `lseek(SEEK_DATA)` without
//! handing this data over first (fs/fuse/file.c, `fuse_lseek`), and the number of blocks too. Data that was just
//! written would count as a hole: `cp` and `tar --sparse` would leave it out.
//!
//! So the file's pages are first called in, with a notification that makes the kernel write them back and forget them.
//! The kernel answers the notification only when the pages have arrived, as writes of their own which other event loops
//! serve. An event loop must not wait for that, so a thread does.
//!
//! Programs ask for files that look sparse; the pages of those are then read once more.

use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

use fuser::{Errno, INodeNo, Notifier, ReplyAttr, ReplyLseek};

use super::attr::reply_attributes;
use super::reply::errno;
use crate::fs::{Fs, Seek};
use crate::units::Ino;

/// A question that waits for the pages of its file.
enum Question {
    Seek { offset: u64, seek: Seek, reply: ReplyLseek },
    Attributes { reply: ReplyAttr },
}

/// Calls pages in, and answers then.
pub(super) struct Recall {
    queue: Option<mpsc::Sender<(INodeNo, Question)>>,
    thread: Option<JoinHandle<()>>,
}

impl Recall {
    /// Starts the thread. `notifier` is set before the first request comes.
    pub(super) fn start(fs: Arc<Fs>, notifier: Arc<OnceLock<Notifier>>) -> std::io::Result<Self> {
        let (queue, waiting) = mpsc::channel::<(INodeNo, Question)>();
        let serve = move || {
            for (number, question) in waiting {
                if let Some(Err(error)) = notifier.get().map(|notifier| notifier.inval_inode(number, 0, 0)) {
                    log::warn!("the kernel kept written pages of inode {}: {error}", number.0);
                }
                answer(&fs, Ino(number.0), question);
            }
        };
        let thread = std::thread::Builder::new().name("recall".into()).spawn(serve)?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Replies with the first offset of data or of a hole, from `offset` on.
    pub(super) fn seek(&self, number: INodeNo, offset: u64, seek: Seek, reply: ReplyLseek) {
        self.ask(number, Question::Seek { offset, seek, reply });
    }

    /// Replies with the file's attributes.
    pub(super) fn attributes(&self, number: INodeNo, reply: ReplyAttr) {
        self.ask(number, Question::Attributes { reply });
    }

    fn ask(&self, number: INodeNo, question: Question) {
        // Invariant: the queue and its thread are there until the last request was served.
        if let Some(Err(mpsc::SendError((_, question)))) =
            self.queue.as_ref().map(|queue| queue.send((number, question)))
        {
            match question {
                Question::Seek { reply, .. } => reply.error(Errno::EIO),
                Question::Attributes { reply } => reply.error(Errno::EIO),
            }
        }
    }
}

impl Drop for Recall {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(fs: &Fs, ino: Ino, question: Question) {
    match question {
        Question::Seek { offset, seek, reply } => match fs.seek(ino, offset, seek) {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(error) => reply.error(errno(&error)),
        },
        Question::Attributes { reply } => reply_attributes(fs.getattr(ino), reply),
    }
}
