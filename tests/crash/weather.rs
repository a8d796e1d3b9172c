//! Promise P6 in bad weather: the source is damaged, or slow, or dies; the replica that comes back is slow; commits are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::court::{Court, Plan, content, get, put, states, wait_in_sync};
use super::support::court::CALLER;
use super::support::{BOUND, Ending, wait_for};
use scelle::device::faulty::{Effect, Fault, Operation};
use scelle::limits::LABEL_SIZE;
use scelle::mirror::State;
use scelle::problem::Code;
use scelle::units::{BLOCK_SIZE, Ino};
use scelle::volume::{Open, Outcome};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A volume of which only replica 0 is there, with a large file and many small ones.
fn alone(court: &Court) -> Open {
    let open = court.open_of(&[0], true).unwrap();
    put(open.fs(), b"victim", &content(1, 400_000)).unwrap();
    for i in 0..30 {
        put(open.fs(), format!("other-{i}").as_bytes(), &content(2, 20_000)).unwrap();
    }
    open.fs().sync().unwrap();
    open
}

/// The byte on a device of some block of the large file.
fn inside(open: &Open) -> u64 {
    let scanned = open.fs().scan(None, 1000).unwrap();
    let extent = scanned.iter().find(|scanned| scanned.extent.blocks > 20).unwrap();
    LABEL_SIZE + (extent.extent.addr.0 + 3) * BLOCK
}

fn outcome(open: &Open) -> Outcome {
    let ended = || open.members().tasks().list().pop().and_then(|task| task.ended);
    wait_for("the end of the task", || ended().is_some());
    ended().unwrap().1
}

#[test]
fn p6_a_block_that_no_replica_can_give_is_named_and_all_else_has_its_second_copy() {
    for effect in [Effect::Corrupt(1), Effect::Error(libc::EIO)] {
        let court = Court::new(2);
        let open = alone(&court);
        let at = inside(&open);
        court.devices[0].inject(Fault { range: at..at + BLOCK, ..Fault::always(Operation::Read, effect) });
        assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
        let Outcome::Failed(problem) = outcome(&open) else { panic!("called done") };
        assert_eq!(problem.code, Code::BlocksLost, "{problem}");
        assert!(problem.text.contains("/victim"), "{problem}");
        let status = open.status();
        assert_eq!(states(&open), [State::InSync; 2]);
        assert!(!status.is_healthy() && status.read_only.is_none());
        assert_eq!(Vec::from_iter(&status.lost), [(&"/victim".to_owned(), &1)]);
        // Everything else is on the replica that came back, by itself.
        court.devices[0].inject(Fault::always(Operation::Read, Effect::Error(libc::EIO)));
        for i in 0..30 {
            assert!(get(open.fs(), format!("other-{i}").as_bytes()) == content(2, 20_000), "other-{i}");
        }
        // The file is removed, and with it the loss.
        open.fs().unlink(Ino::ROOT, b"victim").unwrap();
        open.fs().sync().unwrap();
        assert!(open.status().is_healthy(), "{:?}", open.status().lost);
        court.devices[0].heal();
        open.close().unwrap();
        court.check();
    }
}

#[test]
fn p6_a_source_that_answers_no_read_makes_no_replica_whole() {
    let court = Court::new(2);
    let open = alone(&court);
    court.devices[0].inject(Fault { skip: 20, ..Fault::always(Operation::Read, Effect::Error(libc::EIO)) });
    open.members().take_in(court.approved(1)).unwrap();
    assert!(matches!(outcome(&open), Outcome::Failed(problem) if problem.code != Code::BlocksLost));
    assert_eq!(states(&open), [State::InSync, State::Stale]);
    court.devices[0].heal();
    open.members().rejoin(1).unwrap();
    assert_eq!(outcome(&open), Outcome::Done);
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
}

#[test]
fn p6_a_replica_comes_back_however_long_commits_take() {
    let court = Court::new(2);
    let open = alone(&court);
    let slow = Effect::Slow(Duration::from_millis(1800));
    court.devices[0].inject(Fault::always(Operation::Flush, slow));
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&ended);
        for thread in 0..2 {
            let (fs, ended) = (open.fs(), &ended);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    put(fs, format!("busy-{thread}").as_bytes(), &[thread; 9000]).unwrap();
                    fs.sync().unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
        wait_in_sync(&open);
    });
    court.devices[0].heal();
    open.close().unwrap();
    court.check();
}

/// A replica that is not in sync yet is no reason to wait.
#[test]
fn p2_an_fsync_does_not_wait_for_a_replica_that_is_being_resynced() {
    let court = Court::new(2);
    let open = alone(&court);
    court.devices[0].inject(Fault::always(Operation::Read, Effect::Slow(Duration::from_millis(20))));
    assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
    put(open.fs(), b"first", &content(3, 9000)).unwrap();
    open.fs().sync().unwrap();
    for operation in [Operation::Write, Operation::Flush] {
        court.devices[1].inject(Fault::always(operation, Effect::Hang));
    }
    let begin = Instant::now();
    for i in 0..10 {
        put(open.fs(), b"first", &content(i, 9000)).unwrap();
        open.fs().sync().unwrap();
    }
    assert!(begin.elapsed() < BOUND / 6, "{:?}", begin.elapsed());
    assert_eq!(states(&open), [State::InSync, State::Resyncing]);
    court.devices.iter().for_each(|device| device.heal());
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
}

/// What is not durable is bounded, whatever a device does: callers wait, and go on when it answers or is fenced.
#[test]
fn p5_what_is_not_durable_is_bounded_while_a_flush_hangs() {
    let court = Court::of(Plan { size: 512 << 20, ..Plan::default() });
    let open = court.open();
    let fs = open.fs();
    fs.sync().unwrap();
    let durable = fs.durable_changes();
    court.devices[1].inject(Fault::always(Operation::Flush, Effect::Hang));
    let made = AtomicU64::new(0);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&ended);
        for thread in 0..2 {
            let (made, ended) = (&made, &ended);
            scope.spawn(move || {
                for n in 0.. {
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("a-name-of-a-court-document-{thread}-{n}");
                    fs.forget(fs.mknod(&CALLER, Ino::ROOT, name.as_bytes(), 0o600, 0).unwrap().ino, 1);
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut before = 0;
        wait_for("the makers to wait", || {
            std::thread::sleep(Duration::from_millis(1500));
            let now = made.load(Ordering::Relaxed);
            std::mem::replace(&mut before, now) == now && now > 0
        });
        assert!(before <= (2 << 15) + 2, "{before} were made, and none is durable");
        assert_eq!(fs.durable_changes(), durable);
        court.devices[1].heal();
        wait_for("the makers to go on", || made.load(Ordering::Relaxed) > before + 1000);
    });
    fs.sync().unwrap();
    assert_eq!(states(&open), [State::InSync; 2]);
    open.close().unwrap();
}
