//! `scelle device`: what a device is, what is below it, and what the policy says of it. Nothing is written.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Documents;
use super::devices::{load_registry, today};
use super::failure::{ExitCode, Failure};
use crate::device::chain;
use crate::device::host::HostFacts;
use crate::device::identity::{DevNo, DeviceFacts, IdentifiedDevice, Node};
use crate::device::raw::{Access, RawDevice};
use crate::device::sys::{Kernel, System};
use crate::limits;
use crate::policy::{self, Verdict};

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
    documents: Documents,
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
    documents: Documents,
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
        DeviceCommand::List(arguments) => list(arguments, out),
        DeviceCommand::Inspect(arguments) => inspect(arguments, out),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    device: &'a str,
    facts: &'a DeviceFacts,
    host: &'a HostFacts,
    verdict: Option<&'a Verdict>,
}

fn list(arguments: &List, out: &mut dyn Write) -> Result<ExitCode, Failure> {
    // Without a registry the list is still of use: for writing one.
    let (registry, absent) = match load_registry(&arguments.documents) {
        Ok(registry) => (Some(registry), None),
        Err(failure) => (None, Some(failure)),
    };
    let (host, today) = (HostFacts::read(&Kernel), today()?);
    let names = Kernel
        .list(Path::new("/sys/class/block"))
        .map_err(|e| Failure::failed("sysfs", format!("/sys/class/block: {e}")))?;
    let mut text = format!("{:<16} {:>12} {:<12} {:<24} VERDICT\n", "DEVICE", "SIZE", "TRANSPORT", "SERIAL");
    let mut rows = Vec::new();
    for name in names {
        let path = Path::new("/sys/class/block").join(&name).join("dev");
        let number = Kernel.read(&path, limits::SYSFS_BYTES_MAX).ok().flatten().unwrap_or_default();
        let Some(dev) = DevNo::parse(&String::from_utf8_lossy(&number)) else { continue };
        let facts = DeviceFacts { root: chain::read(&Kernel, dev) };
        if facts.root.size_bytes == 0 {
            continue;
        }
        let verdict = registry.as_ref().map(|registry| policy::examine(registry, &facts, &host, today));
        let device = format!("/dev/{name}");
        let said = match &verdict {
            None => "no registry".to_owned(),
            Some(v) if v.approved => format!("approved: {}", v.registry_id.as_deref().unwrap_or_default()),
            Some(v) => format!("refused: {}", codes(v)),
        };
        text.push_str(&format!(
            "{device:<16} {:>12} {:<12} {:<24} {said}\n",
            human(facts.root.size_bytes),
            facts.root.transport.as_str(),
            facts.root.serial.as_deref().unwrap_or("-"),
        ));
        let report = Report { device: &device, facts: &facts, host: &host, verdict: verdict.as_ref() };
        rows.push(json_value(&report)?);
    }
    if arguments.json {
        text = pretty(&serde_json::json!({ "devices": rows }))?;
    }
    print(out, &text)?;
    if let Some(failure) = absent {
        log::warn!("{failure}");
    }
    Ok(ExitCode::Done)
}

fn inspect(arguments: &Inspect, out: &mut dyn Write) -> Result<ExitCode, Failure> {
    let device = RawDevice::open(&arguments.device, Access::SharedRead)?;
    let facts = device.facts().map_err(|e| Failure::failed("device-unreadable", e.to_string()))?;
    let host = HostFacts::read(&Kernel);
    let registry = load_registry(&arguments.documents);
    let verdict = match &registry {
        Ok(registry) => Some(policy::examine(registry, &facts, &host, today()?)),
        Err(_) => None,
    };
    if arguments.json {
        let report = Report {
            device: crate::device::BlockDevice::name(&device),
            facts: &facts,
            host: &host,
            verdict: verdict.as_ref(),
        };
        print(out, &pretty(&json_value(&report)?)?)?;
    } else {
        let mut text = String::new();
        tree(&facts.root, 0, &mut text);
        text.push_str(&format!(
            "host: {:?}, {} {}\n",
            host.virtualization,
            host.vendor.as_deref().unwrap_or("no vendor told"),
            host.product.as_deref().unwrap_or("")
        ));
        if let Some(verdict) = &verdict {
            text.push('\n');
            for rule in &verdict.rules {
                let mark = if rule.passed { "ok     " } else { "REFUSED" };
                text.push_str(&format!("{mark} {:<18} {}\n", rule.rule, rule.text));
            }
            let said = match verdict.approved {
                true => format!("approved as {}", verdict.registry_id.as_deref().unwrap_or_default()),
                false => format!("refused: {}", codes(verdict)),
            };
            text.push_str(&format!("\nverdict: {said}\n"));
        }
        print(out, &text)?;
    }
    registry?;
    Ok(if verdict.is_some_and(|v| v.approved) { ExitCode::Done } else { ExitCode::Refused })
}

/// Draws a node and what is below it.
fn tree(node: &Node, depth: usize, text: &mut String) {
    let indent = "   ".repeat(depth);
    let branch = if depth == 0 { "" } else { "└─ " };
    let dev = node.dev.map(|d| format!(" ({d})")).unwrap_or_default();
    text.push_str(&format!("{}{branch}{}{dev}\n", indent.get(3..).unwrap_or(""), node.name));
    let mut line = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            text.push_str(&format!("{indent}   {name:<14} {value}\n"));
        }
    };
    line("transport", Some(node.transport.as_str()));
    line("size", Some(&format!("{} ({} bytes)", human(node.size_bytes), node.size_bytes)));
    line("blocks", Some(&format!("{} bytes", node.logical_block)));
    line("vendor", node.vendor.as_deref());
    line("model", node.model.as_deref());
    line("serial", node.serial.as_deref());
    line("wwid", node.wwid.as_deref());
    line("write cache", node.write_cache.as_deref());
    if let Some(file) = &node.loop_file {
        let kind = file.fs_type.as_deref().unwrap_or("filesystem of unknown type");
        let said = format!("inode {} on {} ({kind}), from byte {}", file.inode, file.fs_device, file.offset);
        line("file", Some(&said));
    }
    for problem in &node.problems {
        line("problem", Some(&problem.to_string()));
    }
    for child in &node.children {
        tree(child, depth + 1, text);
    }
}

fn codes(verdict: &Verdict) -> String {
    let mut codes: Vec<String> = verdict.reasons.iter().map(|r| r.code.to_string()).collect();
    codes.dedup();
    codes.join(", ")
}

/// A size with three digits or so.
fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && unit + 1 < units.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{scaled:.1} {}", units[unit]) }
}

fn json_value(report: &Report<'_>) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(report).map_err(|e| Failure::failed("json", e.to_string()))
}

fn pretty(value: &serde_json::Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map(|t| t + "\n").map_err(|e| Failure::failed("json", e.to_string()))
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed("output", e.to_string())),
        _ => Ok(()),
    }
}
