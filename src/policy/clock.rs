//! The host's clock, as far as approvals rest on it.
//!
//! Registries and inspections end on days, and which day it is the host's clock says. Whoever sets the clock back would
//! make a registry last that is over. So the day is never taken from the clock alone. It is never before a time that is
//! known to have been ([`Known`]). From the mount on, it is never before the time of the mount and what has passed since by
//! the kernel's clock that nobody can set. That clock also runs while the host is suspended.
//!
//! A clock that shows less by more than [`TOLERANCE_S`] is wrong, and nothing is approved by it. One that shows less by no
//! more than that may be right: hosts differ by seconds, and a hardware clock in French local time is up to two hours
//! ahead of the clock that a time server sets later. The later of the two times counts then, so nothing is prolonged.
//!
//! All times are UTC; neither time zones nor daylight saving change them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::problem::{Code, Problem};
use crate::registry::{Date, utc_second};

/// By how many seconds the clock may show an earlier time than is known to have been: three hours.
pub const TOLERANCE_S: u64 = 3 * 60 * 60;

/// A time that has been, and what it is known from.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What it is known from, for messages.
    pub from: &'static str,
    /// Seconds since 1970.
    pub unix_s: u64,
}

/// Refuses a clock that shows `now_unix_s`, when one of these times has been.
///
/// # Errors
/// [`Code::ClockWentBack`], with the latest of them.
pub fn check(known: &[Known], now_unix_s: u64) -> Result<(), Problem> {
    let Some(latest) = known.iter().max_by_key(|known| known.unix_s) else { return Ok(()) };
    if now_unix_s.saturating_add(TOLERANCE_S) >= latest.unix_s {
        return Ok(());
    }
    let shown = |second| utc_second(second).map_or_else(|| "a time beyond the calendar".to_owned(), |s| s + "Z");
    let (now, was, from) = (shown(now_unix_s), shown(latest.unix_s), latest.from);
    Err(Problem::new(Code::ClockWentBack, format!("the host's clock shows {now}, and {from} is of {was}")))
}

/// What the host's clock shows, in seconds since 1970; 0 before.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long the host has been running, also suspended.
pub fn running() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel's clock begins at 0 and has less than a second of nanoseconds.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The days while a volume is in use.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// A time that has been, in seconds since 1970, and how long the host had been running.
    has_been: (u64, Duration),
}

impl Clock {
    /// A clock that shows nothing before `unix_s`, nor before the present.
    pub fn starting_at(unix_s: u64) -> Self {
        Self { has_been: (unix_s.max(now_unix_s()), running()) }
    }

    /// Today.
    ///
    /// # Errors
    /// [`Code::ClockWentBack`]; [`Code::Clock`] when the calendar has no such day.
    pub fn today(&mut self) -> Result<Date, Problem> {
        self.look(now_unix_s(), running())
    }

    fn look(&mut self, now_unix_s: u64, running: Duration) -> Result<Date, Problem> {
        let (then, since) = self.has_been;
        let least = then.saturating_add(running.saturating_sub(since).as_secs());
        check(&[Known { from: "what has passed since the mount", unix_s: least }], now_unix_s)?;
        if now_unix_s > least {
            self.has_been = (now_unix_s, running);
        }
        Date::from_unix(now_unix_s.max(least)).ok_or_else(|| {
            Problem::new(Code::Clock, "the host's clock shows a date that cannot be: no validity can be judged")
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DAY_S: u64 = 86_400;
    const NOON: u64 = 20_000 * DAY_S + DAY_S / 2;

    #[test]
    fn p2_the_clock_is_refused_before_any_time_that_has_been() {
        let known = |unix_s| Known { from: "the last commit", unix_s };
        assert!(check(&[], 0).is_ok());
        assert!(check(&[known(NOON)], NOON).is_ok());
        assert!(check(&[known(NOON)], NOON - TOLERANCE_S).is_ok());
        let refused = check(&[known(5), known(NOON), known(NOON - 9)], NOON - TOLERANCE_S - 1).unwrap_err();
        assert_eq!(refused.code, Code::ClockWentBack);
        assert!(refused.text.contains("the last commit is of 2024-10-04T12:00:00Z"), "{}", refused.text);
        assert!(check(&[known(u64::MAX)], NOON).is_err());
    }

    #[test]
    fn p2_a_clock_that_is_set_back_while_mounted_prolongs_nothing() {
        let day = |unix_s| Date::from_unix(unix_s).unwrap();
        let s = Duration::from_secs;
        let mut clock = Clock { has_been: (NOON, s(100)) };
        assert_eq!(clock.look(NOON, s(100)).unwrap(), day(NOON));
        // Stopped, or set back again and again by less than what is tolerated: the days go on.
        for passed in [0, 3600, TOLERANCE_S] {
            assert_eq!(clock.look(NOON, s(100 + passed)).unwrap(), day(NOON + passed));
        }
        assert_eq!(clock.look(NOON + DAY_S - TOLERANCE_S, s(100 + DAY_S)).unwrap(), day(NOON + DAY_S));
        let refused = clock.look(NOON + DAY_S - TOLERANCE_S - 1, s(100 + DAY_S)).unwrap_err();
        assert_eq!(refused.code, Code::ClockWentBack);
        assert!(clock.look(0, s(100 + DAY_S)).is_err());
        // Right again, it counts again; and set forward, it is believed.
        assert_eq!(clock.look(NOON + DAY_S, s(100 + DAY_S)).unwrap(), day(NOON + DAY_S));
        assert_eq!(clock.look(NOON + 9 * DAY_S, s(101 + DAY_S)).unwrap(), day(NOON + 9 * DAY_S));
        assert!(clock.look(NOON + 8 * DAY_S, s(102 + DAY_S)).is_err());
        assert_eq!(clock.look(u64::MAX, s(103 + DAY_S)).unwrap_err().code, Code::Clock);
    }
}
