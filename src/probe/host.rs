//! What the host is: a machine of its own, a virtual one, or a host that does not say; and what its firmware calls it.
//!
//! | evidence | read from | says |
//! |---|---|---|
//! | processor flag `hypervisor` | `/proc/cpuinfo` (x86) | virtual |
//! | firmware strings | `/sys/class/dmi/id` | virtual, when one is a hypervisor's |
//! | "this is a virtual machine" bit (SMBIOS 3.1, 7.1.2.2) | `/sys/firmware/dmi/entries/0-0/raw` | virtual |
//! | `type`, `uuid` of a hypervisor | `/sys/hypervisor` (Xen) | virtual |
//! | a hypervisor in the device tree | `/proc/device-tree/hypervisor` | virtual |
//! | PCI functions of hypervisors' vendors | `/sys/bus/pci/devices` | virtual, also when flag and strings are forged |
//!
//! A host counts as a machine of its own only when nothing above says otherwise, the processor tells its flags, the
//! firmware names a vendor, and everything that is there can be read. All of this is the word of whoever runs the host
//! below us, if somebody does. So it is good for a refusal, and alone it proves nothing.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::sys::System;
use crate::limits;
use crate::units::is_plain;

/// Whether the host is a virtual machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Virtualization {
    /// The firmware describes itself and nothing shows a hypervisor.
    Physical,
    /// Processor, firmware or hardware shows a hypervisor.
    Virtual,
    /// The host does not say, e.g. because it has no firmware tables.
    #[default]
    Unknown,
}

/// The host's facts, read at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Virtual or not.
    pub virtualization: Virtualization,
    /// Why the host is not taken for a machine of its own; empty when it is.
    pub evidence: Vec<String>,
    /// System vendor by the firmware (DMI `sys_vendor`).
    pub vendor: Option<String>,
    /// Product by the firmware (DMI `product_name`).
    pub product: Option<String>,
    /// What the firmware says, by the names of [`FIRMWARE`]; empty values left out.
    pub firmware: BTreeMap<&'static str, String>,
    /// Vendor numbers (four hex digits) of the PCI functions, each once.
    pub pci_vendors: Vec<String>,
}

/// Attributes of `/sys/class/dmi/id` that are read. [`HostFacts::firmware`] also has `hypervisor_uuid`, the content of
/// `/sys/hypervisor/uuid`.
pub const FIRMWARE: [&str; 12] = [
    "sys_vendor",
    "product_name",
    "product_version",
    "product_family",
    "product_serial",
    "product_uuid",
    "board_vendor",
    "board_name",
    "bios_vendor",
    "bios_version",
    "chassis_vendor",
    "chassis_asset_tag",
];

/// Firmware strings of hypervisors, in lower case. A match shows a hypervisor; the absence of a match proves nothing.
/// They are not looked for in the attributes of [`OWN`], whose values can spell anything.
const HYPERVISORS: [&str; 15] = [
    "qemu",
    "kvm",
    "vmware",
    "virtualbox",
    "innotek",
    "xen",
    "bochs",
    "bhyve",
    "parallels",
    "virtual machine",
    "seabios",
    "openstack",
    "google compute engine",
    "ovirt",
    "firecracker",
];

/// Attributes whose value is different on each machine.
const OWN: [&str; 3] = ["product_serial", "product_uuid", "chassis_asset_tag"];

/// Vendors of PCI functions that only hypervisors show: Red Hat (virtio, QEMU), VMware, VirtualBox, Xen, Microsoft,
/// Parallels.
const HYPERVISOR_PCI: [&str; 7] = ["1af4", "1b36", "15ad", "80ee", "5853", "1414", "1ab8"];

impl HostFacts {
    /// Facts of a host of which nothing else is known.
    pub fn of(virtualization: Virtualization) -> Self {
        Self { virtualization, ..Self::default() }
    }

    /// Reads the host's facts. A file that is there and cannot be read makes the host unknown.
    pub fn read(system: &dyn System) -> Self {
        let mut host = Reading { system, facts: Self::default(), shows_hypervisor: false };
        let names_itself = host.firmware();
        let flags_clear = host.processor();
        host.hypervisor();
        host.pci();
        let Reading { mut facts, shows_hypervisor, .. } = host;
        facts.virtualization = match (shows_hypervisor, facts.evidence.is_empty()) {
            (true, _) => Virtualization::Virtual,
            (false, true) if names_itself && flags_clear => Virtualization::Physical,
            _ => Virtualization::Unknown,
        };
        facts
    }
}

struct Reading<'a> {
    system: &'a dyn System,
    facts: HostFacts,
    shows_hypervisor: bool,
}

impl Reading<'_> {
    /// Content of a file. A file that is there and cannot be read is evidence against the host.
    fn bytes(&mut self, path: &Path, max: usize) -> Option<Vec<u8>> {
        self.system.read(path, max).unwrap_or_else(|e| {
            self.facts.evidence.push(format!("{} cannot be read: {e}", path.display()));
            None
        })
    }

    fn text(&mut self, path: &Path) -> Option<String> {
        let bytes = self.bytes(path, limits::SYSFS_BYTES_MAX)?;
        let text = std::str::from_utf8(&bytes).ok().map(|t| t.trim_matches(|c: char| c.is_whitespace() || c == '\0'));
        match text.filter(|t| t.chars().all(is_plain)) {
            Some(text) => (!text.is_empty()).then(|| text.to_owned()),
            None => {
                self.facts.evidence.push(format!("{} is not plain text", path.display()));
                None
            }
        }
    }

    fn shows(&mut self, what: String) {
        self.shows_hypervisor = true;
        self.facts.evidence.push(what);
    }

    /// Reads what the firmware says. Returns whether it names a vendor.
    fn firmware(&mut self) -> bool {
        for name in FIRMWARE {
            if let Some(text) = self.text(&Path::new("/sys/class/dmi/id").join(name)) {
                let lower = text.to_ascii_lowercase();
                if !OWN.contains(&name) && HYPERVISORS.iter().any(|h| lower.contains(h)) {
                    self.shows(format!("the firmware says {name} is {text:?}"));
                }
                self.facts.firmware.insert(name, text);
            }
        }
        // SMBIOS 3.1, 7.1.2.2: bit 4 of the second extension byte of the BIOS characteristics, at offset 0x13.
        let raw = self.bytes(Path::new("/sys/firmware/dmi/entries/0-0/raw"), limits::SYSFS_BYTES_MAX);
        if raw.is_some_and(|raw| raw.first() == Some(&0) && raw.get(0x13).is_some_and(|byte| byte & 0x10 != 0)) {
            self.shows("the firmware says that this is a virtual machine".into());
        }
        self.facts.vendor = self.facts.firmware.get("sys_vendor").cloned();
        self.facts.product = self.facts.firmware.get("product_name").cloned();
        if self.facts.vendor.is_none() {
            self.facts.evidence.push("the firmware names no vendor".into());
        }
        self.facts.vendor.is_some()
    }

    /// Reads the processor's flags. Returns whether the processor tells them and none of them is a hypervisor's.
    fn processor(&mut self) -> bool {
        let bytes = self.bytes(Path::new("/proc/cpuinfo"), limits::PROC_BYTES_MAX).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut flags = text.lines().filter(|line| line.starts_with("flags")).peekable();
        if flags.peek().is_none() {
            self.facts.evidence.push("the processor does not tell its flags".into());
            return false;
        }
        let hypervisor = flags.any(|line| line.split_whitespace().any(|word| word == "hypervisor"));
        if hypervisor {
            self.shows("the processor has the flag hypervisor".into());
        }
        !hypervisor
    }

    fn hypervisor(&mut self) {
        if let Some(kind) = self.text(Path::new("/sys/hypervisor/type")) {
            self.shows(format!("the kernel knows a hypervisor, {kind}"));
        }
        if let Some(uuid) = self.text(Path::new("/sys/hypervisor/uuid")) {
            self.facts.firmware.insert("hypervisor_uuid", uuid);
        }
        if self.bytes(Path::new("/proc/device-tree/hypervisor/compatible"), limits::SYSFS_BYTES_MAX).is_some() {
            self.shows("the device tree has a hypervisor".into());
        }
    }

    fn pci(&mut self) {
        let folder = Path::new("/sys/bus/pci/devices");
        let functions = self.system.list(folder, limits::PCI_FUNCTIONS_MAX).unwrap_or_else(|e| {
            self.facts.evidence.push(format!("{} cannot be read: {e}", folder.display()));
            Vec::new()
        });
        if functions.len() > limits::PCI_FUNCTIONS_MAX {
            // A hypervisor's function could be among those that are not looked at.
            self.facts.evidence.push(format!("it has more than {} PCI functions", limits::PCI_FUNCTIONS_MAX));
        }
        let mut vendors: Vec<String> = functions
            .iter()
            .filter_map(|function| self.text(&folder.join(function).join("vendor")))
            .map(|vendor| vendor.trim_start_matches("0x").to_ascii_lowercase())
            .collect();
        vendors.sort();
        vendors.dedup();
        for vendor in vendors.iter().filter(|v| HYPERVISOR_PCI.contains(&v.as_str())) {
            self.shows(format!("it has PCI functions of vendor {vendor}, a hypervisor's"));
        }
        self.facts.pci_vendors = vendors;
    }
}
