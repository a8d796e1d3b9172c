//! What a folder does, in memory and as plainly as possible. Error numbers follow Linux's VFS, for root.

use std::collections::{BTreeMap, HashMap};

use crate::op::{Allocate, File, Op, Path, Rename, SLOTS, SetFlag};

/// Bytes of a page of the sparse content; only a unit of book-keeping.
const PAGE: u64 = 4096;

/// Longest name, in bytes.
const NAME_MAX: usize = 255;

/// What an operation gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Bytes(Vec<u8>),
    Count(u64),
    Offset(u64),
}

pub type Result = std::result::Result<Outcome, i32>;

/// File content: pages that were written, zeros elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub size: u64,
    pub pages: BTreeMap<u64, Vec<u8>>,
}

impl Content {
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let length = self.size.saturating_sub(offset).min(length as u64) as usize;
        let mut out = vec![0; length];
        let mut at = 0;
        while at < length {
            let position = offset + at as u64;
            let (page, start) = (position / PAGE, (position % PAGE) as usize);
            let count = (PAGE as usize - start).min(length - at);
            if let Some(data) = self.pages.get(&page) {
                out[at..at + count].copy_from_slice(&data[start..start + count]);
            }
            at += count;
        }
        out
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let position = offset + at as u64;
            let (page, start) = (position / PAGE, (position % PAGE) as usize);
            let count = (PAGE as usize - start).min(bytes.len() - at);
            let data = self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize]);
            data[start..start + count].copy_from_slice(&bytes[at..at + count]);
            at += count;
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.put(offset, bytes);
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    /// Makes `offset..end` zeros, without changing the size.
    fn clear(&mut self, offset: u64, end: u64) {
        let touched: Vec<u64> = self.pages.range(offset / PAGE..=end / PAGE).map(|(&page, _)| page).collect();
        for page in touched {
            let from = offset.max(page * PAGE) - page * PAGE;
            let to = end.min((page + 1) * PAGE).saturating_sub(page * PAGE);
            if from < to {
                let data = self.pages.get_mut(&page).expect("the page was just listed");
                data[from as usize..to as usize].fill(0);
            }
        }
    }

    fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.clear(size, self.size);
            self.pages.split_off(&size.div_ceil(PAGE));
        }
        self.size = size;
    }

    /// Whether every byte of `from..to` is zero.
    pub fn is_zero(&self, from: u64, to: u64) -> bool {
        self.pages.range(from / PAGE..=to / PAGE).all(|(&page, data)| {
            let start = from.max(page * PAGE) - page * PAGE;
            let end = to.min((page + 1) * PAGE).saturating_sub(page * PAGE);
            start >= end || data[start as usize..end as usize].iter().all(|&byte| byte == 0)
        })
    }
}

#[derive(Clone, Debug)]
pub enum Kind {
    File(Content),
    Dir(BTreeMap<Vec<u8>, u64>),
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits with sticky, set-group-id, set-user-id.
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Exact times while nothing but utimensat(2) has set them.
    pub atime: Option<(i64, u32)>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub struct Reference {
    pub nodes: HashMap<u64, Node>,
    next: u64,
    slots: [Option<u64>; SLOTS],
}

/// Number of the root folder.
pub const ROOT: u64 = 1;

impl Reference {
    pub fn new(root_perm: u32) -> Self {
        let root = Self::node(Kind::Dir(BTreeMap::new()), root_perm, 0, 2);
        Self { nodes: HashMap::from([(ROOT, root)]), next: 2, slots: [None; SLOTS] }
    }

    fn node(kind: Kind, perm: u32, gid: u32, nlink: u32) -> Node {
        Node { kind, perm, uid: 0, gid, nlink, atime: None, mtime: None, xattrs: BTreeMap::new() }
    }

    pub fn get(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    fn get_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("nodes are never removed")
    }

    pub fn entries(&self, id: u64) -> std::result::Result<&BTreeMap<Vec<u8>, u64>, i32> {
        match &self.get(id).kind {
            Kind::Dir(entries) => Ok(entries),
            // Every symbolic link of a run leads nowhere.
            Kind::Symlink(_) => Err(libc::ENOENT),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn entries_mut(&mut self, id: u64) -> &mut BTreeMap<Vec<u8>, u64> {
        let node = self.get_mut(id);
        node.mtime = None;
        match &mut node.kind {
            Kind::Dir(entries) => entries,
            _ => unreachable!("only called on folders"),
        }
    }

    fn child(&self, parent: u64, name: &[u8]) -> std::result::Result<Option<u64>, i32> {
        let entries = self.entries(parent)?;
        if name.len() > NAME_MAX { Err(libc::ENAMETOOLONG) } else { Ok(entries.get(name).copied()) }
    }

    fn parent<'a>(&self, path: &'a Path) -> std::result::Result<(u64, &'a [u8]), i32> {
        let (name, folders) = path.split_last().expect("operations name something below the root");
        let mut at = ROOT;
        for folder in folders {
            at = self.child(at, folder)?.ok_or(libc::ENOENT)?;
        }
        self.entries(at)?;
        Ok((at, name))
    }

    fn lookup(&self, path: &Path) -> std::result::Result<u64, i32> {
        let (parent, name) = self.parent(path)?;
        self.child(parent, name)?.ok_or(libc::ENOENT)
    }

    fn regular(&self, file: &File) -> std::result::Result<u64, i32> {
        let id = match file {
            File::At(path) => self.lookup(path)?,
            File::Open(slot) => return self.slots[*slot].ok_or(libc::EBADF),
        };
        match self.get(id).kind {
            Kind::File(_) => Ok(id),
            Kind::Dir(_) => Err(libc::EISDIR),
            Kind::Symlink(_) => Err(libc::ENOENT),
            Kind::Fifo => Err(libc::ESPIPE),
        }
    }

    fn content(&mut self, id: u64) -> &mut Content {
        match &mut self.get_mut(id).kind {
            Kind::File(content) => content,
            _ => unreachable!("only called on regular files"),
        }
    }

    /// Carries one operation out.
    pub fn apply(&mut self, op: &Op) -> Result {
        match op {
            Op::Create(path, perm) => self.make(path, Kind::File(Content::default()), *perm),
            Op::Mkdir(path, perm) => self.make(path, Kind::Dir(BTreeMap::new()), *perm),
            Op::Symlink(path, target) => self.make(path, Kind::Symlink(target.clone()), 0o777),
            Op::Mkfifo(path, perm) => self.make(path, Kind::Fifo, *perm),
            Op::Link(old, new) => self.link(old, new),
            Op::Unlink(path) => self.unlink(path),
            Op::Rmdir(path) => self.rmdir(path),
            Op::Rename(old, new, flag) => self.rename(old, new, *flag),
            Op::Open(slot, path) => {
                let id = self.regular(&File::At(path.clone()))?;
                self.slots[*slot] = Some(id);
                Ok(Outcome::Done)
            }
            Op::Close(slot) => {
                self.slots[*slot] = None;
                Ok(Outcome::Done)
            }
            Op::Chmod(..) | Op::Chown(..) | Op::Utimens(..) => self.attributes(op),
            Op::SetXattr(..) | Op::GetXattr(..) | Op::RemoveXattr(..) => self.xattrs(op),
            Op::Fsync(file) => self.regular(file).map(|_| Outcome::Done),
            Op::Compare => Ok(Outcome::Done),
            Op::Remount => {
                self.slots = [None; SLOTS];
                Ok(Outcome::Done)
            }
            _ => self.data(op),
        }
    }

    fn make(&mut self, path: &Path, kind: Kind, perm: u32) -> Result {
        let (parent, name) = self.parent(path)?;
        if self.child(parent, name)?.is_some() {
            return Err(libc::EEXIST);
        }
        let folder = self.get(parent);
        // A set-group-id folder hands down its group, and the bit itself to folders (inode_init_owner).
        let inherits = folder.perm & 0o2000 != 0;
        let gid = if inherits { folder.gid } else { 0 };
        let is_dir = matches!(kind, Kind::Dir(_));
        let perm = perm | if inherits && is_dir { 0o2000 } else { 0 };
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Self::node(kind, perm, gid, if is_dir { 2 } else { 1 }));
        self.entries_mut(parent).insert(name.to_vec(), id);
        if is_dir {
            self.get_mut(parent).nlink += 1;
        }
        Ok(Outcome::Done)
    }

    fn link(&mut self, old: &Path, new: &Path) -> Result {
        let id = self.lookup(old)?;
        let (parent, name) = self.parent(new)?;
        if self.child(parent, name)?.is_some() {
            return Err(libc::EEXIST);
        }
        if matches!(self.get(id).kind, Kind::Dir(_)) {
            return Err(libc::EPERM);
        }
        self.entries_mut(parent).insert(name.to_vec(), id);
        self.get_mut(id).nlink += 1;
        Ok(Outcome::Done)
    }

    fn unlink(&mut self, path: &Path) -> Result {
        let (parent, name) = self.parent(path)?;
        let id = self.child(parent, name)?.ok_or(libc::ENOENT)?;
        if matches!(self.get(id).kind, Kind::Dir(_)) {
            return Err(libc::EISDIR);
        }
        self.entries_mut(parent).remove(name);
        self.get_mut(id).nlink -= 1;
        Ok(Outcome::Done)
    }

    fn rmdir(&mut self, path: &Path) -> Result {
        let (parent, name) = self.parent(path)?;
        let id = self.child(parent, name)?.ok_or(libc::ENOENT)?;
        match &self.get(id).kind {
            Kind::Dir(entries) if entries.is_empty() => {}
            Kind::Dir(_) => return Err(libc::ENOTEMPTY),
            _ => return Err(libc::ENOTDIR),
        }
        self.entries_mut(parent).remove(name);
        self.get_mut(parent).nlink -= 1;
        self.get_mut(id).nlink = 0;
        Ok(Outcome::Done)
    }

    fn is_dir(&self, id: u64) -> bool {
        matches!(self.get(id).kind, Kind::Dir(_))
    }

    /// Whether `inner` lies in the tree under `outer`, or is it.
    fn within(&self, inner: u64, outer: u64) -> bool {
        inner == outer
            || match &self.get(outer).kind {
                Kind::Dir(entries) => entries.values().any(|&id| self.is_dir(id) && self.within(inner, id)),
                _ => false,
            }
    }

    fn rename(&mut self, old: &Path, new: &Path, flag: Rename) -> Result {
        let (old_parent, old_name) = self.parent(old)?;
        let (new_parent, new_name) = self.parent(new)?;
        let source = self.child(old_parent, old_name)?.ok_or(libc::ENOENT)?;
        let target = self.child(new_parent, new_name)?;
        match (flag, target) {
            (Rename::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (Rename::Exchange, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if self.is_dir(source) && self.within(new_parent, source) {
            return Err(libc::EINVAL);
        }
        if target.is_some_and(|target| self.is_dir(target) && self.within(old_parent, target)) {
            return Err(if flag == Rename::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(Outcome::Done);
        }
        let source_is_dir = self.is_dir(source);
        if let Some(target) = target {
            let target_is_dir = self.is_dir(target);
            if flag == Rename::Exchange {
                self.entries_mut(old_parent).insert(old_name.to_vec(), target);
                self.entries_mut(new_parent).insert(new_name.to_vec(), source);
                self.move_links(source_is_dir, old_parent, new_parent);
                self.move_links(target_is_dir, new_parent, old_parent);
                return Ok(Outcome::Done);
            }
            match (source_is_dir, target_is_dir) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.entries(target)?.is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            }
            if target_is_dir {
                self.get_mut(new_parent).nlink -= 1;
                self.get_mut(target).nlink = 0;
            } else {
                self.get_mut(target).nlink -= 1;
            }
        }
        self.entries_mut(old_parent).remove(old_name);
        self.entries_mut(new_parent).insert(new_name.to_vec(), source);
        self.move_links(source_is_dir, old_parent, new_parent);
        Ok(Outcome::Done)
    }

    fn move_links(&mut self, is_dir: bool, from: u64, to: u64) {
        if is_dir {
            self.get_mut(from).nlink -= 1;
            self.get_mut(to).nlink += 1;
        }
    }

    fn data(&mut self, op: &Op) -> Result {
        match op {
            Op::Write(file, offset, bytes) => {
                let id = self.regular(file)?;
                self.content(id).write(*offset, bytes);
                self.get_mut(id).mtime = None;
                Ok(Outcome::Count(bytes.len() as u64))
            }
            Op::Read(file, offset, length) => {
                let id = self.regular(file)?;
                self.get_mut(id).atime = None;
                Ok(Outcome::Bytes(self.content(id).read(*offset, *length)))
            }
            Op::Truncate(file, size) => {
                let id = self.regular(file)?;
                self.content(id).truncate(*size);
                self.get_mut(id).mtime = None;
                Ok(Outcome::Done)
            }
            Op::Fallocate(file, offset, length, how) => {
                let id = self.regular(file)?;
                let end = offset + length;
                let content = self.content(id);
                if matches!(how, Allocate::Punch | Allocate::Zero | Allocate::ZeroKeepSize) {
                    content.clear(*offset, end);
                }
                if matches!(how, Allocate::Extend | Allocate::Zero) {
                    content.size = content.size.max(end);
                }
                self.get_mut(id).mtime = None;
                Ok(Outcome::Done)
            }
            Op::Copy(from, from_offset, to, to_offset, length) => {
                let (from, to) = (self.regular(from)?, self.regular(to)?);
                let bytes = self.content(from).read(*from_offset, *length as usize);
                // generic_copy_file_checks shortens to the source's end before it looks for an overlap.
                let count = bytes.len() as u64;
                if from == to && *from_offset < to_offset + count && *to_offset < from_offset + count {
                    return Err(libc::EINVAL);
                }
                self.get_mut(from).atime = None;
                if count > 0 {
                    self.content(to).write(*to_offset, &bytes);
                    self.get_mut(to).mtime = None;
                }
                Ok(Outcome::Count(count))
            }
            // Where exactly data and holes begin is the filesystem's choice: `plausible` judges the answer.
            Op::SeekData(file, offset) | Op::SeekHole(file, offset) => {
                let id = self.regular(file)?;
                if *offset >= self.content(id).size { Err(libc::ENXIO) } else { Ok(Outcome::Done) }
            }
            _ => unreachable!("the other operations were dealt with"),
        }
    }

    /// Whether `got` is a right answer to `op`, when `expected` is ours.
    pub fn plausible(&self, op: &Op, expected: &Result, got: &Result) -> bool {
        let (file, from, data) = match op {
            Op::SeekData(file, from) => (file, *from, true),
            Op::SeekHole(file, from) => (file, *from, false),
            _ => return expected == got,
        };
        let Ok(id) = self.regular(file) else { return expected == got };
        let Kind::File(content) = &self.get(id).kind else { return false };
        match got {
            Ok(Outcome::Offset(at)) if expected.is_ok() && *at >= from && *at <= content.size => {
                if data {
                    content.is_zero(from, *at)
                } else {
                    *at == content.size || content.is_zero(*at, at + 1)
                }
            }
            Err(libc::ENXIO) if expected.is_ok() => data && content.is_zero(from, content.size),
            _ => expected == got,
        }
    }

    fn attributes(&mut self, op: &Op) -> Result {
        match op {
            Op::Chmod(path, perm) => {
                let id = self.lookup(path)?;
                if matches!(self.get(id).kind, Kind::Symlink(_)) {
                    return Err(libc::ENOENT);
                }
                self.get_mut(id).perm = *perm;
            }
            Op::Chown(path, uid, gid) => {
                let id = self.lookup(path)?;
                let node = self.get_mut(id);
                (node.uid, node.gid) = (*uid, *gid);
            }
            Op::Utimens(path, atime, mtime) => {
                let id = self.lookup(path)?;
                let node = self.get_mut(id);
                (node.atime, node.mtime) = (Some(*atime), Some(*mtime));
                if matches!(node.kind, Kind::Dir(_) | Kind::Symlink(_)) {
                    // Looking at them (readdir, readlink) may count as an access.
                    node.atime = None;
                }
            }
            _ => unreachable!("the other operations were dealt with"),
        }
        Ok(Outcome::Done)
    }

    fn xattrs(&mut self, op: &Op) -> Result {
        let (Op::SetXattr(path, name, ..) | Op::GetXattr(path, name) | Op::RemoveXattr(path, name)) = op else {
            unreachable!("the other operations were dealt with")
        };
        let id = self.lookup(path)?;
        let node = self.get_mut(id);
        // user.* exists on files and folders only (xattr(7)).
        let allowed = matches!(node.kind, Kind::File(_) | Kind::Dir(_));
        let present = node.xattrs.contains_key(name.as_bytes());
        match op {
            Op::GetXattr(..) => {
                return node.xattrs.get(name.as_bytes()).cloned().map(Outcome::Bytes).ok_or(libc::ENODATA);
            }
            _ if !allowed => return Err(libc::EPERM),
            Op::SetXattr(_, _, _, SetFlag::Create) if present => return Err(libc::EEXIST),
            Op::SetXattr(_, _, _, SetFlag::Replace) | Op::RemoveXattr(..) if !present => return Err(libc::ENODATA),
            Op::SetXattr(_, _, value, _) => {
                node.xattrs.insert(name.as_bytes().to_vec(), value.clone());
            }
            _ => {
                node.xattrs.remove(name.as_bytes());
            }
        }
        Ok(Outcome::Done)
    }
}
