#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const DOCUMENT: &str = r#"
version = 7
issued = 2026-11-21
valid_until = 2027-05-31

[policy]
owners = ["Ministère de la Justice"]
administrators = ["Ministère de la Justice"]
countries = ["FR"]
jurisdictions = ["FR"]
transports = ["nvme-pcie", "sas", "sata"]
min_sites = 1
virtual_hosts = false

[[site]]
id = "tj-paris"
name = "Tribunal judiciaire de Paris, salle 3"
country = "FR"
owner = "Ministère de la Justice"
administrator = "Ministère de la Justice"
jurisdictions = ["FR"]
inspected = 2026-10-02
inspection_valid_until = 2027-04-02

[[device]]
id = "paris-nvme-01"
site = "tj-paris"
status = "approved"
identity = { transport = "nvme-pcie", wwid = "eui.0025385b21b0a6c1", serial = "S4EWNX0R512345", model = "Disk 1", size = 3840755982336 }
"#;

struct Lab {
    officers: Vec<(String, KeyFiles)>,
    anchors: TrustAnchors,
}

fn lab(threshold: usize, names: &[&str]) -> Lab {
    let officers: Vec<_> = names.iter().map(|n| ((*n).to_owned(), keygen(n, None).unwrap())).collect();
    let mut trust = format!("threshold = {threshold}\n");
    for (name, keys) in &officers {
        trust.push_str(&format!("[[officer]]\nname = \"{name}\"\npublic_key = \"{}\"\n", keys.public_key));
    }
    Lab { officers, anchors: TrustAnchors::parse(trust.as_bytes()).unwrap() }
}

impl Lab {
    fn sign(&self, officer: usize, document: &[u8]) -> String {
        sign(document, &self.officers[officer].1.secret, None, "test").unwrap()
    }

    fn verify(&self, document: &[u8], signatures: &[(&str, &str)]) -> Result<VerifiedRegistry, Error> {
        let files: Vec<_> =
            signatures.iter().map(|(officer, text)| SignatureFile { officer, bytes: text.as_bytes() }).collect();
        verify(document, &files, &self.anchors)
    }
}

fn counted(result: Result<VerifiedRegistry, Error>) -> usize {
    match result {
        Ok(registry) => registry.signers().len(),
        Err(Error::TooFewSignatures { signers, .. }) => signers.len(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_document_of_the_manual_parses_and_round_trips() {
    let registry = Registry::parse(DOCUMENT.as_bytes()).unwrap();
    assert_eq!(registry.version, 7);
    assert_eq!(registry.valid_until.to_string(), "2027-05-31");
    assert!(!registry.policy.is_laboratory());
    assert_eq!(Registry::parse(registry.to_toml().unwrap().as_bytes()).unwrap(), registry);
}

#[test]
fn what_is_missing_unknown_or_out_of_bounds_is_refused() {
    for line in DOCUMENT.lines().filter(|l| l.contains(" = ")) {
        let without = DOCUMENT.replace(line, "");
        assert!(Registry::parse(without.as_bytes()).is_err(), "without {line}");
        let renamed = DOCUMENT.replace(line, &format!("x{line}"));
        assert!(Registry::parse(renamed.as_bytes()).is_err(), "renamed {line}");
    }
    for (from, to) in [
        ("version = 7", "version = 0"),
        ("version = 7", "version = -1"),
        ("2027-05-31", "2026-11-20"),
        ("2027-05-31", "2027-05-31T00:00:00Z"),
        ("2027-05-31", "\"2027-05-31\""),
        ("min_sites = 1", "min_sites = 0"),
        ("min_sites = 1", "min_sites = 17"),
        ("\"nvme-pcie\", \"sas\"", "\"nvme-tcp\", \"sas\""),
        ("\"nvme-pcie\", \"sas\"", "\"dm\", \"sas\""),
        ("\"nvme-pcie\", \"sas\"", "\"floppy\", \"sas\""),
        ("countries = [\"FR\"]", "countries = [\"fr\"]"),
        ("countries = [\"FR\"]", "countries = []"),
        ("id = \"paris-nvme-01\"", "id = \"../x\""),
        ("id = \"paris-nvme-01\"", "id = \"\""),
        ("status = \"approved\"", "status = \"Approved\""),
        (", model = \"Disk 1\"", ""),
        (", model = \"Disk 1\"", ", model = \"\""),
        (", model = \"Disk 1\"", ", model = \"Disk 1\", inode = 4"),
        (", model = \"Disk 1\"", ", model = \"Disk 1\", colour = 4"),
        ("size = 3840755982336", "size = 0"),
        ("transport = \"nvme-pcie\", wwid", "transport = \"unknown\", wwid"),
    ] {
        assert!(DOCUMENT.contains(from), "{from}");
        assert!(Registry::parse(DOCUMENT.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
    }
    let device = DOCUMENT.split_once("[[device]]").unwrap().1;
    let twice = format!("{DOCUMENT}\n[[device]]{device}");
    assert!(Registry::parse(twice.as_bytes()).unwrap_err().to_string().contains("two tables device are called"));
    let huge = vec![b'#'; crate::limits::REGISTRY_BYTES_MAX + 1];
    assert!(matches!(Registry::parse(&huge), Err(Error::TooLarge { .. })));
}

#[test]
fn texts_that_look_alike_are_not_registered() {
    let owner = "owner = \"Ministère de la Justice\"";
    for (what, text) in [
        ("a Cyrillic letter", "Ministèrе de la Justice"),
        ("a letter with a combining mark", "Ministe\u{300}re de la Justice"),
        ("a no-break space", "Ministère\u{a0}de la Justice"),
        ("a zero-width space", "Ministère de\u{200b} la Justice"),
        ("a soft hyphen", "Minis\u{ad}tère de la Justice"),
        ("text from right to left", "\u{202e}ecitsuJ al ed erètsiniM"),
        ("full-width letters", "Ｍinistère de la Justice"),
        ("two spaces", "Ministère  de la Justice"),
        ("a space at the end", "Ministère de la Justice "),
        ("a line break", "Ministère\\nde la Justice"),
        ("nothing", ""),
        ("a dotless i", "Mınistère de la Justice"),
    ] {
        let document = DOCUMENT.replace(owner, &format!("owner = \"{text}\""));
        assert_ne!(document, DOCUMENT);
        assert!(matches!(Registry::parse(document.as_bytes()), Err(Error::Invalid { .. })), "{what}");
    }
    let french = DOCUMENT.replace(owner, "owner = \"Cour d’appel de Nîmes, « Œuvre » n° 2 (ÀÉÈÊËÎÏÔÙÛÜŸÇ)\"");
    assert!(Registry::parse(french.as_bytes()).is_ok());
}

#[test]
fn values_out_of_bounds_are_refused() {
    for (from, to) in [
        ("valid_until = 2027-05-31", "valid_until = 2036-12-01"),
        ("valid_until = 2027-05-31", "valid_until = 9999-12-31"),
        ("valid_until = 2027-05-31", "valid_until = 2027-02-29"),
        ("valid_until = 2027-05-31", "valid_until = 2027-05-31T00:00:00Z"),
        ("valid_until = 2027-05-31", "valid_until = \"2027-05-31\""),
        ("inspection_valid_until = 2027-04-02", "inspection_valid_until = 2036-11-01"),
        ("version = 7", "version = -1"),
        ("version = 7", "version = 18446744073709551616"),
        ("version = 7", "version = 7\nversion = 7"),
        ("min_sites = 1", "min_sites = 0"),
        ("min_sites = 1", "min_sites = 17"),
        ("min_sites = 1", "min_sites = true"),
        ("virtual_hosts = false", "virtual_hosts = 0"),
        ("virtual_hosts = false", "virtual_hosts = false\nvirtual_hosts = true"),
        ("countries = [\"FR\"]", "countries = [\"fr\"]"),
        ("countries = [\"FR\"]", "countries = [\"FR\", \"FR\"]"),
        ("countries = [\"FR\"]", "countries = []"),
        ("countries = [\"FR\"]", "countries = \"FR\""),
        ("jurisdictions = [\"FR\"]", "jurisdictions = [\"France\"]"),
        (
            "owners = [\"Ministère de la Justice\"]",
            "owners = [\"Ministère de la Justice\", \"ministère de la justice\"]",
        ),
        ("transports = [\"nvme-pcie\"", "transports = [\"sas\""),
        ("transports = [\"nvme-pcie\"", "transports = [\"NVMe-PCIe\""),
        ("transports = [\"nvme-pcie\"", "transports = [\"nvme-tcp\""),
        ("min_sites = 1", "min_sites = 1\ncertifications = [\"a\", \"A\"]"),
        ("min_sites = 1", "min_sites = 1\ncertifications = [\"\"]"),
        ("inspected = ", "certifications = [{ name = \"x\", reference = \"y\" }]\ninspected = "),
        (
            "inspected = ",
            "certifications = [{ name = \"x\", reference = \"y\", valid_until = 2027-01-01, ok = true }]\ninspected = ",
        ),
        ("id = \"tj-paris\"", "id = \"tj\\u0000paris\""),
        ("id = \"tj-paris\"", "id = \"tj paris\""),
        ("id = \"tj-paris\"", "id = \"\""),
        ("id = \"tj-paris\"", "id = \"tj-pаris\""),
        ("status = \"approved\"", "status = \"Approved\""),
        ("serial = \"S4EWNX0R512345\"", "serial = \"S4EWNX0R51234５\""),
        ("serial = \"S4EWNX0R512345\"", "serial = \" S4EWNX0R512345\""),
        ("size = 3840755982336", "size = 0"),
        ("size = 3840755982336", "size = 3840755982336.0"),
    ] {
        assert!(DOCUMENT.contains(from), "{from}");
        assert!(Registry::parse(DOCUMENT.replacen(from, to, 1).as_bytes()).is_err(), "{from} -> {to}");
    }
    // Two ids that differ in nothing but case are one for the eye.
    let device = DOCUMENT.split_once("[[device]]").unwrap().1.replace("paris-nvme-01", "PARIS-nvme-01");
    let twice = format!("{DOCUMENT}\n[[device]]{device}");
    assert!(Registry::parse(twice.as_bytes()).unwrap_err().to_string().contains("two tables device are called"));
}

#[test]
fn only_distinct_known_officers_count() {
    let lab = lab(2, &["officer-a", "officer-b", "officer-c"]);
    let document = DOCUMENT.as_bytes();
    let (a, b) = (lab.sign(0, document), lab.sign(1, document));
    assert_eq!(counted(lab.verify(document, &[])), 0);
    assert_eq!(counted(lab.verify(document, &[("officer-a", &a)])), 1);
    // The same officer twice, with two different signatures; and under another's name.
    let again = lab.sign(0, document);
    assert_ne!(a, again);
    assert_eq!(counted(lab.verify(document, &[("officer-a", &a), ("officer-a", &again)])), 1);
    assert_eq!(counted(lab.verify(document, &[("officer-a", &a), ("officer-b", &again)])), 1);
    // A stranger does not count and does no harm.
    let stranger = sign(document, &keygen("eve", None).unwrap().secret, None, "").unwrap();
    assert_eq!(counted(lab.verify(document, &[("officer-a", &a), ("eve", &stranger)])), 1);
    assert_eq!(counted(lab.verify(document, &[("officer-a", &a), ("officer-b", &stranger)])), 1);
    let verified = lab.verify(document, &[("eve", &stranger), ("officer-b", &b), ("officer-a", &a)]).unwrap();
    assert_eq!(verified.signers(), ["officer-a", "officer-b"]);
    assert_eq!((verified.version(), verified.threshold()), (7, 2));
    assert_eq!(verified.anchors_digest(), lab.anchors.digest());
}

#[test]
fn a_change_of_any_byte_voids_the_signatures() {
    let lab = lab(1, &["officer-a"]);
    let document = DOCUMENT.as_bytes();
    let signature = lab.sign(0, document);
    assert!(lab.verify(document, &[("officer-a", &signature)]).is_ok());
    for i in 0..document.len() {
        let mut changed = document.to_vec();
        changed[i] ^= 1;
        let result = lab.verify(&changed, &[("officer-a", &signature)]);
        assert!(matches!(result, Err(Error::TooFewSignatures { .. })), "byte {i}");
    }
    assert!(lab.verify(&document[..document.len() - 1], &[("officer-a", &signature)]).is_err());
    // Of the signature file, everything but the untrusted comment counts.
    let first_line = signature.find('\n').unwrap();
    for i in first_line + 1..signature.trim_end().len() {
        let mut changed = signature.clone().into_bytes();
        changed[i] ^= 1;
        let file = SignatureFile { officer: "officer-a", bytes: &changed };
        assert!(verify(document, &[file], &lab.anchors).is_err(), "byte {i}");
    }
    for end in 0..signature.trim_end().len() {
        assert!(lab.verify(document, &[("officer-a", &signature[..end])]).is_err(), "cut at {end}");
    }
}

#[test]
fn passwords_protect_secret_keys() {
    let keys = keygen("officer-a", Some("open sesame")).unwrap();
    assert!(is_encrypted(&keys.secret).unwrap());
    assert!(!is_encrypted(&keygen("officer-a", None).unwrap().secret).unwrap());
    assert!(sign(b"x", &keys.secret, Some("wrong"), "").is_err());
    assert!(sign(b"x", &keys.secret, None, "").is_err());
    assert!(sign(b"x", &keys.secret, Some("open sesame"), "").is_ok());
    assert!(sign(b"x", &keys.public, None, "").is_err());
}

#[test]
fn the_digest_of_trust_anchors_is_of_what_they_say() {
    let (a, b) = (keygen("a", None).unwrap().public_key, keygen("b", None).unwrap().public_key);
    let officer = |name: &str, key: &str| format!("[[officer]]\nname = \"{name}\"\npublic_key = \"{key}\"\n");
    let digest = |text: String| TrustAnchors::parse(text.as_bytes()).unwrap().digest();
    let first = digest(format!("threshold = 2\n{}{}", officer("a", &a), officer("b", &b)));
    // However it is written ...
    assert_eq!(digest(format!("# x\nversion = 1\nthreshold = 2\n{}{}", officer("b", &b), officer("a", &a))), first);
    // ... and whatever is said differently.
    let replaces = format!("version = 2\nreplaces = \"{}\"\n", "ab".repeat(32));
    let others = [
        format!("threshold = 1\n{}{}", officer("a", &a), officer("b", &b)),
        format!("threshold = 2\n{}{}", officer("a", &b), officer("b", &a)),
        format!("threshold = 2\n{}{}", officer("a", &a), officer("c", &b)),
        format!("{replaces}threshold = 2\n{}{}", officer("a", &a), officer("b", &b)),
        format!("{}threshold = 2\n{}{}", replaces.replace("= 2", "= 3"), officer("a", &a), officer("b", &b)),
        format!("{}threshold = 2\n{}{}", replaces.replace("\"ab", "\"aa"), officer("a", &a), officer("b", &b)),
    ];
    let mut digests: Vec<_> = others.into_iter().map(digest).chain([first]).collect();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 7);
}

/// Anchors of which officer `leaving` is replaced by `coming`, signed by the officers `signers` of `lab`.
fn succeed(lab: &Lab, leaving: &str, coming: &str, signers: &[usize]) -> Result<(TrustAnchors, KeyFiles), Error> {
    let keys = keygen(coming, None).unwrap();
    let next = lab.anchors.successor(&[leaving.into()], &[(coming.into(), keys.public_key.clone())], None)?;
    let signed: Vec<_> = signers.iter().map(|i| (lab.officers[*i].0.clone(), lab.sign(*i, next.as_bytes()))).collect();
    let files: Vec<_> =
        signed.iter().map(|(officer, text)| SignatureFile { officer, bytes: text.as_bytes() }).collect();
    Ok((lab.anchors.succeeded_by(next.as_bytes(), &files)?, keys))
}

#[test]
fn officers_are_replaced_by_the_officers_before_them_only() {
    let lab = lab(2, &["a", "b", "c"]);
    for too_few in [&[][..], &[0], &[2], &[1, 1]] {
        assert!(matches!(succeed(&lab, "b", "d", too_few), Err(Error::TooFewSignatures { .. })), "{too_few:?}");
    }
    // Also the one who leaves may sign it; the one who comes may not.
    let (next, keys) = succeed(&lab, "b", "d", &[0, 1]).unwrap();
    assert_eq!((next.version(), next.threshold(), next.replaced()), (2, 2, &[lab.anchors.digest()][..]));
    let names: Vec<&str> = next.officers().iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "d"]);
    // A registry of the new officers is one for whoever has pinned the old ones; one of the old officers is no more.
    let document = DOCUMENT.as_bytes();
    let (a, b, c) = (lab.sign(0, document), lab.sign(1, document), lab.sign(2, document));
    let d = sign(document, &keys.secret, None, "test").unwrap();
    fn file<'a>(officer: &'a str, text: &'a str) -> SignatureFile<'a> {
        SignatureFile { officer, bytes: text.as_bytes() }
    }
    let registry = verify(document, &[file("a", &a), file("d", &d)], &next).unwrap();
    assert!(registry.is_trusted_by(&lab.anchors.digest()) && registry.is_trusted_by(&next.digest()));
    assert!(!registry.is_trusted_by(&[0; 32]));
    assert!(verify(document, &[file("a", &a), file("b", &b)], &next).is_err());
    let old = verify(document, &[file("a", &a), file("c", &c)], &lab.anchors).unwrap();
    assert!(!old.is_trusted_by(&next.digest()), "who has seen the new officers does not go back");
    // Another succession of the same version, signed by the same officers.
    let (other, keys) = succeed(&lab, "b", "e", &[0, 1]).unwrap();
    let e = sign(document, &keys.secret, None, "test").unwrap();
    let registry = verify(document, &[file("a", &a), file("e", &e)], &other).unwrap();
    assert!(registry.is_trusted_by(&lab.anchors.digest()) && !registry.is_trusted_by(&next.digest()));
    // Without the signatures, the successor is anchors like any other, and replaces nothing.
    let unsigned = TrustAnchors::parse(lab.anchors.successor(&["c".into()], &[], None).unwrap().as_bytes()).unwrap();
    assert!(unsigned.replaced().is_empty());
}

#[test]
fn a_succession_of_others_or_out_of_turn_does_not_count() {
    // Two courts with officers in common.
    let ours = lab(1, &["a", "b"]);
    let theirs = TrustAnchors::parse(
        format!("threshold = 1\n[[officer]]\nname = \"a\"\npublic_key = \"{}\"\n", ours.officers[0].1.public_key)
            .as_bytes(),
    )
    .unwrap();
    let key = keygen("d", None).unwrap().public_key;
    let next = theirs.successor(&[], &[("d".into(), key)], None).unwrap();
    let signature = ours.sign(0, next.as_bytes());
    let files = [SignatureFile { officer: "a", bytes: signature.as_bytes() }];
    assert!(theirs.succeeded_by(next.as_bytes(), &files).is_ok());
    assert!(matches!(ours.anchors.succeeded_by(next.as_bytes(), &files), Err(Error::Invalid { .. })));
    // The version after the next, and the founding document itself.
    for text in [next.replace("version = 2", "version = 3"), next.replace("version = 2", "version = 1")] {
        let signature = ours.sign(0, text.as_bytes());
        let files = [SignatureFile { officer: "a", bytes: signature.as_bytes() }];
        assert!(theirs.succeeded_by(text.as_bytes(), &files).is_err(), "{text}");
    }
    for bad in [&["nobody".to_owned()][..], &["a".into(), "b".into()]] {
        assert!(ours.anchors.successor(bad, &[], None).is_err());
    }
    assert!(ours.anchors.successor(&[], &[], Some(3)).is_err());
}

#[test]
fn trust_anchors_that_would_weaken_the_threshold_are_refused() {
    let (a, b) = (keygen("a", None).unwrap().public_key, keygen("b", None).unwrap().public_key);
    let officer = |name: &str, key: &str| format!("[[officer]]\nname = \"{name}\"\npublic_key = \"{key}\"\n");
    let parse = |text: String| TrustAnchors::parse(text.as_bytes());
    assert!(parse(format!("threshold = 2\n{}{}", officer("a", &a), officer("b", &b))).is_ok());
    for bad in [
        format!("threshold = 0\n{}", officer("a", &a)),
        format!("threshold = 2\n{}", officer("a", &a)),
        format!("threshold = 2\n{}{}", officer("a", &a), officer("b", &a)),
        format!("threshold = 2\n{}{}", officer("a", &a), officer("a", &b)),
        format!("threshold = 1\n{}", officer("a", "AAAA")),
        format!("threshold = 1\n{}", officer("../a", &a)),
        format!("threshold = 1\nfallback = true\n{}", officer("a", &a)),
        format!("version = 0\nthreshold = 1\n{}", officer("a", &a)),
        format!("version = 2\nthreshold = 1\n{}", officer("a", &a)),
        format!("version = 257\nreplaces = \"{}\"\nthreshold = 1\n{}", "ab".repeat(32), officer("a", &a)),
        format!("replaces = \"{}\"\nthreshold = 1\n{}", "ab".repeat(32), officer("a", &a)),
        format!("version = 2\nreplaces = \"{}\"\nthreshold = 1\n{}", "AB".repeat(32), officer("a", &a)),
        format!("version = 2\nreplaces = \"é{}\"\nthreshold = 1\n{}", "ab".repeat(31), officer("a", &a)),
        "threshold = 1\nofficer = []\n".into(),
        String::new(),
    ] {
        assert!(parse(bad.clone()).is_err(), "{bad}");
    }
}

/// Made by minisign 0.11 (`minisign -G -W`, `-S`, `-S -l`), of the text "scelle\n" in registry.toml.
mod stock {
    pub const DOCUMENT: &[u8] = b"scelle\n";
    pub const KEY: &str = "RWQwcrmJy8xyUddbzOqzQVgAUnkTRhs7ry43i3HPXeKG/jAOIJEm8h8+";
    pub const PREHASHED: &str = "untrusted comment: signature from minisign secret key\nRUQwcrmJy8xyUdzo4zfd9tmKPn4E4HqL/FISSnythX+sd73s8LSGERS2RqDZ0HOWJ6tKPXsfnlmf6foqPaVGC0jkkgL6RhO15A4=\ntrusted comment: timestamp:1796090494\tfile:registry.toml\thashed\n4mHL/QM+YVTT7VhszjpCQsVmhSP+UqpLOO/O+PoTnuUXp6YcTO+vH9lG3GWUODwJtFHUZ5nkIuADC4JfpwdzDw==\n";
    pub const LEGACY: &str = "untrusted comment: signature from minisign secret key\nRWQwcrmJy8xyUQIf6YhwJ0Mattq0y3Xu5HdYRiOBmIDRV7WaZu25pDSJomdlBzJgovQ5ksZg7cpUMYwJlQswkI7JV0Z9kzqpugU=\ntrusted comment: timestamp:1796090494\tfile:registry.toml\nDu2ZuWX557x3BqQ9jEDFSJbcebsLhZtgZS5jfo3o5oWeVLAHYT19zTfUsMQAsx34vlHPC3tLZhOycxZc9BOlCA==\n";
}

#[test]
fn signatures_of_the_stock_tool_verify() {
    let key = keys::public_key(stock::KEY).unwrap();
    assert_eq!(keys::verify_signature(&key, stock::DOCUMENT, stock::PREHASHED.as_bytes()), Ok(()));
    assert!(keys::verify_signature(&key, b"scella\n", stock::PREHASHED.as_bytes()).is_err());
    let legacy = keys::verify_signature(&key, stock::DOCUMENT, stock::LEGACY.as_bytes()).unwrap_err();
    assert!(legacy.contains("minisign -l"), "{legacy}");
}

/// A signature file with a secret key made by [`keygen`]: any algorithm, signature and trusted comment.
fn forge(secret: &str, algorithm: &[u8; 2], signature: &[u8], comment: &str) -> String {
    let (number, pair) = parts(secret);
    let global = pair.sign([signature, comment.as_bytes()].concat(), None);
    let first = base64(&[algorithm, &number[..], signature].concat());
    format!("untrusted comment: x\n{first}\ntrusted comment: {comment}\n{}\n", base64(&global[..]))
}

/// Key number and key of a secret key file; the layout is in [`DerivedKey::from_seed`].
fn parts(secret: &str) -> (Vec<u8>, ed25519_compact::SecretKey) {
    let key = keys::decode_base64(secret.lines().nth(1).unwrap()).unwrap();
    (key[54..62].to_vec(), ed25519_compact::SecretKey::from_slice(&key[62..126]).unwrap())
}

fn base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        let digit = |i: usize| if i > group.len() { '=' } else { digits[(bits >> (18 - 6 * i) & 63) as usize].into() };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// The two bytes that say what was signed are not signed. An officer's legacy signature (`minisign -l`) of a file of 64
/// bytes, which are the hash of a registry, is the same signature as the officer's of that registry.
#[test]
fn p1_a_signature_over_other_bytes_is_no_signature_of_the_registry() {
    let lab = lab(1, &["officer-a"]);
    let (document, secret) = (DOCUMENT.as_bytes(), &*lab.officers[0].1.secret);
    let of_the_hash = keys::decode_base64(lab.sign(0, document).lines().nth(1).unwrap()).unwrap()[10..].to_vec();
    let of_the_document = parts(secret).1.sign(document, None).to_vec();
    let said = "timestamp:1\tfile:registry.toml\thashed";
    assert_eq!(counted(lab.verify(document, &[("officer-a", &forge(secret, b"ED", &of_the_hash, said))])), 1);
    let comment = "timestamp:1\tfile:notes.bin";
    for (what, algorithm, signature, comment) in [
        ("the document itself", b"Ed", &of_the_document, comment),
        ("the document itself, under the other comment", b"Ed", &of_the_document, said),
        ("a file of 64 bytes", b"Ed", &of_the_hash, comment),
        ("a file of 64 bytes, relabelled", b"ED", &of_the_hash, comment),
        ("a comment that only holds the word", b"ED", &of_the_hash, "timestamp:1\tfile:hashed"),
        ("no comment", b"ED", &of_the_hash, ""),
        ("an algorithm of no tool", b"eD", &of_the_hash, said),
    ] {
        let forged = forge(secret, algorithm, signature, comment);
        assert_eq!(counted(lab.verify(document, &[("officer-a", &forged)])), 0, "{what}");
    }
}

#[test]
fn a_signature_file_has_one_spelling() {
    let lab = lab(1, &["officer-a"]);
    let document = DOCUMENT.as_bytes();
    let signature = lab.sign(0, document);
    let lines: Vec<&str> = signature.lines().collect();
    // The last digit before the padding holds four bits that are not part of the 74 bytes; minisign leaves them empty.
    let loose = |line: &str| {
        let digit = line.as_bytes()[line.len() - 2];
        assert!(line.ends_with('=') && digit.is_ascii_alphanumeric(), "{line}");
        format!("{}{}=", &line[..line.len() - 2], char::from(digit + 1))
    };
    for (what, other) in [
        ("line ends of another system", signature.replace('\n', "\r\n")),
        ("no end of the last line", signature.trim_end().to_owned()),
        ("an empty line after it", format!("{signature}\n")),
        ("bytes after it", format!("{signature}\0")),
        ("a second signature after it", signature.repeat(2)),
        ("a byte order mark", format!("\u{feff}{signature}")),
        ("a space after the signature", signature.replace(lines[1], &format!("{} ", lines[1]))),
        ("a space before the signature", signature.replace(lines[1], &format!(" {}", lines[1]))),
        ("a space after the comment", signature.replace(lines[2], &format!("{} ", lines[2]))),
        ("a space before the comment", signature.replace("trusted comment: test", "trusted comment:  test")),
        ("a space after the comment's signature", signature.replace(lines[3], &format!("{} ", lines[3]))),
        ("unused bits", signature.replace(lines[1], &loose(lines[1]))),
        ("no padding", signature.replace(lines[1], lines[1].trim_end_matches('='))),
        ("digits of URLs", signature.replace('/', "_").replace('+', "-") + "_"),
    ] {
        assert_ne!(other, signature, "{what}");
        assert_eq!(counted(lab.verify(document, &[("officer-a", &other)])), 0, "{what}");
    }
    // The first line is nobody's: it may say what it likes, in minisign too.
    let renamed = signature.replace(lines[0], "untrusted comment: from officer a");
    assert_eq!(counted(lab.verify(document, &[("officer-a", &renamed)])), 1);
}

#[test]
fn an_officers_key_is_one_persons_and_has_one_spelling() {
    let (a, b) = (keygen("a", None).unwrap().public_key, keygen("b", None).unwrap().public_key);
    let parse = |one: &str, other: &str| {
        let officer = |name: &str, key: &str| format!("[[officer]]\nname = \"{name}\"\npublic_key = \"{key}\"\n");
        TrustAnchors::parse(format!("threshold = 2\n{}{}", officer("a", one), officer("b", other)).as_bytes())
    };
    assert!(parse(&a, &b).is_ok());
    let bytes = keys::decode_base64(&a).unwrap();
    let changed = |at: usize, to: u8| {
        let mut other = bytes.clone();
        other[at] = to;
        base64(&other)
    };
    for (what, key) in [
        ("the same key", a.clone()),
        ("the same key under another number", changed(2, bytes[2] ^ 1)),
        ("a space after it", format!("{b} ")),
        ("another algorithm", base64(&[b"ED", &keys::decode_base64(&b).unwrap()[2..]].concat())),
        ("bytes after it", base64(&[&keys::decode_base64(&b).unwrap()[..], b"x"].concat())),
    ] {
        assert!(parse(&a, &key).is_err(), "{what}");
    }
    // With a key of small order everybody can sign: these are the points of order 1, 2, 4 and 8, by their first bytes.
    let point = |text: &str| unhex::<32>(text).unwrap();
    for weak in [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        // Not reduced: a second spelling of a point.
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        let key = base64(&[b"Ed", &[7; 8][..], &point(weak)].concat());
        assert!(parse(&a, &key).is_err(), "{weak}");
        assert!(public_key_of(&key).is_err(), "{weak}");
    }
}

/// What is signed as one kind of document is never read as another.
#[test]
fn a_signed_document_is_of_one_kind() {
    let lab = lab(1, &["a", "b"]);
    let trust = lab.anchors.successor(&["b".into()], &[], None).unwrap();
    let seal = "{\"format\":\"scelle audit trail 1\",\"volume\":\"v\",\"version\":1,\"threshold\":1}\n";
    assert!(Registry::parse(DOCUMENT.as_bytes()).is_ok() && TrustAnchors::parse(trust.as_bytes()).is_ok());
    for other in [&trust, seal] {
        assert!(Registry::parse(other.as_bytes()).is_err(), "{other}");
    }
    for other in [DOCUMENT, seal, &format!("{DOCUMENT}{trust}"), &format!("{trust}{DOCUMENT}")] {
        assert!(TrustAnchors::parse(other.as_bytes()).is_err(), "{other}");
        assert!(other == DOCUMENT || Registry::parse(other.as_bytes()).is_err(), "{other}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn parsers_survive_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Registry::parse(&bytes);
        let _ = TrustAnchors::parse(&bytes);
        let key = keys::public_key(stock::KEY).unwrap();
        prop_assert!(keys::verify_signature(&key, b"x", &bytes).is_err());
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = is_encrypted(text);
            let _ = sign(b"x", text, Some("x"), "");
            let _ = Date::parse(text);
        }
    }

    #[test]
    fn the_registry_parser_survives_edits(at in 0..DOCUMENT.len(), cut in 0..40usize, put in "[a-z0-9\\[\\]{}\"=.,\n é-]{0,12}") {
        let mut bytes = DOCUMENT.as_bytes().to_vec();
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, put.bytes());
        if let Ok(registry) = Registry::parse(&bytes) {
            prop_assert_eq!(&Registry::parse(registry.to_toml().unwrap().as_bytes()).unwrap(), &registry);
        }
    }

    #[test]
    fn signature_files_of_the_right_shape_do_not_panic(a in "[A-Za-z0-9+/]{0,110}={0,2}", b in "[A-Za-z0-9+/]{0,100}={0,2}") {
        let key = keys::public_key(stock::KEY).unwrap();
        let text = format!("untrusted comment: x\n{a}\ntrusted comment: y\n{b}\n");
        prop_assert!(keys::verify_signature(&key, b"x", text.as_bytes()).is_err());
        let text = format!("untrusted comment: x\nRWQ{a}\n");
        let _ = sign(b"x", &text, Some("x"), "");
    }
}
