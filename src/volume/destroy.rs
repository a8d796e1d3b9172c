//! Destroying a replica: both label areas of its device are overwritten, and with them every key slot.
//!
//! Without a key slot nobody can open what the device still holds, unless another replica has the slots of the same
//! volume and somebody knows a secret for one of them. What a solid-state drive keeps of overwritten blocks is beyond
//! what any program can reach.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::create::{flush, write};
use super::error::{Error, System};
use crate::device::AlignedBuf;
use crate::label::{self, Area};
use crate::limits::LABEL_SIZE;
use crate::policy::ApprovedDevice;
use crate::registry::VerifiedRegistry;
use crate::units::{Uuid, to_usize};

/// A replica that is to be destroyed.
pub struct Doomed {
    device: Arc<ApprovedDevice>,
    /// What its label claims, as far as it can be read: nobody has authenticated it.
    claims: Option<Claims>,
    /// Where label areas are, or may be.
    areas: BTreeSet<u64>,
}

/// What the label of such a replica claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The volume.
    pub volume: Uuid,
    /// Its label.
    pub label: String,
    /// Row of the replica table.
    pub index: usize,
    /// Replicas of the volume.
    pub replicas: usize,
}

impl Doomed {
    /// Reads the label of an approved device. Nothing is written.
    ///
    /// # Errors
    /// [`label::Error::NotScelle`] when nothing of a label is there; what reading says.
    pub fn read(device: impl Into<Arc<ApprovedDevice>>) -> Result<Self, Error> {
        let device = device.into();
        let refuse = |source| Err(Error::Label { device: device.name().to_owned(), source });
        let mut sizes = vec![device.size_bytes()];
        let claims = match label::read(&*device) {
            Ok(found) => {
                sizes.extend(found.whole().iter().map(|raw| raw.claims().device_bytes));
                let newest = found.newest.claims();
                Some(Claims {
                    volume: newest.volume,
                    label: newest.label.clone(),
                    index: usize::from(newest.replica_index),
                    replicas: newest.replica_count(),
                })
            }
            Err(source @ (label::Error::NotScelle | label::Error::DeviceSize { .. } | label::Error::Device(_))) => {
                return refuse(source);
            }
            // Somebody's label, though damaged.
            Err(_) => None,
        };
        let areas = sizes.into_iter().flat_map(|size| Area::BOTH.map(|area| area.offset(size))).collect();
        Ok(Self { device, claims, areas })
    }

    /// The device.
    pub fn device(&self) -> &ApprovedDevice {
        &self.device
    }

    /// What its label claims; nothing when no copy is whole.
    pub fn claims(&self) -> Option<&Claims> {
        self.claims.as_ref()
    }

    /// Overwrites both label areas with zeros, and reads them back from the device. The policy is asked again first:
    /// somebody's answer may have taken its time.
    ///
    /// # Errors
    /// When the device is not approved any more, fails a transfer, or does not give back what was written.
    pub fn destroy(&self, registry: &VerifiedRegistry) -> Result<(), Error> {
        self.device.confirm(registry)?;
        let device = &self.device;
        let zeros = AlignedBuf::zeroed(to_usize(LABEL_SIZE));
        for at in &self.areas {
            write(device, *at, &zeros)?;
        }
        flush(device)?;
        let mut found = AlignedBuf::scratch(to_usize(LABEL_SIZE));
        for at in &self.areas {
            device
                .read_at(*at, &mut found)
                .map_err(|source| Error::Label { device: device.name().to_owned(), source: source.into() })?;
            if found[..] != zeros[..] {
                let what = std::io::Error::other("the device gave other bytes than were written");
                return Err(System::error(&format!("reading {} back at byte {at}", device.name()), what));
            }
        }
        Ok(())
    }
}
