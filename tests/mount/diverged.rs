//! A split brain: what is advised, followed to the letter, leads out of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::lab::{Lab, SCELLE, fails, ok, run, stderr};

fn put(lab: &Lab, name: &str, content: &str) {
    let path = lab.mountpoint.join(name);
    fs::write(&path, content).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
}

/// The words of the command in `text` that begins with `start`, VOLUME and MOUNTPOINT filled in.
fn advised(lab: &Lab, text: &str, start: &str) -> Vec<String> {
    let at = text.find(start).unwrap_or_else(|| panic!("{start} is not in {text}"));
    let command =
        text[at..].split([':', '.', '\n']).next().unwrap().trim_end_matches(" lists what only that one has, and with");
    let mountpoint = lab.mountpoint.to_str().unwrap();
    let fill =
        |word: &str| if matches!(word, "VOLUME" | "MOUNTPOINT") { mountpoint.to_owned() } else { word.to_owned() };
    command.split_whitespace().skip(1).map(fill).collect()
}

fn scelle(words: &[String], more: &[&str]) -> Output {
    run(Command::new(SCELLE).args(words).args(more))
}

#[test]
fn p6_the_advice_of_a_split_brain_leads_out_of_it() {
    let lab = Lab::mounted(2, 64);
    put(&lab, "both", "kept");
    let witness = format!("/var/lib/scelle/{}.witness", lab.status()["uuid"].as_str().unwrap());
    ok(&lab.umount());
    let nodes = lab.devices();
    for (index, name) in [(0, "first"), (1, "second")] {
        // As on another host, which has seen nothing of the volume.
        fs::remove_file(&witness).unwrap();
        ok(&lab.mount_devices(&nodes[index..=index], "degraded"));
        put(&lab, name, name);
        ok(&lab.umount());
    }
    let refused = std::cell::RefCell::new(None);
    lab.refuses(3, "volume-diverged", || {
        let out = lab.mount_devices(&nodes, "degraded");
        *refused.borrow_mut() = Some(out.clone());
        out
    });
    let refused = stderr(&refused.into_inner().unwrap());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for piece in
        ["at generation ", "on host ", host.trim(), "Z", nodes[0].to_str().unwrap(), nodes[1].to_str().unwrap()]
    {
        assert!(refused.contains(piece), "{piece} is not in {refused}");
    }
    // As it says: one of them alone.
    let words = advised(&lab, &refused, "scelle mount -o degraded");
    let chosen = PathBuf::from(&words[3]);
    ok(&lab.mount_devices(&[chosen], "degraded"));
    // As the status says.
    let status = |lab: &Lab| {
        String::from_utf8_lossy(&scelle(&["status".into()], &[lab.mountpoint.to_str().unwrap()]).stdout).into_owned()
    };
    assert!(status(&lab).contains("is not there. Attach it, then scelle replica resync"), "{}", status(&lab));
    let resync = ["replica".to_owned(), "resync".to_owned(), lab.mountpoint.to_str().unwrap().to_owned()];
    let asked = scelle(&resync, &[]);
    fails(&asked, 3, "volume-diverged");
    let lost = if lab.mountpoint.join("first").exists() { "second" } else { "first" };
    assert!(String::from_utf8_lossy(&asked.stdout).contains(&format!("\n  /{lost}\n")), "{asked:?}");
    // The status says from now on what to do, and that does it.
    let told = status(&lab);
    let words = advised(&lab, &told, "scelle replica resync VOLUME");
    assert_eq!(words[4], "--discard-diverged", "{told}");
    let done = scelle(&words, &["--wait"]);
    ok(&done);
    assert!(String::from_utf8_lossy(&done.stdout).contains(&format!("\n  /{lost}\n")), "{done:?}");
    assert_eq!(lab.status()["state"], "healthy", "{}", lab.status());
    let trail = scelle(&["audit".into(), "log".into(), "--json".into()], &[lab.mountpoint.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&trail.stdout).contains("history-discarded"));
    ok(&lab.umount());
    ok(&lab.check());
    ok(&lab.mount());
    assert_eq!(fs::read_to_string(lab.mountpoint.join("both")).unwrap(), "kept");
    assert!(!Path::exists(&lab.mountpoint.join(lost)));
    ok(&lab.umount());
}
