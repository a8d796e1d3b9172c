//! How long something takes and how many bytes it moves, counted without a lock.
//!
//! A [`Meter`] is a histogram over durations in nanoseconds, from one nanosecond to a quarter of an hour. Each power of
//! two is cut into four classes, so that a quantile is known to about a tenth. A meter takes a fixed 1.2 KiB. Recording
//! is one or two relaxed additions; timing adds two looks at the monotonic clock. What the figures mean is up to the
//! caller.

use super::to_usize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest duration that is told from longer ones, in nanoseconds: 2^40, which is 18 minutes.
const LONGEST_NS: u64 = (1 << 40) - 1;

/// Classes up to [`LONGEST_NS`].
const CLASSES: usize = class_of(LONGEST_NS) + 1;

/// Durations and bytes of one kind of work, since the meter was made. Many threads may record at once.
pub struct Meter {
    classes: [AtomicU64; CLASSES],
    longest_ns: AtomicU64,
    bytes: AtomicU64,
}

/// What a [`Meter`] says. While other threads record, its figures may be some records apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// How many durations were recorded.
    pub count: u64,
    /// Bytes moved by all of them.
    pub bytes: u64,
    /// Half of the durations are at most about this long, in nanoseconds.
    pub median_ns: u64,
    /// All durations but one in a hundred are at most about this long, in nanoseconds.
    pub p99_ns: u64,
    /// The longest duration, in nanoseconds: exact.
    pub longest_ns: u64,
}

/// The class of a duration. Below 4 ns each nanosecond is a class; from there on each power of two has four.
const fn class_of(ns: u64) -> usize {
    if ns < 4 {
        return to_usize(ns);
    }
    let power = ns.ilog2();
    ((power - 1) * 4) as usize + (ns >> (power - 2) & 3) as usize
}

/// The shortest duration of a class, in nanoseconds.
const fn shortest_of(class: usize) -> u64 {
    if class < 4 { class as u64 } else { (4 + class as u64 % 4) << (class / 4 - 1) }
}

impl Default for Meter {
    fn default() -> Self {
        let classes = [const { AtomicU64::new(0) }; CLASSES];
        Self { classes, longest_ns: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }
}

impl Meter {
    /// Does `work`, which moves `bytes`, and records how long it took, unless it fails.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn time<T, E>(&self, bytes: usize, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let begin = Instant::now();
        let done = work()?;
        self.record(begin.elapsed(), bytes);
        Ok(done)
    }

    /// Records a piece of work that took `took` and moved `bytes`.
    pub fn record(&self, took: Duration, bytes: usize) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.classes[class_of(ns.min(LONGEST_NS))].fetch_add(1, Ordering::Relaxed);
        if bytes > 0 {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        // A duration is seldom longer than all before it, and looking is cheaper than writing.
        if ns > self.longest_ns.load(Ordering::Relaxed) {
            self.longest_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// How many durations have been recorded so far.
    pub fn count(&self) -> u64 {
        self.classes.iter().map(|class| class.load(Ordering::Relaxed)).sum()
    }

    /// What has been recorded so far.
    pub fn reading(&self) -> Reading {
        let counts: Vec<u64> = self.classes.iter().map(|class| class.load(Ordering::Relaxed)).collect();
        let count = counts.iter().sum();
        let longest_ns = self.longest_ns.load(Ordering::Relaxed);
        let quantile = |percent: u64| quantile(&counts, count, percent).min(longest_ns);
        Reading {
            count,
            bytes: self.bytes.load(Ordering::Relaxed),
            median_ns: quantile(50),
            p99_ns: quantile(99),
            longest_ns,
        }
    }
}

/// The duration that `percent` of all do not exceed. Its place inside its class is reckoned as if the class were evenly
/// filled.
fn quantile(counts: &[u64], count: u64, percent: u64) -> u64 {
    let wanted = (u128::from(count) * u128::from(percent)).div_ceil(100);
    let mut before = 0;
    for (class, inside) in counts.iter().map(|count| u128::from(*count)).enumerate() {
        if inside > 0 && before + inside >= wanted {
            let (from, to) = (shortest_of(class), shortest_of(class + 1));
            let part = u128::from(to - from) * (wanted - before) / inside;
            // Invariant: at most `to - from`, since `wanted - before` is at most `inside`.
            return from + u64::try_from(part).unwrap_or(to - from);
        }
        before += inside;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_each_other_without_a_gap() {
        for class in 0..CLASSES {
            let (from, to) = (shortest_of(class), shortest_of(class + 1));
            assert!(from < to);
            assert_eq!((class_of(from), class_of(to - 1)), (class, class), "{from}..{to}");
            assert!(class < 8 || (to - from) * 4 <= from, "{from}..{to} is wider than a quarter");
        }
        assert_eq!(shortest_of(CLASSES), LONGEST_NS + 1);
    }

    #[test]
    fn nothing_recorded_reads_as_nothing() {
        assert_eq!(Meter::default().reading(), Reading::default());
    }

    #[test]
    fn quantiles_are_right_to_a_quarter_and_the_longest_is_exact() {
        let meter = Meter::default();
        for us in 1..=1000 {
            meter.record(Duration::from_micros(us), 10);
        }
        let Reading { count, bytes, median_ns, p99_ns, longest_ns } = meter.reading();
        assert_eq!((count, bytes, longest_ns), (1000, 10_000, 1_000_000));
        assert!((450_000..=550_000).contains(&median_ns), "{median_ns}");
        assert!((900_000..=1_000_000).contains(&p99_ns), "{p99_ns}");
    }

    #[test]
    fn one_record_is_its_own_median_and_durations_without_end_are_kept() {
        let meter = Meter::default();
        meter.record(Duration::from_nanos(700), 0);
        let Reading { median_ns, p99_ns, .. } = meter.reading();
        assert_eq!((median_ns, p99_ns), (700, 700));
        meter.record(Duration::MAX, 0);
        assert_eq!((meter.reading().count, meter.reading().longest_ns), (2, u64::MAX));
    }

    #[test]
    fn threads_lose_no_record() {
        let meter = Meter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| assert_eq!(meter.time(1, || Ok::<_, ()>(7)), Ok(7))));
            }
        });
        assert_eq!((meter.reading().count, meter.reading().bytes), (40_000, 40_000));
    }

    #[test]
    fn what_fails_is_not_recorded() {
        let meter = Meter::default();
        assert_eq!(meter.time(1, || Err::<(), _>("no")), Err("no"));
        assert_eq!(meter.reading(), Reading::default());
    }
}
