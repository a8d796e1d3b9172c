//! The `-o` options of `mount`: one table row an option, parsed strictly.

use std::path::PathBuf;
use std::time::Duration;

use crate::daemon::MountOptions;
use crate::problem::{Code, Problem};
use crate::registry::Date;
use crate::units::Generation;

/// What an option does with what is already set.
enum Effect {
    Set(fn(&mut MountOptions)),
    SetValue(fn(&mut MountOptions, PathBuf)),
    SetBytes(fn(&mut MountOptions, u64)),
    SetTime(fn(&mut MountOptions, Duration)),
    SetDay(fn(&mut MountOptions, Date)),
    SetGeneration(fn(&mut MountOptions, Generation)),
    /// The option means something to mount(8), systemd or the kernel's defaults, and nothing here.
    Neutral,
    /// The same for an option with a value: mount(8) reads it in the mount table and repeats it when it remounts.
    NeutralValue,
}

use Effect::{Neutral, NeutralValue, Set, SetBytes, SetDay, SetGeneration, SetTime, SetValue};

/// Every option that is understood. Names starting with `x-` or `X-` are comments to us, as fstab(5) has it.
const TABLE: &[(&str, Effect)] = &[
    ("ro", Set(|o| o.read_only = true)),
    ("rw", Set(|o| o.read_only = false)),
    ("remount", Set(|o| o.remount = true)),
    ("degraded", Set(|o| o.degraded = true)),
    ("accept-rollback", SetGeneration(|o, v| o.accept_rollback = Some(v))),
    ("accept-clock", SetDay(|o, v| o.accept_clock = Some(v))),
    ("exec", Set(|o| o.no_exec = Some(false))),
    ("noexec", Set(|o| o.no_exec = Some(true))),
    ("suid", Set(|o| o.suid = Some(true))),
    ("nosuid", Set(|o| o.suid = Some(false))),
    // mount(8) passes no word that is the kernel's default: `suid` and `dev` never reach a helper, but these two do.
    // mount(8) does not keep the order either, so `nosuid` and `nodev` win.
    ("allow-suid", Set(|o| o.suid = o.suid.or(Some(true)))),
    ("allow-dev", Set(|o| o.dev = o.dev.or(Some(true)))),
    ("dev", Set(|o| o.dev = Some(true))),
    ("nodev", Set(|o| o.dev = Some(false))),
    ("sync", Set(|o| o.sync = Some(true))),
    ("async", Set(|o| o.sync = Some(false))),
    ("powersave", Set(|o| o.powersave = true)),
    ("idle", SetTime(|o, v| o.idle = Some(v))),
    ("cache", SetBytes(|o, v| o.cache_bytes = Some(v))),
    ("registry", SetValue(|o, v| o.registry = Some(v))),
    ("trust", SetValue(|o, v| o.trust = Some(v))),
    ("passphrase-file", SetValue(|o, v| o.passphrase_file = Some(v))),
    ("defaults", Neutral),
    ("auto", Neutral),
    ("noauto", Neutral),
    ("nofail", Neutral),
    ("_netdev", Neutral),
    ("user", Neutral),
    ("nouser", Neutral),
    ("users", Neutral),
    ("owner", Neutral),
    ("group", Neutral),
    // Reading never changes an access time. `atime` and `strictatime` would ask for what is not kept, so they are
    // unknown.
    ("noatime", Neutral),
    ("relatime", Neutral),
    ("nodiratime", Neutral),
    // This is always so, and fstab lines for FUSE commonly say it.
    ("allow_other", Neutral),
    ("default_permissions", Neutral),
    ("acl", Neutral),
    ("user_xattr", Neutral),
    ("user_id", NeutralValue),
    ("group_id", NeutralValue),
    ("max_read", NeutralValue),
];

/// Parses the arguments of all `-o`, each a comma-separated list; a later option wins over an earlier one.
///
/// # Errors
/// An option that is not in the table, a value where none belongs, or none where one does: exit code 2.
pub fn parse(lists: &[String]) -> Result<MountOptions, Problem> {
    let mut options = MountOptions::default();
    for item in lists.iter().flat_map(|list| list.split(',')).filter(|item| !item.is_empty()) {
        let (name, value) = item.split_once('=').map_or((item, None), |(name, value)| (name, Some(value)));
        if name.starts_with("x-") || name.starts_with("X-") {
            continue;
        }
        let Some((_, effect)) = TABLE.iter().find(|(known, _)| *known == name) else {
            return Err(Problem::new(Code::MountOptionUnknown, format!("mount option '{name}' is not known")));
        };
        match (effect, value) {
            (Set(set), None) => set(&mut options),
            (SetValue(set), Some(value)) if !value.is_empty() => set(&mut options, PathBuf::from(value)),
            (SetBytes(set), Some(value)) => match parse_bytes(value) {
                Some(bytes) => set(&mut options, bytes),
                None => {
                    let text = format!("mount option '{name}' takes a size such as 256M or 2G, not '{value}'");
                    return Err(Problem::new(Code::MountOptionValue, text));
                }
            },
            (SetTime(set), Some(value)) => match parse_time(value) {
                Some(time) => set(&mut options, time),
                None => {
                    let text = format!("mount option '{name}' takes a time such as 30m, 2h or 90s, not '{value}'");
                    return Err(Problem::new(Code::MountOptionValue, text));
                }
            },
            (SetDay(set), Some(value)) => match Date::parse(value) {
                Some(day) => set(&mut options, day),
                None => {
                    let text = format!("mount option '{name}' takes a day such as 2026-11-21, not '{value}'");
                    return Err(Problem::new(Code::MountOptionValue, text));
                }
            },
            (SetGeneration(set), Some(value)) => match value.parse().ok().filter(|_| is_decimal(value)) {
                Some(number) => set(&mut options, Generation(number)),
                None => {
                    let text = format!("mount option '{name}' takes a generation such as 1234, not '{value}'");
                    return Err(Problem::new(Code::MountOptionValue, text));
                }
            },
            (SetGeneration(_), None) => {
                let text = format!("mount option '{name}' takes the generation that is accepted, such as {name}=1234");
                let advice = "Mount without it: the refusal names the generation, if there is anything to accept.";
                return Err(Problem::new(Code::MountOptionValue, text).advise(advice));
            }
            (SetValue(_) | SetBytes(_) | SetTime(_) | SetDay(_) | NeutralValue, None) | (SetValue(_), Some(_)) => {
                return Err(Problem::new(Code::MountOptionValue, format!("mount option '{name}' needs a value")));
            }
            (Neutral, None) | (NeutralValue, Some(_)) => {}
            (Set(_) | Neutral, Some(_)) => {
                return Err(Problem::new(Code::MountOptionValue, format!("mount option '{name}' takes no value")));
            }
        }
    }
    Ok(options)
}

fn is_decimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number of bytes: decimal digits and, if wanted, K, M or G for powers of 1024.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, 1 << (10 * (1 + "KMG".find(&text[digits.len()..])?))),
        None => (text, 1),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(unit)
}

/// A time of at least a second and at most a year: decimal digits and s, m or h.
fn parse_time(text: &str) -> Option<Duration> {
    const YEAR_S: u64 = 365 * 24 * 3600;
    let unit_s = [('s', 1), ('m', 60), ('h', 3600)];
    let (digits, unit_s) = unit_s.iter().find_map(|(unit, s)| Some((text.strip_suffix(*unit)?, s)))?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(*unit_s)?;
    (1..=YEAR_S).contains(&seconds).then_some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn one(list: &str) -> Result<MountOptions, Problem> {
        parse(&[list.to_string()])
    }

    #[test]
    fn the_manual_names_every_option() {
        let page = include_str!("../../man/scelle.8");
        let section = page.split(".SH MOUNT OPTIONS").nth(1).unwrap().split("\n.SH").next().unwrap();
        let plain = section.replace("\\fB", " ").replace("\\fI", " ").replace("\\fR", " ").replace("\\-", "-");
        let words: Vec<&str> = plain.split(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c)).collect();
        let missing: Vec<&str> = TABLE.iter().map(|row| row.0).filter(|name| !words.contains(name)).collect();
        assert_eq!(missing, [""; 0], "not in MOUNT OPTIONS of man/scelle.8");
    }

    #[test]
    fn options_are_understood() {
        let options = one("rw,degraded,noatime,,registry=/etc/r.toml,x-systemd.automount,_netdev,nofail").unwrap();
        assert!(options.degraded && !options.read_only);
        assert_eq!(options.registry, Some(PathBuf::from("/etc/r.toml")));
        assert_eq!(one("").unwrap(), MountOptions::default());
        assert_eq!(one("accept-rollback=1234").unwrap().accept_rollback, Some(Generation(1234)));
        let again =
            one("rw,nosuid,nodev,noatime,user_id=0,group_id=0,default_permissions,allow_other,remount,ro").unwrap();
        assert_eq!(
            again,
            MountOptions {
                remount: true,
                read_only: true,
                suid: Some(false),
                dev: Some(false),
                ..MountOptions::default()
            }
        );
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in
            [("0", Some(0)), ("1", Some(1)), ("3K", Some(3072)), ("64M", Some(64 << 20)), ("2G", Some(2 << 30))]
        {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
        for bad in ["", "K", "-1", "+1", "1T", "1.5G", "1KK", "99999999999G", "1 G"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        assert_eq!(one("cache=256M").unwrap().cache_bytes, Some(256 << 20));
    }

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("1s", 1), ("90s", 90), ("30m", 1800), ("2h", 7200), ("8760h", 31_536_000)] {
            assert_eq!(parse_time(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "30", "0s", "+1s", "-1s", "1.5h", "1d", "8761h", "99999999999999999999s", "1 s"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
        assert_eq!(one("idle=10m").unwrap().idle, Some(Duration::from_secs(600)));
        assert_eq!(one("idle=0s").unwrap_err().code, Code::MountOptionValue);
    }

    #[test]
    fn the_last_word_counts() {
        assert!(!one("ro,rw").unwrap().read_only);
        assert!(parse(&["rw".into(), "ro".into()]).unwrap().read_only);
        assert_eq!(one("nosuid,suid").unwrap().suid, Some(true));
    }

    #[test]
    fn regression_mount_8_changes_the_order_so_the_strict_word_counts() {
        for list in ["nosuid,allow-suid", "allow-suid,nosuid"] {
            assert_eq!(one(list).unwrap().suid, Some(false), "{list}");
        }
        assert_eq!(one("nodev,allow-dev").unwrap().dev, Some(false));
        assert_eq!(one("allow-suid,allow-dev").unwrap().suid.zip(one("allow-dev").unwrap().dev), Some((true, true)));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (bad, reason) in [
            ("force", "mount-option-unknown"),
            ("strictatime", "mount-option-unknown"),
            ("RO", "mount-option-unknown"),
            ("ro=1", "mount-option-value"),
            ("registry", "mount-option-value"),
            ("registry=", "mount-option-value"),
            ("cache", "mount-option-value"),
            ("accept-rollback", "mount-option-value"),
            ("accept-rollback=", "mount-option-value"),
            ("accept-rollback=+7", "mount-option-value"),
            ("accept-clock", "mount-option-value"),
            ("accept-clock=today", "mount-option-value"),
            ("cache=much", "mount-option-value"),
            ("nofail=yes", "mount-option-value"),
        ] {
            let failure = one(bad).unwrap_err();
            assert_eq!((failure.code.as_str(), failure.exit() as u8), (reason, 2), "{bad}");
        }
    }

    #[test]
    fn the_table_names_no_option_twice() {
        for (index, (name, _)) in TABLE.iter().enumerate() {
            assert!(TABLE[..index].iter().all(|(other, _)| other != name), "{name}");
        }
    }
}
