//! `lab`: the lab's command line. `ci/lab`, `ci/demo` and `ci/test` are its faces.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use lab::cache::Cache;
use lab::host::Host;
use lab::payload::Parts;
use lab::progress::Step;
use lab::scenarios::{self, SCENARIOS};
use lab::{Lab, demo, experiments, figures, packages, runner, soak, wait, xen};

/// Real Xen hosts in QEMU.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show one clock in Dom0, a PV and a PVH guest, and what it is worth.
    Demo {
        /// Write what the table says to this file, too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Run an experiment and write its report; without NAME, list the experiments.
    Experiment {
        name: Option<String>,
        /// Write report.md, its plots and figures.json into this folder [default: experiments/NAME where cargo builds].
        #[arg(long, value_name = "DIR", requires = "name")]
        out: Option<PathBuf>,
        /// A run of a few minutes.
        #[arg(long, requires = "name")]
        quick: bool,
        /// Use the traces in this folder (*.stamps), too; for the experiment `accuracy`. May be given several times.
        #[arg(long, value_name = "DIR", requires = "name")]
        traces: Vec<PathBuf>,
    },
    /// Measure what a reading costs, and how late an update is visible in a guest.
    Figures {
        /// Write the figures to this file, too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Install the Debian packages that the lab and the tests need.
    Install,
    /// Build the hypervisor with our patches, and print where it is.
    BuildXen {
        /// The release of Xen: 4.17 or 4.20.
        #[arg(default_value = xen::RELEASE)]
        release: String,
        /// Only see whether the patches apply, with patch and with git am.
        #[arg(long, conflicts_with = "flask")]
        check: bool,
        /// With XSM and FLASK, whose hook is one of the patches.
        #[arg(long)]
        flask: bool,
    },
    /// Name the scenarios.
    List,
    /// Run scenarios: all, or those whose names contain one of NAME.
    Run {
        name: Vec<String>,
        /// Let so many hosts run at a time, with a CPU of this machine each. Scenarios whose figures would suffer still
        /// run alone.
        #[arg(long, value_name = "N", default_value_t = NonZero::<usize>::MIN)]
        hosts: NonZero<usize>,
        #[command(flatten)]
        setup: Setup,
    },
    /// Let guests come and go, servers fail and daemons die, at random; then print wrong readings, crashes and leaks.
    Soak {
        /// For so long.
        #[arg(value_parser = hours)]
        hours: Duration,
        /// The same seed makes the same events.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Boot the demo's host, with its guests, and give a shell in its Dom0.
    Shell {
        #[command(flatten)]
        setup: Setup,
        /// Give no shell; keep the host until this process is interrupted.
        #[arg(long)]
        stay: bool,
        /// Start neither radclockd nor guests.
        #[arg(long)]
        idle: bool,
        /// Boot two hosts, and give the shell in the first one's Dom0; guests migrate with `migrate NAME`.
        #[arg(long)]
        two: bool,
    },
}

/// What hosts are made of.
#[derive(clap::Args)]
struct Setup {
    /// Only Xen, Dom0 and guests: build nothing of the shared clock.
    #[arg(long)]
    bare: bool,
    /// The hypervisor: Debian's, or the one that build-xen builds.
    #[arg(long, value_enum, default_value_t = Hypervisor::Debian)]
    xen: Hypervisor,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hypervisor {
    Debian,
    Patched,
}

impl Setup {
    fn parts(&self) -> Parts {
        if self.bare { Parts::Bare } else { Parts::All }
    }

    fn lab(&self) -> Result<Lab> {
        let mut lab = Lab::prepare(self.parts())?;
        if self.xen == Hypervisor::Patched {
            lab.use_patched_xen()?;
        }
        Ok(lab)
    }
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
        Command::Demo { json } => demo::run(&Lab::prepare(Parts::All)?, json.as_deref()),
        Command::Experiment { name, out, quick, traces } => {
            experiments::run(name.as_deref(), out.as_deref(), &experiments::Options { quick, traces })
        }
        Command::Figures { json } => figures::run(&Lab::prepare(Parts::All)?, json.as_deref()),
        Command::BuildXen { release, check: true, .. } => xen::check(&Cache::open()?, &release),
        Command::BuildXen { release, check: false, flask } => {
            let build = if flask { xen::build_with_flask } else { xen::build };
            println!("{}", build(&Cache::open()?, &release)?.display());
            Ok(())
        }
        Command::Install => packages::install(),
        Command::List => {
            for scenario in SCENARIOS {
                println!("{}", scenario.name);
            }
            Ok(())
        }
        Command::Run { name, hosts, setup } => run_scenarios(&name, &setup, hosts.get()),
        Command::Soak { hours, seed } => soak::run(&Lab::prepare(Parts::All)?, hours, seed),
        Command::Shell { setup, stay, idle, two: false } => shell(&setup, stay, idle),
        Command::Shell { setup, stay, idle, two: true } => shell_of_two(&setup, stay, idle),
    }
}

fn hours(text: &str) -> Result<Duration, String> {
    let hours = text.parse::<f64>().map_err(|_| "not a number of hours".to_owned())?;
    Duration::try_from_secs_f64(hours * 3600.0).map_err(|error| error.to_string())
}

fn run_scenarios(names: &[String], setup: &Setup, hosts: usize) -> Result<()> {
    let chosen = scenarios::choose(names);
    if chosen.is_empty() {
        bail!("no scenario is called that; `list` names them");
    }
    runner::run(&setup.lab()?, &chosen, hosts)
}

fn shell(setup: &Setup, stay: bool, idle: bool) -> Result<()> {
    let lab = setup.lab()?;
    let host = lab.boot()?;
    match setup.parts() {
        _ if idle => {}
        Parts::All => drop(demo::synchronise(&host)?),
        Parts::Bare => start_guests(&host)?,
    }
    describe("Dom0:     ", &host);
    if stay { stay_until_interrupted() } else { host.shell() }
}

fn shell_of_two(setup: &Setup, stay: bool, idle: bool) -> Result<()> {
    let lab = setup.lab()?;
    let pair = lab.boot_pair()?;
    match setup.parts() {
        _ if idle => {}
        Parts::All => {
            pair.second.start_radclockd()?;
            demo::synchronise(&pair.first)?;
            pair.second.await_synchronized()?;
        }
        Parts::Bare => start_guests(&pair.first)?,
    }
    describe("1st Dom0: ", &pair.first);
    describe("2nd Dom0: ", &pair.second);
    eprintln!("           to the other host, in either: migrate pvh");
    if stay { stay_until_interrupted() } else { pair.first.shell() }
}

fn start_guests(host: &Host) -> Result<()> {
    let step = Step::begin("Starting a PV and a PVH guest");
    for (name, kind) in demo::GUESTS {
        host.create(name, kind)?.await_boot()?;
    }
    step.done();
    Ok(())
}

fn describe(title: &str, host: &Host) {
    eprintln!("{title} ssh -F {} dom0", host.ssh_config().display());
    eprintln!("           a guest's command: guest pvh 'COMMAND'; the NTP server: 10.0.2.2 port {}", host.ntp_port());
    eprintln!("           console: {}", host.ssh_config().with_file_name("console.log").display());
}

fn stay_until_interrupted() -> Result<()> {
    eprintln!("Ctrl-C ends it.");
    while wait::check().is_ok() {
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
