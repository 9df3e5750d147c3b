//! `radclock-ctl`: the administrator's view of the clock that a Xen host shares with its guests. See
//! `docs/man/radclock-ctl.8.md`.
//!
//! What the daemon says of itself comes over its status socket ([`daemon`]); what there is without it comes from
//! XenStore ([`store`]); [`guests`] puts both together. [`doctor`] looks for what is missing, [`counters`] at what Xen counts. Nothing is written to
//! XenStore here: attaching and detaching is the daemon's work.

mod counters;
mod daemon;
mod doctor;
mod guests;
mod output;
mod servers;
mod store;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use radclock::disruption::Disruption;
use radclock::report::{DEFAULT_SOCKET, Request};

use crate::daemon::Daemon;
use crate::guests::{Guest, Host};

/// Shows and steers how a Xen host shares its clock with its guests.
#[derive(Debug, Parser)]
#[command(name = "radclock-ctl", version)]
struct Arguments {
    /// The status socket of radclockd
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, global = true)]
    socket: PathBuf,
    /// Write JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All guests: kind, state of the clock, age of its parameters
    List,
    /// All there is to know of one guest
    Show {
        /// Its number, name or UUID
        domain: String,
    },
    /// The list, again after each change
    Watch,
    /// Offer the clock to a guest, whatever the configuration says
    Attach {
        /// Its number, name or UUID
        domain: String,
    },
    /// Take the clock away from a guest until it is attached again or gone
    Detach {
        /// Its number, name or UUID
        domain: String,
    },
    /// Warn a guest of a disruption: of one within a day, unless told otherwise
    PrepareMigration {
        /// Its number, name or UUID
        domain: String,
        /// Of one within an hour
        #[arg(long, conflicts_with = "cancel")]
        imminent: bool,
        /// Take the warning back
        #[arg(long)]
        cancel: bool,
    },
    /// The servers and hardware clocks that the clock follows, and what is thought of each
    Servers,
    /// The host's counters: their rates, what reading them costs, and the steps of Xen's system time
    Counters {
        /// How long to look, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
    },
    /// Look for what is missing on this host or in this guest, and say what to do
    Doctor,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("radclock-ctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let daemon = Daemon::new(&arguments.socket);
    let json = arguments.json;
    match &arguments.command {
        Command::List => {
            let host = Host::look(&daemon)?;
            warn_without_daemon(&host);
            output::print(&if json { output::json(&host)? } else { output::list(&host) })?;
        }
        Command::Show { domain } => {
            let host = Host::look(&daemon)?;
            warn_without_daemon(&host);
            let guest = host.find(domain)?;
            let nodes = store::nodes(guest.domid).unwrap_or_default();
            output::print(&if json { output::guest_json(guest, &nodes)? } else { output::guest(guest, &nodes) })?;
        }
        Command::Watch => daemon.watch(|status| {
            // Kinds come from XenStore; without it they are unknown, which is no reason to stop.
            let host = Host::new(Some(status), store::domains().unwrap_or_default(), None);
            output::print(&if json { output::json_line(&host)? } else { output::frame(&host) })
        })?,
        Command::Attach { domain } => change(&daemon, domain, true, json)?,
        Command::Detach { domain } => change(&daemon, domain, false, json)?,
        Command::PrepareMigration { domain, imminent, cancel } => {
            let warning = match (imminent, cancel) {
                (_, true) => None,
                (true, false) => Some(Disruption::Imminent),
                (false, false) => Some(Disruption::Soon),
            };
            warn(&daemon, domain, warning, json)?;
        }
        Command::Servers => {
            let status = daemon.status()?;
            output::print(&if json { output::json(&status.servers)? } else { servers::table(&status) })?;
        }
        Command::Counters { seconds } => {
            let counters = counters::look(Duration::from_secs(*seconds))?;
            output::print(&if json { output::json(&counters)? } else { counters::table(&counters) })?;
        }
        Command::Doctor => {
            let diagnosis = doctor::examine(&daemon);
            output::print(&if json { output::json(&diagnosis)? } else { diagnosis.to_string() })?;
            return Ok(if diagnosis.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn warn_without_daemon(host: &Host) {
    if let Some(problem) = &host.daemon_problem {
        eprintln!("radclock-ctl: {problem}; this is what XenStore says");
    }
}

fn change(daemon: &Daemon, domain: &str, attach: bool, json: bool) -> anyhow::Result<()> {
    let guest = find(daemon, domain)?;
    let domid = guest.domid;
    order(daemon, &guest, &if attach { Request::Attach { domid } } else { Request::Detach { domid } })?;
    output::print(&if json {
        output::json_line(&serde_json::json!({ "domid": domid, "name": guest.name, "attached": attach }))?
    } else {
        format!("domain {domid} ({}) {}\n", guest.name, if attach { "attached" } else { "detached" })
    })
}

fn warn(daemon: &Daemon, domain: &str, warning: Option<Disruption>, json: bool) -> anyhow::Result<()> {
    let guest = find(daemon, domain)?;
    let domid = guest.domid;
    order(daemon, &guest, &Request::Warn { domid, warning })?;
    output::print(&if json {
        output::json_line(&serde_json::json!({ "domid": domid, "name": guest.name, "warning": warning }))?
    } else {
        let told = match warning {
            Some(Disruption::Soon) => "warned: a disruption within a day",
            Some(Disruption::Imminent) => "warned: a disruption within an hour",
            None => "no longer warned",
        };
        format!("domain {domid} ({}) {told}\n", guest.name)
    })
}

fn find(daemon: &Daemon, domain: &str) -> anyhow::Result<Guest> {
    let status = daemon.status()?;
    if !status.xen {
        bail!("radclockd runs with --local: there are no guests");
    }
    let host = Host::new(Some(status), store::domains().unwrap_or_default(), None);
    host.find(domain).cloned()
}

fn order(daemon: &Daemon, guest: &Guest, request: &Request) -> anyhow::Result<()> {
    daemon.order(request).with_context(|| format!("domain {} ({})", guest.domid, guest.name))
}
