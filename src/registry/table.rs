//! The fields of the documents. Each table of a document has one table of rows here: the rows make the type, parse it,
//! check it and describe it. A test compares the manual page scelle-registry(5) with the rows.

use serde::de::DeserializeOwned;

use super::{Date, Error};
use crate::limits;

/// A field of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the file.
    pub name: &'static str,
    /// What it holds.
    pub kind: &'static str,
    /// What holds when the field is absent; `None`: a document without it is refused.
    pub default: Option<&'static str>,
    /// Codes of the reasons with which the policy refuses because of the field.
    pub reasons: &'static [&'static str],
    /// What the field means.
    pub text: &'static str,
}

/// What a field may hold: the words that describe it, and the check beyond its type.
pub(super) struct Kind<T: 'static> {
    pub shown: &'static str,
    /// Takes the field's name, for the message.
    pub check: fn(&str, &T) -> Result<(), String>,
}

/// Makes the types of a document from its rows. A row is: name (and name in the file, if that is another), type, kind,
/// default if the field may be absent (as shown, and the function), codes of the refusals that rest on it, meaning. A
/// field of a document that no row names is refused. `then` names the function that checks what must hold between the
/// fields.
macro_rules! document {
    ($($(#[$doc:meta])* $vis:vis struct $table:ident $(then $rule:path)? {$(
        $field:ident $(as $name:literal)?: $type:ty = $kind:expr $(, or $shown:literal by $default:literal)?;
        [$($code:literal),*] $text:literal;
    )*})*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
        #[serde(deny_unknown_fields)]
        $vis struct $table {$(
            #[doc = $text]
            $(#[serde(rename = $name)])?
            $(#[serde(default = $default)])?
            pub $field: $type,
        )*}

        impl $table {
            /// The fields, in the order of the manual.
            pub const FIELDS: &'static [$crate::registry::Field] = &[$($crate::registry::Field {
                name: $crate::registry::table::name!($field $($name)?),
                kind: $kind.shown,
                default: $crate::registry::table::default!($($shown)?),
                reasons: &[$($code),*],
                text: $text,
            },)*];

            fn check(&self) -> Result<(), String> {
                $(($kind.check)($crate::registry::table::name!($field $($name)?), &self.$field)?;)*
                $($rule(self)?;)?
                Ok(())
            }
        }
    )*};
}

macro_rules! name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $name:literal) => {
        $name
    };
}

macro_rules! default {
    () => {
        None
    };
    ($shown:literal) => {
        Some($shown)
    };
}

pub(super) use {default, document, name};

pub(super) const ID: Kind<String> = Kind { shown: "identifier", check: |name, id| prefixed(name, check_id(id)) };
pub(super) const TEXT: Kind<String> = Kind { shown: "text", check: |name, text| check_text(name, text) };
pub(super) const TEXTS: Kind<Vec<String>> =
    Kind { shown: "list of texts", check: |name, list| check_list(name, list, check_text) };
pub(super) const TEXTS_OR_NONE: Kind<Vec<String>> = Kind {
    shown: "list of texts",
    check: |name, list| if list.is_empty() { Ok(()) } else { check_list(name, list, check_text) },
};
pub(super) const COUNTRY: Kind<String> = Kind { shown: "country code", check: |name, code| check_country(name, code) };
pub(super) const COUNTRIES: Kind<Vec<String>> =
    Kind { shown: "list of country codes", check: |name, list| check_list(name, list, check_country) };
pub(super) const DAY: Kind<Date> = Kind { shown: "day", check: |_, _| Ok(()) };
pub(super) const FLAG: Kind<bool> = Kind { shown: "true or false", check: |_, _| Ok(()) };
pub(super) const VERSION: Kind<u64> = Kind {
    shown: "number, from 1",
    check: |name, n| if *n == 0 { Err(format!("{name} must be at least 1")) } else { Ok(()) },
};

/// Reads the document called `what`, of at most `max` bytes. Its fields are not checked yet.
pub(super) fn parse<T: DeserializeOwned>(what: &'static str, document: &[u8], max: usize) -> Result<T, Error> {
    check_size(what, document, max)?;
    let syntax = |detail| Error::Syntax { what, detail };
    let text = std::str::from_utf8(document).map_err(|e| syntax(format!("not UTF-8: {e}")))?;
    toml::from_str(text).map_err(|e| syntax(unfinished(text).unwrap_or_else(|| e.to_string().trim_end().to_owned())))
}

/// Says which fields of a draft are still empty, if any. In a finished document no field is empty.
fn unfinished(text: &str) -> Option<String> {
    let mut empty = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some((name, value)) = line.split_once('=')
            && matches!(value.trim(), "\"\"" | "[\"\"]")
        {
            empty.push(format!("{} (line {number})", name.trim()));
        }
    }
    (!empty.is_empty()).then(|| format!("still empty: {}", empty.join(", ")))
}

pub(super) fn check_size(what: &'static str, document: &[u8], max: usize) -> Result<(), Error> {
    let bytes = document.len();
    if bytes > max { Err(Error::TooLarge { what, bytes, max }) } else { Ok(()) }
}

fn prefixed(name: &str, result: Result<(), String>) -> Result<(), String> {
    result.map_err(|detail| format!("{name}: {detail}"))
}

/// An id is 1 to 64 ASCII letters, digits, `.`, `_`, `-`, and begins with a letter or a digit.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    let legal = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let bytes = id.as_bytes();
    if bytes.len() > limits::REGISTRY_ID_MAX
        || !bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        || !bytes.iter().all(legal)
    {
        return Err(format!(
            "{:?} is not an identifier (1 to {} letters, digits, '.', '_', '-')",
            id.chars().take(80).collect::<String>(),
            limits::REGISTRY_ID_MAX
        ));
    }
    Ok(())
}

/// Whether a text may have the character: printable ASCII, the letters of ISO 8859-15 (which has all of French), and a
/// few marks. So nothing is invisible, no letter of another script passes for a Latin one, and no text has two
/// encodings, because there are no combining marks.
fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~' | 'À'..='ÿ' | 'Œ' | 'œ' | 'Ÿ' | 'Š' | 'š' | 'Ž' | 'ž' | '’' | '«' | '»' | '°')
        && !matches!(c, '×' | '÷')
}

/// A text that people compare by eye and the policy compares byte for byte.
pub(super) fn check_text(name: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > limits::REGISTRY_TEXT_MAX {
        return Err(format!("{name} must be 1 to {} bytes long", limits::REGISTRY_TEXT_MAX));
    }
    if let Some(c) = text.chars().find(|c| !is_plain(*c)) {
        return Err(format!(
            "{name} has the character U+{:04X}: only printable ASCII and the letters of French are allowed, so that no \
             two texts look alike",
            u32::from(c)
        ));
    }
    if text.trim() != text || text.contains("  ") {
        return Err(format!("{name} begins or ends with a space, or has two together"));
    }
    Ok(())
}

/// A value that a device shows of itself: printable ASCII, as the standards of NVMe, SCSI and ATA have it.
pub(super) fn check_identity(name: &str, text: &str) -> Result<(), String> {
    let printable = text.bytes().all(|b| matches!(b, b' '..=b'~'));
    if text.is_empty() || text.len() > limits::REGISTRY_TEXT_MAX || !printable || text.trim() != text {
        return Err(format!(
            "{name} must be 1 to {} printable ASCII characters, without space at the ends",
            limits::REGISTRY_TEXT_MAX
        ));
    }
    Ok(())
}

fn check_list(name: &str, list: &[String], check: fn(&str, &str) -> Result<(), String>) -> Result<(), String> {
    if list.is_empty() || list.len() > limits::REGISTRY_LIST_MAX {
        return Err(format!("{name} must list 1 to {} values", limits::REGISTRY_LIST_MAX));
    }
    list.iter().try_for_each(|value| check(name, value))?;
    for (i, value) in list.iter().enumerate() {
        if let Some(other) = list[..i].iter().find(|other| same_but_for_case(other, value)) {
            return Err(format!("{name} lists {other:?} and {value:?}: one of them is enough, or is a slip"));
        }
    }
    Ok(())
}

fn check_country(name: &str, code: &str) -> Result<(), String> {
    if code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(format!("{name} has {code:?}, which is not a two-letter code (ISO 3166-1 alpha-2)"))
}

/// Whether two texts differ in nothing but upper and lower case.
pub fn same_but_for_case(a: &str, b: &str) -> bool {
    a.to_lowercase() == b.to_lowercase()
}
