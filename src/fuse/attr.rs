//! Attributes and times, from the filesystem's form to the library's and back; and how long the kernel may believe them.
//!
//! # Blocks of a file that is being written
//!
//! The kernel keeps size and times of a written file itself, and knows which pages are still to be handed over. The
//! number of blocks it has from the last answer. A program that is told 0 blocks takes the whole file for a hole, and
//! does not look: GNU tar with `--sparse` stores zeros. With at least one block it asks where the data is, and is
//! answered rightly ([`recall`](super::recall)). So while the kernel may hold data of a file, no answer says 0 blocks:
//!
//! * A file that has no blocks may get some without a word to the daemon, with a write(2) into the cache or through a
//!   mapping. What is said of it holds for that moment alone ([`lifetime`]), and is said after its pages were called in.
//! * A file that is about to be written gets one block as a loan ([`Loans`]). That is so when it was just made or emptied by
//!   open(2), and when the kernel asks for its attributes with a file handle, as it does before a write(2). So writing
//!   a new file costs no question. The kernel asks for the true number after every close(2).
//! * After an fsync(2) of such a file the kernel is told to ask again.
//!
//! The number may be too small while a file with blocks is held open and grows, and is true after it was closed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, ReplyAttr, TimeOrNow};

use super::reply::errno;
use crate::fs::{self, Attr, Kind, SetTime, Time};
use crate::units::{BLOCK_SHIFT, BLOCK_SIZE, Ino, to_usize};

/// How long the kernel may believe an answer. Nobody else changes the volume, so: long.
pub(super) const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// How many files with a block on loan are remembered for their next fsync(2). One that is forgotten shows one block
/// until it is closed.
const LOANS: usize = 1024;

/// Whether the file has no blocks, so that the kernel may hold all that it has.
pub(super) fn is_hollow(attr: &Attr) -> bool {
    attr.kind == Kind::File && attr.blocks == 0
}

/// How long the kernel may believe these attributes.
pub(super) fn lifetime(attr: &Attr) -> Duration {
    if is_hollow(attr) { Duration::ZERO } else { LIFETIME }
}

/// Replies with attributes as they are.
pub(super) fn reply_attributes(result: fs::Result<Attr>, reply: ReplyAttr) {
    match result {
        Ok(attr) => reply.attr(&lifetime(&attr), &file_attr(&attr)),
        Err(error) => reply.error(errno(&error)),
    }
}

/// The files that the kernel believes to have one block, because they are about to get some.
pub(super) struct Loans(Box<[AtomicU64]>);

impl Default for Loans {
    fn default() -> Self {
        Self((0..LOANS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Loans {
    /// Lends the file a block, if it has none.
    pub(super) fn lend(&self, attr: Attr) -> Attr {
        if !is_hollow(&attr) {
            return attr;
        }
        self.slot(attr.ino.0).store(attr.ino.0, Ordering::Relaxed);
        Attr { blocks: BLOCK_SIZE as u64 / 512, ..attr }
    }

    /// Whether the file was lent a block; from now on it was not.
    pub(super) fn end(&self, number: INodeNo) -> bool {
        let slot = self.slot(number.0);
        slot.load(Ordering::Relaxed) == number.0
            && slot.compare_exchange(number.0, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn slot(&self, number: u64) -> &AtomicU64 {
        &self.0[to_usize(number) % LOANS]
    }
}

/// What the library wants to know of a file.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system(attr.atime),
        mtime: to_system(attr.mtime),
        ctime: to_system(attr.ctime),
        crtime: to_system(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 1 << BLOCK_SHIFT,
        flags: 0,
    }
}

/// Stands for attributes that cannot be read: for no time, so that whoever wants them asks, and gets the error. With inode
/// number 0 the C library would leave the name out.
pub(super) fn unknown(ino: Ino, kind: Kind) -> FileAttr {
    FileAttr { ino: INodeNo(ino.0), kind: file_type(kind), nlink: 1, ..absent() }
}

/// The answer to "no such name" that the kernel may remember: inode number 0.
pub(super) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Fifo => FileType::NamedPipe,
        Kind::CharDevice => FileType::CharDevice,
        Kind::Directory => FileType::Directory,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Socket => FileType::Socket,
    }
}

fn to_system(time: Time) -> SystemTime {
    let fraction = Duration::from_nanos(u64::from(time.ns));
    let whole = Duration::from_secs(time.s.unsigned_abs());
    let system = if time.s < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    system.and_then(|system| system.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

/// The time that the kernel sent. For times before 1970 fuser 0.18 takes the fraction for negative too (its `time.rs`),
/// so that -2 s + 0.8 s arrives as 2.8 s before the epoch. The two parts can be recovered exactly.
pub(super) fn from_system(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { s: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), ns: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let s = 0i64.checked_sub_unsigned(before.as_secs()).unwrap_or(i64::MIN);
            Time { s, ns: before.subsec_nanos() }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(from_system(time)),
        TimeOrNow::Now => SetTime::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Ino;

    #[test]
    fn a_file_without_blocks_is_lent_one_and_believed_for_no_time() {
        let time = Time { s: 0, ns: 0 };
        let (ino, kind) = (Ino(7), Kind::File);
        let file = Attr {
            ino,
            kind,
            mode: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        };
        let loans = Loans::default();
        assert_eq!((lifetime(&file), loans.end(INodeNo(7))), (Duration::ZERO, false));
        let lent = loans.lend(file);
        assert_eq!((lent.blocks, lifetime(&lent)), (8, LIFETIME));
        assert_eq!([loans.end(INodeNo(7)), loans.end(INodeNo(7))], [true, false]);
        for others in [Attr { kind: Kind::Symlink, ..file }, Attr { blocks: 16, ..file }] {
            assert_eq!((loans.lend(others), lifetime(&others)), (others, LIFETIME));
        }
        assert!(!loans.end(INodeNo(7)));
    }

    #[test]
    fn times_before_the_epoch_keep_their_fraction() {
        // What fuser makes of (-2 s, 800,000,000 ns).
        assert_eq!(from_system(UNIX_EPOCH - Duration::new(2, 800_000_000)), Time { s: -2, ns: 800_000_000 });
        // And what it is to be given for it: 1.2 s before the epoch.
        assert_eq!(to_system(Time { s: -2, ns: 800_000_000 }), UNIX_EPOCH - Duration::new(1, 200_000_000));
    }

    #[test]
    fn no_time_is_too_far() {
        for s in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX] {
            let _ = to_system(Time { s, ns: 999_999_999 });
        }
        assert_eq!(from_system(to_system(Time { s: i64::MAX, ns: 5 })), Time { s: i64::MAX, ns: 5 });
    }
}
