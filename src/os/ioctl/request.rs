//! The one call of ioctl(2), and the requests that may be sent with it.
//!
//! A [`Request`] ties the number of a request to the type of its data. Only this file makes them, so safe code cannot
//! hand the kernel memory that is too small. A structure that points to other memory borrows that memory.
//!
//! Numbers and `loop_info64` come from linux-raw-sys. What that crate lacks is written out here as the kernel's headers
//! have it.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::ioctl::{
    BLKGETDISKSEQ, BLKGETSIZE64, BLKROGET, DM_TABLE_DEPS, DM_TABLE_STATUS, NVME_IOCTL_ADMIN_CMD, NVME_IOCTL_ID,
};
use linux_raw_sys::loop_device::{LOOP_GET_STATUS64, loop_info64};

use crate::os::DevNo;

/// How long a device may take for one command, in milliseconds.
const TIMEOUT_MS: u32 = 5000;

/// A number of ioctl(2) whose data is one `T`: the kernel reads and writes a `T`, and the memory that the `T` borrows.
/// Every bit pattern of a `T` is a valid value.
pub struct Request<T> {
    number: u32,
    data: PhantomData<T>,
}

impl<T> Request<T> {
    /// Each constant below upholds the invariant of [`Request`].
    const fn new(number: u32) -> Self {
        Self { number, data: PhantomData }
    }

    /// Sends the request. Returns what the call returns, which for some requests is part of the answer.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub fn send(&self, fd: BorrowedFd<'_>, data: &mut T) -> io::Result<u32> {
        // SAFETY: by the invariant of `Request`, the kernel stays within `data` and the memory that it borrows, which
        // are exclusively ours for the length of the call. What the kernel leaves behind is a valid `T`.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), self.number.into(), std::ptr::from_mut(data)) };
        u32::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

/// The size of a block device in bytes (linux/fs.h).
pub const SIZE_BYTES: Request<u64> = Request::new(BLKGETSIZE64);
/// The sequence number of a disk (linux/fs.h).
pub const DISKSEQ: Request<u64> = Request::new(BLKGETDISKSEQ);
/// Whether a block device is read-only: then not 0 (linux/fs.h).
pub const READ_ONLY: Request<libc::c_int> = Request::new(BLKROGET);
/// What a loop device is bound to (linux/loop.h).
pub const LOOP_STATUS: Request<loop_info64> = Request::new(LOOP_GET_STATUS64);
/// One command to a SCSI disk; `SG_IO` (scsi/sg.h).
pub const SCSI: Request<ScsiTransfer<'static>> = Request::new(0x2285);
/// The number of an NVMe namespace is what the call returns (linux/nvme_ioctl.h). It has no data.
pub const NVME_ID: Request<()> = Request::new(NVME_IOCTL_ID);
/// One command to an NVMe controller, whose status is what the call returns (linux/nvme_ioctl.h).
pub const NVME_ADMIN: Request<NvmeCommand<'static>> = Request::new(NVME_IOCTL_ADMIN_CMD);
/// The devices that the table of a device mapper's device uses (linux/dm-ioctl.h).
pub const DM_DEPS: Request<DmQuestion> = Request::new(DM_TABLE_DEPS);
/// The types and states of the targets of such a table (linux/dm-ioctl.h).
pub const DM_STATUS: Request<DmQuestion> = Request::new(DM_TABLE_STATUS);

/// A `loop_info64` for the kernel to fill.
pub const EMPTY_LOOP_INFO: loop_info64 = loop_info64 {
    lo_device: 0,
    lo_inode: 0,
    lo_rdevice: 0,
    lo_offset: 0,
    lo_sizelimit: 0,
    lo_number: 0,
    lo_encrypt_type: 0,
    lo_encrypt_key_size: 0,
    lo_flags: 0,
    lo_file_name: [0; 64],
    lo_crypt_name: [0; 64],
    lo_encrypt_key: [0; 32],
    lo_init: [0; 2],
};

/// Room for the sense data of a command that fails.
pub const SENSE_BYTES: usize = 64;

/// `SG_DXFER_FROM_DEV` of scsi/sg.h.
const SG_DXFER_FROM_DEV: libc::c_int = -3;

/// `struct sg_io_hdr` of scsi/sg.h, for a command that reads.
#[repr(C)]
pub struct ScsiTransfer<'a> {
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
    /// Status of the command.
    pub status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    /// Status of the host adapter.
    pub host_status: u16,
    /// Status of the driver.
    pub driver_status: u16,
    /// How many bytes of the buffer were not filled.
    pub resid: libc::c_int,
    duration: u32,
    info: u32,
    buffers: PhantomData<&'a mut [u8]>,
}

impl<'a> ScsiTransfer<'a> {
    /// A command that reads into `data` and, when it fails, into `sense`.
    pub fn read(command: &'a [u8], data: &'a mut [u8], sense: &'a mut [u8; SENSE_BYTES]) -> Self {
        Self {
            interface_id: 'S' as libc::c_int,
            dxfer_direction: SG_DXFER_FROM_DEV,
            cmd_len: u8::try_from(command.len()).unwrap_or(u8::MAX),
            mx_sb_len: u8::try_from(SENSE_BYTES).unwrap_or(u8::MAX),
            iovec_count: 0,
            dxfer_len: u32::try_from(data.len()).unwrap_or(u32::MAX),
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
            buffers: PhantomData,
        }
    }
}

/// `struct nvme_passthru_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
pub struct NvmeCommand<'a> {
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
    data: PhantomData<&'a mut [u8]>,
}

const _: () = assert!(size_of::<NvmeCommand<'_>>() == 72);

/// Bytes that the Identify command of NVMe answers with.
pub const IDENTIFY_BYTES: usize = 4096;

impl<'a> NvmeCommand<'a> {
    /// The Identify command.
    pub fn identify(nsid: u32, cns: u32, data: &'a mut [u8; IDENTIFY_BYTES]) -> Self {
        Self {
            opcode: 6, // Identify
            nsid,
            addr: data.as_mut_ptr().expose_provenance() as u64,
            data_len: u32::try_from(IDENTIFY_BYTES).unwrap_or(u32::MAX),
            cdw10: cns,
            timeout_ms: TIMEOUT_MS,
            ..Self::default()
        }
    }
}

/// Room for an answer of the device mapper, in bytes.
pub const DM_DATA: usize = 16 << 10;
/// Where that room begins: the size of a `struct dm_ioctl`.
pub const DM_HEADER: u32 = 312;

// Flags of linux/dm-ioctl.h.

/// The device is suspended.
pub const DM_SUSPEND: u32 = 1 << 1;
/// A table is in use.
pub const DM_ACTIVE_PRESENT: u32 = 1 << 5;
/// Another table is loaded.
pub const DM_INACTIVE_PRESENT: u32 = 1 << 6;
/// The answer does not fit.
pub const DM_BUFFER_FULL: u32 = 1 << 8;
/// The kernel is not to flush the device before it answers.
const DM_NOFLUSH: u32 = 1 << 11;
/// The kernel itself has suspended the device.
pub const DM_INTERNAL_SUSPEND: u32 = 1 << 18;

/// `struct dm_ioctl` of linux/dm-ioctl.h, and room for the answer.
#[repr(C)]
pub struct DmQuestion {
    version: [u32; 3],
    /// Size of the whole, within which the kernel stays.
    data_size: u32,
    /// Where the answer begins.
    pub data_start: u32,
    /// How many targets the table has.
    pub target_count: u32,
    open_count: i32,
    /// Flags, for the kernel and then from it.
    pub flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    end: [u8; 7],
    /// The answer.
    pub data: [u8; DM_DATA],
}

const _: () = assert!(size_of::<DmQuestion>() == DM_HEADER as usize + DM_DATA);

impl DmQuestion {
    /// A question about a device of the device mapper.
    pub fn about(dev: DevNo) -> Box<Self> {
        let minor = u64::from(dev.minor);
        Box::new(Self {
            version: [4, 0, 0],
            data_size: u32::try_from(size_of::<Self>()).unwrap_or(u32::MAX),
            data_start: DM_HEADER,
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
        })
    }
}
