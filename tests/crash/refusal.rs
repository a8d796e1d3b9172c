//! Promises P1 and P2 against the clock. Devices stop being approved at any moment, in the middle of a large write, a
//! commit, a resync, and from then on not one byte reaches them. When its cause is gone they come back, and nothing that
//! was synced is lost.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use scelle::device::BlockDevice;
use scelle::device::faulty::{Face, FaultyDevice};
use scelle::device::memory::MemoryDevice;
use scelle::mirror::State;
use scelle::problem::{Code, ExitCode};
use scelle::registry::Date;
use scelle::units::Ino;
use scelle::volume::{self, Open, OpenOptions};

use super::court::{
    Court, LARGE, OTHER_FACES, Plan, assert_untouched, assert_whole, content, get, put, shut_after, states,
    wait_in_sync,
};
use super::support::court::CALLER;
use super::support::documents::Documents;
use super::support::images::Log;
use super::support::rng::Rng;
use super::support::{BOUND, Ending, wait_for};

#[test]
fn p1_no_write_passes_a_gate_that_closed_whatever_the_moment() {
    let mut rng = Rng::seeded();
    let device = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new("m0", 1 << 20))));
    let documents = Documents::of(&[device.clone() as _]);
    let gate = documents.approve(device.clone());
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&ended);
        for thread in 0..3u64 {
            let (gate, ended) = (&gate, &ended);
            scope.spawn(move || {
                let block = [thread as u8; 4096];
                while !ended.load(Ordering::Relaxed) {
                    let written = gate.write_at(4096 * thread, &[IoSlice::new(&block)]);
                    if written.and_then(|()| gate.flush()).is_err() {
                        // Who only ever knocks at the closed gate makes "nobody is passing" a rare sight on two processors.
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
            });
        }
        for flip in 0..4000 {
            let face = rng.pick(&OTHER_FACES);
            device.show(face);
            assert!(!documents.recheck(&gate).approved, "{face:?}");
            shut_after(&gate, || device.shut());
            (0..rng.below(200)).for_each(|_| std::hint::spin_loop());
            assert_untouched(&device, &format!("flip {flip}, {face:?}"));
            device.reopen();
            device.show(Face::Itself);
            assert!(documents.recheck(&gate).approved);
            (0..rng.below(200)).for_each(|_| std::hint::spin_loop());
        }
    });
    let counts = device.counts();
    assert!(counts.writes + counts.flushes > 1000, "hardly anything was written meanwhile");
}

#[test]
fn p2_a_refused_flush_is_a_refusal_and_no_fault() {
    let court = Court::new(2);
    let open = court.open();
    put(open.fs(), b"a", &content(1, 50_000)).unwrap();
    court.devices[1].show(Face::Swapped);
    // Only the gate knows, as when the verdict turns while a commit is under way.
    let gate = open.members().device(1).unwrap();
    assert!(court.documents.recheck(&gate).has(Code::DeviceSwapped) || !gate.verdict().approved);
    open.fs().sync().unwrap();
    let replica = &open.status().replicas[1];
    assert_eq!((replica.state, replica.errors.write), (State::Refused, 0), "{replica:?}");
    assert_eq!(open.status().replicas[0].state, State::InSync);
}

#[test]
fn p2_too_few_replicas_refuse_what_is_new_report_what_is_lost_and_come_back_without_a_remount() {
    let court = Court::of(Plan { min_replicas: 2, ..Plan::default() });
    let open = court.open();
    let fs = open.fs();
    let ino = put(fs, b"durable", &content(1, 300_000)).unwrap();
    fs.sync().unwrap();
    court.refuse(&open, &[1], Face::Changed);
    // At once, with no commit in between.
    assert_eq!(fs.mknod(&CALLER, Ino::ROOT, b"new", 0o600, 0).unwrap_err().errno(), libc::EROFS);
    assert_eq!(fs.unlink(Ino::ROOT, b"durable").unwrap_err().errno(), libc::EROFS);
    assert_eq!(fs.write(ino, 0, b"x").unwrap_err().errno(), libc::EROFS);
    // What the kernel still held was accepted: that is a loss.
    assert_eq!(fs.write_back(ino, 0, b"x").unwrap_err().errno(), libc::EIO);
    assert!(get(fs, b"durable") == content(1, 300_000));
    fs.sync().unwrap();
    let status = open.status();
    assert!(status.read_only.as_ref().is_some_and(|why| why.contains("too-few-replicas")), "{status:?}");
    assert!(!status.needs_remount);
    assert_eq!(status.replicas[1].state, State::Refused);
    // Nothing was written since: it comes back in sync at once, and changes with it.
    let before = open.store().generation();
    court.restore(&open, &[1]);
    wait_in_sync(&open);
    assert!(open.status().read_only.is_none());
    put(fs, b"new", &content(2, 100_000)).unwrap();
    fs.sync().unwrap();
    assert!(open.store().generation() > before);
    open.close().unwrap();
    court.check();
}

#[test]
fn p5_what_was_answered_before_a_refusal_is_committed_but_fsync_does_not_call_it_safe() {
    let court = Court::of(Plan { min_replicas: 2, ..Plan::default() });
    let open = court.open();
    refuse_with_data_on_its_way(&court, &open, b"a", &content(3, 200_000), &[0]);
    // On one replica only, where the policy asks for two.
    for _ in 0..2 {
        assert_eq!(open.fs().sync().unwrap_err().errno(), libc::EIO);
    }
    court.restore(&open, &[0]);
    wait_in_sync(&open);
    open.fs().sync().unwrap();
    open.close().unwrap();
    court.check();
    for alone in 0..2 {
        let one = court.open_of(&[alone], true).unwrap();
        assert!(get(one.fs(), b"a") == content(3, 200_000), "replica {alone}");
    }
}

#[test]
fn p2_all_refused_while_nothing_is_on_its_way_come_back_without_a_remount() {
    let court = Court::new(2);
    let open = court.open();
    put(open.fs(), b"a", &content(4, 500_000)).unwrap();
    open.fs().sync().unwrap();
    court.refuse(&open, &[0, 1], Face::Gone);
    assert!(get(open.fs(), b"a") == content(4, 500_000), "reads go on");
    assert_eq!(open.fs().mkdir(&CALLER, Ino::ROOT, b"d", 0o700).unwrap_err().errno(), libc::EROFS);
    court.restore(&open, &[0, 1]);
    wait_in_sync(&open);
    open.fs().mkdir(&CALLER, Ino::ROOT, b"d", 0o700).unwrap();
    open.fs().sync().unwrap();
    open.close().unwrap();
    court.check();
}

#[test]
fn p2_a_registry_that_ends_with_the_day_leaves_nothing_on_its_way() {
    let court = Court::new(2);
    let host = &court.documents.host;
    let (today, tomorrow) = (court.documents.today, Date::new(2026, 1, 2).unwrap());
    let registry = |version, until| court.documents.issue(version, |registry| registry.valid_until = until);
    let (ending, renewed) = (registry(2, today), registry(3, Date::new(2026, 12, 31).unwrap()));
    let open = court.open();
    open.members().recheck(&ending, host, today);
    put(open.fs(), b"late", &content(7, 1 << 20)).unwrap();
    // The evening: nothing new is taken, and what was is made durable.
    open.members().apply(open.members().foresee(&ending, host, tomorrow));
    assert!(open.fs().is_clean());
    assert_eq!(put(open.fs(), b"later", b"x").unwrap_err().errno(), libc::EROFS);
    open.members().recheck(&ending, host, tomorrow);
    assert_eq!(states(&open), [State::Refused; 2]);
    assert!(get(open.fs(), b"late") == content(7, 1 << 20));
    // The morning: renewed, and no remount.
    open.members().recheck(&renewed, host, tomorrow);
    wait_in_sync(&open);
    put(open.fs(), b"later", &content(8, 10_000)).unwrap();
    open.fs().sync().unwrap();
    // An evening that changes nothing takes nothing away.
    open.members().apply(open.members().foresee(&renewed, host, tomorrow));
    put(open.fs(), b"later", &content(9, 10_000)).unwrap();
    open.close().unwrap();
    court.check();
}

#[test]
fn p5_all_refused_with_data_that_the_devices_took_lose_nothing() {
    // The other one comes back first, later, or not before the end.
    for order in [&[0, 1][..], &[1, 0], &[1]] {
        let court = Court::new(2);
        let open = court.open();
        put(open.fs(), b"safe", &content(5, 100_000)).unwrap();
        open.fs().sync().unwrap();
        refuse_with_data_on_its_way(&court, &open, b"taken", &content(6, 1 << 20), &[0, 1]);
        // Not durable, and that was said.
        assert_eq!(open.fs().sync().unwrap_err().errno(), libc::EIO);
        assert!(get(open.fs(), b"taken") == content(6, 1 << 20), "reads go on");
        for index in order {
            court.restore(&open, &[*index]);
            let begin = Instant::now();
            while states(&open)[*index] != State::InSync {
                assert!(begin.elapsed() < BOUND && !open.status().needs_remount, "{:?}", open.status());
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        open.fs().sync().unwrap();
        put(open.fs(), b"next", &content(7, 10_000)).unwrap();
        open.close().unwrap();
        if order.len() == 2 {
            court.check();
        }
        court.repair(&[0, 1]);
        let alone = court.open_of(&[order[0]], true).unwrap();
        for (name, seed, len) in [(&b"safe"[..], 5, 100_000), (b"taken", 6, 1 << 20), (b"next", 7, 10_000)] {
            assert!(get(alone.fs(), name) == content(seed, len), "{order:?}");
        }
    }
}

#[test]
fn p5_all_refused_with_data_in_their_queues_say_that_it_is_lost_and_what_to_do() {
    // Slow enough for what a replica's thread does not take at once (4 MiB) to be queued behind that when the gates close.
    let court = Court::of(Plan { delay: Duration::from_millis(30), ..Plan::default() });
    let open = court.open();
    put(open.fs(), b"safe", &content(5, 100_000)).unwrap();
    open.fs().sync().unwrap();
    let begin = Instant::now();
    loop {
        let generation = open.store().generation();
        (0..12).for_each(|i| drop(put(open.fs(), b"lost", &content(6 + i, 1 << 20))));
        let gates = [0, 1].map(|index| open.members().device(index).unwrap());
        court.devices.iter().for_each(|device| device.show(Face::Gone));
        gates.iter().for_each(|gate| drop(court.documents.recheck(gate)));
        if open.store().generation() == generation && !open.fs().is_clean() {
            court.refuse(&open, &[0, 1], Face::Gone);
            break;
        }
        assert!(begin.elapsed() < BOUND, "the volume always commits first");
        court.restore(&open, &[0, 1]);
        wait_in_sync(&open);
    }
    assert_eq!(open.fs().sync().unwrap_err().errno(), libc::EIO);
    // One alone cannot know that the other does not have it.
    court.restore(&open, &[0]);
    let ended = || states(&open)[0] == State::Stale;
    wait_for("the resync to end", || ended() || open.status().needs_remount);
    court.restore(&open, &[1]);
    wait_for("what is lost to be known", || {
        court.recheck(&open);
        open.status().needs_remount
    });
    let why = open.members().rejoin(0).unwrap_err().to_string();
    assert!(why.contains("unmount and mount again") && why.contains("What was fsynced is safe"), "{why}");
    assert!(open.close().is_err(), "what was answered is lost, and that is said");
    let open = court.open();
    wait_in_sync(&open);
    assert!(get(open.fs(), b"safe") == content(5, 100_000));
    open.close().unwrap();
    court.check();
}

#[test]
fn p9_what_the_host_kept_goes_into_the_trail_when_writing_begins_again() {
    let court = Court::new(2);
    let host = tempfile::tempdir().unwrap();
    let options = OpenOptions { witness: Some(host.path().to_owned()), ..OpenOptions::default() };
    let open = court.open_with(&options).unwrap();
    court.refuse(&open, &[0, 1], Face::Gone);
    let reports = host.path().join(format!("{}.reports", open.uuid()));
    wait_for("the host to keep what the volume cannot", || reports.exists());
    court.restore(&open, &[0, 1]);
    wait_in_sync(&open);
    wait_for("the volume to take it back", || !reports.exists());
    let text: Vec<String> =
        open.audit().page(0).unwrap().into_iter().map(|record| String::from_utf8(record).unwrap()).collect();
    let told = |event: &str| text.iter().filter(|line| line.contains(event) && line.contains("\"reported\"")).count();
    assert_eq!((told("device-refused"), told("read-only")), (2, 1), "{text:#?}");
    open.close().unwrap();
    court.check();
}

/// Writes, and has devices refused before the volume's own commit comes.
fn refuse_with_data_on_its_way(court: &Court, open: &Open, name: &[u8], bytes: &[u8], out: &[usize]) {
    let write = || {
        put(open.fs(), name, bytes).unwrap();
        // A reader waits until what it reads has been written.
        assert!(get(open.fs(), name) == bytes);
    };
    refuse_between_commits(court, open, write, out);
}

/// Calls `write`, and has the devices `out` refused before any commit begins. A commit under way would fail with them, and
/// that poisons the volume.
fn refuse_between_commits(court: &Court, open: &Open, write: impl FnOnce(), out: &[usize]) {
    let documents = &court.documents;
    let findings = open.fs().between_commits(|| {
        write();
        out.iter().for_each(|index| court.devices[*index].show(Face::Gone));
        open.members().check(&documents.registry, &documents.host, documents.today)
    });
    open.members().apply(findings);
    for index in out {
        let gate = open.members().device(*index).unwrap();
        assert!(!gate.verdict().approved && gate.fence_reason().is_some());
        shut_after(&gate, || court.devices[*index].shut());
    }
}

#[test]
fn p6_a_replica_that_comes_back_is_given_what_it_lacks() {
    let court = Court::new(2);
    let open = court.open();
    for i in 0..16u64 {
        put(open.fs(), format!("big-{i}").as_bytes(), &content(i, 1 << 20)).unwrap();
    }
    open.fs().sync().unwrap();
    let before = open.store().generation();
    court.refuse(&open, &[1], Face::Swapped);
    put(open.fs(), b"small", &content(99, 10_000)).unwrap();
    open.fs().sync().unwrap();
    assert_eq!(open.status().replicas[1].generation, before);
    assert!(open.store().generation() > before);
    court.restore(&open, &[1]);
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
    let alone = court.open_of(&[1], true).unwrap();
    assert!(get(alone.fs(), b"small") == content(99, 10_000));
}

/// Its first blocks are on the other replica already, and its row comes after the resync has looked for rows.
#[test]
fn regression_p6_a_write_that_began_before_a_replica_came_back_reaches_it() {
    let court = Court::of(Plan { size: LARGE, ..Plan::default() });
    let open = court.open();
    let ino = put(open.fs(), b"large", b"x").unwrap();
    open.fs().sync().unwrap();
    court.refuse(&open, &[1], Face::Gone);
    // Nothing is left that the volume would commit by itself, which would wait for the device that is held.
    open.fs().checkpoint().unwrap();
    let bytes = content(7, 72 << 20);
    std::thread::scope(|scope| {
        court.devices[0].hold();
        let writer = scope.spawn(|| open.fs().write(ino, 0, &bytes).unwrap());
        // What the first replica does not take holds the write up in its midst.
        wait_for("most of the write to be sealed", || {
            let usage = open.store().usage();
            usage.total_blocks - usage.free_blocks >= (64 << 20) / 4096
        });
        court.restore(&open, &[1]);
        // Enough for a resync that does not wait for the write to have looked for its row in vain.
        std::thread::sleep(Duration::from_millis(300));
        assert!(!writer.is_finished() && states(&open) == [State::InSync, State::Resyncing]);
        court.devices[0].heal();
        writer.join().unwrap();
    });
    wait_in_sync(&open);
    assert_whole(&open);
    open.close().unwrap();
    court.check();
}

#[test]
fn p1_a_refusal_in_the_middle_of_a_resync_stops_it() {
    let mut rng = Rng::seeded();
    let court = Court::of(Plan { delay: Duration::from_micros(100), ..Plan::default() });
    let mut stopped = 0;
    for round in 0..12u64 {
        let open = court.open();
        wait_in_sync(&open);
        court.refuse(&open, &[1], Face::Changed);
        for i in 0..3 {
            put(open.fs(), format!("f-{i}").as_bytes(), &content(round * 10 + i, 1 << 20)).unwrap();
        }
        open.fs().sync().unwrap();
        court.restore(&open, &[1]);
        std::thread::sleep(Duration::from_micros(rng.below(6000)));
        stopped += u64::from(states(&open)[1] == State::Resyncing);
        court.refuse(&open, &[1], Face::Gone);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(states(&open)[1], State::Refused);
        court.restore(&open, &[1]);
        wait_in_sync(&open);
        open.close().unwrap();
        court.check();
    }
    assert!(stopped > 0, "no resync was under way when the refusal came");
}

/// One went on alone after the other had left, and then the other did: what each of them answered for exists only there. That
/// the second one's mount goes on from a root of the first one's mount makes no difference.
#[test]
fn regression_p5_replicas_that_each_went_on_alone_are_not_joined() {
    let court = Court::new(2);
    let open = court.open();
    put(open.fs(), b"both", &content(1, 100_000)).unwrap();
    open.fs().sync().unwrap();
    court.refuse(&open, &[1], Face::Gone);
    for i in 0..5 {
        put(open.fs(), b"here", &content(2 + i, 100_000)).unwrap();
        open.fs().sync().unwrap();
    }
    assert_untouched(&court.devices[1], "while it was refused");
    open.close().unwrap();
    court.repair(&[1]);
    let alone = court.open_of(&[1], true).unwrap();
    put(alone.fs(), b"there", &content(8, 10_000)).unwrap();
    alone.close().unwrap();
    let before = court.disks();
    for degraded in [false, true] {
        let refused = court.open_of(&[0, 1], degraded).err().unwrap();
        assert!(matches!(refused, volume::Error::Diverged { .. }), "{refused}");
    }
    let alone = court.open_of(&[1], true).unwrap();
    let refused = alone.members().take_in(court.approved(0)).unwrap_err();
    assert!(matches!(refused, volume::Error::Diverged { .. }), "{refused}");
    drop(alone);
    assert!(court.memory[0].disk() == before[0], "what went on alone was written to");
}

/// What is written to it may lie where an older root of its own refers to: whoever found it alone after a power failure would take
/// that root for the last one.
#[test]
fn regression_p6_a_replica_that_comes_back_shows_first_that_it_was_away() {
    let court = Court::new(2);
    let open = court.open();
    let keys = court.key.keys(open.uuid());
    let roots = |index: usize| {
        let memory = &*court.memory[index];
        scelle::label::read_roots(memory, memory.size_bytes(), &keys, open.uuid()).unwrap()
    };
    for i in 0..3 {
        put(open.fs(), b"a", &content(i, 100_000)).unwrap();
        open.fs().sync().unwrap();
        court.refuse(&open, &[1], Face::Gone);
        put(open.fs(), b"b", &content(i + 10, 100_000)).unwrap();
        open.fs().sync().unwrap();
        court.restore(&open, &[1]);
        wait_in_sync(&open);
        let without = roots(0).into_iter().find(|root| !root.names(1)).unwrap();
        assert!(roots(1).contains(&without), "{without:?}");
    }
    open.close().unwrap();
    court.check();
}

/// What it refers to was overwritten before the resync came to look, and is not on the replica.
#[test]
fn regression_p6_no_replica_comes_back_into_a_commit_that_has_begun() {
    let court = Court::new(1);
    let open = court.open();
    put(open.fs(), b"a", &content(1, 100_000)).unwrap();
    let device = &court.devices[0];
    let held = AtomicBool::new(true);
    device.hold();
    let changes = || device.counts().writes + device.counts().flushes;
    let before = changes();
    std::thread::scope(|scope| {
        let committing = scope.spawn(|| open.fs().sync().unwrap());
        wait_for("the commit to write", || changes() > before);
        let between = scope.spawn(|| open.fs().between_commits(|| held.load(Ordering::SeqCst)));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!between.is_finished());
        held.store(false, Ordering::SeqCst);
        device.heal();
        committing.join().unwrap();
        assert!(!between.join().unwrap());
    });
    open.close().unwrap();
}

#[test]
fn p6_a_device_that_was_away_is_taken_in_and_another_is_not() {
    let court = Court::new(2);
    let stranger = Court::new(1);
    let open = court.open();
    put(open.fs(), b"before", &content(1, 100_000)).unwrap();
    open.close().unwrap();
    let open = court.open_of(&[0], true).unwrap();
    put(open.fs(), b"without", &content(2, 2 << 20)).unwrap();
    open.fs().sync().unwrap();
    let refused = open.members().take_in(stranger.approved(0)).unwrap_err();
    assert_eq!(refused.code().exit(), ExitCode::Usage, "{refused}");
    assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
    wait_in_sync(&open);
    assert_eq!(open.members().take_in(court.approved(1)).unwrap_err().code().exit(), ExitCode::Busy);
    put(open.fs(), b"with", &content(3, 50_000)).unwrap();
    // Unplugged, and there again as another device node: another object with the same content.
    court.refuse(&open, &[1], Face::Gone);
    put(open.fs(), b"after", &content(4, 50_000)).unwrap();
    open.fs().sync().unwrap();
    court.repair(&[1]);
    assert_eq!(open.members().take_in(court.approved(1)).unwrap(), (1, State::Resyncing));
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
    let alone = court.open_of(&[1], true).unwrap();
    for (name, seed, len) in [(&b"without"[..], 2, 2 << 20), (b"with", 3, 50_000), (b"after", 4, 50_000)] {
        assert!(get(alone.fs(), name) == content(seed, len));
    }
}

#[test]
fn p6_a_device_that_went_on_elsewhere_or_was_set_back_is_recognised() {
    let court = Court::new(2);
    let open = court.open();
    put(open.fs(), b"a", &content(1, 100_000)).unwrap();
    open.fs().sync().unwrap();
    let old = court.memory[1].image();
    for i in 0..3 {
        put(open.fs(), b"a", &content(2 + i, 100_000)).unwrap();
        open.fs().sync().unwrap();
    }
    // Out of its shelf, an old copy put on it, back again: it has everything of before, by its own word.
    court.refuse(&open, &[1], Face::Gone);
    court.memory[1].write_at(0, &[IoSlice::new(&old)]).unwrap();
    court.restore(&open, &[1]);
    wait_in_sync(&open);
    open.close().unwrap();
    court.check();
    // Mounted alone elsewhere meanwhile.
    let open = court.open();
    court.refuse(&open, &[1], Face::Gone);
    let taken = court.memory[1].disk();
    put(open.fs(), b"here", &content(9, 10_000)).unwrap();
    open.fs().sync().unwrap();
    let elsewhere = court.on(&[None, Some(taken)], &Log::default());
    let other = elsewhere.open_of(&[0], true).unwrap();
    put(other.fs(), b"there", &content(8, 10_000)).unwrap();
    other.close().unwrap();
    let changed = elsewhere.memory[0].image();
    court.memory[1].write_at(0, &[IoSlice::new(&changed)]).unwrap();
    court.restore(&open, &[1]);
    assert_eq!(states(&open)[1], State::Refused);
    let why = open.members().rejoin(1).unwrap_err();
    assert!(why.to_string().contains("each went on without the other"), "{why}");
    open.close().unwrap();
}
