//! `lab`: the lab's command line. `ci/lab`, `ci/demo` and `ci/test` are its faces.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::artefacts::Artefacts;
use lab::cache::Cache;
use lab::guest::Kind;
use lab::host::Host;
use lab::payload::{Parts, Payload};
use lab::wait;

/// Real Xen hosts in QEMU.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a host with a PV and a PVH guest, and give a shell in its Dom0.
    Shell {
        /// Only Xen, Dom0 and guests: build nothing of the shared clock.
        #[arg(long)]
        bare: bool,
        /// Give no shell; keep the host until this process is interrupted.
        #[arg(long)]
        stay: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match wait::catch_signals().and_then(|()| run(arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Shell { bare, stay } => shell(if bare { Parts::Bare } else { Parts::All }, stay),
    }
}

fn shell(parts: Parts, stay: bool) -> Result<()> {
    let cache = Cache::open()?;
    let artefacts = Artefacts::get(&cache)?;
    let payload = Payload::build(&artefacts, parts)?;
    let run = cache.run_dir()?;
    let host = Host::boot(&artefacts, &payload, &run)?;
    for (name, kind) in [("pv", Kind::Pv), ("pvh", Kind::Pvh)] {
        let step = lab::progress::Step::begin(format!("Starting the guest {name}"));
        host.create(name, kind)?.run("true")?;
        step.done();
    }
    eprintln!("Dom0:      ssh -F {} dom0", host.ssh_config().display());
    eprintln!("           a guest's command: guest pvh 'COMMAND'; the NTP server: 10.0.2.2 port {}", host.ntp_port());
    eprintln!("Console:   {}", host.ssh_config().with_file_name("console.log").display());
    if stay {
        eprintln!("Ctrl-C ends it.");
        while wait::check().is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        return Ok(());
    }
    host.shell()
}
