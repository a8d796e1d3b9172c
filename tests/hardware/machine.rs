//! The machine: QEMU with the disks of the table, by software emulation, and our two conversations with it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::disks;
use crate::failure::{During, Failure, Result, failed};
use crate::interrupt;
use crate::lines::{Heard, Lines};
use crate::packages::Packages;
use crate::programs::Running;
use crate::qmp::{Nvme, PATIENCE, Qmp};
use crate::tables::{Device, SPARES, Tables};

/// Longest time that one machine may run.
pub const BOOT_MAX: Duration = Duration::from_secs(1000);

/// Longest time that a machine may take to turn itself off after its cases.
const OFF_MAX: Duration = Duration::from_secs(10);

/// The guest's memory: room for argon2id's default of 256 MiB beside everything else.
const MEMORY: &str = "1536M";

/// Controllers and ports that the devices of the table hang on.
const CONTROLLERS: [&str; 11] = [
    "pcie-root-port,id=port-a,chassis=1,slot=1",
    "pcie-root-port,id=port-b,chassis=2,slot=2",
    "nvme-subsys,id=dual,nqn=court-dual",
    "nvme,id=dual-1,subsys=dual,serial=COURT-NVME-D",
    "nvme,id=dual-2,subsys=dual,serial=COURT-NVME-D",
    "mptsas1068,id=sas",
    "megasas-gen2,id=raid,addr=0x10",
    "virtio-scsi-pci,id=vscsi",
    "qemu-xhci,id=usb",
    "usb-uas,id=uas,bus=usb.0,port=1",
    "sdhci-pci,id=sdhci",
];

/// What a machine is, by its firmware and its processor: arguments of QEMU.
fn kind(boot: &str) -> Result<[&str; 4]> {
    match boot {
        "court" => Ok(["-cpu", "max", "-smbios", "type=1,manufacturer=QEMU,product=Standard"]),
        "amazon" => Ok(["-cpu", "max,hypervisor=off", "-smbios", "type=1,manufacturer=Amazon EC2,product=m5.metal"]),
        _ => Err(failed(format!("results.table: boot {boot}: it is neither court nor amazon"))),
    }
}

/// A machine that runs. It does not outlive this value.
pub struct Machine {
    /// The conversation with QEMU.
    qmp: Qmp,
    /// The conversation with the guest.
    talk: Lines,
    /// QEMU.
    qemu: Running,
    /// When the machine has run for too long.
    pub until: Instant,
}

impl Machine {
    /// Starts a machine with the archive initramfs of the folder `work`, where the images are too and the logs go.
    pub fn boot(name: &str, work: &Path, packages: &Packages, tables: &Tables) -> Result<Self> {
        // We listen and QEMU calls, so that no word of theirs comes too early.
        let (qmp_socket, talk_socket) = (listen(&work.join("qmp"))?, listen(&work.join("talk"))?);
        let log = work.join(format!("qemu-{name}.log"));
        let out = || File::options().create(true).append(true).open(&log).during(|| format!("write {}", log.display()));
        let mut command = command(packages)?;
        command.args(whole(name, work, &packages.kernel)).args(devices(work, tables)).args(kind(name)?);
        let mut qemu = Running::start(command.stdin(Stdio::null()).stdout(out()?).stderr(out()?))?;
        let begun = conversations(&mut qemu, &qmp_socket, &talk_socket);
        let (qmp, talk) = begun.map_err(|failure| match failure {
            Failure::Failed(text) => {
                let said = fs::read_to_string(&log).unwrap_or_default();
                failed(format!("QEMU does not start: {text}\n{}", said.trim_end()))
            }
            other => other,
        })?;
        Ok(Self { qmp, talk, qemu, until: Instant::now() + BOOT_MAX })
    }

    /// Waits for the guest's next line.
    pub fn hear(&mut self, until: Instant) -> Result<Heard> {
        self.talk.next(until)
    }

    /// Says a line to the guest.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.talk.say(line)
    }

    /// Pulls a disk, and waits until the guest has let go of it.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        self.qmp.device_del(id)
    }

    /// Puts an NVMe disk into the port that the first one is in at the start.
    pub fn plug(&mut self, id: &str, serial: &str, drive: &str) -> Result<()> {
        self.qmp.device_add(&Nvme { driver: "nvme", id, bus: "port-a", serial, drive })
    }

    /// Gives the machine time to turn itself off; one that has not is turned off.
    pub fn end(mut self) -> Result<()> {
        self.qemu.wait(Instant::now() + OFF_MAX).map(|_| ())
    }
}

/// QEMU, unpacked or installed. The kernel ends it when we end, whatever ends us.
fn command(packages: &Packages) -> Result<Command> {
    let root = packages.root();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(packages.tool("qemu-system-x86_64")?);
    for folder in ["qemu", "seabios"] {
        command.arg("-L").arg(root.join("usr/share").join(folder));
    }
    command.env("LD_LIBRARY_PATH", packages.libraries());
    command.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
    Ok(command)
}

/// The machine without its disks: arguments of QEMU. The first serial line is the console, the second leads to us.
fn whole(name: &str, work: &Path, kernel: &Path) -> Vec<String> {
    let work = work.display();
    let fixed = "-nodefaults -no-user-config -no-reboot -display none -machine q35 -accel tcg,thread=multi -smp 2";
    let mut arguments: Vec<String> = fixed.split(' ').map(str::to_owned).collect();
    let options = [
        ("-m", MEMORY.to_owned()),
        ("-chardev", format!("socket,id=qmp,path={work}/qmp")),
        ("-chardev", format!("socket,id=talk,path={work}/talk")),
        ("-mon", "chardev=qmp,mode=control".to_owned()),
        ("-serial", format!("file:{work}/console-{name}.log")),
        ("-serial", "chardev:talk".to_owned()),
        ("-kernel", kernel.display().to_string()),
        ("-initrd", format!("{work}/initramfs.cpio")),
        ("-append", "console=ttyS0 panic=-1 loglevel=4".to_owned()),
    ];
    arguments.extend(options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]));
    arguments
}

/// The controllers, the media and the disks: arguments of QEMU.
fn devices(work: &Path, tables: &Tables) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    for controller in CONTROLLERS {
        add("-device", controller.to_owned());
    }
    for spare in SPARES {
        add("-blockdev", medium(work, spare));
    }
    for (device, _) in tables.disks() {
        add("-blockdev", medium(work, &device.name));
        add("-device", on_medium(device));
    }
    arguments
}

/// The medium of a disk, as QEMU is told of it.
fn medium(work: &Path, name: &str) -> String {
    let path = disks::path(work, name);
    format!("driver=raw,node-name={name},file.driver=file,file.filename={}", path.display())
}

/// A device of the table with its medium. The table writes a blank within a name as a shell would.
fn on_medium(device: &Device) -> String {
    let name = &device.name;
    device.qemu.replacen("IMAGE", &format!("drive={name},id={name}"), 1).replace("\\ ", " ")
}

/// A socket of ours, where nobody listens any more.
fn listen(path: &Path) -> Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).during(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    listener.during(|| format!("listen on {} (a path of at most 107 bytes: TMPDIR must be short)", path.display()))
}

/// Waits for QEMU's two calls, and greets it.
fn conversations(qemu: &mut Running, qmp: &UnixListener, talk: &UnixListener) -> Result<(Qmp, Lines)> {
    let until = Instant::now() + PATIENCE;
    let (qmp, talk) = (accept(qemu, qmp, until)?, accept(qemu, talk, until)?);
    Ok((Qmp::greet(qmp)?, Lines::new(talk)?))
}

/// Waits for a call of QEMU.
fn accept(qemu: &mut Running, socket: &UnixListener, until: Instant) -> Result<UnixStream> {
    loop {
        match socket.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).during(|| "take QEMU's call".to_owned()),
        }
        if let Some(status) = qemu.ended()? {
            return Err(failed(format!("it has ended, {status}")));
        }
        if !interrupt::pause(until)? {
            return Err(failed(format!("it has not called within {} s", PATIENCE.as_secs())));
        }
    }
}
