//! Promises P5, P6: what this host remembers of a volume, and who waits for the host's disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scelle::device::faulty::Effect;
use scelle::device::memory::Disk;
use scelle::mirror::State;
use scelle::problem::Code;
use scelle::units::{Ino, Uuid};
use scelle::volume::{self, Open, OpenOptions, witness};

use super::Bench;
use super::support::court::{Court, content, get, put};
use super::support::images::Log;

/// Longest wait for the host's disk, and some more for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);

fn with_witness(folder: &Path) -> OpenOptions {
    OpenOptions { witness: Some(folder.to_owned()), ..OpenOptions::default() }
}

/// Makes every attempt to write the witness hang, until somebody reads from what is returned.
fn hang(folder: &Path, volume: Uuid) -> PathBuf {
    let beside = folder.join(format!("{volume}.witness-new"));
    let _ = std::fs::remove_file(&beside);
    assert!(std::process::Command::new("mkfifo").arg(&beside).status().unwrap().success());
    beside
}

/// Lets whoever hangs go on, for good.
fn release(beside: &Path) {
    use std::os::unix::fs::OpenOptionsExt;
    let _reader = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(beside).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let _ = std::fs::remove_file(beside);
}

/// What is there when the power fails now: what is on stable storage.
fn power_fails(court: &Court, only: &[usize]) -> Court {
    let disks: Vec<Option<Disk>> =
        court.disks().into_iter().enumerate().map(|(i, disk)| only.contains(&i).then_some(disk)).collect();
    court.on(&disks, &Log::default())
}

/// A copy of the host's witness as it is now.
fn copy(folder: &Path, volume: Uuid) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let name = format!("{volume}.witness");
    std::fs::copy(folder.join(&name), copy.path().join(&name)).unwrap();
    copy
}

fn refusal(outcome: Result<Open, volume::Error>) -> (Code, String) {
    let error = outcome.err().expect("it was mounted");
    (error.code(), error.to_string())
}

#[test]
fn p6_a_host_without_a_witness_says_so() {
    let (court, here, elsewhere) = (Court::new(2), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let told = |open: &Open| {
        let events = super::audit::trail(open).iter().filter(|record| record.event == "witness-missing").count();
        (open.status().unremembered, events)
    };
    let at = |folder: &tempfile::TempDir| court.open_with(&with_witness(folder.path())).unwrap();
    // A volume that was only made has nothing to be set back from.
    for _ in 0..2 {
        let open = at(&here);
        assert_eq!(told(&open), (false, 0));
        open.close().unwrap();
    }
    // Another host, or one that has lost what it knew.
    let read = OpenOptions { read_only: true, ..with_witness(elsewhere.path()) };
    let open = court.open_with(&read).unwrap();
    assert!(open.status().unremembered);
    open.close().unwrap();
    let open = at(&elsewhere);
    assert!(open.status().unremembered && told(&open).1 >= 1, "{:?}", told(&open));
    open.close().unwrap();
    assert!(!at(&elsewhere).status().unremembered);
}

#[test]
fn p6_devices_that_were_set_back_and_used_elsewhere_are_recognised() {
    let bench = Bench::new(1);
    let folder = tempfile::tempdir().unwrap();
    let with = with_witness(folder.path());
    let on = |disks: &[Disk]| bench.assemble(&disks.iter().cloned().map(Some).collect::<Vec<_>>(), &Log::default());
    let open_here = |disks: &[Disk], options: &OpenOptions| {
        let (assembled, devices) = on(disks)?;
        Ok((assembled.open(&bench.court.documents.registry, options)?, devices))
    };
    let old = bench.disks.clone();
    let (open, devices) = open_here(&old, &with).unwrap();
    for i in 0..20 {
        put(open.fs(), format!("acked-{i}").as_bytes(), &content(i, 5000)).unwrap();
        open.fs().sync().unwrap();
    }
    open.close().unwrap();
    let ours: Vec<Disk> = devices.iter().map(|device| device.disk()).collect();
    let (code, text) = refusal(open_here(&old, &with).map(|(open, _)| open));
    assert!(code == Code::VolumeRolledBack && text.contains("an older state"), "{text}");
    // Elsewhere the old state goes on, past the generation that this host knows.
    let elsewhere = |disks: &[Disk], files: u64| {
        let (assembled, devices) = on(disks).unwrap();
        let open = bench.open(assembled, false).unwrap();
        for i in 0..files {
            put(open.fs(), format!("elsewhere-{i}").as_bytes(), &content(i, 1000)).unwrap();
            open.fs().sync().unwrap();
        }
        open.close().unwrap();
        devices.iter().map(|device| device.disk()).collect::<Vec<Disk>>()
    };
    let forked = elsewhere(&old, 40);
    let (code, text) = refusal(open_here(&forked, &with).map(|(open, _)| open));
    assert!(code == Code::VolumeRolledBack && text.contains("used elsewhere"), "{text}");
    // What went on elsewhere from what this host has seen is welcome.
    let (open, _) = open_here(&elsewhere(&ours, 5), &with).unwrap();
    assert!(get(open.fs(), b"acked-19") == content(19, 5000));
    open.close().unwrap();
    // Accepted once, the other history is the volume's.
    let refused = open_here(&forked, &with).err().unwrap();
    let accept = OpenOptions { accept_rollback: refused.acceptable(), ..with.clone() };
    let (open, devices) = open_here(&forked, &accept).unwrap();
    open.close().unwrap();
    let forked: Vec<Disk> = devices.iter().map(|device| device.disk()).collect();
    open_here(&forked, &with).unwrap().0.close().unwrap();
    assert_eq!(refusal(open_here(&ours, &with).map(|(open, _)| open)).0, Code::VolumeRolledBack);
}

/// Replica 0 fails, a sync is answered without it, the power fails, and only replica 0 comes back.
#[test]
fn p6_a_replica_that_was_left_behind_does_not_pass_for_the_volume() {
    let court = Court::new(2);
    let folder = tempfile::tempdir().unwrap();
    let open = court.open_with(&with_witness(folder.path())).unwrap();
    put(open.fs(), b"before", &content(1, 50_000)).unwrap();
    open.fs().sync().unwrap();
    for round in 0..3u64 {
        court.devices[0].inject_in_changes(Effect::Error(libc::EIO));
        put(open.fs(), format!("acked-{round}").as_bytes(), &content(2, 9000)).unwrap();
        open.fs().sync().unwrap();
        let remembered = copy(folder.path(), open.uuid());
        let degraded = OpenOptions { degraded: true, ..with_witness(remembered.path()) };
        let (code, text) = refusal(power_fails(&court, &[0]).open_with(&degraded));
        assert_eq!(code, Code::VolumeRolledBack, "{text}");
        assert!(text.contains("replica 1 (") && text.contains("attach it"), "what is missing is not named: {text}");
        let other = power_fails(&court, &[1]).open_with(&degraded).unwrap();
        assert!(get(other.fs(), format!("acked-{round}").as_bytes()) == content(2, 9000));
        drop(other);
        // The explicit way, which the trail tells.
        let remembered = copy(folder.path(), open.uuid());
        let with = OpenOptions { degraded: true, ..with_witness(remembered.path()) };
        let refused = power_fails(&court, &[0]).open_with(&with).err().unwrap();
        let accept = OpenOptions { accept_rollback: refused.acceptable(), ..with };
        let alone = power_fails(&court, &[0]).open_with(&accept).unwrap();
        assert!(super::audit::trail(&alone).iter().any(|record| record.event == "rollback-accepted"));
        drop(alone);
        // It comes back, and leaves again before the witness is written the next time.
        court.devices[0].heal();
        let _ = open.members().rejoin(0);
        super::support::wait_for("the replica to come back", || open.status().replicas[0].state == State::InSync);
    }
    open.close().unwrap();
}

/// The disk of the host hangs: operations are committed as ever, and the volume can be closed.
#[test]
fn p5_no_commit_waits_for_the_hosts_disk() {
    let court = Court::new(2);
    let folder = tempfile::tempdir().unwrap();
    let open = court.open_with(&with_witness(folder.path())).unwrap();
    let beside = hang(folder.path(), open.uuid());
    let begin = Instant::now();
    let (mut worst, mut files) = (Duration::ZERO, 0u64);
    while begin.elapsed() < Duration::from_secs(4) {
        if open.fs().dirty_since().is_none() {
            put(open.fs(), format!("f{files}").as_bytes(), &content(files, 5000)).unwrap();
            files += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
        worst = worst.max(open.fs().dirty_since().map_or(Duration::ZERO, |since| since.elapsed()));
    }
    assert!(files > 1 && worst < Duration::from_millis(2500), "{files} files; one waited {worst:?} for its commit");
    let begin = Instant::now();
    open.close().unwrap();
    assert!(begin.elapsed() < PATIENCE, "closing took {:?}", begin.elapsed());
    release(&beside);
}

/// The one commit that has to wait: without the witness it is not answered.
#[test]
fn p6_without_the_witness_nothing_is_answered_that_a_replica_lacks() {
    let court = Court::new(2);
    let folder = tempfile::tempdir().unwrap();
    let open = court.open_with(&with_witness(folder.path())).unwrap();
    put(open.fs(), b"before", &content(1, 9000)).unwrap();
    open.fs().sync().unwrap();
    let beside = hang(folder.path(), open.uuid());
    court.devices[0].inject_in_changes(Effect::Error(libc::EIO));
    let begin = Instant::now();
    put(open.fs(), b"after", &content(2, 9000)).unwrap();
    assert!(open.fs().sync().is_err(), "it was answered");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    assert_eq!(open.store().read_only_code(), Code::WitnessUnavailable);
    let why = open.status().read_only.unwrap();
    assert!(why.contains("a replica has left") && why.contains("does not answer"), "{why}");
    assert!(open.fs().lookup(Ino::ROOT, b"before").is_ok(), "reads do not go on");
    let errno = put(open.fs(), b"later", b"x").unwrap_err().errno();
    assert_eq!(errno, libc::EROFS);
    let begin = Instant::now();
    let _ = open.close();
    assert!(begin.elapsed() < PATIENCE, "closing took {:?}", begin.elapsed());
    release(&beside);
    // Whoever is alone now may be mounted: nobody was answered for more.
    court.devices[0].heal();
    let degraded = OpenOptions { degraded: true, ..with_witness(folder.path()) };
    let before = power_fails(&court, &[0]).open_with(&degraded);
    assert!(before.is_ok_and(|open| get(open.fs(), b"before") == content(1, 9000)));
}

/// A mount that leaves a replica behind is a departure, too.
#[test]
fn p6_a_degraded_mount_takes_changes_only_when_the_host_remembers_it() {
    let court = Court::new(2);
    let folder = tempfile::tempdir().unwrap();
    let open = court.open_with(&with_witness(folder.path())).unwrap();
    let volume = open.uuid();
    open.close().unwrap();
    let degraded = OpenOptions { degraded: true, ..with_witness(folder.path()) };
    let alone = power_fails(&court, &[1]);
    let open = alone.open_with(&degraded).unwrap();
    let (code, text) = refusal(power_fails(&court, &[0]).open_with(&degraded));
    assert_eq!(code, Code::VolumeRolledBack, "{text}");
    open.close().unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let beside = hang(fresh.path(), volume);
    let open =
        power_fails(&court, &[1]).open_with(&OpenOptions { degraded: true, ..with_witness(fresh.path()) }).unwrap();
    assert_eq!(open.store().read_only_code(), Code::WitnessUnavailable);
    assert!(put(open.fs(), b"x", b"x").is_err());
    drop(open);
    release(&beside);
}

/// A witness that does not answer refuses the mount in time; one that is damaged is accepted once, and written anew.
#[test]
fn p6_a_witness_that_cannot_be_read_refuses_until_it_is_accepted() {
    let court = Court::new(1);
    let folder = tempfile::tempdir().unwrap();
    let with = with_witness(folder.path());
    let open = court.open_with(&with).unwrap();
    let file = folder.path().join(format!("{}.witness", open.uuid()));
    open.close().unwrap();
    for damaged in [true, false] {
        std::fs::remove_file(&file).unwrap();
        if damaged {
            std::fs::write(&file, "17\n").unwrap();
        } else {
            assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        }
        let begin = Instant::now();
        let refused = court.open_with(&with).err().unwrap();
        let accept = refused.acceptable();
        let (code, text) = refusal(Err::<Open, _>(refused));
        assert!(code == Code::WitnessUnavailable && begin.elapsed() < PATIENCE, "{text} {:?}", begin.elapsed());
        let open = court.open_with(&OpenOptions { accept_rollback: accept, ..with.clone() }).unwrap();
        let mount = super::audit::trail(&open).into_iter().rfind(|record| record.event == "mounted").unwrap();
        assert!(mount.reasons.iter().any(|reason| reason.code == "witness-unavailable"));
        let volume = open.uuid();
        open.close().unwrap();
        assert!(witness::read(folder.path(), volume).unwrap().is_some());
        court.open_with(&with).unwrap().close().unwrap();
    }
}

/// The reports are on the host's disk too: neither a mount nor a commit nor a close waits for it without a bound.
#[test]
fn p5_nothing_waits_for_the_hosts_reports_without_a_bound() {
    let court = Court::new(2);
    let folder = tempfile::tempdir().unwrap();
    let with = with_witness(folder.path());
    let open = court.open_with(&with).unwrap();
    let volume = open.uuid();
    open.close().unwrap();
    // Whoever reads the reports hangs.
    let reports = folder.path().join(format!("{volume}.reports"));
    assert!(std::process::Command::new("mkfifo").arg(&reports).status().unwrap().success());
    let begin = Instant::now();
    let open = court.open_with(&with).unwrap();
    assert!(begin.elapsed() < 2 * PATIENCE, "the mount took {:?}", begin.elapsed());
    put(open.fs(), b"file", &content(1, 9000)).unwrap();
    open.fs().sync().unwrap();
    // Now the volume takes no change, so that everything there is to say goes to the host.
    for device in &court.devices {
        device.inject_in_changes(Effect::Error(libc::EIO));
    }
    let begin = Instant::now();
    put(open.fs(), b"lost", &content(1, 9000)).unwrap();
    assert!(open.fs().sync().is_err());
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    assert_eq!(get(open.fs(), b"file"), content(1, 9000));
    let begin = Instant::now();
    let _ = open.close();
    assert!(begin.elapsed() < 2 * PATIENCE, "closing took {:?}", begin.elapsed());
}
