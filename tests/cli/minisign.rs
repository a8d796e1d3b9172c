//! The stock minisign signs and verifies what scelle does. It is one of the packages that scripts/test installs.

use std::path::Path;
use std::process::{Command, Output};

fn run(dir: &Path, program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(dir).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

#[track_caller]
fn ok(out: &Output) -> String {
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{text}{errors}");
    text.into_owned()
}

#[test]
fn officers_may_use_the_stock_tool() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let scelle = env!("CARGO_BIN_EXE_scelle");
    std::fs::write(dir.join("registry.toml"), include_str!("../policy/sovereign.toml")).unwrap();
    // Officer a has keys of minisign, officer b of scelle.
    ok(&run(dir, "minisign", &["-G", "-W", "-p", "a.pub", "-s", "a.key"]));
    ok(&run(dir, scelle, &["registry", "keygen", "b", "--no-password"]));
    let mut trust = String::from("threshold = 2\n");
    for officer in ["a", "b"] {
        let public = std::fs::read_to_string(dir.join(format!("{officer}.pub"))).unwrap();
        let key = public.lines().nth(1).unwrap();
        trust.push_str(&format!("[[officer]]\nname = \"{officer}\"\npublic_key = \"{key}\"\n"));
    }
    std::fs::write(dir.join("trust.toml"), trust).unwrap();
    // minisign signs with the keys of both; scelle with its own, and with those of minisign that have a password.
    ok(&run(dir, "minisign", &["-S", "-W", "-s", "a.key", "-m", "registry.toml", "-x", "registry.toml.a.minisig"]));
    ok(&run(dir, "minisign", &["-S", "-W", "-s", "b.key", "-m", "registry.toml", "-x", "registry.toml.b.minisig"]));
    let refused = run(dir, scelle, &["registry", "sign", "registry.toml", "--key", "a.key"]);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(errors.contains("is for minisign alone (-S -W) [registry-key]"), "{errors}");
    let verify = ["registry", "verify", "registry.toml", "--trust", "trust.toml"];
    let out = run(dir, scelle, &verify);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("signed by 2 of 2 officers, 2 must"), "{text}{}", String::from_utf8_lossy(&out.stderr));
    for officer in ["a", "b"] {
        let (key, signature) = (format!("{officer}.pub"), format!("registry.toml.{officer}.minisig"));
        ok(&run(dir, "minisign", &["-V", "-p", &key, "-m", "registry.toml", "-x", &signature]));
    }
    // The trust anchors that replace these are signed the same way.
    ok(&run(dir, scelle, &["registry", "keygen", "c", "--no-password"]));
    ok(&run(dir, scelle, &["registry", "succeed", "--trust", "trust.toml", "--without", "a", "--with", "c.pub"]));
    ok(&run(dir, "minisign", &["-S", "-W", "-s", "a.key", "-m", "trust.toml.2", "-x", "trust.toml.2.a.minisig"]));
    ok(&run(dir, scelle, &["registry", "sign", "trust.toml.2", "--key", "b.key"]));
    ok(&run(dir, "minisign", &["-V", "-p", "b.pub", "-m", "trust.toml.2", "-x", "trust.toml.2.b.minisig"]));
    let out = run(dir, scelle, &verify);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(3), "{text}");
    for said in ["signed by 1 of 2 officers, 2 must", "c                    has not signed", "trust anchors version 2"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
}
