//! The virtual attribute that says where a file is. What it says is the [`Locator`]'s, above this module.
//!
//! The attribute is answered when it is asked for by name, and never listed. So programs that copy the attributes of a
//! tree (rsync, tar, cp) neither take it along nor stumble when they cannot set it. The kernel asks only for regular
//! files and folders, on behalf of callers who may read them (xattr(7), "Extended user attributes").
//!
//! An answer may wait for a commit and look at many extents, and anybody may ask for any number of answers. So one
//! thread gives them all, and the event loops stay free.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use fuser::ReplyXattr;

use super::reply::sized;
use crate::fs;
use crate::units::Ino;

/// Name of the attribute.
pub const PLACE_XATTR: &str = "user.scelle.place";

/// Knows where files are. It is above the adapter, which knows neither replicas nor the registry.
pub trait Locator: Send + Sync {
    /// The attribute's value for an inode.
    ///
    /// # Errors
    /// What the kernel is to be told instead.
    fn place(&self, ino: Ino) -> fs::Result<Vec<u8>>;
}

/// A question that waits for its answer.
struct Question {
    ino: Ino,
    size: u32,
    reply: ReplyXattr,
}

/// Answers the attribute.
pub(super) struct Placer {
    queue: Option<mpsc::Sender<Question>>,
    thread: Option<JoinHandle<()>>,
}

impl Placer {
    pub(super) fn start(locator: Arc<dyn Locator>) -> std::io::Result<Self> {
        let (queue, waiting) = mpsc::channel::<Question>();
        let serve = move || {
            for Question { ino, size, reply } in waiting {
                sized(locator.place(ino), size, reply);
            }
        };
        let thread = std::thread::Builder::new().name("place".into()).spawn(serve)?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Whether `name` asks for the attribute.
    pub(super) fn answers(name: &[u8]) -> bool {
        name == PLACE_XATTR.as_bytes()
    }

    /// Replies as getxattr(2) does for `size` bytes of room.
    pub(super) fn ask(&self, ino: Ino, size: u32, reply: ReplyXattr) {
        // A reply that is dropped unanswered is answered with EIO. The thread ends after the queue, so that does not
        // happen.
        if let Some(queue) = &self.queue {
            let _ = queue.send(Question { ino, size, reply });
        }
    }
}

impl Drop for Placer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_reserved() {
        assert!(PLACE_XATTR.as_bytes().starts_with(fs::RESERVED_XATTRS));
        assert!(Placer::answers(b"user.scelle.place") && !Placer::answers(b"user.scelle.places"));
    }
}
