//! The fuzz targets of `fuzz/`, for real in every test run: a seeded mutator without coverage feedback, over valid samples.
//! `SCELLE_SEED` repeats a run, `SCELLE_FUZZ_SECONDS` makes it longer, e.g.
//! `SCELLE_FUZZ_SECONDS=300 cargo test --release --test fuzz -- --nocapture`. With `SCELLE_FUZZ_SAMPLES=DIR` the samples are
//! only written to DIR/TARGET, for libFuzzer to begin with: `scripts/fuzz`.
#![allow(clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "bytes and places are made from small numbers")]

#[path = "../../fuzz/src/targets.rs"]
mod targets;

mod memory;
mod mutate;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mutate::mutate;
use targets::support::rng::{self, Rng};

/// Longest time for one input. A target needs microseconds; the machine may be busy.
const INPUT_TIME_MAX: Duration = Duration::from_secs(10);

/// Most memory that one input may take beyond what was in use before it, in bytes.
const INPUT_MEMORY_MAX: usize = 64 << 20;

/// Longest time for a target in an ordinary test run.
const TARGET_TIME: Duration = Duration::from_secs(10);

/// Most inputs of a target in an ordinary test run.
const INPUTS: u64 = 20_000;

/// Feeds a target its samples, then what the mutator makes of them.
fn fuzz(name: &str, target: fn(&[u8]), samples: &[Vec<u8>]) {
    if let Some(folder) = std::env::var_os("SCELLE_FUZZ_SAMPLES") {
        let folder = Path::new(&folder).join(name);
        fs::create_dir_all(&folder).unwrap();
        samples
            .iter()
            .enumerate()
            .for_each(|(n, sample)| fs::write(folder.join(format!("sample-{n}")), sample).unwrap());
        return;
    }
    let seed = rng::seed();
    let seconds = std::env::var("SCELLE_FUZZ_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    let (time, inputs) = seconds.map_or((TARGET_TIME, INPUTS), |s| (Duration::from_secs(s), u64::MAX));
    assert!(!samples.is_empty());
    // What the target makes once is not the first input's.
    samples.iter().for_each(|sample| target(sample));
    let mut rng = Rng::new(seed);
    let begin = Instant::now();
    let mut count = 0;
    let mut corpus = samples.to_vec();
    while count < inputs && begin.elapsed() < time {
        let input = match corpus.get(count as usize) {
            Some(sample) if (count as usize) < samples.len() => sample.clone(),
            _ => mutate(&corpus, &mut rng),
        };
        try_one(name, target, &input, seed, count);
        // Without coverage to go by: now and then a mutant becomes a sample, so that changes add up.
        if rng.one_in(64) {
            let place = samples.len() + rng.below(64) as usize;
            if place < corpus.len() { corpus[place] = input } else { corpus.push(input) }
        }
        count += 1;
    }
    println!("{name}: {count} inputs in {:.1} s", begin.elapsed().as_secs_f64());
    assert!(count as usize >= samples.len().min(100), "{name}: only {count} inputs were tried");
}

fn try_one(name: &str, target: fn(&[u8]), input: &[u8], seed: u64, number: u64) {
    let begin = Instant::now();
    memory::begin();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    let peak = memory::peak();
    let shown = || format!("{name}, seed {seed}, input {number}: {}", input.escape_ascii());
    if let Err(panic) = outcome {
        eprintln!("{}", shown());
        std::panic::resume_unwind(panic);
    }
    assert!(begin.elapsed() < INPUT_TIME_MAX, "took {:?}: {}", begin.elapsed(), shown());
    assert!(peak < INPUT_MEMORY_MAX, "took {peak} bytes of memory: {}", shown());
}

/// The files in a folder of the repository whose names end so.
fn files(folder: &str, end: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| path.to_str().unwrap().ends_with(end));
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn registry() {
    let mut samples = files("tests/policy", ".toml");
    samples.extend([b"2026-11-21".to_vec(), b"a5a5a5a5-a5a5-45a5-a5a5-a5a5a5a5a5a5".to_vec(), b"259:0".to_vec()]);
    fuzz("registry", targets::registry, &samples);
}

#[test]
fn signature() {
    let mut samples = files("fuzz/seeds/signature", ".minisig");
    assert_eq!(samples.len(), 2);
    samples.extend(samples.clone().into_iter().map(|file| [&file, &b"\0"[..], targets::DOCUMENT].concat()));
    fuzz("signature", targets::signature, &samples);
}

#[test]
fn trust() {
    let mut samples = files("fuzz/seeds/signature", ".toml");
    samples.push(String::from_utf8_lossy(&samples[0]).replace("officer-a", "b").into_bytes());
    fuzz("trust", targets::trust, &samples);
}

#[test]
fn key() {
    let made = scelle::registry::keygen("officer-a", None).unwrap();
    let file = [&b"\0"[..], made.secret.as_bytes()].concat();
    fuzz("key", targets::key, &[file, vec![1; 155], b"\0untrusted comment: x\nRWQ=\n".to_vec()]);
}

#[test]
fn label() {
    let edits = [1u8, 136, 0, 0, 12, 0, 1, 0, 2];
    let whole = |mode: u8| std::iter::once(mode).chain([0x53; 4096]).collect::<Vec<u8>>();
    let sized = [&[5u8][..], &(64u64 << 20).to_le_bytes(), &[40, 0, 9]].concat();
    fuzz("label", targets::label, &[vec![1], edits.to_vec(), vec![9, 80, 0, 1], sized, whole(0), whole(8)]);
}

#[test]
fn root() {
    let record = |epoch: u32, generation: u64, in_sync: u64| {
        let mut record =
            [&generation.to_le_bytes()[..], &epoch.to_le_bytes(), &[0; 4], &in_sync.to_le_bytes()].concat();
        record.resize(316, 0);
        record
    };
    // Written together with one data block, and the root before it in the same ring.
    let mut provisional = record(1, 10, 3);
    (provisional[276], provisional[277], provisional[284]) = (1, 1, 77);
    let ring = [provisional, record(1, 9, 3), record(1, 9, 3)].concat();
    let two = [record(1, 9, 3), record(1, 10, 3)].concat();
    let apart = [record(2, 11, 1), record(3, 14, 2), record(1, 7, 7), record(3, 14, 2)].concat();
    fuzz("root", targets::root, &[two, apart, ring, record(u32::MAX, u64::MAX, u64::MAX)]);
}

#[test]
fn system() {
    let samples = files("tests/policy/fixtures", ".tree");
    assert!(samples.len() >= 20);
    fuzz("system", targets::system, &samples);
}

#[test]
fn control() {
    let samples = [
        r#"{"request":"status"}"#,
        r#"{"waiting":{"pid":7}}"#,
        r#"{"done":null}"#,
        r#"{"error":{"code":"a","text":"b"}}"#,
        r#"{"volumes":[{"uuid":"u","label":"l","mountpoint":"/m","state":"read-only","sovereign":true,"generation":1,
        "capacity":{"total_bytes":9,"used_bytes":1},"registry":{"version":7,"valid_until":"2027-05-31","signatures":["a"]},
        "replicas":[{"device":"/dev/x","registry_id":"x","site":"s","site_name":"S","country":"FR","owner":"o",
        "administrator":"a","jurisdictions":["FR"],"state":"in-sync","generation":1,"verdict":{"approved":false,
        "reasons":[{"code":"c","text":"t"}]},"errors":{"read":0,"write":0,"integrity":0,"repaired":0},
        "resync":{"done_bytes":1,"total_bytes":2}}],"scrub":{"state":"never","last_finished":null,"errors":0},"pid":1}]}"#,
        r#"{"volume":{"uuid":"u","label":"","sovereign":false},"kind":"file","size_bytes":1,"stored_bytes":null,
        "changed":null,"generation":1,"committed":true,"registry":{"version":1,"issued":"a","valid_until":"b",
        "signatures":[]},"replicas":[],"basis":""}"#,
    ];
    fuzz("control", targets::control, &samples.map(|text| text.as_bytes().to_vec()));
}

#[test]
fn export() {
    let whole = [&[0][..], targets::EXPORT].concat();
    // Behind the seal and its signature.
    let records = targets::EXPORT.splitn(3, |byte| *byte == b'\n').nth(2).unwrap();
    let records = [&[1][..], records.strip_suffix(b"\n").unwrap()].concat();
    fuzz("export", targets::export, &[whole, records, vec![1]]);
}

#[test]
fn acl() {
    let list = |entries: &[(u16, u16, u32)]| {
        let mut value = [&0o640u16.to_le_bytes()[..], &2u32.to_le_bytes()].concat();
        for (tag, permission, id) in entries {
            value.extend([&tag.to_le_bytes()[..], &permission.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        value
    };
    let none = u32::MAX;
    let named = [(1, 7, none), (2, 6, 1000), (4, 5, none), (8, 4, 50), (0x10, 7, none), (0x20, 4, none)];
    fuzz("acl", targets::acl, &[list(&named), list(&[(1, 6, none), (4, 4, none), (0x20, 0, none)]), list(&[])]);
}

#[test]
fn xattr() {
    let call = |flags: u8, name: &str, value: &[u8]| [&[flags, name.len() as u8][..], name.as_bytes(), value].concat();
    let list = [&2u32.to_le_bytes()[..], &[1, 0, 7, 0, 255, 255, 255, 255]].concat();
    let samples = [
        call(0, "user.a", b"value"),
        call(1, "trusted.b", b""),
        call(2, "security.capability", &[1; 20]),
        call(0, "user.scelle.place", b"forged"),
        call(0, "system.posix_acl_access", &list),
        call(0, "system.posix_acl_default", &list),
    ];
    fuzz("xattr", targets::xattr, &samples);
}

/// Each target here is one of `fuzz/`, and the other way round.
#[test]
fn both_ways_of_fuzzing_have_the_same_targets() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = fs::read_to_string(root.join("tests/fuzz/main.rs")).unwrap();
    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
    let mut count = 0;
    for entry in fs::read_dir(root.join("fuzz/fuzz_targets")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(here.contains(&format!("fuzz(\"{name}\", targets::{name}, ")), "{name} is not run here");
        assert!(manifest.contains(&format!("\nname = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n")), "{name}");
        assert!(fs::read_to_string(&path).unwrap().contains(&format!("targets::{name}(data)")), "{name}");
        count += 1;
    }
    assert_eq!(here.matches("\n    fuzz(\"").count(), count, "a target here is not in fuzz/");
}

/// The fuzzers are built with the versions that the product has, and building them changes no list of versions.
#[test]
fn the_fuzzers_have_the_products_dependencies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap().parse::<toml::Table>().unwrap();
    let locked = |path: &str| -> BTreeSet<(String, String)> {
        let field = |package: &toml::Value, key: &str| package[key].as_str().unwrap().to_owned();
        let lock = read(path);
        lock["package"].as_array().unwrap().iter().map(|p| (field(p, "name"), field(p, "version"))).collect()
    };
    let (ours, theirs) = (locked("Cargo.lock"), locked("fuzz/Cargo.lock"));
    let apart: Vec<&str> = theirs.difference(&ours).map(|(name, _)| name.as_str()).collect();
    assert_eq!(apart, ["arbitrary", "jobserver", "libfuzzer-sys", "scelle-fuzz"]);
    for name in read("Cargo.toml")["dependencies"].as_table().unwrap().keys() {
        assert!(theirs.iter().any(|(theirs, _)| theirs == name), "{name} is missing in fuzz/Cargo.lock");
    }
}
