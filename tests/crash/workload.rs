//! Random operations on an open filesystem, and what it looks like.

use std::collections::BTreeMap;

use scelle::fs::{Caller, Error, Fs, Kind, RenameFlags, SetAttr};
use scelle::units::Ino;

use crate::support::rng::Rng;

const CALLER: Caller = Caller { uid: 1000, gid: 100, umask: 0o022 };
const NAMES: [&[u8]; 6] = [b"a", b"b", b"aa", b"ab", b"ba", b"bb"];

/// Everything that a user can see but times: path to description.
pub type Tree = BTreeMap<Vec<u8>, String>;

/// Looks at the whole tree.
///
/// # Errors
/// The first error of any call.
pub fn look(fs: &Fs) -> Result<Tree, Error> {
    let mut tree = Tree::new();
    walk(fs, Ino::ROOT, &mut Vec::new(), &mut tree)?;
    Ok(tree)
}

fn walk(fs: &Fs, ino: Ino, path: &mut Vec<u8>, tree: &mut Tree) -> Result<(), Error> {
    let attr = fs.getattr(ino)?;
    let mut text = format!("{:o} {} {} {}", attr.mode, attr.nlink, attr.uid, attr.gid);
    match attr.kind {
        Kind::File => {
            let mut content = Vec::new();
            content.extend_from_slice(fs.read(ino, 0, attr.size as usize, &mut Vec::new())?);
            assert_eq!(content.len() as u64, attr.size);
            text += &format!(" {} {:016x}", attr.size, digest(&content));
        }
        Kind::Symlink => text += &String::from_utf8_lossy(&fs.readlink(ino)?),
        _ => {}
    }
    for name in fs.listxattr(ino)?.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        text += &format!(" {}={:016x}", String::from_utf8_lossy(name), digest(&fs.getxattr(ino, name)?));
    }
    tree.insert(path.clone(), text);
    if attr.kind == Kind::Directory {
        let mut below = Vec::new();
        fs.readdir(ino, 0, false, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                below.push((entry.name.to_vec(), entry.ino));
            }
            true
        })?;
        for (name, child) in below {
            let len = path.len();
            path.push(b'/');
            path.extend(name);
            walk(fs, child, path, tree)?;
            path.truncate(len);
        }
    }
    Ok(())
}

/// FNV-1a, enough to tell contents apart.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One random operation; errors such as "exists" are part of the game.
pub fn step(fs: &Fs, rng: &mut Rng) {
    let (parent, name) = (folder(fs, rng), rng.pick(&NAMES));
    let outcome = match rng.below(17) {
        0..=2 => fs.mknod(&CALLER, parent, name, 0o644, 0).map(|attr| {
            fs.forget(attr.ino, 1);
            write(fs, attr.ino, rng);
        }),
        3..=6 => with(fs, parent, name, |ino| {
            write(fs, ino, rng);
            Ok(())
        }),
        7 => with(fs, parent, name, |ino| {
            let size = Some(rng.below(70_000));
            fs.setattr(ino, &SetAttr { size, ..SetAttr::default() }).map(drop)
        }),
        8 => fs.unlink(parent, name),
        9 => fs.mkdir(&CALLER, parent, name, 0o755).map(|attr| fs.forget(attr.ino, 1)),
        10 => fs.rmdir(parent, name),
        11 | 12 => {
            let flags =
                rng.pick(&[RenameFlags::Plain, RenameFlags::Plain, RenameFlags::NoReplace, RenameFlags::Exchange]);
            fs.rename(parent, name, folder(fs, rng), rng.pick(&NAMES), flags)
        }
        13 => with(fs, parent, name, |ino| {
            let at = folder(fs, rng);
            fs.link(ino, at, rng.pick(&NAMES)).map(|attr| fs.forget(attr.ino, 1))
        }),
        14 => with(fs, parent, name, |ino| {
            let value = vec![rng.next() as u8; rng.below(6000) as usize];
            fs.setxattr(ino, rng.pick(&[b"user.a", b"user.b"]), &value, 0)
        }),
        // Written and freed in the same commit, as a temporary file is.
        15 => fs.mknod(&CALLER, parent, name, 0o644, 0).and_then(|attr| {
            write(fs, attr.ino, rng);
            fs.forget(attr.ino, 1);
            fs.unlink(parent, name)
        }),
        _ => with(fs, parent, name, |ino| {
            let mode =
                rng.pick(&[0, libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE]);
            fs.fallocate(ino, rng.below(40_000), 1 + rng.below(40_000), mode.cast_unsigned())
        }),
    };
    if let Err(error) = outcome {
        assert!(!matches!(error.errno(), libc::EIO | libc::EROFS), "{error}");
    }
}

fn write(fs: &Fs, ino: Ino, rng: &mut Rng) {
    let offset = if rng.one_in(2) { rng.below(10) * 4096 } else { rng.below(50_000) };
    let len = match rng.below(12) {
        // More than the root of a small commit can list.
        0 => (40 + rng.below(20)) * 4096,
        1..=3 => (1 + rng.below(20)) * 4096,
        _ => 1 + rng.below(9000),
    };
    let data: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
    if let Err(error) = fs.write(ino, offset, &data) {
        assert!(matches!(error.errno(), libc::EISDIR | libc::EINVAL | libc::ENOSPC | libc::ESTALE), "{error}");
    }
}

fn with(fs: &Fs, parent: Ino, name: &[u8], f: impl FnOnce(Ino) -> Result<(), Error>) -> Result<(), Error> {
    let ino = fs.lookup(parent, name)?.ino;
    let done = f(ino);
    fs.forget(ino, 1);
    done
}

/// The root folder or, as often, a folder in it.
fn folder(fs: &Fs, rng: &mut Rng) -> Ino {
    let name = rng.pick(&NAMES);
    match fs.lookup(Ino::ROOT, name) {
        Ok(attr) => {
            fs.forget(attr.ino, 1);
            if attr.kind == Kind::Directory { attr.ino } else { Ino::ROOT }
        }
        Err(_) => Ino::ROOT,
    }
}
