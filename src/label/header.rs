//! The header: one block of 4096 bytes, integers little-endian.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0    | 8    | magic: `SCELLE`, 0, 1 |
//! | 8    | 4    | format version, 1 |
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
//! | 86   | 2    | zero |
//! | 88   | 8    | time of creation, seconds since 1970, signed |
//! | 96   | 32   | SHA-256 of the trust anchors |
//! | 128  | 8    | blocks of the data area |
//! | 136  | 8    | size of the device in bytes, a multiple of 4096 |
//! | 144  | 64   | volume label, UTF-8 of characters that show themselves |
//! | 208  | 304  | zero, reserved |
//! | 512  | 1280 | key slots: 8 × 160 bytes |
//! | 1792 | 2048 | replica table: 16 × 128 bytes |
//! | 3840 | 192  | zero, reserved |
//! | 4032 | 32   | SHA-256 of bytes 0..4032: finds damage before a key is known |
//! | 4064 | 32   | HMAC-SHA-256 with the label key of bytes 0..4064 |
//!
//! Key slot:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0   | 1  | 0 empty, 1 in use |
//! | 1   | 1  | key derivation: 1 argon2id |
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
//! | 140 | 20 | zero |
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
//! | 114 | 14 | zero |
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
use super::{Error, data_blocks};

/// Bytes of a header.
pub const HEADER_BYTES: usize = BLOCK_SIZE;

/// The only format version.
pub const FORMAT_VERSION: u32 = 1;

/// Longest label of a key slot, in bytes of UTF-8.
pub const SLOT_LABEL_MAX: usize = 32;

const MAGIC: [u8; 8] = *b"SCELLE\0\x01";
const KDF_ARGON2ID: u8 = 1;

/// Features that this program knows, per class.
const COMPAT_KNOWN: u64 = 0;
const RO_COMPAT_KNOWN: u64 = 0;
const INCOMPAT_KNOWN: u64 = 0;

const SLOTS_AT: usize = 512;
const SLOT_BYTES: usize = 160;
const REPLICAS_AT: usize = SLOTS_AT + KEY_SLOTS_MAX * SLOT_BYTES;
const REPLICA_BYTES: usize = 128;
const CHECKSUM_AT: usize = 4032;
const MAC_AT: usize = CHECKSUM_AT + 32;

const _: () = assert!(144 + VOLUME_LABEL_MAX <= SLOTS_AT);
const _: () = assert!(108 + SLOT_LABEL_MAX <= SLOT_BYTES);
const _: () = assert!(18 + REGISTRY_ID_MAX + 32 <= REPLICA_BYTES);
const _: () = assert!(REPLICAS_AT + REPLICAS_MAX * REPLICA_BYTES <= CHECKSUM_AT);
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
    /// Number of this rewrite.
    pub sequence: u64,
    /// The volume.
    pub volume: Uuid,
    /// The device.
    pub device: Uuid,
    /// Row of this device in [`replicas`](Self::replicas).
    pub replica_index: u16,
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

    /// Rows of the replica table up to the last enrolled one.
    pub fn rows(&self) -> usize {
        self.replicas.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }

    /// Digest of the parts that never change, bound to each wrapped key.
    pub fn wrap_digest(&self) -> [u8; 32] {
        sha256(&[
            b"scelle v1 wrap",
            &MAGIC,
            &FORMAT_VERSION.to_le_bytes(),
            &self.volume.0,
            &self.created_unix_s.to_le_bytes(),
            &[u8::from(!self.laboratory)],
            &self.trust_digest,
        ])
    }

    /// Whether this program may write to the volume: it knows every read-only-compatible feature of the volume.
    pub fn writable(&self) -> bool {
        self.ro_compat & !RO_COMPAT_KNOWN == 0
    }

    fn check(&self) -> Result<(), Error> {
        let bits = self.incompat & !INCOMPAT_KNOWN;
        if bits != 0 {
            return Err(Error::UnknownIncompatFeature { bits });
        }
        let ok = |holds: bool, field: &'static str| if holds { Ok(()) } else { Err(Error::Malformed { field }) };
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
        }
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
            .put(&[u8::from(!self.laboratory), length(&self.label), 0, 0])
            .put(&self.created_unix_s.to_le_bytes())
            .put(&self.trust_digest)
            .put(&self.data_blocks.to_le_bytes())
            .put(&self.device_bytes.to_le_bytes())
            .put(self.label.as_bytes());
        for (i, slot) in self.key_slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            Writer::new(&mut bytes, SLOTS_AT + i * SLOT_BYTES)
                .put(&[1, KDF_ARGON2ID, length(&slot.label), 0])
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
                .put(&row.identity);
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
        r.take(2);
        let created_unix_s = r.i64();
        let trust_digest = r.array();
        let (data_blocks, device_bytes) = (r.u64(), r.u64());
        let label = text(r.take(VOLUME_LABEL_MAX), label_len, "volume label")?;
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
            sequence,
            volume,
            device,
            replica_index,
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
    if !flag(r.u8(), "key slot state")? {
        return Ok(None);
    }
    if r.u8() != KDF_ARGON2ID {
        return Err(Error::Malformed { field: "key derivation" });
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
    Ok(Some(ReplicaRow { device, registry_id, identity: r.array() }))
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
        // Invariant: the MAC is the last 32 bytes of the block.
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

    /// The block to write at the beginning of each label area.
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
