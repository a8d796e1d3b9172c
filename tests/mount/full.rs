//! A volume without room: a program hears of it from the write(2) that finds none, and everything but writing goes on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::lab::{Lab, ok, run, stderr};

const MIB: usize = 1 << 20;

/// Writes until there is no room, in writes of so many bytes; returns how many were accepted.
fn fill(file: &File, chunk: usize) -> u64 {
    fill_from(file, chunk, 0)
}

/// As [`fill`], behind what was accepted before.
fn fill_from(file: &File, chunk: usize, mut done: u64) -> u64 {
    let bytes: Vec<u8> = (0..chunk).map(|at| (at % 251) as u8).collect();
    while done < 1 << 33 {
        match file.write_at(&bytes, done) {
            Ok(count) => done += count as u64,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                return done;
            }
        }
    }
    panic!("8 GiB were accepted");
}

/// Asserts that all that was accepted is there.
#[track_caller]
fn whole(path: &Path, accepted: u64, chunk: usize) {
    let found = fs::metadata(path).unwrap();
    assert_eq!(found.len(), accepted);
    assert!(found.blocks() * 512 >= accepted, "{} of {accepted} bytes have blocks", found.blocks() * 512);
    let content = fs::read(path).unwrap();
    assert!(content.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % chunk % 251), "the content differs");
}

#[test]
fn p8_a_full_volume_says_so_at_the_write() {
    for (mib, chunk) in [(64, 4096), (64, 128 << 10), (300, MIB), (300, 256 << 10), (300, 10_000)] {
        let lab = Lab::mounted(2, mib);
        let path = lab.mountpoint.join("f");
        let file = File::create(&path).unwrap();
        let (mut accepted, mut before) = (fill(&file, chunk), 0);
        file.sync_all().unwrap();
        // A commit holds room until it is made.
        while accepted > before {
            before = accepted;
            accepted = fill_from(&file, chunk, accepted);
            file.sync_all().unwrap();
        }
        whole(&path, accepted, chunk);
        let left = ok_stdout(Command::new("stat").args(["-f", "-c", "%a"]).arg(&lab.mountpoint));
        assert!(left.trim().parse::<u64>().unwrap() <= 1024, "{left} blocks are left of {mib} MiB");
        // What is refused stays refused, and is no error of what was accepted.
        for _ in 0..3 {
            assert_eq!(file.write_at(&[1], accepted + (1 << 20)).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        }
        file.sync_all().unwrap();
        drop(file);
        ok(&lab.umount());
        ok(&lab.check());
        ok(&lab.mount());
        whole(&path, accepted, chunk);
    }
}

fn ok_stdout(command: &mut Command) -> String {
    let out = run(command);
    ok(&out);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn programs_that_fill_a_volume_leave_no_file_of_holes() {
    let lab = Lab::mounted(2, 200);
    let source = lab.path("source");
    fs::write(&source, vec![7; 300 * MIB]).unwrap();
    let source = source.to_str().unwrap();
    for (name, command) in [
        ("dd", "dd if=/dev/zero of=f bs=1M count=1000"),
        ("dd with short writes", "dd if=/dev/zero of=f bs=4k count=1000000"),
        ("cp", &format!("cp {source} f")),
        ("cat", &format!("cat {source} >f")),
        (
            "several",
            &format!(
                "for i in 1 2 3 4; do (cat {source} >>f.$i || touch failed.$i) & done; wait; rm failed.?; cat /dev/zero >f"
            ),
        ),
    ] {
        let out = run(Command::new("sh").args(["-ec", command]).current_dir(&lab.mountpoint));
        let text = stderr(&out);
        assert!(!out.status.success() && text.contains("No space left"), "{name}: {text}");
        assert!(text.contains("writ") && !text.contains("clos"), "{name}: {text}");
        for entry in fs::read_dir(&lab.mountpoint).unwrap() {
            let (path, found) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
            assert!(found.blocks() * 512 >= found.len(), "{name} left {}: {found:?}", path.display());
            File::open(&path).unwrap().sync_all().unwrap();
        }
        ok(&run(Command::new("sh").args(["-ec", "rm f*"]).current_dir(&lab.mountpoint)));
    }
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn regression_room_of_a_removed_file_is_there_at_once() {
    let lab = Lab::mounted(2, 64);
    for round in 0..10 {
        let path = lab.mountpoint.join("fill");
        let file = File::create(&path).unwrap();
        fill(&file, MIB);
        drop(file);
        fs::remove_file(&path).unwrap();
        let after = lab.mountpoint.join("after");
        let file = File::create(&after).unwrap();
        file.write_all_at(&vec![round; 20 * MIB], 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        assert!(fs::read(&after).unwrap() == vec![round; 20 * MIB]);
        fs::remove_file(&after).unwrap();
    }
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn on_a_full_volume_files_are_read_overwritten_and_removed() {
    let lab = Lab::mounted(2, 600);
    let at = |name: &str| lab.mountpoint.join(name);
    fs::write(at("old"), vec![1; 20 * MIB]).unwrap();
    fs::write(at("small"), "content").unwrap();
    File::create(at("empty")).unwrap();
    let filling = File::create(at("fill")).unwrap();
    fill(&filling, MIB);
    filling.sync_all().unwrap();
    // Reading, also beyond the end, and looking.
    for _ in 0..3 {
        assert_eq!(fs::read_to_string(at("small")).unwrap(), "content");
        assert_eq!(fs::read(at("empty")).unwrap(), b"");
        assert_eq!(fs::metadata(at("empty")).unwrap().blocks(), 0);
    }
    // Overwriting.
    let old = OpenOptions::new().read(true).write(true).open(at("old")).unwrap();
    for round in 2..5 {
        for place in 0..20 {
            old.write_all_at(&[round; MIB], place * MIB as u64).unwrap();
        }
        for place in 0..50 {
            old.write_all_at(&[round + 10; 4096], place * 300_000).unwrap();
        }
        old.sync_all().unwrap();
    }
    let mut found = vec![0; 20 * MIB];
    old.read_exact_at(&mut found, 0).unwrap();
    let expected = |at: usize| if at % 300_000 < 4096 && at / 300_000 < 50 { 14 } else { 4 };
    assert!(found.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
    // It does not grow.
    let grown = (0..100).try_for_each(|round| old.write_all_at(&[9; 64 << 10], (20 * MIB + round * (64 << 10)) as u64));
    assert_eq!(grown.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    let new = File::create(at("new")).and_then(|new| new.write_at(&[1], 0));
    assert_eq!(new.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    // Removing.
    drop((old, filling));
    ok(&run(Command::new("sh")
        .args(["-ec", "truncate -s 100M fill; rm old empty; mkdir d; rm fill"])
        .current_dir(&lab.mountpoint)));
    fs::write(at("new"), vec![3; 300 * MIB]).unwrap();
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn writers_at_the_same_time_lose_nothing_that_was_accepted() {
    let lab = Lab::mounted(1, 200);
    let written: Vec<u64> = thread::scope(|scope| {
        let write = |number: usize| {
            let path = lab.mountpoint.join(number.to_string());
            move || -> io::Result<u64> {
                let file = File::create(path)?;
                let accepted = fill(&file, 4096 << number);
                file.sync_all()?;
                Ok(accepted)
            }
        };
        let writers: Vec<_> = (0..6).map(|number| scope.spawn(write(number))).collect();
        writers.into_iter().map(|writer| writer.join().unwrap().unwrap()).collect()
    });
    for (number, accepted) in written.into_iter().enumerate() {
        whole(&lab.mountpoint.join(number.to_string()), accepted, 4096 << number);
    }
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn a_database_hears_that_the_volume_is_full_and_stays_sound() {
    let lab = Lab::mounted(2, 300);
    let script = r"
import os, sqlite3, sys
db = sqlite3.connect('d.db')
db.execute(f'PRAGMA journal_mode={sys.argv[1]}')
db.execute('CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)')
db.executemany('INSERT INTO t VALUES(?, ?)', ((n, b'x' * 900) for n in range(20000)))
db.commit()
fill = os.open('fill', os.O_WRONLY | os.O_CREAT)
try:
    while True: os.write(fill, b'y' * 65536)
except OSError as error: assert error.errno == 28, error
os.fsync(fill)
try:
    for n in range(20): db.execute('INSERT INTO t(b) SELECT b FROM t')
    db.commit()
    sys.exit('the volume was not full')
except sqlite3.OperationalError as error: print(error)
db.rollback()
os.unlink('fill')
os.close(fill)
assert db.execute('SELECT count(*) FROM t').fetchone() == (20000,)
assert db.execute('PRAGMA integrity_check').fetchone() == ('ok',)
db.execute('DELETE FROM t WHERE a > 100')
db.commit()
";
    for mode in ["delete", "wal"] {
        let out = run(Command::new("python3").args(["-c", script, mode]).current_dir(&lab.mountpoint));
        ok(&out);
        assert_eq!(String::from_utf8_lossy(&out.stdout), "database or disk is full\n", "{mode}");
        ok(&run(Command::new("sh").args(["-ec", "rm d.db*"]).current_dir(&lab.mountpoint)));
    }
    ok(&lab.umount());
    ok(&lab.check());
}
