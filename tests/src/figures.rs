//! The figures: what a reading costs on the build machine and in the lab's domains, and how late an update becomes
//! visible in a guest. They are measured and reported, never judged: inside the lab they are those of an emulation.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};
use lab_agent::Update;
use serde::{Deserialize, Serialize};

use crate::command::{self, Background, expression};
use crate::guest::Guest;
use crate::host::{COMMAND_LIMIT, Host};
use crate::ntp::NtpServer;
use crate::progress::Step;
use crate::{Lab, demo, wait};

/// Fewer batches than usual: a reading takes an emulated processor microseconds.
const BENCH: &str = "radclock bench --json --batches 201";
const UPDATES: usize = 1000;
const SERIES_LIMIT: Duration = Duration::from_secs(300);
const SYNCHRONISATION_LIMIT: Duration = Duration::from_secs(60);

/// Everything, as the JSON file has it.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// The build machine's load average of the last minute when measuring began, before anything of it ran.
    pub load_average: f64,
    /// By place: `native`, `dom0`, `pv` and `pvh`.
    pub read_ns: BTreeMap<&'static str, ReadCost>,
    /// By kind of guest.
    pub update_ns: BTreeMap<&'static str, UpdateLatency>,
}

/// What a reading costs, ns: medians of `radclock bench`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReadCost {
    /// The shared clock, its bound included.
    #[serde(rename(deserialize = "now_ns"))]
    pub now: f64,
    /// `clock_gettime(CLOCK_REALTIME)`.
    #[serde(rename(deserialize = "clock_gettime_ns"))]
    pub clock_gettime: f64,
    /// The TSC alone.
    #[serde(rename(deserialize = "rdtscp_ns"))]
    pub rdtscp: Option<f64>,
}

/// How late updates were in a guest, ns after their parameters were computed in Dom0.
#[derive(Debug, Serialize)]
pub struct UpdateLatency {
    /// The quickest.
    pub min: i64,
    /// Half of the updates were not later.
    pub median: i64,
    /// 99 of 100 were not later.
    pub p99: i64,
    /// The latest.
    pub max: i64,
    /// How wrong each of these may be.
    pub bound: u64,
    /// How many updates were published.
    pub published: usize,
    /// How many of them the guest never saw, because the next one came first; they count as visible with that one.
    pub unseen: usize,
}

/// Measures everything and prints it.
pub fn run(lab: &Lab, json: Option<&Path>) -> Result<()> {
    let load_average = load_average()?;
    let mut figures = Figures { load_average, read_ns: BTreeMap::new(), update_ns: BTreeMap::new() };
    figures.read_ns.insert("native", read_natively(lab)?);

    let host = lab.boot()?;
    let guests = demo::synchronise(&host)?;
    let step = Step::begin("Reading the clock in each domain");
    figures.read_ns.insert("dom0", read_cost(&host.run(BENCH)?)?);
    for guest in &guests {
        figures.read_ns.insert(guest.kind().name(), read_cost(&guest.run(BENCH)?)?);
    }
    step.done();
    host.stop_radclockd("TERM")?;
    for guest in &guests {
        let step = Step::begin(format!("Publishing {UPDATES} updates to the guest {}", guest.name()));
        let latency = update_latency(lab, &host, guest, UPDATES, guests.len(), || Ok(()))?;
        figures.update_ns.insert(guest.kind().name(), latency);
        step.done();
    }

    println!("{}\n{}", figures.read_table(), figures.update_table());
    println!("The build machine's load average was {load_average:.1} when this began.");
    if let Some(path) = json {
        fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")?;
    }
    Ok(())
}

fn load_average() -> Result<f64> {
    let load = fs::read_to_string("/proc/loadavg")?;
    load.split(' ').next().and_then(|minute| minute.parse().ok()).context("/proc/loadavg")
}

/// On the build machine, on a page that a daemon without Xen keeps.
fn read_natively(lab: &Lab) -> Result<ReadCost> {
    let step = Step::begin("Reading the clock on this machine");
    let dir = lab.run.path().join("native");
    fs::create_dir(&dir)?;
    let server = NtpServer::start(&dir)?;
    let configuration = dir.join("radclockd.toml");
    let port = server.port();
    fs::write(&configuration, format!("[server]\naddress = \"127.0.0.1\"\nport = {port}\npoll = 1\n"))?;
    let log = dir.join("radclockd.log");
    let program = |name: &str| Ok::<_, anyhow::Error>(lab.payload.program(name)?.display().to_string());
    let path = |path: &Path| path.display().to_string();
    let arguments =
        ["--local".to_owned(), "--config".to_owned(), path(&configuration), "--run-dir".to_owned(), path(&dir)];
    let daemon = expression(&program("radclockd")?, arguments).stderr_to_stdout().stdout_path(&log);
    let daemon = Background::start("radclockd", &daemon)?;
    let arguments = ["bench", "--json", "--device"].map(str::to_owned).into_iter().chain([path(&dir.join("vmclock0"))]);
    let bench = expression(&program("radclock")?, arguments);
    let cost = wait::until("radclockd on this machine", SYNCHRONISATION_LIMIT, || {
        ensure!(daemon.ended()?.is_none(), "radclockd ended:\n{}", fs::read_to_string(&log)?);
        let output = command::output("radclock bench", &bench, COMMAND_LIMIT)?;
        if output.status.success() { read_cost(&String::from_utf8(output.stdout)?).map(Some) } else { Ok(None) }
    })?;
    step.done();
    Ok(cost)
}

fn read_cost(json: &str) -> Result<ReadCost> {
    serde_json::from_str(json).with_context(|| format!("radclock bench: {json:?}"))
}

/// One series of so many updates to all guests, watched in one of them. So many guests get it, and what is to go on meanwhile
/// is begun when they are offered the clock.
pub(crate) fn update_latency(
    lab: &Lab,
    host: &Host,
    guest: &Guest,
    updates: usize,
    guests: usize,
    begin: impl FnOnce() -> Result<()>,
) -> Result<UpdateLatency> {
    let seen = lab.run.path().join(format!("updates-{}", guest.name()));
    let watch = format!("lab-probe updates {}", SERIES_LIMIT.as_secs());
    let watcher = guest.expression(&watch)?.stderr_to_stdout().stdout_path(&seen);
    let watcher = Background::start("ssh", &watcher)?;
    let lines = || Ok::<_, anyhow::Error>(fs::read_to_string(&seen)?.lines().map(str::to_owned).collect::<Vec<_>>());
    wait::until("the guest to watch its page", COMMAND_LIMIT, || Ok((!lines()?.is_empty()).then_some(())))?;
    let file = "/run/series";
    host.run(&format!("rm -f {file}"))?;
    // As radclockd's unit does.
    let publish = format!("nice -n -10 lab-publisher series {updates} {guests} --after {file}");
    let publisher = Background::start("ssh", &host.expression(&publish).stdout_capture().stderr_capture())?;
    begin()?;
    host.run(&format!("touch {file}"))?;
    let published = wait::until("the updates to be published", SERIES_LIMIT, || publisher.ended())?;
    let published = command::success(&publish, &published)?;
    let published = published.lines().map(str::parse).collect::<Result<Vec<u64>, _>>().context("lab-publisher")?;
    let output = wait::until("the guest to have seen the updates", SERIES_LIMIT, || watcher.ended())?;
    let lines = lines()?;
    ensure!(output.status.success(), "{watch} failed:\n{}", lines.join("\n"));
    let seen = lines[1..].iter().map(|line| serde_json::from_str(line).with_context(|| line.clone()));
    UpdateLatency::new(&published, &seen.collect::<Result<Vec<Update>>>()?)
}

impl UpdateLatency {
    /// From the instants of publication and what was seen of them, both in order.
    fn new(published: &[u64], seen: &[Update]) -> Result<UpdateLatency> {
        let mut latencies = Vec::new();
        let mut unseen = 0;
        for instant in published {
            let first = &seen[seen.partition_point(|update| update.published < *instant)..];
            let first = first.first().context("the guest did not see the last update")?;
            latencies.push(first.seen as i64 - *instant as i64);
            unseen += usize::from(first.published != *instant);
        }
        ensure!(!latencies.is_empty(), "nothing was published");
        latencies.sort_unstable();
        // The smallest of which at least so many are not larger.
        let quantile = |percent: usize| latencies[(latencies.len() * percent).div_ceil(100) - 1];
        Ok(UpdateLatency {
            min: latencies[0],
            median: quantile(50),
            p99: quantile(99),
            max: quantile(100),
            bound: seen.iter().map(|update| update.bound).max().unwrap_or_default(),
            published: published.len(),
            unseen,
        })
    }
}

impl Figures {
    fn read_table(&self) -> Table {
        let mut table = table(["one reading, ns", "now(), with bound", "clock_gettime", "rdtscp"]);
        for (place, cost) in &self.read_ns {
            let rdtscp = cost.rdtscp.map_or_else(|| "-".to_owned(), |rdtscp| format!("{rdtscp:.1}"));
            add(&mut table, place, [format!("{:.1}", cost.now), format!("{:.1}", cost.clock_gettime), rdtscp]);
        }
        table
    }

    fn update_table(&self) -> Table {
        let mut table = table(["update visible after, µs", "best", "median", "99 %", "worst", "±", "unseen"]);
        let micros = |nanos: f64| format!("{:.1}", nanos / 1e3);
        for (guest, latency) in &self.update_ns {
            let UpdateLatency { min, median, p99, max, bound, published, unseen } = *latency;
            let [min, median, p99, max] = [min, median, p99, max].map(|nanos| micros(nanos as f64));
            add(&mut table, guest, [min, median, p99, max, micros(bound as f64), format!("{unseen} of {published}")]);
        }
        table
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table
}

fn add<const N: usize>(table: &mut Table, name: &str, figures: [String; N]) {
    let figures = figures.map(|figure| Cell::new(figure).set_alignment(CellAlignment::Right));
    table.add_row([Cell::new(name)].into_iter().chain(figures));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_that_was_not_seen_is_as_late_as_the_next() {
        let published: Vec<u64> = (1..=200).map(|number| 1000 * number).collect();
        let see = |(index, published): (u64, &u64)| Update { published: *published, seen: published + index, bound: 7 };
        let mut seen: Vec<Update> = (1..).zip(&published).map(see).collect();
        let latency = UpdateLatency::new(&published, &seen).expect("200 updates");
        assert_eq!((latency.min, latency.median, latency.p99, latency.max), (1, 100, 198, 200));
        assert_eq!((latency.published, latency.unseen, latency.bound), (200, 0, 7));

        seen.remove(0);
        let latency = UpdateLatency::new(&published, &seen).expect("199 of 200 updates");
        assert_eq!((latency.min, latency.max, latency.unseen), (2, 1002, 1));

        seen.pop();
        assert!(UpdateLatency::new(&published, &seen).is_err());
    }
}
