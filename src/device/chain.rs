//! Reading a device's identity and backing chain from the kernel.
//!
//! The evidence for a transport is where sysfs has the device, not a name that somebody chose; what is not recognised
//! with certainty is [`Transport::Unknown`]. Nothing here decides: the policy does.

use std::io;
use std::path::{Path, PathBuf};

use super::identity::{DevNo, LoopFile, Node, Problem};
use super::sys::System;
use crate::limits;
use crate::registry::Transport;

/// Reads the node of `dev` and everything below it. What cannot be learnt is said in [`Node::problems`].
pub fn read(system: &dyn System, dev: DevNo) -> Node {
    let mut walk = Walk { system, path: Vec::new(), nodes: 0 };
    walk.node(dev)
}

struct Walk<'a> {
    system: &'a dyn System,
    /// The devices between the root and the current node.
    path: Vec<DevNo>,
    nodes: usize,
}

impl Walk<'_> {
    fn node(&mut self, dev: DevNo) -> Node {
        self.nodes += 1;
        let blocked = if self.path.contains(&dev) {
            Some(Problem::Cycle)
        } else if self.path.len() >= limits::CHAIN_DEPTH_MAX {
            Some(Problem::TooDeep)
        } else if self.nodes > limits::CHAIN_NODES_MAX {
            Some(Problem::TooManyNodes)
        } else {
            None
        };
        if let Some(problem) = blocked {
            let mut node = Node::bare(&dev.to_string(), Transport::Unknown);
            node.dev = Some(dev);
            node.problems.push(problem);
            return node;
        }
        self.path.push(dev);
        let node = self.examine(dev);
        self.path.pop();
        node
    }

    fn examine(&mut self, dev: DevNo) -> Node {
        let link = PathBuf::from(format!("/sys/dev/block/{dev}"));
        let mut node = Node::bare(&dev.to_string(), Transport::Unknown);
        node.dev = Some(dev);
        let dir = match self.system.resolve(&link) {
            Ok(dir) => dir,
            Err(e) => {
                node.problems.push(unreadable(&link, &e));
                return node;
            }
        };
        node.sysfs_path = dir.to_string_lossy().into_owned();
        if let Some(name) = dir.file_name() {
            node.name = name.to_string_lossy().into_owned();
        }
        let mut reader = Reader { system: self.system, dir: &dir, problems: Vec::new() };
        if reader.text("dev").and_then(|t| DevNo::parse(&t)) != Some(dev) {
            reader.problems.push(Problem::Unreadable(format!("{} is not the directory of {dev}", dir.display())));
        }
        node.size_bytes = reader.number("size").unwrap_or(0).saturating_mul(512);
        node.diskseq = reader.optional_number("diskseq");
        let partition = reader.text("partition").is_some();
        let disk = if partition { dir.parent().unwrap_or(&dir).to_path_buf() } else { dir.clone() };
        let mut queue = Reader { system: self.system, dir: &disk, problems: Vec::new() };
        node.logical_block = queue.number("queue/logical_block_size").and_then(|n| n.try_into().ok()).unwrap_or(0);
        node.write_cache = queue.text("queue/write_cache");
        let slaves = reader.names("slaves");
        node.problems.append(&mut reader.problems);
        node.problems.append(&mut queue.problems);

        if partition {
            node.transport = Transport::Partition;
            self.add_child(&mut node, &disk);
        } else if !slaves.is_empty() {
            node.transport = composite(&node.name);
            for slave in slaves {
                self.add_child(&mut node, &dir.join("slaves").join(slave));
            }
        } else {
            node.transport = leaf_transport(self.system, &dir);
            self.identify(&mut node, &dir, dev);
        }
        node
    }

    /// Adds the device whose sysfs directory is `dir`.
    fn add_child(&mut self, node: &mut Node, dir: &Path) {
        let mut reader = Reader { system: self.system, dir, problems: Vec::new() };
        match reader.text("dev").and_then(|t| DevNo::parse(&t)) {
            Some(dev) => {
                // Depth and number are bounded by `node`; a device may have many children, though.
                if self.nodes <= limits::CHAIN_NODES_MAX {
                    let child = self.node(dev);
                    node.children.push(child);
                } else {
                    node.problems.push(Problem::TooManyNodes);
                }
            }
            None => node.problems.push(Problem::Unreadable(format!("{}/dev", dir.display()))),
        }
        node.problems.append(&mut reader.problems);
    }

    /// Fills in the identity of a node that sysfs shows nothing below.
    fn identify(&mut self, node: &mut Node, dir: &Path, dev: DevNo) {
        let mut reader = Reader { system: self.system, dir, problems: Vec::new() };
        match node.transport {
            Transport::Loop => self.identify_loop(node, dev),
            Transport::Virtio => node.serial = reader.text("serial"),
            // Also of one with a transport that is not recognised: a refusal can then name the entry it resembles.
            _ if node.name.starts_with("nvme") => {
                node.wwid = reader.text("wwid");
                node.serial = reader.text("device/serial");
                node.model = reader.text("device/model");
            }
            _ => {
                node.vendor = reader.text("device/vendor");
                node.model = reader.text("device/model");
                node.wwid = reader.text("device/wwid");
                node.serial = reader.serial_page();
            }
        }
        node.problems.append(&mut reader.problems);
    }

    fn identify_loop(&mut self, node: &mut Node, dev: DevNo) {
        let status = match self.system.loop_status(&node.name, dev) {
            Ok(status) => status,
            Err(e) => {
                node.problems.push(Problem::Unreadable(format!("status of the loop device: {e}")));
                return;
            }
        };
        if let Some(below) = status.block_device {
            let child = self.node(below);
            node.children.push(child);
            return;
        }
        let fs_type = match filesystem_type(self.system, status.fs_device) {
            Ok(fs_type) => fs_type,
            Err(e) => {
                node.problems.push(Problem::Unreadable(format!("/proc/self/mountinfo: {e}")));
                None
            }
        };
        node.loop_file =
            Some(LoopFile { fs_device: status.fs_device, inode: status.inode, offset: status.offset, fs_type });
        // Major 0: a filesystem without a block device of its own (tmpfs, NFS, FUSE, btrfs, ...), nothing to follow.
        if status.fs_device.major != 0 {
            let child = self.node(status.fs_device);
            node.children.push(child);
        }
    }
}

/// The transport of a device that combines those in its `slaves` folder.
fn composite(name: &str) -> Transport {
    let prefixes =
        [("dm-", Transport::Dm), ("md", Transport::Md), ("bcache", Transport::Bcache), ("drbd", Transport::Drbd)];
    prefixes.iter().find(|(prefix, _)| name.starts_with(prefix)).map_or(Transport::Unknown, |(_, t)| *t)
}

/// The transport of a whole disk, by where the kernel has it.
fn leaf_transport(system: &dyn System, dir: &Path) -> Transport {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let parts: Vec<String> = dir.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    let has = |prefix: &str| {
        parts.iter().any(|p| p.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
    };
    let numbered =
        |prefix: &str| name.strip_prefix(prefix).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
    let is_virtual = parts.iter().any(|p| p == "virtual");
    if is_virtual && numbered("loop") {
        return Transport::Loop;
    }
    if numbered("nvme") {
        return nvme_transport(system, dir, has("pci"));
    }
    if numbered("dm-") || numbered("md") || numbered("bcache") || numbered("drbd") {
        return composite(&name);
    }
    if is_virtual {
        return match () {
            () if numbered("zram") => Transport::Zram,
            () if numbered("nbd") => Transport::Nbd,
            () => Transport::Unknown,
        };
    }
    if numbered("rbd") {
        return Transport::Rbd;
    }
    if numbered("mmcblk") {
        return Transport::Mmc;
    }
    // .../virtioN/block/vdX is virtio-blk; .../virtioN/hostM/... is a SCSI bus behind virtio.
    if dir.parent().is_some_and(|p| p.ends_with("block"))
        && parts.iter().rev().nth(2).is_some_and(|p| p.strip_prefix("virtio").is_some_and(is_number))
    {
        return Transport::Virtio;
    }
    if !has("host") {
        return Transport::Unknown;
    }
    // Order matters: a bridge on the way (USB) or a network below (iSCSI, Fibre Channel) decides over what it imitates.
    let vmbus = |p: &String| p.to_ascii_lowercase().starts_with("vmbus");
    if has("usb") {
        Transport::Usb
    } else if has("session") {
        Transport::Iscsi
    } else if has("rport-") {
        Transport::Fc
    } else if parts.iter().any(vmbus) {
        Transport::HyperV
    } else if has("virtio") {
        Transport::VirtioScsi
    } else if has("end_device-") && has("pci") {
        Transport::Sas
    } else if has("ata") && has("pci") {
        Transport::Sata
    } else {
        Transport::Unknown
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// The transport of an NVMe namespace: that of its controller, or of *every* controller of its subsystem when the
/// kernel shows a multipath head. A single path that is not PCI Express decides.
fn nvme_transport(system: &dyn System, dir: &Path, on_pci: bool) -> Transport {
    let of = |controller: &Path| -> Transport {
        let text = system.read(&controller.join("transport"), limits::SYSFS_BYTES_MAX).ok().flatten();
        match text.as_deref().map(|t| t.trim_ascii()) {
            Some(b"pcie") => Transport::NvmePcie,
            Some(b"tcp") => Transport::NvmeTcp,
            Some(b"rdma") => Transport::NvmeRdma,
            Some(b"fc") => Transport::NvmeFc,
            _ => Transport::Unknown,
        }
    };
    let device = dir.join("device");
    if on_pci {
        return of(&device);
    }
    let controllers: Vec<String> = system
        .list(&device)
        .unwrap_or_default()
        .into_iter()
        .filter(|n| n.strip_prefix("nvme").is_some_and(is_number))
        .collect();
    if controllers.is_empty() {
        return of(&device);
    }
    let mut transports = controllers.iter().map(|c| of(&device.join(c)));
    transports.find(|t| *t != Transport::NvmePcie).unwrap_or(Transport::NvmePcie)
}

/// Type of the mounted filesystem with this device number (proc_pid_mountinfo(5)), if the mount table has it once or
/// always with the same type.
fn filesystem_type(system: &dyn System, dev: DevNo) -> io::Result<Option<String>> {
    let table = system.read(Path::new("/proc/self/mountinfo"), limits::PROC_BYTES_MAX)?.unwrap_or_default();
    let mut found: Option<String> = None;
    for line in String::from_utf8_lossy(&table).lines() {
        if line.split(' ').nth(2).and_then(DevNo::parse) != Some(dev) {
            continue;
        }
        let Some(fs_type) = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()) else { continue };
        match &found {
            Some(other) if other != fs_type => return Ok(None),
            _ => found = Some(fs_type.to_owned()),
        }
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::Unreadable(format!("{}: {error}", path.display()))
}

/// Reads attributes of one sysfs directory and collects what fails.
struct Reader<'a> {
    system: &'a dyn System,
    dir: &'a Path,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        let path = self.dir.join(name);
        match self.system.read(&path, limits::SYSFS_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(e) => {
                self.problems.push(unreadable(&path, &e));
                None
            }
        }
    }

    /// An attribute as trimmed text; `None` when it is absent or empty. Text that is not UTF-8 or has control
    /// characters is a problem, not a value.
    fn text(&mut self, name: &str) -> Option<String> {
        let bytes = self.bytes(name)?;
        self.clean(name, &bytes)
    }

    fn clean(&mut self, name: &str, bytes: &[u8]) -> Option<String> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.trim_matches(|c: char| c.is_whitespace() || c == '\0'),
            Err(_) => "\u{1}",
        };
        if text.chars().any(char::is_control) || text.len() > limits::REGISTRY_TEXT_MAX {
            self.problems.push(Problem::Unreadable(format!("{}/{name} is not plain text", self.dir.display())));
            return None;
        }
        (!text.is_empty()).then(|| text.to_owned())
    }

    fn optional_number(&mut self, name: &str) -> Option<u64> {
        let text = self.text(name)?;
        let number = text.parse().ok();
        if number.is_none() {
            self.problems.push(Problem::Unreadable(format!("{}/{name} is not a number", self.dir.display())));
        }
        number
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        let before = self.problems.len();
        let number = self.optional_number(name);
        if number.is_none() && self.problems.len() == before {
            self.problems.push(Problem::Unreadable(format!("{}/{name} is missing", self.dir.display())));
        }
        number
    }

    fn names(&mut self, name: &str) -> Vec<String> {
        let path = self.dir.join(name);
        match self.system.list(&path) {
            Ok(names) => names,
            Err(e) => {
                self.problems.push(unreadable(&path, &e));
                Vec::new()
            }
        }
    }

    /// The unit serial number of a SCSI disk: VPD page 0x80 (SPC-4, 7.8.18): 4 bytes of header, then the text.
    fn serial_page(&mut self) -> Option<String> {
        let page = self.bytes("device/vpd_pg80")?;
        let length = usize::from(*page.get(2)?) << 8 | usize::from(*page.get(3)?);
        let text = page.get(4..4 + length)?.to_vec();
        self.clean("device/vpd_pg80", &text)
    }
}
