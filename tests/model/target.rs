//! What the operations are carried out on, and the comparison of its whole tree with the reference.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::op::{File, Op, Path};
use crate::reference::{Content, Kind, Outcome, ROOT, Reference, Result};

/// Bytes compared at a time.
const CHUNK: u64 = 128 << 10;

/// Attributes as the target shows them.
#[derive(Clone, Debug)]
pub struct Seen {
    pub ino: u64,
    /// File type and permission bits, as in `st_mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
}

pub trait Target {
    /// Carries one operation out.
    fn apply(&mut self, op: &Op) -> Result;

    /// lstat(2).
    fn stat(&mut self, path: &Path) -> std::result::Result<Seen, i32>;

    /// Names in a folder, without `.` and `..`, in any order.
    fn list(&mut self, path: &Path) -> std::result::Result<Vec<Vec<u8>>, i32>;

    /// readlink(2).
    fn readlink(&mut self, path: &Path) -> std::result::Result<Vec<u8>, i32>;

    /// Every extended attribute of the user's name space.
    fn xattrs(&mut self, path: &Path) -> std::result::Result<BTreeMap<Vec<u8>, Vec<u8>>, i32>;
}

/// Walks both trees side by side.
///
/// # Panics
/// With the path at which they differ.
pub fn compare(reference: &Reference, target: &mut dyn Target) {
    let mut inodes = HashMap::new();
    let mut ids = HashMap::new();
    let mut queue = VecDeque::from([(Path::new(), ROOT)]);
    while let Some((path, id)) = queue.pop_front() {
        let shown = show(&path);
        let node = reference.get(id);
        let seen = target.stat(&path).unwrap_or_else(|errno| panic!("{shown}: stat fails with {errno}"));
        // Same inode here, same inode there, and the other way round.
        assert_eq!(*inodes.entry(seen.ino).or_insert(id), id, "{shown}: two files share inode {}", seen.ino);
        // At its second link the first comparison of its content has counted as an access.
        let first_sight = !ids.contains_key(&id);
        assert_eq!(*ids.entry(id).or_insert(seen.ino), seen.ino, "{shown}: links of one file differ in inode");
        let kind = match node.kind {
            Kind::File(_) => libc::S_IFREG,
            Kind::Dir(_) => libc::S_IFDIR,
            Kind::Symlink(_) => libc::S_IFLNK,
            Kind::Fifo => libc::S_IFIFO,
        };
        assert_eq!(format!("{:o}", seen.mode), format!("{:o}", kind | node.perm), "{shown}: mode");
        assert_eq!((seen.uid, seen.gid), (node.uid, node.gid), "{shown}: owner and group");
        assert_eq!(seen.nlink, node.nlink, "{shown}: number of links");
        assert!(
            node.mtime.is_none_or(|time| time == seen.mtime),
            "{shown}: mtime {:?}, set {:?}",
            seen.mtime,
            node.mtime
        );
        assert!(
            !first_sight || node.atime.is_none_or(|time| time == seen.atime),
            "{shown}: atime {:?}, set {:?}",
            seen.atime,
            node.atime
        );
        match &node.kind {
            Kind::Dir(entries) => {
                let mut names =
                    target.list(&path).unwrap_or_else(|errno| panic!("{shown}: readdir fails with {errno}"));
                names.sort();
                let expected: Vec<Vec<u8>> = entries.keys().cloned().collect();
                assert_eq!(names, expected, "{shown}: names");
                for (name, &child) in entries {
                    let mut below = path.clone();
                    below.push(name.clone());
                    queue.push_back((below, child));
                }
            }
            Kind::File(content) => {
                assert_eq!(seen.size, content.size, "{shown}: size");
                compare_content(&path, content, target);
            }
            Kind::Symlink(link) => assert_eq!(&target.readlink(&path).unwrap(), link, "{shown}: target"),
            Kind::Fifo => {}
        }
        let xattrs = target.xattrs(&path).unwrap_or_else(|errno| panic!("{shown}: listxattr fails with {errno}"));
        assert_eq!(xattrs, node.xattrs, "{shown}: extended attributes");
    }
}

pub fn show(path: &Path) -> String {
    path.iter()
        .fold(String::from("/"), |text, name| text + &String::from_utf8_lossy(name).escape_debug().to_string() + "/")
}

/// Compares what the reference wrote, and what the target says is data.
fn compare_content(path: &Path, content: &Content, target: &mut dyn Target) {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut add = |from: u64, to: u64| match ranges.last_mut() {
        Some((_, end)) if *end == from => *end = to,
        _ => ranges.push((from, to)),
    };
    for &page in content.pages.keys() {
        add(page * 4096, page * 4096 + 4096);
    }
    let mut at = 0;
    while let Ok(Outcome::Offset(data)) = target.apply(&Op::SeekData(File::At(path.clone()), at)) {
        let Ok(Outcome::Offset(hole)) = target.apply(&Op::SeekHole(File::At(path.clone()), data)) else {
            panic!("{}: data at {data}, but no hole after it", show(path))
        };
        assert!(data >= at && hole > data, "{}: data at {data}, hole at {hole}, from {at}", show(path));
        ranges.push((data, hole));
        at = hole;
    }
    // The last byte, which is a hole as often as not.
    ranges.push((content.size.saturating_sub(1), content.size + 1));
    for (from, to) in ranges {
        let mut at = from;
        while at < to {
            let length = (to - at).min(CHUNK) as usize;
            let got = target.apply(&Op::Read(File::At(path.clone()), at, length));
            let Ok(Outcome::Bytes(bytes)) = got else { panic!("{}: read at {at} gives {got:?}", show(path)) };
            let expected = content.read(at, length);
            if bytes != expected {
                let place = bytes.iter().zip(&expected).position(|(a, b)| a != b);
                let lengths = (bytes.len(), expected.len());
                panic!("{}: content differs from byte {at} + {place:?}, lengths {lengths:?}", show(path));
            }
            at += length as u64;
        }
    }
}
