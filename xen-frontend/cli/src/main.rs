//! The `radclock` command: the host's shared clock for a person or a script.
//!
//! What the clock says is the library's business ([`xen_radclock`]); here it is put into words, or JSON.

mod bench;
mod discipline;
mod format;
mod show;
mod watch;

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xen_radclock::{OpenError, PageError, RadClock, ReadError, Status};

/// The host's shared clock, with a bound on its error.
#[derive(Parser)]
#[command(name = "radclock", version, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// The clock's device or file [default: /dev/vmclock0, then /run/radclock/vmclock0]
    #[arg(long, global = true, value_name = "PATH")]
    device: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Print the time with the bound on its error
    Now,
    /// Print what is known of the clock
    Status,
    /// Print a line whenever something about the clock changes that matters
    Watch(watch::Args),
    /// Measure what a reading costs, beside clock_gettime and rdtscp
    Bench(bench::Args),
    /// Keep the system's clock (CLOCK_REALTIME) on the shared clock
    Discipline(discipline::Args),
}

/// The exit status if somebody else adjusts the system's clock.
const CONFLICT: u8 = 3;

/// Why the command did not do what it was asked, with what to do about it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}; {hint}", hint = open_hint(.0))]
    Open(#[from] OpenError),
    #[error("{0}; {hint}", hint = read_hint(.0))]
    Read(#[from] ReadError),
    #[error(transparent)]
    Discipline(#[from] discipline::Error),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

fn open_hint(error: &OpenError) -> &'static str {
    match error {
        OpenError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            "every user may read the clock (mode 0444): check the mode of the file and its folders"
        }
        OpenError::NotFound | OpenError::Io { .. } => {
            "in a guest load the driver (modprobe xen-radclockfront), in Dom0 start radclockd"
        }
        OpenError::Page { source: PageError::CounterId(0xe0), .. } => {
            "this page is for guests' drivers: use /run/radclock/vmclock0"
        }
        OpenError::Page { source: PageError::Magic(0), .. } => "nobody keeps it: start radclockd",
        OpenError::Busy { .. } => "restart radclockd if it stays so",
        _ => "give the clock's device or file with --device",
    }
}

fn read_hint(error: &ReadError) -> &'static str {
    match error {
        ReadError::Status(Status::Initializing | Status::Unknown) => {
            "wait a minute, then look at radclock-ctl doctor in Dom0"
        }
        ReadError::Status(_) | ReadError::Busy(_) | ReadError::Backwards => {
            "it comes back with the next update; look at radclock-ctl doctor in Dom0 if it does not"
        }
        ReadError::Leap => "it comes back with the next update",
        _ => "whoever keeps this page is not radclockd or another version of it",
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        // The reader of a pipe has seen enough.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("radclock: {failure}");
            let conflict = matches!(&failure, Failure::Discipline(error) if error.is_conflict());
            if conflict { ExitCode::from(CONFLICT) } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Failure> {
    let clock = match &args.device {
        Some(path) => RadClock::open_path(path)?,
        None => RadClock::open()?,
    };
    match &args.command {
        Command::Now => show::now(&clock, args.json)?,
        Command::Status => return show::status(&clock, args.json),
        Command::Watch(watch) => watch::run(&clock, watch, args.json)?,
        Command::Bench(bench) => bench::run(&clock, bench, args.json)?,
        Command::Discipline(discipline) => discipline::run(&clock, discipline)?,
    }
    Ok(ExitCode::SUCCESS)
}
