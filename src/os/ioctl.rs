//! Questions that ioctl(2) puts to an open device: its size, its identity, what its driver uses below it.
//!
//! Every question only reads. The answers are bytes or plain numbers: [`probe::live`](crate::probe::live) and
//! `parse_dm_targets` interpret them, and trust none of the lengths in them. A device has five seconds for each
//! command. When it does not answer, the kernel's error handling may take longer than that before the call returns.

mod request;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::DevNo;
use request::{
    DM_ACTIVE_PRESENT, DM_BUFFER_FULL, DM_DATA, DM_DEPS, DM_HEADER, DM_INACTIVE_PRESENT, DM_INTERNAL_SUSPEND,
    DM_STATUS, DM_SUSPEND, DmQuestion, IDENTIFY_BYTES, NvmeCommand, Request, SENSE_BYTES, ScsiTransfer,
};

/// Answers of an NVMe namespace and its controller, as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NvmeAnswers {
    /// Number of the namespace.
    pub nsid: u32,
    /// Identify Controller (CNS 1): 4096 bytes.
    pub controller: Vec<u8>,
    /// Identify Namespace (CNS 0): 4096 bytes.
    pub namespace: Vec<u8>,
    /// Namespace identification descriptors (CNS 3); empty when the controller does not have them.
    pub descriptors: Vec<u8>,
}

/// Answers of a SCSI disk, as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScsiAnswers {
    /// INQUIRY.
    pub standard: Vec<u8>,
    /// INQUIRY page 0x80.
    pub serial: Vec<u8>,
    /// INQUIRY page 0x83.
    pub designators: Vec<u8>,
    /// MODE SENSE(10) of page 8, when the disk has that page.
    pub caching: Option<Vec<u8>>,
    /// IDENTIFY DEVICE of an ATA disk.
    pub ata: Option<Vec<u8>>,
}

/// What the device mapper says of one of its devices (linux/dm-ioctl.h).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DmTable {
    /// Type of each target of the table in use.
    pub targets: Vec<String>,
    /// The devices that the table uses.
    pub devices: Vec<DevNo>,
    /// Whether the device is suspended: transfers wait, and a new table may be put in.
    pub suspended: bool,
    /// Whether a table is in use.
    pub active: bool,
    /// Whether another table is loaded and waits.
    pub inactive: bool,
}

/// What `LOOP_GET_STATUS64` says of a bound loop device (linux/loop.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopStatus {
    /// Device number of the filesystem that holds the file.
    pub fs_device: DevNo,
    /// Inode of the file.
    pub inode: u64,
    /// The block device that the loop device is bound to, when that is not a file.
    pub block_device: Option<DevNo>,
    /// First byte that the device shows.
    pub offset: u64,
}

/// What the loop driver says of an open loop device.
pub fn loop_status(fd: BorrowedFd<'_>) -> io::Result<LoopStatus> {
    let mut info = request::EMPTY_LOOP_INFO;
    request::LOOP_STATUS.send(fd, &mut info)?;
    Ok(LoopStatus {
        fs_device: DevNo::from_raw(info.lo_device),
        inode: info.lo_inode,
        block_device: (info.lo_rdevice != 0).then(|| DevNo::from_raw(info.lo_rdevice)),
        offset: info.lo_offset,
    })
}

/// Size in bytes of an open block device.
pub fn size_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0;
    request::SIZE_BYTES.send(fd, &mut size)?;
    Ok(size)
}

/// Logical block size in bytes of an open block device.
pub fn logical_block_size(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(rustix::fs::ioctl_blksszget(fd)?)
}

/// Whether an open block device is read-only.
pub fn is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flag = 0;
    request::READ_ONLY.send(fd, &mut flag)?;
    Ok(flag != 0)
}

/// The kernel's sequence number of an open disk (Linux 5.15).
pub fn diskseq(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut sequence = 0;
    request::DISKSEQ.send(fd, &mut sequence)?;
    Ok(sequence)
}

/// Asks a SCSI disk for its identity (SPC-4: INQUIRY, its pages 0x80 and 0x83, the caching mode page). An ATA disk
/// behind the kernel's translation is also asked directly (ACS-3: IDENTIFY DEVICE), since the translation answers from
/// the kernel's memory.
pub fn scsi_inquiry(fd: BorrowedFd<'_>, ata: bool) -> io::Result<ScsiAnswers> {
    let page = |page: u8, len: u16| {
        let [high, low] = len.to_be_bytes();
        scsi_read(fd, &[0x12, 1, page, high, low, 0], len)
    };
    Ok(ScsiAnswers {
        standard: scsi_read(fd, &[0x12, 0, 0, 0, 96, 0], 96)?,
        serial: page(0x80, 252)?,
        designators: page(0x83, 2048)?,
        // Not every disk has a caching page; the kernel takes a disk without one for a disk without a volatile cache.
        caching: scsi_read(fd, &[0x5A, 8, 8, 0, 0, 0, 0, 0, 64, 0], 64).ok(),
        // ATA PASS-THROUGH(16), PIO data-in, one block (SAT-3, 12.2.2).
        ata: match ata {
            true => Some(scsi_read(fd, &[0x85, 4 << 1, 0x0E, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xEC, 0], 512)?),
            false => None,
        },
    })
}

/// One command that reads at most `len` bytes from the device. A disk reports a unit attention (it was reset, say)
/// once, by failing the next command, whichever that is: the command is sent again.
fn scsi_read(fd: BorrowedFd<'_>, command: &[u8], len: u16) -> io::Result<Vec<u8>> {
    match scsi_command(fd, command, len) {
        Err(failed) if failed.unit_attention => scsi_command(fd, command, len),
        answer => answer,
    }
    .map_err(|failed| failed.error)
}

struct ScsiFailed {
    error: io::Error,
    unit_attention: bool,
}

fn scsi_command(fd: BorrowedFd<'_>, command: &[u8], len: u16) -> Result<Vec<u8>, ScsiFailed> {
    let mut data = vec![0u8; usize::from(len)];
    let mut sense = [0u8; SENSE_BYTES];
    let mut header = ScsiTransfer::read(command, &mut data, &mut sense);
    request::SCSI.send(fd, &mut header).map_err(|error| ScsiFailed { error, unit_attention: false })?;
    if header.status != 0 || header.host_status != 0 || header.driver_status & 0x0F != 0 {
        let error = io::Error::other(format!(
            "command {:#04x} failed: status {:#x}, host {:#x}, driver {:#x}",
            command[0], header.status, header.host_status, header.driver_status
        ));
        return Err(ScsiFailed { error, unit_attention: sense_key(&sense) == Some(6) });
    }
    let unused = usize::try_from(header.resid).unwrap_or(0);
    data.truncate(data.len().saturating_sub(unused));
    Ok(data)
}

/// The sense key of sense data, in either of their formats (SPC-4, 4.5).
fn sense_key(sense: &[u8]) -> Option<u8> {
    match sense.first()? & 0x7F {
        0x70 | 0x71 => Some(sense.get(2)? & 0x0F),
        0x72 | 0x73 => Some(sense.get(1)? & 0x0F),
        _ => None,
    }
}

/// Asks an NVMe namespace and its controller for their identity (NVMe base specification, Identify: CNS 1, 0 and 3).
pub fn nvme_identify(fd: BorrowedFd<'_>) -> io::Result<NvmeAnswers> {
    let nsid = request::NVME_ID.send(fd, &mut ())?;
    nvme_identify_namespace(fd, nsid)
}

/// Asks the controller behind `fd`, which may be the controller's own node, for its identity and for that of a
/// namespace.
pub fn nvme_identify_namespace(fd: BorrowedFd<'_>, nsid: u32) -> io::Result<NvmeAnswers> {
    let whole = |nsid, cns| {
        let (status, data) = nvme_read(fd, nsid, cns)?;
        if status == 0 { Ok(data) } else { Err(io::Error::other(format!("Identify {cns}: NVMe status {status:#x}"))) }
    };
    let (controller, namespace) = (whole(0, 1)?, whole(nsid, 0)?);
    // Controllers older than NVMe 1.3 do not have the list of descriptors, and say so.
    let (status, descriptors) = nvme_read(fd, nsid, 3)?;
    let descriptors = if status == 0 { descriptors } else { Vec::new() };
    Ok(NvmeAnswers { nsid, controller, namespace, descriptors })
}

/// The status of an Identify command, and what it read.
fn nvme_read(fd: BorrowedFd<'_>, nsid: u32, cns: u32) -> io::Result<(u32, Vec<u8>)> {
    let mut data = Box::new([0u8; IDENTIFY_BYTES]);
    let status = request::NVME_ADMIN.send(fd, &mut NvmeCommand::identify(nsid, cns, &mut data))?;
    Ok((status, (data as Box<[u8]>).into_vec()))
}

/// The table of a device of the device mapper, asked of the device mapper's control node.
///
/// Types of targets come from their *status*, devices from the table's *dependencies*. The table itself
/// (`DM_STATUS_TABLE_FLAG`) would show the keys of dm-crypt, which have no business in this process's memory.
pub fn dm_table(control: &File, dev: DevNo) -> io::Result<DmTable> {
    let status = dm_ask(control, &DM_STATUS, dev)?;
    let deps = dm_ask(control, &DM_DEPS, dev)?;
    let malformed = || io::Error::other("the device mapper's answer is malformed");
    Ok(DmTable {
        targets: parse_dm_targets(&status.data, status.target_count).ok_or_else(malformed)?,
        devices: parse_dm_devices(&deps.data).ok_or_else(malformed)?,
        suspended: status.flags & (DM_SUSPEND | DM_INTERNAL_SUSPEND) != 0,
        active: status.flags & DM_ACTIVE_PRESENT != 0,
        inactive: status.flags & DM_INACTIVE_PRESENT != 0,
    })
}

fn dm_ask(control: &File, request: &Request<DmQuestion>, dev: DevNo) -> io::Result<Box<DmQuestion>> {
    let mut question = DmQuestion::about(dev);
    request.send(control.as_fd(), &mut question)?;
    if question.flags & DM_BUFFER_FULL != 0 || question.data_start != DM_HEADER {
        return Err(io::Error::other(format!("the table of {dev} does not fit in {DM_DATA} bytes")));
    }
    Ok(question)
}

/// Types of `count` targets (`struct dm_target_spec`: start, length, status, offset of the next one, type).
fn parse_dm_targets(data: &[u8], count: u32) -> Option<Vec<String>> {
    let mut targets = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let spec = data.get(at..)?.get(..40)?;
        let name = spec[24..40].split(|b| *b == 0).next()?;
        targets.push(std::str::from_utf8(name).ok().filter(|n| n.chars().all(|c| c.is_ascii_graphic()))?.to_owned());
        let next = u32_at(spec, 20)? as usize;
        if targets.len() < count as usize && next <= at {
            return None;
        }
        at = next;
    }
    Some(targets)
}

/// Device numbers of a table (`struct dm_target_deps`: count, padding, numbers).
fn parse_dm_devices(data: &[u8]) -> Option<Vec<DevNo>> {
    let count = u32_at(data, 0)? as usize;
    let numbers = data.get(8..)?.get(..count.checked_mul(8)?)?;
    let number = |c: &[u8]| Some(DevNo::from_raw(u64::from_ne_bytes(c.try_into().ok()?)));
    numbers.chunks_exact(8).map(number).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn spec(next: u32, kind: &str) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[20..24].copy_from_slice(&next.to_ne_bytes());
        bytes[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
        bytes
    }

    #[test]
    fn the_table_of_the_device_mapper_is_understood() {
        let status = [spec(48, "linear"), vec![0; 8], spec(88, "crypt")].concat();
        assert_eq!(parse_dm_targets(&status, 2).unwrap(), ["linear", "crypt"]);
        assert_eq!(parse_dm_targets(&status, 0).unwrap(), Vec::<String>::new());
        // More targets than are there; a circle; a type that is no word.
        assert_eq!(parse_dm_targets(&status, 3), None);
        assert_eq!(parse_dm_targets(&[spec(0, "linear"), spec(0, "linear")].concat(), 2), None);
        assert_eq!(parse_dm_targets(&spec(40, "a\nb"), 1), None);
        // 8:1 and 259:300, as the kernel encodes them (huge_encode_dev).
        let encoded = |major: u64, minor: u64| (minor & 0xFF) | (major << 8) | ((minor & !0xFF) << 12);
        let deps: Vec<u8> = [2, encoded(8, 1), encoded(259, 300)].iter().flat_map(|n: &u64| n.to_ne_bytes()).collect();
        assert_eq!(parse_dm_devices(&deps).unwrap(), [DevNo { major: 8, minor: 1 }, DevNo { major: 259, minor: 300 }]);
        assert_eq!(parse_dm_devices(&deps[..23]), None);
        assert_eq!(parse_dm_devices(&u64::MAX.to_ne_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_answer_of_the_device_mapper_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), n in any::<u32>()) {
            let _ = parse_dm_targets(&bytes, n);
            let _ = parse_dm_devices(&bytes);
        }
    }

    #[test]
    fn sense_keys_are_found_in_both_formats() {
        assert_eq!(sense_key(&[0x70, 0, 0x06, 0, 0, 0, 0, 10]), Some(6));
        assert_eq!(sense_key(&[0xF2, 0x06, 0x29, 0]), Some(6));
        assert_eq!((sense_key(&[0; 64]), sense_key(&[0x70]), sense_key(&[])), (None, None, None));
    }

    #[test]
    fn what_is_not_such_a_device_does_not_answer() {
        use std::os::fd::AsFd;
        let file = tempfile::tempfile().unwrap();
        assert!(scsi_inquiry(file.as_fd(), true).is_err());
        assert!(nvme_identify(file.as_fd()).is_err() && nvme_identify_namespace(file.as_fd(), 1).is_err());
        assert!(loop_status(file.as_fd()).is_err());
        assert!(dm_table(&file, DevNo { major: 253, minor: 0 }).is_err());
        assert!(diskseq(file.as_fd()).is_err() && size_bytes(file.as_fd()).is_err());
    }
}
