//! What a device is: its identity, and its backing chain down to the leaves. Plain data; [`chain`](super::chain) reads
//! it.

use serde::Serialize;

use crate::os::DevNo;
use crate::registry::{Identity, Transport};

/// The folder of the heads of NVMe subsystems in sysfs.
pub const NVME_HEADS: &str = "/sys/devices/virtual/nvme-subsystem/";

/// The file under a loop device, as the driver itself names it (`LOOP_GET_STATUS64`, drivers/block/loop.c).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoopFile {
    /// Device number of the filesystem that holds the file.
    pub fs_device: DevNo,
    /// Inode of the file.
    pub inode: u64,
    /// First byte of the file that the device shows.
    pub offset: u64,
    /// Type of that filesystem, by its number in the mount table. The files of some filesystems (btrfs, overlay) show
    /// numbers that the table does not have: then it is the type of the mount that the file's path leads to. The path
    /// serves to name the filesystem, never to decide.
    pub fs_type: Option<String>,
}

/// One controller of an NVMe subsystem: one of the ways that the bytes of the subsystem's namespaces may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Controller {
    /// The kernel's name, e.g. `nvme0`.
    pub name: String,
    /// Number of its own node, a character device.
    pub dev: Option<DevNo>,
    /// How the controller is reached.
    pub transport: Transport,
    /// Address on that transport, as the kernel shows it.
    pub address: Option<String>,
    /// The controller's folder in sysfs.
    pub sysfs_path: String,
}

/// What could not be learnt about a node, or does not fit. Each doubt is a reason to refuse the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "detail", rename_all = "kebab-case")]
pub enum Doubt {
    /// An attribute or ioctl failed, or gave something that makes no sense.
    Unreadable(String),
    /// The chain goes deeper than is followed.
    TooDeep,
    /// The chain has more nodes than are followed.
    TooManyNodes,
    /// The chain comes back to a node on the way to itself.
    Cycle,
    /// The node changed while it was read.
    Changed(String),
    /// A device that can be asked who it is did not answer, or its answer is unusable.
    Silent(String),
    /// The device's answer differs from what the kernel shows of it.
    Disagrees(String),
    /// Two sources differ about what is below.
    ChainDisagrees(String),
    /// What is below may be about to change.
    Unstable(String),
    /// Bytes go, or may go, to where nothing can be examined.
    Hidden(String),
    /// The device has a volatile cache that the kernel would not flush: nothing written could be called durable.
    CacheNotFlushed(String),
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(what) => write!(f, "cannot be read: {what}"),
            Self::TooDeep => write!(f, "the chain goes deeper than {} nodes", crate::limits::CHAIN_DEPTH_MAX),
            Self::TooManyNodes => write!(f, "the chain has more than {} nodes", crate::limits::CHAIN_NODES_MAX),
            Self::Cycle => f.write_str("the chain is a circle"),
            Self::Changed(what) => write!(f, "changed while it was read: {what}"),
            Self::Silent(what) => write!(f, "does not say who it is: {what}"),
            Self::Disagrees(what) => write!(f, "is not what the kernel remembers: {what}"),
            Self::ChainDisagrees(what) => write!(f, "what is below is told in two ways: {what}"),
            Self::Unstable(what) => write!(f, "what is below may change: {what}"),
            Self::Hidden(what) => write!(f, "cannot be examined wholly: {what}"),
            Self::CacheNotFlushed(what) => write!(f, "flushes would not be sent to it: {what}"),
        }
    }
}

/// One node of a backing chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The kernel's name, e.g. `nvme0n1`.
    pub name: String,
    /// Device number; `None` for a device in memory.
    pub dev: Option<DevNo>,
    /// How it is reached.
    pub transport: Transport,
    /// What the device is, in words, when the transport alone does not say.
    pub kind: Option<String>,
    /// World-wide identifier.
    pub wwid: Option<String>,
    /// Serial number, trimmed.
    pub serial: Option<String>,
    /// Model, trimmed.
    pub model: Option<String>,
    /// Vendor, trimmed.
    pub vendor: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub logical_block: u32,
    /// Physical block size in bytes, if told.
    pub physical_block: Option<u32>,
    /// Whether the kernel refuses writes to it, if told.
    pub read_only: Option<bool>,
    /// The kernel's sequence number of this disk (since boot): it changes when the medium does.
    pub diskseq: Option<u64>,
    /// `write back` or `write through`, as the kernel treats it.
    pub write_cache: Option<String>,
    /// Whether single writes can be forced to the medium, if told.
    pub fua: Option<bool>,
    /// The device's folder in sysfs: the evidence for the transport.
    pub sysfs_path: String,
    /// Drivers of the devices it hangs on, nearest first.
    pub drivers: Vec<String>,
    /// Vendor and device number (hex) of the PCI function it hangs on, e.g. `144d:a80a`.
    pub pci: Option<String>,
    /// Every controller of an NVMe namespace.
    pub controllers: Vec<Controller>,
    /// Name of an iSCSI target.
    pub iscsi_target: Option<String>,
    /// What else was found, in words: level of a RAID, targets of a device-mapper table, ...
    pub details: Vec<String>,
    /// By which question the device itself confirmed what the kernel shows, if it was asked and confirmed it.
    pub confirmed_by: Option<&'static str>,
    /// The file, for a loop device.
    pub loop_file: Option<LoopFile>,
    /// What could not be learnt or does not fit.
    pub problems: Vec<Doubt>,
    /// The devices below.
    pub children: Vec<Node>,
}

impl Node {
    /// A node of which nothing is known but its name and its transport.
    pub fn bare(name: &str, transport: Transport) -> Self {
        Self {
            name: name.to_owned(),
            dev: None,
            transport,
            kind: None,
            wwid: None,
            serial: None,
            model: None,
            vendor: None,
            size_bytes: 0,
            logical_block: 0,
            physical_block: None,
            read_only: None,
            diskseq: None,
            write_cache: None,
            fua: None,
            sysfs_path: String::new(),
            drivers: Vec::new(),
            pci: None,
            controllers: Vec::new(),
            iscsi_target: None,
            details: Vec::new(),
            confirmed_by: None,
            loop_file: None,
            problems: Vec::new(),
            children: Vec::new(),
        }
    }

    /// The identity tuple in the form of the registry: the fields that entries of this transport have.
    pub fn identity(&self) -> Identity {
        let mut identity = Identity::empty(self.transport);
        match self.transport {
            Transport::Loop => {
                if let Some(file) = &self.loop_file {
                    identity.fs_device = Some(file.fs_device.to_string());
                    identity.inode = Some(file.inode);
                }
            }
            Transport::Memory => identity.name = Some(self.name.clone()),
            Transport::Virtio => identity.serial.clone_from(&self.serial),
            _ => {
                identity.wwid.clone_from(&self.wwid);
                identity.serial.clone_from(&self.serial);
                identity.model.clone_from(&self.model);
            }
        }
        identity.size = Some(self.size_bytes);
        identity
    }

    /// Transport, with the kind of device where the transport does not say it.
    pub fn reached_by(&self) -> String {
        match &self.kind {
            Some(kind) => format!("{} ({kind})", self.transport),
            None => self.transport.to_string(),
        }
    }

    /// Whether more ways may come to it at any time, to which the kernel writes at once: it is the head of a subsystem of
    /// NVMe, which any number of controllers may join, or a partition of one.
    pub fn may_gain_ways(&self) -> bool {
        self.sysfs_path.starts_with(NVME_HEADS)
    }

    /// Whether nothing is below.
    pub fn is_leaf(&self) -> bool {
        self.children.is_empty()
    }
}

/// A device's identity and backing chain, read at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceFacts {
    /// The device itself, with what is below it.
    pub root: Node,
}

/// Why a device's facts could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The device is no longer the one that was opened, or it changed while it was read.
    #[error("{device} changed: {detail}")]
    Changed {
        /// Name of the device.
        device: String,
        /// What differs.
        detail: String,
    },
    /// The kernel does not tell what the device is.
    #[error("{device}: {detail}")]
    Unreadable {
        /// Name of the device.
        device: String,
        /// What failed.
        detail: String,
    },
}
