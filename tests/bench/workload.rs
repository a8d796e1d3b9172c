//! The requests that `scripts/bench` measures, with the standard library alone: the script compiles this with rustc.
//!
//! Each command prints one number: bytes, requests or files a second. Writes end with an fsync that is in the time. The
//! last two prepare the files of a tree, and make the table of what was measured.

mod hostile;

use std::env;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "usage: workload write FILE MIB CHUNK_KIB WRITERS | read FILE CHUNK_KIB
  random-read FILE THREADS SECONDS | random-write FILE SECONDS end|each
  create|stat|read-all|unlink FOLDER COUNT | fill FOLDER FROM TO | probe FOLDER FILES COUNT
  latency FOLDER SECONDS GOAL_MS | hostile FOLDER SECONDS GOAL_MS KIND | choose FILES BYTES | table SAMPLES CONTENDER...";

const BLOCK: usize = 4096;

/// Files in one folder of `fill`.
const FOLDER_FILES: u64 = 1000;

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words {
        ["write", file, mib, chunk, writers] => {
            write(file, mib.parse()?, chunk.parse::<usize>()? << 10, writers.parse()?)
        }
        ["read", file, chunk] => read(file, chunk.parse::<usize>()? << 10),
        ["random-read", file, threads, s] => random_read(file, threads.parse()?, Duration::from_secs(s.parse()?)),
        ["random-write", file, s, "end"] => random_write(file, Duration::from_secs(s.parse()?), false),
        ["random-write", file, s, "each"] => random_write(file, Duration::from_secs(s.parse()?), true),
        ["create", folder, count] => small(folder, count.parse()?, create),
        ["stat", folder, count] => small(folder, count.parse()?, stat),
        ["read-all", folder, count] => small(folder, count.parse()?, read_small),
        ["unlink", folder, count] => small(folder, count.parse()?, |path| Ok(fs::remove_file(path)?)),
        ["fill", folder, from, to] => fill(Path::new(folder), from.parse()?, to.parse()?),
        ["probe", folder, files, count] => probe(Path::new(folder), files.parse()?, count.parse()?),
        ["latency", folder, s, goal] => latency(Path::new(folder), Duration::from_secs(s.parse()?), goal.parse()?),
        ["hostile", folder, s, goal, only] => {
            hostile::hostile(Path::new(folder), Duration::from_secs(s.parse()?), goal.parse()?, only)
        }
        ["choose", files, bytes] => choose(files.parse()?, bytes.parse()?),
        ["table", samples, ref contenders @ ..] if !contenders.is_empty() => table(samples, contenders),
        _ => Err(USAGE.into()),
    }
}

/// A generator of no quality but speed (xorshift64, Marsaglia 2003): the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Bytes that do not compress.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }

    /// 0 to `count` - 1, each once.
    fn shuffled(&mut self, count: u64) -> Vec<u64> {
        let mut all: Vec<u64> = (0..count).collect();
        for i in (1..all.len()).rev() {
            all.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        all
    }
}

fn print_rate(count: u64, begin: Instant) {
    println!("{:.2}", count as f64 / begin.elapsed().as_secs_f64());
}

/// Each writer has a file of its own, all together write `mib`; the first one's is `path` itself.
fn write(path: &str, mib: usize, chunk: usize, writers: usize) -> Result<()> {
    let content = Random(1).bytes(16 << 20);
    let total = (mib << 20) / writers;
    let write_one = &|writer: usize| -> Result<()> {
        let mut file = File::create(if writer == 0 { path.to_owned() } else { format!("{path}.{writer}") })?;
        let mut done = 0;
        while done < total {
            let at = done % content.len();
            let part = chunk.min(total - done).min(content.len() - at);
            file.write_all(&content[at..at + part])?;
            done += part;
        }
        Ok(file.sync_all()?)
    };
    let begin = Instant::now();
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..writers).map(|writer| scope.spawn(move || write_one(writer))).collect();
        jobs.into_iter().try_for_each(|job| job.join().map_err(|_| "a writer panicked")?)
    })?;
    print_rate((total * writers) as u64, begin);
    Ok(())
}

fn read(file: &str, chunk: usize) -> Result<()> {
    let mut buffer = vec![0; chunk];
    let begin = Instant::now();
    let mut file = File::open(file)?;
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => total += count as u64,
        }
    }
    print_rate(total, begin);
    Ok(())
}

/// Each thread goes over its own part of the file, in its own order and once at most, so that nothing is measured that the
/// page cache holds already.
fn random_read(path: &str, threads: u64, time: Duration) -> Result<()> {
    let file = File::open(path)?;
    let blocks = file.metadata()?.len() / BLOCK as u64 / threads;
    let orders: Vec<Vec<u64>> = (0..threads).map(|thread| Random(7 + thread).shuffled(blocks)).collect();
    let begin = Instant::now();
    let done: Result<u64> = thread::scope(|scope| {
        let job = |(thread, order): (usize, &Vec<u64>)| {
            let (file, first) = (File::open(path), thread as u64 * blocks);
            let order = order.clone();
            scope.spawn(move || -> Result<u64> {
                let file = file?;
                let mut buffer = [0; BLOCK];
                let mut done = 0;
                for block in order {
                    if begin.elapsed() > time {
                        break;
                    }
                    file.read_exact_at(&mut buffer, (first + block) * BLOCK as u64)?;
                    done += 1;
                }
                Ok(done)
            })
        };
        let jobs: Vec<_> = orders.iter().enumerate().map(job).collect();
        jobs.into_iter().map(|job| job.join().map_err(|_| "a reader panicked")?).sum()
    });
    print_rate(done?, begin);
    Ok(())
}

fn random_write(path: &str, time: Duration, each: bool) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut random = Random(3);
    let order = random.shuffled(file.metadata()?.len() / BLOCK as u64);
    let content = random.bytes(BLOCK);
    let begin = Instant::now();
    let mut done = 0;
    for block in order {
        if begin.elapsed() > time {
            break;
        }
        file.write_all_at(&content, block * BLOCK as u64)?;
        if each {
            file.sync_data()?;
        }
        done += 1;
    }
    file.sync_all()?;
    print_rate(done, begin);
    Ok(())
}

fn small(folder: &str, count: u64, f: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    for i in 0..count {
        f(&Path::new(folder).join(format!("f{i:05}")))?;
    }
    if count > 0 && Path::new(folder).exists() {
        // What was created or removed is durable within the time.
        File::open(folder)?.sync_all()?;
    }
    print_rate(count, begin);
    Ok(())
}

fn create(path: &Path) -> Result<()> {
    Ok(OpenOptions::new().write(true).create_new(true).open(path)?.write_all(&[7; BLOCK])?)
}

fn stat(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path)?.len() == BLOCK as u64 { Ok(()) } else { Err("a file has another size".into()) }
}

fn read_small(path: &Path) -> Result<()> {
    if fs::read(path)? == [7; BLOCK] { Ok(()) } else { Err("a file has another content".into()) }
}

/// Where file `i` of a large tree is.
fn place(folder: &Path, i: u64) -> PathBuf {
    folder.join(format!("d{:05}", i / FOLDER_FILES)).join(format!("f{:03}", i % FOLDER_FILES))
}

/// Files `from` to `to` of a large tree; every tenth holds a block, the others are empty.
fn fill(folder: &Path, from: u64, to: u64) -> Result<()> {
    let begin = Instant::now();
    for i in from..to {
        let path = place(folder, i);
        if i % FOLDER_FILES == 0 || i == from {
            fs::create_dir_all(path.parent().ok_or("a file lies in a folder")?)?;
        }
        if i % 10 == 0 {
            create(&path)?;
        } else {
            OpenOptions::new().write(true).create_new(true).open(&path)?;
        }
    }
    File::open(folder)?.sync_all()?;
    print_rate(to - from, begin);
    Ok(())
}

/// Microseconds that one request takes in a tree of `files` files: create, look up cold (a name that is not there, so that
/// no cache knows it), stat one at random, rename, unlink.
fn probe(folder: &Path, files: u64, count: u64) -> Result<()> {
    let mut random = Random(files + 1);
    let home = |i: u64| folder.join(format!("d{:05}", i % files / FOLDER_FILES));
    let homes: Vec<u64> = (0..count).map(|_| random.next()).collect();
    let old = |i: &u64| home(*i).join(format!("probe-{i:x}"));
    let new = |i: &u64| home(*i).join(format!("renamed-{i:x}"));
    let time = |f: &dyn Fn(&u64) -> Result<()>| -> Result<f64> {
        let begin = Instant::now();
        homes.iter().try_for_each(f)?;
        Ok(begin.elapsed().as_secs_f64() * 1e6 / count as f64)
    };
    let stat = time(&|i| Ok(fs::symlink_metadata(place(folder, i % files)).map(drop)?))?;
    let miss = time(&|i| match fs::symlink_metadata(home(*i).join(format!("absent-{i:x}"))) {
        Ok(_) => Err("a file that nobody made".into()),
        Err(_) => Ok(()),
    })?;
    let made = time(&|i| create(&old(i)))?;
    let renamed = time(&|i| Ok(fs::rename(old(i), new(i))?))?;
    let removed = time(&|i| Ok(fs::remove_file(new(i))?))?;
    println!("{stat:.1} {miss:.1} {made:.1} {renamed:.1} {removed:.1}");
    Ok(())
}

/// Counts by powers of two, in microseconds.
#[derive(Default)]
struct Histogram {
    counts: [u64; 32],
    longest: Duration,
}

impl Histogram {
    fn time(&mut self, f: impl FnOnce() -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        f()?;
        let took = begin.elapsed();
        let class = u64::try_from(took.as_micros())?.max(1).ilog2() as usize;
        self.counts[class.min(self.counts.len() - 1)] += 1;
        self.longest = self.longest.max(took);
        Ok(())
    }
}

/// What another client waits for while someone writes and fsyncs a large file. Lookups are of names that are not there, each
/// once, so that every one reaches the filesystem. Fails when anything took longer than the goal.
fn latency(folder: &Path, time: Duration, goal_ms: u64) -> Result<()> {
    let (ended, ready) = (AtomicBool::new(false), Barrier::new(2));
    let begin = Instant::now();
    let (result, written) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = write_on(&folder.join("large"), &ended, &ready);
            ended.store(true, Ordering::Release);
            written
        });
        ready.wait();
        let mut histograms: [Histogram; 3] = Default::default();
        let mut i = 0u64;
        let mut outcome = Ok(());
        while outcome.is_ok() && begin.elapsed() < time && !ended.load(Ordering::Acquire) {
            let [stats, creates, unlinks] = &mut histograms;
            let path = folder.join(format!("other-{i}"));
            outcome = stats
                .time(|| if path.symlink_metadata().is_err() { Ok(()) } else { Err("it is there already".into()) })
                .and_then(|()| creates.time(|| Ok(File::create_new(&path).map(drop)?)))
                .and_then(|()| unlinks.time(|| Ok(fs::remove_file(&path)?)));
            i += 1;
            thread::sleep(Duration::from_micros(200));
        }
        ended.store(true, Ordering::Release);
        (outcome.map(|()| histograms), writer.join())
    });
    let [stats, creates, unlinks] = result?;
    let (bytes, fsyncs) = written.map_err(|_| "the writer panicked")??;
    println!("beside {} MiB written and {fsyncs} fsyncs in {} s", bytes >> 20, time.as_secs());
    println!("{:>14} {:>9} {:>9} {:>9}", "at least, µs", "lookup", "create", "unlink");
    for class in 0..stats.counts.len() {
        let row = [&stats, &creates, &unlinks].map(|histogram| histogram.counts[class]);
        if row.iter().any(|count| *count > 0) {
            println!("{:>14} {:>9} {:>9} {:>9}", 1u64 << class, row[0], row[1], row[2]);
        }
    }
    let longest = [stats, creates, unlinks].map(|histogram| histogram.longest);
    let [a, b, c] = longest.map(|longest| format!("{:.1}", longest.as_secs_f64() * 1e3));
    println!("{:>14} {a:>9} {b:>9} {c:>9}", "longest, ms");
    let most = longest.into_iter().max().unwrap_or_default();
    let verdict = if most <= Duration::from_millis(goal_ms) { "met" } else { "NOT met" };
    println!("no pause above {goal_ms} ms: {verdict}");
    if verdict == "met" { Ok(()) } else { Err("a client waited too long".into()) }
}

/// Writes 64 MiB and fsyncs, again and again, until `ended`. Returns the bytes and the fsyncs.
fn write_on(path: &Path, ended: &AtomicBool, ready: &Barrier) -> Result<(u64, u64)> {
    let content = Random(1).bytes(1 << 20);
    let file = File::create(path);
    ready.wait();
    let file = file?;
    let (mut bytes, mut fsyncs) = (0, 0);
    while !ended.load(Ordering::Acquire) {
        for mib in 0..64 {
            file.write_all_at(&content, mib << 20)?;
            bytes += content.len() as u64;
        }
        file.sync_all()?;
        fsyncs += 1;
    }
    Ok((bytes, fsyncs))
}

/// Of the files that standard input lists with their sizes, prints every so-maniest, without the first slash of its path:
/// `files` at most, of `bytes` all together. So folders are many, and files of all kinds.
fn choose(files: usize, bytes: u64) -> Result<()> {
    let mut list = Vec::new();
    std::io::stdin().read_to_end(&mut list)?;
    let lines: Vec<&[u8]> = list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let step = (lines.len() as f64 / files as f64).max(1.0);
    let (mut at, mut sum) = (1.0, 0);
    let mut out = std::io::stdout().lock();
    while at <= lines.len() as f64 {
        let line = lines[at as usize - 1];
        let space = line.iter().position(|byte| *byte == b' ').ok_or("a line without a size")?;
        sum += std::str::from_utf8(&line[..space])?.parse::<u64>()?;
        if sum > bytes {
            break;
        }
        out.write_all(&line[(space + 2).min(line.len())..])?;
        out.write_all(b"\n")?;
        at += step;
    }
    Ok(())
}

/// The rows of the table, with their units: seconds of a whole command, or something a second.
const ROWS: [(&str, &str); 21] = [
    ("seq_write_128k", "MB/s"),
    ("seq_write_8j", "MB/s"),
    ("seq_write", "MB/s"),
    ("seq_read_cold", "MB/s"),
    ("seq_read_warm", "MB/s"),
    ("rand_read_4k", "/s"),
    ("rand_read_4k_4j", "/s"),
    ("rand_write_4k", "/s"),
    ("rand_write_4k_fsync", "/s"),
    ("untar", "s"),
    ("ls_lR_cold", "s"),
    ("find_cold", "s"),
    ("md5_cold", "s"),
    ("git_commit", "s"),
    ("git_status_cold", "s"),
    ("rm_tree", "s"),
    ("create_10k", "/s"),
    ("stat_10k_cold", "/s"),
    ("read_10k_cold", "/s"),
    ("unlink_10k", "/s"),
    ("sqlite_tx", "/s"),
];

/// The medians of each row, and how many times faster the first contender is than each of the others. A sample is a row, a
/// contender and a number.
fn table(samples: &str, contenders: &[&str]) -> Result<()> {
    let text = fs::read_to_string(samples)?;
    let median = |row: &str, contender: &str| -> Option<f64> {
        let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let of = words.filter(|words| words[..2] == [row, contender]);
        let mut values: Vec<f64> = of.filter_map(|words| words.get(2)?.parse().ok()).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
    };
    let heads: String = contenders.iter().map(|name| format!(" {name:>12}")).collect();
    let others: String = contenders[1..].iter().map(|name| format!("  x {name:<12}")).collect();
    println!("{:<20} {:<5}{heads}{others}", "row", "");
    for (row, unit) in ROWS {
        let medians: Vec<Option<f64>> = contenders.iter().map(|contender| median(row, contender)).collect();
        if medians.iter().all(Option::is_none) {
            continue;
        }
        let shown = |median: &Option<f64>| match median {
            None => "-".into(),
            Some(value) if *value < 100.0 => format!("{value:.2}"),
            Some(value) => format!("{value:.0}"),
        };
        let faster = |other: &Option<f64>| match (medians[0], *other) {
            (Some(ours), Some(theirs)) if ours > 0.0 && theirs > 0.0 => {
                format!("{:.2}", if unit == "s" { theirs / ours } else { ours / theirs })
            }
            _ => "-".into(),
        };
        let values: String = medians.iter().map(|median| format!(" {:>12}", shown(median))).collect();
        let ratios: String = medians[1..].iter().map(|other| format!("  {:<14}", faster(other))).collect();
        println!("{}", format!("{row:<20} {unit:<5}{values}{ratios}").trim_end());
    }
    Ok(())
}
