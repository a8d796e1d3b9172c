//! Promises P4, P10, P11: a scrub finds and repairs what is damaged on any replica in sync, while the volume is in use; it
//! goes on where it was; and what it says is so.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use scelle::device::BlockDevice;
use scelle::device::faulty::{Effect, Face, Fault, Operation};
use scelle::fs::Fs;
use scelle::label::{Area, HeaderCopy, RING_BYTES, RING_OFFSET};
use scelle::mirror::{State, device_offset};
use scelle::problem::Code;
use scelle::units::{BLOCK_SIZE, BlockAddr, Ino};
use scelle::volume::{Open, OpenOptions, Outcome, Scope, ScrubReport, ScrubState};

use super::court::{Court, Plan, content, get, put, states, wait_in_sync};
use super::support::court::CALLER;
use super::support::rng::Rng;
use super::support::{Ending, wait_for};
use super::workload;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn large() -> Court {
    Court::of(Plan { size: 48 << 20, ..Plan::default() })
}

/// Scrubs to the end and returns what was found.
fn scrub(open: &Open, scope: &Scope) -> ScrubReport {
    open.scrubs().start(scope, None).unwrap();
    ended(open)
}

fn ended(open: &Open) -> ScrubReport {
    wait_for("the end of the scrub", || open.members().tasks().list().iter().all(|task| task.ended.is_some()));
    open.scrubs().report().unwrap()
}

fn outcome(open: &Open) -> Outcome {
    open.members().tasks().list().pop().unwrap().ended.unwrap().1
}

/// Writes over blocks of a device, beneath every check.
fn damage(court: &Court, index: usize, blocks: impl IntoIterator<Item = BlockAddr>, rng: &mut Rng) {
    for addr in blocks {
        court.memory[index].write_at(device_offset(addr), &[IoSlice::new(&rng.bytes(BLOCK_SIZE))]).unwrap();
    }
}

/// The address of a block of a file.
fn addr_of(fs: &Fs, name: &[u8], block: u64) -> BlockAddr {
    let ino = fs.lookup(Ino::ROOT, name).unwrap().ino;
    fs.forget(ino, 1);
    let scanned = fs.scan(None, 100_000).unwrap();
    let is = |lblock: u64, end: u64| (lblock..end).contains(&block);
    let found = scanned.iter().find(|s| s.ino == ino && is(s.extent.lblock, s.extent.end())).unwrap();
    found.extent.addr.add(block - found.extent.lblock)
}

fn name(i: u64) -> Vec<u8> {
    format!("deed-{i}").into_bytes()
}

/// So many files of 300 KB, durable.
fn write_deeds(open: &Open, count: u64) {
    for i in 0..count {
        put(open.fs(), &name(i), &content(i, 300_000)).unwrap();
    }
    open.fs().sync().unwrap();
    open.fs().checkpoint().unwrap();
}

fn slow_reads(ms: u64) -> Fault {
    Fault::always(Operation::Read, Effect::Slow(Duration::from_millis(ms)))
}

#[test]
fn p4_a_scrub_under_load_repairs_all_that_is_damaged_on_one_replica() {
    let mut rng = Rng::seeded();
    let court = large();
    let open = court.open();
    write_deeds(&open, 30);
    let in_use: Vec<BlockAddr> = open
        .store()
        .persisted()
        .allocated_runs()
        .iter()
        .flat_map(|run| (0..run.blocks).map(|i| run.addr.add(i)).collect::<Vec<_>>())
        .collect();
    let count = in_use.len() / 20;
    let chosen: Vec<BlockAddr> = (0..count).map(|_| rng.pick(&in_use)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&over);
        let mut other = Rng::new(rng.next());
        let (fs, over) = (open.fs(), &over);
        scope.spawn(move || {
            while !over.load(Ordering::Acquire) {
                workload::step(fs, &mut other);
            }
        });
        damage(&court, 1, chosen, &mut rng);
        let report = scrub(&open, &Scope::All);
        assert!(report.found > count as u64 / 2 && report.unrepaired() == 0, "{report:?}");
        assert_eq!((report.state, outcome(&open)), (ScrubState::Finished, Outcome::Done));
        assert!(
            report.findings.iter().all(|f| f.replica == "memory-2" && f.device == "m1" && f.repaired),
            "{report:?}"
        );
        assert!(report.findings.iter().any(|f| f.what.starts_with("/deed-") && f.offset.is_some()), "{report:?}");
        assert!(report.replicas.iter().all(|row| row.bytes > 8 * MIB && row.left_out.is_none()), "{report:?}");
        let errors = &open.status().replicas[1].errors;
        assert!(errors.integrity >= report.found && errors.repaired >= report.found, "{errors:?}, {report:?}");
        let second = scrub(&open, &Scope::All);
        assert_eq!((second.found, second.not_looked_at.len()), (0, 0), "{second:?}");
    });
    (0..30).for_each(|i| assert!(get(open.fs(), &name(i)) == content(i, 300_000), "{i}"));
    open.close().unwrap();
    court.check();
}

/// Blocks are written, freed and used again all the time, and commits move the metadata: none of it is taken for damage.
#[test]
fn p11_a_scrub_takes_nothing_for_damage_that_is_only_being_written() {
    let mut rng = Rng::seeded();
    // Little room, so that blocks are used again soon; and slow disks, so that much is on its way.
    let court = Court::of(Plan { size: 20 << 20, delay: Duration::from_micros(300), ..Plan::default() });
    let open = court.open();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&over);
        for _ in 0..2 {
            let mut other = Rng::new(rng.next());
            let (fs, over) = (open.fs(), &over);
            scope.spawn(move || {
                while !over.load(Ordering::Acquire) {
                    workload::step(fs, &mut other);
                    let i = other.below(12);
                    // No room is no failure here.
                    let _ = put(fs, &name(i), &content(other.next(), 200_000));
                    if other.below(20) == 0 {
                        let _ = fs.sync();
                    }
                }
            });
        }
        let begin = Instant::now();
        let mut scrubs = 0;
        while begin.elapsed() < Duration::from_secs(6) || scrubs < 3 {
            let report = scrub(&open, &Scope::All);
            assert_eq!((report.found, report.state), (0, ScrubState::Finished), "{report:?}");
            assert!(report.replicas.iter().all(|row| row.left_out.is_none()), "{report:?}");
            scrubs += 1;
        }
        println!("{scrubs} scrubs");
    });
    assert!(open.status().lost.is_empty());
    open.close().unwrap();
    court.check();
}

#[test]
fn p4_a_block_that_is_damaged_on_all_replicas_is_named_and_no_longer_when_it_is_written_anew() {
    let mut rng = Rng::seeded();
    let court = large();
    let open = court.open();
    write_deeds(&open, 3);
    let addr = addr_of(open.fs(), &name(1), 7);
    (0..2).for_each(|index| damage(&court, index, [addr], &mut rng));
    let report = scrub(&open, &Scope::All);
    assert_eq!((report.found, report.unrepaired()), (2, 2), "{report:?}");
    for finding in &report.findings {
        assert_eq!((finding.what.as_str(), finding.offset), ("/deed-1", Some(7 * BLOCK_SIZE as u64)));
        assert!(!finding.repaired);
    }
    assert!(matches!(outcome(&open), Outcome::Failed(problem) if problem.code == Code::ScrubDamage));
    assert_eq!(open.status().lost.get("/deed-1"), Some(&1));
    assert!(!open.status().is_healthy());
    let told = super::audit::trail(&open);
    let record = told.iter().rev().find(|record| record.event == "scrub-ended").unwrap();
    assert_eq!((record.details["unrepaired"].as_u64(), record.reasons.len()), (Some(2), 2), "{record:?}");
    put(open.fs(), &name(1), &content(1, 300_000)).unwrap();
    assert_eq!(scrub(&open, &Scope::All).found, 0);
    assert!(open.status().is_healthy());
    // The report outlives the mount.
    let last = open.scrubs().report().unwrap();
    open.close().unwrap();
    let open = court.open();
    assert_eq!(open.scrubs().report(), Some(last));
    open.close().unwrap();
}

#[test]
fn p4_a_sector_that_cannot_be_read_is_written_anew() {
    let court = large();
    let open = court.open();
    write_deeds(&open, 2);
    let at = device_offset(addr_of(open.fs(), &name(0), 5));
    let fault = Fault::always(Operation::Read, Effect::Error(libc::EIO));
    // The read of the run, and that of the block by itself; after it was written the sector can be read.
    court.devices[0].inject(Fault { range: at..at + BLOCK_SIZE as u64, times: 2, ..fault });
    let report = scrub(&open, &Scope::All);
    assert_eq!((report.found, report.unrepaired()), (1, 0), "{report:?}");
    assert_eq!(
        (report.findings[0].replica.as_str(), report.findings[0].offset),
        ("memory-1", Some(5 * BLOCK_SIZE as u64))
    );
    open.close().unwrap();
}

#[test]
fn p4_a_scrub_repairs_headers_and_roots() {
    let mut rng = Rng::seeded();
    let court = large();
    let open = court.open();
    write_deeds(&open, 1);
    for i in 0..80 {
        put(open.fs(), &name(0), &content(i, 5000)).unwrap();
        open.fs().sync().unwrap();
    }
    // What the volume does by itself when nothing goes on is over then.
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(scrub(&open, &Scope::All).found, 0);
    let size = court.memory[0].size_bytes();
    let over = |index: usize, at: u64, rng: &mut Rng| {
        court.memory[index].write_at(at, &[IoSlice::new(&rng.bytes(BLOCK_SIZE))]).unwrap();
    };
    over(0, HeaderCopy::A2.offset(size), &mut rng);
    // One whole ring of one replica, and one slot in both rings of the other.
    let ring = |area: Area| area.offset(size) + RING_OFFSET;
    for slot in 0..(RING_BYTES / BLOCK_SIZE) as u64 {
        over(0, ring(Area::B) + slot * BLOCK_SIZE as u64, &mut rng);
    }
    Area::BOTH.iter().for_each(|area| over(1, ring(*area) + 9 * BLOCK_SIZE as u64, &mut rng));
    let report = scrub(&open, &Scope::All);
    let of = |what: &str| report.findings.iter().filter(|finding| finding.what.contains(what)).count();
    // A commit may write a slot meanwhile; and ten seconds may pass, in which a header is looked at anyway.
    assert!(of("the label") <= 1 && of("label area A") == 1 && of("label area B") >= 60, "{report:?}");
    assert_eq!(report.unrepaired(), 0, "{report:?}");
    let second = scrub(&open, &Scope::All);
    assert_eq!(second.found, 0, "{second:?}");
    open.close().unwrap();
    court.check();
}

/// Lets a scrub that reads slowly come so far that it has kept where it is.
fn half_done(court: &Court, open: &Open) -> ScrubReport {
    court.devices[0].inject(slow_reads(15));
    open.scrubs().start(&Scope::All, None).unwrap();
    let mut before = 0;
    wait_for("half of it", || {
        let report = open.scrubs().report().unwrap();
        assert!(report.done_blocks >= before, "progress falls back");
        before = report.done_blocks;
        report.total_blocks > 0 && report.done_blocks * 2 > report.total_blocks
    });
    open.scrubs().report().unwrap()
}

#[test]
fn p10_a_scrub_goes_on_where_it_was_after_a_crash() {
    let mut rng = Rng::seeded();
    let court = large();
    let open = court.open();
    write_deeds(&open, 60);
    // One block near the beginning and one near the end.
    let chosen = [addr_of(open.fs(), &name(0), 1), addr_of(open.fs(), &name(59), 60)];
    damage(&court, 1, chosen, &mut rng);
    open.scrubs().start(&Scope::All, Some(2 * MIB)).unwrap();
    wait_for("a part of it", || open.scrubs().report().unwrap().done_blocks > 1300);
    // What is kept every two seconds has been committed by then.
    std::thread::sleep(Duration::from_millis(3500));
    let disks = court.disks().into_iter().map(Some).collect::<Vec<_>>();
    let at_crash = open.scrubs().report().unwrap();
    assert_eq!(at_crash.state, ScrubState::Running, "{at_crash:?}");
    drop(open);

    let copy = court.on(&disks, &Default::default());
    let open = copy.open();
    let found = open.scrubs().report().unwrap();
    assert_eq!((found.state, found.interruptions), (ScrubState::Interrupted, 1), "{found:?}");
    assert!(found.done_blocks > 1300 && found.done_blocks <= at_crash.done_blocks, "{found:?}");
    assert_eq!(found.found, 1, "{found:?}");
    let refused = open.scrubs().start(&Scope::Known, None).unwrap_err();
    assert_eq!(refused.code, Code::ScrubWaits);
    let (_, goes_on) = open.scrubs().start(&Scope::All, Some(100 * MIB)).unwrap();
    assert!(goes_on && open.scrubs().report().unwrap().done_blocks >= found.done_blocks);
    let report = ended(&open);
    assert_eq!((report.found, report.unrepaired(), report.state), (2, 0, ScrubState::Finished), "{report:?}");
    // What had been looked at was not read again.
    let again = report.replicas[0].bytes - found.replicas[0].bytes;
    let left = (found.total_blocks - found.done_blocks) * BLOCK_SIZE as u64;
    assert!(again < left + MIB, "{again} bytes were read, {left} were left");
    let none = open.scrubs().pause().unwrap_err();
    assert_eq!(none.code, Code::ScrubNone);
    open.close().unwrap();
    copy.check();
}

#[test]
fn p10_a_scrub_waits_and_goes_on_and_stops_when_it_is_told() {
    let court = large();
    let open = court.open();
    write_deeds(&open, 60);
    half_done(&court, &open);
    assert_eq!(open.scrubs().start(&Scope::All, None).unwrap_err().code, Code::ScrubRunning);
    open.scrubs().pause().unwrap();
    assert_eq!(outcome(&open), Outcome::Cancelled);
    court.devices[0].heal();
    let paused = open.scrubs().report().unwrap();
    assert_eq!(paused.state, ScrubState::Paused, "{paused:?}");
    open.close().unwrap();
    // It waits over a remount, and does not begin by itself.
    let open = court.open();
    assert_eq!(open.scrubs().report().unwrap().state, ScrubState::Paused);
    assert!(open.members().tasks().list().is_empty());
    assert!(open.scrubs().start(&Scope::All, None).unwrap().1);
    let report = ended(&open);
    assert_eq!((report.state, report.found, report.interruptions), (ScrubState::Finished, 0, 1), "{report:?}");

    half_done(&court, &open);
    open.scrubs().stop().unwrap();
    assert_eq!(open.scrubs().report().unwrap().state, ScrubState::Stopped);
    assert_eq!(open.scrubs().stop().unwrap_err().code, Code::ScrubNone);
    court.devices[0].heal();
    assert!(!open.scrubs().start(&Scope::All, None).unwrap().1, "where it was is forgotten");
    assert_eq!(ended(&open).state, ScrubState::Finished);

    // A volume that is closed does not wait for a scrub.
    half_done(&court, &open);
    let begin = Instant::now();
    open.close().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    court.devices[0].heal();
    let open = court.open();
    assert_eq!(open.scrubs().report().unwrap().state, ScrubState::Interrupted);
    open.scrubs().stop().unwrap();
    open.close().unwrap();
}

#[test]
fn p10_a_scrub_keeps_to_its_rate() {
    let court = large();
    let open = court.open();
    write_deeds(&open, 14);
    let begin = Instant::now();
    open.scrubs().start(&Scope::Below("/".to_owned()), Some(MIB)).unwrap();
    wait_for("some of it", || open.scrubs().report().unwrap().replicas.first().is_some_and(|row| row.bytes > 0));
    while begin.elapsed() < Duration::from_secs(2) {
        let read = open.scrubs().report().unwrap().replicas[0].bytes;
        // A run of 256 KiB is read at once.
        let most = u64::try_from(begin.elapsed().as_millis()).unwrap() * MIB / 1000 + 512 * KIB;
        assert!(read <= most, "{read} bytes within {:?}", begin.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = ended(&open);
    let bytes = report.replicas[0].bytes;
    assert!(bytes > 4_000_000 && report.replicas[1].bytes == bytes, "{report:?}");
    let rate = bytes * 1000 / u64::try_from(begin.elapsed().as_millis()).unwrap();
    assert!((600 * KIB..1200 * KIB).contains(&rate), "{rate} bytes a second");
    open.close().unwrap();
}

#[test]
fn p4_a_scrub_of_a_path_looks_at_the_files_there_and_at_no_others() {
    let mut rng = Rng::seeded();
    let court = large();
    let open = court.open();
    write_deeds(&open, 3);
    let fs = open.fs();
    let folder = fs.mkdir(&CALLER, Ino::ROOT, b"folder", 0o755).unwrap().ino;
    let below = fs.mkdir(&CALLER, folder, b"below", 0o755).unwrap().ino;
    let ino = fs.mknod(&CALLER, below, b"deed", 0o600, 0).unwrap().ino;
    fs.write(ino, 0, &content(9, 300_000)).unwrap();
    [folder, below, ino].into_iter().for_each(|ino| fs.forget(ino, 1));
    fs.sync().unwrap();
    let inside = fs.scan_file(ino, None, 10).unwrap()[0].extent.addr;
    damage(&court, 0, [inside.add(2), addr_of(fs, &name(1), 3)], &mut rng);
    for path in ["/folder", "folder/below/deed", "/folder/below/"] {
        let report = scrub(&open, &Scope::Below(path.to_owned()));
        let first = path == "/folder";
        assert_eq!((report.found, report.unrepaired()), (u64::from(first), 0), "{path}: {report:?}");
        assert!(!first || report.findings[0].what == "/folder/below/deed", "{report:?}");
        let read = report.replicas[0].bytes;
        assert!((300_000..310_000).contains(&read) && report.done_blocks == report.total_blocks, "{path}: {report:?}");
    }
    for path in ["/nobody", "/deed-1/below", "/folder/nobody"] {
        let refused = open.scrubs().start(&Scope::Below(path.to_owned()), None).unwrap_err();
        assert_eq!(refused.code, Code::ScrubPath, "{path}");
    }
    let rest = scrub(&open, &Scope::All);
    assert_eq!((rest.found, rest.findings[0].what.as_str()), (1, "/deed-1"), "{rest:?}");
    open.close().unwrap();
}

#[test]
fn p11_known_damage_is_looked_at_again_and_forgotten_when_a_replica_has_it() {
    let mut rng = Rng::seeded();
    let court = large();
    let open = court.open();
    write_deeds(&open, 10);
    let (lost, other) = (addr_of(open.fs(), &name(4), 7), addr_of(open.fs(), &name(5), 7));
    let before = court.disks();
    (0..2).for_each(|index| damage(&court, index, [lost], &mut rng));
    assert_eq!(scrub(&open, &Scope::All).unrepaired(), 2);
    damage(&court, 0, [other], &mut rng);
    let still = scrub(&open, &Scope::Known);
    assert_eq!((still.found, still.unrepaired()), (2, 2), "{still:?}");
    assert!(still.replicas[0].bytes <= 16 * KIB, "{still:?}");
    // One of the disks gives it after all.
    let mut block = vec![0; BLOCK_SIZE];
    before[0].read(device_offset(lost), &mut block);
    court.memory[0].write_at(device_offset(lost), &[IoSlice::new(&block)]).unwrap();
    let now = scrub(&open, &Scope::Known);
    assert_eq!((now.found, now.unrepaired()), (1, 0), "{now:?}");
    assert!(open.status().lost.is_empty());
    assert_eq!(scrub(&open, &Scope::All).found, 1, "what was not known was not looked at");
    open.close().unwrap();
    court.check();
}

#[test]
fn p11_a_scrub_goes_on_without_a_replica_that_leaves_and_says_so() {
    let mut rng = Rng::seeded();
    let court = Court::of(Plan { replicas: 3, size: 48 << 20, ..Plan::default() });
    let open = court.open();
    write_deeds(&open, 40);
    damage(&court, 2, [addr_of(open.fs(), &name(39), 70)], &mut rng);
    half_done(&court, &open);
    court.refuse(&open, &[1], Face::Swapped);
    put(open.fs(), &name(100), &content(100, 5000)).unwrap();
    court.devices[0].heal();
    let report = ended(&open);
    assert_eq!((report.found, report.unrepaired(), report.state), (1, 0, ScrubState::Finished), "{report:?}");
    let why = report.replicas[1].left_out.clone().unwrap();
    assert!(why.contains("left while the scrub was under way: it is refused"), "{why}");
    assert!(report.replicas[0].left_out.is_none() && report.replicas[2].left_out.is_none());
    assert!(report.replicas[1].bytes < report.replicas[0].bytes);
    // Nothing that it lacks is told as damage, and while it is resynced it is not read.
    court.devices[0].inject(slow_reads(5));
    court.restore(&open, &[1]);
    let beside = scrub(&open, &Scope::All);
    assert_eq!((beside.found, beside.state), (0, ScrubState::Finished), "{beside:?}");
    court.devices[0].heal();
    wait_in_sync(&open);
    assert_eq!(scrub(&open, &Scope::All).found, 0);
    open.close().unwrap();
    court.check();
}

#[test]
fn p11_a_device_that_does_not_answer_holds_no_scrub_up_and_is_told() {
    let court = large();
    let open = court.open();
    write_deeds(&open, 4);
    let fault = Fault::always(Operation::Read, Effect::Error(libc::EIO));
    court.devices[1].inject(fault);
    let report = scrub(&open, &Scope::All);
    assert_eq!(report.state, ScrubState::Finished, "{report:?}");
    let why = report.replicas[1].left_out.clone().unwrap();
    assert!(why.contains("failed every read"), "{report:?}");
    assert!(open.status().lost.is_empty(), "{report:?}");
    court.devices[1].heal();
    open.close().unwrap();
}

#[test]
fn p11_a_scrub_of_a_volume_that_is_only_read_tells_and_writes_nothing() {
    let mut rng = Rng::seeded();
    let court = large();
    let open = court.open();
    write_deeds(&open, 3);
    let addr = addr_of(open.fs(), &name(1), 7);
    open.close().unwrap();
    damage(&court, 1, [addr], &mut rng);
    let before = court.images();
    let open = court.open_with(&OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    let report = scrub(&open, &Scope::All);
    assert_eq!((report.found, report.unrepaired()), (1, 1), "{report:?}");
    assert_eq!(report.findings[0].what, "/deed-1");
    assert!(open.status().lost.is_empty(), "another replica has it");
    open.close().unwrap();
    assert!(court.images() == before);
}

#[test]
fn p4_a_scrub_of_one_replica_alone_tells_what_is_lost() {
    let mut rng = Rng::seeded();
    let court = large();
    let open = court.open_of(&[0], true).unwrap();
    write_deeds(&open, 3);
    damage(&court, 0, [addr_of(open.fs(), &name(2), 1)], &mut rng);
    let report = scrub(&open, &Scope::All);
    assert_eq!((report.found, report.unrepaired()), (1, 1), "{report:?}");
    assert_eq!(report.replicas[1].left_out.as_deref(), Some("it was missing when the scrub came to it"), "{report:?}");
    assert_eq!((states(&open)[1], open.status().lost.len()), (State::Missing, 1));
    open.close().unwrap();
}
