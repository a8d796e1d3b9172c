//! Gets a passphrase from a file, a systemd credential or the terminal, never from the arguments or the environment.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::{geteuid, getuid};
use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::daemon::serve::lock_memory;
use crate::limits::SECRET_BYTES_MAX;
use crate::os::Locked;
use crate::problem::{Code, ExitCode, Problem};

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

/// A secret, and what may have gone wrong on its way here.
#[derive(Debug)]
pub struct Obtained {
    /// The secret.
    pub secret: Secret,
    /// What to say when it opens nothing.
    pub hints: Hints,
}

/// What to say when a secret opens nothing, for the terminal of whoever gave it and for nobody else: no log and no trail
/// learns what a passphrase looks like.
///
/// No second form of a passphrase is tried by itself, with other capitals or as on another keyboard. Each would cost a
/// derivation of the key, wrong passphrases above all, and a volume would open with what is not its passphrase. Whoever
/// typed it reads the hint and types again. Only the normal form of text is the same for all
/// ([`Secret::of_text_or_bytes`]).
#[derive(Debug, Default)]
pub struct Hints(Vec<String>);

impl Hints {
    /// The hints for a file with these bytes, its newline taken away.
    fn of_file(bytes: &[u8], path: &Path) -> Self {
        let mut hints = Vec::new();
        let shown = path.display();
        if bytes.ends_with(b"\r") {
            hints.push(format!(
                "{shown} ends with a carriage return, as files from Windows do, and that is part of the passphrase. To take \
                 it away: sed -i 's/\\r$//' {shown}"
            ));
        }
        if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| bytes.starts_with(mark)) {
            hints.push(format!(
                "{shown} begins with a byte order mark, as editors of Windows write it, and that is part of the passphrase. \
                 Save it as UTF-8 without the mark"
            ));
        }
        if bytes.ends_with(b" ") || bytes.ends_with(b"\t") || bytes.ends_with(b"\n") {
            hints.push(format!("{shown} ends with a space or an empty line, and that is part of the passphrase"));
        }
        Self(hints)
    }

    /// The hints for what was typed.
    fn of_typed(text: &str) -> Self {
        let mut hints = Vec::new();
        let letters: Vec<char> = text.chars().filter(|char| char.is_alphabetic()).collect();
        let (first, rest) = letters.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
        // All capitals; or what a sentence becomes with Caps Lock: a small letter, then capitals.
        if first.is_some() && letters.len() > 1 && rest.iter().all(|char| char.is_uppercase()) {
            hints.push("Nearly all letters were capitals: is Caps Lock on?".to_owned());
        }
        if text.chars().any(|char| "aqzwm".contains(char.to_ascii_lowercase()) || !char.is_alphabetic() && char != ' ')
        {
            let layout = "The keyboard may have another layout than when the passphrase was chosen: AZERTY and QWERTY differ \
                          in A and Q, Z and W, M, the digits and most signs";
            hints.push(layout.to_owned());
        }
        Self(hints)
    }

    /// The hints, when the secret opened nothing.
    pub fn after(&self, exit: ExitCode) -> &[String] {
        if exit == ExitCode::WrongKey { &self.0 } else { &[] }
    }

    /// The problem with the hints in its advice, when the secret opened nothing.
    pub fn explain(&self, problem: Problem) -> Problem {
        let advice = [std::slice::from_ref(&problem.advice), self.after(problem.exit())].concat().join("\n  ");
        problem.advise(advice)
    }
}

/// Gets the passphrase of a volume. One newline at the end of a file is not part of it.
///
/// # Errors
/// A file that is unreadable, empty, too large or exposed to others, no terminal to ask on, or two different answers.
pub fn obtain(file: Option<&Path>, purpose: Purpose) -> Result<Obtained, Problem> {
    lock_memory()?;
    if let Some(path) = file {
        return from_file(path, Keeper::Rights, purpose);
    }
    if let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") {
        let path = PathBuf::from(dir).join(CREDENTIAL);
        if path.exists() {
            return from_file(&path, Keeper::Systemd, purpose);
        }
    }
    from_terminal(purpose)
}

fn from_file(path: &Path, keeper: Keeper, purpose: Purpose) -> Result<Obtained, Problem> {
    // Room for the largest secret, its newline, and one byte that shows that it is too long.
    let mut bytes = Locked::zeroed(SECRET_BYTES_MAX + 2);
    let length = read_private(path, keeper, &mut bytes)?;
    let bytes = &bytes[..length];
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let secret = Secret::of_text_or_bytes(bytes).map_err(|error| {
        Problem::new(Code::PassphraseUnusable, format!("the passphrase in {} is unusable: {error}", path.display()))
    })?;
    let hints = Hints::of_file(bytes, path);
    if purpose == Purpose::Create {
        hints.0.iter().for_each(|hint| eprintln!("scelle: warning: {hint}"));
    }
    Ok(Obtained { secret, hints })
}

/// Reads a file with a secret, `-` for standard input, until its end or until `bytes` are full. Returns how much was read.
///
/// # Errors
/// [`Code::PassphraseFile`], or [`Code::PassphraseExposed`] for a file that others can read or change.
pub(super) fn read_private(path: &Path, keeper: Keeper, bytes: &mut [u8]) -> Result<usize, Problem> {
    let unreadable = |error: io::Error| {
        Problem::new(Code::PassphraseFile, format!("cannot read the secret in {}: {error}", path.display()))
    };
    let (file, keeper) = match path == Path::new("-") {
        // A descriptor of its own: the standard library's keeps a copy of what it reads.
        true => (io::stdin().as_fd().try_clone_to_owned().map_err(unreadable)?.into(), Keeper::Standard),
        false => (File::open(path).map_err(unreadable)?, keeper),
    };
    refuse_exposed(&file, path, keeper)?;
    fill(file, bytes).map_err(unreadable)
}

/// Reads until the end, or until `bytes` are full, and leaves no copy elsewhere. Returns how much was read.
fn fill(mut source: File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < bytes.len() {
        match source.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Who sees to it that nobody else reads a secret on its way to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// The rights of the file.
    Rights,
    /// systemd, by the rights of the folder; those of the file show the mask of an access list for the service's user.
    Systemd,
    /// Whoever connected standard input: any kind of descriptor. A regular file is one that has a name, and rights.
    Standard,
}

/// Refuses a file that others can read or change. The file that was opened is asked, not its name: links are followed,
/// as those of `/dev/fd`, and who could put another file there cannot give it to root.
///
/// A pipe is read once by one process, and `sudo` hands on pipes that belong to another user: so only its rights count.
///
/// # Errors
/// [`Code::PassphraseExposed`], with the command that changes it.
fn refuse_exposed(file: &File, path: &Path, keeper: Keeper) -> Result<(), Problem> {
    let (shown, refused) = (path.display(), |text: String| Problem::new(Code::PassphraseExposed, text));
    let meta = file
        .metadata()
        .map_err(|error| Problem::new(Code::PassphraseFile, format!("cannot look at {shown}: {error}")))?;
    let kind = meta.file_type();
    if !kind.is_file() {
        let allowed = keeper == Keeper::Standard || kind.is_fifo() && meta.mode() & 0o077 == 0;
        return match (allowed, kind.is_fifo()) {
            (true, _) => Ok(()),
            (false, true) => Err(refused(format!("others can read or write the pipe {shown}"))
                .advise(format!("Take these rights away: chmod 600 {shown}"))),
            (false, false) => Err(refused(format!("{shown} is neither a file nor a pipe"))
                .advise("Give a file, - for standard input, or nothing to be asked on the terminal.")),
        };
    }
    let ours = [0, getuid().as_raw(), geteuid().as_raw()];
    if !ours.contains(&meta.uid()) {
        return Err(refused(format!(
            "{shown} holds a secret and belongs to user {}, who can read and change it",
            meta.uid()
        ))
        .advise(format!("Give it to root: chown root {shown} && chmod 600 {shown}")));
    }
    if keeper != Keeper::Systemd && meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(refused(format!("{shown} holds a secret, and others can read or change it (mode {mode:04o})"))
            .advise(format!("Take these rights away: chmod 600 {shown}")));
    }
    Ok(())
}

fn from_terminal(purpose: Purpose) -> Result<Obtained, Problem> {
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
    let secret = Secret::of_text_or_bytes(answer.as_bytes())
        .map_err(|error| Problem::new(Code::PassphraseUnusable, format!("the passphrase is unusable: {error}")))?;
    Ok(Obtained { secret, hints: Hints::of_typed(&answer) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(content: &[u8]) -> Result<Secret, Problem> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        read_file(file.path(), Keeper::Rights)
    }

    fn read_file(path: &Path, keeper: Keeper) -> Result<Secret, Problem> {
        from_file(path, keeper, Purpose::Open).map(|obtained| obtained.secret)
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
        let missing = read_file(Path::new("/nonexistent/f"), Keeper::Rights);
        assert_eq!(missing.unwrap_err().code, Code::PassphraseFile);
    }

    #[test]
    fn a_passphrase_that_others_can_read_or_change_is_refused() {
        use std::os::unix::fs::{PermissionsExt, chown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        std::fs::write(&path, "sesame").unwrap();
        let set = |mode: u32| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let refusal = |keeper| read_file(&path, keeper).err().map(|problem| (problem.code, problem.whole()));
        for mode in [0o600, 0o400, 0o700] {
            set(mode);
            assert_eq!(refusal(Keeper::Rights), None, "{mode:o}");
        }
        for mode in [0o640, 0o604, 0o620, 0o602, 0o666, 0o644, 0o610] {
            set(mode);
            let (code, text) = refusal(Keeper::Rights).unwrap();
            assert!(code == Code::PassphraseExposed && text.contains("chmod 600"), "{mode:o}: {text}");
            assert_eq!(refusal(Keeper::Systemd), None, "an access list shows as rights of the group");
        }
        set(0o600);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(read_file(&link, Keeper::Rights).is_ok());
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(65_534), None).unwrap();
            for keeper in [Keeper::Rights, Keeper::Systemd] {
                let (code, text) = refusal(keeper).unwrap();
                assert!(code == Code::PassphraseExposed && text.contains("chown root"), "{text}");
            }
        }
        for not_a_file in [dir.path(), Path::new("/dev/zero")] {
            assert_eq!(read_file(not_a_file, Keeper::Rights).unwrap_err().code, Code::PassphraseExposed);
        }
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"sesame\n").unwrap();
        drop(writer);
        let pipe = PathBuf::from(format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader)));
        assert_eq!(read_file(&pipe, Keeper::Rights).unwrap().expose(), b"sesame");
    }

    #[test]
    fn hints_say_what_may_have_gone_wrong_and_only_after_a_wrong_passphrase() {
        let wrong = || Problem::new(Code::WrongKey, "wrong passphrase");
        let typed = |text: &str| Hints::of_typed(text).explain(wrong()).advice;
        let file = |bytes: &[u8]| Hints::of_file(bytes, Path::new("/f")).explain(wrong()).advice;
        for capitals in ["CHEVAL", "cHEVAL EXACT", "É1N"] {
            assert!(typed(capitals).contains("Caps Lock"), "{capitals}");
        }
        for usual in ["Cheval", "cheval", "c", "C", "12", "CHEval", ""] {
            assert!(!typed(usual).contains("Caps Lock"), "{usual}");
        }
        assert!(
            typed("cheval").contains("AZERTY") && typed("1").contains("AZERTY") && !typed("book").contains("AZERTY")
        );
        assert!(file(b"sesame\r").contains("carriage return") && file(b"sesame\r").contains("sed -i 's/\\r$//' /f"));
        assert!(file("\u{feff}sesame".as_bytes()).contains("byte order mark"));
        assert!(file(b"sesame ").contains("a space"));
        assert_eq!(file(b"SESAME"), Code::WrongKey.remedy());
        let other = Problem::new(Code::LabelDamaged, "");
        assert_eq!(Hints::of_typed("CHEVAL").explain(other.clone()), other);
    }
}
