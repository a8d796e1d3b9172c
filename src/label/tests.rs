#![allow(clippy::unwrap_used)]
use std::io::IoSlice;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::crypto::{KdfParams, Secret, VolumeKey, WrappedKey, derive_slot_key, sha256, wrap_key};
use crate::device::memory::MemoryDevice;
use crate::limits::{KDF_LABEL_WORK_MAX, KEY_SLOTS_MAX, REPLICAS_MAX};
use crate::units::{BlockAddr, Generation, WriteId};

const SIZE: u64 = 16 << 20;
const VOLUME: Uuid = Uuid([0x44; 16]);
/// Where the checksum and the authentication code of a header are, and the key slot of [`fields`].
const CHECKSUM: usize = 24512;
const MAC: usize = CHECKSUM + 32;
const SLOT: usize = 4096 + 2 * 1024;

const DEVICE: Uuid = Uuid([0x66; 16]);

fn key() -> VolumeKey {
    VolumeKey::take(&mut [0x11; 32])
}

fn keys() -> Keys {
    key().keys(VOLUME)
}

fn fields() -> Fields {
    let row = |device, id: &str| {
        Some(ReplicaRow { device, registry_id: id.to_owned(), identity: [0x99; 32], replaces: None })
    };
    let mut replicas = [const { None }; REPLICAS_MAX];
    replicas[0] = row(Uuid([0x55; 16]), "paris-nvme-01");
    replicas[3] = row(DEVICE, "lyon-nvme-01");
    let mut key_slots = [const { None }; KEY_SLOTS_MAX];
    key_slots[2] = Some(KeySlot {
        label: "greffe".to_owned(),
        params: KdfParams::FLOOR,
        salt: [0x77; 32],
        wrapped: WrappedKey { nonce: [1; 12], ciphertext: [2; 32], tag: [3; 16] },
    });
    Fields {
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        needs: String::new(),
        sequence: 5,
        volume: VOLUME,
        device: DEVICE,
        replica_index: 3,
        last_row: 0,
        label: "archives é".to_owned(),
        created_unix_s: 1_790_000_000,
        laboratory: false,
        trust_digest: [0x88; 32],
        data_blocks: data_blocks(SIZE),
        device_bytes: SIZE,
        key_slots,
        replicas,
    }
}

fn header() -> Header {
    Header::new(fields()).unwrap()
}

fn rechecksum(bytes: &mut [u8; HEADER_BYTES]) {
    let sum = sha256(&[&bytes[..CHECKSUM]]);
    bytes[CHECKSUM..MAC].copy_from_slice(&sum);
}

fn device(a: &[u8], b: &[u8]) -> MemoryDevice {
    let device = MemoryDevice::new("memory", SIZE);
    put(&device, HeaderCopy::A, a);
    put(&device, HeaderCopy::A2, a);
    put(&device, HeaderCopy::B, b);
    device
}

fn put(device: &MemoryDevice, copy: HeaderCopy, bytes: &[u8]) {
    device.write_at(copy.offset(device.size_bytes()), &[IoSlice::new(bytes)]).unwrap();
}

/// The copies that hold what [`device`] puts into area A.
fn in_a(damaged: &[(HeaderCopy, Error)]) -> bool {
    damaged.iter().map(|(copy, _)| *copy).eq([HeaderCopy::A, HeaderCopy::A2])
}

/// The copy that holds what [`device`] puts into area B.
fn in_b(damaged: &[(HeaderCopy, Error)]) -> bool {
    damaged.iter().map(|(copy, _)| *copy).eq([HeaderCopy::B])
}

#[test]
fn header_round_trips() {
    let bytes = header().encode(&keys());
    let raw = RawHeader::decode(&bytes, SIZE).unwrap();
    assert_eq!(raw.claims(), &fields());
    assert_eq!(raw.claims().replica_count(), 2);
    let back = raw.authenticate(&keys()).unwrap();
    assert_eq!(back, header());
    assert_eq!(back.encode(&keys()), bytes);
    let next = back.changed(|f| f.label = "autre".to_owned()).unwrap();
    assert_eq!((next.sequence, next.label.as_str()), (6, "autre"));
}

/// Frozen, and computed with another implementation (in Python): format version 2.
#[test]
fn frozen_header() {
    let bytes = header().encode(&keys());
    let hex: String = sha256(&[&bytes]).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "483415e88669122e37092427ef92b86e535762bb0633ffe27c985ed625f09525");
    assert_eq!(&bytes[..12], b"SCELLE\0\x01\x02\0\0\0");
    assert_eq!((bytes[80], bytes[82], bytes[84], bytes[85]), (3, 2, 1, 11));
    assert_eq!(&bytes[SLOT..][..4], [1, 1, 6, 0]);
    assert_eq!(&bytes[512 + 3 * 128..][..2], [1, 12]);
}

#[test]
fn damage_to_any_byte_of_one_copy_is_named_and_the_other_copy_is_used() {
    let (keys, header) = (keys(), header());
    let good = header.encode(&keys);
    let device = device(&good, &good);
    // Every byte of the fields, the rows and the slot in use, and a sample of the rest.
    let all = (0..4096).chain(SLOT..SLOT + 160).chain((4096..CHECKSUM).step_by(61)).chain(CHECKSUM..HEADER_BYTES);
    for at in all {
        let mut bad = good;
        bad[at] ^= [0x80, 0xff, 0x01][at % 3];
        let decoded = RawHeader::decode(&bad, SIZE);
        match at {
            0..8 => assert!(matches!(decoded, Err(Error::NotScelle)), "byte {at}"),
            8..MAC => assert!(matches!(decoded, Err(Error::Damaged)), "byte {at}"),
            _ => assert!(matches!(decoded.unwrap().authenticate(&keys), Err(Error::ForgedHeader)), "byte {at}"),
        }
        for copy in HeaderCopy::ALL {
            put(&device, copy, &bad);
            let (opened, damaged) = read(&device).unwrap().authenticate(&keys).unwrap();
            assert_eq!(opened, header, "byte {at} of {copy:?}");
            assert_eq!(damaged.len(), 1, "byte {at} of {copy:?}");
            assert_eq!(damaged[0].0, copy, "byte {at}");
            put(&device, copy, &good);
        }
    }
}

#[test]
fn a_forger_without_the_key_changes_nothing_although_the_checksum_is_right() {
    let good = header().encode(&keys());
    for at in (0..4096).chain(SLOT..SLOT + 160).chain((4096..CHECKSUM).step_by(61)) {
        let mut bad = good;
        bad[at] ^= 1;
        rechecksum(&mut bad);
        // Whatever it decodes to, it is never a header.
        if let Ok(raw) = RawHeader::decode(&bad, SIZE) {
            assert!(matches!(raw.authenticate(&keys()), Err(Error::ForgedHeader)), "byte {at}");
        }
    }
    // A higher sequence lets the forgery be looked at first; the honest copy is used all the same.
    let mut bad = good;
    bad[40] = 0xff;
    rechecksum(&mut bad);
    let found = read(&device(&bad, &good)).unwrap();
    assert_eq!(found.newest.claims().sequence, 255);
    let (opened, damaged) = found.authenticate(&keys()).unwrap();
    assert_eq!(opened, header());
    assert!(in_a(&damaged) && damaged.iter().all(|(_, why)| matches!(why, Error::ForgedHeader)));
    let other = key().keys(Uuid([0x45; 16]));
    assert!(matches!(read(&device(&good, &good)).unwrap().authenticate(&other), Err(Error::ForgedHeader)));
}

#[test]
fn both_copies_damaged_is_refused_with_the_better_reason() {
    let mut damaged = header().encode(&keys());
    damaged[100] ^= 1;
    let foreign = [0; HEADER_BYTES];
    assert!(matches!(read(&device(&damaged, &damaged)), Err(Error::Damaged)));
    assert!(matches!(read(&device(&foreign, &damaged)), Err(Error::Damaged)));
    assert!(matches!(read(&device(&damaged, &foreign)), Err(Error::Damaged)));
    assert!(matches!(read(&device(&foreign, &foreign)), Err(Error::NotScelle)));
    let ext4 = vec![0x53; HEADER_BYTES];
    assert!(matches!(read(&device(&ext4, &ext4)), Err(Error::NotScelle)));
}

#[test]
fn newer_copy_wins_and_the_stale_one_is_named() {
    let old = header().encode(&keys());
    let new = header().changed(|_| ()).unwrap().encode(&keys());
    for (a, b, is_stale) in [(&old, &new, in_a as fn(&[_]) -> bool), (&new, &old, in_b)] {
        let (opened, damaged) = read(&device(a, b)).unwrap().authenticate(&keys()).unwrap();
        assert_eq!(opened.sequence, 6);
        assert!(is_stale(&damaged), "{damaged:?}");
        assert!(damaged.iter().all(|(_, why)| matches!(why, Error::Stale { found: 5, newest: 6 })), "{damaged:?}");
    }
}

#[test]
fn copies_of_two_devices_are_refused() {
    let mine = header().encode(&keys());
    let mut f = fields();
    f.device = Uuid([0x55; 16]);
    f.replica_index = 0;
    let other = Header::new(f).unwrap().encode(&keys());
    let found = read(&device(&mine, &other)).unwrap();
    assert!(matches!(found.authenticate(&keys()), Err(Error::CopiesDisagree { .. })));
}

#[test]
fn a_forged_copy_of_another_device_volume_or_size_hides_no_honest_copy() {
    let end = SIZE + BLOCK_SIZE as u64;
    let device = MemoryDevice::new("memory", end);
    let fields = || Fields { device_bytes: end, ..fields() };
    let forge = |change: fn(&mut Fields)| {
        let mut forged = Fields { sequence: 99, ..fields() };
        change(&mut forged);
        Header::new(forged).unwrap().encode(&key().keys(Uuid([9; 16])))
    };
    let header = Header::new(fields()).unwrap();
    let honest = header.encode(&keys());
    for forged in [
        forge(|f| f.volume = Uuid([9; 16])),
        forge(|f| (f.device, f.replica_index) = (Uuid([0x55; 16]), 0)),
        // Area B would lie elsewhere.
        forge(|f| f.device_bytes = SIZE),
    ] {
        for (a, b, is_there) in [(&forged, &honest, in_a as fn(&[_]) -> bool), (&honest, &forged, in_b)] {
            [HeaderCopy::A, HeaderCopy::A2].iter().for_each(|copy| put(&device, *copy, a));
            put(&device, HeaderCopy::B, b);
            let found = read(&device).unwrap();
            assert!(found.claims_volume(VOLUME));
            let (opened, damaged) = found.authenticate(&keys()).unwrap();
            assert_eq!(opened, header);
            assert!(is_there(&damaged), "{damaged:?}");
            assert!(damaged.iter().all(|(_, why)| matches!(why, Error::ForgedHeader)), "{damaged:?}");
        }
    }
}

#[test]
fn header_torn_at_any_sectors_is_old_new_or_damaged() {
    let old = header().encode(&keys());
    let changed = |f: &mut Fields| {
        f.label = "x".to_owned();
        f.key_slots[0] = f.key_slots[2].clone();
        f.replicas[9] = f.replicas[0].clone();
    };
    let new = header().changed(changed).unwrap().encode(&keys());
    // The sectors that differ, and one that does not.
    let differs = |sector: &usize| old[sector * 512..][..512] != new[sector * 512..][..512];
    let mut sectors: Vec<usize> = (0..HEADER_BYTES / 512).filter(differs).collect();
    sectors.push(HEADER_BYTES / 512 - 2);
    for survivors in 0..1u32 << sectors.len() {
        let mut torn = old;
        for (_, sector) in (0..).zip(&sectors).filter(|(bit, _)| survivors & (1 << bit) != 0) {
            torn[sector * 512..][..512].copy_from_slice(&new[sector * 512..][..512]);
        }
        if torn != old && torn != new {
            assert!(RawHeader::decode(&torn, SIZE).is_err(), "sectors {survivors:#b}");
        }
    }
}

#[test]
fn versions_and_features() {
    let good = header().encode(&keys());
    let altered = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        rechecksum(&mut bytes);
        RawHeader::decode(&bytes, SIZE)
    };
    assert!(matches!(altered(8, 3), Err(Error::UnsupportedVersion { found: 3 })));
    assert!(matches!(altered(32, 4), Err(Error::UnknownIncompatFeature { bits: 4, .. })));
    // The version that is needed is named.
    let mut later = good;
    later[32] = 1;
    later[208..213].copy_from_slice(b"0.3.0");
    rechecksum(&mut later);
    let refused = RawHeader::decode(&later, SIZE).unwrap_err();
    assert!(refused.to_string().ends_with("it needs scelle 0.3.0 or newer"), "{refused}");
    later[208] = 0x1b;
    rechecksum(&mut later);
    assert!(matches!(RawHeader::decode(&later, SIZE), Err(Error::Malformed { .. })));
    assert!(!altered(24, 1).unwrap().claims().writable());
    assert!(altered(16, 1).unwrap().claims().writable());
    assert!(header().writable());
    // One flipped bit in the version field is damage, not a newer format.
    let mut flipped = good;
    flipped[8] = 6;
    assert!(matches!(RawHeader::decode(&flipped, SIZE), Err(Error::Damaged)));
}

#[test]
fn fields_out_of_bounds_are_malformed() {
    let good = header().encode(&keys());
    for (at, value, field) in [
        (80, 2, "replica index"),
        (80, 16, "replica index"),
        (81, 0xff, "replica index"),
        (82, 3, "replica count"),
        (84, 2, "kind of registry"),
        (85, 65, "volume label"),
        (85, 10, "volume label"),
        (144, 0x1b, "volume label"),
        (128, 0xff, "data area"),
        (136, 1, "device size"),
        (143, 0xff, "device size"),
        (4096, 2, "key slot type"),
        (SLOT + 1, 0, "key slot type"),
        (SLOT + 2, 33, "key slot label"),
        (208, 0xff, "version that is needed"),
        (512, 7, "replica state"),
        (513, 65, "registry identifier"),
        (513, 0, "registry identifier"),
    ] {
        let mut bad = good;
        bad[at] = value;
        rechecksum(&mut bad);
        match RawHeader::decode(&bad, SIZE) {
            Err(Error::Malformed { field: found }) => assert_eq!(found, field, "byte {at}"),
            other => panic!("byte {at}: {other:?}"),
        }
    }
    let refused = |change: fn(&mut Fields)| Header::new(fields()).unwrap().changed(change).unwrap_err();
    assert!(matches!(refused(|f| f.label = "x".repeat(65)), Error::Malformed { .. }));
    for hidden in ["a\u{202e}b", "a\u{200b}b", "a\u{2028}b", "a\u{7f}b"] {
        let refused = Header::new(Fields { label: hidden.to_owned(), ..fields() });
        assert!(matches!(refused, Err(Error::Malformed { field: "volume label" })), "{hidden:?}");
    }
    assert!(matches!(refused(|f| f.replicas[3] = None), Error::Malformed { .. }));
    assert!(matches!(
        refused(|f| f.key_slots[2].as_mut().unwrap().params.iterations = 1),
        Error::Crypto(crypto::Error::WeakKdf { .. })
    ));
}

#[test]
fn device_sizes() {
    let good = header().encode(&keys());
    let image = |len: u64| {
        let mut image = device(&good, &good).image();
        image.resize(len as usize, 0);
        MemoryDevice::from_image("memory", image)
    };
    // Truncated, even below the smallest device.
    for len in [SIZE - 4096, SIZE - 512, DEVICE_SIZE_MIN / 2, HEADER_BYTES as u64] {
        match read(&image(len)) {
            Err(Error::Truncated { expected: SIZE, found }) => assert_eq!(found, len),
            other => panic!("{len}: {other:?}"),
        }
    }
    assert!(matches!(read(&image(512)), Err(Error::DeviceSize { bytes: 512 })));
    assert!(matches!(read(&MemoryDevice::new("memory", 4 << 20)), Err(Error::DeviceSize { .. })));
    // Grown: area B is where the label says.
    let (_, damaged) = read(&image(SIZE + (1 << 20))).unwrap().authenticate(&keys()).unwrap();
    assert!(damaged.is_empty());
    assert_eq!(data_blocks(SIZE), (SIZE - 2 * LABEL_SIZE) / 4096);
    assert_eq!(data_blocks(0), 0);
    assert_eq!(Area::B.offset(SIZE + 512), SIZE - LABEL_SIZE);
}

/// argon2id is slow on purpose: one header for all tests that unlock.
fn lockable() -> &'static Header {
    static HEADER: OnceLock<Header> = OnceLock::new();
    HEADER.get_or_init(|| {
        let mut f = fields();
        let secret = Secret::new(b"right".to_vec()).unwrap();
        let slot_key = derive_slot_key(&secret, &[0x77; 32], &KdfParams::FLOOR).unwrap();
        let wrapped = wrap_key(&key(), &slot_key, &f.wrap_digest()).unwrap();
        f.key_slots[2].as_mut().unwrap().wrapped = wrapped;
        Header::new(f).unwrap()
    })
}

/// The slot that opened, and what authenticates.
type Unlocked = (usize, Header, Vec<(HeaderCopy, Error)>);

fn unlock_found(found: Found, secret: &str) -> Result<Unlocked, Error> {
    let opened = unlock::unlock(&[&found], &[VOLUME], &Secret::new(secret.as_bytes().to_vec()).unwrap())?;
    let (header, damaged) = found.authenticate(&opened.key.keys(opened.volume))?;
    Ok((opened.slot, header, damaged))
}

fn unlock(a: &Header, b: &Header, secret: &str) -> Result<Unlocked, Error> {
    let (a, b) = (a.encode(&keys()), b.encode(&keys()));
    unlock_found(read(&device(&a, &b)).unwrap(), secret)
}

#[test]
fn the_right_secret_unlocks_and_the_wrong_one_does_not() {
    let header = lockable();
    let (slot, opened, damaged) = unlock(header, header, "right").unwrap();
    assert_eq!((slot, &opened), (2, header));
    assert!(damaged.is_empty());
    let wrong = unlock(header, header, "wrong").unwrap_err();
    assert!(matches!(wrong, Error::Crypto(crypto::Error::WrongKey)));
    let none = header.clone().changed(|f| f.key_slots = [const { None }; KEY_SLOTS_MAX]).unwrap();
    assert!(matches!(unlock(&none, &none, "right"), Err(Error::NoKeySlot)));
}

#[test]
fn a_wrapped_key_does_not_open_under_another_immutable_part() {
    let moved = lockable().clone().changed(|f| f.laboratory = true).unwrap();
    let refused = unlock(&moved, &moved, "right").unwrap_err();
    assert!(matches!(refused, Error::Crypto(crypto::Error::WrongKey)));
    // What may change without the passphrases does not matter to it.
    let changed = lockable().clone().changed(|f| f.replicas[0] = None).unwrap();
    assert_eq!(unlock(&changed, &changed, "right").unwrap().1, changed);
}

#[test]
fn a_forged_slot_in_the_newer_copy_does_not_lock_the_owner_out() {
    let mut forged = lockable().clone().changed(|_| ()).unwrap().encode(&keys());
    forged[SLOT + 16] ^= 1; // its salt
    rechecksum(&mut forged);
    let honest = lockable().encode(&keys());
    let found = read(&device(&forged, &honest)).unwrap();
    let (_, opened, damaged) = unlock_found(found, "right").unwrap();
    assert_eq!(&opened, lockable());
    assert!(in_a(&damaged) && damaged.iter().all(|(_, why)| matches!(why, Error::ForgedHeader)));
}

#[test]
fn a_weak_slot_is_refused_with_its_own_reason() {
    let mut weak = lockable().encode(&keys());
    weak[SLOT + 4..SLOT + 8].copy_from_slice(&8u32.to_le_bytes());
    rechecksum(&mut weak);
    let found = read(&device(&weak, &weak)).unwrap();
    let refused = unlock_found(found, "right").unwrap_err();
    assert!(matches!(refused, Error::Crypto(crypto::Error::WeakKdf { .. })));
}

#[test]
fn key_slots_that_ask_for_too_much_work_together_are_malformed() {
    let costly = |slots: usize| {
        let mut f = fields();
        let mut slot = f.key_slots[2].take().unwrap();
        slot.params = KdfParams::CEILING;
        f.key_slots[..slots].fill(Some(slot));
        Header::new(f)
    };
    let allowed = (KDF_LABEL_WORK_MAX / KdfParams::CEILING.work()) as usize;
    costly(allowed).unwrap();
    assert!(matches!(costly(allowed + 1), Err(Error::Malformed { field: "work of the key slots" })));
}

#[test]
fn a_new_area_holds_no_header_and_no_root() {
    let area = new_area().unwrap();
    assert_eq!(area.len() as u64, LABEL_SIZE);
    let ring = &area[RING_OFFSET as usize..][..RING_BYTES];
    assert!(newest_roots(&keys(), VOLUME, ring).is_empty());
    assert!(ring.chunks(4096).all(|slot| slot.iter().any(|b| *b != 0)));
    let elsewhere = area[..RING_OFFSET as usize].iter().chain(&area[RING_OFFSET as usize + RING_BYTES..]);
    assert!(elsewhere.copied().all(|byte| byte == 0));
}

fn root(generation: u64) -> Root {
    let tree = |n: u64| TreeRef {
        addr: BlockAddr(1000 + n),
        id: WriteId { epoch: 3, counter: n },
        tag: [n as u8; 16],
        birth: Generation(generation),
        height: 2,
        pages: 102 * n,
    };
    Root {
        generation: Generation(generation),
        mount: MountId { epoch: 3, nonce: 0x1122 },
        in_sync: 0b1001,
        ring: 0,
        committed_unix_ns: -5,
        free_blocks: 77,
        registry_version: 7,
        registry: [0x71; 32],
        label: LabelId { sequence: 5, digest: [0x72; 32] },
        db: tree(1),
        space: tree(2),
        trust: [0; 32],
        lineage: (1..5).fold(Lineage::default(), |lineage, n| {
            let mount = MountId { epoch: n, nonce: 1 << (8 * n) };
            Root { mount, generation: Generation(10 * u64::from(n)), lineage, ..Root::default() }.lineage_after()
        }),
        provisional: None,
    }
}

/// The same, written together with `n` data blocks.
fn provisional_root(n: u64) -> Root {
    let block = |n: u64| WrittenBlock { addr: BlockAddr(n << 20), counter: u64::MAX - n, tag: [n as u8; 16] };
    let blocks: Vec<WrittenBlock> = (0..n).map(block).collect();
    Root { provisional: Some(Provisional::new(&blocks).unwrap()), ..root(130) }
}

#[test]
fn a_root_says_which_slots_hold_a_root_on_all_that_it_names() {
    let root = Root { ring: 1 << 63 | 2, ..root(130) };
    assert_eq!(open_root(&keys(), VOLUME, 2, &seal_root(&keys(), VOLUME, &root).unwrap()), Some(root));
    assert_eq!(root.ring_after(0b1001), 1 << 63 | 6);
    assert_eq!(Root { ring: 1, ..root }.ring_after(0b1000), 0b101, "one has left");
    assert_eq!(root.ring_after(0b1011), 0b100, "one has come, and has this root alone for certain");
    assert_eq!(Root::default().ring_after(1), 0, "a new volume");
    assert_eq!(slots_of(&[root, Root { generation: Generation(64), ..root }]), 0b101);
}

#[test]
fn a_root_says_whether_it_is_provisional_and_upon_what() {
    for n in [0, 1, PROVISIONAL_BLOCKS_MAX as u64] {
        let root = provisional_root(n);
        let sealed = seal_root(&keys(), VOLUME, &root).unwrap();
        assert_eq!(open_root(&keys(), VOLUME, 2, &sealed), Some(root));
        assert_eq!(root.provisional.unwrap().blocks().len() as u64, n);
    }
    assert_eq!(Provisional::new(&[WrittenBlock::default(); PROVISIONAL_BLOCKS_MAX + 1]), None);
    let far = WrittenBlock { addr: BlockAddr(1 << 48), ..WrittenBlock::default() };
    let bad = Root { provisional: Provisional::new(&[far]), ..root(130) };
    assert_eq!(open_root(&keys(), VOLUME, 2, &seal_root(&keys(), VOLUME, &bad).unwrap()), None);
}

#[test]
fn a_root_says_which_trust_anchors_are_in_force() {
    let founding = [3; 32];
    assert_eq!(root(130).trust_in_force(founding), founding);
    let succeeded = Root { trust: [9; 32], ..root(130) };
    assert_eq!(succeeded.trust_in_force(founding), [9; 32]);
    let sealed = seal_root(&keys(), VOLUME, &succeeded).unwrap();
    assert_eq!(open_root(&keys(), VOLUME, 2, &sealed), Some(succeeded));
}

#[test]
fn root_round_trips_only_in_its_slot() {
    let sealed = seal_root(&keys(), VOLUME, &root(130)).unwrap();
    assert_eq!(open_root(&keys(), VOLUME, 2, &sealed), Some(root(130)));
    for slot in (0..ROOT_SLOTS).filter(|s| *s != 2) {
        assert_eq!(open_root(&keys(), VOLUME, slot, &sealed), None, "slot {slot}");
    }
    assert_eq!(open_root(&keys(), Uuid([0; 16]), 2, &sealed), None);
    assert_eq!(open_root(&keys(), VOLUME, 2, &sealed[..4095]), None);
    assert_eq!(open_root(&keys(), VOLUME, 2, &[]), None);
    assert_ne!(sealed, seal_root(&keys(), VOLUME, &root(130)).unwrap());
    let least = Root { in_sync: 1, ..Root::default() };
    assert_eq!(open_root(&keys(), VOLUME, 0, &seal_root(&keys(), VOLUME, &least).unwrap()), Some(least));
}

/// Found by fuzzing: the number after the largest one was computed, and that overflow ends the program.
#[test]
fn regression_a_root_with_numbers_that_cannot_be_is_none() {
    let last = TreeRef { addr: BlockAddr((1 << 48) - 1), pages: (1 << 48) - 1, height: 8, ..TreeRef::default() };
    let good = Root { generation: Generation((1 << 48) - 1), in_sync: 1, db: last, ..Root::default() };
    let opens =
        |root: &Root| open_root(&keys(), VOLUME, slot(root.generation), &seal_root(&keys(), VOLUME, root).unwrap());
    assert_eq!(opens(&good), Some(good));
    for bad in [
        Root { generation: Generation(u64::MAX), ..good },
        Root { in_sync: 0, ..good },
        Root { generation: Generation(1 << 48), ..good },
        Root { db: TreeRef { addr: BlockAddr(1 << 48), ..last }, ..good },
        Root { space: TreeRef { pages: 1 << 48, ..last }, ..good },
        Root { space: TreeRef { birth: Generation(u64::MAX), ..last }, ..good },
        Root { db: TreeRef { height: 9, ..last }, ..good },
    ] {
        assert_eq!(opens(&bad), None, "{bad:?}");
    }
}

/// Frozen, and computed with another implementation (in Python): format version 2.
#[test]
fn frozen_root() {
    let sealed = root::seal_with_nonce(&keys(), VOLUME, &root(130), [0x99; 12]);
    let hex: String = sha256(&[&sealed]).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "9ce167ff98509221cd0c259a9962c49c40569b612cfb2e0354a68192d8c9b0c6");
    assert_eq!(open_root(&keys(), VOLUME, 2, &sealed), Some(root(130)));
}

#[test]
fn no_damaged_or_torn_root_opens() {
    let old = seal_root(&keys(), VOLUME, &root(66)).unwrap();
    let new = seal_root(&keys(), VOLUME, &root(130)).unwrap();
    for at in 0..ROOT_BYTES {
        let mut bad = new;
        bad[at] ^= 0x10;
        assert_eq!(open_root(&keys(), VOLUME, 2, &bad), None, "byte {at}");
    }
    for survivors in 1..255u32 {
        let mut torn = old;
        for sector in (0..8).filter(|s| survivors & (1 << s) != 0) {
            torn[sector * 512..][..512].copy_from_slice(&new[sector * 512..][..512]);
        }
        assert_eq!(open_root(&keys(), VOLUME, 2, &torn), None, "sectors {survivors:#b}");
    }
}

#[test]
fn roots_come_newest_first_from_both_areas() {
    let device = MemoryDevice::new("memory", SIZE);
    let write = |area: usize, generation: u64| {
        let at = root::slot_offsets(root::slot(Generation(generation)), SIZE)[area];
        let sealed = seal_root(&keys(), VOLUME, &root(generation)).unwrap();
        device.write_at(at, &[IoSlice::new(&sealed)]).unwrap();
    };
    for generation in 1..=100 {
        write(0, generation);
        write(1, generation);
    }
    write(1, 101);
    let roots = read_roots(&device, SIZE, &keys(), VOLUME).unwrap();
    // In area A slot 37 still holds generation 37, since the crash fell between the two writes.
    let generations: Vec<u64> = roots.iter().map(|r| r.generation.0).collect();
    let expected: Vec<u64> = (37..=101).rev().collect();
    assert_eq!(generations, expected);
    assert_eq!(roots[0], root(101));
    // A later mount that went on from generation 50, on a device that had been further alone.
    let later = Root { mount: MountId { epoch: 4, nonce: 5 }, ..root(51) };
    let sealed = seal_root(&keys(), VOLUME, &later).unwrap();
    device.write_at(root::slot_offsets(51, SIZE)[0], &[IoSlice::new(&sealed)]).unwrap();
    assert_eq!(read_roots(&device, SIZE, &keys(), VOLUME).unwrap()[0], later);
}

#[test]
fn slots_lie_in_their_areas() {
    assert_eq!(root::slot_offsets(0, SIZE), [65536, SIZE - LABEL_SIZE + 65536]);
    assert_eq!(root::slot_offsets(63, SIZE)[0], 65536 + 63 * 4096);
    assert_eq!(root::slot(Generation(64)), 0);
}

proptest! {
    #[test]
    fn garbage_never_panics(
        mut bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES),
        with_magic: bool,
        with_checksum: bool,
        size: u64,
    ) {
        if with_magic {
            bytes[..12].copy_from_slice(b"SCELLE\0\x01\x02\0\0\0");
        }
        let mut block: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
        if with_checksum {
            rechecksum(&mut block);
        }
        if let Ok(raw) = RawHeader::decode(&block, size) {
            prop_assert!(raw.authenticate(&keys()).is_err());
        }
        prop_assert_eq!(open_root(&keys(), VOLUME, size % ROOT_SLOTS, &block[..ROOT_BYTES]), None);
    }

    /// Bytes of a good header altered at random, checksum put right: the decoder sees hostile but plausible fields.
    #[test]
    fn plausible_forgeries_never_authenticate(
        edits in proptest::collection::vec((prop_oneof![0usize..4096, SLOT..SLOT + 160, 0..CHECKSUM], any::<u8>()), 1..20),
    ) {
        let good = header().encode(&keys());
        let mut bad = good;
        for (at, value) in edits {
            bad[at] = value;
        }
        rechecksum(&mut bad);
        if let Ok(raw) = RawHeader::decode(&bad, SIZE) {
            prop_assert_eq!(raw.authenticate(&keys()).is_ok(), bad == good);
        }
    }
}
