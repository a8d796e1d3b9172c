//! Attributes of one directory of sysfs. Whatever cannot be read is collected as a problem of the node.

use std::io;
use std::path::Path;

use super::identity::Doubt;
use super::live;
use super::sys::System;
use crate::limits;

/// Reads attributes of a directory.
pub(super) struct Reader<'a> {
    system: &'a dyn System,
    dir: &'a Path,
    /// What could not be read.
    pub(super) problems: Vec<Doubt>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(system: &'a dyn System, dir: &'a Path) -> Self {
        Self { system, dir, problems: Vec::new() }
    }

    pub(super) fn bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        let path = self.dir.join(name);
        match self.system.read(&path, limits::SYSFS_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(e) => {
                self.problems.push(unreadable(&path, &e));
                None
            }
        }
    }

    /// An attribute as trimmed text; `None` when it is absent or empty. The standards of NVMe, SCSI and ATA ask for
    /// printable ASCII: any other text is a problem and not a value. A model name that turns the direction of writing
    /// around could make the verdict printed beside it read as another.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let bytes = self.bytes(name)?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) || text.len() > limits::REGISTRY_TEXT_MAX {
            self.unusable(name, "is not plain text");
            return None;
        }
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// A number, if the attribute is there.
    pub(super) fn optional_number(&mut self, name: &str) -> Option<u64> {
        let text = self.text(name)?;
        let number = text.parse().ok();
        if number.is_none() {
            self.unusable(name, "is not a number");
        }
        number
    }

    /// A number that every device has.
    pub(super) fn number(&mut self, name: &str) -> Option<u64> {
        let before = self.problems.len();
        let number = self.optional_number(name);
        if number.is_none() && self.problems.len() == before {
            self.unusable(name, "is missing");
        }
        number
    }

    /// Names in a folder below. More names than are looked at are a problem: what matters could be among the others.
    pub(super) fn names(&mut self, name: &str) -> Vec<String> {
        let path = self.dir.join(name);
        match self.system.list(&path, limits::CHAIN_NODES_MAX) {
            Ok(names) => {
                if names.len() > limits::CHAIN_NODES_MAX {
                    self.unusable(name, &format!("has more than {} entries", limits::CHAIN_NODES_MAX));
                }
                names
            }
            Err(e) => {
                self.problems.push(unreadable(&path, &e));
                Vec::new()
            }
        }
    }

    /// The world-wide identifier of a SCSI disk. The file is always there. When the disk tells no identifier, reading
    /// the file fails with ENXIO (no VPD page 0x83) or EINVAL (no designator of a kind that the kernel takes):
    /// drivers/scsi/scsi_lib.c, `scsi_vpd_lun_id`.
    pub(super) fn scsi_wwid(&mut self) -> Option<String> {
        match self.system.read(&self.dir.join("device/wwid"), limits::SYSFS_BYTES_MAX) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::EINVAL)) => None,
            _ => self.text("device/wwid"),
        }
    }

    /// The unit serial number of a SCSI disk: VPD page 0x80 (SPC-4, 7.8.18).
    pub(super) fn serial_page(&mut self) -> Option<String> {
        let page = self.bytes("device/vpd_pg80").filter(|page| !page.is_empty())?;
        match live::serial_page(&page) {
            Ok(serial) => (!serial.is_empty()).then_some(serial),
            Err(what) => {
                self.unusable("device/vpd_pg80", &format!("makes no sense: {what}"));
                None
            }
        }
    }

    fn unusable(&mut self, name: &str, what: &str) {
        self.problems.push(Doubt::Unreadable(format!("{}/{name} {what}", self.dir.display())));
    }
}

/// The problem of a path that cannot be read.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> Doubt {
    Doubt::Unreadable(format!("{}: {error}", path.display()))
}
