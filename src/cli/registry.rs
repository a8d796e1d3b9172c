//! `scelle registry`: officers' keys, and registries made, signed, verified and shown.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::devices::today;
use super::failure::{ExitCode, Failure};
use crate::device::identity::{DeviceFacts, IdentifiedDevice};
use crate::device::raw::{Access, RawDevice};
use crate::device::sys::read_bounded;
use crate::limits;
use crate::policy::{laboratory, load};
use crate::registry::{self, Date, IdentityField, Registry};

/// `scelle registry`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: RegistryCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Make an officer's keys: NAME.key (secret) and NAME.pub, as minisign has them
    Keygen(Keygen),
    /// Print a registry that names these devices, ready to be completed and signed
    New(New),
    /// Sign a registry; writes REGISTRY.NAME.minisig beside it
    Sign(Sign),
    /// Verify a registry's signatures, content and validity
    Verify(Verify),
    /// Show what a registry says, without regard to its signatures
    Show(Show),
}

/// Arguments of `keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// The officer's name, as trust.toml will have it
    name: String,
    /// Folder for the two files
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    #[command(flatten)]
    password: Password,
    /// Do not protect the secret key by a password
    #[arg(long, conflicts_with = "password_file")]
    no_password: bool,
}

/// Where a key's password comes from.
#[derive(Debug, Args)]
pub struct Password {
    /// Read the key's password from this file; else from the terminal
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// Arguments of `new`.
#[derive(Debug, Args)]
pub struct New {
    /// Devices to name
    #[arg(long, value_name = "DEV", num_args = 1.., required = true)]
    from: Vec<PathBuf>,
    /// Id of the site where they are
    #[arg(long, value_name = "ID", default_value = "site-1")]
    site: String,
    /// Complete it for a laboratory: valid at once, never sovereign
    #[arg(long)]
    laboratory: bool,
    /// Days of validity of a laboratory registry
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// Arguments of `sign`.
#[derive(Debug, Args)]
pub struct Sign {
    /// The registry
    registry: PathBuf,
    /// The officer's secret key file
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The officer's name; else the name of the key file without its ending
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    password: Password,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The registry; its signatures are beside it
    #[arg(default_value = load::REGISTRY_PATH)]
    registry: PathBuf,
    /// The trust anchors: officers' public keys and the threshold
    #[arg(long, value_name = "FILE", default_value = load::TRUST_PATH)]
    trust: PathBuf,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The registry
    #[arg(default_value = load::REGISTRY_PATH)]
    registry: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What failed, with its exit code.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let out = &mut io::stdout().lock();
    match &arguments.command {
        RegistryCommand::Keygen(arguments) => keygen(arguments, out),
        RegistryCommand::New(arguments) => new(arguments, out),
        RegistryCommand::Sign(arguments) => sign(arguments, out),
        RegistryCommand::Verify(arguments) => verify(arguments, out),
        RegistryCommand::Show(arguments) => show(arguments, out),
    }?;
    Ok(ExitCode::Done)
}

fn keygen(arguments: &Keygen, out: &mut dyn Write) -> Result<(), Failure> {
    let password = match arguments.no_password {
        true => None,
        false => Some(arguments.password.obtain(true)?),
    };
    let keys = registry::keygen(&arguments.name, password.as_ref().map(|p| p.as_str())).map_err(document_failure)?;
    let (secret, public) =
        (arguments.out.join(format!("{}.key", arguments.name)), arguments.out.join(format!("{}.pub", arguments.name)));
    create_new(&secret, keys.secret.as_bytes(), 0o600)?;
    create_new(&public, keys.public.as_bytes(), 0o644)?;
    let shown = format!(
        "secret key: {} (keep it off the servers)\npublic key: {}\n\nfor trust.toml:\n\n[[officer]]\nname = \"{}\"\n\
         public_key = \"{}\"\n",
        secret.display(),
        public.display(),
        arguments.name,
        keys.public_key
    );
    print(out, &shown)
}

fn new(arguments: &New, out: &mut dyn Write) -> Result<(), Failure> {
    let mut devices = Vec::new();
    for path in &arguments.from {
        let facts = RawDevice::open(path, Access::SharedRead)?
            .facts()
            .map_err(|e| Failure::failed("device-unreadable", e.to_string()))?;
        let id = format!("{}-{}", arguments.site, devices.len() + 1);
        devices.push((id, facts));
    }
    let today = today()?;
    if !arguments.laboratory {
        return print(out, &skeleton(&arguments.site, &devices, today));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let until = Date::from_unix(now + u64::from(arguments.days) * 86_400).unwrap_or(today);
    let named: Vec<(&str, DeviceFacts)> = devices.iter().map(|(id, facts)| (id.as_str(), facts.clone())).collect();
    let document = laboratory::registry_for(&named, today, until).to_toml().map_err(document_failure)?;
    print(out, &document)
}

/// A registry whose empty texts must be filled in: as it is, no command accepts or signs it.
fn skeleton(site: &str, devices: &[(String, DeviceFacts)], today: Date) -> String {
    let mut transports: Vec<String> =
        devices.iter().map(|(_, f)| format!("\"{}\"", leaf(f).transport.as_str())).collect();
    transports.sort();
    transports.dedup();
    let mut text = format!(
        "# To complete: every empty text. Then sign it: scelle registry sign\nversion = 1\nissued = {today}\n\
         valid_until = {today} # to complete\n\n[policy]\nowners = [\"\"]\nadministrators = [\"\"]\n\
         countries = [\"FR\"]\njurisdictions = [\"FR\"]\ntransports = [{}]\nmin_sites = 1\nmin_replicas = 1\n\
         virtual_hosts = false\n\n[[site]]\nid = {}\nname = \"\"\ncountry = \"FR\"\nowner = \"\"\n\
         administrator = \"\"\njurisdictions = [\"FR\"]\ninspected = {today} # to complete\n\
         inspection_valid_until = {today} # to complete\n",
        transports.join(", "),
        quoted(site)
    );
    for (id, facts) in devices {
        let leaf = leaf(facts);
        let identity = leaf.identity();
        let mut fields = vec![format!("transport = \"{}\"", leaf.transport)];
        for &field in leaf.transport.identity_fields().unwrap_or_default() {
            let value = identity.field(field);
            fields.push(match field {
                IdentityField::Size | IdentityField::Inode => {
                    format!("{} = {}", field.as_str(), value.unwrap_or_default())
                }
                _ => format!("{} = {}", field.as_str(), quoted(&value.unwrap_or_default())),
            });
        }
        text.push_str(&format!(
            "\n# {}\n[[device]]\nid = {}\nsite = {}\nstatus = \"approved\"\nidentity = {{ {} }}\n",
            facts.root.name,
            quoted(id),
            quoted(site),
            fields.join(", ")
        ));
    }
    text
}

/// The node that an entry names: a partition is known by its disk.
fn leaf(facts: &DeviceFacts) -> &crate::device::identity::Node {
    let root = &facts.root;
    match (root.transport, &root.children[..]) {
        (registry::Transport::Partition, [disk]) => disk,
        _ => root,
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn sign(arguments: &Sign, out: &mut dyn Write) -> Result<(), Failure> {
    let document = read(&arguments.registry, limits::REGISTRY_BYTES_MAX)?;
    // An officer signs only what the software would understand.
    let parsed = Registry::parse(&document).map_err(document_failure)?;
    let stem = arguments.key.file_stem().map(|s| s.to_string_lossy().into_owned());
    let name = arguments.name.clone().or(stem).unwrap_or_default();
    let key = Zeroizing::new(read(&arguments.key, limits::SIGNATURE_BYTES_MAX)?);
    let key = std::str::from_utf8(&key).map_err(|e| Failure::usage("registry-key", e.to_string()))?;
    let password = match registry::is_encrypted(key).map_err(document_failure)? {
        true => Some(arguments.password.obtain(false)?),
        false => None,
    };
    let comment = format!("scelle registry version {} signed by {name}", parsed.version);
    let signature =
        registry::sign(&document, key, password.as_ref().map(|p| p.as_str()), &comment).map_err(document_failure)?;
    let path = load::signature_path(&arguments.registry, &name);
    replace(&path, signature.as_bytes())?;
    let counts = format!("{} sites, {} devices", parsed.sites.len(), parsed.devices.len());
    let laboratory = if parsed.policy.is_laboratory() { ", a laboratory registry" } else { "" };
    let valid = format!("valid {} to {}", parsed.issued, parsed.valid_until);
    print(out, &format!("{}: version {}, {valid}, {counts}{laboratory}\n", path.display(), parsed.version))
}

fn verify(arguments: &Verify, out: &mut dyn Write) -> Result<(), Failure> {
    let (verified, anchors) = load::load(&arguments.registry, &arguments.trust)?;
    let today = today()?;
    let kind = if verified.is_laboratory() { "laboratory registry, not sovereign" } else { "sovereign registry" };
    print(
        out,
        &format!(
            "{}: version {}, {kind}\nsigned by {} ({} of {} officers required)\nvalid {} to {}\n",
            arguments.registry.display(),
            verified.version(),
            verified.signers().join(", "),
            verified.threshold(),
            anchors.officers().len(),
            verified.issued(),
            verified.valid_until()
        ),
    )?;
    let refuse = |code: &str, text: String| Err(Failure::new(ExitCode::Refused, code, text));
    if today < verified.issued() {
        return refuse("registry-not-yet-valid", format!("valid from {}, today is {today}", verified.issued()));
    }
    if today > verified.valid_until() {
        return refuse("registry-expired", format!("valid until {}, today is {today}", verified.valid_until()));
    }
    Ok(())
}

fn show(arguments: &Show, out: &mut dyn Write) -> Result<(), Failure> {
    let document = read(&arguments.registry, limits::REGISTRY_BYTES_MAX)?;
    let parsed = Registry::parse(&document).map_err(document_failure)?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&parsed).map_err(|e| Failure::failed("json", e.to_string()))?;
        return print(out, &(json + "\n"));
    }
    let policy = &parsed.policy;
    let transports: Vec<&str> = policy.transports.iter().map(|t| t.as_str()).collect();
    let mut text = format!(
        "registry version {}, valid {} to {} (signatures not checked: scelle registry verify)\n\
         owners: {}\nadministrators: {}\ncountries: {}\njurisdictions: {}\ntransports: {}\n\
         at least {} site(s), {} replica(s); virtual hosts: {}\n",
        parsed.version,
        parsed.issued,
        parsed.valid_until,
        policy.owners.join(", "),
        policy.administrators.join(", "),
        policy.countries.join(", "),
        policy.jurisdictions.join(", "),
        transports.join(", "),
        policy.min_sites,
        policy.min_replicas,
        if policy.virtual_hosts { "allowed" } else { "refused" }
    );
    for site in &parsed.sites {
        text.push_str(&format!(
            "site {}: {}, {}; owner {}, administrator {}, law {}; inspected {}, counts until {}\n",
            site.id,
            site.name,
            site.country,
            site.owner,
            site.administrator,
            site.jurisdictions.join(", "),
            site.inspected,
            site.inspection_valid_until
        ));
    }
    for device in &parsed.devices {
        let fields: Vec<String> = IdentityField::ALL
            .iter()
            .filter_map(|f| device.identity.field(*f).map(|value| format!("{} {value}", f.as_str())))
            .collect();
        let status = format!("{:?}", device.status).to_lowercase();
        let transport = device.identity.transport;
        text.push_str(&format!(
            "device {} at {}: {status}; {transport}, {}\n",
            device.id,
            device.site,
            fields.join(", ")
        ));
    }
    print(out, &text)
}

impl Password {
    /// Reads the password; a new one is asked for twice.
    fn obtain(&self, new: bool) -> Result<Zeroizing<String>, Failure> {
        if let Some(path) = &self.password_file {
            let bytes = Zeroizing::new(read(path, limits::SIGNATURE_BYTES_MAX)?);
            let text = std::str::from_utf8(&bytes).map_err(|e| Failure::usage("password-file", e.to_string()))?;
            return Ok(Zeroizing::new(text.strip_suffix('\n').unwrap_or(text).to_owned()));
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(
                "password-missing",
                "the key needs a password and there is no terminal to ask on",
            )
            .advise("Give --password-file FILE (or --no-password to keygen, for a laboratory)."));
        }
        let ask = |prompt: &str| {
            rpassword::prompt_password(prompt)
                .map(Zeroizing::new)
                .map_err(|e| Failure::failed("password-terminal", e.to_string()))
        };
        let first = ask("Password of the key: ")?;
        if new && *first != *ask("The same again: ")? {
            return Err(Failure::usage("password-differs", "the two passwords differ; nothing was written"));
        }
        Ok(first)
    }
}

fn read(path: &Path, max: usize) -> Result<Vec<u8>, Failure> {
    read_bounded(path, max)
        .and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|e| Failure::usage("file-unreadable", format!("{}: {e}", path.display())))
}

/// Writes a file that must not exist: a key is never overwritten.
fn create_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let failure = |e: io::Error| Failure::failed("file-unwritable", format!("{}: {e}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failure)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failure)
}

/// Writes a file whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    create_new(&temporary, content, 0o644)?;
    std::fs::rename(&temporary, path)
        .map_err(|e| Failure::failed("file-unwritable", format!("{}: {e}", path.display())))
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed("output", e.to_string())),
        _ => Ok(()),
    }
}

fn document_failure(error: registry::Error) -> Failure {
    let reason = match &error {
        registry::Error::TooLarge { .. } | registry::Error::Syntax { .. } => "registry-syntax",
        registry::Error::Invalid { .. } => "registry-invalid",
        registry::Error::TooFewSignatures { .. } => "registry-signatures",
        registry::Error::Key(_) => "registry-key",
    };
    Failure::usage(reason, error.to_string())
}
