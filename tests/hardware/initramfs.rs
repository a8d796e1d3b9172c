//! The guest's first file system: programs with their libraries, modules, what runs there, documents.

use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio;
use crate::failure::{During, Result, failed};
use crate::packages::Packages;
use crate::programs;
use crate::registries;
use crate::tables::Tables;

/// Bound of one look into a program or into the modules, in seconds.
const LOOK_MAX: u64 = 300;

/// Folders that the guest finds.
const FOLDERS: [&str; 9] = ["bin", "lib", "lib64", "dev", "proc", "sys", "modules", "registries", "hardware"];

/// The guest's first file system, as a folder.
pub struct Initramfs {
    folder: PathBuf,
}

impl Initramfs {
    /// Puts it together in `work`; with `record`, the guest also tells what /sys shows of each device.
    pub fn make(work: &Path, packages: &Packages, tables: &Tables, scelle: &Path, record: bool) -> Result<Self> {
        let made = Self { folder: work.join("initramfs") };
        for folder in FOLDERS {
            let folder = made.folder.join(folder);
            fs::create_dir_all(&folder).during(|| format!("make {}", folder.display()))?;
        }
        for name in ["busybox", "nbd-server", "nbd-client", "mdadm", "dmsetup"] {
            made.program(packages, &packages.tool(name)?, name)?;
        }
        made.program(packages, scelle, "scelle")?;
        let loader = made.folder.join("lib64/ld-linux-x86-64.so.2");
        symlink("../lib/ld-linux-x86-64.so.2", &loader).during(|| format!("make {}", loader.display()))?;
        made.modules(packages, tables)?;
        made.scripts(tables)?;
        if record {
            made.write("hardware/record", "")?;
        }
        registries::make(scelle, work, &made.folder, &tables.folder.join("registry.toml"))?;
        Ok(made)
    }

    /// Packs it into the archive `out`, for a machine that is to run these cases.
    pub fn pack(&self, cases: &[&str], out: &Path) -> Result<()> {
        self.write("hardware/wanted", &(cases.join("\n") + "\n"))?;
        cpio::pack(&self.folder, out)
    }

    /// What runs in the guest, and what it knows of the devices.
    fn scripts(&self, tables: &Tables) -> Result<()> {
        for name in ["talk", "guest-made", "cases"] {
            self.install(&tables.folder.join(name), &format!("hardware/{name}"), 0o644)?;
        }
        self.install(&tables.folder.join("init"), "init", 0o755)?;
        let mut devices = String::new();
        for device in &tables.devices {
            let (name, find, expect) = (&device.name, &device.find, &device.expect);
            writeln!(devices, "{name}|find|{find}\n{name}|expect|{expect}").map_err(|_| failed("out of memory"))?;
        }
        self.write("hardware/devices", &devices)
    }

    /// Copies a program and the libraries it asks for.
    fn program(&self, packages: &Packages, program: &Path, name: &str) -> Result<()> {
        self.install(program, &format!("bin/{name}"), 0o755)?;
        // A static program has none, and ldd says so with an error.
        let mut ldd = Command::new("ldd");
        let told = programs::run(ldd.arg(program).env("LD_LIBRARY_PATH", packages.libraries()), LOOK_MAX)?.output;
        if let Some(line) = told.lines().find(|line| line.contains("not found")) {
            return Err(failed(format!("{} lacks a library: {}", program.display(), line.trim())));
        }
        for library in
            told.split_whitespace().filter(|word| word.starts_with('/')).map(|word| word.trim_end_matches(':'))
        {
            let library = Path::new(library);
            // A program that is its own loader names itself.
            if let Some(name) = library.file_name().filter(|_| library != program) {
                self.install(library, &format!("lib/{}", name.display()), 0o755)?;
            }
        }
        Ok(())
    }

    /// Copies the modules, each after what it needs, and writes that order down, with their options.
    fn modules(&self, packages: &Packages, tables: &Tables) -> Result<()> {
        let mut depmod = Command::new(packages.tool("busybox")?);
        programs::output(depmod.args(["depmod", "-b"]).arg(packages.root()).arg(&packages.release), LOOK_MAX)?;
        let base = packages.root().join("lib/modules").join(&packages.release);
        let path = base.join("modules.dep");
        let needs = fs::read_to_string(&path).during(|| format!("read {}", path.display()))?;
        let mut order: Vec<String> = Vec::new();
        let mut copied = Vec::new();
        for module in &tables.modules {
            let files = with_needs(&needs, &module.name)?;
            let last = files.len() - 1;
            for (number, file) in files.into_iter().enumerate() {
                let name = file.rsplit('/').next().unwrap_or(file);
                if copied.contains(&name) {
                    continue;
                }
                self.install(&base.join(file), &format!("modules/{name}"), 0o644)?;
                // The options are for the module that was asked for, which is the last.
                let options = if number == last { module.options.as_str() } else { "" };
                order.push(format!("{name} {options}").trim_end().to_owned());
                copied.push(name);
            }
        }
        self.write("modules/order", &(order.join("\n") + "\n"))
    }

    /// Copies a file, what a link points to, with these permissions.
    fn install(&self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let to = self.folder.join(to);
        let copied = fs::copy(from, &to).and_then(|_| fs::set_permissions(&to, Permissions::from_mode(mode)));
        copied.during(|| format!("copy {} to {}", from.display(), to.display()))
    }

    /// Writes a file.
    fn write(&self, to: &str, text: &str) -> Result<()> {
        let to = self.folder.join(to);
        fs::write(&to, text).during(|| format!("write {}", to.display()))
    }
}

/// The files of a module and of those it needs, the deepest first and its own last, of the text of modules.dep.
fn with_needs<'a>(needs: &'a str, module: &str) -> Result<Vec<&'a str>> {
    let is_it = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        name.split(".ko").next().unwrap_or(name).replace('-', "_") == module
    };
    let mut told = needs.lines().filter_map(|line| line.split_once(':'));
    let (file, rest) = told.find(|(file, _)| is_it(file)).ok_or_else(|| {
        failed(format!("Debian's kernel has no module {module}: take it out of modules.table, or name another"))
    })?;
    let mut files: Vec<&str> = rest.split_whitespace().collect();
    files.reverse();
    files.push(file);
    Ok(files)
}
