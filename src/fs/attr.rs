//! Attributes of inodes and of the volume.

use super::{
    Attr, Error, Fs, ORDINARY, Result, acl, existing, file, now, removal,
    xattr::{put_acl, stored_acl},
};
use crate::{
    limits::{FILE_SIZE_MAX, NAME_MAX},
    meta::{FLAG_ACL_ACCESS, Inode, Kind, S_IFMT, Time, Tx},
    units::{BLOCK_SHIFT, Ino},
};

/// A new time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The clock's.
    Now,
    /// This one.
    At(Time),
}

/// What to change of an inode; `None` leaves a field alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits; type bits are ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes, of a regular file.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time: only the kernel sets one, with its writeback cache. Otherwise it is the clock's.
    pub ctime: Option<Time>,
}

/// What statvfs(3) says of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes in a block.
    pub block_size: u32,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks that users may take.
    pub blocks_available: u64,
    /// Inodes, and free ones: 0 and 0, as they are not limited.
    pub files: u64,
    /// See `files`.
    pub files_free: u64,
    /// Longest name, in bytes.
    pub name_max: u32,
}

impl Fs {
    /// The inode's attributes.
    ///
    /// # Errors
    /// [`Error::Stale`], or of the metadata.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(Attr::from(&self.existing(ino)?))
    }

    /// Changes attributes, all or none of them, and returns them. A new size shortens a file or lengthens it with
    /// zeros. New permission bits also go to the access ACL.
    ///
    /// # Errors
    /// [`Error::FileTooBig`]; [`Error::IsDirectory`] or [`Error::Invalid`] for the size of something that is not a
    /// file.
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.admit()?;
        let Some(size) = set.size else {
            return self.change(|tx| {
                let mut inode = existing(tx, ino)?;
                apply(tx, &mut inode, set)?;
                tx.put_inode(&inode);
                Ok(Attr::from(&inode))
            });
        };
        if size > FILE_SIZE_MAX {
            return Err(Error::FileTooBig);
        }
        let _content = self.exclusive(ino);
        let inode = self.view(|view| file(view, ino))?;
        if size > inode.size {
            self.prepare_growth(&inode, u64::MAX)?;
        }
        let step = self.step();
        let (mut attr, trim) = self.change_at_most(ORDINARY.plus(removal(step)), |tx| {
            let mut inode = file(tx, ino)?;
            let before = inode.size;
            let trim = super::resize::resize(tx, &mut inode, size, step)?;
            // When the size stays the same, the kernel says whether the time is to change: with ftruncate it does, with
            // truncate not.
            let mtime = set.mtime.or((size != before).then_some(SetTime::Now));
            apply(tx, &mut inode, &SetAttr { mtime, ..*set })?;
            tx.put_inode(&inode);
            Ok((Attr::from(&inode), trim))
        })?;
        if size < inode.size {
            self.refused.shortened(ino);
        }
        if let Some(lblock) = trim {
            self.trim(ino, lblock)?;
            attr.blocks = self.getattr(ino)?.blocks;
        }
        Ok(attr)
    }

    /// How full the volume is.
    pub fn statfs(&self) -> StatFs {
        let usage = self.store.usage();
        StatFs {
            block_size: 1 << BLOCK_SHIFT,
            blocks: usage.total_blocks,
            blocks_free: usage.free_blocks,
            blocks_available: usage.free_blocks.saturating_sub(usage.reserved_blocks),
            files: 0,
            files_free: 0,
            name_max: u32::try_from(NAME_MAX).unwrap_or(u32::MAX),
        }
    }

    /// A symbolic link's target.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the inode is no symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.view(|view| {
            if existing(view, ino)?.kind() != Kind::Symlink {
                return Err(Error::Invalid);
            }
            Ok(view.target(ino)?.unwrap_or_default())
        })
    }
}

/// Changes everything but the size. The caller writes the inode.
fn apply(tx: &mut Tx<'_>, inode: &mut Inode, set: &SetAttr) -> Result<()> {
    let now = now();
    let time = |set| match set {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    if let Some(mode) = set.mode {
        inode.mode = inode.mode & S_IFMT | mode & 0o7777;
        if inode.has(FLAG_ACL_ACCESS)
            && let Some(mut access) = stored_acl(tx, inode.ino, acl::ACCESS)?
        {
            access.chmod(inode.mode);
            put_acl(tx, inode, acl::ACCESS, &access)?;
        }
    }
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    inode.atime = set.atime.map_or(inode.atime, time);
    inode.mtime = set.mtime.map_or(inode.mtime, time);
    inode.ctime = set.ctime.unwrap_or(now);
    Ok(())
}
