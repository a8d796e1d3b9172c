//! Attributes and times, from the filesystem's form to the library's and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::fs::{Attr, Kind, SetTime, Time};
use crate::units::BLOCK_SHIFT;

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
