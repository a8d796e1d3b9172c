//! Labels read, nothing authenticated: the first state of a volume's life.

use std::sync::Arc;

use super::assembled::{Assembled, Replica};
use super::error::Error;
use super::labels::areas;
use crate::crypto::{Keys, Secret, VolumeKey};
use crate::label;
use crate::limits::REPLICAS_MAX;
use crate::policy::ApprovedDevice;
use crate::units::Uuid;

struct Member {
    device: Arc<ApprovedDevice>,
    found: label::Found,
}

/// Devices whose labels were read and belong to one volume. Nothing of the labels is authenticated.
pub struct Sealed {
    uuid: Uuid,
    label: String,
    members: Vec<Member>,
}

impl Sealed {
    /// Reads the labels of approved devices.
    ///
    /// # Errors
    /// When one is not a replica, two are the same, or they belong to different volumes.
    pub fn read(devices: Vec<ApprovedDevice>) -> Result<Self, Error> {
        if devices.is_empty() || devices.len() > REPLICAS_MAX {
            return Err(Error::DeviceCount { found: devices.len() });
        }
        let mut members: Vec<Member> = Vec::with_capacity(devices.len());
        for device in devices {
            let found =
                label::read(&device).map_err(|source| Error::Label { device: device.name().to_owned(), source })?;
            for earlier in &members {
                let (ours, theirs) = (found.newest.claims(), earlier.found.newest.claims());
                if ours.volume != theirs.volume {
                    return Err(Error::MixedVolumes {
                        first: earlier.device.name().to_owned(),
                        first_volume: theirs.volume,
                        second: device.name().to_owned(),
                        second_volume: ours.volume,
                    });
                }
                if ours.device == theirs.device || ours.replica_index == theirs.replica_index {
                    return Err(Error::SameDevice {
                        first: earlier.device.name().to_owned(),
                        second: device.name().to_owned(),
                    });
                }
            }
            members.push(Member { device: Arc::new(device), found });
        }
        // Invariant: at least one device was given.
        let claims = members.first().map(|m| m.found.newest.claims()).ok_or(Error::DeviceCount { found: 0 })?;
        Ok(Self { uuid: claims.volume, label: claims.label.clone(), members })
    }

    /// The volume, as its labels claim.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The volume's label, as its labels claim.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Finds the volume key with `secret` and authenticates every label.
    ///
    /// # Errors
    /// [`Code::WrongKey`](crate::problem::Code::WrongKey) after the full cost of every key slot;
    /// [`Code::LabelDamaged`](crate::problem::Code::LabelDamaged) for a label that the
    /// key does not authenticate.
    pub fn unlock(self, secret: &Secret) -> Result<Assembled, Error> {
        let mut members = self.members.into_iter();
        // Invariant: `read` does not return without a member.
        let Some(first) = members.next() else { return Err(Error::DeviceCount { found: 0 }) };
        let name = first.device.name().to_owned();
        let unlocked = first.found.unlock(secret).map_err(|source| match source {
            label::Error::Crypto(error) => Error::Crypto(error),
            source => Error::Label { device: name, source },
        })?;
        let keys = unlocked.keys;
        let first = Replica { device: first.device, header: unlocked.header, damaged: areas(unlocked.damaged) };
        Self::authenticate(keys, vec![first], members)
    }

    /// As [`Sealed::unlock`], for a caller that has got the volume key from a key slot before
    /// ([`Assembled::volume_key`]). So a volume is opened again without paying for the slot again.
    ///
    /// # Errors
    /// [`Code::LabelDamaged`](crate::problem::Code::LabelDamaged) for a label that the key does not authenticate.
    pub fn unlock_again(self, key: &VolumeKey) -> Result<Assembled, Error> {
        Self::authenticate(key.keys(self.uuid), Vec::new(), self.members.into_iter())
    }

    fn authenticate(
        keys: Keys,
        mut replicas: Vec<Replica>,
        members: impl Iterator<Item = Member>,
    ) -> Result<Assembled, Error> {
        for member in members {
            let name = member.device.name().to_owned();
            let (header, damaged) =
                member.found.authenticate(&keys).map_err(|source| Error::Label { device: name, source })?;
            replicas.push(Replica { device: member.device, header, damaged: areas(damaged) });
        }
        Assembled::new(keys, replicas)
    }
}
