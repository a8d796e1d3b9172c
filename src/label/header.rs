//! The header: 24 KiB, integers little-endian.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0    | 8    | magic: `SCELLE`, 0, 1 |
//! | 8    | 4    | format version, 2 |
//! | 12   | 4    | zero |
//! | 16   | 8    | compatible features: unknown bits are ignored, and cleared when the header is rewritten |
//! | 24   | 8    | read-only-compatible features: with an unknown bit, the volume is not written |
//! | 32   | 8    | incompatible features: with an unknown bit, the volume is not opened |
//! | 40   | 8    | header sequence: the highest wins |
//! | 48   | 16   | volume UUID |
//! | 64   | 16   | device UUID |
//! | 80   | 2    | replica index: the row of this device in the replica table |
//! | 82   | 2    | replica count: enrolled rows of the table |
//! | 84   | 1    | 0 laboratory registry, 1 any other |
//! | 85   | 1    | length of the volume label |
//! | 86   | 2    | the row that was enrolled last: the next device gets another row after it, so that a row is not soon taken again |
//! | 88   | 8    | time of creation, seconds since 1970, signed |
//! | 96   | 32   | SHA-256 of the trust anchors |
//! | 128  | 8    | blocks of the data area |
//! | 136  | 8    | size of the device in bytes, a multiple of 4096 |
//! | 144  | 64   | volume label, UTF-8 of characters that show themselves |
//! | 208  | 16   | oldest version of this program that knows all incompatible features, ASCII, then zero; all zero: there are none |
//! | 224  | 288  | zero, reserved |
//! | 512  | 2048 | replica table: 16 × 128 bytes |
//! | 2560 | 1536 | zero, reserved |
//! | 4096 | 8192 | key slots: 8 × 1024 bytes |
//! | 12288 | 12224 | zero, reserved |
//! | 24512 | 32  | SHA-256 of bytes 0..24512: finds damage before a key is known |
//! | 24544 | 32  | HMAC-SHA-256 with the label key of bytes 0..24544 |
//!
//! Key slot:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0   | 1  | type: 0 empty, 1 a passphrase by argon2id |
//! | 1   | 1  | version of what follows, by type: 1 |
//! | 2   | 1  | length of the slot's label |
//! | 3   | 1  | zero |
//! | 4   | 4  | memory in KiB |
//! | 8   | 4  | passes |
//! | 12  | 4  | lanes |
//! | 16  | 32 | salt |
//! | 48  | 12 | nonce of the wrap |
//! | 60  | 32 | wrapped volume key |
//! | 92  | 16 | tag of the wrap |
//! | 108 | 32 | slot's label, UTF-8 of characters that show themselves |
//! | 140 | 884 | zero, reserved |
//!
//! Row of the replica table:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0  | 1  | 0 empty, 1 enrolled |
//! | 1  | 1  | length of the registry identifier |
//! | 2  | 16 | device UUID |
//! | 18 | 64 | registry identifier |
//! | 82 | 32 | digest of the identity it was enrolled with |
//! | 114 | 1 | 0, or 1 more than the row of the replica in whose place this one comes once it has everything |
//! | 115 | 13 | zero |
//!
//! # What the wrap binds, and what the MAC binds
//!
//! The associated data of each wrapped key is [`RawHeader::wrap_digest`]: SHA-256 of the parts that never change in
//! the life of a volume (magic, format version, volume UUID, creation, kind of registry, trust anchors).
//!
//! The digest does not cover the whole header. If it did, a change of the replica table would have to wrap the volume
//! key anew in every slot, and nobody has all the passphrases at hand. For the same reason it leaves out the feature
//! bits: an upgrade may set one.
//!
//! The MAC covers everything, and with it *which and how many key slots exist* (promise P7). It is checked before any
//! field is believed.

use crate::crypto::{KdfParams, Keys, WrappedKey, sha256};
use crate::limits::{
    DEVICE_SIZE_MAX, DEVICE_SIZE_MIN, KDF_LABEL_WORK_MAX, KEY_SLOTS_MAX, REGISTRY_ID_MAX, REPLICAS_MAX,
    VOLUME_LABEL_MAX,
};
use crate::units::{BLOCK_SIZE, Uuid, is_plain};

use super::codec::{Reader, Writer};
use super::{Error, LabelId, data_blocks};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 6 * BLOCK_SIZE;

/// The only format version.
pub const FORMAT_VERSION: u32 = 2;

/// Longest label of a key slot, in bytes of UTF-8.
pub const SLOT_LABEL_MAX: usize = 32;

const MAGIC: [u8; 8] = *b"SCELLE\0\x01";
/// Type and version of a key slot: a passphrase by argon2id.
const SLOT_PASSPHRASE: [u8; 2] = [1, 1];

/// Features that this program knows, per class.
const COMPAT_KNOWN: u64 = 0;
const RO_COMPAT_KNOWN: u64 = 0;
const INCOMPAT_KNOWN: u64 = 0;

const NEEDS_AT: usize = 208;
const NEEDS_BYTES: usize = 16;
const REPLICAS_AT: usize = 512;
const REPLICA_BYTES: usize = 128;
const SLOTS_AT: usize = 4096;
const SLOT_BYTES: usize = 1024;
const CHECKSUM_AT: usize = 24512;
const MAC_AT: usize = CHECKSUM_AT + 32;

const _: () = assert!(144 + VOLUME_LABEL_MAX <= NEEDS_AT);
const _: () = assert!(NEEDS_AT + NEEDS_BYTES <= REPLICAS_AT);
const _: () = assert!(108 + SLOT_LABEL_MAX <= SLOT_BYTES);
const _: () = assert!(18 + REGISTRY_ID_MAX + 32 < REPLICA_BYTES);
const _: () = assert!(REPLICAS_AT + REPLICAS_MAX * REPLICA_BYTES <= SLOTS_AT);
const _: () = assert!(SLOTS_AT + KEY_SLOTS_MAX * SLOT_BYTES <= CHECKSUM_AT);
const _: () = assert!(MAC_AT + 32 == HEADER_BYTES);

/// One way to open the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// What the administrator calls it, at most [`SLOT_LABEL_MAX`] bytes.
    pub label: String,
    /// Cost of argon2id.
    pub params: KdfParams,
    /// Its salt.
    pub salt: [u8; 32],
    /// The volume key under the slot key.
    pub wrapped: WrappedKey,
}

/// One device of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// UUID in its header.
    pub device: Uuid,
    /// Identifier of its entry in the registry.
    pub registry_id: String,
    /// Digest of the identity it was enrolled with.
    pub identity: [u8; 32],
    /// The row of the replica in whose place this one comes once it has everything.
    pub replaces: Option<u16>,
}

/// Everything a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Compatible features.
    pub compat: u64,
    /// Read-only-compatible features.
    pub ro_compat: u64,
    /// Incompatible features.
    pub incompat: u64,
    /// The oldest version of this program that knows all of them, at most 16 bytes; empty when there are none.
    pub needs: String,
    /// Number of this rewrite.
    pub sequence: u64,
    /// The volume.
    pub volume: Uuid,
    /// The device.
    pub device: Uuid,
    /// Row of this device in [`replicas`](Self::replicas).
    pub replica_index: u16,
    /// The row that was enrolled last.
    pub last_row: u16,
    /// The volume's label, at most [`VOLUME_LABEL_MAX`] bytes, may be empty.
    pub label: String,
    /// Creation, seconds since 1970.
    pub created_unix_s: i64,
    /// Whether the volume was created under a laboratory registry.
    pub laboratory: bool,
    /// SHA-256 of the trust anchors.
    pub trust_digest: [u8; 32],
    /// Blocks of the data area, the same on every replica.
    pub data_blocks: u64,
    /// Size of this device in bytes, a multiple of 4096.
    pub device_bytes: u64,
    /// The key slots.
    pub key_slots: [Option<KeySlot>; KEY_SLOTS_MAX],
    /// The replica table.
    pub replicas: [Option<ReplicaRow>; REPLICAS_MAX],
}

impl Fields {
    /// Enrolled rows of the replica table.
    pub fn replica_count(&self) -> usize {
        self.replicas.iter().flatten().count()
    }

    /// This header for another device, which is replica `index`.
    ///
    /// # Errors
    /// As [`Header::new`].
    pub fn for_device(&self, index: u16, device: Uuid, device_bytes: u64) -> Result<Header, Error> {
        Header::new(Self { replica_index: index, device, device_bytes, ..self.clone() })
    }

    /// A free row for a device that is to be enrolled. It comes after the row that was enrolled last, so that a row is
    /// taken again as late as can be: what old roots say of its replica was said of another device.
    pub fn free_row(&self) -> Option<u16> {
        let rows = u16::try_from(REPLICAS_MAX).unwrap_or(u16::MAX);
        let after = (1..=rows).map(|step| (self.last_row + step) % rows);
        after.into_iter().find(|row| self.replicas.get(usize::from(*row)).is_some_and(Option::is_none))
    }

    /// Rows of the replica table up to the last enrolled one.
    pub fn rows(&self) -> usize {
        self.replicas.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }

    /// Digest of the parts that never change, bound to each wrapped key.
    pub fn wrap_digest(&self) -> [u8; 32] {
        sha256(&[
            b"scelle v2 wrap",
            &MAGIC,
            &FORMAT_VERSION.to_le_bytes(),
            &self.volume.0,
            &self.created_unix_s.to_le_bytes(),
            &[u8::from(!self.laboratory)],
            &self.trust_digest,
        ])
    }

    /// What it says of the volume: SHA-256 of the header's bytes before the checksum, with the fields that differ from
    /// device to device (UUID, replica index, size) as zero.
    pub fn digest(&self) -> [u8; 32] {
        let same = Self { device: Uuid::default(), replica_index: 0, device_bytes: 0, ..self.clone() };
        sha256(&[&same.encode()[..CHECKSUM_AT]])
    }

    /// How a root names it.
    pub fn id(&self) -> LabelId {
        LabelId { sequence: self.sequence, digest: self.digest() }
    }

    /// Whether this program may write to the volume: it knows every read-only-compatible feature of the volume.
    pub fn writable(&self) -> bool {
        self.ro_compat & !RO_COMPAT_KNOWN == 0
    }

    fn check(&self) -> Result<(), Error> {
        let ok = |holds: bool, field: &'static str| if holds { Ok(()) } else { Err(Error::Malformed { field }) };
        ok(text_is_valid(&self.needs, NEEDS_BYTES) && self.needs.is_ascii(), "version that is needed")?;
        let bits = self.incompat & !INCOMPAT_KNOWN;
        if bits != 0 {
            return Err(Error::UnknownIncompatFeature { bits, needs: self.needs.clone() });
        }
        ok(text_is_valid(&self.label, VOLUME_LABEL_MAX), "volume label")?;
        ok(
            (DEVICE_SIZE_MIN..=DEVICE_SIZE_MAX).contains(&self.device_bytes)
                && self.device_bytes.is_multiple_of(BLOCK_SIZE as u64),
            "device size",
        )?;
        ok((1..=data_blocks(self.device_bytes)).contains(&self.data_blocks), "data area")?;
        for slot in self.key_slots.iter().flatten() {
            ok(text_is_valid(&slot.label, SLOT_LABEL_MAX), "key slot label")?;
        }
        let work = self.key_slots.iter().flatten().map(|slot| slot.params.work()).fold(0, u64::saturating_add);
        ok(work <= KDF_LABEL_WORK_MAX, "work of the key slots")?;
        for row in self.replicas.iter().flatten() {
            ok(!row.registry_id.is_empty() && text_is_valid(&row.registry_id, REGISTRY_ID_MAX), "registry identifier")?;
            let is_row = |replaced: u16| self.replicas.get(usize::from(replaced)).is_some_and(Option::is_some);
            ok(row.replaces.is_none_or(is_row), "replica that is replaced")?;
        }
        ok(usize::from(self.last_row) < REPLICAS_MAX, "row that was enrolled last")?;
        let own = self.replicas.get(usize::from(self.replica_index)).and_then(Option::as_ref);
        ok(own.is_some_and(|row| row.device == self.device), "replica index")
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        Writer::new(&mut bytes, 0)
            .put(&MAGIC)
            .put(&FORMAT_VERSION.to_le_bytes())
            .skip(4)
            .put(&(self.compat & COMPAT_KNOWN).to_le_bytes())
            .put(&self.ro_compat.to_le_bytes())
            .put(&self.incompat.to_le_bytes())
            .put(&self.sequence.to_le_bytes())
            .put(&self.volume.0)
            .put(&self.device.0)
            .put(&self.replica_index.to_le_bytes())
            .put(&(u16::try_from(self.replica_count()).unwrap_or(u16::MAX)).to_le_bytes())
            .put(&[u8::from(!self.laboratory), length(&self.label)])
            .put(&self.last_row.to_le_bytes())
            .put(&self.created_unix_s.to_le_bytes())
            .put(&self.trust_digest)
            .put(&self.data_blocks.to_le_bytes())
            .put(&self.device_bytes.to_le_bytes())
            .put(self.label.as_bytes());
        Writer::new(&mut bytes, NEEDS_AT).put(self.needs.as_bytes());
        for (i, slot) in self.key_slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            Writer::new(&mut bytes, SLOTS_AT + i * SLOT_BYTES)
                .put(&SLOT_PASSPHRASE)
                .put(&[length(&slot.label), 0])
                .put(&slot.params.memory_kib.to_le_bytes())
                .put(&slot.params.iterations.to_le_bytes())
                .put(&slot.params.parallelism.to_le_bytes())
                .put(&slot.salt)
                .put(&slot.wrapped.nonce)
                .put(&slot.wrapped.ciphertext)
                .put(&slot.wrapped.tag)
                .put(slot.label.as_bytes());
        }
        for (i, row) in self.replicas.iter().enumerate() {
            let Some(row) = row else { continue };
            Writer::new(&mut bytes, REPLICAS_AT + i * REPLICA_BYTES)
                .put(&[1, length(&row.registry_id)])
                .put(&row.device.0)
                .put(row.registry_id.as_bytes())
                .skip(REGISTRY_ID_MAX - row.registry_id.len())
                .put(&row.identity)
                .put(&[row.replaces.map_or(0, |row| u8::try_from(row + 1).unwrap_or(u8::MAX))]);
        }
        let checksum = sha256(&[&bytes[..CHECKSUM_AT]]);
        bytes[CHECKSUM_AT..MAC_AT].copy_from_slice(&checksum);
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Error> {
        let mut r = Reader::new(bytes, 16);
        let (compat, ro_compat, incompat, sequence) = (r.u64(), r.u64(), r.u64(), r.u64());
        let (volume, device) = (Uuid(r.array()), Uuid(r.array()));
        let (replica_index, replica_count) = (r.u16(), r.u16());
        let laboratory = !flag(r.u8(), "kind of registry")?;
        let label_len = usize::from(r.u8());
        let last_row = r.u16();
        let created_unix_s = r.i64();
        let trust_digest = r.array();
        let (data_blocks, device_bytes) = (r.u64(), r.u64());
        let label = text(r.take(VOLUME_LABEL_MAX), label_len, "volume label")?;
        let needs = r.take(NEEDS_BYTES);
        let needs_len = needs.iter().position(|byte| *byte == 0).unwrap_or(NEEDS_BYTES);
        let needs = text(needs, needs_len, "version that is needed")?;
        let mut key_slots = [const { None }; KEY_SLOTS_MAX];
        for (i, slot) in key_slots.iter_mut().enumerate() {
            *slot = decode_slot(Reader::new(bytes, SLOTS_AT + i * SLOT_BYTES))?;
        }
        let mut replicas = [const { None }; REPLICAS_MAX];
        for (i, row) in replicas.iter_mut().enumerate() {
            *row = decode_replica(Reader::new(bytes, REPLICAS_AT + i * REPLICA_BYTES))?;
        }
        let fields = Self {
            compat,
            ro_compat,
            incompat,
            needs,
            sequence,
            volume,
            device,
            replica_index,
            last_row,
            label,
            created_unix_s,
            laboratory,
            trust_digest,
            data_blocks,
            device_bytes,
            key_slots,
            replicas,
        };
        fields.check()?;
        if fields.replica_count() != usize::from(replica_count) {
            return Err(Error::Malformed { field: "replica count" });
        }
        Ok(fields)
    }
}

/// A text's length. A header with a longer text than its field holds is refused before it is encoded.
fn length(text: &str) -> u8 {
    u8::try_from(text.len()).unwrap_or(u8::MAX)
}

fn decode_slot(mut r: Reader<'_>) -> Result<Option<KeySlot>, Error> {
    match r.array() {
        SLOT_PASSPHRASE => {}
        [0, 0] => return Ok(None),
        _ => return Err(Error::Malformed { field: "key slot type" }),
    }
    let label_len = usize::from(r.u8());
    r.take(1);
    let params = KdfParams { memory_kib: r.u32(), iterations: r.u32(), parallelism: r.u32() };
    let salt = r.array();
    let wrapped = WrappedKey { nonce: r.array(), ciphertext: r.array(), tag: r.array() };
    let label = text(r.take(SLOT_LABEL_MAX), label_len, "key slot label")?;
    Ok(Some(KeySlot { label, params, salt, wrapped }))
}

fn decode_replica(mut r: Reader<'_>) -> Result<Option<ReplicaRow>, Error> {
    if !flag(r.u8(), "replica state")? {
        return Ok(None);
    }
    let id_len = usize::from(r.u8());
    let device = Uuid(r.array());
    let registry_id = text(r.take(REGISTRY_ID_MAX), id_len, "registry identifier")?;
    let identity = r.array();
    let replaces = u16::from(r.u8()).checked_sub(1);
    Ok(Some(ReplicaRow { device, registry_id, identity, replaces }))
}

fn flag(byte: u8, field: &'static str) -> Result<bool, Error> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::Malformed { field }),
    }
}

fn text(room: &[u8], len: usize, field: &'static str) -> Result<String, Error> {
    room.get(..len)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .map(str::to_owned)
        .ok_or(Error::Malformed { field })
}

/// Whether a text is bounded, and harmless on a terminal. What a hostile device says about itself is shown before it is
/// authenticated.
fn text_is_valid(text: &str, max: usize) -> bool {
    text.len() <= max && text.chars().all(is_plain)
}

/// A whole header whose MAC was not checked. Every field is only a claim.
#[derive(Clone, Debug)]
pub struct RawHeader {
    fields: Fields,
    bytes: Box<[u8; HEADER_BYTES]>,
}

impl RawHeader {
    /// Decodes a header found on a device of `device_bytes` bytes. Checks magic, version, checksum, features and the
    /// bounds of every field, in this order.
    pub fn decode(bytes: &[u8; HEADER_BYTES], device_bytes: u64) -> Result<Self, Error> {
        if bytes[..8] != MAGIC {
            return Err(Error::NotScelle);
        }
        let found = Reader::new(bytes, 8).u32();
        let whole = sha256(&[&bytes[..CHECKSUM_AT]]) == bytes[CHECKSUM_AT..MAC_AT];
        // A newer version may keep its checksum elsewhere, so the checksum alone cannot tell damage from a newer
        // version. But if it matches once our own version is put in, only the version field was altered: that is
        // damage.
        if found != FORMAT_VERSION {
            let mut as_ours = *bytes;
            as_ours[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            let flipped = sha256(&[&as_ours[..CHECKSUM_AT]]) == bytes[CHECKSUM_AT..MAC_AT];
            return Err(if flipped { Error::Damaged } else { Error::UnsupportedVersion { found } });
        }
        if !whole {
            return Err(Error::Damaged);
        }
        let fields = Fields::decode(bytes)?;
        if fields.device_bytes > device_bytes {
            return Err(Error::Truncated { expected: fields.device_bytes, found: device_bytes });
        }
        Ok(Self { fields, bytes: Box::new(*bytes) })
    }

    /// What the header claims. It is enough to find the volume and to try its key slots, and good for no more.
    pub fn claims(&self) -> &Fields {
        &self.fields
    }

    /// Associated data of the wrapped keys: see the [module](self).
    pub fn wrap_digest(&self) -> [u8; 32] {
        self.fields.wrap_digest()
    }

    /// Checks the MAC. From here on the fields are facts.
    pub fn authenticate(self, keys: &Keys) -> Result<Header, Error> {
        // Invariant: the MAC is the last 32 bytes.
        let mac = self.bytes[MAC_AT..].try_into().expect("32 bytes of MAC");
        if keys.volume() != self.fields.volume || !keys.label_mac_verifies(&self.bytes[..MAC_AT], mac) {
            return Err(Error::ForgedHeader);
        }
        Ok(Header(self.fields))
    }
}

/// A header that was authenticated, or that this program made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header(Fields);

impl Header {
    /// A header of a new volume or of a new device of a volume.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a field outside its bounds, [`Error::Crypto`] for a key slot with refused parameters.
    pub fn new(fields: Fields) -> Result<Self, Error> {
        fields.check()?;
        for slot in fields.key_slots.iter().flatten() {
            slot.params.check()?;
        }
        Ok(Self(fields))
    }

    /// The same header with something changed, and the next sequence number.
    ///
    /// # Errors
    /// As [`Header::new`]. The header is lost then: a caller that still needs it keeps a clone.
    pub fn changed(mut self, change: impl FnOnce(&mut Fields)) -> Result<Self, Error> {
        let sequence = self.0.sequence;
        change(&mut self.0);
        self.0.sequence = sequence + 1;
        Self::new(self.0)
    }

    /// The bytes to write at each place of a header ([`HeaderCopy`](super::HeaderCopy)).
    pub fn encode(&self, keys: &Keys) -> [u8; HEADER_BYTES] {
        let mut bytes = self.0.encode();
        let mac = keys.label_mac(&bytes[..MAC_AT]);
        bytes[MAC_AT..].copy_from_slice(&mac);
        bytes
    }
}

impl std::ops::Deref for Header {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.0
    }
}
