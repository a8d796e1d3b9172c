//! The rules of the house: module order, banned words, file length, what lies at the top of the repository.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 800;

/// Longest function, in lines.
const FUNCTION_LINES_MAX: usize = 70;

/// Longest sentence in a comment, in words. Who needs more wants a list.
const SENTENCE_WORDS_MAX: usize = 40;

/// What may lie at the top of the repository; the first group has to.
const TOP_REQUIRED: [&str; 12] = [
    ".ci",
    ".github",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "fuzz",
    "man",
    "scripts",
    "src",
    "tests",
];
const TOP_ALLOWED: [&str; 4] = [".git", ".rustfmt.toml", "benches", "target"];

/// A banned word, where it is allowed, and why it is banned. `tests` are the places of test code.
struct Ban {
    word: &'static str,
    allowed_in: &'static [&'static str],
    also_in_tests: bool,
    why: &'static str,
}

const fn ban(word: &'static str, allowed_in: &'static [&'static str], also_in_tests: bool, why: &'static str) -> Ban {
    Ban { word, allowed_in, also_in_tests, why }
}

const CLI: &[&str] = &["src/cli", "src/cli.rs", "src/main.rs"];

const BANS: [Ban; 17] = [
    ban(".unwrap()", &[], false, "an error has a type and a message; an invariant is an `expect` with its reason"),
    ban("todo!", &[], true, "nothing is left to do"),
    ban("unimplemented!", &[], true, "nothing is left to do"),
    ban("dbg!", &[], true, "left over from debugging"),
    ban("println!", CLI, false, "only the command line talks to standard output"),
    ban("eprintln!", CLI, false, "only the command line talks to standard error; the rest logs"),
    ban("unsafe ", &["src/os", "src/os.rs", "src/pages/vfs.rs"], false, "unsafe code has two homes"),
    ban("env::var", CLI, false, "no environment variable changes what the daemon does (promise P1)"),
    ban("debug_assertions", &[], true, "a debug build keeps every promise (P1)"),
    ban("cfg(feature", &[], true, "one product: no build without encryption or policy (P1, P7)"),
    ban("process::exit", CLI, true, "it skips destructors, which wipe keys and release devices"),
    ban("#[ignore", &[], true, "a test runs or does not exist"),
    ban("tokio", &[], true, "plain threads"),
    ban("async fn", &[], true, "plain threads"),
    ban("rand::thread_rng", &[], true, "secrets come from crypto::random_bytes"),
    ban("Aes128", &[], true, "one cipher (P7)"),
    ban("ChaCha", &[], true, "one cipher (P7)"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below `dir`, as paths from the top of the repository.
fn sources(dir: &str) -> BTreeMap<String, String> {
    fn walk(dir: &Path, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                out.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(&root().join(dir), &mut out);
    out
}

/// Test code outside of `src`, benchmarks included; the fuzzers' folder may also hold what building them leaves.
fn test_sources() -> BTreeMap<String, String> {
    ["benches", "tests", "fuzz/src", "fuzz/fuzz_targets"].into_iter().flat_map(sources).collect()
}

/// The code alone: comments, strings and character literals become spaces, lines stay where they are.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => find(bytes, at, b"\n"),
            [b'/', b'*', ..] => find(bytes, at + 2, b"*/") + 2,
            [b'r', b'"' | b'#', ..] if at == 0 || !word(bytes[at - 1]) => raw_string_end(bytes, at),
            [b'"', ..] => string_end(bytes, at),
            [b'\'', b'\\', ..] => find(bytes, at + 3, b"'") + 1,
            [b'\'', _, b'\'', ..] => at + 3,
            _ => at,
        };
        let end = end.min(bytes.len());
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    let from = from.min(bytes.len());
    bytes[from..].windows(what.len()).position(|w| w == what).map_or(bytes.len(), |i| from + i)
}

fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string_end(bytes: &[u8], at: usize) -> usize {
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    if bytes.get(at + 1 + hashes) != Some(&b'"') {
        return at;
    }
    let close = [&b"\""[..], &vec![b'#'; hashes]].concat();
    find(bytes, at + 2 + hashes, &close) + close.len()
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/")
        || path.starts_with("benches/")
        || path.starts_with("fuzz/")
        || path.ends_with("/tests.rs")
        || path.contains("/tests/")
        || path.ends_with("/suite.rs")
}

/// The code without test modules: what follows `#[cfg(test)]` up to the end of that item.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..start]);
        let item = &rest[start..];
        let mut depth = 0usize;
        let end = item.char_indices().find_map(|(i, c)| match c {
            '{' => {
                depth += 1;
                None
            }
            '}' => {
                depth = depth.saturating_sub(1);
                (depth == 0).then_some(i + 1)
            }
            ';' if depth == 0 => Some(i + 1),
            _ => None,
        });
        let end = end.unwrap_or(item.len());
        out.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    out + rest
}

/// The modules of `src/lib.rs`, from the bottom up.
fn modules() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let name = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    lib.lines().filter_map(name).collect()
}

/// Names right after `prefix` in `code`, also the first names inside a group: `crate::{a::B, c}` gives a and c.
fn names_after(code: &str, prefix: &str) -> Vec<String> {
    let ident = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].bytes().last().is_some_and(|b| word(b) || b == b':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(ident(rest));
            continue;
        };
        let (mut depth, mut expect) = (1, true);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => expect = true,
                c if expect && depth == 1 && !c.is_whitespace() => {
                    names.push(ident(&group[i..]));
                    expect = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

#[test]
fn modules_are_in_the_designs_order() {
    let design = "units limits problem os space crypto registry probe device policy label mirror pages meta fs audit volume fuse \
                  control daemon cli";
    assert_eq!(modules().join(" "), design);
}

#[test]
fn a_module_uses_only_those_above_it() {
    let modules = modules();
    let order = |name: &str| modules.iter().position(|m| m == name);
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').skip(1).collect();
        let Some(own) = order(parts[0]) else { continue };
        if is_test_file(&path) {
            continue;
        }
        let code = without_tests(&code(&text));
        let crate_again = "super::".repeat(parts.len());
        let mut used = names_after(&code, "crate::");
        used.extend(names_after(&code, &crate_again));
        for name in used {
            if order(&name).is_some_and(|other| other > own) {
                wrong.push(format!("{path} uses {name}, which is below {}", parts[0]));
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Which file defines what, as far as the names of modules and their re-exports tell.
struct Files {
    /// The product part of each file below `src`, without comments and strings.
    code: BTreeMap<String, String>,
    /// For each file, the names that it re-exports, with the path of each.
    exported: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

impl Files {
    fn read() -> Self {
        let files = sources("src").into_iter().filter(|(path, _)| !is_test_file(path));
        let code: BTreeMap<String, String> = files.map(|(path, text)| (path, without_tests(&code(&text)))).collect();
        let exports = |path: &str, code: &str| -> BTreeMap<String, Vec<String>> {
            let public = code.split("pub use ").skip(1).filter_map(|rest| rest.split(';').next());
            let items = public.flat_map(|item| paths(&format!("use {item};")));
            let whole = items.filter_map(|item| Self::absolute(path, code, &item));
            whole.filter_map(|names| Some((names.last()?.clone(), names))).collect()
        };
        let exported = code.iter().map(|(path, code)| (path.clone(), exports(path, code))).collect();
        Self { code, exported }
    }

    /// The modules of a file, e.g. `pages`, `tree`.
    fn modules_of(path: &str) -> Vec<String> {
        path.trim_end_matches(".rs").split('/').skip(1).map(str::to_owned).collect()
    }

    /// `item` as the file at `path` names it, from the crate's root on; nothing for what is not ours.
    fn absolute(path: &str, code: &str, item: &str) -> Option<Vec<String>> {
        let own = Self::modules_of(path);
        let names: Vec<String> = item.split("::").map(|name| name.trim_start_matches("r#").to_owned()).collect();
        let supers = names.iter().take_while(|name| *name == "super").count();
        let declares = |name: &str| code.lines().any(|line| line.trim().ends_with(&format!("mod {name};")));
        match names[0].as_str() {
            "crate" => Some(names[1..].to_vec()),
            "super" if supers <= own.len() => Some([&own[..own.len() - supers], &names[supers..]].concat()),
            "self" => Some([&own[..], &names[1..]].concat()),
            first if declares(first) => Some([&own[..], &names[..]].concat()),
            _ => None,
        }
    }

    /// The file that defines what an absolute path names.
    fn defining(&self, names: &[String]) -> Option<String> {
        let at = |n: usize| format!("src/{}.rs", names[..n].join("/"));
        let depth = (1..=names.len()).rev().find(|n| self.code.contains_key(&at(*n)))?;
        let exported = names.get(depth).and_then(|name| self.exported[&at(depth)].get(name));
        exported.and_then(|path| self.defining(path)).or_else(|| Some(at(depth)))
    }

    /// The files whose items the file at `path` uses. A module's file and the parts in its folder are one: what they use of each other
    /// does not count.
    fn used_by(&self, path: &str) -> BTreeSet<String> {
        let code = &self.code[path];
        let is_part = |whole: &str, part: &str| part.starts_with(&format!("{}/", whole.trim_end_matches(".rs")));
        let found = paths(code).into_iter().filter_map(|item| self.defining(&Self::absolute(path, code, &item)?));
        found.filter(|file| file != path && !is_part(file, path) && !is_part(path, file)).collect()
    }
}

/// Every path of two names or more in `code`, the groups of `use` declarations written out.
fn paths(code: &str) -> Vec<String> {
    fn group(prefix: &str, text: &str, out: &mut Vec<String>) {
        let (mut depth, mut start) = (0, 0);
        for (i, c) in text.char_indices().chain([(text.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    one(prefix, text[start..i].trim(), out);
                    start = i + 1;
                }
                _ => {}
            }
        }
    }
    fn one(prefix: &str, item: &str, out: &mut Vec<String>) {
        match item.split_once('{') {
            Some((head, rest)) => {
                group(&format!("{prefix}{}", head.trim()), rest.trim_end().strip_suffix('}').unwrap_or(rest), out)
            }
            None if item.is_empty() => {}
            None => out.push(format!("{prefix}{}", item.split(" as ").next().unwrap_or(item).trim())),
        }
    }
    let mut out = Vec::new();
    let mut plain = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let is_statement = rest[..at].bytes().last().is_none_or(|b| !word(b));
        let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
        plain.push_str(&rest[..at]);
        if is_statement {
            one("", &rest[at + 4..end], &mut out);
            rest = &rest[end..];
        } else {
            rest = &rest[at + 4..];
        }
    }
    plain.push_str(rest);
    let in_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '#';
    let found = plain.split(|c: char| !in_path(c)).filter(|text| text.contains("::"));
    out.extend(found.map(|text| text.trim_matches(':').to_owned()));
    out
}

/// A file is read after those that it uses: two that use each other can only be read together.
#[test]
fn no_files_use_each_other_in_a_circle() {
    let files = Files::read();
    let mut left: BTreeMap<&String, BTreeSet<String>> =
        files.code.keys().map(|path| (path, files.used_by(path))).collect();
    // Whoever uses nobody that is left, or is used by nobody, is in no circle.
    let free = |left: &BTreeMap<&String, BTreeSet<String>>| {
        let is_used = |path: &str| left.values().any(|used| used.contains(path));
        left.iter().find(|(path, used)| used.is_empty() || !is_used(path)).map(|(path, _)| (*path).clone())
    };
    while let Some(path) = free(&left) {
        left.remove(&path);
        for used in left.values_mut() {
            used.remove(&path);
        }
    }
    let shown: Vec<String> = left.iter().map(|(path, used)| format!("{path} uses {used:?}")).collect();
    assert!(left.is_empty(), "circles among these files:\n{}", shown.join("\n"));
}

#[test]
fn banned_words_are_absent() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(test_sources()) {
        if path == "tests/house.rs" {
            continue;
        }
        let all = code(&text);
        let product = if is_test_file(&path) { String::new() } else { without_tests(&all) };
        for ban in &BANS {
            let allowed = |dir: &&str| path == **dir || path.starts_with(&format!("{dir}/"));
            if ban.allowed_in.iter().any(allowed) {
                continue;
            }
            let searched = if ban.also_in_tests { &all } else { &product };
            for (number, line) in searched.lines().enumerate() {
                if has_word(line, ban.word) {
                    wrong.push(format!("{path}:{}: {} ({})", number + 1, ban.word, ban.why));
                }
            }
        }
        for (number, line) in text.lines().enumerate() {
            if ["TODO", "FIXME", "XXX", "HACK", "Placeholder of"].iter().any(|w| has_word(line, w)) {
                wrong.push(format!("{path}:{}: unfinished: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether `line` contains `what`, not as the tail of a longer identifier.
fn has_word(line: &str, what: &str) -> bool {
    let starts_word = what.bytes().next().is_some_and(word);
    line.match_indices(what).any(|(at, _)| !starts_word || !line[..at].bytes().last().is_some_and(word))
}

/// Words that the field has better ones for, each with those.
const RETIRED: [(&str, &str); 8] = [
    ("mend", "repair"),
    ("gave up", "freed, abandoned or fenced"),
    ("given up", "freed, abandoned or fenced"),
    ("given_up", "freed, abandoned or fenced"),
    ("give_up", "free or abandon"),
    ("cut off", "incomplete"),
    ("cut_off", "incomplete"),
    ("errand", "queue, findings"),
];

/// The glossary of `src/lib.rs` has the words of the field; a reader who knows those needs no others.
#[test]
fn retired_words_are_absent() {
    let mut texts = sources("src");
    texts.extend(test_sources());
    for dir in ["man", "scripts", ".github"] {
        for entry in fs::read_dir(root().join(dir)).unwrap() {
            let name = format!("{dir}/{}", entry.unwrap().file_name().to_str().unwrap());
            let text = fs::read_to_string(root().join(&name)).unwrap();
            texts.insert(name, text);
        }
    }
    texts.insert("README.md".to_owned(), fs::read_to_string(root().join("README.md")).unwrap());
    texts.retain(|path, _| path != "tests/house.rs" && path != ".github/CHANGELOG.md");
    let mut wrong = Vec::new();
    for (path, text) in &texts {
        for (number, line) in text.lines().enumerate() {
            let line = line.to_lowercase();
            for (retired, word) in RETIRED.iter().filter(|(retired, _)| has_word(&line, retired)) {
                wrong.push(format!("{path}:{}: {retired}: say {word}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_short() {
    let long = |(path, text): (String, String)| {
        let lines = text.lines().count();
        (lines > FILE_LINES_MAX).then(|| format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"))
    };
    let wrong: Vec<String> = sources("src").into_iter().chain(test_sources()).filter_map(long).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The functions in `code`, as rustfmt lays them out, with their first line and how many they have.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let starts = lines.iter().enumerate().filter_map(|(at, line)| {
        let indent = line.len() - line.trim_start().len();
        let before = line.find("fn ").filter(|fn_at| line[indent..*fn_at].split_whitespace().all(is_qualifier))?;
        let name = line[before + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        Some((at, indent, name))
    });
    let measured = starts.map(|(at, indent, name): (usize, usize, String)| {
        let close = |line: &&str| line.len() - line.trim_start().len() == indent && line.trim_start().starts_with('}');
        let is_declared_only = lines[at].trim_end().ends_with(';');
        let length = if is_declared_only { 0 } else { lines[at..].iter().position(close).unwrap_or(0) };
        (name, at + 1, length + 1)
    });
    measured.collect()
}

/// What may stand before `fn`.
fn is_qualifier(word: &str) -> bool {
    ["pub", "const", "unsafe", "extern", "async"].contains(&word) || word.starts_with("pub(")
}

#[test]
fn functions_are_short() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(test_sources()) {
        let long = functions(&code(&text)).into_iter().filter(|(_, _, lines)| *lines > FUNCTION_LINES_MAX);
        wrong.extend(long.map(|(name, at, lines)| format!("{path}:{at}: {name} has {lines} lines")));
    }
    assert!(wrong.is_empty(), "at most {FUNCTION_LINES_MAX} lines:\n{}", wrong.join("\n"));
}

/// The sentences in the comments of `text`, with the line each paragraph begins on and how many words each has. A list's
/// item, a heading, a table's row and an example end a paragraph.
fn sentences(text: &str) -> Vec<(usize, usize)> {
    let (mut found, mut words, mut start, mut is_example) = (Vec::new(), 0, 0, false);
    for (number, line) in text.lines().enumerate() {
        let comment = line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!']).trim());
        let prose = comment.unwrap_or_default();
        is_example ^= prose.starts_with("```");
        let is_prose = !is_example && !prose.starts_with(['#', '|']) && !prose.starts_with("```");
        let prose = if is_prose { prose } else { "" };
        if prose.is_empty() || prose.starts_with("* ") {
            found.push((start, std::mem::take(&mut words)));
        }
        for word in prose.split(' ').filter(|word| !["", "*"].contains(word)) {
            start = if words == 0 { number + 1 } else { start };
            words += 1;
            if word.trim_end_matches([')', '`', '"']).ends_with(['.', '!', '?']) {
                found.push((start, std::mem::take(&mut words)));
            }
        }
    }
    found.push((start, words));
    found
}

#[test]
fn sentences_are_short() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(test_sources()) {
        let long = sentences(&text).into_iter().filter(|(_, words)| *words > SENTENCE_WORDS_MAX);
        wrong.extend(long.map(|(at, words)| format!("{path}:{at}: a sentence of {words} words")));
    }
    assert!(wrong.is_empty(), "at most {SENTENCE_WORDS_MAX} words:\n{}", wrong.join("\n"));
}

#[test]
fn sentences_are_counted() {
    let words = |text| sentences(text).into_iter().map(|found| found.1).filter(|words| *words > 0).collect::<Vec<_>>();
    assert_eq!(words("/// One two\n/// three. Four (`five.`) six\nlet not_this = 1;\n// seven"), [3, 2, 1, 1]);
    assert_eq!(words("//! * one two\n//! * three\n//!\n//! four"), [2, 1, 1]);
    assert_eq!(words("/// One:\n/// ```\n/// two three four\n/// ```\n/// five"), [1, 1]);
}

#[test]
fn modules_are_files_beside_their_folder() {
    let wrong: Vec<String> = sources("src").into_keys().filter(|path| path.ends_with("/mod.rs")).collect();
    assert!(wrong.is_empty(), "foo.rs beside foo/, not foo/mod.rs: {wrong:?}");
}

#[test]
fn the_top_of_the_repository_is_tidy() {
    let names = fs::read_dir(root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.collect();
    let unknown: Vec<&String> =
        names.iter().filter(|n| !TOP_REQUIRED.contains(&n.as_str()) && !TOP_ALLOWED.contains(&n.as_str())).collect();
    assert!(unknown.is_empty(), "not known at the top of the repository: {unknown:?}");
    let missing: Vec<&str> = TOP_REQUIRED.into_iter().filter(|r| !names.iter().any(|n| n == r)).collect();
    assert!(missing.is_empty(), "missing at the top of the repository: {missing:?}");
}

/// Names of all test functions.
fn test_names() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for text in sources("src").into_values().chain(test_sources().into_values()) {
        let code = code(&text);
        for item in code.split("#[test]").skip(1) {
            let name = item.split_once("fn ").map_or("", |(_, rest)| rest);
            tests.insert(name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>());
        }
    }
    tests
}

/// The number of a promise, one or two digits, at the beginning of `text`, and what follows it.
fn promise(text: &str) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (digits <= 2).then(|| Some((text[..digits].parse().ok()?, &text[digits..])))?
}

/// The promises that `text` names: P and a number, as a word.
fn promises_named(text: &str) -> BTreeSet<u32> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words
        .filter_map(|word| promise(word.strip_prefix('P')?))
        .filter(|(_, rest)| rest.is_empty())
        .map(|(n, _)| n)
        .collect()
}

/// The promise after which a test is named.
fn promise_of_test(name: &str) -> Option<u32> {
    promise(name.strip_prefix('p')?).filter(|(_, rest)| rest.starts_with('_')).map(|(number, _)| number)
}

/// The texts that people read: the pages of the manual, the README and what is beside it.
fn texts() -> BTreeMap<String, String> {
    let files = ["man", ".github"].into_iter().filter_map(|dir| fs::read_dir(root().join(dir)).ok()).flatten();
    let paths = files.map(|entry| entry.unwrap().path()).chain([root().join("README.md")]);
    paths.map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap())).collect()
}

/// A promise that is cited somewhere is defined in scelle-threats(7), which says of each that it has a test, or has none yet.
#[test]
fn promises_are_defined_and_tested() {
    let page = fs::read_to_string(root().join("man/scelle-threats.7")).unwrap();
    let items = page.split("\n.TP\n.B P").skip(1).filter_map(promise);
    let items = items.map(|(number, text)| (number, text.split("\n.SH ").next().unwrap_or(text)));
    let defined: BTreeMap<u32, &str> = items.collect();
    assert!(defined.len() >= 12, "only {} promises are defined", defined.len());
    let tests: BTreeSet<u32> = test_names().iter().filter_map(|name| promise_of_test(name)).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(test_sources()).chain(texts()) {
        let unknown = promises_named(&text).into_iter().filter(|number| !defined.contains_key(number));
        wrong.extend(unknown.map(|number| format!("{path}: P{number} is not defined in scelle-threats(7)")));
    }
    wrong.extend(tests.iter().filter(|n| !defined.contains_key(n)).map(|n| format!("p{n}_: a test of no promise")));
    for (number, text) in &defined {
        let says_none = text.split_whitespace().collect::<Vec<_>>().join(" ").contains("no test yet");
        match (tests.contains(number), says_none) {
            (false, false) => {
                wrong.push(format!("P{number}: no test is named p{number}_, and the page does not say so"))
            }
            (true, true) => wrong.push(format!("P{number}: the page says \"no test yet\", and there is one")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn promises_are_recognised() {
    assert_eq!(promises_named("(P1, P12), promise P7; MP3 P2P P123 P_4 fP5"), [1, 7, 12].into());
    assert_eq!(promise_of_test("p10_a_disk_is_exchanged"), Some(10));
    assert_eq!(promise_of_test("p4k_reads").or(promise_of_test("pages_are_whole")), None);
}

/// The pages of threats and of semantics claim nothing but by a test that exists: a function, or an application.
#[test]
fn the_pages_name_tests_that_exist() {
    let tests = test_names();
    for (page, least) in [("man/scelle-threats.7", 40), ("man/scelle.7", 40)] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix(".I ").or_else(|| line.strip_prefix(".RI ( ")));
        let named: Vec<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
        let (paths, functions): (Vec<&str>, Vec<&str>) = named.iter().partition(|name| name.contains('/'));
        let functions: Vec<&str> = functions.into_iter().filter(|name| name.contains('_')).collect();
        assert!(functions.len() > least, "{page}: only {} tests are named", functions.len());
        let unknown: Vec<&&str> = functions.iter().filter(|name| !tests.contains(**name)).collect();
        assert!(unknown.is_empty(), "{page}: no such test: {unknown:?}");
        let ours = |path: &&&str| path.starts_with("tests/") || path.starts_with("scripts/");
        let absent: Vec<&&str> = paths.iter().filter(ours).filter(|path| !root().join(path).exists()).collect();
        assert!(absent.is_empty(), "{page}: no such file: {absent:?}");
    }
}

#[test]
fn scripts_are_strict_and_executable() {
    use std::os::unix::fs::PermissionsExt;
    for dir in ["scripts", ".ci", "tests/applications"] {
        for entry in fs::read_dir(root().join(dir)).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if path.extension().is_some() {
                continue;
            }
            assert!(entry.metadata().unwrap().permissions().mode() & 0o111 != 0, "{path:?} is not executable");
            let text = fs::read_to_string(&path).unwrap();
            if text.starts_with("#!/") && text.lines().next().unwrap().ends_with("bash") {
                assert!(text.contains("\nset -euo pipefail\n"), "{path:?} goes on after an error");
            }
        }
    }
}

#[test]
fn the_scanner_sees_code_and_nothing_else() {
    let text = "let a = \"todo!\"; // todo!\nlet b = r#\"dbg!\"#; /* dbg! */ let c = '\"'; x.unwrap();\n";
    let seen = code(text);
    assert!(!seen.contains("todo!") && !seen.contains("dbg!"));
    assert!(seen.contains("x.unwrap()"));
    assert_eq!(seen.lines().count(), 2);
    let module = "a();\n#[cfg(test)]\nmod tests {\n fn f() { b(); }\n}\nc();\n#[cfg(test)]\nmod tests;\nd();";
    let product = without_tests(module);
    assert!(product.contains("a()") && product.contains("c()") && product.contains("d()") && !product.contains("b()"));
    assert_eq!(product.lines().count(), module.lines().count());
    let text = "use a::{self, b::{C, D as E}};\nuse super::f;\nlet g = h::i(j::K);";
    assert_eq!(paths(text), ["a::self", "a::b::C", "a::b::D", "super::f", "h::i", "j::K"]);
    assert_eq!(names_after("use crate::{a::{B, C}, d};\nuse crate::e::F; my_crate::g", "crate::"), ["a", "d", "e"]);
    let two = "fn a(\n    b: u8,\n) -> u8 {\n    b\n}\nimpl C {\n    pub(super) const fn d() {}\n}\n";
    assert_eq!(functions(two), [("a".to_owned(), 1, 5), ("d".to_owned(), 7, 1)]);
    assert!(has_word("x::env::var(y)", "env::var") && !has_word("eprintln!()", "println!"));
}
