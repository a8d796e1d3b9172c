//! Labels read, nothing authenticated: the first state of a volume's life.
//!
//! Whoever can write to one device can put any label there. So no label is believed alone, and none is needed: a device
//! whose label cannot be read, or does not authenticate, is set aside ([`Unfit`]). Whether the volume can be used without
//! it is decided later, as for a device that is not there.

use std::sync::Arc;

use super::assembled::{Assembled, Replica, Unfit};
use super::error::Error;
use super::members::places;
use crate::crypto::{Keys, Secret, VolumeKey};
use crate::label::{self, KeySlot};
use crate::limits::REPLICAS_MAX;
use crate::policy::ApprovedDevice;
use crate::units::Uuid;

struct Member {
    device: Arc<ApprovedDevice>,
    found: label::Found,
}

/// Devices whose labels were read and belong to one volume. Nothing of the labels is authenticated.
pub struct Sealed {
    /// The volumes that most of the devices claim to belong to: one, unless the two copies of labels differ.
    volumes: Vec<Uuid>,
    label: String,
    members: Vec<Member>,
    unfit: Vec<Unfit>,
}

impl Sealed {
    /// Reads the labels of approved devices. A device is set aside when its label cannot be read, or is of another volume
    /// than those of most others.
    ///
    /// # Errors
    /// When no label can be read, or the devices belong to different volumes and none is that of most.
    pub fn read(devices: Vec<ApprovedDevice>) -> Result<Self, Error> {
        if devices.is_empty() || devices.len() > REPLICAS_MAX {
            return Err(Error::DeviceCount { found: devices.len() });
        }
        let (mut read, mut unfit) = (Vec::with_capacity(devices.len()), Vec::new());
        for device in devices.into_iter().map(Arc::new) {
            match label::read(&*device) {
                Ok(found) => read.push(Member { device, found }),
                Err(why) => unfit.push(Unfit { device, why }),
            }
        }
        if read.is_empty() {
            return Err(Unfit::first(unfit));
        }
        let volumes = volumes(&read)?;
        let is_ours = |member: &Member| volumes.iter().any(|volume| member.found.claims_volume(*volume));
        let (members, others): (Vec<Member>, Vec<Member>) = read.into_iter().partition(is_ours);
        unfit.extend(others.into_iter().map(|Member { device, found }| Unfit {
            device,
            why: label::Error::OtherVolume { found: found.newest.claims().volume },
        }));
        // Invariant: most devices claim the first of `volumes`, so there is one.
        let label = members.first().map(|member| member.found.newest.claims().label.clone()).unwrap_or_default();
        Ok(Self { volumes, label, members, unfit })
    }

    /// The volume, as most of its labels claim.
    pub fn uuid(&self) -> Uuid {
        self.volumes.first().copied().unwrap_or_default()
    }

    /// The volume's label, as a label claims.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The devices, the blocks of the data area that all of them have, and how many replicas a label says there are.
    pub(super) fn to_compare(&self) -> (Vec<Arc<ApprovedDevice>>, u64, usize) {
        // What a label claims is bounded by the device.
        let room = |member: &Member| {
            let claimed = member.found.newest.claims().data_blocks;
            claimed.min(label::data_blocks(member.device.size_bytes()))
        };
        let blocks = self.members.iter().map(room).min().unwrap_or_default();
        let replicas = self.members.iter().map(|member| member.found.newest.claims().replica_count()).max();
        (self.members.iter().map(|member| member.device.clone()).collect(), blocks, replicas.unwrap_or_default())
    }

    /// The devices that were set aside, and why.
    pub fn set_aside(&self) -> Vec<String> {
        self.unfit.iter().map(ToString::to_string).collect()
    }

    /// Finds the volume key with `secret`, by the key slots of all labels, and authenticates every label. A device whose
    /// label the key does not authenticate is set aside.
    ///
    /// # Errors
    /// [`Code::WrongKey`](crate::problem::Code::WrongKey) after the full cost of every key slot;
    /// [`Code::LabelDamaged`](crate::problem::Code::LabelDamaged) when the key authenticates no label.
    pub fn unlock(self, secret: &Secret) -> Result<Assembled, Error> {
        let labels: Vec<&label::Found> = self.members.iter().map(|member| &member.found).collect();
        match label::unlock(&labels, &self.volumes, secret) {
            Ok(opened) => self.authenticate(opened.key.keys(opened.volume), Some(opened.way)),
            Err(label::Error::Crypto(error)) => Err(Error::Crypto(error)),
            Err(source) => Err(Error::Label { device: self.names(), source }),
        }
    }

    /// As [`Sealed::unlock`], for a caller that has got the volume key from a key slot before
    /// ([`Assembled::volume_key`]). So a volume is opened again without paying for the slot again.
    ///
    /// # Errors
    /// [`Code::LabelDamaged`](crate::problem::Code::LabelDamaged) when the key authenticates no label.
    pub fn unlock_again(self, key: &VolumeKey) -> Result<Assembled, Error> {
        let authenticates = |keys: &Keys| self.members.iter().any(|member| member.found.is_authentic(keys));
        let keys = self.volumes.iter().map(|volume| key.keys(*volume)).find(authenticates);
        match keys {
            Some(keys) => self.authenticate(keys, None),
            None => Err(Error::Label { device: self.names(), source: label::Error::ForgedHeader }),
        }
    }

    fn names(&self) -> String {
        self.members.iter().map(|member| member.device.name()).collect::<Vec<_>>().join(", ")
    }

    fn authenticate(self, keys: Keys, opened_by: Option<KeySlot>) -> Result<Assembled, Error> {
        let Self { members, mut unfit, .. } = self;
        let mut replicas = Vec::with_capacity(members.len());
        for Member { device, found } in members {
            let copies = found.authentic(&keys);
            match found.authenticate(&keys) {
                Ok((header, damaged)) => replicas.push(Replica { device, header, copies, damaged: places(damaged) }),
                Err(why) => unfit.push(Unfit { device, why }),
            }
        }
        Assembled::new(keys, opened_by, replicas, unfit)
    }
}

/// The volumes that more than half of the devices claim to belong to, with either copy of their labels.
fn volumes(members: &[Member]) -> Result<Vec<Uuid>, Error> {
    let mut claimed: Vec<Uuid> = Vec::new();
    for raw in members.iter().flat_map(|member| member.found.whole()) {
        if !claimed.contains(&raw.claims().volume) {
            claimed.push(raw.claims().volume);
        }
    }
    let votes = |volume: &Uuid| members.iter().filter(|member| member.found.claims_volume(*volume)).count();
    let most: Vec<Uuid> = claimed.into_iter().filter(|volume| 2 * votes(volume) > members.len()).collect();
    if !most.is_empty() {
        return Ok(most);
    }
    let named = |member: &Member| (member.device.name().to_owned(), member.found.newest.claims().volume);
    let mut named = members.iter().map(named);
    // Invariant: one device alone is more than half of the devices, so there are two.
    let (first, first_volume) = named.next().unwrap_or_default();
    let (second, second_volume) = named.find(|(_, volume)| *volume != first_volume).unwrap_or_default();
    Err(Error::MixedVolumes { first, first_volume, second, second_volume })
}
