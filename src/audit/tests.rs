//! The pure part: bytes, chain, export; and the host's reports.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::record::{Chain, Digest, Record};
use super::*;
use crate::limits::{
    AUDIT_RECORD_BYTES_MAX, AUDIT_REPORTS_BYTES_MAX, AUDIT_TEXT_MAX, OFFICERS_MAX, REGISTRY_ID_MAX, REPLICAS_MAX,
};
use crate::mirror::{ErrorCounts, State};
use crate::problem::Code;
use crate::registry::DerivedKey;
use crate::registry::hex;
use crate::units::Uuid;

const VOLUME: Uuid = Uuid([0x44; 16]);
const SEED: [u8; 32] = [9; 32];

fn noticed(event: Event) -> Entry {
    Entry::noticed(Object::Volume, event)
}

fn refused(text: &str) -> Entry {
    let actor = Actor::User { uid: 0, gid: 0, pid: 7, login_uid: Some(1000), name: Some("anne".into()) };
    Entry::done(actor, Object::Device { device: "/dev/sdx".into() }, Event::MountRefused)
        .because([Reason::new(Code::DeviceNotListed, text)])
}

/// The lines of a trail with `count` records.
fn trail(volume: Uuid, count: usize) -> Vec<Vec<u8>> {
    let mut chain = Chain::after(Digest::genesis(volume), None);
    let entry = |n: usize| match n % 3 {
        0 => noticed(Event::TrailBegun),
        1 => refused(&format!("é \"quoted\" {n}")),
        _ => noticed(Event::ReplicaErrors(ErrorCounts { read: n as u64, ..ErrorCounts::default() })),
    };
    (0..count).map(|n| chain.push(&mut Record::new(&entry(n), record::now()))).collect()
}

/// An export of these lines, sealed as `records` of them.
fn export(volume: Uuid, lines: &[Vec<u8>], seed: &[u8; 32]) -> Vec<u8> {
    let key = DerivedKey::from_seed(seed).unwrap();
    let seal = Seal {
        format: FORMAT.into(),
        volume: volume.to_string(),
        label: "deeds".into(),
        sealed: record::now(),
        records: lines.len() as u64,
        head: lines.last().map_or(Digest::genesis(volume), |line| Digest::of(line)),
        generation: 7,
        registry_version: 3,
        key: key.public_key(),
        program: "0".into(),
    };
    let line = seal.line();
    let mut bytes = export_head(&line, &key.sign(line.as_bytes(), "trusted").unwrap()).into_bytes();
    for line in lines {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    bytes
}

fn public_key() -> String {
    DerivedKey::from_seed(&SEED).unwrap().public_key()
}

fn verdict(bytes: &[u8]) -> String {
    verify_export(bytes, &public_key()).map_or_else(|fault| fault.code().to_string(), |_| "good".to_owned())
}

#[test]
fn an_export_verifies_with_nothing_but_the_key() {
    for count in [0, 1, 2, 40] {
        let bytes = export(VOLUME, &trail(VOLUME, count), &SEED);
        let seal = verify_export(&bytes[..], &public_key()).unwrap();
        assert_eq!((seal.records, seal.volume), (count as u64, VOLUME.to_string()));
    }
}

/// Each way of tampering has its own verdict.
#[test]
fn every_kind_of_tampering_is_named() {
    let lines = trail(VOLUME, 6);
    let whole = export(VOLUME, &lines, &SEED);
    let head = export(VOLUME, &lines, &SEED).split_inclusive(|b| *b == b'\n').take(2).collect::<Vec<_>>().concat();
    let with = |lines: &[&Vec<u8>]| {
        let body: Vec<u8> = lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect();
        [head.as_slice(), &body].concat()
    };
    let all: Vec<&Vec<u8>> = lines.iter().collect();
    assert_eq!(verdict(&with(&all)), "good");
    assert_eq!(verdict(&with(&all[..4])), "audit-incomplete");
    assert_eq!(verdict(&head), "audit-incomplete");
    assert_eq!(verdict(&with(&[all[0], all[1], all[3], all[4], all[5]])), "audit-gap");
    assert_eq!(verdict(&with(&all[1..])), "audit-gap");
    assert_eq!(verdict(&with(&[all[0], all[2], all[1], all[3], all[4], all[5]])), "audit-order");
    assert_eq!(verdict(&with(&[all[0], all[0], all[1], all[2], all[3], all[4]])), "audit-order");
    let edited = String::from_utf8(lines[1].clone()).unwrap().replace("device-not-listed", "device-was-listed");
    assert_eq!(verdict(&with(&[all[0], &edited.into_bytes(), all[2], all[3], all[4], all[5]])), "audit-altered");
    let last = String::from_utf8(lines[5].clone()).unwrap().replace("\"read\":5", "\"read\":4").into_bytes();
    assert_ne!(last, lines[5]);
    assert_eq!(verdict(&with(&[all[0], all[1], all[2], all[3], all[4], &last])), "audit-altered");
    assert_eq!(verdict(&with(&[all.as_slice(), &[all[5]]].concat())), "audit-surplus");
    // Records of another volume under this one's seal, and another volume's whole export.
    let others = trail(Uuid([0x45; 16]), 6);
    assert_eq!(verdict(&with(&others.iter().collect::<Vec<_>>())), "audit-other-volume");
    assert_eq!(verdict(&export(VOLUME, &lines, &[8; 32])), "audit-other-key");
    assert_eq!(verify_export(&whole[..], "RWQ").unwrap_err().code(), Code::AuditKey);
    // A forger who says that the key is ours.
    let forged = String::from_utf8(export(VOLUME, &lines, &[8; 32])).unwrap();
    let theirs = DerivedKey::from_seed(&[8; 32]).unwrap().public_key();
    assert_eq!(verdict(forged.replace(&theirs, &public_key()).as_bytes()), "audit-signature");
    assert_eq!(verdict(b""), "audit-not-an-export");
    assert_eq!(verdict(&vec![b'x'; 1 << 20]), "audit-not-an-export");
}

#[test]
fn a_format_of_the_future_is_not_guessed_at() {
    let bytes = String::from_utf8(export(VOLUME, &[], &SEED)).unwrap();
    let seal = bytes.lines().next().unwrap().replace("scelle audit 1", "scelle audit 2") + "\n";
    let signature = DerivedKey::from_seed(&SEED).unwrap().sign(seal.as_bytes(), "").unwrap();
    assert_eq!(verdict(export_head(&seal, &signature).as_bytes()), "audit-format");
}

#[test]
fn events_and_fields_of_the_future_verify() {
    let mut lines = trail(VOLUME, 2);
    let prev = Digest::of(&lines[1]);
    let next = json!({"seq": 3, "time": "2031-01-01T00:00:00.000000000Z", "actor": {"kind": "officer"}, "new": [1],
        "object": {"kind": "key-slot", "slot": 2}, "event": "key-rotated", "details": {"epoch": 9}, "prev": prev});
    lines.push(serde_json::to_vec(&next).unwrap());
    assert_eq!(verdict(&export(VOLUME, &lines, &SEED)), "good");
}

proptest! {
    /// P9: no byte of an export can be changed, removed or added without being noticed.
    #[test]
    fn any_changed_byte_is_noticed(count in 1usize..6, at in any::<prop::sample::Index>(), to in any::<u8>(), how in 0u8..3) {
        let mut bytes = export(VOLUME, &trail(VOLUME, count), &SEED);
        prop_assert_eq!(verdict(&bytes), "good");
        let at = at.index(bytes.len());
        match how {
            0 if bytes[at] != to => bytes[at] = to,
            1 => drop(bytes.remove(at)),
            _ => bytes.insert(at, to),
        }
        prop_assert_ne!(verdict(&bytes), "good");
    }

    /// Whatever is in a file, verifying it ends in a verdict.
    #[test]
    fn no_file_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert_ne!(verdict(&bytes), "good");
        let _ = Record::parse(&bytes);
    }
}

/// Every byte of a short export, each changed in its lowest bit.
#[test]
fn every_single_byte_counts() {
    let bytes = export(VOLUME, &trail(VOLUME, 2), &SEED);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_ne!(verdict(&changed), "good", "byte {at}");
    }
}

#[test]
fn the_longest_record_fits() {
    let long = "\"".repeat(10_000);
    let registry = RegistryFacts {
        version: u64::MAX,
        sha256: hex(&[0; 32]),
        threshold: 2,
        officers: 3,
        kind: "private".into(),
        trust: "0".repeat(64),
        valid_until: "9999-12-31".into(),
        signers: vec!["o".repeat(REGISTRY_ID_MAX); OFFICERS_MAX],
    };
    let mounted = Event::Mounted {
        host: event::cut(&long),
        program: "0".into(),
        read_only: false,
        degraded: false,
        after_crash: false,
        generation: u64::MAX,
        registry,
        replicas: vec![
            ReplicaFacts::new(
                15,
                &"r".repeat(REGISTRY_ID_MAX),
                &"d".repeat(4096),
                Some(&"s".repeat(REGISTRY_ID_MAX)),
                State::Resyncing
            );
            REPLICAS_MAX
        ],
    };
    let entry = noticed(mounted).because((0..100).map(|_| Reason::new(Code::parse(&"c".repeat(48)).unwrap(), &long)));
    let mut record = Record::new(&entry, record::now());
    assert_eq!(record.reasons.len(), crate::limits::AUDIT_REASONS_MAX);
    assert_eq!(record.reasons[0].text.len(), AUDIT_TEXT_MAX);
    assert!(record.reasons.last().unwrap().text.contains("93 more"));
    let bytes = Chain::after(Digest::genesis(VOLUME), None).push(&mut record);
    // With room for what a report adds.
    assert!(bytes.len() < AUDIT_RECORD_BYTES_MAX - 4096, "{}", bytes.len());
    assert_eq!(Record::parse(&bytes).unwrap(), record);
}

/// The codes of events, for ever: what a trail says must be understood in twenty years.
#[test]
fn codes_of_events_are_stable() {
    let state = State::Stale;
    let known = Known { registry_id: String::new(), identity: String::new() };
    let registry = RegistryFacts {
        version: 1,
        sha256: String::new(),
        threshold: 2,
        officers: 3,
        kind: "private".into(),
        trust: String::new(),
        valid_until: String::new(),
        signers: vec![],
    };
    let events = [
        (
            Event::VolumeCreated {
                label: String::new(),
                sovereign: true,
                registry: registry.clone(),
                replicas: vec![],
            },
            "volume-created",
        ),
        (Event::TrailBegun, "trail-begun"),
        (Event::Unmounted, "unmounted"),
        (Event::MountRefused, "mount-refused"),
        (Event::RollbackAccepted { seen: 2, found: 1 }, "rollback-accepted"),
        (Event::WitnessMissing, "witness-missing"),
        (Event::ClockAccepted, "clock-accepted"),
        (Event::ReplicaState { from: state, to: state }, "replica-state"),
        (Event::ReplicaEnrolled { before: known.clone(), now: known }, "replica-enrolled"),
        (
            Event::HistoryDiscarded {
                generation: 1,
                committed: String::new(),
                host: None,
                only_there: 0,
                records: 0,
                head: String::new(),
            },
            "history-discarded",
        ),
        (Event::ReplicaDestroyed, "replica-destroyed"),
        (Event::ResyncRefused, "resync-refused"),
        (Event::DeviceLeftOut, "device-left-out"),
        (Event::DeviceRefused, "device-refused"),
        (Event::DeviceApproved, "device-approved"),
        (Event::ReplicaErrors(ErrorCounts::default()), "replica-errors"),
        (Event::DamageFound, "damage-found"),
        (Event::RegistryAccepted(registry), "registry-accepted"),
        (Event::RegistryRefused, "registry-refused"),
        (Event::ReadOnly, "read-only"),
        (Event::ClockWentBack { from: String::new() }, "clock-went-back"),
        (Event::ReportsLost { count: 1 }, "reports-lost"),
        (Event::LogUnavailable { waiting: 1, lost: 0 }, "log-unavailable"),
        (Event::LogAvailable { lost: 0 }, "log-available"),
    ];
    for (event, code) in events {
        assert_eq!(Record::new(&noticed(event), record::now()).event, code);
    }
}

/// A record as the manual shows it.
#[test]
fn the_bytes_of_a_record_are_frozen() {
    let mut record = Record::new(&refused("no entry has this identity"), "2026-11-22T08:00:00.000000000Z".into());
    let bytes = Chain::after(Digest::genesis(VOLUME), None).push(&mut record);
    let expected = format!(
        "{}{}{}\"prev\":\"{}\"}}",
        r#"{"seq":1,"time":"2026-11-22T08:00:00.000000000Z","actor":{"gid":0,"kind":"user","login_uid":1000,"name":"anne","pid":7,"uid":0},"#,
        r#""object":{"device":"/dev/sdx","kind":"device"},"event":"mount-refused","#,
        r#""reasons":[{"code":"device-not-listed","text":"no entry has this identity"}],"#,
        Digest::genesis(VOLUME)
    );
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

fn reports() -> (tempfile::TempDir, Reports) {
    let folder = tempfile::tempdir().unwrap();
    let reports = Reports::new(&folder.path().join("scelle"), VOLUME);
    (folder, reports)
}

#[test]
fn reports_are_kept_chained_and_forgotten_once_told() {
    use std::os::unix::fs::MetadataExt;
    let (folder, reports) = reports();
    assert!(reports.hold().unwrap().records("host").is_empty());
    reports.add(&refused("one")).unwrap();
    reports.add(&noticed(Event::ReadOnly)).unwrap();
    let path = folder.path().join(format!("scelle/{VOLUME}.reports"));
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let held = reports.hold().unwrap();
    let told = held.records("srv");
    let seen: Vec<_> = told.iter().map(|r| (r.event.as_str(), r.reported.as_ref().unwrap())).collect();
    assert_eq!(seen.iter().map(|(event, _)| *event).collect::<Vec<_>>(), ["mount-refused", "read-only"]);
    assert!(seen.iter().all(|(_, reported)| reported.intact && reported.host == "srv"));
    assert_eq!(seen[1].1.seq, 2);
    held.clear().unwrap();
    assert!(!path.exists() && reports.hold().unwrap().records("srv").is_empty());
}

#[test]
fn the_same_report_again_only_counts() {
    let (_folder, reports) = reports();
    (0..5).for_each(|_| reports.add(&refused("wrong passphrase")).unwrap());
    reports.add(&refused("wrong passphrase").because([Reason::new(Code::Policy, "")])).unwrap();
    let told = reports.hold().unwrap().records("srv");
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].repeated.as_ref().unwrap().count, 4);
    assert!(told.iter().all(|record| record.reported.as_ref().unwrap().intact));
}

#[test]
fn reports_are_bounded_and_say_what_was_lost() {
    let (folder, reports) = reports();
    let text = "x".repeat(AUDIT_TEXT_MAX);
    for n in 0..400 {
        let object = Object::Device { device: format!("/dev/sd{n}") };
        let reasons = (0..3).map(|_| Reason::new(Code::DeviceNotListed, &text));
        reports.add(&Entry::noticed(object, Event::MountRefused).because(reasons)).unwrap();
    }
    let length = std::fs::metadata(folder.path().join(format!("scelle/{VOLUME}.reports"))).unwrap().len();
    assert!(length <= AUDIT_REPORTS_BYTES_MAX as u64, "{length}");
    let told = reports.hold().unwrap().records("srv");
    let last = told.last().unwrap();
    assert_eq!(last.event, "reports-lost");
    assert_eq!(last.details["count"].as_u64().unwrap() as usize + told.len() - 1, 400);
    assert!(told.iter().all(|record| record.reported.as_ref().unwrap().intact));
}

#[test]
fn damaged_reports_are_told_as_such() {
    let (folder, reports) = reports();
    let path = folder.path().join(format!("scelle/{VOLUME}.reports"));
    (0..3).for_each(|n| {
        reports.add(&refused("x").because([Reason::new(Code::parse(&format!("r{n}")).unwrap(), "")])).unwrap()
    });
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"r1\"", "\"rX\"") + "garbage\n").unwrap();
    let told = reports.hold().unwrap().records("srv");
    let intact: Vec<Option<bool>> = told.iter().map(|r| r.reported.as_ref().map(|r| r.intact)).collect();
    assert_eq!(intact, [Some(true), Some(true), Some(false), None]);
    assert_eq!(told[3].details, json!({"count": 1}));
    // And are not in the way of the next one.
    reports.add(&refused("after")).unwrap();
    assert_eq!(reports.hold().unwrap().records("srv").len(), 5);
    // A link in place of the file is not followed.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(reports.add(&refused("x")).is_err());
}

#[test]
fn texts_are_cut_between_characters() {
    let cut = event::cut(&format!("a\nb{}", "é".repeat(AUDIT_TEXT_MAX)));
    assert!(cut.starts_with("a bé") && cut.len() <= AUDIT_TEXT_MAX && cut.len() > AUDIT_TEXT_MAX - 2);
    let codes: BTreeSet<char> = cut.chars().collect();
    assert_eq!(codes.len(), 4);
    assert!(matches!(Record::new(&noticed(Event::TrailBegun), String::new()).details, Value::Null));
}
