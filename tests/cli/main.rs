//! Transcripts: what the command prints and how it ends, one TOML file a theme. None needs a device or root.

#![allow(clippy::unwrap_used)]

mod minisign;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transcript {
    run: Vec<Run>,
}

/// One call and what must come of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    /// Arguments; `{dir}` stands for an empty folder of the transcript's own.
    args: Vec<String>,
    /// Files of that folder to write first.
    #[serde(default)]
    write: BTreeMap<String, String>,
    /// Exit code.
    code: i32,
    /// Pieces of standard output.
    #[serde(default)]
    stdout: Vec<String>,
    /// Pieces of standard error.
    #[serde(default)]
    stderr: Vec<String>,
}

fn play(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(name);
    let transcript: Transcript = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for run in transcript.run {
        for (name, content) in &run.write {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let args: Vec<String> = run.args.iter().map(|a| a.replace("{dir}", dir.path().to_str().unwrap())).collect();
        let out = Command::new(env!("CARGO_BIN_EXE_scelle"))
            .args(&args)
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(run.code), "{name}: {args:?}\n{stdout}{stderr}");
        for (text, pieces) in [(&stdout, &run.stdout), (&stderr, &run.stderr)] {
            for piece in pieces {
                let piece = piece.replace("{dir}", dir.path().to_str().unwrap());
                assert!(text.contains(&piece), "{name}: {args:?}: {piece:?} is not in\n{text}");
            }
        }
    }
}

#[test]
fn usage() {
    play("usage.toml");
}

#[test]
fn audit() {
    play("audit.toml");
}

#[test]
fn registry() {
    play("registry.toml");
}

/// The exit codes are written in three places; this is the one that the other two must agree with.
#[test]
fn the_manual_lists_the_exit_codes() {
    let manual = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/scelle.8")).unwrap();
    for line in [
        "0\tdone",
        "1\tfailed",
        "2\tusage",
        "3\trefused by policy",
        "4\twrong key",
        "5\tintegrity",
        "6\tdegraded",
        "7\tbusy",
    ] {
        assert!(manual.contains(&format!("\n{line}")), "{line}");
    }
}
