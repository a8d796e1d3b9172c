//! One hostile replica and the owner. A forger without the key writes anything into the label of one device, with right
//! checksums. The volume opens with the others and the right passphrase, and the owner waits for one more opening at most.

use std::io::IoSlice;
use std::ops::Range;
use std::time::{Duration, Instant};

use scelle::crypto::{Secret, sha256};
use scelle::device::BlockDevice;
use scelle::device::memory::MemoryDevice;
use scelle::label::{Area, HEADER_BYTES};
use scelle::mirror::State;
use scelle::policy::ApprovedDevice;
use scelle::problem::{Code, Problem};
use scelle::volume::{self, Open, OpenOptions, Sealed};

use super::support::court::{Court, get, put, secret};
use super::support::rng::{self, Rng};

const DEED: &[u8] = b"the deed";

/// The fields of a header that are read before it is authenticated (scelle-format(5)), in bytes.
const FIELDS: [(&str, Range<usize>); 27] = [
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
    ("reserved", 208..512),
    ("first key slot: state, derivation, length of its label", 512..516),
    ("first key slot: cost", 516..528),
    ("first key slot: salt, wrapped key, label", 528..672),
    ("other key slots", 672..1792),
    ("row of replica 0", 1792..1920),
    ("other rows", 1920..3840),
    ("reserved", 3840..4032),
];

fn header(memory: &MemoryDevice, area: Area) -> [u8; HEADER_BYTES] {
    let mut bytes = scelle::device::AlignedBuf::zeroed(HEADER_BYTES);
    memory.read_at(area.offset(memory.size_bytes()), &mut bytes).unwrap();
    bytes[..].try_into().unwrap()
}

/// Writes a header with the right checksum.
fn forge(memory: &MemoryDevice, areas: &[Area], header: &[u8; HEADER_BYTES]) {
    let mut header = *header;
    let checksum = sha256(&[&header[..4032]]);
    header[4032..4064].copy_from_slice(&checksum);
    for area in areas {
        memory.write_at(area.offset(memory.size_bytes()), &[IoSlice::new(&header)]).unwrap();
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
    let (memory, honest) = (&court.memory[0], header(&court.memory[0], Area::A));
    for (number, (what, field)) in FIELDS.into_iter().enumerate() {
        let mut forged = honest;
        // One bit of most; of the cost its greatest byte that a slot may have: 512 MiB.
        match what {
            "first key slot: cost" => forged[518] = 8,
            _ => forged[field.start] ^= 1,
        }
        forge(memory, &Area::BOTH, &forged);
        assert_open_without_the_first(&court, number % 2 == 0, what);
        forge(memory, &Area::BOTH, &honest);
    }
}

#[test]
fn a_label_of_another_volume_is_named_when_nobody_can_tell_which_is_meant() {
    let court = court(2);
    let mut forged = header(&court.memory[0], Area::A);
    forged[50] ^= 1;
    forge(&court.memory[0], &Area::BOTH, &forged);
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
    let (memory, honest) = (&court.memory[0], header(&court.memory[0], Area::A));
    for round in 0..400 {
        let mut forged = honest;
        for _ in 0..1 + rng.below(4) {
            let (_, field) = &FIELDS[rng.below(FIELDS.len() as u64) as usize];
            let at = field.start + rng.below(field.len() as u64) as usize;
            forged[at] = rng.bytes(1)[0];
        }
        let areas: &[Area] = [&Area::BOTH[..], &[Area::A], &[Area::B]][rng.below(3) as usize];
        forge(memory, areas, &forged);
        let seed = format!("SCELLE_SEED={seed}, round {round}");
        let options = OpenOptions { degraded: true, read_only: true, ..OpenOptions::default() };
        let unlocked = Sealed::read(devices(&court, rng.below(2) == 0)).and_then(|s| s.unlock_again(&court.key));
        match unlocked.and_then(|assembled| assembled.open(&court.documents.registry, &options)) {
            Ok(open) => {
                assert_eq!(get(open.fs(), b"deed"), DEED, "{seed}");
                let whole = areas.len() == 1 || forged == honest;
                assert_eq!(open.status().replicas[0].state == State::InSync, whole, "{seed}: {:?}", open.status());
            }
            Err(error) => {
                let problem = Problem::from(error);
                assert!(problem.code == Code::DeviceOfAnotherVolume && areas.len() == 2, "{seed}: {problem}");
                assert!(problem.text.contains("m0 "), "{seed}: {problem}");
            }
        }
        forge(memory, &Area::BOTH, &honest);
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
    let (memory, honest) = (&court.memory[0], header(&court.memory[0], Area::A));
    let alone = time(&court, true);
    // The other headers of a copy each: cheap slots by the dozen, the costliest that there are, the honest one among them.
    let slots = |header: &mut [u8; HEADER_BYTES], from: usize, to: usize, memory_kib: u32, passes: u32| {
        for slot in from..to {
            let at = 512 + slot * 160;
            header.copy_within(512..672, at);
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
        for area in Area::BOTH {
            let mut forged = honest;
            // Other slots in each copy.
            forged[530] ^= area as u8;
            slots(&mut forged, from, to, memory_kib, passes);
            forge(memory, &[area], &forged);
        }
        for is_forged_first in [true, false] {
            let taken = time(&court, is_forged_first);
            assert!(taken < 2 * alone + Duration::from_secs(1), "{what}: {taken:?}, without them {alone:?}");
        }
        assert_open_without_the_first(&court, true, what);
        forge(memory, &Area::BOTH, &honest);
    }
}

#[test]
fn a_wrong_passphrase_is_a_wrong_passphrase_beside_a_forged_label() {
    let court = court(2);
    let mut forged = header(&court.memory[0], Area::A);
    forged[512 + 16] ^= 1;
    forge(&court.memory[0], &Area::BOTH, &forged);
    let wrong = Secret::new(b"wrong horse".to_vec()).unwrap();
    assert_eq!(open(&court, &wrong, true, true).err().unwrap().code(), Code::WrongKey);
}

#[test]
fn a_check_finds_the_forged_label_and_goes_on() {
    let court = court(2);
    let mut forged = header(&court.memory[0], Area::A);
    forged[40] = 0xff;
    forge(&court.memory[0], &Area::BOTH, &forged);
    let report = Sealed::read(devices(&court, true)).unwrap().unlock(&secret()).unwrap().check(&mut |_, _| {}).unwrap();
    assert!(report.blocks > 0 && report.count == 1, "{report:?}");
    assert_eq!(report.damages[0].device, "m0");
}

#[test]
fn a_replica_whose_label_is_as_it_was_again_comes_back() {
    let court = court(2);
    let honest = header(&court.memory[0], Area::A);
    let mut forged = honest;
    forged[40] = 0xff;
    forge(&court.memory[0], &Area::BOTH, &forged);
    let open = court.open_with(&OpenOptions { degraded: true, ..OpenOptions::default() }).unwrap();
    put(open.fs(), b"later", b"later").unwrap();
    open.fs().sync().unwrap();
    assert_eq!(open.members().rejoin(0).unwrap_err().code(), Code::LabelDamaged);
    forge(&court.memory[0], &Area::BOTH, &honest);
    open.members().rejoin(0).unwrap();
    super::support::wait_for("the resync", || open.status().is_healthy());
    open.close().unwrap();
    court.check();
}
