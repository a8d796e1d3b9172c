//! The label copies of a volume's devices: which are damaged, and how they are written anew. What a label is, is told
//! in [`label`].

use super::assembled::Replica;
use super::error::Error;
use crate::crypto::Keys;
use crate::device::AlignedBuf;
use crate::label::{self, Header};
use crate::mirror::{Mirror, State};

/// The copies that could not be read.
pub(super) fn areas(damaged: Vec<(label::Area, label::Error)>) -> Vec<label::Area> {
    damaged.into_iter().map(|(area, _)| area).collect()
}

/// Writes anew those label copies of one replica that are damaged or older than the volume's. A replica that fails is
/// fenced.
pub(super) fn repair_label(volume: &Header, keys: &Keys, replica: &Replica, mirror: &Mirror) -> Result<(), Error> {
    let outdated = replica.header.sequence != volume.sequence;
    let index = replica.index();
    let in_use = matches!(mirror.state(index).0, State::InSync | State::Resyncing);
    if !in_use || replica.damaged.is_empty() && !outdated {
        return Ok(());
    }
    let mut header = replica.header.clone();
    if outdated {
        let mut fields = label::Fields::clone(volume);
        fields.device = header.device;
        fields.replica_index = header.replica_index;
        fields.device_bytes = header.device_bytes;
        let device = replica.device.name().to_owned();
        header = Header::new(fields).map_err(|source| Error::Label { device, source })?;
    }
    let areas: &[label::Area] = if outdated { &label::Area::BOTH } else { &replica.damaged };
    let mut block = AlignedBuf::zeroed(label::HEADER_BYTES);
    block.copy_from_slice(&header.encode(keys));
    for area in areas {
        log::warn!("{}: label copy {area:?} is written anew", replica.device.name());
        if let Err(error) = replica.device.write_durably(&[area.offset(header.device_bytes)], &block) {
            mirror.failed(index, &error);
            break;
        }
    }
    Ok(())
}
