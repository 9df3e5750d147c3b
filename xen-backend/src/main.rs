//! The command `radclockd`: see `docs/man/radclockd.8.md`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;
use xen_backend::config::{AbsolutePath, Config, DEFAULT_PATH};
use xen_backend::{daemon, keeper, logging, replay};

/// Keeps the host's RADclock and shares it with every guest.
#[derive(Debug, Parser)]
#[command(name = "radclockd", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration file [default: /etc/radclock/radclockd.toml, or built-in settings without one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run without Xen: keep only this machine's own page
    #[arg(long)]
    local: bool,
    /// The directory of the pages and the status socket, instead of paths.run_dir
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check_config: bool,
    /// off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", env = "RADCLOCKD_LOG", default_value = "info", global = true)]
    log_level: LevelFilter,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run recorded traces through the algorithm: a line `counter utc max_error_s` a stamp
    Replay {
        /// A line `Ta Tb Te Tf` a stamp; - is standard input. Of several servers, one a server
        #[arg(required = true)]
        traces: Vec<PathBuf>,
        /// The counter's nominal frequency
        #[arg(long, value_name = "HZ", default_value_t = 1e9)]
        nominal_hz: f64,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("radclockd: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, but none that the error before it already tells.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line.replace('\n', ": ")
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    logging::init(arguments.log_level);
    if let Some(Command::Replay { traces, nominal_hz }) = &arguments.command {
        return replay::run(traces, *nominal_hz);
    }
    let default = PathBuf::from(DEFAULT_PATH);
    let (mut config, source) = match &arguments.config {
        Some(path) => (Config::load(path)?, path.display().to_string()),
        None if default.exists() => (Config::load(&default)?, DEFAULT_PATH.to_owned()),
        None => (Config::example(), format!("built-in settings, as there is no {DEFAULT_PATH}")),
    };
    if arguments.check_config {
        keeper::leap_list(&config.clock.leap_seconds)?;
        println!("{source}: ok");
        return Ok(());
    }
    tracing::info!("configuration: {source}");
    if let Some(run_dir) = arguments.run_dir {
        config.paths.run_dir = AbsolutePath(std::path::absolute(run_dir)?);
    }
    // Rather no daemon than half of one, and systemd starts another: readers go on meanwhile.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(daemon::run(config, arguments.local));
    // A name that is being looked up right now would hold up the end.
    runtime.shutdown_background();
    result
}
