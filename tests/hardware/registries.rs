//! The documents that the guest works with: signed registries, the officers' keys, a passphrase.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::disks;
use crate::failure::{During, Result, failed};
use crate::programs;

/// Bound of a run of our program or of date, in seconds.
const RUN_MAX: u64 = 60;

/// The officers; both sign.
const OFFICERS: [&str; 2] = ["officer-a", "officer-b"];

/// A registry, as registry.toml with a few words put in.
struct Registry {
    name: &'static str,
    version: &'static str,
    /// Whether its policy allows virtual hosts.
    virtual_hosts: &'static str,
    /// The status of the disk court-nvme-a.
    status_a: &'static str,
}

/// The registries, one for each of what the cases try.
const REGISTRIES: [Registry; 4] = [
    Registry { name: "allowed", version: "1", virtual_hosts: "true", status_a: "approved" },
    Registry { name: "strict", version: "1", virtual_hosts: "false", status_a: "approved" },
    Registry { name: "revoking", version: "2", virtual_hosts: "true", status_a: "revoked" },
    Registry { name: "again", version: "3", virtual_hosts: "true", status_a: "approved" },
];

/// Makes keys in `work`, and below `root`, the guest's first file system, the documents. `template` is registry.toml.
pub fn make(scelle: &Path, work: &Path, root: &Path, template: &Path) -> Result<()> {
    let folder = root.join("registries");
    // The one in force: empty for now.
    make_folder(&folder.join("court"))?;
    write(&folder.join("trust.toml"), &trust(scelle, work)?)?;
    let template = fs::read_to_string(template).during(|| format!("read {}", template.display()))?;
    let (today, tomorrow) = (day("today")?, day("+2 days")?);
    let template = template.replace("TODAY", &today).replace("TOMORROW", &tomorrow);
    for registry in &REGISTRIES {
        let text = template.replace("SIZE", &disks::SIZE.to_string()).replace("VERSION", registry.version);
        let text = text.replace("VIRTUAL_HOSTS", registry.virtual_hosts).replace("STATUS_A", registry.status_a);
        let dir = folder.join(registry.name);
        make_folder(&dir)?;
        write(&dir.join("registry.toml"), &text)?;
        for officer in OFFICERS {
            let key = work.join(format!("{officer}.key"));
            let document = dir.join("registry.toml");
            let mut sign = Command::new(scelle);
            programs::output(sign.args(["registry", "sign"]).arg(document).arg("--key").arg(key), RUN_MAX)?;
        }
    }
    let path = root.join("passphrase");
    write(&path, &passphrase()?)?;
    // Nobody else may read it, or no command takes it.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).during(|| format!("chmod {}", path.display()))
}

/// Makes the officers' keys, and the document that says whom to trust.
fn trust(scelle: &Path, work: &Path) -> Result<String> {
    let mut text = "threshold = 2\n".to_owned();
    for officer in OFFICERS {
        let mut keygen = Command::new(scelle);
        keygen.args(["registry", "keygen", officer, "--no-password", "--out"]).arg(work);
        programs::output(&mut keygen, RUN_MAX)?;
        let path = work.join(format!("{officer}.pub"));
        let public = fs::read_to_string(&path).during(|| format!("read {}", path.display()))?;
        // After a line of comment.
        let key = public.lines().nth(1);
        let key = key.ok_or_else(|| failed(format!("{} has no second line with the key", path.display())))?;
        text += &format!("\n[[officer]]\nname = \"{officer}\"\npublic_key = \"{key}\"\n");
    }
    Ok(text)
}

/// A day, as registries have it.
fn day(words: &str) -> Result<String> {
    let text = programs::output(Command::new("date").args(["-u", "-d", words, "+%F"]), RUN_MAX)?;
    Ok(text.trim_end().to_owned())
}

/// A passphrase that nobody knows.
fn passphrase() -> Result<String> {
    let mut bytes = [0; 24];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    random.during(|| "read /dev/urandom".to_owned())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
}

/// Makes a folder, with those above it.
fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).during(|| format!("make {}", path.display()))
}

/// Writes a file.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).during(|| format!("write {}", path.display()))
}
