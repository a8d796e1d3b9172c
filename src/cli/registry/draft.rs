//! `scelle registry new`: writes an entry for each device, and leaves open what only people know.

use std::fmt::Write as _;

use crate::probe::identity::{DeviceFacts, Node};
use crate::problem::{Code, Problem};
use crate::registry::{Date, DeviceEntry, Field, IdentityField, Policy, Registry, Site, Transport};

/// The node that an entry names: a partition is known by its disk.
fn leaf(facts: &DeviceFacts) -> &Node {
    let root = &facts.root;
    match (root.transport, &root.children[..]) {
        (Transport::Partition, [disk]) => disk,
        _ => root,
    }
}

/// A registry that names these devices by what they show of themselves. Everything that somebody has to know or decide
/// is an empty text. So no command accepts or signs the registry before it is completed.
///
/// # Errors
/// Exit code 3 for a device that no registry can name: there would be nothing to recognise it by.
pub(super) fn draft(site: &str, devices: &[(String, DeviceFacts)], today: Date) -> Result<String, Problem> {
    let mut transports: Vec<String> = devices.iter().map(|(_, facts)| quoted(leaf(facts).transport.as_str())).collect();
    transports.sort();
    transports.dedup();
    let mut text = String::from(
        "# A draft: it approves nothing. What is said to be completed was not read from any device: ask those who know.\n\
         # While one value is left empty, no command accepts or signs this file. To add devices to a registry that exists,\n\
         # copy their tables into it, and count its version up.\n\n",
    );
    table(&mut text, Registry::FIELDS, &[("version", "1".into()), ("issued", today.to_string())]);
    text.push_str("\n[policy]\n");
    let known = [
        ("transports", format!("[{}]", transports.join(", "))),
        ("min_sites", "1".into()),
        ("virtual_hosts", "false".into()),
    ];
    table(&mut text, Policy::FIELDS, &known);
    text.push_str("\n[[site]]\n");
    table(&mut text, Site::FIELDS, &[("id", quoted(site))]);
    for (id, facts) in devices {
        let _ = writeln!(text, "\n# {}\n[[device]]", facts.root.name);
        let known = [("id", quoted(id)), ("site", quoted(site)), ("identity", identity(leaf(facts))?)];
        table(&mut text, DeviceEntry::FIELDS, &known);
    }
    Ok(text)
}

/// The required fields of a table: known ones with their values, the others to be completed.
fn table(text: &mut String, fields: &[Field], known: &[(&str, String)]) {
    // Tables below this one are written by themselves.
    let own = fields.iter().filter(|f| f.default.is_none() && (f.kind != "table" || f.name == "identity"));
    for field in own {
        let value = match known.iter().find(|(name, _)| *name == field.name) {
            Some((_, value)) => value.as_str(),
            None => {
                let _ = writeln!(text, "# TO COMPLETE ({}): {}", field.kind, field.text);
                if field.kind.starts_with("list") { "[\"\"]" } else { "\"\"" }
            }
        };
        let _ = writeln!(text, "{} = {value}", field.name);
    }
}

/// The identity that a device shows, whole.
fn identity(node: &Node) -> Result<String, Problem> {
    let refuse = |code: Code, why: String| {
        Err(Problem::new(code, format!("{} cannot be entered in a registry: {why}", node.name)))
    };
    let transport = node.transport;
    let Some(fields) = transport.identity_fields() else {
        return refuse(
            Code::TransportNotAllowed,
            format!("there is no identity by which a device on {transport} could be approved"),
        );
    };
    if let Some(problem) = node.problems.first() {
        return refuse(Code::ChainUnreadable, problem.to_string());
    }
    let identity = node.identity();
    let mut shown = vec![format!("transport = {}", quoted(transport.as_str()))];
    for &field in fields {
        let Some(value) = identity.field(field) else {
            return refuse(Code::DeviceUnreadable, format!("it does not show its {}", field.as_str()));
        };
        let value = match field {
            IdentityField::Size | IdentityField::Inode => value,
            _ => quoted(&value),
        };
        shown.push(format!("{} = {value}", field.as_str()));
    }
    Ok(format!("{{ {} }}", shown.join(", ")))
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::problem::ExitCode;

    fn disk() -> DeviceFacts {
        let mut root = Node::bare("sda", Transport::Sata);
        (root.wwid, root.serial) = (Some("naa.5000c500a1b2c3d5".into()), Some("ZC1\"ABC".into()));
        (root.model, root.size_bytes) = (Some("ST4000NM000A".into()), 4_000_787_030_016);
        DeviceFacts { root }
    }

    #[test]
    fn a_draft_is_refused_until_its_last_value_is_completed() {
        let today = Date::new(2026, 11, 22).unwrap();
        let mut draft = draft("tj-paris", &[("tj-paris-1".into(), disk())], today).unwrap();
        let values = [
            ("valid_until", "2027-05-31"),
            ("owners", "[\"Justice\"]"),
            ("administrators", "[\"Justice\"]"),
            ("countries", "[\"FR\"]"),
            ("jurisdictions", "[\"FR\"]"),
            ("name", "\"Salle 3\""),
            ("country", "\"FR\""),
            ("owner", "\"Justice\""),
            ("administrator", "\"Justice\""),
            ("jurisdictions", "[\"FR\"]"),
            ("inspected", "2026-10-02"),
            ("inspection_valid_until", "2027-04-02"),
            ("status", "\"approved\""),
        ];
        for (name, value) in values {
            let refused = Registry::parse(draft.as_bytes()).unwrap_err();
            assert!(refused.to_string().contains("still empty"), "{name}: {refused}");
            let empty = if value.starts_with('[') { "[\"\"]" } else { "\"\"" };
            let line = format!("\n{name} = {empty}\n");
            assert!(draft.contains(&line), "{name}\n{draft}");
            draft = draft.replacen(&line, &format!("\n{name} = {value}\n"), 1);
        }
        let parsed = Registry::parse(draft.as_bytes()).unwrap();
        assert_eq!(parsed.devices[0].identity, disk().root.identity());
        assert!(!draft.contains("\"\""), "{draft}");
    }

    #[test]
    fn what_nothing_recognises_gets_no_entry() {
        let today = Date::new(2026, 11, 22).unwrap();
        let mut nbd = disk();
        nbd.root.transport = Transport::Nbd;
        let mut silent = disk();
        silent.root.serial = None;
        for facts in [nbd, silent] {
            assert_eq!(draft("x", &[("x-1".into(), facts)], today).unwrap_err().exit(), ExitCode::Refused);
        }
    }
}
