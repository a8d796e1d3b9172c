//! The operations as system calls on a folder of the machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags,
};

use crate::op::{Allocate, File, Op, Path, Rename, SLOTS, SetFlag};
use crate::reference::{Outcome, Result};
use crate::target::{Seen, Target};

type Errno = std::result::Result<Outcome, rustix::io::Errno>;

pub struct Folder<'a> {
    root: PathBuf,
    slots: [Option<fs::File>; SLOTS],
    remount: Box<dyn FnMut() + 'a>,
}

impl<'a> Folder<'a> {
    /// `remount` takes the filesystem down and brings it back; no file of it is open then.
    pub fn new(root: PathBuf, remount: Box<dyn FnMut() + 'a>) -> Self {
        rustix::process::umask(Mode::empty());
        Self { root, slots: Default::default(), remount }
    }

    fn path(&self, path: &Path) -> PathBuf {
        let mut full = self.root.clone();
        full.extend(path.iter().map(|name| OsString::from_vec(name.clone())));
        full
    }

    /// Opens a regular file, or says what the reference says about others (a FIFO would block).
    fn open(&self, file: &File) -> std::result::Result<fs::File, rustix::io::Errno> {
        use rustix::io::Errno as E;
        let path = match file {
            File::Open(slot) => {
                return self.slots[*slot].as_ref().map(|f| f.try_clone().expect("a descriptor is free")).ok_or(E::BADF);
            }
            File::At(path) => self.path(path),
        };
        match FileType::from_raw_mode(rustix::fs::lstat(&path)?.st_mode) {
            FileType::RegularFile => Ok(rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?.into()),
            FileType::Directory => Err(E::ISDIR),
            FileType::Symlink => Err(E::NOENT),
            _ => Err(E::SPIPE),
        }
    }

    fn names(&self, op: &Op) -> Errno {
        match op {
            Op::Create(path, perm) => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::open(self.path(path), flags, Mode::from_raw_mode(*perm)).map(drop)?;
            }
            Op::Mkdir(path, perm) => {
                // mkdir(2) takes no set-group-id bit.
                let (path, mode) = (self.path(path), Mode::from_raw_mode(*perm));
                rustix::fs::mkdir(&path, mode)?;
                if perm & 0o2000 != 0 {
                    rustix::fs::chmod(&path, mode)?;
                }
            }
            Op::Symlink(path, target) => rustix::fs::symlink(target.as_slice(), self.path(path))?,
            Op::Mkfifo(path, perm) => {
                rustix::fs::mknodat(CWD, self.path(path), FileType::Fifo, Mode::from_raw_mode(*perm), 0)?;
            }
            Op::Link(old, new) => rustix::fs::link(self.path(old), self.path(new))?,
            Op::Unlink(path) => rustix::fs::unlink(self.path(path))?,
            Op::Rmdir(path) => rustix::fs::rmdir(self.path(path))?,
            Op::Rename(old, new, flag) => {
                let flags = match flag {
                    Rename::Plain => RenameFlags::empty(),
                    Rename::NoReplace => RenameFlags::NOREPLACE,
                    Rename::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, self.path(old), CWD, self.path(new), flags)?;
            }
            _ => unreachable!("the other operations are dealt with elsewhere"),
        }
        Ok(Outcome::Done)
    }

    fn data(&self, op: &Op) -> Errno {
        let io = |error: std::io::Error| rustix::io::Errno::from_io_error(&error).expect("a system call failed");
        Ok(match op {
            Op::Write(file, offset, bytes) => {
                self.open(file)?.write_all_at(bytes, *offset).map_err(io)?;
                Outcome::Count(bytes.len() as u64)
            }
            Op::Read(file, offset, length) => {
                let file = self.open(file)?;
                let mut bytes = vec![0; *length];
                let mut done = 0;
                while done < bytes.len() {
                    match file.read_at(&mut bytes[done..], offset + done as u64).map_err(io)? {
                        0 => break,
                        count => done += count,
                    }
                }
                bytes.truncate(done);
                Outcome::Bytes(bytes)
            }
            Op::Truncate(file, size) => {
                rustix::fs::ftruncate(self.open(file)?, *size)?;
                Outcome::Done
            }
            Op::Fallocate(file, offset, length, how) => {
                let flags = match how {
                    Allocate::Extend => FallocateFlags::empty(),
                    Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
                    Allocate::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    Allocate::Zero => FallocateFlags::ZERO_RANGE,
                    Allocate::ZeroKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                };
                rustix::fs::fallocate(self.open(file)?, flags, *offset, *length)?;
                Outcome::Done
            }
            Op::Copy(from, from_offset, to, to_offset, length) => {
                let (from, to) = (self.open(from)?, self.open(to)?);
                // A copy within one file may make it longer: what was to be had at the beginning is the end of the loop.
                let available = from.metadata().map_err(io)?.len().saturating_sub(*from_offset).min(*length);
                let (mut source, mut place, mut left) = (*from_offset, *to_offset, *length);
                let mut done = 0;
                loop {
                    match rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut place), left as usize)? {
                        0 => break,
                        count => done += count as u64,
                    }
                    if done >= available {
                        break;
                    }
                    left = available - done;
                }
                Outcome::Count(done)
            }
            Op::SeekData(file, offset) => Outcome::Offset(rustix::fs::seek(self.open(file)?, SeekFrom::Data(*offset))?),
            Op::SeekHole(file, offset) => Outcome::Offset(rustix::fs::seek(self.open(file)?, SeekFrom::Hole(*offset))?),
            Op::Fsync(file) => {
                rustix::fs::fsync(self.open(file)?)?;
                Outcome::Done
            }
            _ => unreachable!("the other operations are dealt with elsewhere"),
        })
    }

    fn attributes(&self, op: &Op) -> Errno {
        match op {
            Op::Chmod(path, perm) => rustix::fs::chmod(self.path(path), Mode::from_raw_mode(*perm))?,
            Op::Chown(path, uid, gid) => {
                let (uid, gid) = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
                rustix::fs::chownat(CWD, self.path(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Op::Utimens(path, atime, mtime) => {
                let time =
                    |&(seconds, nanoseconds): &(i64, u32)| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
                let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
                rustix::fs::utimensat(CWD, self.path(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Op::SetXattr(path, name, value, flag) => {
                let flags = match flag {
                    SetFlag::Either => XattrFlags::empty(),
                    SetFlag::Create => XattrFlags::CREATE,
                    SetFlag::Replace => XattrFlags::REPLACE,
                };
                rustix::fs::lsetxattr(self.path(path), *name, value, flags)?;
            }
            Op::GetXattr(path, name) => {
                let mut value = vec![0; 64 << 10];
                let length = rustix::fs::lgetxattr(self.path(path), *name, &mut value)?;
                value.truncate(length);
                return Ok(Outcome::Bytes(value));
            }
            Op::RemoveXattr(path, name) => rustix::fs::lremovexattr(self.path(path), *name)?,
            _ => unreachable!("the other operations are dealt with elsewhere"),
        }
        Ok(Outcome::Done)
    }
}

impl Target for Folder<'_> {
    fn apply(&mut self, op: &Op) -> Result {
        let result = match op {
            Op::Open(slot, path) => self.open(&File::At(path.clone())).map(|file| {
                self.slots[*slot] = Some(file);
                Outcome::Done
            }),
            Op::Close(slot) => {
                self.slots[*slot] = None;
                Ok(Outcome::Done)
            }
            Op::Compare => Ok(Outcome::Done),
            Op::Remount => {
                self.slots = Default::default();
                (self.remount)();
                Ok(Outcome::Done)
            }
            Op::Create(..)
            | Op::Mkdir(..)
            | Op::Symlink(..)
            | Op::Mkfifo(..)
            | Op::Link(..)
            | Op::Unlink(..)
            | Op::Rmdir(..)
            | Op::Rename(..) => self.names(op),
            Op::Chmod(..)
            | Op::Chown(..)
            | Op::Utimens(..)
            | Op::SetXattr(..)
            | Op::GetXattr(..)
            | Op::RemoveXattr(..) => self.attributes(op),
            _ => self.data(op),
        };
        result.map_err(rustix::io::Errno::raw_os_error)
    }

    fn stat(&mut self, path: &Path) -> std::result::Result<Seen, i32> {
        // No time of a file is negative here: one that is would differ from what is expected.
        let nsec = |nsec: i64| u32::try_from(nsec).unwrap_or(u32::MAX);
        let meta = fs::symlink_metadata(self.path(path)).map_err(|error| error.raw_os_error().unwrap_or(0))?;
        Ok(Seen {
            ino: meta.ino(),
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            nlink: meta.nlink() as u32,
            size: meta.size(),
            atime: (meta.atime(), nsec(meta.atime_nsec())),
            mtime: (meta.mtime(), nsec(meta.mtime_nsec())),
        })
    }

    fn list(&mut self, path: &Path) -> std::result::Result<Vec<Vec<u8>>, i32> {
        let entries = fs::read_dir(self.path(path)).map_err(|error| error.raw_os_error().unwrap_or(0))?;
        Ok(entries.map(|entry| entry.expect("the folder can be read to its end").file_name().into_vec()).collect())
    }

    fn readlink(&mut self, path: &Path) -> std::result::Result<Vec<u8>, i32> {
        let target = fs::read_link(self.path(path)).map_err(|error| error.raw_os_error().unwrap_or(0))?;
        Ok(target.as_os_str().as_bytes().to_vec())
    }

    fn xattrs(&mut self, path: &Path) -> std::result::Result<BTreeMap<Vec<u8>, Vec<u8>>, i32> {
        let path = self.path(path);
        let mut names = vec![0; 64 << 10];
        let length = rustix::fs::llistxattr(&path, &mut names).map_err(rustix::io::Errno::raw_os_error)?;
        let mut found = BTreeMap::new();
        for name in names[..length].split(|&byte| byte == 0).filter(|name| name.starts_with(b"user.")) {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(&path, name, &mut value).map_err(rustix::io::Errno::raw_os_error)?;
            value.truncate(length);
            found.insert(name.to_vec(), value);
        }
        Ok(found)
    }
}
