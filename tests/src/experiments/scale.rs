//! What a guest costs the host: the daemon's processor time and memory, and how long an update takes to all guests, by the
//! number of guests.
//!
//! The guests are one that was booted and saved, restored again and again: on the one emulated processor a restore is
//! many times cheaper than a boot. They are PV, for a PVH guest in emulation is never idle, and they are paused except
//! where it matters that they run.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab_agent::Arrival;
use radclock::xenbus;
use serde::Serialize;
use simulator::score::percentile;

use super::Options;
use crate::command::{self, Background};
use crate::guest::{Guest, Kind};
use crate::host::{COMMAND_LIMIT, Host};
use crate::payload::Parts;
use crate::plot::{Axis, Mark, Plot, Scale, Series};
use crate::progress::Step;
use crate::report::{Report, Table, figure};
use crate::{Lab, wait};

const COUNTS: &[usize] = &[1, 8, 16, 32];
const COUNTS_QUICK: &[usize] = &[1, 3, 5];
/// For so long processor time is looked at every second.
const COUNTED: Duration = Duration::from_secs(30);
/// Updates whose publication is measured, and ms from one to the next.
const FAST: (usize, u32) = (300, 20);
/// Updates whose arrival is measured. Slower than a guest's probe looks.
const SLOW: (usize, u32) = (30, 700);
const SERIES_LIMIT: Duration = Duration::from_secs(300);
/// A host of so many guests is what the measured slopes are followed to.
const MANY: usize = 1000;
/// Numbers of domains that the host does not come to.
const FIRST_MADE_UP: usize = 20_001;
const SAVED: &str = "/run/saved";
/// For a build machine that does other things too.
const CONNECT_LIMIT: Duration = Duration::from_secs(300);
const FIFO: &str = "/run/fanout";
const ARRIVALS: &str = "/run/arrivals";
const ARRIVALS_LIMIT: u64 = 7200;

/// What so many guests cost.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Cost {
    guests: usize,
    /// radclockd's processor time, ms a second, in half of the seconds: without its looks at the domains.
    cpu_ms_per_s: f64,
    /// xenstored's meanwhile.
    xenstored_ms_per_s: f64,
    /// radclockd's own memory, KiB.
    memory_kib: f64,
    /// Its descriptors.
    files: f64,
    /// From an update's first page to its last guest's event, µs, while no guest runs.
    out: Quantiles,
    /// The same while all run, on the one processor.
    out_running: Quantiles,
    /// From the publication until the first guest's driver has taken the update over, µs.
    first: Quantiles,
    /// The same of the last guest.
    last: Quantiles,
}

/// Of a series, µs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Quantiles {
    median: f64,
    p99: f64,
}

/// A straight line through the costs.
#[derive(Clone, Copy, Debug, Serialize)]
struct Slope {
    a_guest: f64,
    without: f64,
}

#[derive(Serialize)]
struct Results {
    costs: Vec<Cost>,
    xenstored_ms_per_s: Slope,
    memory_kib: Slope,
    files: Slope,
    out_median_us: Slope,
    /// What looking at [`MANY`] domains costs that are not offered the clock.
    many_domains: Usage,
    /// Processor time of the guests together, ms a second, all of them running and nothing to do, by their number.
    idle_guests: Vec<(usize, f64)>,
    /// The part of the time that it wanted which the emulated processor had of the build machine, in the mean.
    had: f64,
}

/// Processor times, ms a second.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Usage {
    /// Of radclockd in half of the seconds: what it does every second, whenever the build machine holds the emulation up.
    radclockd: f64,
    /// Of radclockd in the mean, less what the build machine gave to others, which Dom0 takes for time of whichever process
    /// was running.
    mean: f64,
    /// Of xenstored, in the same way.
    xenstored: f64,
    /// See [`Results::had`].
    had: f64,
}

/// Runs it.
pub fn run(options: &Options) -> Result<Report> {
    let counts = if options.quick { COUNTS_QUICK } else { COUNTS };
    let most = counts.iter().copied().max().unwrap_or_default();
    let lab = Lab::prepare(Parts::All)?;
    let host = lab.boot_large()?;
    host.run("echo 4096 > /sys/module/xen_gntalloc/parameters/limit")?;
    let many_domains = with_many_domains(&host)?;

    host.start_radclockd()?;
    host.await_synchronized()?;
    let step = Step::begin("Booting the guest that the others are copies of");
    let original = host.create_small("original", Kind::Pv)?;
    original.await_synchronized()?;
    original.save(SAVED)?;
    step.done();
    let mut guests: Vec<Guest> = Vec::new();
    let mut costs = BTreeMap::new();
    let mut had = vec![many_domains.had];
    for count in counts {
        restore_up_to(&host, *count, &mut guests)?;
        let (cost, usage) = count_cost(&host, *count)?;
        costs.insert(*count, cost);
        had.push(usage.had);
    }

    host.stop_radclockd("TERM")?;
    all(&host, "unpause", &guests)?;
    let mut publisher = Publisher::start(&host, most, lab.run.path().join("fanout"))?;
    let step = Step::begin("Starting a probe in each guest");
    for guest in &guests {
        guest.run(&format!("lab-probe arrivals {ARRIVALS_LIMIT} > {ARRIVALS} 2>&1 &"))?;
    }
    step.done();
    let mut idle_guests = Vec::new();
    let mut slow: Vec<(usize, Vec<u64>)> = Vec::new();
    let mut arrivals: Vec<Vec<Arrival>> = Vec::new();
    for count in counts.iter().rev() {
        while guests.len() > *count {
            let guest = guests.pop().context("fewer guests than there were")?;
            arrivals.push(arrivals_in(&guest)?);
            guest.destroy()?;
        }
        let step = Step::begin(format!("Publishing to {count} guests"));
        let cost = costs.get_mut(count).context("it was measured")?;
        idle_guests.push((*count, guests_usage(&host)?));
        let series = publisher.series(SLOW)?;
        cost.out_running = Quantiles::of(series.iter().map(|(_, took)| *took));
        slow.push((*count, series.into_iter().map(|(published, _)| published).collect()));
        all(&host, "pause", &guests)?;
        cost.out = Quantiles::of(publisher.series(FAST)?.into_iter().map(|(_, took)| took));
        all(&host, "unpause", &guests)?;
        step.done();
    }
    for guest in &guests {
        arrivals.push(arrivals_in(guest)?);
    }
    publisher.end()?;
    for (count, published) in slow {
        let (first, last) = first_and_last(count, &published, &arrivals)?;
        let cost = costs.get_mut(&count).context("it was measured")?;
        (cost.first, cost.last) = (first, last);
    }
    let had = had.iter().sum::<f64>() / had.len() as f64;
    report(costs.into_values().collect(), many_domains, idle_guests, had)
}

/// What radclockd does on a host of [`MANY`] domains of which none is to have the clock. They exist in XenStore only.
fn with_many_domains(host: &Host) -> Result<Usage> {
    let step = Step::begin(format!("Measuring with {MANY} domains in XenStore"));
    let made_up: Vec<String> =
        (FIRST_MADE_UP..FIRST_MADE_UP + MANY).map(|domid| format!("/local/domain/{domid}")).collect();
    for some in made_up.chunks(100) {
        let nodes: Vec<String> = some.iter().map(|path| format!("{path}/vm /vm/none {path}/name none")).collect();
        host.run(&format!("xenstore-write {}", nodes.join(" ")))?;
    }
    host.start_radclockd_with(&host.configuration().replace("\"all\"", "\"none\""))?;
    host.await_synchronized()?;
    wait::until("radclockd to know the domains", COMMAND_LIMIT, || {
        let list = host.run("radclock-ctl --json list")?;
        Ok((list.matches("\"none\"").count() >= MANY).then_some(()))
    })?;
    let usage = usage(host)?;
    host.stop_radclockd("TERM")?;
    for some in made_up.chunks(100) {
        host.run(&format!("xenstore-rm {}", some.join(" ")))?;
    }
    step.done();
    Ok(usage)
}

/// Restores guests until there are so many, each of them paused once it has the clock.
fn restore_up_to<'host>(host: &'host Host, count: usize, guests: &mut Vec<Guest<'host>>) -> Result<()> {
    let step = Step::begin(format!("Restoring guests up to {count}"));
    while guests.len() < count {
        let name = format!("guest{}", guests.len() + 1);
        step.detail(&name);
        let guest = host.restore_copy(&name, Kind::Pv, "original", SAVED)?;
        let state = xenbus::backend_dir(guest.domid()?) + "/" + xenbus::node::STATE;
        let connected = xenbus::XenbusState::Connected.number();
        let shell =
            format!("until [ \"$(xenstore-read {state})\" = {connected} ]; do sleep 0.1; done; xl pause {name}");
        command::success(&shell, &host.output(&shell, CONNECT_LIMIT)?)?;
        guests.push(guest);
    }
    step.done();
    Ok(())
}

fn all(host: &Host, action: &str, guests: &[Guest]) -> Result<()> {
    let names: Vec<&str> = guests.iter().map(Guest::name).collect();
    let shell = format!("for name in {}; do xl {action} $name || exit; done", names.join(" "));
    command::success(&shell, &host.output(&shell, SERIES_LIMIT)?).map(drop)
}

fn count_cost(host: &Host, guests: usize) -> Result<(Cost, Usage)> {
    let step = Step::begin(format!("Measuring radclockd with {guests}"));
    let list = host.run("radclock-ctl --json list")?;
    let connected = list.matches("\"Connected\"").count();
    ensure!(connected >= guests, "of {guests} guests not all are connected:\n{list}");
    let usage = usage(host)?;
    let pid = host.radclockd_pid()?;
    let status = host.run(&format!("cat /proc/{pid}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let files = host.run(&format!("ls /proc/{pid}/fd | wc -l"))?.trim().parse()?;
    step.done();
    let cost = Cost {
        guests,
        cpu_ms_per_s: usage.radclockd,
        xenstored_ms_per_s: usage.xenstored,
        memory_kib: memory.trim().trim_end_matches(" kB").parse()?,
        files,
        ..Cost::default()
    };
    Ok((cost, usage))
}

/// Looks at the processor times of radclockd and xenstored every second.
fn usage(host: &Host) -> Result<Usage> {
    let seconds = COUNTED.as_secs();
    let shell = format!(
        "total() {{ sum=0; for file in /proc/$1/task/*/schedstat; do read ran rest < $file && sum=$((sum + ran)); done; }}
         radclockd=$(pidof radclockd); xenstored=$(pidof xenstored)
         for second in $(seq 0 {seconds}); do
             total $radclockd; ours=$sum; total $xenstored; read uptime rest < /proc/uptime
             echo $uptime $ours $sum; sleep 1
         done"
    );
    let (ran, waited) = emulator(host)?;
    let looks = host.run(&shell)?;
    let (ran_then, waited_then) = emulator(host)?;
    let had = (ran_then - ran) / (ran_then - ran + waited_then - waited);
    Usage::new(&looks, had)
}

impl Usage {
    /// From lines of uptime, s, and the processor times of radclockd and xenstored, ns.
    fn new(looks: &str, had: f64) -> Result<Usage> {
        let parse = |line: &str| {
            let numbers =
                line.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>().with_context(|| line.to_owned())?;
            <[f64; 3]>::try_from(numbers).map_err(|_| anyhow::anyhow!("not three numbers: {line}"))
        };
        let looks = looks.lines().map(parse).collect::<Result<Vec<_>>>()?;
        let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
            anyhow::bail!("no look at processor times")
        };
        let rate =
            |from: &[f64; 3], to: &[f64; 3], process: usize| (to[process] - from[process]) / 1e6 / (to[0] - from[0]);
        let each = looks.windows(2).map(|pair| rate(&pair[0], &pair[1], 1));
        let [mean, xenstored] = [1, 2].map(|process| rate(first, last, process) * had);
        Ok(Usage { radclockd: Quantiles::of(each).median, mean, xenstored, had })
    }
}

/// How long the emulator ran, and waited for a processor of the build machine, ns.
fn emulator(host: &Host) -> Result<(f64, f64)> {
    let mut text = String::new();
    for task in fs::read_dir(format!("/proc/{}/task", host.qemu_pid()))? {
        text += &fs::read_to_string(task?.path().join("schedstat"))?;
    }
    scheduled(&text)
}

/// Sums of lines of `schedstat`: time on a processor and time waited for one, ns.
fn scheduled(text: &str) -> Result<(f64, f64)> {
    let mut sums = (0.0, 0.0);
    for line in text.lines() {
        let mut words = line.split(' ').map(str::parse::<f64>);
        let (Some(Ok(ran)), Some(Ok(waited))) = (words.next(), words.next()) else {
            anyhow::bail!("schedstat: {line}")
        };
        sums = (sums.0 + ran, sums.1 + waited);
    }
    Ok(sums)
}

/// What all guests use of the processor together, ms a second, less what the build machine gave to others.
fn guests_usage(host: &Host) -> Result<f64> {
    let look = || {
        let list = host.run("xl list")?;
        let times = list.lines().skip(1).filter(|line| !line.starts_with("Domain-0 "));
        let times = times.map(|line| line.split_whitespace().last().unwrap_or_default().parse::<f64>());
        let seconds = times.sum::<Result<f64, _>>().with_context(|| list.clone())?;
        anyhow::Ok((Instant::now(), seconds, emulator(host)?))
    };
    let (start, before, (ran, waited)) = look()?;
    wait::pass(COUNTED)?;
    let (end, after, (ran_then, waited_then)) = look()?;
    let (ran, waited) = (ran_then - ran, waited_then - waited);
    Ok((after - before) * 1e3 * ran / (ran + waited) / (end - start).as_secs_f64())
}

/// radclockd's code that publishes to all guests, on demand.
struct Publisher<'host> {
    host: &'host Host,
    process: Background,
    output: PathBuf,
    /// Lines that were read.
    read: usize,
}

impl<'host> Publisher<'host> {
    fn start(host: &'host Host, guests: usize, output: PathBuf) -> Result<Publisher<'host>> {
        let step = Step::begin("Connecting the guests to lab-publisher");
        let shell = format!("mkfifo {FIFO} && exec lab-publisher fanout {guests} {FIFO}");
        let process = Background::start("ssh", &host.expression(&shell).stderr_to_stdout().stdout_path(&output))?;
        let mut publisher = Publisher { host, process, output, read: 0 };
        publisher.lines_until("connected")?;
        step.done();
        Ok(publisher)
    }

    /// Publishes updates: instants of publication, and how long each took, µs.
    fn series(&mut self, (updates, period): (usize, u32)) -> Result<Vec<(u64, f64)>> {
        self.host.run(&format!("echo {updates} {period} > {FIFO}"))?;
        let lines = self.lines_until("done")?;
        ensure!(lines.len() == updates, "lab-publisher published {} of {updates} updates", lines.len());
        let parse = |line: &String| {
            let (published, took) = line.split_once(' ').with_context(|| line.clone())?;
            anyhow::Ok((published.parse()?, took.parse::<f64>()? / 1e3))
        };
        lines.iter().map(parse).collect()
    }

    fn lines_until(&mut self, last: &str) -> Result<Vec<String>> {
        let lines = wait::until("lab-publisher", SERIES_LIMIT, || {
            let text = fs::read_to_string(&self.output)?;
            let lines: Vec<String> = text.lines().skip(self.read).map(str::to_owned).collect();
            if lines.last().is_some_and(|line| line == last) {
                return Ok(Some(lines));
            }
            ensure!(self.process.ended()?.is_none(), "lab-publisher ended:\n{text}");
            Ok(None)
        })?;
        self.read += lines.len();
        Ok(lines[..lines.len() - 1].to_vec())
    }

    fn end(self) -> Result<()> {
        self.host.run(&format!("echo end > {FIFO}"))?;
        wait::until("lab-publisher to end", COMMAND_LIMIT, || self.process.ended()).map(drop)
    }
}

fn arrivals_in(guest: &Guest) -> Result<Vec<Arrival>> {
    let text = guest.run(&format!("cat {ARRIVALS}"))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// How late the first and the last guest took updates over. An update that a guest never saw counts as taken over with
/// the next one.
fn first_and_last(guests: usize, published: &[u64], arrivals: &[Vec<Arrival>]) -> Result<(Quantiles, Quantiles)> {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for instant in published {
        let taken = arrivals.iter().filter_map(|arrivals| {
            let next = &arrivals[arrivals.partition_point(|arrival| arrival.published < *instant)..];
            next.first().map(|arrival| arrival.taken.saturating_sub(*instant) as f64 / 1e3)
        });
        let mut lateness: Vec<f64> = taken.collect();
        ensure!(lateness.len() >= guests, "only {} of {guests} guests saw the update", lateness.len());
        lateness.sort_by(f64::total_cmp);
        first.push(lateness[0]);
        last.push(lateness[guests - 1]);
    }
    Ok((Quantiles::of(first), Quantiles::of(last)))
}

impl Quantiles {
    fn of(values: impl IntoIterator<Item = f64>) -> Quantiles {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Quantiles { median: percentile(&values, 0.5), p99: percentile(&values, 0.99) }
    }
}

impl Slope {
    /// Least squares.
    fn of(costs: &[Cost], value: impl Fn(&Cost) -> f64) -> Slope {
        let count = costs.len() as f64;
        let mean = |of: &dyn Fn(&Cost) -> f64| costs.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(&|cost| cost.guests as f64), mean(&|cost| value(cost)));
        let xy = mean(&|cost| (cost.guests as f64 - x) * (value(cost) - y));
        let xx = mean(&|cost| (cost.guests as f64 - x).powi(2));
        let a_guest = xy / xx;
        Slope { a_guest, without: y - a_guest * x }
    }

    fn at(self, guests: f64) -> f64 {
        self.without + self.a_guest * guests
    }
}

fn report(costs: Vec<Cost>, many_domains: Usage, mut idle_guests: Vec<(usize, f64)>, had: f64) -> Result<Report> {
    let slope = |value: fn(&Cost) -> f64| Slope::of(&costs, value);
    idle_guests.reverse();
    let results = Results {
        xenstored_ms_per_s: slope(|cost| cost.xenstored_ms_per_s),
        memory_kib: slope(|cost| cost.memory_kib),
        files: slope(|cost| cost.files),
        out_median_us: slope(|cost| cost.out.median),
        costs,
        many_domains,
        idle_guests,
        had,
    };
    let mut report = Report::new("What a guest costs the host", &results)?;
    report.text(&format!(
        "One emulated Xen host with one processor, and so many PV guests of 96 MiB, each with the driver connected. \
         radclockd asks one server every second, publishes each answer to all guests, and looks every 10 s which domains \
         there are. Processor times over {} s, all guests paused: of radclockd in half of the seconds, of xenstored in the mean \
         and less what the build machine gave to others. The emulated processor had {:.0} % of the time that it wanted.",
        COUNTED.as_secs(),
        had * 100.0
    ));
    let mut table = Table::new([
        "guests",
        "radclockd, ms/s",
        "xenstored, ms/s",
        "memory, KiB",
        "descriptors",
        "update out, median µs",
    ]);
    for cost in &results.costs {
        let Cost { guests, cpu_ms_per_s, xenstored_ms_per_s, memory_kib, files, out, .. } = *cost;
        let figures = [cpu_ms_per_s, xenstored_ms_per_s, memory_kib, files, out.median].map(figure);
        table.row(std::iter::once(guests.to_string()).chain(figures));
    }
    let slopes = [results.xenstored_ms_per_s, results.memory_kib, results.files, results.out_median_us];
    for (name, figures) in [
        ("a guest more".to_owned(), slopes.map(|slope| figure(slope.a_guest))),
        (format!("{MANY}, by the line"), slopes.map(|slope| figure(slope.at(MANY as f64)))),
    ] {
        // Not a line: radclockd does other things, too, that cost more than all guests.
        table.row([name, "-".to_owned()].into_iter().chain(figures));
    }
    report.table(&table);
    report.text(&format!(
        "With {MANY} domains in XenStore that are not offered the clock, radclockd takes {} ms/s in the mean and \
         xenstored {} ms/s: that is what looking at the domains costs, besides what radclockd does every second.",
        figure(many_domains.mean),
        figure(many_domains.xenstored)
    ));
    report.plot(
        "cpu",
        plot(
            &results.costs,
            "Processor time by the number of guests",
            "ms a second",
            &[
                ("radclockd", |cost| cost.cpu_ms_per_s, None),
                ("xenstored", |cost| cost.xenstored_ms_per_s, Some(results.xenstored_ms_per_s)),
            ],
        ),
    );
    report.heading("An update's way");
    report.text(&format!(
        "Published by radclockd's code. Out: from the first page to the last guest's event, {} updates. First and last: from the \
         publication until the first guest's driver has made its page of it, and until the last one's has, {} updates. All \
         guests share one emulated processor, and after an event Xen runs them one after the other.",
        FAST.0, SLOW.0
    ));
    let mut table = Table::new([
        "guests",
        "out, paused: median µs",
        "99 %",
        "out, running: median µs",
        "99 %",
        "first guest: median µs",
        "last guest: median µs",
        "99 %",
    ]);
    for Cost { guests, out, out_running, first, last, .. } in &results.costs {
        let figures =
            [out.median, out.p99, out_running.median, out_running.p99, first.median, last.median, last.p99].map(figure);
        table.row(std::iter::once(guests.to_string()).chain(figures));
    }
    report.table(&table);
    report.plot(
        "out",
        plot(
            &results.costs,
            "From an update's first page to its last event, while no guest runs",
            "median, µs",
            &[("out", |cost| cost.out.median, Some(results.out_median_us))],
        ),
    );
    report.plot(
        "arrival",
        plot(
            &results.costs,
            "From an update's publication until guests have it, all on one processor",
            "median, ms",
            &[
                ("first guest", |cost| cost.first.median / 1e3, None),
                ("last guest", |cost| cost.last.median / 1e3, None),
            ],
        ),
    );
    report.heading("What the guests themselves cost");
    let mut table = Table::new(["idle guests", "processor time, ms/s", "of each, ms/s"]);
    for (guests, ms_per_s) in &results.idle_guests {
        table.row([guests.to_string(), figure(*ms_per_s), figure(ms_per_s / *guests as f64)]);
    }
    report.table(&table);
    Ok(report)
}

type Value = fn(&Cost) -> f64;

fn plot(costs: &[Cost], title: &str, label: &str, what: &[(&str, Value, Option<Slope>)]) -> Plot {
    let most = costs.iter().map(|cost| cost.guests).max().unwrap_or_default() as f64;
    let mut series = Vec::new();
    for (colour, (name, value, slope)) in what.iter().enumerate() {
        let points = costs.iter().map(|cost| (cost.guests as f64, value(cost))).collect();
        series.push(Series { label: (*name).to_owned(), mark: Mark::Dots, colour, points });
        if let Some(slope) = slope {
            let points = vec![(0.0, slope.at(0.0)), (most, slope.at(most))];
            let label = format!("{name}, {} a guest", figure(slope.a_guest));
            series.push(Series { label, mark: Mark::Line, colour, points });
        }
    }
    Plot {
        title: title.to_owned(),
        x: Axis::new("guests", Scale::Linear).within(0.0, most + 1.0),
        y: Axis::new(label, Scale::Linear),
        series,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_points_on_it_is_that_line() {
        let cost = |guests: usize| Cost { guests, cpu_ms_per_s: 3.0 + 0.25 * guests as f64, ..Cost::default() };
        let slope = Slope::of(&[1, 2, 7, 30].map(cost), |cost| cost.cpu_ms_per_s);
        assert!((slope.a_guest - 0.25).abs() < 1e-12 && (slope.at(1000.0) - 253.0).abs() < 1e-9, "{slope:?}");
    }

    #[test]
    fn an_update_arrives_with_the_first_page_that_is_not_older() {
        let arrival = |published, taken| Arrival { published, taken, bound: 0 };
        let near = vec![arrival(1000, 3000), arrival(5000, 6000)];
        let far = vec![arrival(5000, 9000)];
        let (first, last) = first_and_last(2, &[1000, 5000], &[near.clone(), far.clone()]).expect("both saw them");
        assert_eq!((first.median, last.median), (1.5, 6.0));
        first_and_last(3, &[1000, 5000], &[near.clone(), far.clone()]).expect_err("a guest is missing");
        first_and_last(2, &[1000, 6000], &[near, far]).expect_err("the last update was not seen");
    }

    #[test]
    fn what_is_done_every_second_is_not_what_is_done_seldom() {
        let looks = "10.00 5000000 0\n11.00 7000000 1000000\n12.00 9000000 1000000\n13.00 99000000 1000000\n14.00 101000000 4000000\n";
        let usage = Usage::new(looks, 0.5).expect("five looks");
        assert_eq!((usage.radclockd, usage.mean, usage.xenstored), (2.0, 12.0, 0.5));
        Usage::new("", 1.0).expect_err("none");
        Usage::new("1 2\n", 1.0).expect_err("too little");
    }

    #[test]
    fn times_of_all_threads_are_summed() {
        assert_eq!(scheduled("5 2 9\n10 3 1\n").expect("two threads"), (15.0, 5.0));
        scheduled("x").expect_err("no number");
    }
}
