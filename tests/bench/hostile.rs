//! What one client waits for beside users who do all they may do: rows of `scripts/bench --latency`.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Random, Result};

// Of these the standard library has nothing, and this program has no other library.
unsafe extern "C" {
    fn setxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: usize, flags: c_int) -> c_int;
    fn fallocate(file: c_int, mode: c_int, offset: i64, length: i64) -> c_int;
}

/// FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
const PUNCH: c_int = 3;

/// Depth of the tree that folders are moved in and out of.
const DEPTH: usize = 20_000;

/// Files in the folder that is listed, and in that of which each is opened.
const MANY: usize = 20_000;

type Work = fn(&Path, usize, &AtomicBool) -> Result<()>;

/// What hostile users do, how many do it at once, and what is made for them before.
const USERS: [(&str, usize, fn(&Path) -> Result<()>, Work); 11] = [
    ("nobody", 0, nothing, |_, _, _| Ok(())),
    ("xattrs of 64 KiB", 8, nothing, xattrs),
    ("many small xattrs", 8, nothing, small_xattrs),
    ("copies of 64 MiB", 6, a_large_file, copies),
    ("deep renames", 4, a_deep_tree, renames),
    ("fsyncs", 8, nothing, fsyncs),
    ("punching", 4, nothing, punching),
    ("truncation", 4, nothing, truncation),
    ("removal of extents", 4, nothing, removal),
    ("listings", 4, many_files, listings),
    ("opens and locks", 8, many_files, opens),
];

/// Prints a row for each kind of user: what another client waits for whose create and unlink take 0.4 ms without them.
/// Fails when the 99th percentile is above the goal for one of them.
pub fn hostile(folder: &Path, time: Duration, goal_ms: u64, only: &str) -> Result<()> {
    println!("{:>20} {:>9} {:>9} {:>9} {:>8}", "create + unlink, ms", "median", "99th", "longest", "count");
    let mut failed = Vec::new();
    for (what, count, prepare, work) in USERS {
        if !what.contains(only) {
            continue;
        }
        let home = folder.join(what.replace(' ', "-"));
        fs::create_dir(&home)?;
        prepare(&home)?;
        let took = beside(&home, time, count, work)?;
        let at = |share: usize| took[(took.len() - 1) * share / 100].as_secs_f64() * 1e3;
        let (median, p99, longest) = (at(50), at(99), at(100));
        println!("{what:>20} {median:>9.2} {p99:>9.2} {longest:>9.1} {:>8}", took.len());
        if p99 > goal_ms as f64 {
            failed.push(what);
        }
        std::env::set_current_dir("/")?;
        remove(&home)?;
    }
    if failed.is_empty() {
        println!("99th percentile at most {goal_ms} ms beside each: met");
        return Ok(());
    }
    println!("99th percentile at most {goal_ms} ms: NOT met beside {}", failed.join(", "));
    Err("a client waited too long".into())
}

/// How long the client's requests took, the shortest first.
fn beside(home: &Path, time: Duration, count: usize, work: Work) -> Result<Vec<Duration>> {
    let ended = AtomicBool::new(false);
    let at_work = AtomicUsize::new(0);
    let mut took = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let users: Vec<_> = (0..count)
            .map(|user| {
                let (ended, at_work) = (&ended, &at_work);
                scope.spawn(move || {
                    at_work.fetch_add(1, Ordering::Relaxed);
                    work(home, user, ended)
                })
            })
            .collect();
        while at_work.load(Ordering::Relaxed) < count {
            thread::yield_now();
        }
        let outcome = client(home, time, &mut took);
        ended.store(true, Ordering::Relaxed);
        for user in users {
            user.join().map_err(|_| "a user panicked")??;
        }
        outcome
    })?;
    took.sort();
    Ok(took)
}

fn client(home: &Path, time: Duration, took: &mut Vec<Duration>) -> Result<()> {
    // What has to be filled first is filled by then.
    thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    for i in 0.. {
        let path = home.join(format!("client-{i}"));
        let before = Instant::now();
        File::create_new(&path)?;
        fs::remove_file(&path)?;
        took.push(before.elapsed());
        if begin.elapsed() > time {
            break;
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Runs `step` again and again until the end. A full volume is no failure of a hostile user.
fn until(ended: &AtomicBool, mut step: impl FnMut(usize) -> io::Result<()>) -> Result<()> {
    for i in 0.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        match step(i) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            done => done?,
        }
    }
    Ok(())
}

fn nothing(_: &Path) -> Result<()> {
    Ok(())
}

fn set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    // SAFETY: both names end with NUL, and the value is as long as said.
    match unsafe { setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn xattrs(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    let (path, value) = (home.join(format!("user-{user}")), Random(3 + user as u64).bytes(64 << 10));
    File::create(&path)?;
    until(ended, |i| set(&path, &format!("user.{}", i % 12), &value))
}

fn small_xattrs(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    let path = home.join(format!("user-{user}"));
    File::create(&path)?;
    until(ended, |i| set(&path, &format!("user.{}", i % 8000), b"x"))
}

fn a_large_file(home: &Path) -> Result<()> {
    Ok(fs::write(home.join("large"), Random(5).bytes(64 << 20))?)
}

fn copies(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    // io::copy calls copy_file_range(2).
    let copy = |_| fs::copy(home.join("large"), home.join(format!("copy-{user}"))).map(drop);
    until(ended, copy)
}

fn a_deep_tree(home: &Path) -> Result<()> {
    // A path is shorter than the tree is deep. From here on the working folder is the deepest one.
    std::env::set_current_dir(home)?;
    for _ in 0..DEPTH {
        fs::create_dir("d")?;
        std::env::set_current_dir("d")?;
    }
    Ok(())
}

fn renames(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    let (outside, inside) = (home.join(format!("moved-{user}")), PathBuf::from(format!("moved-{user}")));
    fs::create_dir(&outside)?;
    until(ended, |_| {
        fs::rename(&outside, &inside)?;
        fs::rename(&inside, &outside)
    })
}

fn fsyncs(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    let file = File::create(home.join(format!("user-{user}")))?;
    until(ended, |_| {
        file.write_all_at(&[7; 4096], 0)?;
        file.sync_all()
    })
}

/// Writes every other block, so that the file has an extent for each.
fn scatter(path: &Path, blocks: u64) -> io::Result<File> {
    let file = File::create(path)?;
    for at in 0..blocks {
        file.write_all_at(&[7; 4096], at * 8192)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn punching(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    until(ended, |_| {
        let file = scatter(&home.join(format!("user-{user}")), 8000)?;
        // SAFETY: the descriptor is open, and numbers are all that is passed.
        match unsafe { fallocate(file.as_raw_fd(), PUNCH, 0, 64 << 20) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

fn truncation(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    until(ended, |_| scatter(&home.join(format!("user-{user}")), 8000)?.set_len(0))
}

fn removal(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    let path = home.join(format!("user-{user}"));
    until(ended, |_| {
        drop(scatter(&path, 8000)?);
        fs::remove_file(&path)
    })
}

fn many_files(home: &Path) -> Result<()> {
    fs::create_dir(home.join("many"))?;
    for i in 0..MANY {
        File::create(home.join(format!("many/a-name-of-middling-length-{i}")))?;
    }
    Ok(())
}

fn listings(home: &Path, _: usize, ended: &AtomicBool) -> Result<()> {
    until(ended, |_| {
        for entry in fs::read_dir(home.join("many"))? {
            entry?.metadata()?;
        }
        Ok(())
    })
}

fn opens(home: &Path, user: usize, ended: &AtomicBool) -> Result<()> {
    let mut held = Vec::new();
    until(ended, |i| {
        let file = File::open(home.join(format!("many/a-name-of-middling-length-{}", (i * 8 + user) % MANY)))?;
        file.lock_shared()?;
        if held.len() < 100 {
            held.push(file);
        } else {
            held[i % 100] = file;
        }
        // A name that is not there is asked for each time.
        let _ = fs::symlink_metadata(home.join(format!("many/absent-{user}-{i}")));
        Ok(())
    })
}

/// Removes a tree that is deeper than a path is long.
fn remove(home: &Path) -> Result<()> {
    let mut parent = home.to_owned();
    // Each step brings what lies deep up to the top.
    for step in 0.. {
        let deep = parent.join("d");
        if !deep.exists() {
            break;
        }
        let mut at = deep.clone();
        for _ in 0..500 {
            at.push("d");
        }
        if at.exists() {
            let raised = home.join(format!("raised-{step}"));
            fs::create_dir(&raised)?;
            fs::rename(&at, raised.join("d"))?;
            parent = raised;
        } else {
            break;
        }
    }
    Ok(fs::remove_dir_all(home)?)
}
