//! What goes wrong with a volume is told when nobody asks, and still after a remount.

use std::path::Path;
use std::time::Duration;

use scelle::device::faulty::{Effect, Fault, Operation};
use scelle::mirror::State;
use scelle::problem::Code;
use scelle::units::BLOCK_SIZE;
use scelle::volume::{Open, OpenOptions, ReplicaStatus, witness};

use super::court::{Court, content, get, put, states, wait_in_sync};
use super::support::{BOUND, wait_for};

fn with(folder: &Path) -> OpenOptions {
    OpenOptions { witness: Some(folder.to_owned()), degraded: true, ..OpenOptions::default() }
}

fn replica(open: &Open, index: usize) -> ReplicaStatus {
    open.status().replicas.swap_remove(index)
}

fn codes(replica: &ReplicaStatus) -> Vec<Code> {
    replica.concerns.iter().map(|problem| problem.code).collect()
}

/// How often the trail tells this of a replica.
fn told(open: &Open, event: &str, code: Code) -> usize {
    let is = |record: &scelle::audit::record::Record| {
        record.event == event && record.reasons.iter().any(|reason| reason.code == code.to_string())
    };
    super::audit::trail(open).into_iter().filter(|record| is(record)).count()
}

/// Has replica 0 give so many wrong blocks, each of which another replica has.
fn lie(court: &Court, open: &Open, blocks: u64) {
    let before = open.status().replicas[0].errors.integrity;
    let range = scelle::limits::LABEL_SIZE..u64::MAX;
    let so_far = || open.status().replicas[0].errors.integrity - before;
    while so_far() < blocks {
        // One read of one block is wrong. A file of one block each, so that no other block comes along.
        court.devices[0].inject(Fault {
            times: 1,
            range: range.clone(),
            ..Fault::always(Operation::Read, Effect::Corrupt(1))
        });
        let wrong = so_far();
        for i in 0..40 {
            assert_eq!(get(open.fs(), format!("page-{i}").as_bytes()), content(i, 100));
            if so_far() > wrong {
                break;
            }
        }
        court.devices[0].heal();
    }
    assert_eq!(so_far(), blocks);
}

fn prepared() -> (Court, tempfile::TempDir) {
    let (court, folder) = (Court::new(2), tempfile::tempdir().unwrap());
    let open = court.open_with(&with(folder.path())).unwrap();
    for i in 0..40 {
        put(open.fs(), format!("page-{i}").as_bytes(), &content(i, 100)).unwrap();
    }
    open.close().unwrap();
    (court, folder)
}

/// A disk has a bad block now and then, and each mount begins with none: together they are many.
#[test]
fn p4_the_errors_of_a_replica_are_counted_over_remounts() {
    let (court, folder) = prepared();
    let mut sum = 0;
    for (blocks, healthy) in [(40, true), (23, true), (1, false), (0, false)] {
        let open = court.open_with(&with(folder.path())).unwrap();
        lie(&court, &open, blocks);
        sum += blocks;
        let bad = replica(&open, 0);
        assert_eq!((bad.errors.integrity, bad.total.integrity), (blocks, sum));
        assert_eq!((open.status().is_healthy(), bad.total.is_untrue()), (healthy, !healthy), "{sum}");
        assert_eq!(codes(&bad), if healthy { vec![] } else { vec![Code::ReplicaFaulty] });
        assert!(replica(&open, 1).concerns.is_empty());
        if !healthy {
            let text = &bad.concerns[0].text;
            assert!(text.contains("64 blocks since 20") && text.contains("scelle check"), "{text}");
        }
        // The trail has it once, however often the volume is mounted.
        let times = usize::from(!healthy);
        std::thread::sleep(Duration::from_millis(600 * u64::from(blocks == 0)));
        wait_for("the trail to tell", || told(&open, "replica-unreliable", Code::ReplicaFaulty) == times);
        open.close().unwrap();
    }
    // A check that finds nothing sets the count of the replica back.
    let report = court.report();
    assert!(report.count == 0 && report.whole.len() == 2, "{report:?}");
    let whole: Vec<[u8; 32]> = report.whole.iter().map(|(_, identity)| *identity).collect();
    let anew = witness::found_whole(folder.path(), report.volume, whole.clone(), BOUND).unwrap();
    assert_eq!(anew, [whole[0]]);
    let open = court.open_with(&with(folder.path())).unwrap();
    assert!(open.status().is_healthy() && replica(&open, 0).total.integrity == 0);
    open.close().unwrap();
}

/// What a check does not read to the end, or finds damaged, is not set back.
#[test]
fn p4_a_check_that_finds_damage_calls_no_replica_whole() {
    let (court, _folder) = prepared();
    let open = court.open();
    let extent = open.fs().scan(None, 1).unwrap()[0].extent.clone();
    open.close().unwrap();
    let at = scelle::limits::LABEL_SIZE + extent.addr.0 * BLOCK_SIZE as u64;
    court.devices[1].inject(Fault { range: at..at + 1, ..Fault::always(Operation::Read, Effect::Corrupt(1)) });
    let report = court.report();
    let id = |index: usize| court.open().status().replicas[index].registry_id.clone();
    assert_eq!((report.count, report.whole.len()), (1, 1));
    court.devices[1].heal();
    assert_eq!(report.whole[0].0, id(0));
}

/// The counts are written when they change, and no commit waits for that.
#[test]
fn the_witness_is_not_written_while_nothing_changes() {
    let (court, folder) = prepared();
    let open = court.open_with(&with(folder.path())).unwrap();
    let file = folder.path().join(format!("{}.witness", open.uuid()));
    open.fs().sync().unwrap();
    let written = || std::fs::metadata(&file).unwrap().modified().unwrap();
    wait_for("a time in which it is not written", || {
        let before = written();
        std::thread::sleep(Duration::from_millis(2500));
        written() == before
    });
    lie(&court, &open, 1);
    wait_for("the count to be written", || {
        let seen = witness::read(folder.path(), open.uuid()).unwrap().unwrap();
        seen.health().replicas.values().any(|tally| tally.integrity == 1)
    });
    // It is in the file, and not only with a commit.
    drop(open);
    let open = court.open_with(&with(folder.path())).unwrap();
    assert_eq!(replica(&open, 0).total.integrity, 1);
    open.close().unwrap();
}

/// Somebody altered the host's file: what it says of errors is bounded, and no reason to refuse a mount by itself.
#[test]
fn what_the_host_remembers_of_errors_is_bounded() {
    let (court, folder) = prepared();
    let open = court.open_with(&with(folder.path())).unwrap();
    let file = folder.path().join(format!("{}.witness", open.uuid()));
    open.close().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let most = i64::MAX.to_string();
    let hostile = text
        .replace("integrity = 0", &format!("integrity = {most}"))
        .replace("unasked = []", "unasked = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]");
    assert_ne!(hostile, text);
    std::fs::write(&file, &hostile).unwrap();
    let open = court.open_with(&with(folder.path())).unwrap();
    lie(&court, &open, 1);
    assert_eq!(replica(&open, 0).total.integrity, i64::MAX as u64);
    open.close().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("unasked = [3, 4, 5, 6, 7, 8, 9, 10]"), "{text}");
    // One that has none is as good as any.
    std::fs::write(&file, &text[..text.find("[health").unwrap()]).unwrap();
    let open = court.open_with(&with(folder.path())).unwrap();
    assert!(open.status().is_healthy());
    open.close().unwrap();
}

/// A replica that is left behind again and again, and comes back by itself.
#[test]
fn p6_a_replica_that_is_resynced_again_and_again_is_told() {
    let (court, folder) = prepared();
    for round in 1..=4 {
        // The device is away while the volume changes.
        let open = court.assembled_of(&[0]).unwrap().open(&court.documents.registry, &with(folder.path())).unwrap();
        put(open.fs(), b"meanwhile", &content(round, 3000)).unwrap();
        open.close().unwrap();
        let open = court.open_with(&with(folder.path())).unwrap();
        wait_in_sync(&open);
        assert_eq!(states(&open), [State::InSync; 2]);
        let (total, healthy) = (replica(&open, 1).total, round < 3);
        assert_eq!((total.resyncs, open.status().is_healthy()), (round, healthy));
        assert_eq!(codes(&replica(&open, 1)), if healthy { vec![] } else { vec![Code::ReplicaUnsteady] });
        assert!(replica(&open, 0).concerns.is_empty());
        let times = usize::from(!healthy);
        wait_for("the trail to tell", || told(&open, "replica-unreliable", Code::ReplicaUnsteady) == times);
        open.close().unwrap();
    }
}

/// What an administrator asks for is no sign of a bad cable.
#[test]
fn a_resync_that_was_asked_for_is_no_concern() {
    let (court, folder) = prepared();
    let open = court.open_with(&with(folder.path())).unwrap();
    for round in 0..4 {
        court.devices[1].inject_in_changes(Effect::Error(libc::EIO));
        put(open.fs(), b"meanwhile", &content(round, 3000)).unwrap();
        open.fs().sync().unwrap();
        court.devices[1].heal();
        open.members().rejoin(1).unwrap();
        wait_in_sync(&open);
    }
    assert!(replica(&open, 1).total.resyncs > 2 && open.status().is_healthy(), "{:?}", replica(&open, 1));
    open.close().unwrap();
}
