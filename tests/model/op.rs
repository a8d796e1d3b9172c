//! The operations, and how they are drawn: paths over a two-letter alphabet, so that they meet often.

use crate::rng::Rng;

/// Names from the root folder down; empty is the root itself.
pub type Path = Vec<Vec<u8>>;

/// How many files a run holds open at once.
pub const SLOTS: usize = 4;

/// Mode of fallocate(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    Extend,
    KeepSize,
    Punch,
    Zero,
    ZeroKeepSize,
}

/// Flags of renameat2(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    Plain,
    NoReplace,
    Exchange,
}

/// Flags of setxattr(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetFlag {
    Either,
    Create,
    Replace,
}

/// What an operation on file content is addressed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum File {
    At(Path),
    Open(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create(Path, u32),
    Mkdir(Path, u32),
    Symlink(Path, Vec<u8>),
    Mkfifo(Path, u32),
    Link(Path, Path),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path, Rename),
    Open(usize, Path),
    Close(usize),
    Write(File, u64, Vec<u8>),
    Read(File, u64, usize),
    Truncate(File, u64),
    Fallocate(File, u64, u64, Allocate),
    Copy(File, u64, File, u64, u64),
    SeekData(File, u64),
    SeekHole(File, u64),
    Chmod(Path, u32),
    Chown(Path, u32, u32),
    Utimens(Path, (i64, u32), (i64, u32)),
    SetXattr(Path, &'static str, Vec<u8>, SetFlag),
    GetXattr(Path, &'static str),
    RemoveXattr(Path, &'static str),
    Fsync(File),
    Compare,
    Remount,
}

const NAMES: &[&[u8]] = &[b"a", b"b", b"aa", b"ab", b"ba", b"b\xff\\\n"];
const XATTRS: &[&str] = &["user.a", "user.b", "user.long-name-of-an-attribute"];
const FILE_MODES: &[u32] = &[0o644, 0o600, 0o755, 0o444, 0];
const DIR_MODES: &[u32] = &[0o755, 0o700, 0o1777, 0o2775];

fn path(rng: &mut Rng) -> Path {
    let depth = 1 + rng.below(3).min(rng.below(3));
    let long = rng.one_in(60);
    let mut path: Path = (0..depth).map(|_| rng.pick(NAMES).to_vec()).collect();
    if long {
        // NAME_MAX and one more.
        path.pop();
        path.push(vec![b'n'; if rng.one_in(3) { 256 } else { 255 }]);
    }
    path
}

fn file(rng: &mut Rng) -> File {
    if rng.one_in(3) { File::Open(rng.below(SLOTS as u64) as usize) } else { File::At(path(rng)) }
}

/// Offsets and lengths around the boundaries that matter: blocks, extents, requests; and now and then very far out.
fn offset(rng: &mut Rng) -> u64 {
    match rng.below(12) {
        0 => 0,
        1 => (1 << 40) + rng.below(10_000),
        2..=5 => rng.below(40) * 4096,
        6 => (rng.below(40) + 1) * 4096 - 1 - rng.below(3),
        7 => 262_144 + rng.below(9) * 4096 - rng.below(2),
        _ => rng.below(40_000),
    }
}

fn length(rng: &mut Rng) -> u64 {
    match rng.below(10) {
        0 => 1,
        1 => 4096,
        2 => 65_536 + rng.below(70_000),
        3..=5 => 1 + rng.below(3) * 4096 + rng.below(4096),
        _ => 1 + rng.below(5000),
    }
}

fn bytes(rng: &mut Rng, length: u64) -> Vec<u8> {
    if rng.one_in(12) {
        return vec![0; length as usize];
    }
    let mut data = Vec::with_capacity(length as usize + 8);
    while data.len() < length as usize {
        data.extend_from_slice(&rng.next().to_le_bytes());
    }
    data.truncate(length as usize);
    data
}

fn time(rng: &mut Rng) -> (i64, u32) {
    let seconds = match rng.below(5) {
        0 => -1 - rng.below(1_000_000).cast_signed(),
        1 => (1 << 33) + rng.below(1000).cast_signed(),
        _ => rng.below(2_000_000_000).cast_signed(),
    };
    (seconds, rng.below(1_000_000_000) as u32)
}

impl Op {
    /// Draws the next operation.
    pub fn draw(rng: &mut Rng) -> Self {
        match rng.below(100) {
            0..=9 => Self::Create(path(rng), rng.pick(FILE_MODES)),
            10..=15 => Self::Mkdir(path(rng), rng.pick(DIR_MODES)),
            16 | 17 => {
                let length = if rng.one_in(8) { 4000 } else { 1 + rng.below(200) };
                Self::Symlink(path(rng), format!("/nonexistent/{}", "t".repeat(length as usize)).into_bytes())
            }
            18 => Self::Mkfifo(path(rng), rng.pick(FILE_MODES)),
            19..=22 => Self::Link(path(rng), path(rng)),
            23..=27 => Self::Unlink(path(rng)),
            28..=30 => Self::Rmdir(path(rng)),
            31..=38 => {
                let flag = rng.pick(&[Rename::Plain, Rename::Plain, Rename::NoReplace, Rename::Exchange]);
                Self::Rename(path(rng), path(rng), flag)
            }
            39..=42 => Self::Open(rng.below(SLOTS as u64) as usize, path(rng)),
            43 | 44 => Self::Close(rng.below(SLOTS as u64) as usize),
            45..=60 => {
                let length = length(rng);
                Self::Write(file(rng), offset(rng), bytes(rng, length))
            }
            61..=66 => Self::Read(file(rng), offset(rng), length(rng) as usize),
            67..=70 => Self::Truncate(file(rng), offset(rng)),
            71..=75 => {
                let how = [
                    Allocate::Extend,
                    Allocate::KeepSize,
                    Allocate::Punch,
                    Allocate::Punch,
                    Allocate::Zero,
                    Allocate::ZeroKeepSize,
                ];
                Self::Fallocate(file(rng), offset(rng), length(rng) * 2, rng.pick(&how))
            }
            76 | 77 => Self::Copy(file(rng), offset(rng), file(rng), offset(rng), length(rng)),
            78 => Self::SeekData(file(rng), offset(rng)),
            79 => Self::SeekHole(file(rng), offset(rng)),
            80..=82 => Self::Chmod(path(rng), rng.pick(FILE_MODES)),
            83 | 84 => Self::Chown(path(rng), rng.below(3) as u32, rng.below(3) as u32),
            85..=87 => Self::Utimens(path(rng), time(rng), time(rng)),
            88..=91 => {
                let length = if rng.one_in(10) { 9000 } else { rng.below(100) };
                let flag = rng.pick(&[SetFlag::Either, SetFlag::Either, SetFlag::Create, SetFlag::Replace]);
                Self::SetXattr(path(rng), rng.pick(XATTRS), bytes(rng, length), flag)
            }
            92 => Self::GetXattr(path(rng), rng.pick(XATTRS)),
            93 | 94 => Self::RemoveXattr(path(rng), rng.pick(XATTRS)),
            95..=97 => Self::Fsync(file(rng)),
            98 => Self::Compare,
            _ if rng.one_in(3) => Self::Remount,
            _ => Self::Compare,
        }
    }
}
