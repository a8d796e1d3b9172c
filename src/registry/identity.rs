//! Transports, and the identity tuple of each.

use serde::{Deserialize, Serialize};

/// How a node of a backing chain is reached. The names are stable: registries and messages use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// A file on a filesystem, through the loop driver. Laboratory only.
    Loop,
    /// virtio-blk: the identity is the hypervisor's word.
    Virtio,
    /// NVMe on PCI Express.
    NvmePcie,
    /// NVMe over TCP.
    NvmeTcp,
    /// NVMe over RDMA.
    NvmeRdma,
    /// NVMe over Fibre Channel.
    NvmeFc,
    /// Serial Attached SCSI.
    Sas,
    /// Serial ATA.
    Sata,
    /// SCSI over Fibre Channel.
    Fc,
    /// SCSI over TCP.
    Iscsi,
    /// SCSI through virtio.
    VirtioScsi,
    /// SCSI through Hyper-V.
    HyperV,
    /// USB mass storage.
    Usb,
    /// MMC and SD cards.
    Mmc,
    /// A partition of another device.
    Partition,
    /// Device mapper.
    Dm,
    /// Linux software RAID.
    Md,
    /// bcache.
    Bcache,
    /// Network block device.
    Nbd,
    /// Ceph RADOS block device.
    Rbd,
    /// DRBD.
    Drbd,
    /// Compressed memory.
    Zram,
    /// Memory of this process (tests). Laboratory only; no device of the kernel has it.
    Memory,
    /// Anything else.
    Unknown,
}

impl Transport {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Virtio => "virtio",
            Self::NvmePcie => "nvme-pcie",
            Self::NvmeTcp => "nvme-tcp",
            Self::NvmeRdma => "nvme-rdma",
            Self::NvmeFc => "nvme-fc",
            Self::Sas => "sas",
            Self::Sata => "sata",
            Self::Fc => "fc",
            Self::Iscsi => "iscsi",
            Self::VirtioScsi => "virtio-scsi",
            Self::HyperV => "hyper-v",
            Self::Usb => "usb",
            Self::Mmc => "mmc",
            Self::Partition => "partition",
            Self::Dm => "dm",
            Self::Md => "md",
            Self::Bcache => "bcache",
            Self::Nbd => "nbd",
            Self::Rbd => "rbd",
            Self::Drbd => "drbd",
            Self::Zram => "zram",
            Self::Memory => "memory",
            Self::Unknown => "unknown",
        }
    }

    /// The fields an entry of this transport must have, all of them and no others. `None`: there is no identity by
    /// which a device of this transport could be approved, so no policy can list it.
    pub const fn identity_fields(self) -> Option<&'static [IdentityField]> {
        use IdentityField::{FsDevice, Inode, Model, Name, Serial, Size, Wwid};
        match self {
            Self::NvmePcie | Self::Sas | Self::Sata => Some(&[Wwid, Serial, Model, Size]),
            Self::Virtio => Some(&[Serial, Size]),
            Self::Loop => Some(&[FsDevice, Inode, Size]),
            Self::Memory => Some(&[Name, Size]),
            _ => None,
        }
    }

    /// Whether listing this transport makes a registry a laboratory one.
    pub const fn is_laboratory(self) -> bool {
        matches!(self, Self::Loop | Self::Memory)
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One field of an identity tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdentityField {
    /// World-wide identifier, as the kernel prints it (`eui.…`, `naa.…`, `t10.…`).
    Wwid,
    /// Serial number, trimmed.
    Serial,
    /// Model, trimmed.
    Model,
    /// Size in bytes.
    Size,
    /// `MAJOR:MINOR` of the filesystem that holds a loop device's file.
    FsDevice,
    /// Inode of a loop device's file.
    Inode,
    /// Name of a device in memory.
    Name,
}

impl IdentityField {
    /// Every field.
    pub const ALL: [Self; 7] =
        [Self::Wwid, Self::Serial, Self::Model, Self::Size, Self::FsDevice, Self::Inode, Self::Name];

    /// The field's name in the registry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wwid => "wwid",
            Self::Serial => "serial",
            Self::Model => "model",
            Self::Size => "size",
            Self::FsDevice => "fs_device",
            Self::Inode => "inode",
            Self::Name => "name",
        }
    }

    /// Whether the field names one device among all (a model or a size does not): used to say *which* entry a device
    /// almost matches.
    pub const fn is_naming(self) -> bool {
        matches!(self, Self::Wwid | Self::Serial | Self::Inode | Self::Name)
    }
}

/// The identity tuple of a device: of an entry (complete for its transport) or as read from the device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// How it is reached.
    pub transport: Transport,
    /// See [`IdentityField::Wwid`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwid: Option<String>,
    /// See [`IdentityField::Serial`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// See [`IdentityField::Model`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// See [`IdentityField::FsDevice`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs_device: Option<String>,
    /// See [`IdentityField::Inode`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// See [`IdentityField::Name`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// See [`IdentityField::Size`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl Identity {
    /// An identity without any field.
    pub const fn empty(transport: Transport) -> Self {
        Self { transport, wwid: None, serial: None, model: None, fs_device: None, inode: None, name: None, size: None }
    }

    /// The field's value as text, if there is one.
    pub fn field(&self, field: IdentityField) -> Option<String> {
        match field {
            IdentityField::Wwid => self.wwid.clone(),
            IdentityField::Serial => self.serial.clone(),
            IdentityField::Model => self.model.clone(),
            IdentityField::Size => self.size.map(|n| n.to_string()),
            IdentityField::FsDevice => self.fs_device.clone(),
            IdentityField::Inode => self.inode.map(|n| n.to_string()),
            IdentityField::Name => self.name.clone(),
        }
    }

    /// SHA-256 of a canonical encoding: the transport's name, then each field's name and value, each preceded by its
    /// length (u32, little-endian), in the order of [`IdentityField::ALL`], absent ones left out.
    pub fn digest(&self) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        let mut put = |text: &str| {
            hash.update((text.len() as u32).to_le_bytes());
            hash.update(text.as_bytes());
        };
        put("scelle device identity 1");
        put(self.transport.as_str());
        for field in IdentityField::ALL {
            if let Some(value) = self.field(field) {
                put(field.as_str());
                put(&value);
            }
        }
        hash.finalize().into()
    }
}
