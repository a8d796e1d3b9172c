//! The helpers that mount(8) and umount(8) call for the types `scelle` and `fuse.scelle`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{mount, options, umount};
use crate::daemon::{Request, find};
use crate::os;
use crate::os::process::Unmount;
use crate::problem::{Code, ExitCode, Problem};

/// Which helper the program was called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Helper {
    /// `mount.scelle`, `mount.fuse.scelle`.
    Mount,
    /// `umount.scelle`, `umount.fuse.scelle`.
    Umount,
}

impl Helper {
    /// The helper whose name the program was called by.
    pub(super) fn of(program: &OsStr) -> Option<Self> {
        match Path::new(program).file_name()?.to_str()? {
            "mount.scelle" | "mount.fuse.scelle" => Some(Self::Mount),
            "umount.scelle" | "umount.fuse.scelle" => Some(Self::Umount),
            _ => None,
        }
    }

    /// Runs the helper with the arguments, which begin after the program's name.
    pub(super) fn run(self, arguments: &[OsString]) -> Result<ExitCode, Problem> {
        match self {
            Self::Mount => as_mount(arguments),
            Self::Umount => as_umount(arguments),
        }
    }
}

/// Arguments of either helper: `PLACE… [-FLAGS] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`.
struct Parsed<'a> {
    places: Vec<&'a OsStr>,
    lists: Vec<String>,
    flags: Vec<u8>,
}

fn parse<'a>(arguments: &'a [OsString], known: &[u8]) -> Result<Parsed<'a>, Problem> {
    let mut parsed = Parsed { places: Vec::new(), lists: Vec::new(), flags: Vec::new() };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().map(|value| value.to_string_lossy().into_owned()).ok_or(());
        let missing = |()| Problem::new(Code::Arguments, format!("{} needs a value", argument.to_string_lossy()));
        match argument.as_bytes() {
            b"-o" => parsed.lists.push(value().map_err(missing)?),
            b"-N" | b"-t" => drop(value().map_err(missing)?),
            [b'-', flags @ ..] if !flags.is_empty() => {
                if let Some(&unknown) = flags.iter().find(|flag| !known.contains(flag)) {
                    return Err(Problem::new(Code::Arguments, format!("option -{} is not known", char::from(unknown))));
                }
                parsed.flags.extend_from_slice(flags);
            }
            _ => parsed.places.push(argument),
        }
    }
    Ok(parsed)
}

/// `mount.scelle SOURCE MOUNTPOINT [-sfnvrw] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`.
fn as_mount(arguments: &[OsString]) -> Result<ExitCode, Problem> {
    let Parsed { places, mut lists, flags } = parse(arguments, b"sfnvrw")?;
    let [source, mountpoint] = places[..] else {
        return Err(Problem::new(Code::Arguments, "usage: mount.scelle DEV[:DEV…] MOUNTPOINT [-o OPTIONS]"));
    };
    lists.extend(flags.contains(&b'r').then(|| "ro".to_string()));
    let options = options::parse(&lists)?;
    if flags.contains(&b'f') {
        return Ok(ExitCode::Done);
    }
    let mut request = Request::of_helper(source, mountpoint, options);
    request.mountpoint = os::mountpoint_path(&request.mountpoint);
    // `mount -a` compares words: for a volume that is not sovereign, the mount table has more of them than fstab(5).
    if !request.options.remount && find::is_mounted(&request) {
        return Ok(ExitCode::Done);
    }
    mount::perform(request)
}

/// `umount.scelle MOUNTPOINT [-fnlv] [-N NAMESPACE] [-t TYPE]`. `-f` changes nothing: written data is not thrown away.
fn as_umount(arguments: &[OsString]) -> Result<ExitCode, Problem> {
    let Parsed { places, flags, .. } = parse(arguments, b"fnlv")?;
    let [mountpoint] = places[..] else {
        return Err(Problem::new(Code::Arguments, "usage: umount.scelle MOUNTPOINT [-l]"));
    };
    let how = if flags.contains(&b'l') { Unmount::Lazy } else { Unmount::Plain };
    umount::perform(Path::new(mountpoint), how)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(helper: Helper, arguments: &[&str]) -> Result<ExitCode, Problem> {
        helper.run(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn helpers_are_recognised_by_name() {
        for (name, expected) in [
            ("/sbin/mount.scelle", Some(Helper::Mount)),
            ("mount.fuse.scelle", Some(Helper::Mount)),
            ("/sbin/umount.fuse.scelle", Some(Helper::Umount)),
            ("umount.scelle", Some(Helper::Umount)),
            ("scelle", None),
            ("/x/mount.scelle/y", None),
        ] {
            assert_eq!(Helper::of(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn the_helper_understands_what_mount_passes() {
        let helper = |arguments: &[&str]| run(Helper::Mount, arguments);
        assert_eq!(helper(&["/dev/a:/dev/b", "/mnt", "-f", "-o", "rw,nofail"]).unwrap(), ExitCode::Done);
        assert_eq!(helper(&["vol", "/mnt", "-snf", "-t", "scelle", "-N", "1"]).unwrap(), ExitCode::Done);
        for bad in [&["vol"][..], &["a", "b", "c"], &["a", "b", "-o"], &["a", "b", "-x"], &["a", "b", "-fo", "x"]] {
            assert_eq!(helper(bad).unwrap_err().exit(), ExitCode::Usage, "{bad:?}");
        }
        assert_eq!(helper(&["a", "b", "-f", "-o", "force"]).unwrap_err().code, Code::MountOptionUnknown);
    }

    #[test]
    fn the_helper_understands_what_umount_passes() {
        let helper = |arguments: &[&str]| run(Helper::Umount, arguments);
        for bad in [&[][..], &["a", "b"], &["a", "-r"], &["a", "-t"]] {
            assert_eq!(helper(bad).unwrap_err().code, Code::Arguments, "{bad:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().to_str().unwrap();
        for list in [&[place][..], &[place, "-flnv", "-t", "fuse.scelle"]] {
            assert_eq!(helper(list).unwrap_err().code, Code::UmountNotMounted, "{list:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_mount_point_is_refused_before_any_question() {
        let failure = run(Helper::Mount, &["/dev/null", "/nonexistent/folder"]).unwrap_err();
        assert_eq!((failure.code, failure.exit()), (Code::Mountpoint, ExitCode::Usage));
    }
}
