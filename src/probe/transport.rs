//! How a device is reached.
//!
//! The evidence is the device's place in sysfs once every link is followed, and the driver that its number belongs to
//! (`/proc/devices`). Whoever names or labels a device can choose neither. A device that is not recognised with
//! certainty is [`Transport::Unknown`]; [`kind`] says in words what it seems to be, for the message only.
//!
//! | transport | where it is, resolved | and |
//! |---|---|---|
//! | nvme-pcie | `/sys/devices/pciD:B/…/nvme/nvmeN/nvmeNnM` | the controller's `transport` is `pcie`; of a multipath head (`virtual/nvme-subsystem`) that of *every* controller, and each is below `pciD:B` |
//! | nvme-tcp, -rdma, -fc | `virtual/nvme-fabrics` | one controller that says so decides |
//! | thunderbolt | as nvme-pcie, sas, sata or virtio | a PCI function above says that it is `removable`: it is behind a port that is open to the outside |
//! | usb | `…/usbN/…/hostN/…` | decides over all of the following: a bridge imitates them |
//! | iscsi | `…/hostN/sessionN/…` | |
//! | fc | `…/rport-H:B-R/…` | |
//! | hyper-v | `…/VMBUS:NN/…/hostN/…` | |
//! | virtio-scsi | `…/virtioN/hostN/…` | |
//! | sas | `pciD:B/…/hostN/…/end_device-…` | |
//! | sata | `pciD:B/…/ataN/hostN/…` | |
//! | virtio | `…/virtioN/block/…` | |
//! | mmc, rbd | name and place | |
//! | loop, dm, md, bcache, drbd, nbd, zram | `virtual/block` | the driver of the major number |

use std::path::{Component, Path};

use super::attributes::Reader;
use super::identity::{Controller, Node};
use super::sys::System;
use crate::limits;
use crate::os::DevNo;
use crate::registry::Transport;

/// The driver of block devices with this major number, by `/proc/devices`.
pub(super) fn block_driver(system: &dyn System, major: u32) -> Option<String> {
    let text = system.read(Path::new("/proc/devices"), limits::PROC_BYTES_MAX).ok()??;
    let text = String::from_utf8_lossy(&text);
    let (_, block) = text.split_once("Block devices:")?;
    block.lines().find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        (number.parse() == Ok(major)).then(|| name.trim().to_owned())
    })
}

/// The transport of the drivers that make devices of others.
pub(super) fn stacked(driver: Option<&str>) -> Option<Transport> {
    Some(match driver? {
        "device-mapper" => Transport::Dm,
        "md" | "mdp" => Transport::Md,
        "bcache" => Transport::Bcache,
        "drbd" => Transport::Drbd,
        _ => return None,
    })
}

/// Parts of a resolved path.
struct Parts(Vec<String>);

impl Parts {
    fn of(dir: &Path) -> Self {
        Self(dir.components().map(Component::as_os_str).map(|c| c.to_string_lossy().into_owned()).collect())
    }

    /// Whether a part is `prefix` and then a digit.
    fn has(&self, prefix: &str) -> bool {
        self.0.iter().any(|part| numbered(part, prefix))
    }

    fn is_virtual(&self) -> bool {
        self.0.iter().any(|part| part == "virtual")
    }
}

fn numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a part of a path is a function of a PCI device, as in `0000:03:00.0`.
pub(super) fn is_pci_function(part: &str) -> bool {
    let parts: Vec<&str> = part.split([':', '.']).collect();
    let is_hex = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    parts.len() == 4 && part.contains('.') && parts.iter().all(is_hex) && parts[1].len() == 2
}

/// Fills in the transport of a whole disk with nothing below, and the controllers of an NVMe namespace.
pub(super) fn find(system: &dyn System, dir: &Path, driver: Option<&str>, node: &mut Node) {
    let parts = Parts::of(dir);
    if numbered(&node.name, "nvme") {
        node.controllers = controllers(system, dir, node);
        let others = node.controllers.iter().map(|c| c.transport).find(|t| *t != Transport::NvmePcie);
        let none = if node.controllers.is_empty() { Transport::Unknown } else { Transport::NvmePcie };
        node.transport = others.unwrap_or(none);
    } else if parts.is_virtual() {
        node.transport = match driver {
            Some("loop") => Transport::Loop,
            Some("zram") => Transport::Zram,
            Some("nbd") => Transport::Nbd,
            _ => Transport::Unknown,
        };
    } else {
        let bus = on_a_bus(&parts, &node.name);
        let is_external = bus.identity_fields().is_some() && is_external(system, dir);
        node.transport = if is_external { Transport::Thunderbolt } else { bus };
    }
    if node.transport == Transport::Unknown {
        node.kind = kind(system, dir, &node.name, driver);
    }
}

/// Whether what is at `dir` was plugged into a port of PCI Express that is open to the outside. The kernel says so of
/// every function behind a port that the firmware calls external, and of the others mostly nothing
/// (drivers/pci/probe.c, `pci_set_removable`). What it says and cannot be understood counts as that.
fn is_external(system: &dyn System, dir: &Path) -> bool {
    let is_function = |above: &&Path| above.file_name().is_some_and(|name| is_pci_function(&name.to_string_lossy()));
    dir.ancestors().filter(is_function).any(|function| {
        let mut reader = Reader::new(system, function);
        let said = reader.text("removable");
        !reader.problems.is_empty() || said.is_some_and(|said| said != "fixed" && said != "unknown")
    })
}

fn on_a_bus(parts: &Parts, name: &str) -> Transport {
    if numbered(name, "rbd") {
        return Transport::Rbd;
    }
    if numbered(name, "mmcblk") {
        return Transport::Mmc;
    }
    // …/virtioN/block/vdX is virtio-blk; …/virtioN/hostM/… is a SCSI bus behind virtio.
    let mut above = parts.0.iter().rev().skip(1);
    if above.next().is_some_and(|part| part == "block")
        && above.next().and_then(|part| part.strip_prefix("virtio")).is_some_and(is_number)
    {
        return Transport::Virtio;
    }
    if !parts.has("host") {
        return Transport::Unknown;
    }
    // The order matters. A bridge on the way (USB) or a network below (iSCSI, Fibre Channel) decides over the bus that
    // it imitates.
    let vmbus = |part: &String| part.to_ascii_lowercase().starts_with("vmbus");
    if parts.has("usb") {
        Transport::Usb
    } else if parts.has("session") {
        Transport::Iscsi
    } else if parts.has("rport-") {
        Transport::Fc
    } else if parts.0.iter().any(vmbus) {
        Transport::HyperV
    } else if parts.has("virtio") {
        Transport::VirtioScsi
    } else if parts.has("end_device-") && parts.has("pci") {
        Transport::Sas
    } else if parts.has("ata") && parts.has("pci") {
        Transport::Sata
    } else {
        Transport::Unknown
    }
}

/// The controllers of an NVMe namespace: its own one, or *every* controller of its subsystem when the kernel shows a
/// multipath head. The paths of a multipath head are hidden devices, which come and go below it.
fn controllers(system: &dyn System, dir: &Path, node: &mut Node) -> Vec<Controller> {
    let device = dir.join("device");
    let mut below = Reader::new(system, &device);
    let of_subsystem = below.names("");
    node.problems.append(&mut below.problems);
    let names = of_subsystem.into_iter().filter(|n| n.strip_prefix("nvme").is_some_and(is_number));
    let mut found: Vec<Controller> = names.map(|name| controller(system, &device.join(&name))).collect();
    if found.is_empty() {
        found.push(controller(system, &device));
    }
    found
}

fn controller(system: &dyn System, link: &Path) -> Controller {
    let resolved = system.resolve(link).unwrap_or_else(|_| link.to_path_buf());
    let mut reader = Reader::new(system, &resolved);
    let parts = Parts::of(&resolved);
    let transport = match reader.text("transport").as_deref() {
        // A controller that says `pcie` must also be below a PCI bus.
        Some("pcie") if parts.has("pci") && !parts.is_virtual() => match is_external(system, &resolved) {
            true => Transport::Thunderbolt,
            false => Transport::NvmePcie,
        },
        Some("tcp") => Transport::NvmeTcp,
        Some("rdma") => Transport::NvmeRdma,
        Some("fc") => Transport::NvmeFc,
        _ => Transport::Unknown,
    };
    let name = resolved.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let dev = reader.text("dev").and_then(|t| DevNo::parse(&t));
    let sysfs_path = resolved.to_string_lossy().into_owned();
    Controller { name, dev, transport, address: reader.text("address"), sysfs_path }
}

/// What a device without a recognised transport seems to be. The names are the kernel's, and nothing rests on them.
const KINDS: [(&str, &str); 16] = [
    ("ublkb", "ublk: a program in user space"),
    ("zd", "a volume of ZFS"),
    ("etherd!", "ATA over Ethernet"),
    ("rnbd", "RNBD: a network block device over RDMA"),
    ("nullb", "null_blk: nothing keeps what is written"),
    ("ram", "memory"),
    ("pmem", "persistent memory"),
    ("xvd", "a disk of Xen"),
    ("dasd", "a channel-attached disk"),
    ("mtdblock", "raw flash memory"),
    ("vd", "a disk of a hypervisor"),
    ("nvme", "NVMe, not all of it on PCI Express, TCP, RDMA or Fibre Channel"),
    ("sr", "an optical disc"),
    ("fd", "a floppy disk"),
    ("st", "a tape"),
    ("hd", "an IDE disk"),
];

fn kind(system: &dyn System, dir: &Path, name: &str, driver: Option<&str>) -> Option<String> {
    // A SCSI host names its driver: of a RAID controller, a hypervisor's adapter, a simulator, ...
    let host = dir.ancestors().find(|a| a.file_name().is_some_and(|n| numbered(&n.to_string_lossy(), "host")));
    if let Some(host) = host {
        let number = host.file_name().unwrap_or_default();
        let attribute = host.join("scsi_host").join(number);
        let said = Reader::new(system, &attribute).text("proc_name");
        return Some(format!("SCSI by the driver {}", said.as_deref().unwrap_or("of a host that does not say")));
    }
    let known = KINDS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, kind)| (*kind).to_owned());
    known.or_else(|| driver.filter(|d| *d != "blkext").map(|d| format!("a device of the driver {d}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_decide_in_the_right_order() {
        let of = |dir: &str| on_a_bus(&Parts::of(Path::new(dir)), dir.rsplit('/').next().unwrap_or_default());
        let pci = "/sys/devices/pci0000:00/0000:00:17.0";
        for (dir, transport) in [
            ("ata3/host2/target2:0:0/2:0:0:0/block/sda", Transport::Sata),
            ("host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0/block/sda", Transport::Sas),
            // A SATA disk behind a SAS expander is reached by SAS.
            ("host0/port-0:0/end_device-0:0/ata7/host0/target0:0:0/0:0:0:0/block/sda", Transport::Sas),
            ("usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sda", Transport::Usb),
            ("host7/session1/target7:0:0/7:0:0:1/block/sda", Transport::Iscsi),
            ("host9/rport-9:0-2/target9:0:0/9:0:0:0/block/sda", Transport::Fc),
            ("virtio1/host0/target0:0:1/0:0:1:0/block/sda", Transport::VirtioScsi),
            ("virtio1/block/vda", Transport::Virtio),
            // A logical volume of a RAID controller; FireWire.
            ("host0/target0:2:0/0:2:0:0/block/sda", Transport::Unknown),
            ("fw1/fw1.0/host4/target4:0:0/4:0:0:0/block/sda", Transport::Unknown),
            ("mmc_host/mmc0/mmc0:0001/block/mmcblk0", Transport::Mmc),
        ] {
            assert_eq!(of(&format!("{pci}/{dir}")), transport, "{dir}");
        }
        assert_eq!(of("/sys/devices/platform/f10/ata1/host0/target0:0:0/0:0:0:0/block/sda"), Transport::Unknown);
        assert_eq!(of("/sys/devices/vbd-51712/block/xvda"), Transport::Unknown);
    }

    #[test]
    fn functions_of_pci_are_recognised() {
        for (part, is) in [
            ("0000:03:00.0", true),
            ("10000:01:00.1", true),
            ("pci0000:00", false),
            ("2:0:0:0", false),
            ("2-1:1.0", false),
        ] {
            assert_eq!(is_pci_function(part), is, "{part}");
        }
    }
}
