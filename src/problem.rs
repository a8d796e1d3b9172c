//! What is said when something is refused or fails: a stable code, what happened and why, and what to do.
//!
//! There is one type for it, [`Problem`], from the policy's verdict to the last line of a command, and one table of
//! codes. An error of a module owns its [`Code`]; the table says what the code means, what to do about it, and with which
//! [`ExitCode`] a command ends because of it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Exit codes of every command (scelle(8)). Retired codes would stay here as comments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// Failed, for a reason that has no code of its own.
    Failed = 1,
    /// The command line, a configuration file or a document is not what it must be.
    Usage = 2,
    /// The policy refused a device, a registry or a host.
    Refused = 3,
    /// No key slot opens with this passphrase.
    WrongKey = 4,
    /// Something on a device did not authenticate.
    Integrity = 5,
    /// The volume works, but not as it should.
    Degraded = 6,
    /// Somebody else uses the device or the folder.
    Busy = 7,
}

impl ExitCode {
    /// The code that a daemon sent as a byte.
    pub fn from_byte(byte: u8) -> Self {
        use ExitCode::{Busy, Degraded, Done, Failed, Integrity, Refused, Usage, WrongKey};
        let all = [Done, Failed, Usage, Refused, WrongKey, Integrity, Degraded, Busy];
        all.into_iter().find(|&code| code as u8 == byte).unwrap_or(Failed)
    }
}

/// What a code means and what to do about it, in one language.
struct Texts {
    meaning: &'static str,
    remedy: &'static str,
}

/// Makes [`Code`] from the rows of the table.
macro_rules! codes {
    (
        verdicts { $($verdict:ident $verdict_code:literal $verdict_exit:ident by $rule:literal
            en $verdict_meaning:literal $verdict_remedy:literal)* }
        others { $($other:ident $other_code:literal $other_exit:ident by $part:literal
            en $other_meaning:literal $other_remedy:literal)* }
    ) => {
        /// Stable code of a problem. Once given, a code keeps its meaning; retired ones stay as comments.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(
                #[doc = $verdict_meaning]
                #[doc = ""]
                #[doc = $verdict_remedy]
                $verdict,
            )*
            $(
                #[doc = $other_meaning]
                #[doc = ""]
                #[doc = $other_remedy]
                $other,
            )*
            /// A code that this program has no row for: a daemon of another version said it.
            Foreign(ForeignCode),
        }

        impl Code {
            /// The codes that a verdict of the policy can give, in the order of the manual.
            pub const VERDICTS: &'static [Self] = &[$(Self::$verdict,)*];

            /// The other codes, in the order of the manual.
            pub const OTHERS: &'static [Self] = &[$(Self::$other,)*];

            /// The code as it is shown: lower-case words with hyphens between them.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$verdict => $verdict_code,)*
                    $(Self::$other => $other_code,)*
                    Self::Foreign(code) => code.as_str(),
                }
            }

            /// How a command ends because of it.
            pub const fn exit(self) -> ExitCode {
                match self {
                    $(Self::$verdict => ExitCode::$verdict_exit,)*
                    $(Self::$other => ExitCode::$other_exit,)*
                    Self::Foreign(_) => ExitCode::Failed,
                }
            }

            /// The rule of the policy, or the part of the program, that gives it.
            pub const fn given_by(self) -> &'static str {
                match self {
                    $(Self::$verdict => $rule,)*
                    $(Self::$other => $part,)*
                    Self::Foreign(_) => "another version",
                }
            }

            pub(super) const fn en(self) -> Texts {
                match self {
                    $(Self::$verdict => Texts { meaning: $verdict_meaning, remedy: $verdict_remedy },)*
                    $(Self::$other => Texts { meaning: $other_meaning, remedy: $other_remedy },)*
                    Self::Foreign(_) => Texts {
                        meaning: "A daemon of another version of scelle said it.",
                        remedy: "See the manual of that version.",
                    },
                }
            }
        }
    };
}

mod table;

pub use table::Code;

impl Code {
    /// What it means.
    pub const fn meaning(self) -> &'static str {
        self.en().meaning
    }

    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        self.en().remedy
    }

    /// The code that is written so. One without a row is [`Code::Foreign`]; nothing for what no code can be.
    pub fn parse(text: &str) -> Option<Self> {
        let known = Self::VERDICTS.iter().chain(Self::OTHERS).find(|code| code.as_str() == text);
        known.copied().or_else(|| ForeignCode::new(text).map(Self::Foreign))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("a code is lower-case words with hyphens between them"))
    }
}

/// Longest code, in bytes.
const CODE_BYTES_MAX: usize = 48;

/// A code without a row in the table, kept as it was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForeignCode {
    /// The code, then zeros.
    bytes: [u8; CODE_BYTES_MAX],
}

impl ForeignCode {
    fn new(text: &str) -> Option<Self> {
        let is_legal = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        let mut bytes = [0; CODE_BYTES_MAX];
        bytes.get_mut(..text.len()).filter(|part| !part.is_empty())?.copy_from_slice(text.as_bytes());
        text.as_bytes().iter().all(is_legal).then_some(Self { bytes })
    }

    fn as_str(&self) -> &str {
        let len = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(CODE_BYTES_MAX);
        // Invariant: `new` takes ASCII alone.
        std::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}

/// Why something is refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable code.
    pub code: Code,
    /// What happened and why, with the values.
    pub text: String,
    /// What to do about it.
    #[serde(default)]
    pub advice: String,
}

impl Problem {
    /// A problem with what its code says is to be done.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), advice: code.remedy().to_owned() }
    }

    /// The same with other advice than its code's: what to do in this case.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// How a command ends because of it.
    pub fn exit(&self) -> ExitCode {
        self.code.exit()
    }

    /// The whole of it, for a terminal: the text with the code, and what to do on a line of its own.
    pub fn whole(&self) -> String {
        if self.advice.is_empty() { self.to_string() } else { format!("{self}\n  {}", self.advice) }
    }
}

/// In a line, without the advice.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.text, self.code)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all() -> impl Iterator<Item = Code> {
        Code::VERDICTS.iter().chain(Code::OTHERS).copied()
    }

    #[test]
    fn codes_are_told_apart_and_complete() {
        let mut names: Vec<String> = all().map(|code| code.to_string()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        for code in all() {
            assert!(ForeignCode::new(code.as_str()).is_some() && ForeignCode::new(code.given_by()).is_some(), "{code}");
            assert!(code.meaning().ends_with('.') && code.remedy().ends_with(['.', '?']), "{code}");
            assert_ne!(code.exit(), ExitCode::Done, "{code}");
            assert_eq!(Code::parse(code.as_str()), Some(code));
        }
        assert!(Code::VERDICTS.iter().all(|code| code.exit() == ExitCode::Refused));
    }

    #[test]
    fn a_code_of_another_version_is_shown_as_it_is() {
        let problem: Problem = serde_json::from_str(r#"{"code":"moon-phase","text":"it wanes","later":1}"#).unwrap();
        assert_eq!((problem.to_string().as_str(), problem.exit()), ("it wanes [moon-phase]", ExitCode::Failed));
        let again: Problem = serde_json::from_str(&serde_json::to_string(&problem).unwrap()).unwrap();
        assert_eq!(again, problem);
        for bad in ["", "Moon", "moon phase", "moon\u{1b}", &"m".repeat(CODE_BYTES_MAX + 1)] {
            assert_eq!(Code::parse(bad), None, "{bad:?}");
        }
        assert!(Code::parse(&"m".repeat(CODE_BYTES_MAX)).is_some());
    }

    #[test]
    fn exit_codes_survive_a_byte() {
        assert!((0..8).all(|byte| ExitCode::from_byte(byte) as u8 == byte));
        assert_eq!(ExitCode::from_byte(200), ExitCode::Failed);
    }

    #[test]
    fn a_problem_says_what_to_do() {
        let problem = Problem::new(Code::WrongKey, "wrong passphrase");
        assert!(problem.whole().starts_with("wrong passphrase [wrong-key]\n  Try again"));
        assert_eq!(problem.clone().advise("Wait.").whole(), "wrong passphrase [wrong-key]\n  Wait.");
        assert_eq!(problem.advise("").whole(), "wrong passphrase [wrong-key]");
    }
}
