//! Promises P2, P4, P5 while devices fail under a volume in use.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use scelle::device::BlockDevice;
use scelle::device::faulty::{Effect, Fault, Operation};
use scelle::fs::Fs;
use scelle::limits::LABEL_SIZE;
use scelle::mirror::State;
use scelle::problem::{ExitCode, Problem};
use scelle::units::{Generation, Ino};
use scelle::volume::{self, OpenOptions, Portion};

use super::support::court::{CALLER, Court};
use super::support::rng::{self, Rng};
use super::support::wait_for;
use super::workload;

fn write_file(fs: &Fs, name: &[u8], len: usize) -> Ino {
    let ino = fs.mknod(&CALLER, Ino::ROOT, name, 0o600, 0).unwrap().ino;
    fs.write(ino, 0, &vec![0x5a; len]).unwrap();
    ino
}

fn read_file(fs: &Fs, ino: Ino, len: usize) -> Result<(), scelle::fs::Error> {
    let mut out = Vec::new();
    out.extend_from_slice(fs.read(ino, 0, len, &mut Vec::new())?);
    assert!(out.len() == len && out.iter().all(|b| *b == 0x5a));
    Ok(())
}

#[test]
fn p2_when_the_last_replica_fails_a_write_reads_go_on() {
    let court = Court::new(1);
    let open = court.open();
    let ino = write_file(open.fs(), b"a", 100_000);
    open.fs().sync().unwrap();
    court.devices[0].inject(Fault::always(Operation::Write, Effect::Error(libc::EIO)));
    let late = open.fs().write(ino, 0, &[1; 4096]).and_then(|_| open.fs().sync());
    // What was accepted is lost, and that is no "read-only"; what is new is refused.
    assert_eq!(late.unwrap_err().errno(), libc::EIO);
    assert_eq!(open.status().replicas[0].state, State::Faulty);
    assert!(open.status().read_only.is_some());
    assert_eq!(open.fs().mknod(&CALLER, Ino::ROOT, b"b", 0o600, 0).unwrap_err().errno(), libc::EROFS);
    assert!(open.fs().lookup(Ino::ROOT, b"a").is_ok());
    drop(open);
    // What was synced is there.
    court.devices[0].heal();
    let open = court.open();
    read_file(open.fs(), ino, 100_000).unwrap();
}

#[test]
fn p5_a_replica_that_fails_a_flush_or_a_root_is_left_out_of_the_root() {
    let ring = LABEL_SIZE / 16..LABEL_SIZE;
    for fault in [
        Fault::always(Operation::Flush, Effect::Error(libc::EIO)),
        Fault { range: ring, ..Fault::always(Operation::Write, Effect::Error(libc::EIO)) },
        Fault { range: LABEL_SIZE..u64::MAX, ..Fault::always(Operation::Write, Effect::Error(libc::ENOSPC)) },
    ] {
        let court = Court::new(2);
        let open = court.open();
        court.devices[0].inject(fault);
        let ino = write_file(open.fs(), b"a", 50_000);
        open.fs().sync().unwrap();
        read_file(open.fs(), ino, 50_000).unwrap();
        assert_eq!(open.status().replicas[0].state, State::Faulty);
        // A power failure now: nothing else is ever written.
        let images: Vec<Vec<u8>> = court.images();
        drop(open);
        for (memory, image) in court.memory.iter().zip(&images) {
            memory.write_at(0, &[std::io::IoSlice::new(image)]).unwrap();
        }
        court.devices[0].heal();
        // Read-only, because a mount that writes has brought it back before anybody looks.
        let open = court.open_with(&OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
        let status = open.status();
        assert_eq!(status.replicas[0].state, State::Stale, "replica 0 must not count as current");
        assert_ne!(status.replicas[0].generation, status.generation);
        drop(open);
        let open = court.open();
        read_file(open.fs(), ino, 50_000).unwrap();
    }
}

/// A volume in the middle of a mount, after a small commit, and what that wrote.
struct Running {
    court: Court,
    before: Vec<u8>,
    after: Vec<u8>,
    written: Vec<usize>,
    ino: Ino,
}

impl Running {
    fn new(replicas: usize) -> Self {
        let court = Court::new(replicas);
        let open = court.open();
        open.fs().checkpoint().unwrap();
        open.fs().checkpoint().unwrap();
        let before = court.memory[0].image();
        let ino = write_file(open.fs(), b"acked", 30_000);
        open.fs().sync().unwrap();
        let images = court.images();
        assert!(open.store().is_provisional());
        drop(open);
        // A volume that is left alone makes its last root one that is not provisional. The test is of the state before.
        for (memory, image) in court.memory.iter().zip(&images) {
            memory.write_at(0, &[std::io::IoSlice::new(image)]).unwrap();
        }
        let after = images[0].clone();
        let area = LABEL_SIZE as usize / 4096..(after.len() - LABEL_SIZE as usize) / 4096;
        let written: Vec<usize> = area.filter(|b| before[b * 4096..][..4096] != after[b * 4096..][..4096]).collect();
        assert!(written.len() > 8 + 3, "{written:?}");
        Self { court, before, after, written, ino }
    }

    /// The first device holds what the commit left there, but for this block.
    fn lay(&self, without: Option<usize>) {
        let mut image = self.after.clone();
        if let Some(block) = without {
            image[block * 4096..][..4096].copy_from_slice(&self.before[block * 4096..][..4096]);
        }
        self.court.memory[0].write_at(0, &[std::io::IoSlice::new(&image)]).unwrap();
    }

    fn fails_to_read(&self, block: usize, times: u64) {
        let range = block as u64 * 4096..(block as u64 + 1) * 4096;
        let fault = Fault { range, times, ..Fault::always(Operation::Read, Effect::Error(libc::EIO)) };
        self.court.devices[0].inject(fault);
    }

    /// Whether the commit is there, in a volume without a damage.
    fn is_there(&self, options: &OpenOptions) -> bool {
        let open = self.court.open_with(options).unwrap();
        let is_there = open.fs().lookup(Ino::ROOT, b"acked").is_ok();
        assert!(!is_there || read_file(open.fs(), self.ino, 30_000).is_ok());
        open.close().unwrap();
        let report = self.court.report();
        assert_eq!(report.count, 0, "{:?}", report.damages);
        is_there
    }
}

/// A block that cannot be read may be there, and a commit that was answered for is not dropped for that; or it is incomplete, and
/// then it is not to be gone on from.
#[test]
fn p5_a_commit_that_cannot_be_read_after_a_crash_is_neither_kept_nor_dropped() {
    let running = Running::new(1);
    let accepting = |generation| OpenOptions { accept_rollback: Some(generation), ..OpenOptions::default() };
    for block in &running.written {
        running.lay(None);
        running.fails_to_read(*block, u64::MAX);
        let refusal = running.court.open_with(&OpenOptions::default()).err().unwrap();
        let volume::Error::Unproven { generation: last, .. } = refusal else { panic!("{refusal}") };
        let before = Generation(last.0 - 1);
        // Nothing but the commit before is what can be accepted.
        assert!(running.court.open_with(&accepting(last)).is_err(), "block {block}");
        for read_only in [false, true] {
            let refusal = running.court.open_with(&OpenOptions { read_only, ..OpenOptions::default() }).err().unwrap();
            assert_eq!(refusal.code().exit(), ExitCode::Failed, "block {block}: {refusal}");
            let refusal = Problem::from(refusal);
            assert!(
                refusal.advice.contains(&format!("-o accept-rollback={before}.")),
                "block {block}: {}",
                refusal.whole()
            );
        }
        assert!(running.court.memory[0].image() == running.after, "block {block}: something was written");
        // Somebody plugged the cable in.
        running.court.devices[0].heal();
        assert!(running.is_there(&OpenOptions::default()), "block {block}");
        // Or the sector is lost: then the commit before is whole, once somebody has accepted that.
        running.lay(None);
        running.fails_to_read(*block, u64::MAX);
        let open = running.court.open_with(&accepting(before)).unwrap();
        assert!(open.fs().lookup(Ino::ROOT, b"acked").is_err(), "block {block}");
        drop(open);
        running.court.devices[0].heal();
        assert!(!running.is_there(&OpenOptions::default()), "block {block}");
        // Where everything can be read the option changes nothing.
        running.lay(None);
        assert!(running.is_there(&accepting(before)));
        // What is known to be missing counts, whatever else cannot be read, and however often.
        for missing in [running.written[0], *running.written.last().unwrap()] {
            running.lay(Some(missing));
            running.fails_to_read(*block, 2);
            assert!(!running.is_there(&OpenOptions::default()), "block {missing}, {block}");
            running.court.devices[0].heal();
        }
    }
}

/// One that has the last commit in its cache perhaps, and cannot say that it is durable, is not said to have it.
#[test]
fn p9_a_replica_that_fails_the_first_flush_after_a_crash_does_not_count_as_current() {
    let running = Running::new(2);
    running.court.devices[0].inject(Fault::always(Operation::Flush, Effect::Error(libc::EIO)));
    let open = running.court.open();
    let status = open.status();
    assert_eq!(status.replicas[0].state, State::Faulty);
    assert!(status.replicas[0].generation.0 + 2 <= status.generation.0, "{status:?}");
    let place = open.place(running.ino).unwrap();
    let bytes = |portion| match portion {
        Portion::LeftBehind { bytes } => bytes,
        other => panic!("{other:?}"),
    };
    assert_eq!(bytes(place.replicas[0].portion), Some(0));
    assert_eq!(place.replicas[1].portion, Portion::Complete);
}

#[test]
fn p4_a_read_error_is_one_error_and_the_volume_goes_on() {
    let court = Court::new(1);
    let open = court.open();
    let kept = write_file(open.fs(), b"kept", 10_000);
    for i in 0..2000 {
        write_file(open.fs(), format!("file-{i}").as_bytes(), 10);
    }
    open.close().unwrap();
    let open = court.open();
    // An operation that is answered but not committed must survive the failed reads of others.
    let fresh = write_file(open.fs(), b"fresh", 10);
    court.devices[0].inject(Fault::always(Operation::Read, Effect::Error(libc::EIO)));
    let failed = (0..2000).filter(|i| open.fs().lookup(Ino::ROOT, format!("file-{i}").as_bytes()).is_err()).count();
    assert!(failed > 0, "nothing had to be read");
    court.devices[0].heal();
    assert_eq!(open.fs().lookup(Ino::ROOT, b"fresh").unwrap().ino, fresh);
    open.fs().sync().unwrap();
    read_file(open.fs(), kept, 10_000).unwrap();
    open.close().unwrap();
    assert_eq!(court.report().count, 0);
}

#[test]
fn p4_a_read_only_volume_survives_damage_spread_over_its_replicas_and_is_not_written() {
    let court = Court::new(2);
    let open = court.open();
    let ino = write_file(open.fs(), b"a", 400_000);
    open.close().unwrap();
    // Every used block beyond the labels is damaged on one replica or the other.
    let images: Vec<Vec<u8>> = court.images();
    let end = images[0].len() - LABEL_SIZE as usize;
    for at in (LABEL_SIZE as usize..end).step_by(4096) {
        if images[0][at..at + 4096].iter().any(|b| *b != 0) {
            let memory = &court.memory[at / 4096 % 2];
            memory.write_at(at as u64, &[std::io::IoSlice::new(&[0xff; 4096])]).unwrap();
        }
    }
    let damaged: Vec<Vec<u8>> = court.images();
    let report = court.report();
    assert!(report.count > 100 && report.damages.iter().all(|d| d.recoverable), "{:?}", report.damages);
    let open = court.open_with(&OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    read_file(open.fs(), ino, 400_000).unwrap();
    open.close().unwrap();
    assert!(court.memory.iter().zip(&damaged).all(|(m, image)| m.image() == *image), "written to");
    // Mounted for writing, it repairs what it reads.
    let open = court.open();
    read_file(open.fs(), ino, 400_000).unwrap();
    open.close().unwrap();
    assert!(court.report().count < report.count);
}

#[test]
fn operations_and_syncs_of_many_threads_do_not_trip_over_each_other() {
    let seed = rng::seed();
    let court = Court::new(2);
    let open = court.open();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let fs = open.fs();
            scope.spawn(move || {
                let mut rng = Rng::new(seed + thread);
                for _ in 0..400 {
                    workload::step(fs, &mut rng);
                    if rng.one_in(10) {
                        fs.sync().unwrap();
                    }
                }
            });
        }
    });
    let tree = workload::look(open.fs()).unwrap();
    open.close().unwrap();
    let report = court.report();
    assert_eq!(report.count, 0, "{:?}", report.damages);
    assert_eq!(workload::look(court.open().fs()).unwrap(), tree);
}

#[test]
fn a_full_volume_says_so_lets_go_and_stays_whole() {
    let court = Court::new(2);
    let open = court.open();
    let fs = open.fs();
    for round in 0..3 {
        let mut files = Vec::new();
        let full = loop {
            let name = format!("{round}-{}", files.len());
            match fs.mknod(&CALLER, Ino::ROOT, name.as_bytes(), 0o600, 0) {
                Ok(attr) => {
                    let written = fs.write(attr.ino, 0, &vec![0x5a; 300_000]);
                    fs.forget(attr.ino, 1);
                    match written {
                        Ok(_) => files.push((name, attr.ino)),
                        Err(error) => break error,
                    }
                }
                Err(error) => break error,
            }
        };
        assert_eq!(full.errno(), libc::ENOSPC, "{full}");
        assert!(files.len() > 30, "{} files", files.len());
        for (_, ino) in &files {
            read_file(fs, *ino, 300_000).unwrap();
        }
        // One block at a time, where it hurts most, then everything.
        for (_, ino) in files.iter().take(5) {
            for block in (0..70).step_by(2) {
                let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
                fs.fallocate(*ino, block * 4096, 4096, punch).unwrap();
            }
        }
        let last = format!("{round}-{}", files.len());
        for name in files.iter().map(|(name, _)| name).chain([&last]) {
            match fs.unlink(Ino::ROOT, name.as_bytes()) {
                Ok(()) => {}
                Err(error) => assert_eq!((error.errno(), name), (libc::ENOENT, &last)),
            }
        }
        fs.sync().unwrap();
    }
    open.close().unwrap();
    let report = court.report();
    assert_eq!(report.count, 0, "{:?}", report.damages);
}

/// Also what the tables are read from comes from the device, with their lock held: everything would wait for one read.
#[test]
fn p2_a_device_that_answers_no_read_holds_nobody_up() {
    let court = Court::new(2);
    let open = court.open();
    for i in 0..500 {
        write_file(open.fs(), format!("deed-{i}").as_bytes(), 20_000);
    }
    open.close().unwrap();
    for silent in 0..2 {
        let open = court.open();
        court.devices[silent].inject(Fault::always(Operation::Read, Effect::Hang));
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let fs = open.fs();
                scope.spawn(move || {
                    for i in (thread..500).step_by(4) {
                        let attr = fs.lookup(Ino::ROOT, format!("deed-{i}").as_bytes()).unwrap();
                        read_file(fs, attr.ino, 20_000).unwrap();
                        fs.forget(attr.ino, 1);
                    }
                    write_file(fs, format!("late-{silent}-{thread}").as_bytes(), 20_000);
                    fs.sync().unwrap();
                });
            }
        });
        // It was asked and not believed to be dead: whoever asked went elsewhere, once each at most.
        let replica = &open.status().replicas[silent];
        assert!((1..=4).contains(&replica.errors.read), "{replica:?}");
        assert_eq!(replica.state, State::InSync);
        open.close().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
        court.devices[silent].heal();
    }
    assert_eq!(court.report().count, 0);
}

/// Something wrote over a label under a mount, and another device does not answer.
#[test]
fn p6_a_device_that_answers_no_read_hides_no_overwritten_label() {
    let court = Court::new(3);
    let open = court.open();
    let whole = court.memory[1].disk();
    court.devices[0].inject(Fault::always(Operation::Read, Effect::Hang));
    court.memory[1].write_at(0, &[IoSlice::new(&[0x5a; 4096])]).unwrap();
    wait_for("the label to be looked at", || open.status().replicas[1].label.is_some());
    let damage = open.status().replicas[1].label.clone().unwrap();
    assert!(damage.contains("copy A") && damage.contains("was written anew"), "{damage}");
    let (mut before, mut after) = ([0; 4096], [1; 4096]);
    whole.read(0, &mut before);
    court.memory[1].disk().read(0, &mut after);
    assert!(before == after, "the label is not what it was");
    // Nor does the look keep a replica from coming back.
    court.devices[2].inject_in_changes(Effect::Error(libc::EIO));
    write_file(open.fs(), b"deed", 20_000);
    open.fs().sync().unwrap();
    court.devices[2].heal();
    open.members().rejoin(2).unwrap();
    wait_for("the replica to come back", || open.status().replicas[2].state == State::InSync);
    assert!(open.status().replicas.iter().enumerate().all(|(index, replica)| replica.label.is_some() == (index == 1)));
    court.devices[0].heal();
    open.close().unwrap();
    court.check();
}
