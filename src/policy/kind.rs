//! The kind of a volume: how much its registry promises, and who says that its officers may.
//!
//! | kind | when |
//! |---|---|
//! | `laboratory` | the signed policy lists a transport that only a laboratory has |
//! | `sovereign` | the registry meets every line of the floor below, and this host's [`Authority`] names its trust anchors |
//! | `private` | everything else |
//!
//! Anybody can make keys, call themselves officers and sign a registry. So the signatures show that the officers agree,
//! and not whose officers they are. That is said by the host, in a file that only root can write and no option replaces.
//! And what the officers may sign is bounded by this program, whoever they are. The floor, and why:
//!
//! | the registry | because |
//! |---|---|
//! | allows devices in France only | whoever holds the disk can be compelled where it stands |
//! | allows operators under French law only | the law of another State reaches its companies wherever their disks are |
//! | names who owns and who administers | a site that is nobody's is not held to anything |
//! | allows NVMe on PCI Express, SAS and SATA only | behind a network or a hypervisor, the identity of a disk is somebody's word |
//! | allows no virtual host | a hypervisor reads the memory, and with it the keys |
//! | is signed by two officers at least | one officer, or one stolen key, must not be enough |
//! | is valid for thirteen months at most | what nobody looks at again is wrong some day; a yearly renewal may be a month late |
//! | is valid today | it promises nothing on other days |
//! | has every site of an approved device inspected, for thirteen months at most, and in date | the inspection is the only evidence of the place |
//!
//! The kind is not a verdict: a device of a private volume is approved by the same rules. It is what status and `where`
//! say of the volume.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::registry::{Date, Registry, Status, Transport, VerifiedRegistry, hex, unhex};

/// The file that names the trust anchors that this host recognises. Nothing but this constant says where it is.
pub const AUTHORITY_PATH: &str = "/etc/scelle/authority";

/// The only country, and the only law.
const COUNTRY: &str = "FR";

/// How a disk of a sovereign volume may be reached.
const PHYSICAL: [Transport; 3] = [Transport::NvmePcie, Transport::Sas, Transport::Sata];

/// Least number of officers who must sign.
const THRESHOLD_MIN: usize = 2;

/// Longest validity of a registry and of an inspection, in days: thirteen months are 397 days at most.
const VALIDITY_DAYS_MAX: i64 = 397;

/// Bits of a file's mode that let others than its owner write to it.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Only root's word counts.
const ROOT: u32 = 0;

/// The kind of a volume. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Its registry meets the floor, and the host recognises its officers.
    Sovereign,
    /// Any other that is not a laboratory's.
    Private,
    /// A laboratory's.
    Laboratory,
}

impl Kind {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sovereign => "sovereign",
            Self::Private => "private",
            Self::Laboratory => "laboratory",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kind of a registry on a day, on a host; and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classified {
    /// The kind.
    pub kind: Kind,
    /// What a sovereign volume has and this one lacks, a sentence each; empty exactly when it is sovereign.
    pub lacking: Vec<String>,
    /// Digest of the trust anchors, in hexadecimal digits.
    pub anchors: String,
    /// How many officers must sign.
    pub threshold: usize,
    /// How many officers there are.
    pub officers: usize,
}

impl Classified {
    /// Whether the volume is sovereign.
    pub fn is_sovereign(&self) -> bool {
        self.kind == Kind::Sovereign
    }
}

/// The trust anchors that a host recognises.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authority {
    digests: Vec<[u8; 32]>,
    /// Why it recognises none.
    silent: Option<String>,
}

impl Authority {
    /// What [`AUTHORITY_PATH`] says. A file that is not there, or that somebody else than root could have written,
    /// recognises nobody.
    pub fn of_this_host() -> Self {
        Self::read(Path::new(AUTHORITY_PATH), ROOT)
    }

    fn read(path: &Path, owner: u32) -> Self {
        let found = open(path, owner).and_then(|file| {
            let mut text = String::new();
            file.take(limits::AUTHORITY_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
            Self::parse(&text)
        });
        match found {
            Ok(digests) => Self { digests, silent: None },
            Err(why) => Self { digests: Vec::new(), silent: Some(format!("{}: {why}", path.display())) },
        }
    }

    /// One digest a line, then what one likes; empty lines and lines that begin with # say nothing.
    fn parse(text: &str) -> Result<Vec<[u8; 32]>, String> {
        if text.len() > limits::AUTHORITY_BYTES_MAX {
            return Err(format!("it has more than {} bytes", limits::AUTHORITY_BYTES_MAX));
        }
        let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
        let digest = |(number, line): (usize, &str)| {
            let first = line.split_whitespace().next().unwrap_or_default();
            unhex(first).ok_or_else(|| format!("line {number} does not begin with 64 hexadecimal digits"))
        };
        lines.map(digest).collect()
    }

    /// Why these anchors are not recognised, if they are not.
    fn objects_to(&self, anchors: &[u8; 32]) -> Option<String> {
        match &self.silent {
            _ if self.digests.contains(anchors) => None,
            Some(why) => Some(format!("this host recognises no trust anchors: {why}")),
            None => Some(format!("{AUTHORITY_PATH} does not name the trust anchors {}", hex(anchors))),
        }
    }
}

/// Opens a regular file that nobody but `owner` can have written or put in its place.
fn open(path: &Path, owner: u32) -> Result<File, String> {
    let refused = |error: io::Error| match error.raw_os_error() {
        Some(libc::ELOOP) => "it is a symbolic link".to_owned(),
        Some(libc::ENOENT) => "there is no such file".to_owned(),
        _ => error.to_string(),
    };
    let owned = |what: &str, meta: &Metadata| match meta.uid() == owner && meta.mode() & WRITABLE_BY_OTHERS == 0 {
        true => Ok(()),
        false => Err(format!("{what} must belong to root, and nobody else may write to it")),
    };
    let folder = path.parent().unwrap_or(path);
    owned("its folder", &std::fs::symlink_metadata(folder).map_err(refused)?)?;
    // A pipe that nobody writes to must not hold up whoever asks.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(refused)?;
    let meta = file.metadata().map_err(refused)?;
    owned("it", &meta)?;
    if !meta.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    Ok(file)
}

/// The kind of a registry on this host, today.
pub fn on_this_host(registry: &VerifiedRegistry) -> Classified {
    classify(registry, &Authority::of_this_host(), Date::today())
}

/// The kind of a registry. `today` is unknown when the host's clock shows no date that can be. Pure.
pub fn classify(registry: &VerifiedRegistry, authority: &Authority, today: Option<Date>) -> Classified {
    let anchors = registry.anchors_digest();
    let mut lacking = floor(registry.document(), registry.threshold(), today);
    let is_laboratory = registry.is_laboratory();
    lacking.extend(authority.objects_to(&anchors));
    let kind = match lacking.is_empty() {
        _ if is_laboratory => Kind::Laboratory,
        true => Kind::Sovereign,
        false => Kind::Private,
    };
    let (threshold, officers) = (registry.threshold(), registry.officers());
    Classified { kind, lacking, anchors: hex(&anchors), threshold, officers }
}

/// What a registry that `threshold` officers must sign lacks of the floor, a sentence each. Pure, and without regard to
/// signatures.
pub fn floor(registry: &Registry, threshold: usize, today: Option<Date>) -> Vec<String> {
    let mut lacking = lacks_in_policy(registry);
    if threshold < THRESHOLD_MIN {
        lacking.push(format!("{threshold} officer must sign it, and not {THRESHOLD_MIN} at least"));
    }
    lacking.extend(lacks_in_period("the registry", registry.issued, registry.valid_until, today));
    let approved = |site: &&crate::registry::Site| {
        registry.devices.iter().any(|device| device.site == site.id && device.status == Status::Approved)
    };
    for site in registry.sites.iter().filter(approved) {
        let what = format!("the inspection of site {}", site.id);
        lacking.extend(lacks_in_period(&what, site.inspected, site.inspection_valid_until, today));
    }
    lacking
}

fn lacks_in_policy(registry: &Registry) -> Vec<String> {
    let policy = &registry.policy;
    let mut lacking = Vec::new();
    for (what, listed) in [("countries", &policy.countries), ("jurisdictions", &policy.jurisdictions)] {
        if *listed != [COUNTRY] {
            lacking.push(format!("the policy has {what} = {}, and not {COUNTRY} alone", listed.join(", ")));
        }
    }
    for (what, listed) in [("owners", &policy.owners), ("administrators", &policy.administrators)] {
        if listed.iter().all(|name| name.trim().is_empty()) {
            lacking.push(format!("the policy names no {what}"));
        }
    }
    for transport in policy.transports.iter().filter(|transport| !PHYSICAL.contains(transport)) {
        lacking.push(format!("the policy allows devices on {transport}, which is no disk of the host's own"));
    }
    if policy.virtual_hosts {
        lacking.push("the policy allows virtual hosts".to_owned());
    }
    lacking
}

fn lacks_in_period(what: &str, from: Date, until: Date, today: Option<Date>) -> Option<String> {
    match today {
        _ if from.days_until(until) > VALIDITY_DAYS_MAX => {
            Some(format!("{what} counts from {from} to {until}, longer than thirteen months"))
        }
        None => Some("the host's clock shows a date that cannot be".to_owned()),
        Some(today) if today < from || until < today => {
            Some(format!("{what} counts from {from} to {until}, today is {today}"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::policy::laboratory::Officers;
    use crate::registry::Registry;

    const SOVEREIGN: &str = include_str!("../../tests/policy/sovereign.toml");

    fn day(text: &str) -> Date {
        Date::parse(text).unwrap()
    }

    fn kind_of(change: impl FnOnce(&mut Registry), officers: &[&str], recognised: bool, on: &str) -> Classified {
        let mut document = Registry::parse(SOVEREIGN.as_bytes()).unwrap();
        change(&mut document);
        let registry = Officers::new(officers).unwrap().sign(&document).unwrap().verify().unwrap();
        let digests = if recognised { vec![[7; 32], registry.anchors_digest()] } else { vec![[7; 32]] };
        classify(&registry, &Authority { digests, silent: None }, Date::parse(on))
    }

    const TWO: &[&str] = &["officer-a", "officer-b"];
    const DAY: &str = "2026-12-01";

    #[test]
    fn p11_a_volume_is_sovereign_only_when_the_host_recognises_its_officers() {
        let found = kind_of(|_| {}, TWO, true, DAY);
        assert_eq!((found.kind, found.lacking.len(), found.threshold, found.officers), (Kind::Sovereign, 0, 2, 2));
        assert_eq!(found.anchors.len(), 64);
        let found = kind_of(|_| {}, TWO, false, DAY);
        assert_eq!((found.kind, found.lacking.len()), (Kind::Private, 1));
        assert!(found.lacking[0].contains(AUTHORITY_PATH), "{:?}", found.lacking);
        let nobody = Authority { digests: Vec::new(), silent: Some("x".into()) };
        assert!(nobody.objects_to(&[0; 32]).is_some());
    }

    /// Each line of the floor alone makes the difference.
    #[test]
    fn p11_every_line_of_the_floor_makes_a_volume_private_alone() {
        type Change = fn(&mut Registry);
        let changes: [(&str, Change); 12] = [
            ("countries", |r| r.policy.countries.push("BE".into())),
            ("countries", |r| r.policy.countries = vec!["BE".into()]),
            ("jurisdictions", |r| r.policy.jurisdictions.push("US".into())),
            ("virtual hosts", |r| r.policy.virtual_hosts = true),
            ("virtio", |r| r.policy.transports.push(Transport::Virtio)),
            ("virtio", |r| r.policy.transports = vec![Transport::Virtio]),
            ("the registry counts", |r| r.valid_until = day("2027-12-04")),
            ("the registry counts", |r| (r.issued, r.valid_until) = (day("2026-12-02"), day("2027-05-31"))),
            ("the registry counts", |r| r.valid_until = day("2026-11-30")),
            ("site tj-paris", |r| r.sites[0].inspection_valid_until = day("2026-11-30")),
            ("site tj-paris", |r| r.sites[0].inspected = day("2026-12-02")),
            ("site tj-paris", |r| r.sites[0].inspection_valid_until = day("2030-01-01")),
        ];
        for (said, change) in changes {
            let found = kind_of(change, TWO, true, DAY);
            assert_eq!(found.kind, Kind::Private, "{said}");
            assert!(found.lacking.len() == 1 && found.lacking[0].contains(said), "{said}: {:?}", found.lacking);
        }
        let alone = kind_of(|_| {}, &["officer-a"], true, DAY);
        assert_eq!((alone.kind, alone.lacking.len()), (Kind::Private, 1));
        assert_eq!(kind_of(|_| {}, TWO, true, "no day").kind, Kind::Private);
        // An inspection of a site where nothing is approved any more does not matter.
        let closed = |r: &mut Registry| {
            r.sites[0].inspection_valid_until = day("2026-11-30");
            r.devices.iter_mut().filter(|d| d.site == "tj-paris").for_each(|d| d.status = Status::Revoked);
        };
        assert_eq!(kind_of(closed, TWO, true, DAY).kind, Kind::Sovereign);
        let document = |change: fn(&mut Registry)| {
            let mut document = Registry::parse(SOVEREIGN.as_bytes()).unwrap();
            change(&mut document);
            floor(&document, 2, Some(day(DAY)))
        };
        assert!(document(|r| r.policy.owners.clear())[0].contains("owners"));
        assert!(document(|r| r.policy.administrators = vec![" ".into()])[0].contains("administrators"));
    }

    #[test]
    fn a_laboratory_is_never_anything_else() {
        let found = kind_of(|r| r.policy.transports = vec![Transport::Loop], TWO, true, DAY);
        assert_eq!((found.kind, found.lacking.len()), (Kind::Laboratory, 1));
    }

    #[test]
    fn p11_an_authority_that_others_can_write_recognises_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, me) = (dir.path().join("scelle"), rustix::process::geteuid().as_raw());
        std::fs::create_dir(&folder).unwrap();
        let (path, digest) = (folder.join("authority"), [0xab; 32]);
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let recognised = |path: &Path, owner| Authority::read(path, owner).objects_to(&digest).is_none();
        mode(&folder, 0o755);
        assert!(!recognised(&path, me), "not there");
        std::fs::write(&path, format!("# the ministry's\n\n{}  officers of 2026\n", hex(&digest))).unwrap();
        mode(&path, 0o644);
        assert!(recognised(&path, me));
        assert!(!recognised(&path, me + 1), "of another owner");
        for bad in [0o664, 0o646, 0o666] {
            mode(&path, bad);
            assert!(!recognised(&path, me), "{bad:o}");
        }
        mode(&path, 0o444);
        mode(&folder, 0o775);
        assert!(!recognised(&path, me), "others can put another file in its place");
        mode(&folder, 0o755);
        let link = folder.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(!recognised(&link, me), "a symbolic link");
        assert!(!recognised(&folder.join("."), me), "a folder");
        let pipe = folder.join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success() && !recognised(&pipe, me), "a pipe");
    }

    #[test]
    fn an_authority_that_is_not_understood_recognises_nobody() {
        let digest = "ab".repeat(32);
        assert_eq!(Authority::parse("").unwrap(), [[0; 32]; 0]);
        assert_eq!(Authority::parse(&format!("  {digest}\r\n#{digest}\n{digest} x\n")).unwrap(), [[0xab; 32]; 2]);
        let long = "#".repeat(limits::AUTHORITY_BYTES_MAX + 1);
        for bad in ["x", &digest[1..], &format!("{digest}0"), &digest.to_uppercase(), &format!("{digest}\nx"), &long] {
            assert!(Authority::parse(bad).is_err(), "{bad}");
        }
    }
}
