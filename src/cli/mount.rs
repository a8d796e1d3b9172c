//! `scelle mount`, also as `mount.scelle`: the command that waits, and the daemon that serves.

mod remount;

use std::path::PathBuf;

use clap::Args;

use super::secret::{self, Obtained};
use super::{DocumentArguments, Passphrase, logging, only_root, options, text};
use crate::daemon::{Request, Sources, find, join, refusal, serve};
use crate::os;
use crate::os::process::{self, Report, Side};
use crate::problem::{Code, ExitCode, Problem};

/// Arguments of `scelle mount`.
// One argument takes volume and mount point. Of two, the parser would take what stands before an option for the last.
#[derive(Debug, Args)]
#[command(override_usage = "scelle mount [OPTIONS] VOLUME|DEV... MOUNTPOINT")]
#[command(
    after_help = "VOLUME is a label or a UUID, DEV... are devices of one volume, MOUNTPOINT is the folder to mount on."
)]
pub(super) struct Arguments {
    /// Mount options: ro, degraded, noexec, suid, dev, sync, powersave, idle=TIME, cache=SIZE, accept-rollback=GENERATION, accept-clock=DAY, registry=FILE, trust=FILE, passphrase-file=FILE
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in front, and unmount on Ctrl-C
    #[arg(short = 'f', long)]
    foreground: bool,
    #[command(flatten)]
    documents: DocumentArguments,
    #[command(flatten)]
    passphrase: Passphrase,
    /// A label, a UUID, or the devices of one volume; then the folder to mount on
    #[arg(required = true, num_args = 2.., value_names = ["VOLUME|DEV", "MOUNTPOINT"], hide = true)]
    places: Vec<PathBuf>,
}

/// `scelle mount`.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let Some((mountpoint, sources)) = arguments.places.split_last() else {
        return Err(Problem::new(Code::Arguments, "what to mount, and where"));
    };
    perform(Request {
        named: join(sources),
        sources: Sources { devices: sources.to_vec(), name: None },
        mountpoint: mountpoint.clone(),
        options: options::parse(&arguments.options)?,
        documents: arguments.documents.documents(),
        passphrase_file: arguments.passphrase.passphrase_file.clone(),
        foreground: arguments.foreground,
    })
}

/// Asks for the passphrase, splits the daemon off and waits until the folder is usable.
pub(super) fn perform(mut request: Request) -> Result<ExitCode, Problem> {
    only_root("mount a volume")?;
    let options = &request.options;
    request.documents.registry = os::absolute(options.registry.as_ref().unwrap_or(&request.documents.registry));
    request.documents.trust = os::absolute(options.trust.as_ref().unwrap_or(&request.documents.trust));
    request.passphrase_file = options.passphrase_file.clone().or(request.passphrase_file);
    request.mountpoint = os::mountpoint_path(&request.mountpoint);
    if request.options.remount {
        return remount::run(&request);
    }
    let found = find::devices(&request.sources.devices);
    let ready = found.and_then(|sources| find::prepare_mountpoint(&request).map(|()| sources));
    request.sources = ready.map_err(|problem| find::or_swapped(problem, &request))?;
    find::hides(&request).iter().for_each(|warning| eprintln!("scelle: warning: {}", text::lines(warning)));
    let Obtained { secret, hints } = secret::obtain(request.passphrase_file.as_deref(), secret::Purpose::Open)?;
    if request.foreground {
        logging::to_terminal();
        let mounted = serve::start(&request, &secret).inspect_err(|why| refusal::report(&request, why));
        let mounted = mounted.map_err(|problem| hints.explain(problem))?;
        drop(secret);
        return mounted.serve();
    }
    let system = |error: std::io::Error| Problem::new(Code::Daemon, format!("cannot start a daemon: {error}"));
    match process::fork_daemon().map_err(system)? {
        Side::Command(waiter) => {
            // The daemon has its own.
            drop(secret);
            match waiter.wait() {
                Some(Report { code: 0, .. }) => Ok(ExitCode::Done),
                Some(Report { code, message }) => {
                    let exit = ExitCode::from_byte(code);
                    eprintln!("scelle: {}", text::lines(&message));
                    hints.after(exit).iter().for_each(|hint| eprintln!("  {hint}"));
                    Ok(exit)
                }
                None => Err(Problem::new(Code::DaemonDied, "the daemon ended before the folder was usable")),
            }
        }
        Side::Daemon(notifier) => {
            logging::to_system();
            match serve::start(&request, &secret) {
                Ok(mounted) => {
                    drop(secret);
                    notifier.ready().map_err(system)?;
                    mounted.serve()
                }
                Err(problem) => {
                    drop(secret);
                    refusal::report(&request, &problem);
                    // If this fails, the command is gone, and there is nobody else to tell.
                    let _ = notifier.failed(&Report { code: problem.exit() as u8, message: problem.whole() });
                    Ok(problem.exit())
                }
            }
        }
    }
}
