//! `scelle registry`: makes officers' keys; makes, signs, verifies and shows registries; replaces officers.

mod draft;
mod explain;

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::secret;
use super::text::{pretty, print};
use crate::daemon::devices::today;
use crate::device::IdentifiedDevice;
use crate::device::raw::{Access, RawDevice};
use crate::limits;
use crate::os::{Locked, read_bounded};
use crate::policy::{kind, laboratory, load};
use crate::probe::identity::DeviceFacts;
use crate::problem::{Code, ExitCode, Problem};
use crate::registry::{self, Date, Registry, TrustAnchors};

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
    /// Print a draft that names these devices, to be completed and signed; it approves nothing
    New(New),
    /// Sign a registry or trust anchors; writes FILE.NAME.minisig beside it
    Sign(Sign),
    /// Say which officers have signed a registry, whether it is valid, and what ends soon
    Verify(Verify),
    /// Explain who may hold what until when, without regard to signatures
    Show(Show),
    /// Replace officers: write the next version of the trust anchors, for the present officers to sign
    Succeed(Succeed),
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
    /// The registry, or the next version of the trust anchors
    #[arg(value_name = "FILE")]
    document: PathBuf,
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

/// Arguments of `succeed`.
#[derive(Debug, Args)]
pub struct Succeed {
    /// The trust anchors; every version since is beside them
    #[arg(long, value_name = "FILE", default_value = load::TRUST_PATH)]
    trust: PathBuf,
    /// An officer who leaves
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// The public key file NAME.pub of an officer who comes
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// How many officers must sign from then on; else as before
    #[arg(long, value_name = "K")]
    threshold: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// What failed, with its exit code.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let out = &mut io::stdout().lock();
    match &arguments.command {
        RegistryCommand::Keygen(arguments) => keygen(arguments, out),
        RegistryCommand::New(arguments) => new(arguments, out),
        RegistryCommand::Sign(arguments) => sign(arguments, out),
        RegistryCommand::Verify(arguments) => verify(arguments, out),
        RegistryCommand::Show(arguments) => show(arguments, out),
        RegistryCommand::Succeed(arguments) => succeed(arguments, out),
    }?;
    Ok(ExitCode::Done)
}

fn keygen(arguments: &Keygen, out: &mut dyn Write) -> Result<(), Problem> {
    let password = match arguments.no_password {
        true => None,
        false => Some(arguments.password.obtain(true)?),
    };
    let keys = registry::keygen(&arguments.name, password.as_ref().map(|p| p.as_str()))?;
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

fn new(arguments: &New, out: &mut dyn Write) -> Result<(), Problem> {
    let mut devices = Vec::new();
    for path in &arguments.from {
        let facts = RawDevice::open(path, Access::SharedRead)?
            .facts()
            .map_err(|e| Problem::new(Code::DeviceUnreadable, e.to_string()))?;
        let id = format!("{}-{}", arguments.site, devices.len() + 1);
        devices.push((id, facts));
    }
    let today = today()?;
    if !arguments.laboratory {
        return print(out, &draft::draft(&arguments.site, &devices, today)?);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let until = Date::from_unix(now + u64::from(arguments.days) * 86_400).unwrap_or(today);
    let named: Vec<(&str, DeviceFacts)> = devices.iter().map(|(id, facts)| (id.as_str(), facts.clone())).collect();
    let document = laboratory::registry_for(&named, today, until).to_toml()?;
    print(out, &document)
}

fn sign(arguments: &Sign, out: &mut dyn Write) -> Result<(), Problem> {
    let document = read(&arguments.document, limits::REGISTRY_BYTES_MAX)?;
    let (what, warnings) = understood(&document)?;
    let stem = arguments.key.file_stem().map(|s| s.to_string_lossy().into_owned());
    let name = arguments.name.clone().or(stem).unwrap_or_default();
    registry::check_officer(&name)?;
    let key = Zeroizing::new(read(&arguments.key, limits::SIGNATURE_BYTES_MAX)?);
    let key = std::str::from_utf8(&key).map_err(|e| Problem::new(Code::RegistryKey, e.to_string()))?;
    let password = match registry::is_encrypted(key)? {
        true => Some(arguments.password.obtain(false)?),
        false => None,
    };
    let comment = format!("scelle {what} signed by {name}");
    let signature = registry::sign(&document, key, password.as_ref().map(|p| p.as_str()), &comment)?;
    let path = load::signature_path(&arguments.document, &name);
    replace(&path, signature.as_bytes())?;
    let warnings: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    print(out, &format!("{}: {what}\n{warnings}", path.display()))
}

/// Says in words what the document is, and what is to be said of it: an officer signs only what the software
/// understands.
fn understood(document: &[u8]) -> Result<(String, Vec<String>), Problem> {
    let error = match Registry::parse(document) {
        Ok(registry) => {
            let kind = if registry.policy.is_laboratory() { ", a laboratory registry" } else { "" };
            let (sites, devices) = (registry.sites.len(), registry.devices.len());
            let valid = format!("valid {} to {}", registry.issued, registry.valid_until);
            let what =
                format!("registry version {}, {valid}, {sites} sites, {devices} devices{kind}", registry.version);
            return Ok((what, explain::warnings(&registry, today()?)));
        }
        Err(error) => error,
    };
    match TrustAnchors::parse(document) {
        Ok(anchors) => {
            let (version, officers) = (anchors.version(), anchors.officers().len());
            let what =
                format!("trust anchors version {version}, {} of {officers} officers must sign", anchors.threshold());
            Ok((what, Vec::new()))
        }
        // Of the two errors, it is that of the kind of document which this one resembles more.
        Err(other) if String::from_utf8_lossy(document).contains("[[officer]]") => Err(Problem::from(other)),
        Err(_) => Err(Problem::from(error)),
    }
}

fn verify(arguments: &Verify, out: &mut dyn Write) -> Result<(), Problem> {
    let anchors = load::load_trust(&arguments.trust)?;
    let document = read(&arguments.registry, limits::REGISTRY_BYTES_MAX)?;
    let files = load::signature_files(&arguments.registry, &anchors)?;
    let signed = explain::signatures(&anchors, &registry::signatures(&document, &files.as_ref(), &anchors));
    print(out, &format!("{}: {signed}", arguments.registry.display()))?;
    let verified = load::load_with(&arguments.registry, &anchors)?;
    let (today, issued, until) = (today()?, verified.issued(), verified.valid_until());
    let kind = explain::kind_of(&kind::on_this_host(&verified));
    let left = explain::left(today, until);
    let mut text = format!("version {}, {kind}valid {issued} to {until}: {left}\n", verified.version());
    for warning in explain::warnings(verified.document(), today) {
        text.push_str(&format!("warning: {warning}\n"));
    }
    print(out, &text)?;
    if today < issued {
        return Err(Problem::new(Code::RegistryNotYetValid, format!("valid from {issued}, today is {today}")));
    }
    if today > until {
        return Err(Problem::new(Code::RegistryExpired, format!("valid until {until}, today is {today}")));
    }
    Ok(())
}

fn show(arguments: &Show, out: &mut dyn Write) -> Result<(), Problem> {
    let document = read(&arguments.registry, limits::REGISTRY_BYTES_MAX)?;
    let parsed = Registry::parse(&document)?;
    if arguments.json {
        return print(out, &pretty(&parsed)?);
    }
    let note = "\nSignatures were not looked at: scelle registry verify does that.\n";
    print(out, &(explain::registry(&parsed, today()?) + note))
}

fn succeed(arguments: &Succeed, out: &mut dyn Write) -> Result<(), Problem> {
    let anchors = load::load_trust(&arguments.trust)?;
    let mut coming = Vec::new();
    for path in &arguments.with {
        let file = read(path, limits::SIGNATURE_BYTES_MAX)?;
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        registry::check_officer(&name).map_err(|error| {
            let advice = "Call the file of an officer who comes NAME.pub, with the name that trust.toml is to have.";
            Problem::from(error).advise(advice)
        })?;
        let text = String::from_utf8_lossy(&file).into_owned();
        let key = text.lines().nth(1).map(|line| line.trim().to_owned());
        let missing =
            || Problem::new(Code::RegistryKey, format!("{} is not a public key file of minisign", path.display()));
        coming.push((name, key.ok_or_else(missing)?));
    }
    if arguments.without.is_empty() && coming.is_empty() && arguments.threshold.is_none() {
        return Err(Problem::new(Code::Arguments, "nobody comes or leaves: give --without, --with or --threshold"));
    }
    let text = anchors.successor(&arguments.without, &coming, arguments.threshold)?;
    let path = load::successor_path(&arguments.trust, anchors.version() + 1);
    create_new(&path, text.as_bytes(), 0o644)?;
    let officers: Vec<&str> = anchors.officers().iter().map(|officer| officer.name.as_str()).collect();
    let said = format!(
        "{}: written. It counts when {} of {} have signed it:\n  scelle registry sign {} --key NAME.key\nUntil then no \
         volume is mounted with these trust anchors. A volume takes them over at its next mount, with a registry\nthat \
         the new officers have signed.\n",
        path.display(),
        anchors.threshold(),
        officers.join(", "),
        path.display()
    );
    print(out, &said)
}

impl Password {
    /// Reads the password; a new one is asked for twice.
    fn obtain(&self, new: bool) -> Result<Zeroizing<String>, Problem> {
        if let Some(path) = &self.password_file {
            let mut bytes = Locked::zeroed(limits::SIGNATURE_BYTES_MAX);
            let length = secret::read_private(path, secret::Keeper::Rights, &mut bytes)?;
            let bytes = &bytes[..length];
            let text = std::str::from_utf8(bytes).map_err(|e| Problem::new(Code::PasswordFile, e.to_string()))?;
            return Ok(Zeroizing::new(text.strip_suffix('\n').unwrap_or(text).to_owned()));
        }
        if !io::stdin().is_terminal() {
            return Err(Problem::new(
                Code::PasswordMissing,
                "the key needs a password and there is no terminal to ask on",
            )
            .advise("Give --password-file FILE (or --no-password to keygen, for a laboratory)."));
        }
        let ask = |prompt: &str| {
            rpassword::prompt_password(prompt)
                .map(Zeroizing::new)
                .map_err(|e| Problem::new(Code::PasswordTerminal, e.to_string()))
        };
        let first = ask("Password of the key: ")?;
        if new && *first != *ask("The same again: ")? {
            return Err(Problem::new(Code::PasswordDiffers, "the two passwords differ; nothing was written"));
        }
        Ok(first)
    }
}

fn read(path: &Path, max: usize) -> Result<Vec<u8>, Problem> {
    read_bounded(path, max)
        .and_then(|bytes| bytes.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT)))
        .map_err(|e| Problem::new(Code::FileUnreadable, format!("{}: {e}", path.display())))
}

/// Writes a file that must not exist: a key is never overwritten.
fn create_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Problem> {
    let failure = |e: io::Error| Problem::new(Code::FileUnwritable, format!("{}: {e}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failure)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failure)
}

/// Writes a file whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), Problem> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    create_new(&temporary, content, 0o644)?;
    std::fs::rename(&temporary, path)
        .map_err(|e| Problem::new(Code::FileUnwritable, format!("{}: {e}", path.display())))
}
