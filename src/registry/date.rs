//! Civil dates.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A day of the Gregorian calendar, years 1 to 9999 (RFC 3339 `full-date`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "toml::value::Datetime", into = "toml::value::Datetime")]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

/// A second since 1970 in the form of RFC 3339, in UTC: date and time of day, without fraction and zone. `None` after
/// the year 9999.
pub fn utc_second(seconds: u64) -> Option<String> {
    let (date, of_day) = (Date::from_unix(seconds)?, seconds % 86_400);
    Some(format!("{date}T{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60))
}

impl Date {
    /// The day, if the calendar has it.
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let days = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if is_leap(year) => 29,
            2 => 28,
            _ => return None,
        };
        ((1..=9999).contains(&year) && (1..=days).contains(&day)).then_some(Self { year, month, day })
    }

    /// Parses `YYYY-MM-DD`.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let digits = |range: std::ops::Range<usize>| -> Option<u16> {
            bytes.get(range)?.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + u16::from(b - b'0')))
        };
        if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        Self::new(digits(0..4)?, u8::try_from(digits(5..7)?).ok()?, u8::try_from(digits(8..10)?).ok()?)
    }

    /// The UTC day that holds `seconds` since 1970-01-01T00:00:00Z.
    pub fn from_unix(seconds: u64) -> Option<Self> {
        // Days to civil date: years from 1 March, in eras of 400 years (146,097 days).
        let days = seconds / 86_400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self::new(u16::try_from(year).ok()?, u8::try_from(month).ok()?, u8::try_from(day).ok()?)
    }

    /// Days from this day to `other`; negative when that is earlier.
    pub fn days_until(self, other: Self) -> i64 {
        other.unix_day() - self.unix_day()
    }

    /// Days since 1970-01-01, negative before it.
    pub fn unix_day(self) -> i64 {
        // The inverse of `from_unix`: years from 1 March, in eras of 400 years.
        let from_march = (i64::from(self.month) + 9) % 12;
        let year = i64::from(self.year) - i64::from(self.month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * from_march + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }

    /// Today, UTC, by the host's clock; `None` when the clock is before 1970 or after 9999.
    pub fn today() -> Option<Self> {
        Self::from_unix(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs())
    }
}

fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl TryFrom<toml::value::Datetime> for Date {
    type Error = &'static str;

    fn try_from(value: toml::value::Datetime) -> Result<Self, Self::Error> {
        match (value.date, value.time, value.offset) {
            (Some(date), None, None) => Self::new(date.year, date.month, date.day).ok_or("no such day"),
            _ => Err("expected a day without a time, e.g. 2026-11-21"),
        }
    }
}

impl From<Date> for toml::value::Datetime {
    fn from(date: Date) -> Self {
        toml::value::Date { year: date.year, month: date.month, day: date.day }.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn days_follow_the_calendar() {
        let shown = |s: u64| Date::from_unix(s).unwrap().to_string();
        assert_eq!(shown(0), "1970-01-01");
        assert_eq!(shown(951_782_399), "2000-02-28");
        assert_eq!(shown(951_782_400), "2000-02-29");
        assert_eq!(shown(1_795_219_200), "2026-11-21");
        assert_eq!(Date::from_unix(u64::MAX), None);
        assert_eq!(Date::new(1, 1, 1).unwrap().unix_day(), -719_162);
        assert_eq!(Date::new(1969, 12, 31).unwrap().unix_day(), -1);
        // Every day from 1970 on is the successor of the day before.
        let mut last = Date::from_unix(0).unwrap();
        for day in 1..200_000 {
            let date = Date::from_unix(day * 86_400).unwrap();
            assert!(date > last);
            assert!(date.day == last.day + 1 || date.day == 1);
            assert_eq!(Date::parse(&date.to_string()), Some(date));
            assert_eq!(date.unix_day(), day as i64);
            assert_eq!((last.days_until(date), date.days_until(last)), (1, -1), "{date}");
            last = date;
        }
    }

    #[test]
    fn impossible_days_are_refused() {
        for bad in ["", "2026-02-29", "2026-13-01", "2026-00-10", "2026-1-01", "2026-01-32", "0000-01-01", "２026-01-1"]
        {
            assert_eq!(Date::parse(bad), None, "{bad}");
        }
    }
}
