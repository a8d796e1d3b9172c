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

/// Made by minisign 0.11 (`minisign -G -W`, `-S`, `-S -l`), of the text "scelle\n".
mod stock {
    pub const DOCUMENT: &[u8] = b"scelle\n";
    pub const KEY: &str = "RWRZosbu2DkYphjGfzZv5y3c5qXASfDCM4rsQ3RrHdaYxhNvNwDOALDo";
    pub const PREHASHED: &str = "untrusted comment: signature of a test\nRURZosbu2DkYpnMpi7ge5nN+MTWVcBXrlx2feJ8ri/Co5YKCVVulYpAPehkOdCNIqjrJj++//CDs26OPlGNecL0qpUY0zSJyXQ0=\ntrusted comment: made by the stock tool\nWlEmjRnpmaIafgN05cJS4f3YoUf8aK7MI41umfFayTq8FAOgb4mFNZFfo3nRTZge1LwwRzF78oVD6unyLK4YBw==\n";
    pub const LEGACY: &str = "untrusted comment: signature of a test\nRWRZosbu2DkYplsMpAhJDzQfVxhsFWSbtwHTe5WtQiXLAgFb4N8VHr+GauR/hWJIu6iqPgn1Vd2mko79jgeEVwwzKJaOo8ACWAg=\ntrusted comment: made by the stock tool\nHI9Hk/z6O+77jaoFKaTrwc14vu5J4UqiP4TPoKRDORz2gOVkNQy78mbwf93EwH8HPkgrCvXnSKuLtAy/cv5PAg==\n";
}

#[test]
fn signatures_of_the_stock_tool_verify() {
    let key = minisign::PublicKey::from_base64(stock::KEY).unwrap();
    for signature in [stock::PREHASHED, stock::LEGACY] {
        assert_eq!(keys::verify_signature(&key, stock::DOCUMENT, signature.as_bytes()), Ok(()));
        assert!(keys::verify_signature(&key, b"scella\n", signature.as_bytes()).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn parsers_survive_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Registry::parse(&bytes);
        let _ = TrustAnchors::parse(&bytes);
        let key = minisign::PublicKey::from_base64(stock::KEY).unwrap();
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
        let key = minisign::PublicKey::from_base64(stock::KEY).unwrap();
        let text = format!("untrusted comment: x\n{a}\ntrusted comment: y\n{b}\n");
        prop_assert!(keys::verify_signature(&key, b"x", text.as_bytes()).is_err());
        let text = format!("untrusted comment: x\nRWQ{a}\n");
        let _ = sign(b"x", &text, Some("x"), "");
    }
}
