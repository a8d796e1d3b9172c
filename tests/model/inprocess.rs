//! The operations as calls of the filesystem, on devices in memory: what the kernel does above it (walking paths, asking
//! for inodes and giving them back) is done here.

use std::collections::BTreeMap;

use scelle::fs::{Attr, Error, Fs, Kind, RenameFlags, Seek, SetAttr, SetTime, Time};
use scelle::units::Ino;
use scelle::volume::{Open, OpenOptions};

use crate::op::{Allocate, File, Op, Path, Rename, SLOTS, SetFlag};
use crate::reference::{Outcome, Result};
use crate::support::court::{CALLER, Court};
use crate::target::{Seen, Target};

pub struct InProcess<'a> {
    court: &'a Court,
    open: Option<Open>,
    slots: [Option<Ino>; SLOTS],
}

/// Opens the volume with a cache so small that clusters make room for one another.
fn open(court: &Court) -> Open {
    court.open_with(&OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::default() }).unwrap()
}

type Errno<T> = std::result::Result<T, i32>;

fn errno(error: Error) -> i32 {
    error.errno()
}

impl<'c> InProcess<'c> {
    pub fn new(court: &'c Court) -> Self {
        Self { court, open: Some(open(court)), slots: [None; SLOTS] }
    }

    pub fn close(mut self) {
        self.forget_slots();
        self.open.take().unwrap().close().unwrap();
    }

    fn fs(&self) -> &Fs {
        self.open.as_ref().expect("the volume is open").fs()
    }

    fn forget_slots(&mut self) {
        for slot in 0..SLOTS {
            self.close_slot(slot);
        }
    }

    fn close_slot(&mut self, slot: usize) {
        if let Some(ino) = self.slots[slot].take() {
            self.fs().forget(ino, 1);
        }
    }

    /// Looks a name up and gives the inode back at once, as a kernel without a cache would.
    fn look(&self, parent: Ino, name: &[u8]) -> Errno<Attr> {
        let attr = self.fs().lookup(parent, name).map_err(errno)?;
        self.fs().forget(attr.ino, 1);
        Ok(attr)
    }

    fn parent<'a>(&self, path: &'a Path) -> Errno<(Ino, &'a [u8])> {
        let (name, folders) = path.split_last().expect("operations name something below the root");
        let mut at = Ino::ROOT;
        for folder in folders {
            let attr = self.look(at, folder)?;
            match attr.kind {
                Kind::Directory => at = attr.ino,
                // Every symbolic link of a run leads nowhere.
                Kind::Symlink => return Err(libc::ENOENT),
                _ => return Err(libc::ENOTDIR),
            }
        }
        Ok((at, name))
    }

    fn attr(&self, path: &Path) -> Errno<Attr> {
        if path.is_empty() {
            return self.fs().getattr(Ino::ROOT).map_err(errno);
        }
        let (parent, name) = self.parent(path)?;
        self.look(parent, name)
    }

    fn regular(&self, file: &File) -> Errno<Ino> {
        let attr = match file {
            File::At(path) => self.attr(path)?,
            File::Open(slot) => return self.slots[*slot].ok_or(libc::EBADF),
        };
        match attr.kind {
            Kind::File => Ok(attr.ino),
            Kind::Directory => Err(libc::EISDIR),
            Kind::Symlink => Err(libc::ENOENT),
            _ => Err(libc::ESPIPE),
        }
    }

    /// The kernel looks before it asks: the name must be free.
    fn free<'a>(&self, path: &'a Path) -> Errno<(Ino, &'a [u8])> {
        let (parent, name) = self.parent(path)?;
        match self.look(parent, name) {
            Ok(_) => Err(libc::EEXIST),
            Err(libc::ENOENT) => Ok((parent, name)),
            Err(other) => Err(other),
        }
    }

    fn given_back(&self, made: scelle::fs::Result<Attr>) -> Result {
        self.fs().forget(made.map_err(errno)?.ino, 1);
        Ok(Outcome::Done)
    }

    fn names(&self, op: &Op) -> Result {
        let (fs, caller) = (self.fs(), &CALLER);
        match op {
            Op::Create(path, perm) => {
                let (parent, name) = self.free(path)?;
                let attr = fs.mknod(caller, parent, name, libc::S_IFREG | perm, 0).map_err(errno)?;
                self.given_back(Ok(attr))
            }
            Op::Mkdir(path, perm) => {
                let (parent, name) = self.free(path)?;
                self.given_back(fs.mkdir(caller, parent, name, *perm))
            }
            Op::Symlink(path, target) => {
                let (parent, name) = self.free(path)?;
                self.given_back(fs.symlink(caller, parent, name, target))
            }
            Op::Mkfifo(path, perm) => {
                let (parent, name) = self.free(path)?;
                self.given_back(fs.mknod(caller, parent, name, libc::S_IFIFO | perm, 0))
            }
            Op::Link(old, new) => {
                let attr = self.attr(old)?;
                let (parent, name) = self.free(new)?;
                self.given_back(fs.link(attr.ino, parent, name))
            }
            Op::Unlink(path) => {
                let (parent, name) = self.parent(path)?;
                fs.unlink(parent, name).map(|()| Outcome::Done).map_err(errno)
            }
            Op::Rmdir(path) => {
                let (parent, name) = self.parent(path)?;
                fs.rmdir(parent, name).map(|()| Outcome::Done).map_err(errno)
            }
            Op::Rename(old, new, flag) => self.rename(old, new, *flag),
            _ => unreachable!("the other operations are dealt with elsewhere"),
        }
    }

    /// With the checks that the kernel makes before it asks (lock_rename and do_renameat2 in fs/namei.c).
    fn rename(&self, old: &Path, new: &Path, flag: Rename) -> Result {
        let (old_parent, old_name) = self.parent(old)?;
        let (new_parent, new_name) = self.parent(new)?;
        self.look(old_parent, old_name)?;
        match self.look(new_parent, new_name) {
            Ok(_) if flag == Rename::NoReplace => return Err(libc::EEXIST),
            Err(error) if error != libc::ENOENT || flag == Rename::Exchange => return Err(error),
            _ => {}
        }
        if new.len() > old.len() && new.starts_with(old) {
            return Err(libc::EINVAL);
        }
        if old.len() > new.len() && old.starts_with(new) {
            return Err(if flag == Rename::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        let flags = match flag {
            Rename::Plain => RenameFlags::Plain,
            Rename::NoReplace => RenameFlags::NoReplace,
            Rename::Exchange => RenameFlags::Exchange,
        };
        self.fs().rename(old_parent, old_name, new_parent, new_name, flags).map_err(errno)?;
        Ok(Outcome::Done)
    }

    fn data(&self, op: &Op) -> Result {
        let fs = self.fs();
        match op {
            Op::Write(file, offset, bytes) => {
                let count = fs.write(self.regular(file)?, *offset, bytes).map_err(errno)?;
                Ok(Outcome::Count(count as u64))
            }
            Op::Read(file, offset, length) => {
                let mut bytes = Vec::new();
                bytes
                    .extend_from_slice(fs.read(self.regular(file)?, *offset, *length, &mut Vec::new()).map_err(errno)?);
                Ok(Outcome::Bytes(bytes))
            }
            Op::Truncate(file, size) => {
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                fs.setattr(self.regular(file)?, &set).map(|_| Outcome::Done).map_err(errno)
            }
            Op::Fallocate(file, offset, length, how) => {
                let mode = match how {
                    Allocate::Extend => 0,
                    Allocate::KeepSize => libc::FALLOC_FL_KEEP_SIZE,
                    Allocate::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    Allocate::Zero => libc::FALLOC_FL_ZERO_RANGE,
                    Allocate::ZeroKeepSize => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                };
                let done = fs.fallocate(self.regular(file)?, *offset, *length, mode.cast_unsigned());
                done.map(|()| Outcome::Done).map_err(errno)
            }
            Op::Copy(from, from_offset, to, to_offset, length) => {
                let (from, to) = (self.regular(from)?, self.regular(to)?);
                // The kernel shortens to the source's end, then refuses an overlap (generic_copy_file_checks).
                let size = fs.getattr(from).map_err(errno)?.size;
                let count = size.saturating_sub(*from_offset).min(*length);
                if from == to && *from_offset < to_offset + count && *to_offset < from_offset + count {
                    return Err(libc::EINVAL);
                }
                let mut done = 0;
                while done < count {
                    match fs.copy_range(from, from_offset + done, to, to_offset + done, count - done).map_err(errno)? {
                        0 => break,
                        more => done += more,
                    }
                }
                Ok(Outcome::Count(done))
            }
            Op::SeekData(file, offset) => {
                fs.seek(self.regular(file)?, *offset, Seek::Data).map(Outcome::Offset).map_err(errno)
            }
            Op::SeekHole(file, offset) => {
                fs.seek(self.regular(file)?, *offset, Seek::Hole).map(Outcome::Offset).map_err(errno)
            }
            Op::Fsync(file) => {
                self.regular(file)?;
                fs.sync().map(|()| Outcome::Done).map_err(errno)
            }
            _ => unreachable!("the other operations are dealt with elsewhere"),
        }
    }

    fn attributes(&self, op: &Op) -> Result {
        let (path, set) = match op {
            Op::Chmod(path, perm) => (path, SetAttr { mode: Some(*perm), ..SetAttr::default() }),
            Op::Chown(path, uid, gid) => (path, SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() }),
            Op::Utimens(path, atime, mtime) => {
                let time = |&(s, ns): &(i64, u32)| Some(SetTime::At(Time { s, ns }));
                (path, SetAttr { atime: time(atime), mtime: time(mtime), ..SetAttr::default() })
            }
            _ => unreachable!("the other operations are dealt with elsewhere"),
        };
        let attr = self.attr(path)?;
        if matches!(op, Op::Chmod(..)) && attr.kind == Kind::Symlink {
            return Err(libc::ENOENT);
        }
        self.fs().setattr(attr.ino, &set).map(|_| Outcome::Done).map_err(errno)
    }

    fn change_xattrs(&self, op: &Op) -> Result {
        let (Op::SetXattr(path, name, ..) | Op::GetXattr(path, name) | Op::RemoveXattr(path, name)) = op else {
            unreachable!("the other operations are dealt with elsewhere")
        };
        let attr = self.attr(path)?;
        // The kernel's rule for user.* (xattr_permission in fs/xattr.c).
        let allowed = matches!(attr.kind, Kind::File | Kind::Directory);
        match op {
            Op::GetXattr(..) if !allowed => Err(libc::ENODATA),
            Op::GetXattr(..) => self.fs().getxattr(attr.ino, name.as_bytes()).map(Outcome::Bytes).map_err(errno),
            _ if !allowed => Err(libc::EPERM),
            Op::SetXattr(_, _, value, flag) => {
                let flags = match flag {
                    SetFlag::Either => 0,
                    SetFlag::Create => libc::XATTR_CREATE,
                    SetFlag::Replace => libc::XATTR_REPLACE,
                };
                let set = self.fs().setxattr(attr.ino, name.as_bytes(), value, flags);
                set.map(|()| Outcome::Done).map_err(errno)
            }
            _ => self.fs().removexattr(attr.ino, name.as_bytes()).map(|()| Outcome::Done).map_err(errno),
        }
    }

    fn open_slot(&mut self, slot: usize, path: &Path) -> Result {
        let ino = self.regular(&File::At(path.clone()))?;
        let (parent, name) = self.parent(path)?;
        // This lookup is kept until the slot is closed.
        self.fs().lookup(parent, name).map_err(errno)?;
        self.close_slot(slot);
        self.slots[slot] = Some(ino);
        Ok(Outcome::Done)
    }
}

impl Target for InProcess<'_> {
    fn apply(&mut self, op: &Op) -> Result {
        match op {
            Op::Open(slot, path) => self.open_slot(*slot, path),
            Op::Close(slot) => {
                self.close_slot(*slot);
                Ok(Outcome::Done)
            }
            Op::Compare => Ok(Outcome::Done),
            Op::Remount => {
                self.forget_slots();
                self.open.take().unwrap().close().unwrap();
                self.open = Some(open(self.court));
                Ok(Outcome::Done)
            }
            Op::Chmod(..) | Op::Chown(..) | Op::Utimens(..) => self.attributes(op),
            Op::SetXattr(..) | Op::GetXattr(..) | Op::RemoveXattr(..) => self.change_xattrs(op),
            Op::Create(..)
            | Op::Mkdir(..)
            | Op::Symlink(..)
            | Op::Mkfifo(..)
            | Op::Link(..)
            | Op::Unlink(..)
            | Op::Rmdir(..)
            | Op::Rename(..) => self.names(op),
            _ => self.data(op),
        }
    }

    fn stat(&mut self, path: &Path) -> Errno<Seen> {
        let attr = self.attr(path)?;
        Ok(Seen {
            ino: attr.ino.0,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            size: attr.size,
            atime: (attr.atime.s, attr.atime.ns),
            mtime: (attr.mtime.s, attr.mtime.ns),
        })
    }

    fn list(&mut self, path: &Path) -> Errno<Vec<Vec<u8>>> {
        let ino = self.attr(path)?.ino;
        let (mut names, mut cookie) = (Vec::new(), 0);
        loop {
            let before = cookie;
            // A few at a time, so that listings are resumed.
            let mut room = 3;
            let mut emit = |entry: scelle::fs::DirEntry<'_>| {
                if room == 0 {
                    return false;
                }
                room -= 1;
                cookie = entry.next_cookie;
                if !matches!(entry.name, b"." | b"..") {
                    names.push(entry.name.to_vec());
                }
                true
            };
            self.fs().readdir(ino, before, false, &mut emit).map_err(errno)?;
            if cookie == before {
                return Ok(names);
            }
        }
    }

    fn readlink(&mut self, path: &Path) -> Errno<Vec<u8>> {
        self.fs().readlink(self.attr(path)?.ino).map_err(errno)
    }

    fn xattrs(&mut self, path: &Path) -> Errno<BTreeMap<Vec<u8>, Vec<u8>>> {
        let ino = self.attr(path)?.ino;
        let names = self.fs().listxattr(ino).map_err(errno)?;
        let names = names.split(|&byte| byte == 0).filter(|name| name.starts_with(b"user."));
        names.map(|name| Ok((name.to_vec(), self.fs().getxattr(ino, name).map_err(errno)?))).collect()
    }
}
