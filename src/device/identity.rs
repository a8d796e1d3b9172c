//! What a device is: its identity, and its backing chain down to the leaves.

use serde::{Serialize, Serializer};

use super::{BlockDevice, memory::MemoryDevice};
use crate::registry::{Identity, Transport};

/// Major and minor number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNo {
    /// Major number: the driver.
    pub major: u32,
    /// Minor number: the unit.
    pub minor: u32,
}

impl DevNo {
    /// From a `dev_t` as fstat(2) and `LOOP_GET_STATUS64` return it.
    pub fn from_raw(dev: u64) -> Self {
        Self { major: libc::major(dev), minor: libc::minor(dev) }
    }

    /// Parses `MAJOR:MINOR`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl std::fmt::Display for DevNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Serialize for DevNo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The file under a loop device, as the driver itself names it (`LOOP_GET_STATUS64`, drivers/block/loop.c).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoopFile {
    /// Device number of the filesystem that holds the file.
    pub fs_device: DevNo,
    /// Inode of the file.
    pub inode: u64,
    /// First byte of the file that the device shows.
    pub offset: u64,
    /// Type of that filesystem by the mount table, if it is mounted where we can see it.
    pub fs_type: Option<String>,
}

/// What could not be learnt about a node. Each is a reason to refuse it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "detail", rename_all = "kebab-case")]
pub enum Problem {
    /// An attribute or ioctl failed, or gave what makes no sense.
    Unreadable(String),
    /// The chain goes deeper than is followed.
    TooDeep,
    /// The chain has more nodes than are followed.
    TooManyNodes,
    /// The chain comes back to a node on the way to itself.
    Cycle,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(what) => write!(f, "cannot be read: {what}"),
            Self::TooDeep => write!(f, "the chain goes deeper than {} nodes", crate::limits::CHAIN_DEPTH_MAX),
            Self::TooManyNodes => write!(f, "the chain has more than {} nodes", crate::limits::CHAIN_NODES_MAX),
            Self::Cycle => f.write_str("the chain is a circle"),
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
    /// The kernel's sequence number of this disk (since boot): it changes when the medium does.
    pub diskseq: Option<u64>,
    /// `write back` or `write through`, as the kernel treats it.
    pub write_cache: Option<String>,
    /// Where the kernel has it: the evidence for the transport.
    pub sysfs_path: String,
    /// The file, for a loop device.
    pub loop_file: Option<LoopFile>,
    /// What could not be learnt.
    pub problems: Vec<Problem>,
    /// The devices below.
    pub children: Vec<Node>,
}

impl Node {
    /// A node of which nothing is known but its name.
    pub fn bare(name: &str, transport: Transport) -> Self {
        Self {
            name: name.to_owned(),
            dev: None,
            transport,
            wwid: None,
            serial: None,
            model: None,
            vendor: None,
            size_bytes: 0,
            logical_block: 0,
            diskseq: None,
            write_cache: None,
            sysfs_path: String::new(),
            loop_file: None,
            problems: Vec::new(),
            children: Vec::new(),
        }
    }

    /// The identity tuple as the registry knows it: the fields that entries of this transport have.
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
    /// The device is not the one that was opened any more, or changed while it was read.
    #[error("{device} changed: {detail}")]
    Changed {
        /// Name of the device.
        device: String,
        /// What differs.
        detail: String,
    },
    /// The kernel does not tell.
    #[error("{device}: {detail}")]
    Unreadable {
        /// Name of the device.
        device: String,
        /// What failed.
        detail: String,
    },
}

/// A block device that can say what it is.
pub trait IdentifiedDevice: BlockDevice {
    /// Reads the identity and the backing chain anew.
    ///
    /// # Errors
    /// When the device is gone, or is not the one that was opened.
    fn facts(&self) -> Result<DeviceFacts, FactsError>;
}

impl IdentifiedDevice for MemoryDevice {
    fn facts(&self) -> Result<DeviceFacts, FactsError> {
        let mut root = Node::bare(self.name(), Transport::Memory);
        root.size_bytes = self.size_bytes();
        root.logical_block = self.logical_block_size();
        Ok(DeviceFacts { root })
    }
}
