//! One machine, its cases, and afterwards the images that must be as they were.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::disks;
use crate::failure::{During, Failure, Result, failed};
use crate::initramfs::Initramfs;
use crate::lines::Heard;
use crate::machine::{BOOT_MAX, Machine};
use crate::packages::Packages;
use crate::results::Results;
use crate::tables::{SPARES, Tables};

/// What all machines need.
pub struct Ground<'a> {
    /// The folder for images, sockets and logs.
    pub work: &'a Path,
    /// Debian's packages.
    pub packages: &'a Packages,
    /// The tables.
    pub tables: &'a Tables,
    /// The guest's first file system.
    pub initramfs: &'a Initramfs,
    /// Where to write down what /sys shows of each device, if that is wanted.
    pub trees: Option<PathBuf>,
    /// When everything has taken too long.
    pub until: Instant,
}

impl Ground<'_> {
    /// Runs cases on a machine, and looks whether it has changed an image that it must not.
    pub fn run(&self, boot: &str, cases: &[&str], results: &mut Results<'_>) -> Result<()> {
        println!("\n== boot {boot}: {}", cases.join(" "));
        self.initramfs.pack(cases, &self.work.join("initramfs.cpio"))?;
        disks::make(self.work, self.tables)?;
        let kept = self.tables.images_kept();
        let before = kept.iter().map(|name| disks::hash(self.work, name)).collect::<Result<Vec<_>>>()?;
        let mut machine = Machine::boot(boot, self.work, self.packages, self.tables)?;
        self.serve(&mut machine, results)?;
        machine.end()?;
        for (name, before) in kept.into_iter().zip(before) {
            let result = format!("unchanged/{name}");
            if disks::hash(self.work, name)? == before {
                results.ok(&result);
            } else {
                results.fail(&result, &format!("boot {boot} has changed it"));
            }
        }
        Ok(())
    }

    /// Listens to the guest until it has ended, or for too long.
    fn serve(&self, machine: &mut Machine, results: &mut Results<'_>) -> Result<()> {
        let until = machine.until.min(self.until);
        loop {
            let line = match machine.hear(until)? {
                Heard::Line(line) => line,
                Heard::End => {
                    eprintln!("the machine ended by itself before its cases");
                    return Ok(());
                }
                Heard::Silence => {
                    self.too_long();
                    return Ok(());
                }
            };
            let (verb, rest) = first_word(&line);
            match verb {
                "RESULT" => result(rest, results),
                "ASK" => {
                    let answer = self.answer(rest, machine)?;
                    // Whether the machine is still there shows at the next line.
                    let _ = machine.say(&answer);
                }
                "TREE" => self.tree(rest)?,
                _ if verb.starts_with("END") => return Ok(()),
                _ => {}
            }
            if Instant::now() >= until {
                self.too_long();
                return Ok(());
            }
        }
    }

    /// Says which bound has ended a machine.
    fn too_long(&self) {
        let everything = Instant::now() >= self.until;
        let bound =
            if everything { "everything".to_owned() } else { format!("this boot, of {} s", BOOT_MAX.as_secs()) };
        eprintln!("the machine was ended before its cases: the time for {bound} is over");
    }

    /// Does what the guest asks for. Says what came of it; only a signal ends the tests here.
    fn answer(&self, question: &str, machine: &mut Machine) -> Result<String> {
        let words: Vec<&str> = question.split_whitespace().collect();
        let done = match *words {
            ["unplug", id] => machine.unplug(id).map(|()| String::new()),
            ["plug", id, serial, image] => machine.plug(id, serial, image).map(|()| String::new()),
            ["hash", image] if self.is_image(image) => disks::hash(self.work, image),
            ["hash", image] => Err(failed(format!("no image {image}"))),
            _ => Err(failed("not understood")),
        };
        match done {
            Ok(said) => Ok(format!("OK {said}").trim_end().to_owned()),
            Err(Failure::Interrupted) => Err(Failure::Interrupted),
            // One line: the guest reads no further.
            Err(failure) => Ok(format!("FAILED {failure}").replace('\n', " ")),
        }
    }

    /// Whether a disk has this name.
    fn is_image(&self, name: &str) -> bool {
        SPARES.contains(&name) || self.tables.disks().any(|(device, _)| device.name == name)
    }

    /// Writes down a line of what /sys shows of a device.
    fn tree(&self, rest: &str) -> Result<()> {
        let (name, text) = first_word(rest);
        let known = self.tables.devices.iter().any(|device| device.name == name);
        let Some(folder) = self.trees.as_ref().filter(|_| known) else { return Ok(()) };
        let path = folder.join(format!("{name}.tree"));
        let file = File::options().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| writeln!(file, "{text}"));
        written.during(|| format!("write {}", path.display()))
    }
}

/// Takes a result that the guest tells: NAME ok|fail [DETAIL].
fn result(rest: &str, results: &mut Results<'_>) {
    let (name, rest) = first_word(rest);
    match first_word(rest) {
        ("ok", _) => results.ok(name),
        (_, detail) => results.fail(name, detail),
    }
}

/// The first word of a line, and what follows it.
fn first_word(line: &str) -> (&str, &str) {
    let line = line.trim();
    line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim_start()))
}
