//! Absolute paths, and small files and folders that are read with a bound, because their author may be hostile.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Reads a file of at most `max` bytes. `None` if it does not exist.
///
/// # Errors
/// What the system says, and that the file has more bytes.
pub fn read_bounded(path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::other(format!("{} has more than {max} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// Names in a directory, sorted; none if there is no such directory. There are at most `max` + 1 of them, and that many
/// mean that the directory may have more.
pub fn list_bounded(path: &Path, max: usize) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries.take(max + 1) {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The path from the root on, with its symbolic links. The path stays as it is when the process has no working folder.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The path from the root on, without symbolic links in its folders, as the mount table shows it. The last name is not
/// looked up, because a mount whose daemon is dead would not answer.
pub fn mountpoint_path(path: &Path) -> PathBuf {
    let whole = absolute(path);
    match (whole.parent().and_then(|parent| parent.canonicalize().ok()), whole.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => whole.canonicalize().unwrap_or(whole),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_name_is_kept_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("a")).unwrap();
        std::os::unix::fs::symlink("a", real.join("b")).unwrap();
        std::fs::create_dir(real.join("a/c")).unwrap();
        assert_eq!(mountpoint_path(&real.join("b/c")), real.join("a/c"));
        assert_eq!(mountpoint_path(&real.join("b/gone")), real.join("a/gone"));
        assert_eq!(mountpoint_path(Path::new("/")), Path::new("/"));
    }
}
