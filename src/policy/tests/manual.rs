//! The tables of scelle-registry(5) and scelle-codes(7) are those of the code.
//! `SCELLE_WRITE_MANUAL=1 cargo test manual` writes them anew.

use std::path::Path;

use crate::problem::Code;
use crate::registry::{self, Field, IdentityField, Transport};

const MANUAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/man/scelle-registry.5");
const CODES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/man/scelle-codes.7");

/// As troff has it; a minus sign is one that can be copied.
fn troff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('"', "\\(dq").replace('\'', "\\(aq")
}

fn fields(fields: &[Field]) -> String {
    let mut out = String::new();
    for field in fields {
        let kind = match field.default {
            Some(default) => format!("{}; {default} if absent", field.kind),
            None => field.kind.to_owned(),
        };
        out.push_str(&format!(".TP\n.BR {} \" ({})\"\n{}\n", troff(field.name), troff(&kind), troff(field.text)));
        if !field.reasons.is_empty() {
            out.push_str(&format!(".br\nRefuses: {}.\n", troff(&field.reasons.join(", "))));
        }
    }
    out
}

fn transports() -> String {
    let mut out = String::new();
    for transport in Transport::ALL {
        let Some(fields) = transport.identity_fields() else { continue };
        let fields: Vec<&str> = fields.iter().map(|field| field.as_str()).collect();
        let (name, text) = (troff(transport.as_str()), troff(transport.text()));
        out.push_str(&format!(".TP\n.B {name}\n{text}\n.br\nFields: {}.\n", fields.join(", ")));
    }
    out
}

fn row(code: &Code, about: &str) -> String {
    let (meaning, remedy) = (troff(code.meaning()), troff(code.remedy()));
    format!(".TP\n.B {}{about}\n{meaning}\n.br\n{remedy}\n", troff(code.as_str()))
}

/// The codes that are no reasons of a verdict, by the part of the program that gives them.
fn other_codes() -> String {
    let mut out = String::new();
    let mut part = "";
    for code in Code::OTHERS {
        if code.given_by() != part {
            part = code.given_by();
            out.push_str(&format!(".SS {}\n", troff(part)));
        }
        out.push_str(&row(code, &format!(" \\fR({})\\fP", code.exit() as u8)));
    }
    out
}

/// Holds the tables of a page, each between marks, against the code's; writes them anew when that is wished.
fn compare(page: &str, blocks: &[(String, String)]) {
    let manual = std::fs::read_to_string(page).unwrap();
    let mut expected = manual.clone();
    for (name, block) in blocks {
        let (begin, end) = (format!(".\\\" begin {name}\n"), ".\\\" end\n");
        let (before, rest) = expected.split_once(&begin).unwrap_or_else(|| panic!("{begin} is not in the manual"));
        let (_, after) = rest.split_once(end).unwrap();
        expected = format!("{before}{begin}{block}{end}{after}");
    }
    if std::env::var_os("SCELLE_WRITE_MANUAL").is_some() {
        std::fs::write(Path::new(page), &expected).unwrap();
    }
    let differs = manual.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(manual == expected, "{page} is not what the code says: {differs:?}");
}

#[test]
fn the_tables_of_the_manual_are_those_of_the_code() {
    let mut blocks: Vec<(String, String)> =
        registry::TABLES.iter().map(|(title, rows)| (format!("fields {title}"), fields(rows))).collect();
    blocks.push(("transports".into(), transports()));
    blocks.push(("reasons".into(), Code::VERDICTS.iter().map(|code| row(code, "")).collect()));
    compare(MANUAL, &blocks);
    compare(CODES, &[("codes".into(), other_codes())]);
}

#[test]
fn the_example_of_the_manual_is_a_registry() {
    let manual = std::fs::read_to_string(MANUAL).unwrap();
    let example = manual.split_once(".SH EXAMPLE\n.nf\n").unwrap().1.split_once(".fi\n").unwrap().0;
    let example = example.replace("\\[`e]", "è").replace("\\-", "-");
    let parsed = registry::Registry::parse(example.as_bytes()).unwrap();
    assert!(!parsed.policy.is_laboratory() && parsed.devices.len() == 1 && !parsed.sites[0].certifications.is_empty());
}

/// What the rows of the registry say of refusals, the policy has.
#[test]
fn every_refusal_that_a_field_names_exists() {
    let known: Vec<&str> = Code::VERDICTS.iter().map(|code| code.as_str()).collect();
    // The code of a message before there is a verdict.
    let other = [Code::RegistrySignatures.as_str()];
    for (title, rows) in registry::TABLES {
        for code in rows.iter().flat_map(|row| row.reasons) {
            assert!(known.contains(code) || other.contains(code), "{title}: {code}");
        }
    }
}

#[test]
fn transports_have_one_name_each() {
    for transport in Transport::ALL {
        assert_eq!(serde_json::to_value(transport).unwrap(), transport.as_str());
        assert_eq!(
            transport.is_laboratory(),
            matches!(transport, Transport::Loop | Transport::Memory),
            "{transport}: what a laboratory alone may list decides what is sovereign"
        );
        let fields = transport.identity_fields().unwrap_or_default();
        assert!(fields.is_empty() || fields.contains(&IdentityField::Size), "{transport}");
    }
}
