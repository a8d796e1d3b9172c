//! The questions that are put to an open device by ioctl(2): sizes, who it is, what its driver has below it.
//!
//! Every question only reads. Answers are bytes or plain numbers; [`probe::live`](crate::probe::live) and `parse_dm_targets` make
//! sense of them, and believe none of their lengths. A device gets `TIMEOUT_MS` for each command; when it does not
//! answer, the kernel's error handling may take longer than that before the call returns.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::DevNo;

/// How long a device may take for one command, in milliseconds.
const TIMEOUT_MS: u32 = 5000;

/// `BLKSSZGET`, `BLKROGET`, `BLKGETSIZE64`, `BLKGETDISKSEQ` (linux/fs.h).
const BLKSSZGET: u64 = 0x1268;
const BLKROGET: u64 = 0x125E;
const BLKGETSIZE64: u64 = 0x8008_1272;
const BLKGETDISKSEQ: u64 = 0x8008_1280;
/// `LOOP_GET_STATUS64` (linux/loop.h).
const LOOP_GET_STATUS64: u64 = 0x4C05;
/// `SG_IO` (scsi/sg.h).
const SG_IO: u64 = 0x2285;
/// `NVME_IOCTL_ID`, `NVME_IOCTL_ADMIN_CMD` (linux/nvme_ioctl.h).
const NVME_IOCTL_ID: u64 = 0x4E40;
const NVME_IOCTL_ADMIN_CMD: u64 = 0xC048_4E41;
/// `DM_TABLE_DEPS`, `DM_TABLE_STATUS` (linux/dm-ioctl.h).
const DM_TABLE_DEPS: u64 = 0xC138_FD0B;
const DM_TABLE_STATUS: u64 = 0xC138_FD0C;

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
    /// MODE SENSE(10) of page 8, when it has one.
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
    /// Whether it is suspended: transfers wait, and a new table may be put in.
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
    /// The block device it is bound to, when it is bound to one instead of a file.
    pub block_device: Option<DevNo>,
    /// First byte that the device shows.
    pub offset: u64,
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232);

/// `struct sg_io_hdr` of scsi/sg.h.
#[repr(C)]
struct SgIoHdr {
    interface_id: libc::c_int,
    dxfer_direction: libc::c_int,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: libc::c_int,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: libc::c_int,
    duration: u32,
    info: u32,
}

/// `struct nvme_passthru_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<NvmeCommand>() == 72);

/// What the loop driver says of an open loop device.
pub fn loop_status(fd: BorrowedFd<'_>) -> io::Result<LoopStatus> {
    let mut info = std::mem::MaybeUninit::<LoopInfo64>::zeroed();
    // SAFETY: the ioctl fills at most a `struct loop_info64`, whose layout `LoopInfo64` has.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), LOOP_GET_STATUS64 as _, info.as_mut_ptr()) })?;
    // SAFETY: zeroed before, and every bit pattern is a valid value.
    let info = unsafe { info.assume_init() };
    Ok(LoopStatus {
        fs_device: DevNo::from_raw(info.device),
        inode: info.inode,
        block_device: (info.rdevice != 0).then(|| DevNo::from_raw(info.rdevice)),
        offset: info.offset,
    })
}

/// Size in bytes of an open block device.
pub fn size_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the ioctl writes one u64.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) })?;
    Ok(size)
}

/// Logical block size in bytes of an open block device.
pub fn logical_block_size(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: the ioctl writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET as _, &raw mut size) })?;
    u32::try_from(size).map_err(io::Error::other)
}

/// Whether an open block device is read-only.
pub fn is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: the ioctl writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKROGET as _, &raw mut flag) })?;
    Ok(flag != 0)
}

/// The kernel's sequence number of an open disk (Linux 5.15).
pub fn diskseq(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut sequence = 0u64;
    // SAFETY: the ioctl writes one u64.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETDISKSEQ as _, &raw mut sequence) })?;
    Ok(sequence)
}

/// Asks a SCSI disk who it is (SPC-4: INQUIRY, its pages 0x80 and 0x83, the caching mode page), and an ATA one behind
/// the kernel's translation also directly (ACS-3: IDENTIFY DEVICE): the translation answers from the kernel's memory.
pub fn scsi_inquiry(fd: BorrowedFd<'_>, ata: bool) -> io::Result<ScsiAnswers> {
    let page = |page: u8, len: u16| {
        let [high, low] = len.to_be_bytes();
        scsi_read(fd, &[0x12, 1, page, high, low, 0], len)
    };
    Ok(ScsiAnswers {
        standard: scsi_read(fd, &[0x12, 0, 0, 0, 96, 0], 96)?,
        serial: page(0x80, 252)?,
        designators: page(0x83, 2048)?,
        // Not every disk has a caching page; the kernel then takes it for one without a volatile cache.
        caching: scsi_read(fd, &[0x5A, 8, 8, 0, 0, 0, 0, 0, 64, 0], 64).ok(),
        // ATA PASS-THROUGH(16), PIO data-in, one block (SAT-3, 12.2.2).
        ata: match ata {
            true => Some(scsi_read(fd, &[0x85, 4 << 1, 0x0E, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xEC, 0], 512)?),
            false => None,
        },
    })
}

/// One command that reads at most `len` bytes from the device. A unit attention (the disk was reset, say) is told once
/// and fails the command that happens to come next: that one is sent again.
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
    let mut sense = [0u8; 64];
    let mut header = SgIoHdr {
        interface_id: 'S' as libc::c_int,
        dxfer_direction: -3, // SG_DXFER_FROM_DEV
        cmd_len: command.len() as u8,
        mx_sb_len: sense.len() as u8,
        iovec_count: 0,
        dxfer_len: len.into(),
        dxferp: data.as_mut_ptr(),
        cmdp: command.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: TIMEOUT_MS,
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: `SgIoHdr` has the layout of `struct sg_io_hdr`; its three pointers lead to live buffers of the lengths
    // it gives, and the call returns only when the command is over.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), SG_IO as _, &raw mut header) })
        .map_err(|error| ScsiFailed { error, unit_attention: false })?;
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

/// Asks an NVMe namespace and its controller who they are (NVMe base specification, Identify: CNS 1, 0 and 3).
pub fn nvme_identify(fd: BorrowedFd<'_>) -> io::Result<NvmeAnswers> {
    // SAFETY: NVME_IOCTL_ID takes no argument.
    let nsid = unsafe { libc::ioctl(fd.as_raw_fd(), NVME_IOCTL_ID as _) };
    check(nsid)?;
    nvme_identify_namespace(fd, nsid as u32)
}

/// Asks the controller behind `fd`, which may be its own node, who it is and what it says of a namespace.
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

fn nvme_read(fd: BorrowedFd<'_>, nsid: u32, cns: u32) -> io::Result<(u32, Vec<u8>)> {
    let mut data = vec![0u8; 4096];
    let mut command = NvmeCommand {
        opcode: 6, // Identify
        nsid,
        addr: data.as_mut_ptr().expose_provenance() as u64,
        data_len: 4096,
        cdw10: cns,
        timeout_ms: TIMEOUT_MS,
        ..NvmeCommand::default()
    };
    // SAFETY: `NvmeCommand` has the layout of `struct nvme_passthru_cmd`; Identify writes at most 4096 bytes to `addr`,
    // which `data` has, and the call returns only when the command is over.
    let status = unsafe { libc::ioctl(fd.as_raw_fd(), NVME_IOCTL_ADMIN_CMD as _, &raw mut command) };
    check(status)?;
    Ok((status as u32, data))
}

/// Room for an answer of the device mapper, in bytes.
const DM_DATA: usize = 16 << 10;
/// Flags of linux/dm-ioctl.h.
const DM_SUSPEND: u32 = 1 << 1;
const DM_ACTIVE_PRESENT: u32 = 1 << 5;
const DM_INACTIVE_PRESENT: u32 = 1 << 6;
const DM_BUFFER_FULL: u32 = 1 << 8;
const DM_NOFLUSH: u32 = 1 << 11;
const DM_INTERNAL_SUSPEND: u32 = 1 << 18;

/// `struct dm_ioctl` of linux/dm-ioctl.h, and room for the answer.
#[repr(C)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    end: [u8; 7],
    data: [u8; DM_DATA],
}

const _: () = assert!(size_of::<DmIoctl>() == 312 + DM_DATA);

/// The table of a device of the device mapper, by its control node.
///
/// Types of targets come from their *status*, devices from the table's *dependencies*: the table itself
/// (`DM_STATUS_TABLE_FLAG`) would show the keys of dm-crypt, which have no business in our memory.
pub fn dm_table(control: &File, dev: DevNo) -> io::Result<DmTable> {
    let status = dm_ask(control, DM_TABLE_STATUS, dev)?;
    let deps = dm_ask(control, DM_TABLE_DEPS, dev)?;
    let malformed = || io::Error::other("the device mapper's answer is malformed");
    Ok(DmTable {
        targets: parse_dm_targets(&status.data, status.target_count).ok_or_else(malformed)?,
        devices: parse_dm_devices(&deps.data).ok_or_else(malformed)?,
        suspended: status.flags & (DM_SUSPEND | DM_INTERNAL_SUSPEND) != 0,
        active: status.flags & DM_ACTIVE_PRESENT != 0,
        inactive: status.flags & DM_INACTIVE_PRESENT != 0,
    })
}

fn dm_ask(control: &File, request: u64, dev: DevNo) -> io::Result<Box<DmIoctl>> {
    let minor = u64::from(dev.minor);
    let mut question = Box::new(DmIoctl {
        version: [4, 0, 0],
        data_size: size_of::<DmIoctl>() as u32,
        data_start: 312,
        target_count: 0,
        open_count: 0,
        flags: DM_NOFLUSH,
        event_nr: 0,
        padding: 0,
        dev: (minor & 0xFF) | (u64::from(dev.major) << 8) | ((minor & !0xFF) << 12),
        name: [0; 128],
        uuid: [0; 129],
        end: [0; 7],
        data: [0; DM_DATA],
    });
    // SAFETY: `DmIoctl` begins with a `struct dm_ioctl` that says the length of the whole, within which the kernel
    // writes; every bit pattern is a valid value.
    check(unsafe { libc::ioctl(control.as_raw_fd(), request as _, &raw mut *question) })?;
    if question.flags & DM_BUFFER_FULL != 0 || question.data_start != 312 {
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

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
