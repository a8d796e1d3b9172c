//! The daemon is killed under load: what was fsynced is there afterwards, and the rest is some earlier state.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lab::{Lab, ok};

/// Writes numbered files by the rule "write, fsync, rename, sync the folder", until something fails; counts those that were
/// done. Each has a journal for as long as that takes, as a database would.
fn writer(dir: &Path, stop: &AtomicBool, counter: &AtomicU64) {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let step = || -> std::io::Result<()> {
            let (temporary, journal) = (dir.join("temporary"), dir.join(format!("journal-{done}")));
            fs::File::create(&journal)?.sync_all()?;
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&content(done))?;
            file.sync_all()?;
            fs::rename(&temporary, dir.join(format!("file-{done}")))?;
            fs::remove_file(&journal)?;
            fs::File::open(dir)?.sync_all()
        };
        match step() {
            Ok(()) => {
                done += 1;
                counter.store(done, Ordering::Release);
            }
            Err(_) => break,
        }
    }
}

fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + (number as usize * 97) % 3000)
}

#[test]
fn nothing_fsynced_is_lost_when_the_daemon_is_killed() {
    let lab = Lab::mounted(2, 256);
    for round in 0..3 {
        let stop = AtomicBool::new(false);
        let dirs: Vec<_> = (0..3).map(|index| lab.mountpoint.join(format!("round-{round}-{index}"))).collect();
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        fs::File::open(&lab.mountpoint).unwrap().sync_all().unwrap();
        let counters: Vec<AtomicU64> = dirs.iter().map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for (dir, counter) in dirs.iter().zip(&counters) {
                scope.spawn(|| writer(dir, &stop, counter));
            }
            // A busy machine may take its time for the first ones.
            let deadline = Instant::now() + Duration::from_secs(60);
            while counters.iter().any(|counter| counter.load(Ordering::Acquire) == 0) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(600));
            lab.kill_daemon();
            stop.store(true, Ordering::Relaxed);
        });
        // The dead mount is cleared away by the next one.
        ok(&lab.mount());
        for (dir, counter) in dirs.iter().zip(counters) {
            let done = counter.into_inner();
            assert!(done > 0, "nothing was written in time");
            for number in 0..done {
                let found = fs::read(dir.join(format!("file-{number}")));
                let whole = found.is_ok_and(|found| found == content(number));
                assert!(whole, "{}: file-{number} of {done}", dir.display());
                assert!(
                    !dir.join(format!("journal-{number}")).exists(),
                    "{}: journal-{number} of {done}",
                    dir.display()
                );
            }
            // One that was renamed may not have been reported; it is whole all the same.
            if let Ok(found) = fs::read(dir.join(format!("file-{done}"))) {
                assert!(found == content(done), "an empty file after write, fsync, rename");
            }
        }
        assert_eq!(lab.status()["state"], "healthy");
    }
    ok(&lab.umount());
    ok(&lab.check());
}

#[test]
fn what_was_closed_a_while_ago_survives_too() {
    let lab = Lab::mounted(2, 64);
    fs::write(lab.mountpoint.join("deed"), "closed").unwrap();
    // The bound is 1 s from reaching the daemon (promise P5); the rest is for a busy machine.
    std::thread::sleep(Duration::from_millis(2000));
    lab.kill_daemon();
    ok(&lab.mount());
    assert_eq!(fs::read_to_string(lab.mountpoint.join("deed")).unwrap(), "closed");
    ok(&lab.umount());
}
