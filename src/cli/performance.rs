//! The figures of `scelle status`: what was done since the mount, and how long it took. With `--watch`: what is being
//! done now.

use std::fmt::Write;
use std::time::Duration;

use super::text::bytes;
use crate::control::{CacheStatus, DeviceIo, Latency, Performance, VolumeStatus};

/// Titles of the columns that [`rates`] fills.
pub(super) const RATES_HEAD: &str =
    "    read/s    write/s   reads  writes  lookups  changes  fsyncs  commits   used  volume\n";

/// Three lines on the volume's work since the mount.
pub(super) fn write(out: &mut String, performance: &Performance) -> std::fmt::Result {
    let Performance { read, write, lookup, change, fsync, commit, cache, since_ms } = performance;
    let since = duration(Duration::from_millis(*since_ms));
    let (read_bytes, written) = (bytes(read.bytes), bytes(write.bytes));
    let from_memory = hit_rate(cache).map(|rate| format!("; {rate} of short reads from the cache")).unwrap_or_default();
    writeln!(out, "  mounted {since} ago: {read_bytes} read, {written} written{from_memory}")?;
    let of = |name: &str, latency: &Latency| (latency.count > 0).then(|| format!("{name} {}", range(latency)));
    let work = [of("read", &read.latency), of("write", &write.latency), of("lookup", lookup), of("change", change)];
    let waits = [of("fsync", fsync), of("commit", commit)];
    for (title, line) in [("took", work.as_slice()), ("waits", &waits)] {
        let line: Vec<&str> = line.iter().flatten().map(String::as_str).collect();
        if !line.is_empty() {
            writeln!(out, "  {title}, median (99 % within): {}", line.join(", "))?;
        }
    }
    Ok(())
}

/// One line on a replica's device.
pub(super) fn write_device(out: &mut String, io: &DeviceIo) -> std::fmt::Result {
    let transfers = [("read", &io.read), ("write", &io.write)];
    let mut parts: Vec<String> = transfers
        .into_iter()
        .filter(|(_, of)| of.latency.count > 0)
        .map(|(name, of)| format!("{name} {} in {}", bytes(of.bytes), range(&of.latency)))
        .collect();
    if io.flush.count > 0 {
        parts.push(format!("flush in {}", range(&io.flush)));
    }
    if parts.is_empty() { Ok(()) } else { writeln!(out, "    device: {}", parts.join(", ")) }
}

/// One line on what was done between two answers of the same mount.
pub(super) fn rates(before: &VolumeStatus, after: &VolumeStatus) -> String {
    let (old, new) = (&before.performance, &after.performance);
    let ms = new.since_ms.saturating_sub(old.since_ms).max(1);
    // A daemon that was started anew in between has counted from zero.
    let a_second = |old: u64, new: u64| u128::from(new.saturating_sub(old)) * 1000 / u128::from(ms);
    let rate = |of: fn(&Performance) -> u64| a_second(of(old), of(new));
    let size = |of: fn(&Performance) -> u64| bytes(u64::try_from(rate(of)).unwrap_or(u64::MAX));
    let (used, total) = (after.capacity.used_bytes, after.capacity.total_bytes.max(1));
    format!(
        "{:>10} {:>10} {:>7} {:>7} {:>8} {:>8} {:>7} {:>8} {:>5}%  {}",
        size(|of| of.read.bytes),
        size(|of| of.write.bytes),
        rate(|of| of.read.latency.count),
        rate(|of| of.write.latency.count),
        rate(|of| of.lookup.count),
        rate(|of| of.change.count),
        rate(|of| of.fsync.count),
        rate(|of| of.commit.count),
        u128::from(used) * 100 / u128::from(total),
        if after.label.is_empty() { &after.uuid } else { &after.label },
    )
}

fn range(latency: &Latency) -> String {
    let time = |ns| duration(Duration::from_nanos(ns));
    format!("{} ({})", time(latency.median_ns), time(latency.p99_ns))
}

/// Share of hits in whole per cent; nothing before the first read.
fn hit_rate(cache: &CacheStatus) -> Option<String> {
    let all = u128::from(cache.hits) + u128::from(cache.misses);
    (all > 0).then(|| format!("{} %", u128::from(cache.hits) * 100 / all))
}

/// A duration for people: two or three digits and a unit.
fn duration(of: Duration) -> String {
    let seconds = of.as_secs();
    let (value, unit) = match of.as_nanos() {
        0..1_000 => return format!("{} ns", of.as_nanos()),
        1_000..1_000_000 => (of.as_secs_f64() * 1e6, "µs"),
        1_000_000..1_000_000_000 => (of.as_secs_f64() * 1e3, "ms"),
        _ if seconds < 120 => (of.as_secs_f64(), "s"),
        _ if seconds < 2 * 3600 => return format!("{} min", seconds / 60),
        _ if seconds < 48 * 3600 => return format!("{} h", seconds / 3600),
        _ => return format!("{} days", seconds / 86_400),
    };
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{self, Capacity, RegistryStatus, Scrub, Transfers, VolumeState};

    fn latency(count: u64, median_ns: u64) -> Latency {
        Latency { count, median_ns, p99_ns: 10 * median_ns, longest_ns: 20 * median_ns }
    }

    fn volume(performance: Performance) -> VolumeStatus {
        VolumeStatus {
            uuid: "a5".into(),
            label: "greffe".into(),
            mountpoint: "/srv/greffe".into(),
            state: VolumeState::Healthy,
            sovereign: true,
            kind: "sovereign".into(),
            not_sovereign: Vec::new(),
            remembered: true,
            generation: 1,
            capacity: Capacity { total_bytes: 200, used_bytes: 50 },
            registry: RegistryStatus::default(),
            replicas: Vec::new(),
            scrub: Scrub::default(),
            pid: 1,
            advice: Vec::new(),
            watch: control::WatchStatus::default(),
            audit: control::AuditStatus::default(),
            log: control::LogStatus::default(),
            performance,
            tasks: Vec::new(),
        }
    }

    #[test]
    fn durations_are_readable() {
        for (ns, expected) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.0 µs"),
            (12_345, "12 µs"),
            (9_960, "10 µs"),
            (1_500_000, "1.5 ms"),
            (1_000_000_000, "1.0 s"),
            (119_000_000_000, "119 s"),
            (120_000_000_000, "2 min"),
            (7_200_000_000_000, "2 h"),
            (172_800_000_000_000, "2 days"),
        ] {
            assert_eq!(duration(Duration::from_nanos(ns)), expected);
        }
    }

    #[test]
    fn what_was_not_done_is_not_shown() {
        let mut out = String::new();
        assert!(write(&mut out, &Performance { since_ms: 1500, ..Performance::default() }).is_ok());
        assert!(write_device(&mut out, &DeviceIo::default()).is_ok());
        assert_eq!(out, "  mounted 1.5 s ago: 0 B read, 0 B written\n");
    }

    #[test]
    fn work_and_waits_have_a_line_each() {
        let performance = Performance {
            since_ms: 10_000,
            read: Transfers { bytes: 1 << 20, latency: latency(256, 8_000) },
            commit: latency(3, 2_000_000),
            cache: CacheStatus { hits: 3, misses: 1 },
            ..Performance::default()
        };
        let mut out = String::new();
        assert!(write(&mut out, &performance).is_ok());
        let io = DeviceIo { flush: latency(6, 1_000), write: performance.read, ..DeviceIo::default() };
        assert!(write_device(&mut out, &io).is_ok());
        assert_eq!(
            out,
            "  mounted 10 s ago: 1.0 MiB read, 0 B written; 75 % of short reads from the cache\n  \
             took, median (99 % within): read 8.0 µs (80 µs)\n  \
             waits, median (99 % within): commit 2.0 ms (20 ms)\n    \
             device: write 1.0 MiB in 8.0 µs (80 µs), flush in 1.0 µs (10 µs)\n"
        );
    }

    #[test]
    fn rates_are_per_second_and_bear_a_restart() {
        let before = volume(Performance { since_ms: 1_000, commit: latency(10, 1), ..Performance::default() });
        let write = Transfers { bytes: 4 << 20, latency: latency(8, 1) };
        let after = volume(Performance { since_ms: 3_000, commit: latency(14, 1), write, ..Performance::default() });
        let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let expected = ["0", "B", "2.0", "MiB", "0", "4", "0", "0", "0", "2", "25%", "greffe"];
        assert_eq!(columns(&rates(&before, &after)), expected);
        assert_eq!(rates(&before, &after).chars().count(), RATES_HEAD.len() - 1);
        assert_eq!(columns(&rates(&after, &before))[9], "0");
    }
}
