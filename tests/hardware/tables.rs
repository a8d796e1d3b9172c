//! The tables: which devices there are, what must come out, what the guest loads.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{During, Result, failed};

/// Disks that are put in later: not in devices.table, because no device shows them at the start.
pub const SPARES: [&str; 2] = ["swap-other", "swap-same"];

/// What a disk holds at the start.
#[derive(Clone, Copy)]
pub enum Image {
    /// Zeros.
    Blank,
    /// Noise.
    Filled,
    /// Noise after a partition table with one partition.
    Disk,
}

/// A line of devices.table.
pub struct Device {
    /// How the device is called here.
    pub name: String,
    /// What the disk holds; nothing for a device that the guest makes itself.
    pub image: Option<Image>,
    /// The device as QEMU is told of it, with the word IMAGE in it.
    pub qemu: String,
    /// How the guest knows it.
    pub find: String,
    /// The verdict that it must get.
    pub expect: String,
}

/// A line of results.table.
pub struct Row {
    /// The machine on which the result comes.
    pub boot: String,
    /// The case that leaves it.
    pub case: String,
    /// The name of the result, or a group of them: `verdict/*`.
    pub result: String,
    /// What the result proves.
    pub proves: String,
}

/// A line of modules.table.
pub struct Module {
    /// The name that the kernel has for the module.
    pub name: String,
    /// The options that it is loaded with.
    pub options: String,
}

/// All the tables.
pub struct Tables {
    /// The folder of the tables, and of what runs in the guest.
    pub folder: PathBuf,
    /// The devices.
    pub devices: Vec<Device>,
    /// The results that must come.
    pub rows: Vec<Row>,
    /// The modules that the guest loads, in this order.
    pub modules: Vec<Module>,
}

impl Tables {
    /// Reads the tables of a folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let devices = lines(folder, "devices.table")?.into_iter().map(device).collect::<Result<_>>()?;
        let row = |[boot, case, result, proves]: [String; 4]| Row { boot, case, result, proves };
        let module = |[name, options]: [String; 2]| Module { name, options };
        Ok(Self {
            folder: folder.to_owned(),
            devices,
            rows: lines(folder, "results.table")?.into_iter().map(row).collect(),
            modules: lines(folder, "modules.table")?.into_iter().map(module).collect(),
        })
    }

    /// The machines, in the order of the table.
    pub fn boots(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.boot.as_str()))
    }

    /// The cases of a machine, in the order of the table.
    pub fn cases(&self, boot: &str) -> Vec<&str> {
        distinct(self.rows.iter().filter(|row| row.boot == boot).map(|row| row.case.as_str()))
    }

    /// The devices that have a disk of their own.
    pub fn disks(&self) -> impl Iterator<Item = (&Device, Image)> {
        self.devices.iter().filter_map(|device| Some((device, device.image?)))
    }

    /// The disks on which no volume is made, and whose images must therefore stay as they are: those of devices.table
    /// but for the three of the volume, and those that take a pulled disk's place.
    pub fn images_kept(&self) -> Vec<&str> {
        let of_table = self.disks().map(|(device, _)| device.name.as_str()).filter(|name| !name.ends_with("-a"));
        of_table.chain(SPARES).collect()
    }

    /// The names of the results that a case must leave.
    pub fn expected(&self, case: &str) -> Vec<String> {
        self.rows.iter().filter(|row| row.case == case).flat_map(|row| self.members(&row.result)).collect()
    }

    /// The results that a name of results.table stands for.
    fn members(&self, result: &str) -> Vec<String> {
        let Some(group) = result.strip_suffix("/*") else { return vec![result.to_owned()] };
        let devices = self.devices.iter();
        let names: Vec<&str> = match group {
            "verdict" => devices.map(|device| device.name.as_str()).collect(),
            "refused" => devices.filter(|d| d.expect.starts_with("refused")).map(|d| d.name.as_str()).collect(),
            "unchanged" => self.images_kept(),
            // No result will have this name: it is missed.
            _ => vec!["*"],
        };
        names.into_iter().map(|name| format!("{group}/{name}")).collect()
    }

    /// What a result proves; of a verdict, which one it must be.
    pub fn meaning(&self, name: &str) -> &str {
        if let Some(device) = name.strip_prefix("verdict/") {
            return self.devices.iter().find(|known| known.name == device).map_or("", |known| known.expect.as_str());
        }
        let group = format!("{}/*", name.split('/').next().unwrap_or_default());
        let row = self.rows.iter().find(|row| row.result == name || row.result == group);
        row.map_or("", |row| row.proves.as_str())
    }
}

/// A device of its line.
fn device([name, image, qemu, find, expect]: [String; 5]) -> Result<Device> {
    let image = match image.as_str() {
        "-" => None,
        "blank" => Some(Image::Blank),
        "filled" => Some(Image::Filled),
        "disk" => Some(Image::Disk),
        _ => {
            return Err(failed(format!(
                "devices.table: image {image} of {name}: it is none of blank, filled, disk, -"
            )));
        }
    };
    Ok(Device { name, image, qemu, find, expect })
}

/// The lines of a table without comments, each in its `N` fields.
fn lines<const N: usize>(folder: &Path, table: &str) -> Result<Vec<[String; N]>> {
    let path = folder.join(table);
    let text = fs::read_to_string(&path).during(|| format!("read {}", path.display()))?;
    let told = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    told.map(|line| {
        let fields: Vec<String> = line.split('|').map(|field| field.trim().to_owned()).collect();
        fields.try_into().map_err(|_| failed(format!("{table}: a line has not its {N} fields: {line}")))
    })
    .collect()
}

/// Each of these once, where it comes first.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}
