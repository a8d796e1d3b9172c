//! Whether there is room for what a program is about to write.
//!
//! With the kernel's writeback cache a write(2) is over when the kernel has the data; the daemon hears of it later. A
//! volume that is full would be noticed on `fsync` or `close`, or never. So before the last room is used up the kernel
//! asks ahead, which the adapter above has it do, and this file decides. A quota would be decided here too.
//!
//! # What is promised
//!
//! The kernel holds back at most [`held_max`] bytes for all files of the volume: a quarter of the room that is left, and
//! at least [`HELD_MIN`]. A write is let through when there is room for these and for one write of [`WRITE_MAX`] more.
//! So a write(2) of at most [`WRITE_MAX`] finds its room, or fails with `ENOSPC` itself. At most 3 MiB are left over.
//! Direct writes and copies in the kernel reach the daemon at once, and get the last block too.
//!
//! What may still be told on `fsync`, `msync` or `close`:
//!
//! * the rest of a longer write(2), which the kernel asks for once;
//! * what was written through a mapping, as the kernel asks nothing before that;
//! * writes to a file which nobody had written for long, within the moment that it takes to have the kernel ask;
//! * anything, on a kernel that cannot bound what it holds back (before Linux 6.2).
//!
//! # On a full volume
//!
//! Freed room counts when the commit that freed it is durable. Whoever finds no room has that commit made, and waits
//! while the room of a removed file is being freed.
//!
//! Overwriting in place needs fresh blocks too, for the time until the old ones are free. Half of what is kept back for
//! metadata serves for that ([`Account::InPlace`]); data that was let through and grows a file has only the first half of
//! it ([`Account::Accepted`]), so that it leaves room for overwriting. The kernel does not say whether a write overwrites. So a file whose
//! blocks are all there is let through until it has grown by that; then it is refused, unless it is made shorter. So is a
//! file of which accepted data has failed, and one that was made on the full volume. Other files without blocks are let
//! through likewise: reading beyond their end looks the same ([`Fs::may_write`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{Error, Fs, Result, data::BLOCK};
use crate::limits::REQUEST_BYTES_MAX;
use crate::pages::Account;
use crate::units::Ino;

/// The longest write that is sure to find its room once it was let through.
pub const WRITE_MAX: u64 = REQUEST_BYTES_MAX as u64;

/// The least that the kernel is allowed to hold back, in bytes.
pub const HELD_MIN: u64 = 1 << 20;

/// How many files are remembered that take no more on a full volume.
const REFUSED_MAX: usize = 4096;

/// How much the kernel may hold back of a volume with so much room: a power of two. Nothing while there is twice as much
/// room as `dirty_max`, which is what it holds back for all filesystems together.
pub fn held_max(room: u64, dirty_max: u64) -> Option<u64> {
    (room / 2 < dirty_max).then(|| (room / 4).max(HELD_MIN)).map(|held| 1 << held.ilog2())
}

/// What is known of a file on a full volume.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// It was let through although there was no room, and may have been about to overwrite or to be read.
    Doubtful,
    /// It takes no more.
    Refused,
}

/// The files of which something is known, until there is room again.
#[derive(Default)]
pub(super) struct Refused {
    any: AtomicBool,
    files: Mutex<HashMap<Ino, Mark>>,
}

impl Refused {
    fn mark(&self, ino: Ino, mark: Mark) {
        let mut files = self.files.lock();
        if files.len() < REFUSED_MAX {
            files.insert(ino, mark);
        }
        self.any.store(true, Ordering::Release);
    }

    /// The file has got blocks.
    pub fn grown(&self, ino: Ino) {
        if self.any.load(Ordering::Acquire)
            && let Some(mark) = self.files.lock().get_mut(&ino)
        {
            *mark = Mark::Refused;
        }
    }

    /// The file was made shorter, or removed.
    pub fn shortened(&self, ino: Ino) {
        if self.any.load(Ordering::Acquire) {
            self.files.lock().remove(&ino);
        }
    }

    /// There is room again.
    fn clear(&self) {
        if self.any.swap(false, Ordering::AcqRel) {
            self.files.lock().clear();
        }
    }

    /// Whether the file takes no more. With too many to remember, none does.
    fn has(&self, ino: Ino) -> bool {
        self.any.load(Ordering::Acquire) && {
            let files = self.files.lock();
            files.get(&ino) == Some(&Mark::Refused) || files.len() >= REFUSED_MAX
        }
    }
}

impl Fs {
    /// Bytes that users may still take.
    pub fn room(&self) -> u64 {
        self.available() * BLOCK
    }

    /// Whether a write to the file, which the kernel is about to take into its cache, finds room beside the `held` bytes
    /// that it may hold back. The kernel sends the same question before it reads beyond the end of a file without blocks.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when there is no room; [`Error::Stale`]; of the store and of the metadata.
    pub fn may_write(&self, ino: Ino, held: u64) -> Result<()> {
        let needed = (held + WRITE_MAX) / BLOCK;
        if self.available() >= needed {
            self.refused.clear();
            return Ok(());
        }
        let inode = self.existing(ino)?;
        let refused = self.refused.has(ino);
        let is_whole = inode.blocks > 0 && inode.blocks * BLOCK >= inode.size;
        if is_whole && !refused && self.store.room_for_data(Account::InPlace) >= needed {
            self.refused.mark(ino, Mark::Doubtful);
            return Ok(());
        }
        let passes = match self.with_space(needed, || Ok(())) {
            Ok(()) => {
                self.refused.clear();
                return Ok(());
            }
            // Perhaps it is only read.
            Err(_) if inode.blocks == 0 && !refused => true,
            Err(error) if !error.is_no_space() => return Err(error),
            Err(_) => is_whole && !refused && self.with_space_of(Account::InPlace, needed, || Ok(())).is_ok(),
        };
        if !passes {
            return Err(Error::NoSpace);
        }
        self.refused.mark(ino, Mark::Doubtful);
        Ok(())
    }

    /// Whether a new file would find room for its first write, beside the `held` bytes that the kernel may hold back. If
    /// not, the file can be made all the same, as on other filesystems, and takes nothing until there is room.
    pub fn may_create(&self, held: u64) -> bool {
        self.with_space((held + WRITE_MAX) / BLOCK, || Ok(())).is_ok()
    }

    /// From now on the file takes no more, until there is room again.
    pub fn refuse(&self, ino: Ino) {
        self.refused.mark(ino, Mark::Refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grew_on_a_full_volume_takes_no_more_until_it_is_shorter() {
        let refused = Refused::default();
        let (one, other) = (Ino(7), Ino(8));
        refused.grown(one);
        assert!(!refused.has(one));
        refused.mark(one, Mark::Doubtful);
        refused.grown(other);
        assert!(!refused.has(one) && !refused.has(other));
        refused.grown(one);
        assert!(refused.has(one) && !refused.has(other));
        refused.shortened(one);
        assert!(!refused.has(one));
        refused.mark(one, Mark::Refused);
        refused.clear();
        assert!(!refused.has(one));
        (0..REFUSED_MAX as u64).for_each(|number| refused.mark(Ino(number), Mark::Doubtful));
        assert!(refused.has(other));
    }

    #[test]
    fn the_kernel_holds_back_a_quarter_of_the_room_at_most() {
        const MIB: u64 = 1 << 20;
        let dirty_max = 512 * MIB;
        assert_eq!(held_max(2 * dirty_max, dirty_max), None);
        for (room, held) in
            [(2 * dirty_max - 1, 128), (300, 64), (256, 64), (255, 32), (8, 2), (7, 1), (4, 1), (1, 1), (0, 1)]
        {
            let room = if room < MIB { room * MIB } else { room };
            assert_eq!(held_max(room, dirty_max), Some(held * MIB), "{room}");
        }
    }
}
