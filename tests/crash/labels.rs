//! One hostile replica and the owner. A forger without the key writes anything into the label of one device, with right
//! checksums. The volume opens with the others and the right passphrase, and the owner waits for one more opening at most.

use std::io::IoSlice;
use std::ops::Range;
use std::time::{Duration, Instant};

use scelle::crypto::{Secret, derive_slot_key, sha256, wrap_key};
use scelle::device::BlockDevice;
use scelle::device::memory::MemoryDevice;
use scelle::label::{Fields, HEADER_BYTES, HeaderCopy, RawHeader};
use scelle::mirror::State;
use scelle::policy::ApprovedDevice;
use scelle::problem::{Code, Problem};
use scelle::volume::{self, Open, OpenOptions, Sealed};

use super::support::court::{Court, get, put, secret};
use super::support::rng::{self, Rng};

const DEED: &[u8] = b"the deed";

/// Where a header's checksum is.
const CHECKSUM: usize = HEADER_BYTES - 64;

/// The fields of a header that are read before it is authenticated (scelle-format(5)), in bytes.
const FIELDS: [(&str, Range<usize>); 30] = [
    ("magic", 0..8),
    ("version", 8..12),
    ("zero", 12..16),
    ("compatible features", 16..24),
    ("read-only-compatible features", 24..32),
    ("incompatible features", 32..40),
    ("sequence", 40..48),
    ("volume UUID", 48..64),
    ("device UUID", 64..80),
    ("replica index", 80..82),
    ("replica count", 82..84),
    ("sovereignty", 84..85),
    ("length of the label", 85..86),
    ("zero", 86..88),
    ("creation", 88..96),
    ("trust anchors", 96..128),
    ("blocks", 128..136),
    ("bytes", 136..144),
    ("label", 144..208),
    ("version that is needed", 208..224),
    ("reserved", 224..512),
    ("row of replica 0", 512..640),
    ("other rows", 640..2560),
    ("reserved", 2560..4096),
    ("first key slot: type, version, length of its label", 4096..4100),
    ("first key slot: cost", 4100..4112),
    ("first key slot: salt, wrapped key, label", 4112..4256),
    ("first key slot: reserved", 4256..5120),
    ("other key slots", 5120..12288),
    ("reserved", 12288..CHECKSUM),
];

fn header(memory: &MemoryDevice, copy: HeaderCopy) -> [u8; HEADER_BYTES] {
    let mut bytes = scelle::device::AlignedBuf::zeroed(HEADER_BYTES);
    memory.read_at(copy.offset(memory.size_bytes()), &mut bytes).unwrap();
    bytes[..].try_into().unwrap()
}

/// Writes a header with the right checksum.
fn forge(memory: &MemoryDevice, copies: &[HeaderCopy], header: &[u8; HEADER_BYTES]) {
    let mut header = *header;
    let checksum = sha256(&[&header[..CHECKSUM]]);
    header[CHECKSUM..CHECKSUM + 32].copy_from_slice(&checksum);
    for copy in copies {
        memory.write_at(copy.offset(memory.size_bytes()), &[IoSlice::new(&header)]).unwrap();
    }
}

fn court(replicas: usize) -> Court {
    let court = Court::new(replicas);
    let open = court.open();
    put(open.fs(), b"deed", DEED).unwrap();
    open.close().unwrap();
    court
}

fn devices(court: &Court, is_forged_first: bool) -> Vec<ApprovedDevice> {
    let mut devices: Vec<ApprovedDevice> = (0..court.devices.len()).map(|index| court.approved(index)).collect();
    if !is_forged_first {
        devices.reverse();
    }
    devices
}

/// Opens the volume as its owner does, who knows the passphrase. Nothing is written.
fn open(court: &Court, secret: &Secret, is_forged_first: bool, degraded: bool) -> Result<Open, volume::Error> {
    let options = OpenOptions { degraded, read_only: true, ..OpenOptions::default() };
    Sealed::read(devices(court, is_forged_first))?.unlock(secret)?.open(&court.documents.registry, &options)
}

/// The first device has a label that no key authenticates. Asserts that the owner gets in without it, and is told.
fn assert_open_without_the_first(court: &Court, is_forged_first: bool, what: &str) {
    let name = court.memory[0].name();
    let refused = open(court, &secret(), is_forged_first, false).err().unwrap_or_else(|| panic!("{what}: opened"));
    assert_eq!(refused.code(), Code::VolumeIncomplete, "{what}: {refused}");
    assert!(refused.to_string().contains(&format!("{name} is left out: ")), "{what}: {refused}");
    let open = open(court, &secret(), is_forged_first, true).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(get(open.fs(), b"deed"), DEED, "{what}");
    let status = open.status();
    assert_eq!((status.replicas[0].state, status.replicas[0].device.as_str()), (State::Faulty, name), "{what}");
    assert!(status.replicas[0].reason.as_ref().unwrap().contains(" is left out: "), "{what}: {status:?}");
    assert!(!status.is_healthy(), "{what}");
}

#[test]
fn no_forged_field_of_one_label_keeps_the_owner_out() {
    let court = court(3);
    let (memory, honest) = (&court.memory[0], header(&court.memory[0], HeaderCopy::A));
    for (number, (what, field)) in FIELDS.into_iter().enumerate() {
        let mut forged = honest;
        // One bit of most; of the cost its greatest byte that a slot may have: 512 MiB.
        match what {
            "first key slot: cost" => forged[4096 + 6] = 8,
            _ => forged[field.start] ^= 1,
        }
        forge(memory, &HeaderCopy::ALL, &forged);
        assert_open_without_the_first(&court, number % 2 == 0, what);
        forge(memory, &HeaderCopy::ALL, &honest);
    }
}

#[test]
fn a_label_of_another_volume_is_named_when_nobody_can_tell_which_is_meant() {
    let court = court(2);
    let mut forged = header(&court.memory[0], HeaderCopy::A);
    forged[50] ^= 1;
    forge(&court.memory[0], &HeaderCopy::ALL, &forged);
    for is_forged_first in [true, false] {
        let refused = open(&court, &secret(), is_forged_first, true).err().unwrap();
        assert_eq!(refused.code(), Code::DeviceOfAnotherVolume);
        assert!(refused.to_string().contains("m0 "), "{refused}");
    }
    let alone = Sealed::read(vec![court.approved(1)]).unwrap().unlock(&secret()).unwrap();
    let options = OpenOptions { degraded: true, ..OpenOptions::default() };
    assert_eq!(get(alone.open(&court.documents.registry, &options).unwrap().fs(), b"deed"), DEED);
}

/// Fields altered at random, in one copy or both of one label: the volume opens with what is left, or names the device.
#[test]
fn random_forgeries_of_one_label_are_left_out_and_named() {
    let court = court(2);
    let seed = rng::seed();
    let mut rng = Rng::new(seed);
    let (memory, honest) = (&court.memory[0], header(&court.memory[0], HeaderCopy::A));
    for round in 0..400 {
        let mut forged = honest;
        for _ in 0..1 + rng.below(4) {
            let (_, field) = &FIELDS[rng.below(FIELDS.len() as u64) as usize];
            let at = field.start + rng.below(field.len() as u64) as usize;
            forged[at] = rng.bytes(1)[0];
        }
        let [a, a2, b] = HeaderCopy::ALL;
        let which = rng.pick(&[&[a, a2, b][..], &[a], &[a2], &[b], &[a, a2], &[a2, b]]).to_vec();
        let copies = &which;
        forge(memory, copies, &forged);
        let seed = format!("SCELLE_SEED={seed}, round {round}");
        let options = OpenOptions { degraded: true, read_only: true, ..OpenOptions::default() };
        let unlocked = Sealed::read(devices(&court, rng.below(2) == 0)).and_then(|s| s.unlock_again(&court.key));
        match unlocked.and_then(|assembled| assembled.open(&court.documents.registry, &options)) {
            Ok(open) => {
                assert_eq!(get(open.fs(), b"deed"), DEED, "{seed}");
                let whole = copies.len() < 3 || forged == honest;
                assert_eq!(open.status().replicas[0].state == State::InSync, whole, "{seed}: {:?}", open.status());
            }
            Err(error) => {
                let problem = Problem::from(error);
                assert!(problem.code == Code::DeviceOfAnotherVolume && copies.len() == 3, "{seed}: {problem}");
                assert!(problem.text.contains("m0 "), "{seed}: {problem}");
            }
        }
        forge(memory, &HeaderCopy::ALL, &honest);
    }
}

/// How long the owner's opening takes.
fn time(court: &Court, is_forged_first: bool) -> Duration {
    let begin = Instant::now();
    Sealed::read(devices(court, is_forged_first)).unwrap().unlock(&secret()).unwrap();
    begin.elapsed()
}

#[test]
fn forged_key_slots_cost_the_owner_no_more_than_one_more_opening() {
    let court = court(2);
    let (memory, honest) = (&court.memory[0], header(&court.memory[0], HeaderCopy::A));
    let alone = time(&court, true);
    // The other headers of a copy each: cheap slots by the dozen, the costliest that there are, the honest one among them.
    let slots = |header: &mut [u8; HEADER_BYTES], from: usize, to: usize, memory_kib: u32, passes: u32| {
        for slot in from..to {
            let at = 4096 + slot * 1024;
            header.copy_within(4096..5120, at);
            header[at + 4..at + 8].copy_from_slice(&memory_kib.to_le_bytes());
            header[at + 8..at + 12].copy_from_slice(&passes.to_le_bytes());
            header[at + 16] ^= 0x80 | slot as u8;
        }
    };
    for (what, from, to, memory_kib, passes) in [
        ("cheap ones, none honest", 0, 8, 64 << 10, 3),
        ("cheap ones beside the honest one", 1, 8, 64 << 10, 3),
        ("a bomb", 0, 2, 512 << 10, 6),
        ("a bomb that no label may be", 0, 8, 512 << 10, 6),
    ] {
        for copy in HeaderCopy::ALL {
            let mut forged = honest;
            // Other slots in each copy.
            forged[4096 + 18] ^= copy as u8;
            slots(&mut forged, from, to, memory_kib, passes);
            forge(memory, &[copy], &forged);
        }
        for is_forged_first in [true, false] {
            let taken = time(&court, is_forged_first);
            assert!(taken < 2 * alone + Duration::from_secs(1), "{what}: {taken:?}, without them {alone:?}");
        }
        assert_open_without_the_first(&court, true, what);
        forge(memory, &HeaderCopy::ALL, &honest);
    }
}

#[test]
fn a_wrong_passphrase_is_a_wrong_passphrase_beside_a_forged_label() {
    let court = court(2);
    let mut forged = header(&court.memory[0], HeaderCopy::A);
    forged[4096 + 16] ^= 1;
    forge(&court.memory[0], &HeaderCopy::ALL, &forged);
    let wrong = Secret::new(b"wrong horse".to_vec()).unwrap();
    assert_eq!(open(&court, &wrong, true, true).err().unwrap().code(), Code::WrongKey);
}

#[test]
fn a_check_finds_the_forged_label_and_goes_on() {
    let court = court(2);
    let mut forged = header(&court.memory[0], HeaderCopy::A);
    forged[40] = 0xff;
    forge(&court.memory[0], &HeaderCopy::ALL, &forged);
    let report = Sealed::read(devices(&court, true)).unwrap().unlock(&secret()).unwrap().check(&mut |_, _| {}).unwrap();
    assert!(report.blocks > 0 && report.count == 1, "{report:?}");
    assert_eq!(report.damages[0].device, "m0");
}

#[test]
fn a_replica_whose_label_is_as_it_was_again_comes_back() {
    let court = court(2);
    let honest = header(&court.memory[0], HeaderCopy::A);
    let mut forged = honest;
    forged[40] = 0xff;
    forge(&court.memory[0], &HeaderCopy::ALL, &forged);
    let open = court.open_with(&OpenOptions { degraded: true, ..OpenOptions::default() }).unwrap();
    put(open.fs(), b"later", b"later").unwrap();
    open.fs().sync().unwrap();
    assert_eq!(open.members().rejoin(0).unwrap_err().code(), Code::LabelDamaged);
    forge(&court.memory[0], &HeaderCopy::ALL, &honest);
    open.members().rejoin(0).unwrap();
    super::support::wait_for("the resync", || open.status().is_healthy());
    open.close().unwrap();
    court.check();
}

/// The label of a device as whoever has the key reads it, with something changed: the next one.
fn next(court: &Court, memory: &MemoryDevice, change: impl FnOnce(&mut Fields)) -> [u8; HEADER_BYTES] {
    let raw = RawHeader::decode(&header(memory, HeaderCopy::A), memory.size_bytes()).unwrap();
    let keys = court.key.keys(raw.claims().volume);
    raw.authenticate(&keys).unwrap().changed(change).unwrap().encode(&keys)
}

/// The number of the label that each copy of each device holds, and the volume's name in it.
fn held(court: &Court) -> Vec<(u64, String)> {
    let of = |memory: &MemoryDevice, copy| {
        let raw = RawHeader::decode(&header(memory, copy), memory.size_bytes()).unwrap();
        (raw.claims().sequence, raw.claims().label.clone())
    };
    court.memory.iter().flat_map(|memory| HeaderCopy::ALL.map(|copy| of(memory, copy))).collect()
}

/// Each device gets the next label, with another name of the volume.
fn rename(court: &Court, name: &str) {
    for memory in &court.memory {
        forge(memory, &HeaderCopy::ALL, &next(court, memory, |fields| fields.label = name.to_owned()));
    }
}

#[test]
fn p7_an_old_label_that_is_put_back_is_not_believed() {
    let court = court(2);
    let old: Vec<_> = court.memory.iter().map(|memory| header(memory, HeaderCopy::A)).collect();
    // The label is changed, and the volume's root names the new one.
    rename(&court, "later");
    court.open().close().unwrap();
    assert!(held(&court).iter().all(|(sequence, name)| (*sequence, name.as_str()) == (2, "later")));
    // Put back on one device, in every way: the label in force is on the other one, or in a copy.
    let [a, a2, b] = HeaderCopy::ALL;
    for copies in [&[a, a2, b][..], &[a], &[a2, b], &[b]] {
        forge(&court.memory[0], copies, &old[0]);
        let open = court.open();
        assert_eq!((open.status().label.as_str(), open.status().is_healthy()), ("later", true));
        open.close().unwrap();
        assert!(held(&court).iter().all(|(sequence, _)| *sequence == 2), "{:?}", held(&court));
    }
    // Put back on every device, whole.
    for (memory, old) in court.memory.iter().zip(&old) {
        forge(memory, &HeaderCopy::ALL, old);
    }
    let before = court.disks();
    for read_only in [false, true] {
        let refused =
            court.open_with(&OpenOptions { read_only, degraded: true, ..OpenOptions::default() }).err().unwrap();
        assert_eq!(refused.code(), Code::LabelOutdated, "{refused}");
    }
    assert!(court.disks() == before, "something was written");
    let report = court.report();
    assert_eq!(report.count, 1, "{:?}", report.damages);
    assert!(report.damages[0].what.contains("names label 2"), "{:?}", report.damages);
}

#[test]
fn p7_a_label_of_the_same_number_that_the_root_does_not_name_is_not_believed() {
    let court = court(2);
    // It was prepared at the same time, and another one came into force.
    let other: Vec<_> =
        court.memory.iter().map(|memory| next(&court, memory, |fields| fields.label = "other".to_owned())).collect();
    rename(&court, "later");
    court.open().close().unwrap();
    forge(&court.memory[0], &HeaderCopy::ALL, &other[0]);
    let open = court.open();
    assert_eq!(open.status().label, "later");
    open.close().unwrap();
    assert!(held(&court).iter().all(|(_, name)| name == "later"));
    for (memory, other) in court.memory.iter().zip(&other) {
        forge(memory, &HeaderCopy::ALL, other);
    }
    let refused = court.open_with(&OpenOptions::default()).err().unwrap();
    assert_eq!(refused.code(), Code::LabelOutdated, "{refused}");
}

/// A label is written copy by copy. Whatever a power failure leaves of that, one label is in force afterwards, the old one or
/// the new one, and it is everywhere.
#[test]
fn p5_a_change_of_labels_that_a_power_failure_interrupts_is_done_or_undone() {
    let places = 2 * HeaderCopy::ALL.len();
    for written in 0..1usize << places {
        let court = court(2);
        let new: Vec<_> = court
            .memory
            .iter()
            .map(|memory| next(&court, memory, |fields| fields.label = "later".to_owned()))
            .collect();
        for place in (0..places).filter(|place| written >> place & 1 == 1) {
            forge(&court.memory[place / 3], &[HeaderCopy::ALL[place % 3]], &new[place / 3]);
        }
        let expected = if written == (1 << places) - 1 { (2, "later".to_owned()) } else { (1, String::new()) };
        for mount in 0..2 {
            let open = court.open();
            assert_eq!((open.status().label, get(open.fs(), b"deed")), (expected.1.clone(), DEED.to_vec()));
            open.close().unwrap();
            assert!(
                held(&court).iter().all(|held| *held == expected),
                "{written:#b}, mount {mount}: {:?}",
                held(&court)
            );
        }
        court.check();
    }
}

#[test]
fn p7_a_key_slot_that_is_gone_opens_nothing_whoever_puts_its_label_back() {
    let court = court(2);
    let old = header(&court.memory[0], HeaderCopy::A);
    let left = Secret::new(b"whoever left".to_vec()).unwrap();
    // Another passphrase than the one that opened it until now.
    let raw = RawHeader::decode(&old, court.memory[0].size_bytes()).unwrap();
    let mut slot = raw.claims().key_slots[0].clone().unwrap();
    let key = derive_slot_key(&left, &slot.salt, &slot.params).unwrap();
    slot.wrapped = wrap_key(&court.key, &key, &raw.wrap_digest()).unwrap();
    for memory in &court.memory {
        forge(memory, &HeaderCopy::ALL, &next(&court, memory, |fields| fields.key_slots[0] = Some(slot.clone())));
    }
    open(&court, &left, true, false).unwrap();
    court.open().close().unwrap();
    assert_eq!(open(&court, &secret(), true, false).err().unwrap().code(), Code::WrongKey);
    // The old label opens with the old passphrase, and shows the volume's key. That is not all that counts.
    forge(&court.memory[0], &HeaderCopy::ALL, &old);
    for is_forged_first in [true, false] {
        assert_eq!(open(&court, &secret(), is_forged_first, false).err().unwrap().code(), Code::WrongKey);
        open(&court, &left, is_forged_first, false).unwrap();
    }
}
