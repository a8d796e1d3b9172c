//! `scelle device`: what a device is, what is below it, and what the policy says of it. Nothing is written.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::DocumentArguments;
use super::text::{pretty, print};
use crate::daemon::devices::{load_registry, today};
use crate::device::IdentifiedDevice;
use crate::device::raw::{Access, RawDevice};
use crate::limits;
use crate::os::DevNo;
use crate::policy::{self, Verdict};
use crate::probe::chain;
use crate::probe::host::HostFacts;
use crate::probe::identity::{DeviceFacts, Node};
use crate::probe::sys::{Kernel, System};
use crate::problem::{Code, ExitCode, Problem};
use crate::registry::{Date, VerifiedRegistry};

/// `scelle device`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: DeviceCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// List the host's block devices with their verdicts
    List(List),
    /// Show a device's identity, backing chain, and every rule with its outcome; exit code 3 when refused
    Inspect(Inspect),
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    documents: DocumentArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The device
    device: PathBuf,
    #[command(flatten)]
    documents: DocumentArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What failed, with its exit code.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let out = &mut io::stdout().lock();
    match &arguments.command {
        DeviceCommand::List(arguments) => list(arguments, out),
        DeviceCommand::Inspect(arguments) => inspect(arguments, out),
    }
}

/// What `--json` prints of a device: keys are added, never changed.
#[derive(Serialize)]
struct Report<'a> {
    device: &'a str,
    facts: &'a DeviceFacts,
    host: &'a HostFacts,
    verdict: Option<&'a Verdict>,
    /// What to do about each reason of a refusal.
    advice: Vec<Advice>,
}

#[derive(Serialize)]
struct Advice {
    code: Code,
    text: &'static str,
}

/// What to do about a verdict, each advice once.
fn advice(verdict: Option<&Verdict>) -> Vec<Advice> {
    let mut advice: Vec<Advice> = Vec::new();
    for code in verdict.into_iter().flat_map(|verdict| &verdict.reasons).map(|reason| reason.code) {
        if advice.iter().all(|given| given.code != code) {
            advice.push(Advice { code, text: code.remedy() });
        }
    }
    advice
}

fn list(arguments: &List, out: &mut dyn Write) -> Result<ExitCode, Problem> {
    // Without a registry the list is still of use: for writing one.
    let (registry, absent) = match load_registry(&arguments.documents.documents()) {
        Ok(registry) => (Some(registry), None),
        Err(failure) => (None, Some(failure)),
    };
    let today = today()?;
    print(out, &listing(&Kernel, limits::DEVICES_LISTED_MAX, registry.as_ref(), today, arguments.json)?)?;
    if let Some(failure) = absent {
        log::warn!("{failure}");
    }
    Ok(ExitCode::Done)
}

/// Lists devices, in columns or as JSON. Of the names that the kernel has for block devices it looks at the first
/// `max`, and lists those that have a size.
fn listing(
    system: &dyn System,
    max: usize,
    registry: Option<&VerifiedRegistry>,
    today: Date,
    json: bool,
) -> Result<String, Problem> {
    let folder = Path::new("/sys/class/block");
    let host = HostFacts::read(system);
    let mut names =
        system.list(folder, max).map_err(|e| Problem::new(Code::Sysfs, format!("{}: {e}", folder.display())))?;
    let complete = names.len() <= max;
    names.truncate(max);
    let mut rows = vec![["DEVICE", "SIZE", "TRANSPORT", "MODEL", "SERIAL", "VERDICT"].map(str::to_owned)];
    let mut reports = Vec::new();
    for name in names {
        let number = system.read(&folder.join(&name).join("dev"), limits::SYSFS_BYTES_MAX);
        let number = number.ok().flatten().unwrap_or_default();
        let Some(dev) = DevNo::parse(&String::from_utf8_lossy(&number)) else { continue };
        let facts = DeviceFacts { root: chain::read(system, dev) };
        if facts.root.size_bytes == 0 {
            continue;
        }
        let verdict = registry.map(|registry| policy::examine(registry, &facts, &host, today));
        let verdict = verdict.as_ref();
        // Some kernel names hold a slash, which sysfs writes as an exclamation mark.
        let device = format!("/dev/{}", name.replace('!', "/"));
        if json {
            let advice = advice(verdict);
            reports.push(json_value(&Report { device: &device, facts: &facts, host: &host, verdict, advice })?);
        } else {
            let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
            let root = &facts.root;
            let (size, transport) = (super::text::bytes(root.size_bytes), root.transport.to_string());
            rows.push([device, size, transport, text(&root.model), text(&root.serial), short(verdict)]);
        }
    }
    if json {
        return pretty(&serde_json::json!({ "devices": reports, "complete": complete }));
    }
    let mut text = columns(&rows);
    if !complete {
        text.push_str(&format!(
            "\nNot the whole list: this host has more than {max} block devices, and the others were not looked at.\n\
             Ask for one of them by its name: scelle device inspect DEV\n"
        ));
    }
    Ok(text)
}

/// A verdict in a word or two; `inspect` shows the whole of it.
fn short(verdict: Option<&Verdict>) -> String {
    let Some(verdict) = verdict else { return "not examined: no registry".to_owned() };
    if verdict.approved {
        return format!("approved as {}", verdict.registry_id.as_deref().unwrap_or_default());
    }
    let codes: Vec<Code> = advice(Some(verdict)).iter().map(|advice| advice.code).collect();
    match codes[..] {
        [] => "refused".to_owned(),
        [one] => format!("refused: {one}"),
        [first, ..] => format!("refused: {first} and {} more", codes.len() - 1),
    }
}

/// Rows as columns, each as wide as its widest value; the sizes are numbers.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, &width))| match i {
                1 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn inspect(arguments: &Inspect, out: &mut dyn Write) -> Result<ExitCode, Problem> {
    let device = RawDevice::open(&arguments.device, Access::SharedRead)?;
    let facts = device.facts().map_err(|e| Problem::new(Code::DeviceUnreadable, e.to_string()))?;
    let host = HostFacts::read(&Kernel);
    let registry = load_registry(&arguments.documents.documents());
    let verdict = match &registry {
        Ok(registry) => Some(policy::examine(registry, &facts, &host, today()?)),
        Err(_) => None,
    };
    let name = crate::device::BlockDevice::name(&device);
    let report = Report {
        device: name,
        facts: &facts,
        host: &host,
        verdict: verdict.as_ref(),
        advice: advice(verdict.as_ref()),
    };
    let text = match arguments.json {
        true => pretty(&json_value(&report)?)?,
        false => in_words(&report),
    };
    print(out, &text)?;
    registry?;
    Ok(if verdict.is_some_and(|v| v.approved) { ExitCode::Done } else { ExitCode::Refused })
}

/// Writes the device, what is below it, every rule with what it compared, the verdict, and what to do.
fn in_words(report: &Report<'_>) -> String {
    let mut text = String::from("Backing chain\n");
    tree(&report.facts.root, "  ", "  ", &mut text);
    let host = report.host;
    let described = [&host.vendor, &host.product].into_iter().flatten().cloned().collect::<Vec<_>>().join(" ");
    let described = if described.is_empty() { "firmware describes nothing" } else { &described };
    let kind = format!("{:?}", host.virtualization).to_lowercase();
    text.push_str(&format!("\nHost\n  {kind}; {described}\n"));
    for evidence in &host.evidence {
        text.push_str(&format!("  {evidence}\n"));
    }
    let Some(verdict) = report.verdict else { return text };
    text.push_str("\nRules\n");
    for rule in &verdict.rules {
        let mark = if rule.passed { "ok     " } else { "REFUSED" };
        text.push_str(&format!("  {mark}  {:<16} {}\n", rule.rule, rule.text));
    }
    if verdict.approved {
        let (id, site) = (verdict.registry_id.as_deref(), verdict.site.as_deref());
        let (id, site) = (id.unwrap_or_default(), site.unwrap_or_default());
        text.push_str(&format!("\nVerdict: approved as {id}, at site {site}\n"));
        return text;
    }
    text.push_str("\nVerdict: refused; nothing will be written to it. What to do:\n");
    for Advice { code, text: remedy } in &report.advice {
        text.push_str(&format!("  {code}\n    {remedy}\n"));
    }
    text
}

/// Draws a node and what is below it: `head` begins its first line, `rest` the others.
fn tree(node: &Node, head: &str, rest: &str, text: &mut String) {
    let dev = node.dev.map(|d| format!(" ({d})")).unwrap_or_default();
    text.push_str(&format!("{head}{}{dev}\n", node.name));
    let bar = if node.children.is_empty() { "  " } else { "│ " };
    let mut line = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            text.push_str(&format!("{rest}{bar}{name:<12} {value}\n"));
        }
    };
    line("transport", Some(&format!("{}: {}", node.reached_by(), node.transport.text())));
    for controller in &node.controllers {
        let address = controller.address.as_deref().map(|address| format!(" at {address}")).unwrap_or_default();
        line("controller", Some(&format!("{}, {}{address}", controller.name, controller.transport)));
    }
    line("size", Some(&format!("{} ({} bytes)", super::text::bytes(node.size_bytes), node.size_bytes)));
    line("block size", Some(&format!("{} bytes", node.logical_block)));
    line("vendor", node.vendor.as_deref());
    line("model", node.model.as_deref());
    line("serial", node.serial.as_deref());
    line("wwid", node.wwid.as_deref());
    line("target", node.iscsi_target.as_deref());
    line("write cache", node.write_cache.as_deref());
    line("writable", node.read_only.filter(|read_only| *read_only).map(|_| "no, the kernel has it read-only"));
    for detail in &node.details {
        line("detail", Some(detail));
    }
    line("confirmed by", node.confirmed_by);
    if let Some(file) = &node.loop_file {
        let kind = file.fs_type.as_deref().unwrap_or("filesystem of unknown type");
        let said = format!("inode {} on {} ({kind}), from byte {}", file.inode, file.fs_device, file.offset);
        line("file", Some(&said));
    }
    for problem in &node.problems {
        line("PROBLEM", Some(&problem.to_string()));
    }
    for (i, child) in node.children.iter().enumerate() {
        let last = i + 1 == node.children.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        tree(child, &format!("{rest}{branch}"), &format!("{rest}{below}"), text);
    }
}

fn json_value(report: &Report<'_>) -> Result<serde_json::Value, Problem> {
    serde_json::to_value(report).map_err(|e| Problem::new(Code::Json, e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::os::ioctl::{DmTable, LoopStatus};
    use crate::os::ioctl::{NvmeAnswers, ScsiAnswers};
    use crate::policy::laboratory;
    use crate::probe::sys::Target;
    use crate::registry::Transport;

    fn disk(name: &str) -> Node {
        let mut disk = Node::bare(name, Transport::Sata);
        (disk.wwid, disk.serial) = (Some("naa.5000c500a1b2c3d5".into()), Some("ZC1ABCDF".into()));
        (disk.model, disk.size_bytes) = (Some("ST4000NM000A".into()), 4_000_787_030_016);
        disk
    }

    fn registry() -> VerifiedRegistry {
        let (from, until) = (Date::new(2026, 1, 1).unwrap(), Date::new(2026, 12, 31).unwrap());
        let facts = DeviceFacts { root: disk("sda") };
        laboratory::sign(&laboratory::registry_for(&[("disk-1", facts)], from, until)).unwrap().verify().unwrap()
    }

    fn words(root: Node) -> String {
        let host = HostFacts::default();
        let facts = DeviceFacts { root };
        let verdict = policy::examine(&registry(), &facts, &host, Date::new(2026, 11, 22).unwrap());
        let verdict = Some(&verdict);
        in_words(&Report { device: "sda", facts: &facts, host: &host, verdict, advice: advice(verdict) })
    }

    #[test]
    fn an_inspection_shows_the_chain_every_rule_the_verdict_and_what_to_do() {
        let approved = words(disk("sda"));
        for line in [
            "  sda\n    transport    sata: Serial ATA.\n    size         3.6 TiB (4000787030016 bytes)\n",
            "  ok       owner            owner of site laboratory is Laboratory, the policy has Laboratory\n",
            "\nVerdict: approved as disk-1, at site laboratory\n",
        ] {
            assert!(approved.contains(line), "{line}\n{approved}");
        }
        assert!(!approved.contains("REFUSED"), "{approved}");
        let mut top = Node::bare("dm-0", Transport::Dm);
        top.children = vec![disk("sda"), disk("sdb")];
        let refused = words(top);
        for line in [
            "  dm-0\n  │ transport    dm: Device mapper.\n",
            "  ├─ sda\n  │    transport    sata: Serial ATA.\n",
            "  └─ sdb\n       transport    sata: Serial ATA.\n",
            "  REFUSED  chain-node       dm-0 is on the way",
            "\nVerdict: refused; nothing will be written to it. What to do:\n  chain-node-not-allowed\n    Use the disk itself: scelle",
        ] {
            assert!(refused.contains(line), "{line}\n{refused}");
        }
    }

    /// A kernel with this many RAM disks, none of which can be read any further.
    struct Disks(usize);

    impl System for Disks {
        fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
            Ok(path.to_path_buf())
        }

        fn read(&self, path: &Path, _: usize) -> io::Result<Option<Vec<u8>>> {
            let number = |name: &str| name.strip_prefix("ram").map(|n| format!("1:{n}"));
            let name = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            let text = match path.file_name().unwrap_or_default().to_str() {
                Some("dev") => number(&name).or(Some(name.into_owned())),
                Some("size") => Some("8".into()),
                _ => None,
            };
            Ok(text.map(String::into_bytes))
        }

        fn list(&self, path: &Path, max: usize) -> io::Result<Vec<String>> {
            let all = if path.ends_with("class/block") { self.0 } else { 0 };
            Ok((0..all).take(max + 1).map(|n| format!("ram{n}")).collect())
        }

        fn loop_status(&self, _: &Target<'_>) -> io::Result<LoopStatus> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn dm_table(&self, _: DevNo) -> io::Result<DmTable> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn nvme_identify(&self, _: &Target<'_>) -> io::Result<NvmeAnswers> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn nvme_identify_by(&self, _: &Target<'_>, _: u32) -> io::Result<NvmeAnswers> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn scsi_inquiry(&self, _: &Target<'_>, _: bool) -> io::Result<ScsiAnswers> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn a_list_that_was_cut_says_so() {
        let today = Date::new(2026, 11, 22).unwrap();
        let of = |disks, json| listing(&Disks(disks), 300, Some(&registry()), today, json).unwrap();
        for (disks, shown, complete) in [(0, 0, true), (300, 300, true), (301, 300, false), (5000, 300, false)] {
            let text = of(disks, false);
            assert_eq!(text.matches("\n/dev/ram").count(), shown, "{text}");
            assert_eq!(!text.contains("Not the whole list: this host has more than 300 block devices"), complete);
            let json: serde_json::Value = serde_json::from_str(&of(disks, true)).unwrap();
            assert_eq!(json["devices"].as_array().unwrap().len(), shown);
            assert_eq!(json["complete"], complete);
        }
    }

    #[test]
    fn a_list_is_in_columns_and_short() {
        let rows =
            [["DEVICE", "SIZE", "VERDICT"], ["/dev/sda", "3.6 TiB", "approved as disk-1"], ["/dev/é", "1 B", "-"]];
        let rows: Vec<[String; 3]> = rows.into_iter().map(|row| row.map(str::to_owned)).collect();
        let shown = "DEVICE       SIZE  VERDICT\n/dev/sda  3.6 TiB  approved as disk-1\n/dev/é        1 B  -\n";
        assert_eq!(columns(&rows), shown);
        let host = HostFacts::default();
        let mut other = disk("sdc");
        (other.serial, other.size_bytes) = (Some("OTHER".into()), 1);
        let verdict =
            policy::examine(&registry(), &DeviceFacts { root: other }, &host, Date::new(2026, 11, 22).unwrap());
        assert_eq!(short(Some(&verdict)), "refused: serial-mismatch and 1 more");
        assert_eq!(short(None), "not examined: no registry");
    }
}
