//! `scelle destroy`.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use clap::Args;

use super::{DocumentArguments, only_root, text};
use crate::audit::{Actor, Entry, Event, Object, Reports};
use crate::daemon::{WITNESS_DIR, devices};
use crate::device::raw::Access;
use crate::os::process;
use crate::problem::{Code, ExitCode, Problem};
use crate::units::Uuid;
use crate::volume::Doomed;

/// What somebody types who means it.
const ANSWER: &str = "destroy";

/// Arguments of `scelle destroy`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    documents: DocumentArguments,
    /// Do not ask, but destroy replicas of this volume only
    #[arg(long, value_name = "UUID")]
    volume: Option<String>,
    /// The devices; each must hold a replica
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
}

/// Overwrites the labels of devices, and so every key slot on them.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    only_root("destroy a replica")?;
    let documents = arguments.documents.documents();
    let registry = devices::load_registry(&documents)?;
    devices::refuse_repeated(&arguments.devices)?;
    let read = |path: &PathBuf| Ok(Doomed::read(devices::approve_one(path, &registry, Access::Exclusive)?)?);
    let doomed: Vec<Doomed> = arguments.devices.iter().map(read).collect::<Result<_, Problem>>()?;
    match &arguments.volume {
        Some(volume) => doomed.iter().try_for_each(|doomed| belongs(doomed, volume))?,
        None => ask(&doomed)?,
    }
    // The answer may have taken its time.
    let registry = devices::load_registry(&documents)?;
    for doomed in &doomed {
        doomed.destroy(&registry)?;
        report(doomed);
        println!("destroyed: {}", text::lines(&described(doomed)));
    }
    println!(
        "Another replica of the volume has its key slots still: with one of them, and a secret for it, whoever has these devices reads them."
    );
    Ok(ExitCode::Done)
}

fn described(doomed: &Doomed) -> String {
    let name = doomed.device().name();
    match doomed.claims() {
        Some(claims) => format!(
            "{name}: replica {} of {} of volume {} ({:?})",
            claims.index, claims.replicas, claims.volume, claims.label
        ),
        None => format!("{name}: a replica whose label is damaged, so that it does not say of which volume"),
    }
}

fn belongs(doomed: &Doomed, volume: &str) -> Result<(), Problem> {
    let volume: Uuid =
        Uuid::parse(volume).ok_or_else(|| Problem::new(Code::VolumeUuid, format!("{volume:?} is not a UUID")))?;
    match doomed.claims() {
        Some(claims) if claims.volume == volume => Ok(()),
        _ => Err(Problem::new(
            Code::NotConfirmed,
            format!("{} is not of volume {volume}; nothing was destroyed", described(doomed)),
        )),
    }
}

fn ask(doomed: &[Doomed]) -> Result<(), Problem> {
    let refuse = |why: &str| Err(Problem::new(Code::NotConfirmed, format!("nothing was destroyed: {why}")));
    if !io::stdin().is_terminal() {
        return refuse("there is no terminal to ask on");
    }
    for doomed in doomed {
        eprintln!("{}", text::lines(&described(doomed)));
    }
    eprint!("Nothing on these devices can be read afterwards. Type {ANSWER} to go on: ");
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer) {
        Ok(_) if answer.trim() == ANSWER => Ok(()),
        Ok(_) => refuse("the answer was another one"),
        Err(error) => refuse(&error.to_string()),
    }
}

/// Leaves a report for the volume's trail, which the next mount with another replica takes it into.
fn report(doomed: &Doomed) {
    let Some(claims) = doomed.claims() else { return };
    let device = doomed.device();
    let object = Object::Replica {
        index: claims.index,
        registry_id: device.registry_entry().registry_id.clone(),
        device: device.name().to_owned(),
    };
    let entry = Entry::done(Actor::user(&process::identity()), object, Event::ReplicaDestroyed);
    if let Err(error) = Reports::new(WITNESS_DIR.as_ref(), claims.volume).add(&entry) {
        log::warn!("the audit trail of volume {} will not know of this: {WITNESS_DIR}: {error}", claims.volume);
    }
}
