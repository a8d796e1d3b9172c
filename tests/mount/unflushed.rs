//! Files whose data is still with the kernel: whoever looks at them from outside, by whatever means, sees what was
//! written.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::lab::{Lab, ok, run, stderr};

/// What is done to the file at `path` before anybody looks; the process then keeps what it has. `open` makes it anew.
const DIRTIED: [(&str, &str); 9] = [
    ("written", "f = open(); os.pwrite(f, data, 0)"),
    ("written behind a hole", "f = open(); os.pwrite(f, data, 3000000)"),
    ("written and made durable", "f = open(); os.pwrite(f, data, 0); os.fsync(f)"),
    ("made longer, then written", "f = open(); os.ftruncate(f, 4 << 20); os.pwrite(f, data, 1 << 20)"),
    ("mapped", "f = open(); os.ftruncate(f, 4 << 20); m = mmap.mmap(f, 4 << 20); m[100000:100000 + len(data)] = data"),
    (
        "mapped and closed",
        "f = open(); os.ftruncate(f, 4 << 20); m = mmap.mmap(f, 4 << 20); os.close(f); m[9:9 + len(data)] = data",
    ),
    ("empty before", "os.close(open()); os.stat(path); f = os.open(path, os.O_RDWR); os.pwrite(f, data, 0)"),
    ("full before", "f = open(); os.pwrite(f, b'old' * 9999, 0); os.close(f); f = open(); os.pwrite(f, data, 0)"),
    (
        "a hole before",
        "f = open(); os.ftruncate(f, 4 << 20); os.close(f); os.stat(path); f = os.open(path, os.O_RDWR);\
                       m = mmap.mmap(f, 4 << 20); os.close(f); m[1 << 20:(1 << 20) + len(data)] = data",
    ),
];

/// Who looks: a shell script with the file as `$1` and a new file on another filesystem as `$2`. What is then in `$2`, when
/// it is there, must be what is in `$1`.
const LOOKS: [(&str, &str); 7] = [
    ("stat", "[ $(stat -c %b \"$1\") -gt 0 ]"),
    ("stat, twice", "stat \"$1\" >\"$2.stat\"; [ $(stat -c %b \"$1\") -gt 0 ]"),
    ("du", "[ $(du -k \"$1\" | cut -f1) -gt 0 ]"),
    ("tar", "tar -C \"$(dirname \"$1\")\" -cSf \"$2.tar\" \"$(basename \"$1\")\"; tar -xSOf \"$2.tar\" >\"$2\""),
    ("cp", "cp --sparse=auto \"$1\" \"$2\""),
    ("cp, beside it", "cp --sparse=auto --reflink=auto \"$1\" \"$1.copy\"; cat \"$1.copy\" >\"$2\"; rm \"$1.copy\""),
    ("rsync", "rsync --sparse \"$1\" \"$2\""),
];

/// A process that has done something to a file, and has not ended.
struct Holder(Child);

impl Holder {
    fn start(path: &Path, script: &str) -> Self {
        let prologue = "import mmap, os, sys\npath = sys.argv[1]\ndata = bytes(range(1, 256)) * 400\n\
                        def open(): return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)\n";
        let script = format!("{prologue}{script}\nprint('done', flush=True)\nsys.stdin.read()\n");
        let mut python = Command::new("python3");
        python.arg("-c").arg(script).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn p8_what_the_kernel_still_holds_is_seen_by_whoever_looks() {
    let lab = Lab::mounted(1, 128);
    let (path, copy) = (lab.mountpoint.join("f"), lab.path("copy"));
    for (how, script) in DIRTIED {
        for (who, look) in LOOKS {
            let holder = Holder::start(&path, script);
            let out = run(Command::new("sh").args(["-euc", look, "sh"]).args([&path, &copy]));
            assert!(out.status.success(), "{who}, {how}: {}", stderr(&out));
            if copy.exists() {
                assert!(fs::read(&path).unwrap() == fs::read(&copy).unwrap(), "{who}, {how}: the copy differs");
                fs::remove_file(&copy).unwrap();
            }
            drop(holder);
            fs::remove_file(&path).unwrap();
        }
    }
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn holes_and_empty_files_take_no_blocks() {
    let lab = Lab::mounted(1, 128);
    let at = |name: &str| lab.mountpoint.join(name);
    File::create(at("empty")).unwrap();
    File::create(at("hole")).unwrap().set_len(100 << 20).unwrap();
    let file = File::create(at("sparse")).unwrap();
    file.set_len(100 << 20).unwrap();
    file.write_all_at(&[7; 4096], 50 << 20).unwrap();
    drop(file);
    fs::write(at("emptied"), [1; 5000]).unwrap();
    drop(OpenOptions::new().write(true).truncate(true).open(at("emptied")).unwrap());
    for remounted in [false, true] {
        for (name, blocks) in [("empty", 0), ("hole", 0), ("sparse", 8), ("emptied", 0)] {
            for _ in 0..2 {
                assert_eq!(fs::metadata(at(name)).unwrap().blocks(), blocks, "{name}, remounted: {remounted}");
            }
        }
        let tar = "tar -cSf - empty hole sparse emptied | wc -c; cp --sparse=auto hole sparse \"$1\"; du -k \"$1\"/* | cut -f1";
        fs::create_dir(lab.path("out")).unwrap();
        let out = run(Command::new("sh").args(["-euc", tar, "sh"]).arg(lab.path("out")).current_dir(&lab.mountpoint));
        ok(&out);
        let figures: Vec<u64> =
            String::from_utf8_lossy(&out.stdout).split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert!(figures.iter().all(|figure| *figure <= 20_480), "a hole was filled: {figures:?}");
        assert!(figures[1..].iter().all(|kib| *kib <= 64), "a hole was filled: {figures:?}");
        fs::remove_dir_all(lab.path("out")).unwrap();
        if !remounted {
            ok(&lab.umount());
            ok(&lab.mount());
        }
    }
    // One that only reads does not change what others see.
    let mut out = std::io::sink();
    out.write_all(&fs::read(at("hole")).unwrap()).unwrap();
    assert!(fs::metadata(at("hole")).unwrap().blocks() <= 8);
}
