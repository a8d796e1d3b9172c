//! Promise P10: a replica is added, removed and exchanged while the volume is in use, whatever interrupts it. At no moment
//! are there fewer good copies than there were.

use std::time::Duration;

use scelle::device::faulty::{Effect, Fault, Operation};
use scelle::device::memory::{Disk, MemoryDevice};
use scelle::mirror::State;
use scelle::problem::Code;
use scelle::units::{BLOCK_SIZE, Ino};
use scelle::volume::{self, Open, OpenOptions, Outcome, TaskKind};

use super::court::{Court, Plan, content, get, put, states, wait_in_sync};
use super::support::court::{CALLER, create_options, secret};
use super::support::images::{Disks, Event, Log};
use super::support::rng::{self, Rng};
use super::support::wait_for;

const SIZE: u64 = 17 << 20;

/// A volume on the first two of four devices, with some files.
fn court() -> Court {
    let court = Court::of(Plan { spares: 2, size: SIZE, ..Plan::default() });
    let open = court.open_of(&[0, 1], false).unwrap();
    for n in 0..40 {
        put(open.fs(), &name(n), &content(n, 9000)).unwrap();
    }
    open.close().unwrap();
    court
}

fn name(n: u64) -> Vec<u8> {
    format!("deed-{n}").into_bytes()
}

/// The devices of the replicas, in order.
fn devices(open: &Open) -> Vec<String> {
    open.status().replicas.into_iter().map(|replica| replica.device).collect()
}

fn row_of(open: &Open, device: &str) -> usize {
    open.status().replicas.into_iter().find(|replica| replica.device == device).unwrap().index
}

fn wait_for_tasks(open: &Open) {
    wait_for("the tasks", || open.members().tasks().list().iter().all(|task| task.ended.is_some()));
}

fn slow(ms: u64) -> Fault {
    Fault::always(Operation::Read, Effect::Slow(Duration::from_millis(ms)))
}

fn is_blank(device: &MemoryDevice) -> bool {
    use scelle::device::BlockDevice;
    matches!(scelle::label::read(device), Err(scelle::label::Error::NotScelle)) && device.size_bytes() == SIZE
}

/// Each of these devices by itself is the whole volume, with files `0..count`.
fn assert_each_is_whole(court: &Court, present: &[usize], count: u64) {
    let court = court.on(&disks_of(court), &Log::default());
    for one in present {
        let open = court.open_of(&[*one], true).unwrap();
        (0..count).for_each(|n| assert!(get(open.fs(), &name(n)) == content(n, 9000), "deed {n} on m{one}"));
        drop(open);
    }
}

#[test]
fn p10_a_replica_is_added_exchanged_and_removed_while_the_volume_is_in_use() {
    let court = court();
    let open = court.open_of(&[0, 1], false).unwrap();
    let members = open.members();
    let plan = members.plan_enrol(&court.approved(2), None).unwrap();
    assert!(plan.steps.len() == 2 && plan.bytes > 40 * 9000, "{plan:?}");
    assert!(is_blank(&court.memory[2]), "a plan writes nothing");
    assert_eq!(members.enrol(court.approved(2), None).unwrap(), 2);
    assert_eq!(members.tasks().list()[0].kind, TaskKind::Add { replica: "memory-3".into() });
    put(open.fs(), &name(40), &content(40, 9000)).unwrap();
    wait_in_sync(&open);
    wait_for_tasks(&open);
    assert_eq!(devices(&open), ["m0", "m1", "m2"]);
    // The one that leaves is there until the other has everything.
    assert_eq!(members.plan_enrol(&court.approved(3), Some(0)).unwrap().steps.len(), 3);
    assert_eq!(members.enrol(court.approved(3), Some(0)).unwrap(), 3);
    put(open.fs(), &name(41), &content(41, 9000)).unwrap();
    wait_for_tasks(&open);
    let last = members.tasks().list().pop().unwrap();
    assert_eq!(last.kind, TaskKind::Replace { replica: "memory-4".into(), old: "memory-1".into() });
    assert_eq!(last.ended.unwrap().1, Outcome::Done);
    assert_eq!((devices(&open), states(&open)), (["m1", "m2", "m3"].map(str::to_owned).into(), vec![State::InSync; 3]));
    assert!(is_blank(&court.memory[0]), "its key slots are still there");
    assert!(open.status().is_healthy());
    let removed = members.remove(1).unwrap();
    assert_eq!((&*removed.registry_id, &*removed.device, removed.not_wiped), ("memory-2", "m1", None));
    assert!(is_blank(&court.memory[1]));
    put(open.fs(), &name(42), &content(42, 9000)).unwrap();
    open.close().unwrap();
    let report = court.assembled_of(&[2, 3]).unwrap().check(&mut |_, _| {}).unwrap();
    assert!(report.count == 0 && report.skipped.is_empty(), "{report:?}");
    assert_each_is_whole(&court, &[2, 3], 43);
    // Who has left is blank, and can be added again; in a row of its own.
    let open = court.open_of(&[2, 3], false).unwrap();
    assert_eq!(open.members().enrol(court.approved(0), None).unwrap(), 4);
    wait_in_sync(&open);
    open.close().unwrap();
    assert_each_is_whole(&court, &[0, 2, 3], 43);
}

#[test]
fn p1_what_cannot_become_a_replica_is_refused_before_the_first_byte() {
    let court = court();
    let open = court.open_of(&[0, 1], false).unwrap();
    let members = open.members();
    let refused = |device: usize, replaces: Option<usize>, code: Code| {
        let before = court.disks();
        for error in [
            members.plan_enrol(&court.approved(device), replaces).unwrap_err(),
            members.enrol(court.approved(device), replaces).unwrap_err(),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
        assert!(court.disks()[2..] == before[2..], "something was written");
        assert_eq!(devices(&open), ["m0", "m1"]);
    };
    // It is a replica already, also in its own place; nothing is there to be replaced.
    refused(0, None, Code::ReplicaInUse);
    refused(1, Some(1), Code::ReplicaInUse);
    refused(2, Some(7), Code::ReplicaUnknown);
    // Something lies on it.
    let write = |at: u64, bytes: &[u8]| {
        use scelle::device::BlockDevice;
        court.memory[2].write_at(at, &[std::io::IoSlice::new(bytes)]).unwrap();
    };
    let mut block = scelle::device::AlignedBuf::zeroed(4096);
    block[..4].copy_from_slice(b"XFSB");
    write(0, &block);
    refused(2, None, Code::DeviceNotEmpty);
    write(0, &scelle::device::AlignedBuf::zeroed(4096));
    // Two at once for one place, and a chain of them.
    court.devices[0].inject(slow(5));
    court.devices[1].inject(slow(5));
    members.enrol(court.approved(2), Some(1)).unwrap();
    for replaces in [1, 2] {
        let error = members.enrol(court.approved(3), Some(replaces)).unwrap_err();
        assert_eq!(error.code(), Code::ReplicaChanging, "{error}");
    }
    // The last one that is whole stays.
    assert_eq!(members.remove(1).unwrap().not_wiped, None);
    let error = members.remove(0).unwrap_err();
    assert_eq!(error.code(), Code::ReplicaLast, "{error}");
    assert_eq!(members.remove(9).unwrap_err().code(), Code::ReplicaUnknown);
    court.devices[0].heal();
    wait_in_sync(&open);
    wait_for_tasks(&open);
    assert_eq!(devices(&open), ["m0", "m2"]);
    open.close().unwrap();
    assert_each_is_whole(&court, &[0, 2], 40);
}

#[test]
fn p1_the_policy_keeps_a_replica_that_the_others_need() {
    let court = Court::of(Plan { spares: 1, size: SIZE, min_replicas: 2, ..Plan::default() });
    let open = court.open_of(&[0, 1], false).unwrap();
    let error = open.members().remove(1).unwrap_err();
    assert_eq!(error.code(), Code::TooFewReplicas, "{error}");
    assert_eq!(open.members().plan_remove(1).unwrap_err().code(), Code::TooFewReplicas);
    assert_eq!(states(&open), [State::InSync; 2]);
    // It can be exchanged.
    open.members().enrol(court.approved(2), Some(1)).unwrap();
    wait_for_tasks(&open);
    assert_eq!(devices(&open), ["m0", "m2"]);
    open.close().unwrap();
}

#[test]
fn p10_a_dead_replica_is_exchanged_and_the_volume_is_healthy_again() {
    let court = court();
    let open = court.open_of(&[0, 1], false).unwrap();
    court.devices[1].inject(Fault::always(Operation::Write, Effect::Error(libc::EIO)));
    put(open.fs(), &name(40), &content(40, 9000)).unwrap();
    open.fs().sync().unwrap();
    assert_eq!(states(&open), [State::InSync, State::Faulty]);
    open.members().enrol(court.approved(2), Some(1)).unwrap();
    wait_for_tasks(&open);
    assert!(open.status().is_healthy(), "{:?}", open.status().replicas);
    assert_eq!(devices(&open), ["m0", "m2"]);
    // What cannot be overwritten is told.
    match open.members().tasks().list().pop().unwrap().ended.unwrap().1 {
        Outcome::Failed(problem) => assert_eq!(problem.code, Code::LabelNotWiped, "{problem}"),
        outcome => panic!("{outcome:?}"),
    }
    open.close().unwrap();
    // The dead one comes back with its label: it is left out, and said.
    court.devices[1].heal();
    let open = court.open_of(&[0, 1, 2], false).unwrap();
    assert_eq!(devices(&open), ["m0", "m2"]);
    assert!(open.status().is_healthy());
    let error = open.members().take_in(court.approved(1)).unwrap_err();
    assert_eq!(error.code(), Code::DeviceNotEnrolled, "{error}");
    open.close().unwrap();
    assert_each_is_whole(&court, &[0, 2], 41);
    // The row of one that is away is removed as well.
    let open = court.open_of(&[0], true).unwrap();
    let removed = open.members().remove(row_of_missing(&open)).unwrap();
    assert!(removed.device.is_empty() && removed.not_wiped.is_some(), "{removed:?}");
    assert!(open.status().is_healthy());
    open.close().unwrap();
    assert_each_is_whole(&court, &[0], 41);
}

fn disks_of(court: &Court) -> Vec<Option<Disk>> {
    court.disks().into_iter().map(Some).collect()
}

fn row_of_missing(open: &Open) -> usize {
    open.status().replicas.iter().find(|replica| replica.state == State::Missing).unwrap().index
}

#[test]
fn p10_a_cancelled_exchange_leaves_nothing_behind() {
    let court = court();
    let open = court.open_of(&[0, 1], false).unwrap();
    for replaces in [None, Some(0)] {
        court.devices[0].inject(slow(5));
        court.devices[1].inject(slow(5));
        let index = open.members().enrol(court.approved(2), replaces).unwrap();
        open.members().tasks().cancel(open.members().task(index).unwrap()).unwrap();
        wait_for_tasks(&open);
        let ended = open.members().tasks().list().pop().unwrap().ended.unwrap().1;
        assert_eq!(ended, Outcome::Cancelled);
        assert_eq!((devices(&open), states(&open)), (["m0", "m1"].map(str::to_owned).into(), vec![State::InSync; 2]));
        assert!(is_blank(&court.memory[2]));
        [0, 1].iter().for_each(|index: &usize| court.devices[*index].heal());
    }
    open.close().unwrap();
    assert_each_is_whole(&court, &[0, 1], 40);
}

#[test]
fn p10_an_exchange_goes_on_after_a_remount() {
    let court = court();
    let open = court.open_of(&[0, 1], false).unwrap();
    court.devices[0].inject(slow(5));
    court.devices[1].inject(slow(5));
    open.members().enrol(court.approved(2), Some(0)).unwrap();
    open.close().unwrap();
    [0, 1].iter().for_each(|index: &usize| court.devices[*index].heal());
    let open = court.open_of(&[0, 1, 2], false).unwrap();
    assert_eq!(devices(&open), ["m0", "m1", "m2"]);
    wait_for_tasks(&open);
    assert_eq!((devices(&open), states(&open)), (["m1", "m2"].map(str::to_owned).into(), vec![State::InSync; 2]));
    open.close().unwrap();
    assert!(is_blank(&court.memory[0]));
    assert_each_is_whole(&court, &[1, 2], 40);
    // The new device fails in the middle: the old one stays, and the new one can be removed.
    let open = court.open_of(&[1, 2], false).unwrap();
    court.devices[1].inject(slow(5));
    court.devices[2].inject(slow(5));
    open.members().enrol(court.approved(3), Some(1)).unwrap();
    court.devices[3].inject(Fault::always(Operation::Write, Effect::Error(libc::EIO)));
    put(open.fs(), &name(40), &content(40, 9000)).unwrap();
    wait_for_tasks(&open);
    assert_eq!(states(&open), [State::InSync, State::InSync, State::Faulty]);
    [1, 2, 3].iter().for_each(|index: &usize| court.devices[*index].heal());
    let new = row_of(&open, "m3");
    assert_eq!(open.members().remove(new).unwrap().not_wiped, None);
    assert_eq!((devices(&open), states(&open)), (["m1", "m2"].map(str::to_owned).into(), vec![State::InSync; 2]));
    open.close().unwrap();
    assert_each_is_whole(&court, &[1, 2], 41);
}

/// Others may fail between the question whether they are enough and the end of the removal.
#[test]
fn p10_a_replica_stays_when_another_fails_while_it_is_being_removed() {
    let court = Court::of(Plan { replicas: 3, size: SIZE, min_replicas: 2, ..Plan::default() });
    let open = court.open();
    court.devices[1].inject(Fault::always(Operation::Write, Effect::Error(libc::EIO)));
    let error = open.members().remove(2).unwrap_err();
    assert_eq!(error.code(), Code::TooFewReplicas, "{error}");
    assert_eq!(devices(&open), ["m0", "m1", "m2"]);
    wait_for("its return", || states(&open) == [State::InSync, State::Faulty, State::InSync]);
    put(open.fs(), &name(0), &content(0, 9000)).unwrap();
    open.close().unwrap();
    assert_each_is_whole(&court, &[0, 2], 1);
}

/// A disk that was a replica, and is another volume's by now.
#[test]
fn p1_the_label_of_another_volume_is_not_overwritten() {
    let court = Court::of(Plan { replicas: 3, size: SIZE, ..Plan::default() });
    let approved = || court.approved(2);
    scelle::volume::Doomed::read(approved()).unwrap().destroy(&court.documents.registry).unwrap();
    volume::create(vec![approved()], &court.documents.registry, &secret(), &create_options()).unwrap();
    let before = court.memory[2].disk();
    let open = court.open_of(&[0, 1, 2], true).unwrap();
    assert_eq!(states(&open), [State::InSync, State::InSync, State::Faulty]);
    let removed = open.members().remove(2).unwrap();
    assert!(removed.not_wiped.is_some(), "{removed:?}");
    assert!(open.status().is_healthy());
    open.close().unwrap();
    assert!(court.memory[2].disk() == before, "another volume's label was written to");
}

/// A change that was abandoned leaves a label with the number that the next change has.
#[test]
fn p10_what_is_left_of_an_addition_that_was_abandoned_keeps_nobody_out() {
    let court = court();
    let log = Log::default();
    let used = court.on(&disks_of(&court), &log);
    let open = used.open_of(&[0, 1], false).unwrap();
    open.members().enrol(used.approved(2), None).unwrap();
    drop(open);
    // The power failed when the new device had its label, and nobody else.
    let mut disks = Disks::new(&court.disks());
    let is_header = |event: &Event| matches!(event, Event::Write(2, _, b) if b.len() == scelle::label::HEADER_BYTES);
    let mut headers = 0;
    for event in log.lock().unwrap().iter() {
        disks.apply(event);
        headers += usize::from(is_header(event));
        if headers == 3 && !is_header(event) {
            break;
        }
    }
    let abandoned = disks.durable[2].clone();
    assert!(scelle::label::read(&MemoryDevice::from_disk("m2", abandoned.clone())).is_ok());
    let open = court.open_of(&[0, 1], false).unwrap();
    open.members().enrol(court.approved(3), None).unwrap();
    wait_in_sync(&open);
    open.close().unwrap();
    let mut disks = disks_of(&court);
    disks[2] = Some(abandoned);
    for order in [[0, 1, 2, 3], [2, 3, 1, 0], [3, 1, 0, 2]] {
        let court = court.on(&disks, &Log::default());
        let open = court.open_of(&order, false).unwrap_or_else(|error| panic!("{order:?}: {error}"));
        assert_eq!(devices(&open), ["m0", "m1", "m3"]);
        assert!(open.status().is_healthy(), "{order:?}");
        open.close().unwrap();
    }
}

#[test]
fn p6_two_sides_that_have_removed_each_other_are_refused() {
    let court = court();
    for (alone, other) in [(0, 1), (1, 0)] {
        let open = court.open_of(&[alone], true).unwrap();
        open.members().remove(other).unwrap();
        put(open.fs(), &name(40), &content(alone as u64, 9000)).unwrap();
        open.close().unwrap();
    }
    let before = court.disks();
    for order in [[0, 1], [1, 0]] {
        let error = court.open_of(&order, true).err().unwrap();
        assert_eq!(error.code(), Code::VolumeDiverged, "{error}");
    }
    assert!(court.disks() == before, "something was written");
    for alone in [0, 1] {
        let open = court.open_of(&[alone], false).unwrap();
        assert!(get(open.fs(), &name(40)) == content(alone as u64, 9000));
        open.close().unwrap();
    }
}

/// A full volume has the room that a change of its table takes.
#[test]
fn p10_a_replica_of_a_full_volume_is_exchanged_and_removed() {
    let court = court();
    let open = court.open_of(&[0, 1], false).unwrap();
    let (fs, members) = (open.fs(), open.members());
    let filler = fs.mknod(&CALLER, Ino::ROOT, b"filler", 0o600, 0).unwrap().ino;
    let usage = open.store().usage();
    fs.fallocate(filler, 0, (usage.free_blocks - usage.reserved_blocks) * BLOCK_SIZE as u64, 0).unwrap();
    fs.forget(filler, 1);
    while fs.mknod(&CALLER, Ino::ROOT, &Rng::new(fs.meters().operations()).bytes(40), 0o600, 0).is_ok() {}
    fs.sync().unwrap();
    members.enrol(court.approved(2), Some(0)).unwrap();
    wait_for_tasks(&open);
    assert_eq!((devices(&open), states(&open)), (["m1", "m2"].map(str::to_owned).into(), vec![State::InSync; 2]));
    members.enrol(court.approved(3), None).unwrap();
    wait_in_sync(&open);
    wait_for_tasks(&open);
    members.remove(1).unwrap();
    assert_eq!(devices(&open), ["m2", "m3"]);
    open.close().unwrap();
    let report = court.assembled_of(&[2, 3]).unwrap().check(&mut |_, _| {}).unwrap();
    assert!(report.count == 0 && report.skipped.is_empty(), "{report:?}");
    assert_each_is_whole(&court, &[2, 3], 40);
}

/// The power fails at any moment while a replica is added, another takes a third one's place, and one is removed. What was
/// synced is there, the table is one that was, and what was begun goes on to its end.
#[test]
fn p10_a_power_failure_at_any_moment_of_a_change_of_the_table_loses_nothing() {
    let mut rng = Rng::seeded();
    let court = court();
    let log = Log::default();
    let used = court.on(&disks_of(&court), &log);
    let open = used.open_of(&[0, 1], false).unwrap();
    let members = open.members();
    let mut count = 40;
    let mut write = || {
        put(open.fs(), &name(count), &content(count, 9000)).unwrap();
        open.fs().sync().unwrap();
        count += 1;
        log.lock().unwrap().push(Event::Synced(count as usize));
    };
    write();
    members.enrol(used.approved(2), None).unwrap();
    write();
    wait_for_tasks(&open);
    write();
    members.enrol(used.approved(3), Some(0)).unwrap();
    write();
    wait_for_tasks(&open);
    write();
    members.remove(1).unwrap();
    write();
    assert_eq!(devices(&open), ["m2", "m3"]);
    open.close().unwrap();
    let events = log.lock().unwrap().clone();
    let (mut synced, mut tried) = (40, 0);
    let mut disks = Disks::new(&court.disks());
    let one_in = (events.len() as u64 / (300 * rng::soak())).max(1);
    for (point, event) in events.iter().enumerate() {
        disks.apply(event);
        if let Event::Synced(count) = event {
            synced = *count as u64;
        }
        // A label is being written: every moment counts.
        let is_label = matches!(event, Event::Write(_, _, bytes) if bytes.len() == scelle::label::HEADER_BYTES);
        if !is_label && !rng.one_in(one_in) {
            continue;
        }
        let (found, survival) = disks.crash(&mut rng);
        let what = || format!("power fails at event {point} of {}, {survival:?} is left", events.len());
        after_power_failure(&court, &found, synced).unwrap_or_else(|error| panic!("{}: {error}", what()));
        tried += 1;
    }
    println!("{tried} crash states of {} events", events.len());
    assert!(tried > 150, "{tried}");
}

fn after_power_failure(court: &Court, found: &[Disk], synced: u64) -> Result<(), volume::Error> {
    let disks: Vec<Option<Disk>> = found.iter().cloned().map(Some).collect();
    let court = court.on(&disks, &Log::default());
    let present: Vec<usize> = (0..4).filter(|index| scelle::label::read(&*court.memory[*index]).is_ok()).collect();
    let open = court.assembled_of(&present)?.open(&court.documents.registry, &OpenOptions::default())?;
    let of = |open: &Open| (0..synced).all(|n| get(open.fs(), &name(n)) == content(n, 9000));
    assert!(of(&open), "what was synced is not there");
    wait_for_tasks(&open);
    wait_in_sync(&open);
    assert!(open.status().is_healthy(), "{:?}", open.status().replicas);
    let devices = devices(&open);
    let tables: [&[&str]; 5] =
        [&["m0", "m1"], &["m0", "m1", "m2"], &["m0", "m1", "m2", "m3"], &["m1", "m2", "m3"], &["m2", "m3"]];
    assert!(tables.iter().any(|table| *table == devices), "{devices:?}");
    // What was begun has gone on to its end.
    assert!(devices.len() != 4, "nobody took the place");
    open.close()?;
    let members: Vec<usize> = (0..4).filter(|index| devices.contains(&format!("m{index}"))).collect();
    let report = court.assembled_of(&members)?.check(&mut |_, _| {})?;
    assert!(report.count == 0 && report.skipped.is_empty(), "{report:?}");
    for one in members {
        let open = court.on(&disks_of(&court), &Log::default()).open_of(&[one], true)?;
        assert!(of(&open), "m{one} alone");
    }
    Ok(())
}
