#![allow(clippy::unwrap_used)]

use super::*;
use crate::limits::FILE_SIZE_MAX;

const KEEP: u32 = 1;
const PUNCH: u32 = 3;
const ZERO: u32 = 16;

/// A small generator (xorshift64*), so that a run can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

#[test]
fn a_hole_shows_nothing_of_what_was_read_before() {
    let fs = new_fs();
    let (full, sparse) = (new_file(&fs, "full"), new_file(&fs, "sparse"));
    fs.write(full, 0, &[7; 80_000]).unwrap();
    fs.write(sparse, 8192, &[1; 5000]).unwrap();
    fs.fallocate(sparse, 20_480, 8192, 0).unwrap();
    fs.write(sparse, 40_000, &[2; 3]).unwrap();
    let mut expected = vec![0; 40_003];
    expected[8192..13_192].fill(1);
    expected[40_000..].fill(2);
    let mut scratch = Vec::new();
    for (offset, size) in
        [(0, 80_000), (0, 8192), (1, 9000), (12_000, 10_000), (20_480, 4096), (39_999, 80_000), (40_003, 9)]
    {
        assert!(fs.read(full, 0, 80_000, &mut scratch).unwrap().iter().all(|byte| *byte == 7));
        let content = fs.read(sparse, offset as u64, size, &mut scratch).unwrap();
        assert_eq!(content, &expected[offset..expected.len().min(offset + size)], "{size} bytes at {offset}");
    }
}

#[test]
fn what_was_written_is_read() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    tick();
    assert_eq!(fs.write(ino, 0, b"hello").unwrap(), 5);
    assert_eq!(fs.write(ino, 5, b" world").unwrap(), 6);
    assert_eq!(read_all(&fs, ino), b"hello world");
    let mut out = b"> ".to_vec();
    out.extend_from_slice(fs.read(ino, 6, 3, &mut Vec::new()).unwrap());
    assert_eq!(out, b"> wor");
    out.extend_from_slice(fs.read(ino, 11, 10, &mut Vec::new()).unwrap());
    out.extend_from_slice(fs.read(ino, u64::MAX, 10, &mut Vec::new()).unwrap());
    assert_eq!(out.len(), 5);
    let attr = fs.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.blocks), (11, 8));
    assert!(attr.mtime > attr.btime && attr.ctime == attr.mtime);
    fails(fs.read(Ino::ROOT, 0, 1, &mut Vec::new()), libc::EISDIR);
    fails(fs.write(Ino::ROOT, 0, b"a"), libc::EISDIR);
    sound(&fs);
}

/// Found by comparing a mounted tree with itself after a remount: the times of files that were written twice within 4 ms
/// had moved.
#[test]
fn regression_data_that_the_kernel_held_back_leaves_its_times() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.write_back(ino, 0, b"first").unwrap();
    let kernels = Time { s: now().s - 1, ns: 0 };
    let times = SetAttr { mtime: Some(SetTime::At(kernels)), ctime: Some(kernels), ..SetAttr::default() };
    fs.setattr(ino, &times).unwrap();
    fs.write_back(ino, 5, b" and second").unwrap();
    fs.write_back(ino, 0, &[1; 8192]).unwrap();
    let attr = fs.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.mtime, attr.ctime), (8192, kernels, kernels));
    // But a crash before the kernel's times come must not leave times from long ago with new data.
    fs.setattr(ino, &SetAttr { mtime: Some(SetTime::At(Time { s: 7, ns: 0 })), ..SetAttr::default() }).unwrap();
    fs.write_back(ino, 0, b"third").unwrap();
    assert!(fs.getattr(ino).unwrap().mtime > kernels);
    sound(&fs);
}

/// Found on a full volume: after a big file was removed, of several writes at once only the one that made the commit found
/// the space; the others saw nothing left to release, and failed.
#[test]
fn regression_space_that_a_commit_in_flight_releases_is_waited_for() {
    let fs = sized_fs(1024);
    let files: Vec<Ino> = (0..4).map(|at| new_file(&fs, &format!("f{at}"))).collect();
    for round in 0..20 {
        let fill = new_file(&fs, "fill");
        let error = (0..).find_map(|at| fs.write(fill, at << 18, &[1; 1 << 18]).err()).unwrap();
        assert_eq!(error.errno(), libc::ENOSPC);
        fs.unlink(Ino::ROOT, b"fill").unwrap();
        fs.forget(fill, 1);
        std::thread::scope(|scope| {
            let write = |ino: Ino| fs.write(ino, 0, &[round; 300_000]);
            let writers: Vec<_> = files.iter().map(|&ino| scope.spawn(move || write(ino))).collect();
            for writer in writers {
                assert_eq!(writer.join().unwrap().unwrap(), 300_000);
            }
        });
        for &ino in &files {
            truncate(&fs, ino, 0);
        }
    }
    sound(&fs);
}

#[test]
fn holes_read_as_zeros_and_cost_nothing() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.write(ino, (8 << 40) - 3, b"end").unwrap();
    let attr = fs.getattr(ino).unwrap();
    assert_eq!((attr.size, attr.blocks), (8 << 40, 8));
    let mut out = Vec::new();
    out.extend_from_slice(fs.read(ino, (8 << 40) - 10_000, 20_000, &mut Vec::new()).unwrap());
    assert_eq!(out.len(), 10_000);
    assert!(out[..9_997].iter().all(|byte| *byte == 0) && out.ends_with(b"end"));
    fails(fs.write(ino, FILE_SIZE_MAX, b"a"), libc::EFBIG);
    fails(fs.write(ino, u64::MAX, b"aa"), libc::EFBIG);
    fails(fs.setattr(ino, &SetAttr { size: Some(FILE_SIZE_MAX + 1), ..SetAttr::default() }), libc::EFBIG);
    truncate(&fs, ino, FILE_SIZE_MAX);
    sound(&fs);
}

#[test]
fn truncated_bytes_never_come_back() {
    type Grow = fn(&Fs, Ino);
    let ways: [Grow; 5] = [
        |fs, ino| assert_eq!(truncate(fs, ino, 20_000).size, 20_000),
        |fs, ino| assert_eq!(fs.write(ino, 12_288, &[1; 4096]).unwrap(), 4096),
        |fs, ino| assert_eq!(fs.write(ino, 3000, b"x").unwrap(), 1),
        |fs, ino| fs.fallocate(ino, 8192, 4096, 0).unwrap(),
        |fs, ino| fs.fallocate(ino, 8192, 100, ZERO).unwrap(),
    ];
    for (way, grow) in ways.iter().enumerate() {
        let fs = new_fs();
        let ino = new_file(&fs, "f");
        fs.write(ino, 0, &[0xaa; 9000]).unwrap();
        truncate(&fs, ino, 2000);
        assert_eq!(fs.getattr(ino).unwrap().blocks, 8);
        grow(&fs, ino);
        let content = read_all(&fs, ino);
        assert!(content.len() > 3000, "way {way}");
        assert!(content[2000..3000].iter().all(|byte| *byte == 0), "way {way}");
        assert!(content[3001..12_288.min(content.len())].iter().all(|byte| *byte == 0), "way {way}");
        sound(&fs);
    }
}

#[test]
fn overwriting_the_middle_splits_an_extent() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    let mut wanted: Vec<u8> = (0..100 * 4096_u32).map(|i| (i / 4096) as u8).collect();
    fs.write(ino, 0, &wanted).unwrap();
    for block in [50, 0, 99, 51, 20] {
        fs.write(ino, block * 4096, &[0xee; 4096]).unwrap();
        wanted[block as usize * 4096..][..4096].fill(0xee);
        sound(&fs);
    }
    assert_eq!(read_all(&fs, ino), wanted);
    assert_eq!(fs.getattr(ino).unwrap().blocks, 800);
}

#[test]
fn space_is_reserved_ahead_and_found_by_seek() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    fs.fallocate(ino, 0, 10 * 4096, KEEP).unwrap();
    assert_eq!((fs.getattr(ino).unwrap().size, fs.getattr(ino).unwrap().blocks), (0, 80));
    fs.fallocate(ino, 4096, 9 * 4096, 0).unwrap();
    assert_eq!((fs.getattr(ino).unwrap().size, fs.getattr(ino).unwrap().blocks), (40_960, 80));
    fails(fs.seek(ino, 0, Seek::Data), libc::ENXIO);
    let free = fs.available();
    fs.write(ino, 8192 + 10, &[7; 4096]).unwrap();
    assert_eq!(fs.available(), free, "reserved blocks are used");
    assert_eq!(fs.seek(ino, 0, Seek::Data).unwrap(), 8192);
    assert_eq!(fs.seek(ino, 9000, Seek::Data).unwrap(), 9000);
    assert_eq!(fs.seek(ino, 0, Seek::Hole).unwrap(), 0);
    assert_eq!(fs.seek(ino, 9000, Seek::Hole).unwrap(), 16_384);
    fails(fs.seek(ino, 16_384, Seek::Data), libc::ENXIO);
    fails(fs.seek(ino, 40_960, Seek::Hole), libc::ENXIO);
    fs.fallocate(ino, 0, 16_000, PUNCH).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().blocks, 56);
    assert!(read_all(&fs, ino).iter().all(|byte| *byte == 0));
    fails(fs.fallocate(ino, 0, 0, 0), libc::EINVAL);
    fails(fs.fallocate(ino, 0, 1, 2), libc::EOPNOTSUPP);
    fails(fs.fallocate(ino, 0, 4096, 8), libc::EOPNOTSUPP);
    fails(fs.fallocate(ino, u64::MAX, 4096, 0), libc::EFBIG);
    fails(fs.fallocate(ino, 0, BLOCKS * 4096, 0), libc::ENOSPC);
    assert_eq!(fs.getattr(ino).unwrap().blocks, 56);
    sound(&fs);
}

#[test]
fn a_full_volume_recovers() {
    let fs = sized_fs(800);
    let ino = new_file(&fs, "f");
    let mut size = 0;
    let error = loop {
        match fs.write(ino, size, &[1; 4096]) {
            Ok(_) => size += 4096,
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), libc::ENOSPC);
    assert_eq!(fs.getattr(ino).unwrap().size, size);
    while fs.mknod(&USER, Ino::ROOT, format!("{}", fs.changes.load(Ordering::Relaxed)).as_bytes(), 0o644, 0).is_ok() {}
    fails(fs.mknod(&USER, Ino::ROOT, b"g", 0o644, 0), libc::ENOSPC);
    fs.setattr(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    truncate(&fs, ino, 4096 + 100);
    // What was freed can be used at once: the write commits first.
    assert_eq!(fs.write(ino, 8192, &[2; 4096]).unwrap(), 4096);
    fs.unlink(Ino::ROOT, b"f").unwrap();
    fs.forget(ino, 1);
    let again = new_file(&fs, "f");
    fs.write(again, 0, &vec![3; size as usize - 16 * 4096]).unwrap();
    nothing_is_lost(&fs);
    sound(&fs);
}

#[test]
fn a_huge_file_is_freed_in_steps() {
    let fs = sized_fs(6000);
    let ino = new_file(&fs, "f");
    for i in 0..2 * STEP as u64 + 100 {
        fs.write(ino, i * 8192, &[1; 4096]).unwrap();
    }
    let attr = truncate(&fs, ino, 4096);
    assert_eq!((attr.size, attr.blocks), (4096, 8));
    assert_eq!(fs.view(|view| Ok(view.trims()?)).unwrap(), []);
    assert!(!fs.existing(ino).unwrap().has(crate::meta::FLAG_TRIM));
    sound(&fs);
}

#[test]
fn copies_are_whole() {
    let fs = new_fs();
    let (from, to) = (new_file(&fs, "a"), new_file(&fs, "b"));
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 100) as u8).collect();
    fs.write(from, 0, &data).unwrap();
    assert_eq!(fs.copy_range(from, 10, to, 7, 5_000_000).unwrap(), 2_999_990);
    assert_eq!(read_all(&fs, to)[7..], data[10..]);
    fails(fs.copy_range(from, 0, from, 100, 200), libc::EINVAL);
    assert_eq!(fs.copy_range(from, 0, from, 200, 200).unwrap(), 200);
    assert_eq!(fs.copy_range(from, 1 << 40, to, 0, 10).unwrap(), 0);
    fails(fs.copy_range(from, 0, to, FILE_SIZE_MAX, 10), libc::EFBIG);
    sound(&fs);
}

/// Sets a range of bytes, beyond the end only if it is to `grow`.
fn fill(wanted: &mut Vec<u8>, range: std::ops::Range<usize>, byte: u8, grow: bool) {
    if grow && wanted.len() < range.end {
        wanted.resize(range.end, 0);
    }
    let end = range.end.min(wanted.len());
    if range.start < end {
        wanted[range.start..end].fill(byte);
    }
}

/// Every operation on content against a plain vector of bytes.
#[test]
fn content_follows_a_vector_of_bytes() {
    for seed in 1..=12 {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let mut fs = new_fs();
        let ino = new_file(&fs, "f");
        let mut wanted: Vec<u8> = Vec::new();
        for step in 0..400_u32 {
            let unit = [1, 512, 4096][dice.below(3) as usize];
            let offset = dice.below(400_000) / unit * unit;
            let len = (1 + dice.below(if step % 10 == 0 { 300_000 } else { 20_000 })).div_ceil(unit) * unit;
            let (begin, end) = (offset as usize, (offset + len) as usize);
            let fill = |wanted: &mut Vec<u8>, byte, grow| fill(wanted, begin..end, byte, grow);
            match dice.below(11) {
                0..=3 => {
                    let byte = step as u8 | 1;
                    fs.write(ino, offset, &vec![byte; len as usize]).unwrap();
                    fill(&mut wanted, byte, true);
                }
                4 | 5 => {
                    truncate(&fs, ino, offset);
                    wanted.resize(begin, 0);
                }
                6 => {
                    fs.fallocate(ino, offset, len, PUNCH).unwrap();
                    fill(&mut wanted, 0, false);
                }
                7 => {
                    let keep = dice.below(2) as u32;
                    fs.fallocate(ino, offset, len, ZERO | keep).unwrap();
                    fill(&mut wanted, 0, keep == 0);
                }
                8 => {
                    let keep = dice.below(2) as u32;
                    fs.fallocate(ino, offset, len, keep).unwrap();
                    if keep == 0 && wanted.len() < end {
                        wanted.resize(end, 0);
                    }
                }
                9 => {
                    let mut out = Vec::new();
                    out.extend_from_slice(fs.read(ino, offset, len as usize, &mut Vec::new()).unwrap());
                    assert_eq!(out, wanted[begin.min(wanted.len())..end.min(wanted.len())]);
                }
                _ => {
                    fs.sync().unwrap();
                    if step % 7 == 0 {
                        fs = remount(fs);
                    }
                }
            }
            assert_eq!(fs.getattr(ino).unwrap().size, wanted.len() as u64);
            if step % 8 == 0 {
                assert!(read_all(&fs, ino) == wanted, "seed {seed} step {step}");
                sound(&fs);
            }
        }
        fs.sync().unwrap();
        let fs = remount(fs);
        assert!(read_all(&fs, ino) == wanted, "seed {seed}");
        nothing_is_lost(&fs);
        fs.unlink(Ino::ROOT, b"f").unwrap();
        nothing_is_lost(&fs);
    }
}

#[test]
fn writers_at_once_lose_nothing() {
    let fs = new_fs();
    let ino = new_file(&fs, "f");
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let fs = &fs;
            scope.spawn(move || {
                for i in 0..100 {
                    let at = (i * 4 + thread) * 1000;
                    fs.write(ino, at, &[thread as u8 + 1; 1000]).unwrap();
                    let mut out = Vec::new();
                    out.extend_from_slice(fs.read(ino, at, 1000, &mut Vec::new()).unwrap());
                    assert_eq!(out, [thread as u8 + 1; 1000]);
                    if i % 10 == thread {
                        fs.sync().unwrap();
                    }
                }
            });
        }
    });
    let content = read_all(&fs, ino);
    assert_eq!(content.len(), 400_000);
    assert!(content.chunks(1000).enumerate().all(|(i, chunk)| chunk.iter().all(|byte| *byte == (i % 4) as u8 + 1)));
    sound(&fs);
}

#[test]
fn readers_beside_a_writer_see_whole_blocks_of_this_file_or_its_past() {
    // So small that blocks which were freed are soon written again.
    let fs = sized_fs(2000);
    let ino = new_file(&fs, "f");
    let blocks = 64;
    fs.write(ino, 0, &vec![1; blocks * BLOCK_SIZE]).unwrap();
    let written = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (fs, written) = (&fs, &written);
            scope.spawn(move || {
                let mut dice = Dice(seed + 1);
                let mut out = Vec::new();
                while written.load(Ordering::Acquire) < 200 {
                    let at_least = written.load(Ordering::Acquire) as u8;
                    let (first, count) = (dice.below(blocks as u64 - 4), 1 + dice.below(4));
                    out.clear();
                    out.extend_from_slice(
                        fs.read(ino, first * BLOCK_SIZE as u64, count as usize * BLOCK_SIZE, &mut Vec::new()).unwrap(),
                    );
                    for block in out.chunks(BLOCK_SIZE) {
                        assert!(block.iter().all(|byte| *byte == block[0]) && block[0] >= at_least, "{}", block[0]);
                    }
                }
            });
        }
        let mut failed = None;
        for value in 2..=200_u64 {
            let done = fs.write(ino, 0, &vec![value as u8; blocks * BLOCK_SIZE]);
            failed = failed.or(done.and_then(|_| if value % 3 == 0 { fs.sync() } else { Ok(()) }).err());
            // Also after a failure: the readers end with it.
            written.store(value, Ordering::Release);
        }
        assert!(failed.is_none(), "{failed:?}");
    });
    assert!(read_all(&fs, ino).iter().all(|byte| *byte == 200));
    nothing_is_lost(&fs);
}
