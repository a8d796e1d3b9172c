//! What the host is: a machine of its own, a virtual one, or one that does not say.

use std::path::Path;

use serde::Serialize;

use super::sys::System;
use crate::limits;

/// Whether the host is a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Virtualization {
    /// The firmware describes itself and the processor shows no hypervisor.
    Physical,
    /// The processor or the firmware shows a hypervisor.
    Virtual,
    /// The host does not say, e.g. has no firmware tables.
    Unknown,
}

/// The host's facts, read at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Virtual or not.
    pub virtualization: Virtualization,
    /// System vendor by the firmware (DMI `sys_vendor`).
    pub vendor: Option<String>,
    /// Product by the firmware (DMI `product_name`).
    pub product: Option<String>,
}

/// Firmware strings of hypervisors, lower case; a match shows one, the absence proves nothing.
const HYPERVISORS: [&str; 9] =
    ["qemu", "kvm", "vmware", "virtualbox", "innotek", "xen", "bochs", "parallels", "virtual machine"];

impl HostFacts {
    /// Reads the host's facts. What cannot be read makes the host unknown.
    pub fn read(system: &dyn System) -> Self {
        let dmi = |name: &str| -> Option<String> {
            let bytes = system.read(&Path::new("/sys/class/dmi/id").join(name), limits::SYSFS_BYTES_MAX).ok()??;
            let text = String::from_utf8_lossy(&bytes);
            let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
            (!text.is_empty()).then_some(text)
        };
        let (vendor, product) = (dmi("sys_vendor"), dmi("product_name"));
        let cpuinfo = system.read(Path::new("/proc/cpuinfo"), limits::PROC_BYTES_MAX).ok().flatten();
        let hypervisor_flag = cpuinfo.as_deref().map(|bytes| {
            String::from_utf8_lossy(bytes)
                .lines()
                .any(|l| l.starts_with("flags") && l.split_whitespace().any(|w| w == "hypervisor"))
        });
        let named = [&vendor, &product]
            .into_iter()
            .flatten()
            .any(|text| HYPERVISORS.iter().any(|h| text.to_ascii_lowercase().contains(h)));
        let virtualization = match (hypervisor_flag, &vendor) {
            (Some(true), _) => Virtualization::Virtual,
            _ if named => Virtualization::Virtual,
            (Some(false), Some(_)) => Virtualization::Physical,
            _ => Virtualization::Unknown,
        };
        Self { virtualization, vendor, product }
    }
}
