//! Promise P9: a record of the audit trail is there exactly when the operations around it are, whatever happens.

use std::path::Path;

use scelle::audit::record::{Digest, Record};
use scelle::audit::{Actor, Entry, Event, Object, Reason, Reports, Verifier};
use scelle::fs::Fs;
use scelle::limits::{AUDIT_PAGE_BYTES_MAX, AUDIT_RECORD_BYTES_MAX};
use scelle::mirror::State;
use scelle::problem::{Code, Problem};
use scelle::units::{Generation, Ino, Uuid};
use scelle::volume::{self, Open, OpenOptions};

use super::Bench;
use super::support::court::CALLER;
use super::support::images::{Disks, Log};
use super::support::rng::Rng;
use super::support::wait_for;

/// The whole trail, each link of it verified, up to a seal.
pub fn trail(open: &Open) -> Vec<Record> {
    let key = open.audit().head().public_key;
    let (seal, signature) = open.audit().seal().unwrap();
    let mut verifier = Verifier::new(&seal, &signature, &key).unwrap();
    let mut records = Vec::new();
    while (records.len() as u64) < verifier.seal().records {
        for bytes in open.audit().page(records.len() as u64).unwrap() {
            if (records.len() as u64) < verifier.seal().records {
                records.push(verifier.push(&bytes).unwrap());
            }
        }
    }
    verifier.finish().unwrap();
    records
}

fn events(open: &Open) -> Vec<String> {
    trail(open).into_iter().map(|record| record.event).collect()
}

/// Opens the volume, lets `f` use it, closes it, and keeps what is then on the disks.
fn mounted<T>(bench: &mut Bench, options: &OpenOptions, f: impl FnOnce(&Open) -> T) -> T {
    let copy = bench.court.on(&bench.all(), &Log::default());
    let open = copy.open_with(options).unwrap();
    let result = f(&open);
    // What a poisoned volume cannot write is in the host's reports.
    let _ = open.close();
    bench.disks = copy.disks();
    result
}

fn with_witness(folder: &Path) -> OpenOptions {
    OpenOptions { witness: Some(folder.to_owned()), ..OpenOptions::default() }
}

fn marks(open: &Open) -> usize {
    trail(open).iter().filter(|record| record.event == "rollback-accepted").count()
}

fn files(fs: &Fs) -> usize {
    let mut count = 0;
    fs.readdir(Ino::ROOT, 0, false, &mut |entry| {
        count += usize::from(entry.name.starts_with(b"file"));
        true
    })
    .unwrap();
    count
}

/// File, record, file, record, …: after any crash the trail is whole, and has as many records as there are files, or one
/// less.
#[test]
fn p9_a_record_and_its_operation_survive_a_crash_together() {
    let mut rng = Rng::seeded();
    let bench = Bench::new(2);
    let log = Log::default();
    let (open, _devices) = bench.start(&log);
    for n in 0..30u64 {
        let made = open.fs().mknod(&CALLER, Ino::ROOT, format!("file{n}").as_bytes(), 0o644, 0).unwrap();
        open.fs().forget(made.ino, 1);
        let event = Event::RollbackAccepted { seen: n, found: n };
        open.audit().record(Entry::done(open.audit().user(), Object::Volume, event));
        if n % 3 == 0 {
            open.fs().sync().unwrap();
        }
    }
    open.close().unwrap();
    let events = log.lock().unwrap().clone();
    let mut disks = Disks::new(&bench.disks);
    let mut seen = Vec::new();
    for event in &events {
        disks.apply(event);
        let crashed: Vec<_> = disks.crash(&mut rng).0.into_iter().map(Some).collect();
        let (assembled, _devices) = bench.assemble(&crashed, &Log::default()).unwrap();
        let open = bench.open(assembled, false).unwrap();
        let (files, marks) = (files(open.fs()), marks(&open));
        assert!(files == marks || files == marks + 1, "{files} files, {marks} records");
        seen.push(marks);
    }
    seen.sort_unstable();
    assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&30)));
    seen.dedup();
    println!("{} crash states, {} different trails", events.len(), seen.len());
    assert!(events.len() > 50 && seen.len() > 8);
}

#[test]
fn p9_the_life_of_a_volume_is_in_its_trail() {
    let mut bench = Bench::new(2);
    let options = OpenOptions::default();
    let first = mounted(&mut bench, &options, trail);
    assert_eq!(first.iter().map(|r| r.event.as_str()).collect::<Vec<_>>(), ["volume-created", "mounted"]);
    assert_eq!(first[0].seq, 1);
    assert_eq!(first[1].details["after_crash"], false);
    assert_eq!(first[1].details["registry"]["version"], 1);
    assert_eq!(first[1].details["replicas"][1]["registry_id"], "memory-2");
    assert_eq!(first[1].actor["pid"], std::process::id());
    // A crash: no end.
    let (open, devices) = bench.start(&Log::default());
    drop(open);
    bench.keep(&devices);
    let third = mounted(&mut bench, &options, trail);
    let events: Vec<&str> = third.iter().map(|r| r.event.as_str()).collect();
    assert_eq!(events, ["volume-created", "mounted", "unmounted", "mounted", "mounted"]);
    assert_eq!(third[4].details["after_crash"], true);
    // What was exported once is a beginning of every later trail.
    assert_eq!(third[2].prev, Digest::of(&serde_json::to_vec(&first[1]).unwrap()));
}

#[test]
fn p9_a_replica_that_leaves_and_comes_back_is_told_with_its_reasons() {
    let mut bench = Bench::new(2);
    let options = OpenOptions::default();
    mounted(&mut bench, &options, |open| {
        open.store().mirror().fence(1, State::Refused, "revoked by the officers");
        open.audit().observe();
        let last = trail(open).pop().unwrap();
        assert_eq!((last.event.as_str(), last.object["registry_id"].as_str()), ("replica-state", Some("memory-2")));
        assert_eq!((last.details["from"].as_str(), last.details["to"].as_str()), (Some("in-sync"), Some("refused")));
        assert_eq!(last.reasons, [Reason::new(Code::Replica, "revoked by the officers")]);
        // Looking again tells nothing new.
        open.audit().observe();
        assert_eq!(trail(open).pop().unwrap(), last);
        open.fs().checkpoint().unwrap();
    });
    mounted(&mut bench, &options, |open| {
        let changes = || -> Vec<(String, String)> {
            let trail = trail(open);
            let changes = trail.iter().filter(|r| r.event == "replica-state");
            changes.map(|r| (r.details["from"].to_string(), r.details["to"].to_string())).collect()
        };
        let text = |a: &str, b: &str| (format!("{a:?}"), format!("{b:?}"));
        wait_for("the trail to tell", || changes().contains(&text("resyncing", "in-sync")));
        assert!(changes().contains(&text("stale", "resyncing")), "{:?}", changes());
    });
}

#[test]
fn p9_what_the_volume_could_not_take_is_told_at_the_next_mount() {
    let host = tempfile::tempdir().unwrap();
    let options = with_witness(host.path());
    let mut bench = Bench::new(2);
    let volume = mounted(&mut bench, &options, Open::uuid);
    // Read-only: the devices are not written to, and yet it is not forgotten.
    let before = mounted(&mut bench, &options, |open| trail(open).len());
    mounted(&mut bench, &OpenOptions { read_only: true, ..options.clone() }, |open| {
        assert_eq!(trail(open).len(), before + 1, "only the end of the mount before");
    });
    // Two mounts that were refused, the same way.
    let actor = Actor::User { uid: 0, gid: 0, pid: 1, login_uid: None, name: None };
    for _ in 0..2 {
        let refused = Entry::done(actor.clone(), Object::Volume, Event::MountRefused);
        Reports::new(host.path(), volume)
            .add(&refused.because([Reason::new(Code::WrongKey, "wrong passphrase")]))
            .unwrap();
    }
    // The policy leaves too few replicas: no change is accepted, which the volume cannot say of itself.
    mounted(&mut bench, &options, |open| {
        let told = trail(open);
        let told: Vec<_> = told[before + 1..].iter().map(|r| (r.event.as_str(), r.reported.is_some())).collect();
        assert_eq!(told, [("mounted", true), ("unmounted", true), ("mount-refused", true), ("mounted", false)]);
        // One more record, that no commit takes any more.
        let event = Event::RollbackAccepted { seen: 2, found: 1 };
        open.audit().record(Entry::done(actor.clone(), Object::Volume, event));
        open.store().poison("too few replicas".into());
        open.audit().observe();
        // What was never durable is not sealed.
        assert_eq!(trail(open).len(), before + 5);
    });
    assert!(host.path().join(format!("{volume}.reports")).exists());
    mounted(&mut bench, &options, |open| {
        let told = trail(open);
        let refused = &told[before + 3];
        assert_eq!(refused.repeated.as_ref().unwrap().count, 1);
        let after: Vec<&str> = told[before + 5..].iter().map(|r| r.event.as_str()).collect();
        assert_eq!(after, ["rollback-accepted", "read-only", "unmounted", "mounted"]);
        assert!(told[before + 6].reasons[0].text.contains("too few replicas"));
        assert_eq!(told[before + 8].details["after_crash"], false);
        assert!(told.iter().filter_map(|r| r.reported.as_ref()).all(|reported| reported.intact));
    });
    assert!(!host.path().join(format!("{volume}.reports")).exists());
}

/// A crash between the commit and the removal of the reports does not tell them twice.
#[test]
fn p9_a_report_is_told_once() {
    let host = tempfile::tempdir().unwrap();
    let options = with_witness(host.path());
    let mut bench = Bench::new(1);
    let volume: Uuid = mounted(&mut bench, &options, Open::uuid);
    let refused = Entry::noticed(Object::Volume, Event::MountRefused);
    Reports::new(host.path(), volume).add(&refused).unwrap();
    let file = host.path().join(format!("{volume}.reports"));
    let kept = std::fs::read(&file).unwrap();
    let count = |open: &Open| events(open).iter().filter(|event| *event == "mount-refused").count();
    for _ in 0..3 {
        assert_eq!(mounted(&mut bench, &options, count), 1);
        std::fs::write(&file, &kept).unwrap();
    }
}

#[test]
fn p9_a_rollback_that_was_accepted_is_told() {
    let host = tempfile::tempdir().unwrap();
    let options = with_witness(host.path());
    let mut bench = Bench::new(1);
    mounted(&mut bench, &options, |_| ());
    let old = bench.disks.clone();
    mounted(&mut bench, &options, |open| (0..4).for_each(|_| open.fs().checkpoint().unwrap()));
    bench.disks = old;
    // Only the state that is named is accepted; the refusal names it.
    let copy = bench.court.on(&bench.all(), &Log::default());
    let volume::Error::RolledBack { found, seen, .. } = copy.open_with(&options).err().unwrap() else { panic!() };
    for other in [Generation(found.0 - 1), found.next(), seen] {
        let stale = OpenOptions { accept_rollback: Some(other), ..options.clone() };
        let refused = Problem::from(copy.open_with(&stale).err().unwrap());
        assert_eq!(refused.code, Code::VolumeRolledBack, "{other}");
        for named in [format!("-o accept-rollback={found}"), format!("accept-rollback={other}, which was given")] {
            assert!(refused.advice.contains(&named), "{}", refused.advice);
        }
    }
    let accept = OpenOptions { accept_rollback: Some(found), ..options };
    let told = mounted(&mut bench, &accept, trail).pop().unwrap();
    assert_eq!(told.event, "rollback-accepted");
    assert!(told.details["seen"].as_u64() > told.details["found"].as_u64());
}

#[test]
fn p9_a_check_verifies_the_chain() {
    let mut bench = Bench::new(1);
    let findings =
        |bench: &Bench| bench.check(&bench.all()).damages.into_iter().map(|damage| damage.what).collect::<Vec<_>>();
    mounted(&mut bench, &OpenOptions::default(), |_| ());
    assert_eq!(findings(&bench), Vec::<String>::new());
    // Somebody with the key, who adds a record that is none.
    mounted(&mut bench, &OpenOptions::default(), |open| {
        open.fs().append_audit(1, |last| vec![last.unwrap().1]).unwrap();
    });
    assert_eq!(findings(&bench), ["record 5 of the audit trail does not continue the one before"]);
}

#[test]
fn p9_a_long_trail_is_read_part_by_part() {
    let mut bench = Bench::new(1);
    mounted(&mut bench, &OpenOptions::default(), |open| {
        let text = "x".repeat(400);
        for n in 0..1500u64 {
            let event = Event::RollbackAccepted { seen: n, found: n };
            let entry = Entry::done(open.audit().user(), Object::Volume, event);
            open.audit().record(entry.because([Reason::new(Code::Fenced, &text)]));
        }
        let part = open.audit().page(0).unwrap();
        let length: usize = part.iter().map(Vec::len).sum();
        let bounds = AUDIT_PAGE_BYTES_MAX..AUDIT_PAGE_BYTES_MAX + AUDIT_RECORD_BYTES_MAX;
        assert!(bounds.contains(&length) && part.len() < 1000, "{length} bytes, {} records", part.len());
        assert_eq!(marks(open), 1500);
        assert_eq!(open.audit().page(1502).unwrap(), Vec::<Vec<u8>>::new());
    });
}

#[test]
fn p9_what_is_noticed_again_and_again_is_counted() {
    let mut bench = Bench::new(1);
    let options = OpenOptions::default();
    mounted(&mut bench, &options, |open| {
        (0..1000).for_each(|n| {
            open.audit().record(scelle::audit::Audit::registry_refused(&Problem::new(
                Code::RegistrySignatures,
                format!("the {n}th time"),
            )))
        });
        assert_eq!(events(open).iter().filter(|event| *event == "registry-refused").count(), 1);
    });
    // The end of the mount says how often.
    mounted(&mut bench, &options, |open| {
        let told = trail(open);
        let counted: Vec<_> = told.iter().filter(|r| r.event == "registry-refused").collect();
        assert_eq!(counted.len(), 2);
        assert_eq!(counted[1].repeated.as_ref().unwrap().count, 999);
    });
}

/// Refused, accepted, refused: that is two refusals, and each is in the trail when it happens, in its order.
#[test]
fn p9_what_comes_and_goes_is_recorded_each_time() {
    let mut bench = Bench::new(1);
    let options = OpenOptions::default();
    let code = |n: usize| [Code::RegistrySignatures, Code::RegistryRolledBack][n % 2];
    let of = |n: usize| Problem::new(code(n), "");
    let codes = |open: &Open| -> Vec<String> {
        let told = trail(open).into_iter().filter(|r| r.event == "registry-refused" && r.repeated.is_none());
        told.map(|record| record.reasons[0].code.clone()).collect()
    };
    mounted(&mut bench, &options, |open| {
        (0..5).for_each(|n| open.audit().record(scelle::audit::Audit::registry_refused(&of(n))));
        assert_eq!(codes(open), (0..5).map(|n| code(n).to_string()).collect::<Vec<_>>());
        // All day long, though, it would fill the volume.
        (5..1000).for_each(|n| open.audit().record(scelle::audit::Audit::registry_refused(&of(n))));
        assert_eq!(codes(open), (0..16).map(|n| code(n).to_string()).collect::<Vec<_>>());
    });
    mounted(&mut bench, &options, |open| {
        let told = trail(open);
        let counts: Vec<u64> = told.iter().filter_map(|r| r.repeated.as_ref()).map(|r| r.count).collect();
        assert_eq!(counts, [492, 492]);
    });
}
