//! Transports, and the identity tuple of each.

use serde::{Deserialize, Serialize};

/// Makes [`Transport`] from its rows: variant, name, identity fields, `laboratory` when only a laboratory has it,
/// meaning. A row without identity fields is a transport by which no device can be approved.
macro_rules! transports {
    ($($variant:ident $name:literal $([$($field:ident),*])? $($laboratory:ident)? : $text:literal;)*) => {
        /// How a node of a backing chain is reached. The names are stable: registries and messages use them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
        pub enum Transport {$(
            #[doc = $text]
            #[serde(rename = $name)]
            $variant,
        )*}

        impl Transport {
            /// Every transport.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self {$(Self::$variant => $name,)*}
            }

            /// What it is.
            pub const fn text(self) -> &'static str {
                match self {$(Self::$variant => $text,)*}
            }

            /// The fields that an entry of this transport must have, all of them and no others. `None`: there is no
            /// identity by which a device of this transport could be approved, so no policy can list the transport.
            pub const fn identity_fields(self) -> Option<&'static [IdentityField]> {
                match self {$(Self::$variant => {
                    let fields: &[&[IdentityField]] = &[$(&[$(IdentityField::$field),*])?];
                    if fields.is_empty() { None } else { Some(fields[0]) }
                })*}
            }

            /// Whether listing this transport makes a registry a laboratory one.
            pub const fn is_laboratory(self) -> bool {
                match self {$(Self::$variant => !matches!(stringify!($($laboratory)?).as_bytes(), b""),)*}
            }
        }
    };
}

transports! {
    Loop "loop" [FsDevice, Inode, Size] laboratory: "A file on a filesystem, through the loop driver. Laboratory only.";
    Virtio "virtio" [Serial, Size]: "virtio-blk: the identity is the hypervisor's word.";
    NvmePcie "nvme-pcie" [Wwid, Serial, Model, Size]: "NVMe on PCI Express.";
    NvmeTcp "nvme-tcp": "NVMe over TCP.";
    NvmeRdma "nvme-rdma": "NVMe over RDMA.";
    NvmeFc "nvme-fc": "NVMe over Fibre Channel.";
    Sas "sas" [Wwid, Serial, Model, Size]: "Serial Attached SCSI.";
    Sata "sata" [Wwid, Serial, Model, Size]: "Serial ATA.";
    Fc "fc": "SCSI over Fibre Channel.";
    Iscsi "iscsi": "SCSI over TCP.";
    VirtioScsi "virtio-scsi": "SCSI through virtio.";
    HyperV "hyper-v": "SCSI through Hyper-V.";
    Thunderbolt "thunderbolt": "PCI Express through a port that is open to the outside: Thunderbolt, USB4.";
    Usb "usb": "USB mass storage.";
    Mmc "mmc": "MMC and SD cards.";
    Partition "partition": "A partition of another device.";
    Dm "dm": "Device mapper.";
    Md "md": "Linux software RAID.";
    Bcache "bcache": "bcache.";
    Nbd "nbd": "Network block device.";
    Rbd "rbd": "Ceph RADOS block device.";
    Drbd "drbd": "DRBD.";
    Zram "zram": "Compressed memory.";
    Memory "memory" [Name, Size] laboratory: "Memory of the process that tests. Laboratory only; no device of the kernel has it.";
    Unknown "unknown": "Anything else.";
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

    /// Whether the field names one device among all; a model or a size does not. A refusal uses such fields to say
    /// *which* entry a device almost matches.
    pub const fn is_naming(self) -> bool {
        matches!(self, Self::Wwid | Self::Serial | Self::Inode | Self::Name)
    }
}

/// The identity tuple of a device. In an entry it is complete for its transport; otherwise it holds what was read from
/// the device.
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

    /// SHA-256 of a canonical encoding: the text `scelle device identity 1`, the transport's name, then the name and
    /// the value of each field. Each text is preceded by its length (u32, little-endian). Fields come in the order of
    /// [`IdentityField::ALL`]; absent fields are left out.
    pub fn digest(&self) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        let mut put = |text: &str| {
            hash.update((u32::try_from(text.len()).unwrap_or(u32::MAX)).to_le_bytes());
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
