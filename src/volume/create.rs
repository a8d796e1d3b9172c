//! Making a volume. Nothing is written before every device has been examined, and the headers come last, so that a
//! volume exists wholly or not at all. Whether a device is approved was decided before ([`policy`](crate::policy)).

use std::collections::HashSet;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::content;
use super::error::{Error, System};
use crate::audit::{self, Event, RegistryFacts, ReplicaFacts};
use crate::crypto::{KdfParams, Secret, VolumeKey, check_strength, derive_slot_key, random_bytes, wrap_key};
use crate::device::AlignedBuf;
use crate::fs::Fs;
use crate::label::{self, Area, Fields, Header, HeaderCopy, KeySlot, ReplicaRow, Root};
use crate::limits::{KEY_SLOTS_MAX, REPLICAS_MAX};
use crate::mirror::{Mirror, State};
use crate::pages::{Store, StoreOptions};
use crate::policy::{ApprovedDevice, Kind, examine_set};
use crate::registry::VerifiedRegistry;
use crate::units::Uuid;

/// What the administrator decides about a new volume.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Label of the volume, at most 64 bytes.
    pub label: String,
    /// Cost of the first key slot.
    pub kdf: KdfParams,
    /// Owner of the root folder.
    pub root_uid: u32,
    /// Group of the root folder.
    pub root_gid: u32,
    /// Permissions of the root folder, e.g. `0o755`.
    pub root_mode: u32,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { label: String::new(), kdf: KdfParams::DEFAULT, root_uid: 0, root_gid: 0, root_mode: 0o755 }
    }
}

/// Makes a volume on `devices`, which become its replicas 0, 1, … in this order.
///
/// # Errors
/// When a device is given twice, too small, already holds something, or fails; or when the secret is too easy to guess,
/// which only a laboratory takes. Before the first error of a device
/// nothing is written anywhere.
pub fn create(
    devices: Vec<ApprovedDevice>,
    registry: &VerifiedRegistry,
    secret: &Secret,
    options: &CreateOptions,
) -> Result<Uuid, Error> {
    if devices.is_empty() || devices.len() > REPLICAS_MAX {
        return Err(Error::DeviceCount { found: devices.len() });
    }
    let devices: Vec<Arc<ApprovedDevice>> = devices.into_iter().map(Arc::new).collect();
    refuse_unfit(&devices, registry)?;
    if !registry.is_laboratory() {
        check_strength(secret, &[&options.label])?;
    }
    let key = VolumeKey::generate()?;
    let headers = headers(&devices, registry, &key, secret, options)?;
    let volume = headers.first().map(|header| header.volume).unwrap_or_default();
    let keys = key.keys(volume);
    // The passphrase was asked for and its key derived. A device that was approved before that may be another one by
    // now.
    devices.iter().try_for_each(|device| device.confirm(registry))?;
    for (device, header) in devices.iter().zip(&headers) {
        // Everything of the label is written but the header, so a crash from here on leaves no volume.
        prepare(device, header.device_bytes)?;
    }
    let replicas = devices.iter().map(|device| (Some(device.clone()), State::InSync)).collect();
    let mirror = Mirror::new(replicas).map_err(|source| System::error("starting a replica's thread", source))?;
    let store = Store::open(
        Arc::new(mirror),
        StoreOptions {
            keys: key.keys(volume),
            volume,
            total_blocks: headers.first().map(|header| header.data_blocks).unwrap_or_default(),
            device_bytes: headers.iter().map(|header| header.device_bytes).collect(),
            root: Root {
                registry_version: registry.version(),
                registry: registry.document_digest(),
                label: headers.first().map(|header| header.id()).unwrap_or_default(),
                ..Root::default()
            },
            epoch: 1,
        },
    )?;
    let fs = Fs::format(store.clone(), options.root_mode, options.root_uid, options.root_gid)?;
    audit::begin_with(&fs, volume, created(&devices, registry, options))?;
    fs.sync()?;
    drop(fs);
    let all = (1 << devices.len()) - 1;
    if store.mirror().in_sync() != all {
        let reasons = (0..devices.len()).filter_map(|i| store.mirror().state(i).1).collect::<Vec<_>>().join("; ");
        return Err(Error::System {
            action: "writing the first commit".to_owned(),
            source: std::io::Error::other(reasons),
        });
    }
    for (device, header) in devices.iter().zip(&headers) {
        let mut block = AlignedBuf::zeroed(label::HEADER_BYTES);
        block.copy_from_slice(&header.encode(&keys));
        for at in HeaderCopy::ALL {
            write(device, at.offset(header.device_bytes), &block)?;
        }
        flush(device)?;
    }
    Ok(volume)
}

/// Writes the label areas of a device that is to become a replica, but for the header.
pub(super) fn prepare(device: &ApprovedDevice, device_bytes: u64) -> Result<(), Error> {
    let area =
        label::new_area().map_err(|source| Error::Label { device: device.name().to_owned(), source: source.into() })?;
    for at in Area::BOTH {
        write(device, at.offset(device_bytes), &area)?;
    }
    flush(device)
}

/// Refuses devices on which something lies, a device that is given twice, and devices that the policy does not let hold
/// a volume together.
fn refuse_unfit(devices: &[Arc<ApprovedDevice>], registry: &VerifiedRegistry) -> Result<(), Error> {
    let mut identities: HashSet<[u8; 32]> = HashSet::new();
    for device in devices {
        content::refuse(device)?;
        if !identities.insert(device.registry_entry().identity_digest) {
            let name = device.name().to_owned();
            return Err(Error::SameDevice { first: name.clone(), second: name });
        }
    }
    let entries: Vec<_> = devices.iter().map(|device| device.registry_entry()).collect();
    let entries: Vec<&_> = entries.iter().map(|entry| &**entry).collect();
    let reasons = examine_set(registry, &entries);
    if reasons.is_empty() { Ok(()) } else { Err(Error::Registry(reasons)) }
}

/// The first record of the trail.
fn created(devices: &[Arc<ApprovedDevice>], registry: &VerifiedRegistry, options: &CreateOptions) -> Event {
    let replica = |(index, device): (usize, &Arc<ApprovedDevice>)| {
        let entry = device.registry_entry();
        ReplicaFacts::new(index, &entry.registry_id, device.name(), Some(&entry.site), State::InSync)
    };
    let facts = RegistryFacts::of(registry);
    Event::VolumeCreated {
        label: options.label.clone(),
        sovereign: facts.kind == Kind::Sovereign.as_str(),
        registry: facts,
        replicas: devices.iter().enumerate().map(replica).collect(),
    }
}

fn headers(
    devices: &[Arc<ApprovedDevice>],
    registry: &VerifiedRegistry,
    key: &VolumeKey,
    secret: &Secret,
    options: &CreateOptions,
) -> Result<Vec<Header>, Error> {
    let volume = Uuid::from_random(random_bytes()?);
    let mut rows: [Option<ReplicaRow>; REPLICAS_MAX] = Default::default();
    for (row, device) in rows.iter_mut().zip(devices) {
        let entry = device.registry_entry();
        *row = Some(ReplicaRow {
            device: Uuid::from_random(random_bytes()?),
            registry_id: entry.registry_id.clone(),
            identity: entry.identity_digest,
            replaces: None,
        });
    }
    let bytes = |device: &ApprovedDevice| label::usable_bytes(device.size_bytes());
    let smallest = devices.iter().map(|device| label::data_blocks(bytes(device))).min().unwrap_or_default();
    let mut fields = Fields {
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        needs: String::new(),
        sequence: 1,
        volume,
        device: Uuid::default(),
        replica_index: 0,
        last_row: u16::try_from(devices.len().saturating_sub(1)).unwrap_or(u16::MAX),
        label: options.label.clone(),
        created_unix_s: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
        laboratory: registry.is_laboratory(),
        trust_digest: registry.anchors_digest(),
        data_blocks: smallest,
        device_bytes: 0,
        key_slots: Default::default(),
        replicas: rows,
    };
    let salt = random_bytes::<32>()?;
    let slot_key = derive_slot_key(secret, &salt, &options.kdf)?;
    let wrapped = wrap_key(key, &slot_key, &fields.wrap_digest())?;
    let mut slots: [Option<KeySlot>; KEY_SLOTS_MAX] = Default::default();
    slots[0] = Some(KeySlot { label: "first".to_owned(), params: options.kdf, salt, wrapped });
    fields.key_slots = slots;
    let header = |(index, device): (usize, &Arc<ApprovedDevice>)| {
        let row = fields.replicas.get(index).and_then(Option::as_ref);
        let uuid = row.map(|row| row.device).unwrap_or_default();
        let header = fields.for_device(u16::try_from(index).unwrap_or(u16::MAX), uuid, bytes(device));
        header.map_err(|source| Error::Label { device: device.name().to_owned(), source })
    };
    devices.iter().enumerate().map(header).collect()
}

pub(super) fn write(device: &ApprovedDevice, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    device.write_at(offset, &[IoSlice::new(bytes)]).map_err(|error| {
        System::error(&format!("writing the label of {}", device.name()), std::io::Error::other(error))
    })
}

pub(super) fn flush(device: &ApprovedDevice) -> Result<(), Error> {
    device.flush().map_err(|error| System::error(&format!("flushing {}", device.name()), std::io::Error::other(error)))
}
