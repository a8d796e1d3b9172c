//! Reading a device's identity and backing chain from the kernel, and the identity also from the device.
//!
//! Nothing here decides: the policy does. Whatever cannot be learnt, or is told in two ways, goes into
//! [`Node::problems`], and each problem refuses the device.
//!
//! | node | what is below, by | and refused when |
//! |---|---|---|
//! | partition | the disk whose folder holds it | |
//! | dm | dependencies of the table (`DM_TABLE_DEPS`) and `slaves/` | they differ; suspended; a second table waits; a target that maps nothing or is not known |
//! | md | `slaves/`, which has members, spares and journal | `md/dev-*` names others; the bitmap is a file |
//! | bcache | `slaves/`: backing and caching devices | |
//! | drbd | `slaves/`: the local disk | always: the peer is invisible here |
//! | loop | `LOOP_GET_STATUS64`: the block device, or the one that holds the file's filesystem | |
//!
//! A node that combines devices can be pointed elsewhere under an open descriptor, without a trace in its disk sequence
//! number. So no policy can list dm, md or bcache, not even with approved leaves below. (Instead of LUKS over an
//! approved disk, give scelle the disk: it encrypts and mirrors by itself.) Such nodes are followed nevertheless, so
//! that the refusal can name every device below.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use super::attributes::{Reader, unreadable};
use super::identity::{Doubt, LoopFile, Node};
use super::sys::{System, Target};
use super::{live, mounts, transport};
use crate::limits;
use crate::os::DevNo;
use crate::registry::Transport;

/// Reads the node of `dev` and everything below it. Whatever cannot be learnt goes into [`Node::problems`].
pub fn read(system: &dyn System, dev: DevNo) -> Node {
    walk(system, dev, None)
}

/// As [`read`], for a device that is open: the device is asked through its descriptor.
pub fn read_open(system: &dyn System, dev: DevNo, open: BorrowedFd<'_>) -> Node {
    walk(system, dev, Some(open))
}

fn walk(system: &dyn System, dev: DevNo, open: Option<BorrowedFd<'_>>) -> Node {
    let mut walk = Walk { system, open: open.map(|fd| (dev, fd)), path: Vec::new(), nodes: 0 };
    walk.node(dev)
}

struct Walk<'a> {
    system: &'a dyn System,
    open: Option<(DevNo, BorrowedFd<'a>)>,
    /// The devices between the root and the current node.
    path: Vec<DevNo>,
    nodes: usize,
}

impl Walk<'_> {
    fn node(&mut self, dev: DevNo) -> Node {
        self.nodes += 1;
        let blocked = if self.path.contains(&dev) {
            Some(Doubt::Cycle)
        } else if self.path.len() >= limits::CHAIN_DEPTH_MAX {
            Some(Doubt::TooDeep)
        } else if self.nodes > limits::CHAIN_NODES_MAX {
            Some(Doubt::TooManyNodes)
        } else {
            None
        };
        let mut node = Node::bare(&dev.to_string(), Transport::Unknown);
        node.dev = Some(dev);
        if let Some(problem) = blocked {
            node.problems.push(problem);
            return node;
        }
        self.path.push(dev);
        let link = PathBuf::from(format!("/sys/dev/block/{dev}"));
        match self.system.resolve(&link) {
            Ok(dir) => self.examine(&mut node, &dir, dev),
            Err(e) => node.problems.push(unreadable(&link, &e)),
        }
        self.path.pop();
        node
    }

    fn examine(&mut self, node: &mut Node, dir: &Path, dev: DevNo) {
        node.sysfs_path = dir.to_string_lossy().into_owned();
        if let Some(name) = dir.file_name() {
            node.name = name.to_string_lossy().into_owned();
        }
        let mut reader = Reader::new(self.system, dir);
        if reader.text("dev").and_then(|t| DevNo::parse(&t)) != Some(dev) {
            reader.problems.push(Doubt::Unreadable(format!("{} is not the directory of {dev}", dir.display())));
        }
        let partition = reader.text("partition").is_some();
        // A partition has no disk sequence number of its own.
        node.diskseq = if partition { None } else { reader.number("diskseq") };
        node.size_bytes = reader.number("size").unwrap_or(0).saturating_mul(512);
        node.read_only = reader.optional_number("ro").map(|n| n != 0);
        let slaves = reader.names("slaves");
        let disk = if partition { dir.parent().unwrap_or(dir) } else { dir };
        self.queue(node, disk);
        let driver = transport::block_driver(self.system, dev.major);
        if partition {
            node.transport = Transport::Partition;
            self.add_child_of(node, disk);
        } else if let Some(stacked) = transport::stacked(driver.as_deref()) {
            node.transport = stacked;
            self.examine_stacked(node, dir, dev, &slaves);
        } else if !slaves.is_empty() {
            node.kind = driver.map(|driver| format!("a device of the driver {driver} over others"));
            slaves.iter().for_each(|slave| self.add_child_of(node, &dir.join("slaves").join(slave)));
        } else {
            transport::find(self.system, dir, driver.as_deref(), node);
            self.surroundings(node, dir);
            self.identify(node, dir, dev);
        }
        // The kernel counts a disk's sequence number up when its medium changes.
        if let Some(before) = node.diskseq
            && let after = reader.number("diskseq")
            && after != Some(before)
        {
            let after = after.map_or("none".to_owned(), |n| n.to_string());
            reader.problems.push(Doubt::Changed(format!("disk sequence number {before} became {after}")));
        }
        node.problems.append(&mut reader.problems);
    }

    /// What the kernel's queue of a disk shows.
    fn queue(&self, node: &mut Node, disk: &Path) {
        let mut queue = Reader::new(self.system, disk);
        let block = queue.number("queue/logical_block_size");
        node.logical_block = block.and_then(|n| n.try_into().ok()).unwrap_or(0);
        node.physical_block = queue.optional_number("queue/physical_block_size").and_then(|n| n.try_into().ok());
        node.write_cache = queue.text("queue/write_cache");
        node.fua = queue.optional_number("queue/fua").map(|n| n != 0);
        node.problems.append(&mut queue.problems);
    }

    /// Adds the device whose sysfs directory is `dir`.
    fn add_child_of(&mut self, node: &mut Node, dir: &Path) {
        let mut reader = Reader::new(self.system, dir);
        match reader.text("dev").and_then(|t| DevNo::parse(&t)) {
            Some(dev) => self.add_child(node, dev),
            None => node.problems.push(Doubt::Unreadable(format!("{}/dev", dir.display()))),
        }
        node.problems.append(&mut reader.problems);
    }

    fn add_child(&mut self, node: &mut Node, dev: DevNo) {
        // `node` bounds the depth and the number of nodes; but one device may have very many children.
        if self.nodes <= limits::CHAIN_NODES_MAX {
            let child = self.node(dev);
            node.children.push(child);
        } else if node.problems.last() != Some(&Doubt::TooManyNodes) {
            node.problems.push(Doubt::TooManyNodes);
        }
    }

    /// Fills in a node that combines devices: the devices that sysfs shows, and what its driver says about them.
    fn examine_stacked(&mut self, node: &mut Node, dir: &Path, dev: DevNo, slaves: &[String]) {
        slaves.iter().for_each(|slave| self.add_child_of(node, &dir.join("slaves").join(slave)));
        let mut reader = Reader::new(self.system, dir);
        match node.transport {
            Transport::Dm => self.examine_dm(node, dev),
            Transport::Md => examine_md(node, &mut reader, slaves),
            Transport::Bcache => details(node, &mut reader, &["bcache/state", "bcache/cache_mode"]),
            Transport::Drbd => node.problems.push(Doubt::Hidden("its peer is another host's device".into())),
            _ => {}
        }
        node.problems.append(&mut reader.problems);
    }

    fn examine_dm(&mut self, node: &mut Node, dev: DevNo) {
        let table = match self.system.dm_table(dev) {
            Ok(table) => table,
            Err(e) => {
                node.problems.push(Doubt::Unreadable(format!("table of the device mapper: {e}")));
                return;
            }
        };
        node.details.push(format!("targets {}", table.targets.join(" ")));
        for target in table.targets.iter().filter(|t| !DM_TARGETS.contains(&t.as_str())) {
            node.problems.push(Doubt::Hidden(format!("a target of its table is {target:?}, which maps to no device")));
        }
        if table.suspended {
            node.problems.push(Doubt::Unstable("it is suspended".into()));
        }
        if !table.active || table.inactive {
            let which = if table.active { "a second table waits to be used" } else { "no table is in use" };
            node.problems.push(Doubt::Unstable(which.into()));
        }
        let shown: Vec<DevNo> = node.children.iter().filter_map(|child| child.dev).collect();
        for below in shown.iter().filter(|below| !table.devices.contains(below)) {
            let text = format!("sysfs shows {below}, which its table does not use");
            node.problems.push(Doubt::ChainDisagrees(text));
        }
        for &below in table.devices.iter().filter(|below| !shown.contains(below)) {
            let text = format!("its table uses {below}, which sysfs does not show");
            node.problems.push(Doubt::ChainDisagrees(text));
            self.add_child(node, below);
        }
    }

    /// What a disk hangs on.
    fn surroundings(&self, node: &mut Node, dir: &Path) {
        // A multipath head hangs on no bus of its own: its first controller stands for it.
        let from = match node.controllers.first() {
            Some(first) => PathBuf::from(&first.sysfs_path),
            None => dir.to_path_buf(),
        };
        let buses = from.ancestors().take_while(|a| a.starts_with("/sys/devices") && a.components().count() > 3);
        for above in buses {
            let driver = self.system.resolve(&above.join("driver")).ok();
            if let Some(name) = driver.as_deref().and_then(Path::file_name) {
                node.drivers.push(name.to_string_lossy().into_owned());
            }
            let name = above.file_name().unwrap_or_default().to_string_lossy();
            if node.pci.is_none() && transport::is_pci_function(&name) {
                let mut reader = Reader::new(self.system, above);
                let mut id = |what| reader.text(what).map(|t| t.trim_start_matches("0x").to_owned());
                if let (Some(vendor), Some(device)) = (id("vendor"), id("device")) {
                    node.pci = Some(format!("{vendor}:{device}"));
                }
                node.problems.append(&mut reader.problems);
            }
            if node.transport == Transport::Iscsi && name.starts_with("session") {
                let session = above.join("iscsi_session").join(&*name);
                let mut reader = Reader::new(self.system, &session);
                node.iscsi_target = reader.text("targetname");
                node.problems.append(&mut reader.problems);
            }
        }
    }

    /// Fills in the identity of a node that has nothing below.
    fn identify(&mut self, node: &mut Node, dir: &Path, dev: DevNo) {
        let mut reader = Reader::new(self.system, dir);
        match node.transport {
            Transport::Loop => self.identify_loop(node, &mut reader, dev),
            Transport::Virtio => node.serial = reader.text("serial"),
            Transport::Nbd => details(node, &mut reader, &["pid", "backend"]),
            Transport::Zram => details(node, &mut reader, &["backing_dev"]),
            Transport::Rbd => details(node, &mut reader, &["device/pool", "device/name", "device/cluster_fsid"]),
            // Also when the transport is not recognised: the refusal can then name the entry that the device resembles.
            _ if node.name.starts_with("nvme") => {
                node.wwid = reader.text("wwid");
                node.serial = reader.text("device/serial");
                node.model = reader.text("device/model");
            }
            _ => {
                node.vendor = reader.text("device/vendor");
                node.model = reader.text("device/model");
                node.wwid = reader.scsi_wwid();
                node.serial = reader.serial_page();
            }
        }
        self.ask(node, dev);
        node.problems.append(&mut reader.problems);
    }

    /// Asks the device itself, if a policy could list its transport and the device can be asked. A device whose
    /// transport cannot be listed is refused whatever it would answer, and some bridges do not bear questions.
    fn ask(&self, node: &mut Node, dev: DevNo) {
        let open = self.open.filter(|(of, _)| *of == dev).map(|(_, fd)| fd);
        let target = Target { name: &node.name, dev, open };
        let (by, answers) = match node.transport {
            Transport::NvmePcie if node.controllers.len() > 1 => {
                ("NVMe Identify by every controller", self.ask_controllers(node, &target))
            }
            Transport::NvmePcie => {
                let answers = self.system.nvme_identify(&target).map_err(|e| e.to_string());
                ("NVMe Identify", vec![("the device".to_owned(), answers.and_then(|a| live::nvme(&a)))])
            }
            Transport::Sas | Transport::Sata => {
                let ata = node.transport == Transport::Sata;
                let answers = self.system.scsi_inquiry(&target, ata).map_err(|e| e.to_string());
                let by = if ata { "SCSI INQUIRY and ATA IDENTIFY DEVICE" } else { "SCSI INQUIRY" };
                (by, vec![("the device".to_owned(), answers.and_then(|a| live::scsi(&a)))])
            }
            _ => return,
        };
        let mut problems = Vec::new();
        for (who, answer) in answers {
            match answer {
                Ok(answer) => problems.append(&mut live::compare(node, &answer, &who)),
                Err(e) => problems.push(Doubt::Silent(format!("{by}: {who}: {e}"))),
            }
        }
        node.confirmed_by = problems.is_empty().then_some(by);
        node.problems.append(&mut problems);
    }

    /// Asks an NVMe namespace that several controllers share, and each controller by its own node. sysfs shows the
    /// serial number of the first controller for all, and the kernel sends a question about the namespace to a
    /// controller of its choice.
    fn ask_controllers(&self, node: &Node, target: &Target<'_>) -> Vec<(String, Result<live::Answer, String>)> {
        let first = self.system.nvme_identify(target).map_err(|e| e.to_string());
        // A namespace that does not answer is refused whatever its controllers say.
        let (nsid, asked) = match &first {
            Ok(answers) => (answers.nsid, &node.controllers[..]),
            Err(_) => (0, &[][..]),
        };
        let mut all = vec![("the device".to_owned(), first.and_then(|a| live::nvme(&a)))];
        for controller in asked {
            let answers = match controller.dev {
                Some(dev) => self.system.nvme_identify_by(&Target { name: &controller.name, dev, open: None }, nsid),
                None => Err(std::io::Error::other("sysfs does not show the number of its node")),
            };
            let answer = answers.map_err(|e| e.to_string()).and_then(|a| live::nvme(&a));
            all.push((format!("its controller {}", controller.name), answer));
        }
        all
    }

    fn identify_loop(&mut self, node: &mut Node, reader: &mut Reader<'_>, dev: DevNo) {
        let open = self.open.filter(|(of, _)| *of == dev).map(|(_, fd)| fd);
        let status = match self.system.loop_status(&Target { name: &node.name, dev, open }) {
            Ok(status) => status,
            Err(e) => {
                node.problems.push(Doubt::Unreadable(format!("status of the loop device: {e}")));
                return;
            }
        };
        if let Some(below) = status.block_device {
            self.add_child(node, below);
            return;
        }
        let hint = reader.bytes("loop/backing_file").map(|path| String::from_utf8_lossy(&path).trim().to_owned());
        let fs_type = match mounts::read(self.system) {
            Ok(mounts) => mounts::filesystem_type(&mounts, status.fs_device, hint.as_deref().map(Path::new)),
            Err(e) => {
                node.problems.push(Doubt::Unreadable(format!("/proc/self/mountinfo: {e}")));
                None
            }
        };
        node.loop_file =
            Some(LoopFile { fs_device: status.fs_device, inode: status.inode, offset: status.offset, fs_type });
        // Major 0 is a filesystem without a block device of its own (tmpfs, NFS, FUSE, btrfs, ...): nothing to follow.
        if status.fs_device.major != 0 {
            self.add_child(node, status.fs_device);
        }
    }
}

/// Targets of the device mapper that map to the devices of their table and to nothing else.
const DM_TARGETS: [&str; 27] = [
    "linear",
    "striped",
    "crypt",
    "multipath",
    "raid",
    "mirror",
    "integrity",
    "verity",
    "cache",
    "writecache",
    "thin",
    "thin-pool",
    "snapshot",
    "snapshot-origin",
    "snapshot-merge",
    "era",
    "clone",
    "switch",
    "unstriped",
    "delay",
    "flakey",
    "dust",
    "log-writes",
    "zoned",
    "ebs",
    "vdo",
    "pcache",
];

fn examine_md(node: &mut Node, reader: &mut Reader<'_>, slaves: &[String]) {
    details(node, reader, &["md/level", "md/array_state", "md/metadata_version"]);
    let members: Vec<String> =
        reader.names("md").iter().filter_map(|name| name.strip_prefix("dev-")).map(str::to_owned).collect();
    let only_in = |these: &[String], those: &[String]| these.iter().find(|name| !those.contains(name)).cloned();
    for member in [only_in(&members, slaves), only_in(slaves, &members)].into_iter().flatten() {
        let text = format!("its driver and sysfs do not both show {member}");
        node.problems.push(Doubt::ChainDisagrees(text));
    }
    if reader.text("md/bitmap/location").as_deref() == Some("file") {
        node.problems.push(Doubt::Hidden("its bitmap is a file".into()));
    }
}

/// Notes attributes for the reader of a refusal.
fn details(node: &mut Node, reader: &mut Reader<'_>, attributes: &[&str]) {
    for attribute in attributes {
        if let Some(text) = reader.text(attribute) {
            let name = attribute.rsplit('/').next().unwrap_or(attribute);
            node.details.push(format!("{name} {text}"));
        }
    }
}
