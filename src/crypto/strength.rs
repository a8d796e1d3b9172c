//! How hard a new passphrase is to guess.
//!
//! Whoever has a disk can guess without end, and argon2id only makes each guess cost a second and 256 MiB. So a weak
//! passphrase is refused when a volume is made, by two measures:
//!
//! * What a person typed is judged by zxcvbn, which knows common passwords, words, names, dates, keyboards and patterns,
//!   and by the words of a French court. At least [`PASSPHRASE_CHARS_MIN`] characters are asked for as well, because it
//!   takes words of languages that it does not know for random letters.
//! * A key file (bytes that are no text, or text that nobody types) holds no words. Of it [`KEY_FILE_BITS_MIN`] bits are
//!   asked for, by its length and by how evenly its bytes are spread. That refuses files of zeros, not clever forgeries.
//!
//! zxcvbn leaves pieces of the passphrase in memory that is not wiped. It is used when a volume is made, in a process that
//! ends soon, cannot be dumped and is not swapped out.

use zeroize::Zeroizing;
use zxcvbn::{Score, zxcvbn};

use super::{Error, Secret};
use crate::limits::{KEY_FILE_BITS_MIN, PASSPHRASE_CHARS_MIN};

/// The least that zxcvbn must say: ten thousand million guesses and more.
const SCORE_MIN: Score = Score::Four;

/// Words that whoever guesses a French court's passphrase tries first.
const COURT_WORDS: [&str; 44] = [
    "scelle",
    "scellé",
    "scellés",
    "greffe",
    "greffier",
    "greffière",
    "tribunal",
    "judiciaire",
    "justice",
    "juge",
    "magistrat",
    "procureur",
    "parquet",
    "palais",
    "cour",
    "appel",
    "cassation",
    "instruction",
    "audience",
    "jugement",
    "ministère",
    "ministere",
    "dossier",
    "pièces",
    "conviction",
    "archives",
    "avocat",
    "assises",
    "république",
    "republique",
    "français",
    "francais",
    "liberté",
    "liberte",
    "égalité",
    "egalite",
    "fraternité",
    "fraternite",
    "motdepasse",
    "mot de passe",
    "azerty",
    "azertyuiop",
    "bonjour",
    "soleil",
];

/// Refuses a secret that is too easy to guess for a new volume. `known` are words that belong to the volume, as its label.
///
/// # Errors
/// [`Error::WeakPassphrase`], [`Error::WeakKeyFile`].
pub fn check_strength(secret: &Secret, known: &[&str]) -> Result<(), Error> {
    let Some(text) = typed(secret.expose()) else {
        let bits = spread_bits(secret.expose());
        return if bits >= KEY_FILE_BITS_MIN { Ok(()) } else { Err(Error::WeakKeyFile { bits }) };
    };
    let words: Vec<&str> =
        COURT_WORDS.into_iter().chain(known.iter().flat_map(|text| text.split_whitespace())).collect();
    // A space between words is what everybody tries first; zxcvbn takes it for something to be guessed.
    let joined: Zeroizing<String> = Zeroizing::new(text.split_whitespace().collect());
    let estimate = zxcvbn(&joined, &words);
    let chars = text.chars().count();
    if estimate.score() >= SCORE_MIN && chars >= PASSPHRASE_CHARS_MIN {
        return Ok(());
    }
    Err(Error::WeakPassphrase { chars, digits: estimate.guesses().max(1).ilog10() })
}

/// The text, when a person can have typed it: no control characters.
fn typed(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

/// How many bits the bytes hold at least when each is drawn by itself, with the frequencies that it has here.
fn spread_bits(bytes: &[u8]) -> u32 {
    let mut counts = [0u32; 256];
    bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let all: u32 = counts.iter().sum();
    counts.iter().filter(|count| **count > 0).map(|count| count * (all / count).ilog2()).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(bytes: &[u8]) -> Result<(), Error> {
        check_strength(&Secret::copied(bytes).unwrap(), &["archives civiles"])
    }

    #[test]
    fn what_is_easy_to_guess_is_refused() {
        for weak in [
            "a",
            "1234",
            "password",
            "motdepasse",
            "Motdepasse2026!",
            "azertyuiop123",
            "tribunal judiciaire",
            "greffe2026",
            "scelle archives civiles",
            "LibertéÉgalitéFraternité",
            "aaaaaaaaaaaaaaaaaaaaaaaa",
            "01/12/2026 justice",
            "x8Kq2!",
        ] {
            let refused = check(weak.as_bytes());
            assert!(matches!(refused, Err(Error::WeakPassphrase { .. })), "{weak}: {refused:?}");
        }
    }

    #[test]
    fn what_is_hard_to_guess_is_taken() {
        for strong in [
            "correct horse battery staple",
            "girafe violon béton mardi échelle",
            "Vq8$kTz2!mWp4Lr9",
            "cKx0n0h9bC8Q1vX0yqk3mB2g2f6o0T7y",
        ] {
            check(strong.as_bytes()).unwrap_or_else(|error| panic!("{strong}: {error}"));
        }
    }

    #[test]
    fn key_files_are_judged_by_their_bytes() {
        let random: Vec<u8> = super::super::random_bytes::<32>().unwrap().to_vec();
        assert!(check(&[&[0, 0xff][..], &random].concat()).is_ok());
        assert!(check(&super::super::random_bytes::<4096>().unwrap()).is_ok());
        for weak in [&[0; 4096][..], &[0xff; 64], b"\xff\x00short", &random[..12]] {
            let weak = [&[0xff, 0][..], weak].concat();
            assert!(matches!(check(&weak), Err(Error::WeakKeyFile { .. })), "{weak:?}");
        }
        // Text over several lines is a key file too.
        assert!(check(b"-----BEGIN-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIB\n-----END-----\n").is_ok());
    }
}
