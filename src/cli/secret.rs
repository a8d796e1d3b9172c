//! Gets a passphrase from a file, a systemd credential or the terminal, never from the arguments or the environment.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::limits::SECRET_BYTES_MAX;
use crate::problem::{Code, Problem};

/// Name of the systemd credential (systemd.exec(5), `LoadCredential=`).
const CREDENTIAL: &str = "scelle.passphrase";

/// Whether the passphrase opens something or protects something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The passphrase opens something: it is asked for once.
    Open,
    /// The passphrase protects something new: it is asked for twice, because a slip of the finger would lock everybody
    /// out.
    Create,
}

/// Gets the passphrase of a volume. One newline at the end of a file is not part of it.
///
/// # Errors
/// An unreadable, empty or oversized source, no terminal to ask on, or two different answers.
pub fn obtain(file: Option<&Path>, purpose: Purpose) -> Result<Secret, Problem> {
    if let Some(path) = file {
        return from_file(path);
    }
    if let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") {
        let path = PathBuf::from(dir).join(CREDENTIAL);
        if path.exists() {
            return from_file(&path);
        }
    }
    from_terminal(purpose)
}

fn from_file(path: &Path) -> Result<Secret, Problem> {
    let unreadable = |error: io::Error| {
        Problem::new(Code::PassphraseFile, format!("cannot read the passphrase from {}: {error}", path.display()))
    };
    let mut source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(unreadable)?)
    };
    // Room for the largest secret, its newline, and one byte that shows that it is too long. All of it is allocated at
    // once, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(vec![0; SECRET_BYTES_MAX + 2]);
    let mut length = 0;
    while length < bytes.len() {
        match source.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    let secret = bytes[..length].strip_suffix(b"\n").unwrap_or(&bytes[..length]);
    Secret::new(secret.to_vec()).map_err(|error| {
        Problem::new(Code::PassphraseUnusable, format!("the passphrase in {} is unusable: {error}", path.display()))
    })
}

fn from_terminal(purpose: Purpose) -> Result<Secret, Problem> {
    if !io::stdin().is_terminal() {
        return Err(Problem::new(
            Code::PassphraseMissing,
            "no passphrase was given and there is no terminal to ask on",
        ));
    }
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|error| {
            Problem::new(Code::PassphraseTerminal, format!("cannot read the passphrase from the terminal: {error}"))
        })
    };
    let answer = match purpose {
        Purpose::Open => ask("Passphrase: ")?,
        Purpose::Create => {
            let first = ask("New passphrase: ")?;
            if *first != *ask("The same again: ")? {
                return Err(Problem::new(Code::PassphraseDiffers, "the two passphrases differ; nothing was written"));
            }
            first
        }
    };
    Secret::new(answer.as_bytes().to_vec())
        .map_err(|error| Problem::new(Code::PassphraseUnusable, format!("the passphrase is unusable: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(content: &[u8]) -> Result<Secret, Problem> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        from_file(file.path())
    }

    #[test]
    fn one_newline_is_not_part_of_the_passphrase() {
        assert_eq!(of(b"sesame\n").unwrap().expose(), b"sesame");
        assert_eq!(of(b"sesame\n\n").unwrap().expose(), b"sesame\n");
        assert_eq!(of(b"sesame").unwrap().expose(), b"sesame");
        assert_eq!(of(b"\0\xff").unwrap().expose(), b"\0\xff");
    }

    #[test]
    fn unusable_files_are_refused() {
        for bad in [&b""[..], b"\n", &[b'x'; SECRET_BYTES_MAX + 1], &[b'x'; SECRET_BYTES_MAX + 9]] {
            assert_eq!(of(bad).unwrap_err().code, Code::PassphraseUnusable);
        }
        assert_eq!(of(&[b'x'; SECRET_BYTES_MAX]).unwrap().expose().len(), SECRET_BYTES_MAX);
        assert_eq!(from_file(Path::new("/nonexistent/f")).unwrap_err().code, Code::PassphraseFile);
    }
}
