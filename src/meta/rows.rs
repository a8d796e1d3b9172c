//! Typed rows, checked when they are read. The database is authenticated, but that says nothing against a bug of an
//! earlier version.

use rusqlite::{Row, types::ValueRef};

use super::{Error, Result};
use crate::{
    limits::{FILE_SIZE_MAX, NAME_MAX},
    units::{BLOCK_SHIFT, BlockAddr, Ino, Run, Tag, WriteId, to_usize},
};

/// Blocks that the largest file has.
pub const FILE_BLOCKS_MAX: u64 = FILE_SIZE_MAX.div_ceil(1 << BLOCK_SHIFT);

/// A point in time: seconds since 1970 (may be negative) and nanoseconds below 10⁹.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds since the epoch, rounded down.
    pub s: i64,
    /// Nanoseconds above `s`, below 10⁹.
    pub ns: u32,
}

/// What an inode is: the file type bits of `st_mode` (inode(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Named pipe.
    Fifo,
    /// Character device.
    CharDevice,
    /// Folder.
    Directory,
    /// Block device.
    BlockDevice,
    /// Regular file.
    File,
    /// Symbolic link.
    Symlink,
    /// Unix socket.
    Socket,
}

/// Mask of the file type in `st_mode`.
pub const S_IFMT: u32 = 0o170_000;

impl Kind {
    /// The kind that the type bits of `mode` name, if they name one.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & S_IFMT {
            0o010_000 => Self::Fifo,
            0o020_000 => Self::CharDevice,
            0o040_000 => Self::Directory,
            0o060_000 => Self::BlockDevice,
            0o100_000 => Self::File,
            0o120_000 => Self::Symlink,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }

    /// The type bits of `st_mode`.
    pub const fn mode(self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::File => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }
}

/// The inode has extended attributes (ACLs included).
pub const FLAG_XATTR: u32 = 1 << 0;
/// One of them is `system.posix_acl_access`.
pub const FLAG_ACL_ACCESS: u32 = 1 << 1;
/// One of them is `system.posix_acl_default`.
pub const FLAG_ACL_DEFAULT: u32 = 1 << 2;
/// The file may have reserved extents.
pub const FLAG_RESERVED: u32 = 1 << 3;
/// The block that holds the end of the file may have old bytes after it, which must be zeroed before the file grows.
pub const FLAG_TAIL: u32 = 1 << 4;
/// The file has a row in `trim`: old blocks after its end must be freed before it grows.
pub const FLAG_TRIM: u32 = 1 << 5;

const FLAGS: u32 = (1 << 6) - 1;

/// A row of `inode`, without a symbolic link's target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Number.
    pub ino: Ino,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that lead to the inode; for a folder, 2 plus one for each folder in it. An orphan has 0.
    pub nlink: u32,
    /// Device number of a device node, as the kernel encodes it.
    pub rdev: u32,
    /// The folder that holds this folder; the root holds itself. 0 for anything but a folder.
    pub parent: u64,
    /// `FLAG_…` bits.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of data, reserved ones included.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
}

/// Columns of [`Inode`], in the order that [`Inode::from_row`] reads.
macro_rules! inode_columns {
    () => {
        "i.ino, i.mode, i.uid, i.gid, i.nlink, i.rdev, i.parent, i.flags, i.size, i.blocks, \
         i.atime_s, i.atime_ns, i.mtime_s, i.mtime_ns, i.ctime_s, i.ctime_ns, i.btime_s, i.btime_ns"
    };
}
pub(super) use inode_columns;

impl Inode {
    /// What it is. The mode was checked when the row was read or made.
    pub fn kind(&self) -> Kind {
        Kind::from_mode(self.mode).unwrap_or(Kind::File)
    }

    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        self.mode & S_IFMT == Kind::Directory.mode()
    }

    /// Whether any of these flags is set.
    pub fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// Sets or clears flags.
    pub fn set(&mut self, flags: u32, on: bool) {
        self.flags = if on { self.flags | flags } else { self.flags & !flags };
    }

    /// Reads a row from column `at` on.
    pub(super) fn from_row(row: &Row<'_>, at: usize) -> Result<Self> {
        let inode = Self {
            ino: Ino(unsigned(row, at)?),
            mode: small(row, at + 1)?,
            uid: small(row, at + 2)?,
            gid: small(row, at + 3)?,
            nlink: small(row, at + 4)?,
            rdev: small(row, at + 5)?,
            parent: unsigned(row, at + 6)?,
            flags: small(row, at + 7)?,
            size: unsigned(row, at + 8)?,
            blocks: unsigned(row, at + 9)?,
            atime: time(row, at + 10)?,
            mtime: time(row, at + 12)?,
            ctime: time(row, at + 14)?,
            btime: time(row, at + 16)?,
        };
        let sane = Kind::from_mode(inode.mode).is_some()
            && inode.mode & !(S_IFMT | 0o7777) == 0
            && inode.flags & !FLAGS == 0
            && inode.size <= FILE_SIZE_MAX
            && inode.blocks <= FILE_BLOCKS_MAX;
        if sane { Ok(inode) } else { Err(Error::Corrupt("a row of table inode is out of bounds")) }
    }
}

/// A name in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// Its place in the folder: the name's hash, or up to 15 more.
    pub cookie: u64,
    /// What it leads to.
    pub ino: Ino,
    /// What that is.
    pub kind: Kind,
}

/// Where a new name goes: a free cookie.
#[derive(Clone, Copy, Debug)]
pub struct Slot(pub(super) u64);

/// A row of `extent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentRow {
    /// First block in the file.
    pub lblock: u64,
    /// Number of blocks, at least one.
    pub blocks: u64,
    /// First block in the data area.
    pub addr: BlockAddr,
    /// Identity of the first unit (all zero when reserved).
    pub id: WriteId,
    /// One tag a block; nothing when the blocks are reserved and were never written.
    pub tags: Option<Vec<Tag>>,
}

/// Where a row keeps its tags.
pub(super) enum TagPlace {
    /// Nowhere: reserved blocks.
    Reserved,
    /// In the row.
    Inline(Vec<Tag>),
    /// In table `tags`.
    Table,
}

impl ExtentRow {
    /// First block of the file after it.
    pub const fn end(&self) -> u64 {
        self.lblock + self.blocks
    }

    /// Its blocks in the data area.
    pub const fn run(&self) -> Run {
        Run::new(self.addr, self.blocks)
    }

    /// The part of it that is in file blocks `from..to`, which must overlap it.
    #[must_use]
    pub fn slice(&self, from: u64, to: u64) -> Self {
        let skip = from.saturating_sub(self.lblock);
        let blocks = to.min(self.end()) - (self.lblock + skip);
        Self {
            lblock: self.lblock + skip,
            blocks,
            addr: self.addr.add(skip),
            id: if self.tags.is_some() { self.id.add(skip) } else { self.id },
            tags: self.tags.as_ref().map(|tags| tags[to_usize(skip)..to_usize(skip + blocks)].to_vec()),
        }
    }

    /// Reads `lblock, blocks, addr, epoch, counter, tags`. Tags in the other table are left for the caller to read.
    pub(super) fn from_row(row: &Row<'_>) -> Result<(Self, TagPlace)> {
        let extent = Self {
            lblock: unsigned(row, 0)?,
            blocks: unsigned(row, 1)?,
            addr: BlockAddr(unsigned(row, 2)?),
            id: WriteId { epoch: small(row, 3)?, counter: unsigned(row, 4)? },
            tags: None,
        };
        let corrupt = Error::Corrupt("a row of table extent is out of bounds");
        let bounded = extent.blocks >= 1
            && extent.lblock < FILE_BLOCKS_MAX
            && extent.blocks <= FILE_BLOCKS_MAX - extent.lblock
            && extent.addr.0 < 1 << 48;
        let place = match row.get_ref(5)? {
            ValueRef::Null => TagPlace::Reserved,
            ValueRef::Blob([]) => TagPlace::Table,
            ValueRef::Blob(bytes) => TagPlace::Inline(parse_tags(bytes, extent.blocks)?),
            _ => return Err(corrupt),
        };
        if bounded { Ok((extent, place)) } else { Err(corrupt) }
    }
}

/// The tags of `blocks` blocks.
pub(super) fn parse_tags(bytes: &[u8], blocks: u64) -> Result<Vec<Tag>> {
    let (tags, rest) = bytes.as_chunks::<16>();
    if rest.is_empty() && tags.len() as u64 == blocks {
        Ok(tags.to_vec())
    } else {
        Err(Error::Corrupt("an extent has not one tag for each block"))
    }
}

/// A column that is never negative.
pub(super) fn unsigned(row: &Row<'_>, at: usize) -> Result<u64> {
    u64::try_from(row.get_ref(at)?.as_i64()?).map_err(|_| Error::Corrupt("a column is negative"))
}

fn small(row: &Row<'_>, at: usize) -> Result<u32> {
    u32::try_from(row.get_ref(at)?.as_i64()?).map_err(|_| Error::Corrupt("a column does not fit 32 bits"))
}

fn time(row: &Row<'_>, at: usize) -> Result<Time> {
    match small(row, at + 1)? {
        ns @ 0..1_000_000_000 => Ok(Time { s: row.get_ref(at)?.as_i64()?, ns }),
        _ => Err(Error::Corrupt("a time has more than a second of nanoseconds")),
    }
}

/// A name column.
pub(super) fn name<'a>(row: &'a Row<'_>, at: usize) -> Result<&'a [u8]> {
    match row.get_ref(at)? {
        ValueRef::Blob(bytes) if (1..=NAME_MAX).contains(&bytes.len()) => Ok(bytes),
        _ => Err(Error::Corrupt("a name is not 1 to 255 bytes")),
    }
}

/// A column of a dentry's kind, which is its type bits.
pub(super) fn kind(row: &Row<'_>, at: usize) -> Result<Kind> {
    Kind::from_mode(small(row, at)?).ok_or(Error::Corrupt("a dentry's kind is unknown"))
}
