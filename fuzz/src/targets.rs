//! What is fuzzed: one function a target, each fed with any bytes. It must come back soon, with little memory, without a
//! panic, and what it asserts must hold. Both `fuzz/fuzz_targets` (libFuzzer) and `tests/fuzz` (stable, in every test run) use it.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{self, IoSlice};
use std::sync::OnceLock;

use scelle::audit::record::{Digest, Record};
use scelle::audit::{FORMAT, Seal, export_head, verify_export};
use scelle::control::{Answer, FilePlace, Greeting, Request, StatusReport, VolumeStatus};
use scelle::crypto::{Binding, KdfParams, Keys, Kind, VolumeKey, WrappedKey, sha256};
use scelle::device::{self, BlockDevice};
use scelle::fs::{Fs, acl::Acl};
use scelle::label::{self, Fields, HEADER_BYTES, Header, KeySlot, ROOT_BYTES, RawHeader, ReplicaRow};
use scelle::limits;
use scelle::os::DevNo;
use scelle::policy::{examine, laboratory};
use scelle::probe::chain;
use scelle::probe::host::HostFacts;
use scelle::probe::identity::{DeviceFacts, Node};
use scelle::registry::{self, Date, DerivedKey, Registry, SignatureFile, Transport, TrustAnchors, VerifiedRegistry};
use scelle::units::{BlockAddr, Ino, Uuid, WriteId};
use scelle::volume::{self, recovery};

#[path = "../../tests/support/mod.rs"]
pub mod support;

use support::court::{Court, Plan};
use support::kernel::Fixture;

const VOLUME: Uuid = Uuid([0x44; 16]);
const DEVICE_BYTES: u64 = 64 << 20;

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| VolumeKey::take(&mut [0x11; 32]).keys(VOLUME))
}

/// The first `N` bytes, zeros where there are fewer.
fn padded<const N: usize>(data: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    let length = data.len().min(N);
    array[..length].copy_from_slice(&data[..length]);
    array
}

/// A registry document; also the small texts in it.
pub fn registry(data: &[u8]) {
    if let Ok(document) = Registry::parse(data) {
        let text = document.to_toml().expect("what was accepted can be written");
        assert_eq!(Registry::parse(text.as_bytes()).expect("what was written is accepted"), document);
        assert!(document.devices.iter().all(|entry| entry.identity.transport.identity_fields().is_some()));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let date = Date::parse(text);
        assert!(date.is_none_or(|date| date.to_string() == text));
        assert!(Uuid::parse(text).is_none_or(|uuid| uuid.to_string() == text.to_ascii_lowercase()));
        let _ = DevNo::parse(text);
    }
}

/// What the officer of `seeds/signature` has signed. Her secret key is not kept.
pub const DOCUMENT: &[u8] = include_bytes!("../seeds/signature/document");
const SIGNATURE_TRUST: &str = include_str!("../seeds/signature/trust.toml");

/// A signature file, and after a NUL the document; without one, the document that was signed. Nothing but that document
/// verifies.
pub fn signature(data: &[u8]) {
    static ANCHORS: OnceLock<TrustAnchors> = OnceLock::new();
    let anchors = ANCHORS.get_or_init(|| TrustAnchors::parse(SIGNATURE_TRUST.as_bytes()).unwrap());
    let end = data.iter().position(|byte| *byte == 0);
    let (bytes, document) = end.map_or((data, DOCUMENT), |end| (&data[..end], &data[end + 1..]));
    let signed = registry::verify(document, &[SignatureFile { officer: "officer-a", bytes }], anchors);
    // The document is no registry: one that verifies is refused for its syntax.
    let counts = !matches!(signed, Err(registry::Error::TooFewSignatures { .. } | registry::Error::TooLarge { .. }));
    assert!(!counts || document == DOCUMENT, "another document verifies");
}

/// Trust anchors. What is pinned of them does not depend on how the document is written.
pub fn trust(data: &[u8]) {
    let Ok(anchors) = TrustAnchors::parse(data) else { return };
    assert!((1..=anchors.officers().len()).contains(&anchors.threshold()));
    let again = [data, b"\n# a comment\n"].concat();
    let again = TrustAnchors::parse(&again).map(|again| again.digest());
    assert!(again.map_or(data.len() + 13 > limits::TRUST_BYTES_MAX, |again| again == anchors.digest()));
}

/// An officer's secret key file: as it is, or (first byte odd) with the bytes in place of the key.
pub fn key(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    let text = match mode & 1 {
        0 => String::from_utf8_lossy(rest).into_owned(),
        _ => format!("untrusted comment: key\n{}\n", base64(&[b"Ed\0\0B2", rest].concat())),
    };
    let encrypted = registry::is_encrypted(&text);
    let signed = registry::sign(b"document", &text, None, "comment");
    assert!(signed.is_err() || matches!(encrypted, Ok(false)), "signed with what is no plain key");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let digit = |i: usize| char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]);
        text.extend((0..4).map(|i| if i <= group.len() { digit(i) } else { '=' }));
    }
    text
}

fn header() -> &'static [u8; HEADER_BYTES] {
    static HEADER: OnceLock<[u8; HEADER_BYTES]> = OnceLock::new();
    HEADER.get_or_init(|| {
        let row = |byte: u8| ReplicaRow {
            device: Uuid([byte; 16]),
            registry_id: format!("disk-{byte}"),
            identity: [byte; 32],
            replaces: None,
        };
        let mut fields = Fields {
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            needs: String::new(),
            sequence: 5,
            volume: VOLUME,
            device: Uuid([7; 16]),
            replica_index: 0,
            last_row: 1,
            label: "greffe".into(),
            created_unix_s: 1_795_219_200,
            laboratory: false,
            trust_digest: [3; 32],
            data_blocks: label::data_blocks(DEVICE_BYTES),
            device_bytes: DEVICE_BYTES,
            key_slots: Default::default(),
            replicas: Default::default(),
        };
        let wrapped = WrappedKey { nonce: [1; 12], ciphertext: [2; 32], tag: [3; 16] };
        fields.key_slots[0] = Some(KeySlot { label: "first".into(), params: KdfParams::FLOOR, salt: [9; 32], wrapped });
        fields.replicas[0] = Some(row(7));
        fields.replicas[1] = Some(row(8));
        Header::new(fields).unwrap().encode(keys())
    })
}

/// A device of which only the headers can be read; area A has the same one twice.
struct Labels {
    size: u64,
    a: [u8; HEADER_BYTES],
    b: [u8; HEADER_BYTES],
}

impl BlockDevice for Labels {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn logical_block_size(&self) -> u32 {
        512
    }

    fn name(&self) -> &str {
        "labels"
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> device::Result<()> {
        let header = match offset {
            0 | 0x8_0000 => &self.a,
            _ if offset + limits::LABEL_SIZE <= self.size => &self.b,
            _ => return Err(io_error()),
        };
        buf.copy_from_slice(header.get(..buf.len()).ok_or_else(io_error)?);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[IoSlice<'_>]) -> device::Result<()> {
        panic!("reading a label writes");
    }

    fn flush(&self) -> device::Result<()> {
        panic!("reading a label flushes");
    }
}

fn io_error() -> device::Error {
    device::Error::Io { action: "read", offset: 0, bytes: 0, source: io::ErrorKind::InvalidInput.into() }
}

/// A header: bytes as they are, or (bit 0 of the first byte) changes to a good one, each an offset (2 bytes) and a value. Unless
/// bit 1 is set the checksum is put right, so that every field is looked at. Bit 2: the device has the size that the next eight
/// bytes say. Bit 3: the other copy is the good one.
pub fn label(data: &[u8]) {
    let Some((mode, mut rest)) = data.split_first() else { return };
    let mut size = DEVICE_BYTES;
    if mode & 4 != 0 {
        size = u64::from_le_bytes(padded(rest));
        rest = rest.get(8..).unwrap_or_default();
    }
    let mut block = if mode & 1 == 0 { padded(rest) } else { *header() };
    if mode & 1 != 0 {
        for edit in rest.chunks_exact(3) {
            block[usize::from(u16::from_le_bytes([edit[0], edit[1]])) % HEADER_BYTES] = edit[2];
        }
    }
    if mode & 2 == 0 {
        let checksum = sha256(&[&block[..HEADER_BYTES - 64]]);
        block[HEADER_BYTES - 64..HEADER_BYTES - 32].copy_from_slice(&checksum);
    }
    if let Ok(raw) = RawHeader::decode(&block, size) {
        let claims = raw.claims();
        assert!(claims.device_bytes <= size && claims.data_blocks <= label::data_blocks(claims.device_bytes));
        assert!(claims.replicas.get(usize::from(claims.replica_index)).is_some_and(Option::is_some));
        let _ = raw.wrap_digest();
        assert_eq!(raw.authenticate(keys()).is_ok(), block == *header(), "a forged header, or a good one refused");
    }
    let other = if mode & 8 == 0 { block } else { *header() };
    if let Ok(found) = label::read(&Labels { size, a: block, b: other }) {
        let authentic = found.authenticate(keys());
        assert!(authentic.is_ok() == (block == *header() || mode & 8 != 0), "{:?}", authentic.err());
        assert!(authentic.is_ok_and(|(header, _)| header.encode(keys()) == *self::header()) || mode & 8 == 0);
    }
}

/// Root records, authentic ones with any content: each takes 316 bytes, three mounts of its lineage and the first data block that it was
/// written with included; and the choice among up to four of them.
pub fn root(data: &[u8]) {
    let mut rings: Vec<recovery::Ring> = Vec::new();
    for record in data.chunks(316).take(4) {
        let mut block = [0; ROOT_BYTES];
        let (begin, provisional) = record.split_at(record.len().min(276));
        block[32..32 + begin.len()].copy_from_slice(begin);
        block[32 + 2776..][..provisional.len()].copy_from_slice(provisional);
        let slot = u64::from_le_bytes(padded(record)) % label::ROOT_SLOTS;
        let at = Binding { volume: VOLUME, kind: Kind::Root, addr: BlockAddr(0), context: [slot, 0] };
        let tag = keys().root().seal_in_place(&at, WriteId { epoch: 0, counter: 0 }, &mut block[32..]);
        block[16..32].copy_from_slice(&tag);
        let opened = label::open_root(keys(), VOLUME, slot, &block);
        if let Some(root) = opened {
            let again = label::seal_root(keys(), VOLUME, &root).unwrap();
            assert_eq!(label::open_root(keys(), VOLUME, slot, &again), Some(root));
        }
        block[usize::from(record[0])] ^= 1;
        assert_eq!(label::open_root(keys(), VOLUME, slot, &block), None, "a forged root opens");
        match rings.last_mut() {
            Some(Some(ring)) if record[0] & 8 != 0 => ring.extend(opened),
            _ => rings.push((!record[0].is_multiple_of(4)).then(|| opened.into_iter().collect())),
        }
    }
    if let Ok(choice) = recovery::choose(&rings) {
        assert_eq!(choice.states.len(), rings.len());
        assert!(rings.iter().flatten().flatten().any(|root| *root == choice.root));
        if let Some((_, before)) = recovery::choose_before(&rings, &choice.root) {
            assert_eq!(before.root.generation.0 + 1, choice.root.generation.0);
        }
    }
}

/// Two registries, signed: a sovereign one and a laboratory's.
fn registries() -> &'static [VerifiedRegistry; 2] {
    static REGISTRIES: OnceLock<[VerifiedRegistry; 2]> = OnceLock::new();
    let signed = |text: &str| laboratory::sign(&Registry::parse(text.as_bytes()).unwrap()).unwrap().verify().unwrap();
    REGISTRIES.get_or_init(|| {
        [
            signed(include_str!("../../tests/policy/sovereign.toml")),
            signed(include_str!("../../tests/policy/laboratory.toml")),
        ]
    })
}

/// What the kernel says of a device, and the verdict on it: the chain is bounded, and no device is approved of which
/// something could not be read, whose transport is not listed, or whose identity no approved entry has.
pub fn system(data: &[u8]) {
    // A mount table may be long, a tree of so many lines tells nothing new.
    let fixture = Fixture::parse(&String::from_utf8_lossy(&data[..data.len().min(64 << 10)]));
    let tree = fixture.asked();
    let host = HostFacts::read(&tree);
    let facts = DeviceFacts { root: chain::read(&tree, fixture.device) };
    let (mut nodes, mut leaves) = (0, Vec::new());
    let readable = walk(&facts.root, 0, &mut nodes, &mut leaves);
    let today = Date::parse("2026-11-21").unwrap();
    for registry in registries() {
        let verdict = examine(registry, &facts, &host, today);
        assert_eq!(verdict.approved, verdict.reasons.is_empty() && verdict.registry_id.is_some());
        if !verdict.approved {
            continue;
        }
        assert!(readable, "approved, although something could not be read");
        for leaf in &leaves {
            let is_loop = leaf.transport == Transport::Loop;
            assert!(!is_loop || registry.is_laboratory(), "a sovereign registry approves a loop device");
            assert!(registry.policy().transports.contains(&leaf.transport), "{} is approved", leaf.transport);
            let fits = |entry: &&registry::DeviceEntry| {
                entry.status == registry::Status::Approved && entry.identity == leaf.identity()
            };
            assert!(registry.devices().iter().any(|entry| fits(&entry)), "approved without an entry: {leaf:?}");
        }
    }
}

/// Whether everything could be read; counts the nodes and collects the leaves. A loop device is one: only a laboratory's
/// registry approves it, and asks no further.
fn walk<'n>(node: &'n Node, depth: usize, nodes: &mut usize, leaves: &mut Vec<&'n Node>) -> bool {
    *nodes += 1;
    assert!(depth <= limits::CHAIN_DEPTH_MAX && *nodes <= 2 * limits::CHAIN_NODES_MAX, "the chain has no end");
    if node.is_leaf() || node.transport == Transport::Loop {
        leaves.push(node);
        return node.problems.is_empty();
    }
    let below = node.children.iter().map(|child| walk(child, depth + 1, nodes, leaves));
    below.fold(true, |all, one| all & one) && node.problems.is_empty()
}

/// Messages of the control socket, and the answer to "where".
pub fn control(data: &[u8]) {
    same_again::<Request>(data);
    same_again::<Answer>(data);
    same_again::<Greeting>(data);
    same_again::<StatusReport>(data);
    same_again::<VolumeStatus>(data);
    same_again::<FilePlace>(data);
}

fn same_again<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(data) {
        let again = serde_json::to_vec(&message).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&again).expect("what was accepted can be sent"), message);
    }
}

/// An exported audit trail: as it is, and then only the one that the volume's key has sealed verifies; or (first byte odd) the
/// bytes as records under a seal that fits their number and the last of them.
pub fn export(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    if mode & 1 == 0 {
        let verified = verify_export(rest, EXPORT_KEY);
        assert!(verified.is_err() || rest == EXPORT, "another export verifies");
        return;
    }
    static KEY: OnceLock<DerivedKey> = OnceLock::new();
    let key = KEY.get_or_init(|| DerivedKey::from_seed(&[0x77; 32]).unwrap());
    let records: Vec<&[u8]> = rest.split(|byte| *byte == b'\n').collect();
    let seal = Seal {
        format: FORMAT.to_owned(),
        volume: VOLUME.to_string(),
        label: String::new(),
        sealed: String::new(),
        records: records.len() as u64,
        head: Digest::of(records.last().unwrap()),
        generation: 1,
        registry_version: 1,
        key: key.public_key(),
        program: String::new(),
    };
    let head = export_head(&seal.line(), &key.sign(seal.line().as_bytes(), "").unwrap());
    let whole = [head.as_bytes(), rest, b"\n"].concat();
    let Ok(found) = verify_export(&whole[..], &key.public_key()) else { return };
    assert_eq!(found, seal);
    let read = |record: &&[u8]| Record::parse(record).expect("what verifies can be read").seq;
    assert!(records.iter().map(read).eq(1..=seal.records), "records are missing, or in another order");
    for at in (head.len()..whole.len()).step_by(1 + whole.len() / 16) {
        let mut other = whole.clone();
        other[at] ^= 1;
        assert!(verify_export(&other[..], &seal.key).is_err(), "a byte can be changed");
        assert!(verify_export(&whole[..at], &seal.key).is_err(), "the end can be missing");
    }
}

/// The export that the command line's tests verify, and the key of its volume.
pub const EXPORT: &[u8] = include_bytes!("../../tests/cli/audit-1.export");
const EXPORT_KEY: &str = "RWTGeLQ21WX7a/0XJDhaoMdbZPt4zWAvodmR/ev3axPFjtcC6sg16fYY";

/// An access control list, and what a mode does to it.
pub fn acl(data: &[u8]) {
    let Some((mode, value)) = data.split_first_chunk::<2>() else { return };
    let mode = u32::from(u16::from_le_bytes(*mode));
    if let Ok(Some(mut list)) = Acl::parse(value) {
        assert_eq!(Acl::parse(&list.encode()).unwrap().as_ref(), Some(&list), "what was accepted is not what is kept");
        assert_eq!(list.mode(mode).0 & !0o777, mode & !0o777);
        list.chmod(mode);
        assert!(Acl::parse(&list.encode()).is_ok());
        let (created, _) = list.create(mode);
        assert_eq!(created & !mode & 0o777, 0, "a creation adds permissions");
        assert!(Acl::parse(&list.encode()).is_ok());
    }
}

/// A filesystem in memory.
fn filesystem() -> &'static Fs {
    static OPEN: OnceLock<volume::Open> = OnceLock::new();
    let open =
        OPEN.get_or_init(|| Court::of(Plan { replicas: 1, size: limits::DEVICE_SIZE_MIN, ..Plan::default() }).open());
    open.fs()
}

/// Extended attributes of a folder: flags, the length of the name, the name, the value.
pub fn xattr(data: &[u8]) {
    let Some((&[flags, length], rest)) = data.split_first_chunk::<2>() else { return };
    let Some((name, value)) = rest.split_at_checked(usize::from(length)) else { return };
    let fs = filesystem();
    let is_set = fs.setxattr(Ino::ROOT, name, value, i32::from(flags % 4)).is_ok();
    if is_set && !name.starts_with(b"system.") {
        assert_eq!(fs.getxattr(Ino::ROOT, name).unwrap(), value);
        assert!(fs.listxattr(Ino::ROOT).unwrap().split(|byte| *byte == 0).any(|listed| listed == name));
    }
    let _ = fs.getxattr(Ino::ROOT, name);
    let was_removed = fs.removexattr(Ino::ROOT, name).is_ok();
    assert!(was_removed || !is_set, "what is set cannot be removed");
    assert_eq!(fs.listxattr(Ino::ROOT).unwrap(), b"");
}
