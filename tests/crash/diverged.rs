//! Two replicas that each went on without the other: both histories are named, one is chosen, and nothing of the other is
//! believed afterwards.

use std::sync::Arc;

use scelle::mirror::State;
use scelle::problem::{Code, Problem};
use scelle::units::{Generation, Ino};
use scelle::volume::{self, Open};

use super::court::{Court, assert_whole, content, get, put, wait_in_sync};
use super::support::court::CALLER;

/// Each of the two has gone on alone: the second further than the first.
fn parted() -> Court {
    let court = Court::new(2);
    let open = court.open();
    for name in [&b"both"[..], b"changed"] {
        put(open.fs(), name, &content(1, 200_000)).unwrap();
    }
    open.close().unwrap();
    let first = court.open_of(&[0], true).unwrap();
    put(first.fs(), b"first", &content(2, 300_000)).unwrap();
    first.close().unwrap();
    let second = court.open_of(&[1], true).unwrap();
    for round in 0..20u64 {
        put(second.fs(), b"second", &content(round, 300_000)).unwrap();
        second.fs().checkpoint().unwrap();
    }
    second.fs().mkdir(&CALLER, Ino::ROOT, b"folder\xe2\x80\xae", 0o700).unwrap();
    put(second.fs(), b"changed", &content(3, 100_000)).unwrap();
    second.close().unwrap();
    court
}

/// The first goes on; what its refusal says of the second.
fn refused(court: &Court) -> (Open, volume::Side) {
    let open = court.open_of(&[0], true).unwrap();
    let error = open.members().take_in(court.approved(1)).unwrap_err();
    let volume::Error::Diverged { other, .. } = error else { panic!("{error}") };
    (open, *other)
}

#[test]
fn p6_the_refusal_of_two_histories_names_both_and_the_way_out() {
    let court = parted();
    let error = court.open_with(&Default::default()).map(drop).unwrap_err();
    let volume::Error::Diverged { one, other, .. } = &error else { panic!("{error}") };
    assert!(one.generation > other.generation && one.host.is_some() && one.host == other.host, "{error}");
    assert!(one.name.contains("m1") && other.name.contains("m0") && one.committed.ends_with('Z'), "{error}");
    let problem = Problem::from(error);
    for piece in ["-o degraded m1", "resync MOUNTPOINT m0", "--discard-diverged"] {
        assert!(problem.advice.contains(piece), "{piece} is not in {problem:?}");
    }
}

#[test]
fn p6_of_two_histories_one_is_chosen_and_nothing_of_the_other_is_believed() {
    let court = parted();
    let (open, theirs) = refused(&court);
    let device = Arc::new(court.approved(1));
    let (side, only) = open.members().only_there(&device).unwrap().unwrap();
    assert_eq!((side.generation, only.count), (theirs.generation, 3), "{only:?}");
    let mut paths = only.paths;
    paths.sort();
    assert_eq!(paths, ["/changed", "/folder\\u{202e}/", "/second"]);
    // Neither by another number, nor where there is nothing to discard.
    let before = court.memory[1].disk();
    for wrong in [0, theirs.generation.0 - 1, theirs.generation.0 + 1, open.store().generation().0] {
        let error = open.members().discard(&device, Generation(wrong)).unwrap_err();
        assert_eq!(error.code(), Code::VolumeDiverged, "{wrong}: {error}");
    }
    assert!(court.memory[1].disk() == before, "something was written before it was chosen");
    open.members().discard(&device, theirs.generation).unwrap();
    let again = open.members().discard(&device, theirs.generation).unwrap_err();
    assert_eq!(again.code(), Code::NotDiverged, "{again}");
    assert_eq!(open.members().take_in(device).unwrap(), (1, State::Resyncing));
    wait_in_sync(&open);
    assert_whole(&open);
    assert_eq!(get(open.fs(), b"changed"), content(1, 200_000));
    assert!(open.fs().lookup(Ino::ROOT, b"second").is_err());
    let trail: Vec<String> =
        open.audit().page(0).unwrap().into_iter().map(|record| String::from_utf8(record).unwrap()).collect();
    let told = trail.iter().find(|record| record.contains("history-discarded")).expect("a record");
    assert!(
        told.contains(&format!("\"generation\":{}", theirs.generation)) && told.contains("\"only_there\":3"),
        "{told}"
    );
    open.close().unwrap();
    court.check();
    // Alone, it is what the first was; and both together are one volume again.
    let second = court.open_of(&[1], true).unwrap();
    assert_eq!(get(second.fs(), b"first"), content(2, 300_000));
    second.close().unwrap();
    let both = court.open();
    wait_in_sync(&both);
    both.close().unwrap();
}

#[test]
fn p6_a_crash_after_the_choice_leaves_a_replica_that_is_left_behind() {
    let court = parted();
    let (open, theirs) = refused(&court);
    open.members().discard(&Arc::new(court.approved(1)), theirs.generation).unwrap();
    drop(open);
    let both = court.open();
    wait_in_sync(&both);
    assert_whole(&both);
    assert_eq!(get(both.fs(), b"first"), content(2, 300_000));
    both.close().unwrap();
    court.check();
}
