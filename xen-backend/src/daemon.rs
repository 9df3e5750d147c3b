//! The daemon itself: each stamp goes into the algorithm, and its result at once into every page.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use radclock::clock::{Clock, Period, Status};
use radclock::compose::compose;
use radclock::page::{Content, CounterId, Page};
use radclock::report::{DaemonStatus, ServerReport};
use radclock::sync::SyncParams;
use radclock::time::{Counter, Span};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::{Config, Server};
use crate::counter::{HostCounter, LocalCounter};
use crate::excursion::{self, Excursion};
use crate::host;
use crate::inheritance::Twins;
use crate::keeper::{self, Complaint, Keeper};
use crate::ntp::client::{Addresses, Client};
use crate::pages::{PageFile, RunDir, has_time};
use crate::phc::PhcClient;
use crate::relation::{Relation, Sample};
use crate::sandbox::{self, Needs};
use crate::source::Polled;
use crate::status;
use crate::xen::{self, Guests};
use crate::xen_counter::XenCounter;

/// How far a counter may be from its nominal period: what the kernel's and Xen's own calibration can be off by.
const NOMINAL_SKEW: f64 = 500e-6;
/// A bound that is so much narrower is worth an update of its own; else it comes with the next stamp.
const NARROWER: f64 = 0.875;
/// How often the daemon looks whether the clock's status has changed by itself.
const TICK: Duration = Duration::from_secs(1);

/// Runs until it is told to stop.
///
/// # Errors
///
/// What keeps it from starting, each with what to do.
pub async fn run(config: Config, local: bool) -> anyhow::Result<()> {
    let mut run_dir = RunDir::open(&config.paths.run_dir.0)?;
    let counter = Arc::new(if local {
        HostCounter::Local(LocalCounter::choose(config.clock.counter)?)
    } else {
        HostCounter::Xen(XenCounter::open(config.clock.counter)?)
    });
    let host_id = host::host_id()?;
    let nominal_period = counter.nominal_period()?;
    let period = Period::from_secs_f64(nominal_period).context("the counter's frequency is out of range")?;
    tracing::info!(
        "radclockd {}: counting by {} at {:.6} MHz",
        env!("CARGO_PKG_VERSION"),
        counter.name(),
        1e-6 / nominal_period
    );

    let params = SyncParams { nominal_period, nominal_skew: NOMINAL_SKEW };
    let list = keeper::leap_list(&config.clock.leap_seconds)?;
    let validity = config.clock.validity.0 * 1_000_000_000;
    let mut keeper = Keeper::new(params, config.sources(), list, Arc::clone(&counter), host_id, validity)?;
    let (polled_sender, mut polled) = mpsc::channel(16);
    let sources = Sources::open(&config, &counter, period, &polled_sender)?;
    drop(polled_sender);
    let socket = config.paths.socket();
    let listener = status::listen(&socket)?;
    let mut pages = LocalPages::open(&run_dir, &counter).await?;
    let mut left = pages.left_over(host_id, counter.id());
    if left.clock.is_some() && run_dir.has_slept(keeper.slept_nanos()) {
        tracing::warn!("the machine slept while no daemon ran: the clock starts anew");
        left.clock = None;
    } else if left.clock.is_none() && left.was_readable {
        tracing::warn!("what the daemon before left says nothing of {}: the clock starts anew", counter.name());
    }
    keeper.go_on_from_marker(left.marker());
    if let Some((page, doubt)) = left.clock {
        keeper.take_over(&page, doubt);
    }
    sandbox::enter(&needs(&config, &socket, local)).inspect_err(|_| remove_socket(&socket))?;
    let guests = match &*counter {
        HostCounter::Xen(_) => {
            let offer = config.guests.offer.clone();
            let time_domain = config.clock.time_domain.0.clone();
            let started = Guests::start(offer, host_id, time_domain, pages.wire(&keeper)).await;
            Some(started.inspect_err(|_| remove_socket(&socket))?)
        }
        HostCounter::Local(_) => None,
    };
    // From here on nothing can fail, and what is in the run directory is a daemon's.
    pages.write(&keeper);
    run_dir.write_slept(keeper.slept_nanos());
    let (changes, changed) = watch::channel(());
    let servers = sources.reports().map(|report| (report, None)).collect();
    let shared = Arc::new(Shared {
        state: Mutex::new(State { keeper, run_dir, pages, servers, problem: None }),
        guests: guests.clone(),
        host_id: host::hex(host_id),
        time_domain: config.clock.time_domain.0.clone(),
        changes,
    });
    tokio::spawn(status::serve(listener, Arc::clone(&shared), changed));
    sources.start();

    let mut stop = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [terminate, interrupt, hangup] = &mut stop;
    let (Ok(terminate), Ok(interrupt), Ok(hangup)) = (terminate, interrupt, hangup) else {
        anyhow::bail!("cannot take signals");
    };
    let tick = tokio::time::sleep(Duration::ZERO);
    let look = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(tick, look);
    notify(&[NotifyState::Ready, NotifyState::Status("waiting for the servers")]);

    loop {
        tokio::select! {
            Some(polled) = polled.recv() => shared.polled(polled),
            () = &mut look => look.as_mut().reset(Instant::now() + shared.look()),
            () = &mut tick => tick.as_mut().reset(Instant::now() + shared.tick()),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => break,
        }
    }

    tracing::info!("stopping");
    notify(&[NotifyState::Stopping]);
    shared.lock().stop();
    if let Some(guests) = guests {
        guests.shutdown().await;
    }
    remove_socket(&socket);
    Ok(())
}

/// What the daemon needs once it has opened the counter, its socket and its pages.
fn needs(config: &Config, socket: &Path, local: bool) -> Needs {
    let directories = [Some(config.paths.run_dir.0.as_path()), socket.parent()];
    let is_name = |server: &Server| server.address.0.parse::<IpAddr>().is_err();
    Needs {
        directories: directories.into_iter().flatten().map(Path::to_owned).collect(),
        devices: if local { &[] } else { xen::DEVICES },
        ioctls: if local { &[] } else { xen::IOCTLS },
        clocks: !config.phc.is_empty(),
        names: config.server.iter().any(is_name),
    }
}

fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!("{}: {error}", path.display());
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("cannot notify systemd: {error}");
    }
}

/// What the main loop and the status socket share.
pub struct Shared {
    state: Mutex<State>,
    guests: Option<Guests>,
    host_id: String,
    time_domain: String,
    changes: watch::Sender<()>,
}

struct State {
    keeper: Keeper,
    run_dir: RunDir,
    pages: LocalPages,
    /// Each source, and what was wrong with its last answer.
    servers: Vec<(ServerReport, Option<Complaint>)>,
    /// What was wrong with the clock at the last look.
    problem: Option<String>,
}

/// Servers and hardware clocks, made ready.
struct Sources {
    clients: Vec<Client>,
    phcs: Vec<PhcClient>,
}

impl Sources {
    fn open(
        config: &Config,
        counter: &Arc<HostCounter>,
        period: Period,
        polled: &mpsc::Sender<Polled>,
    ) -> anyhow::Result<Sources> {
        let addresses = Addresses::default();
        let mut clients = Vec::new();
        for server in &config.server {
            for _ in 0..server.pool.0 {
                let client = Client::new(
                    clients.len(),
                    server.clone(),
                    addresses.clone(),
                    Arc::clone(counter),
                    period,
                    polled.clone(),
                );
                clients.push(client.context("cannot open a UDP socket")?);
            }
        }
        let phcs = config.phc.iter().enumerate().map(|(index, phc)| {
            PhcClient::new(clients.len() + index, phc.clone(), Arc::clone(counter), period, polled.clone())
        });
        Ok(Sources { phcs: phcs.collect(), clients })
    }

    fn reports(&self) -> impl Iterator<Item = ServerReport> {
        let servers = self.clients.iter().map(Client::report);
        servers.chain(self.phcs.iter().map(PhcClient::report)).cloned()
    }

    fn start(self) {
        for client in self.clients {
            tokio::spawn(client.run());
        }
        for phc in self.phcs {
            tokio::spawn(phc.run());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The guests, if there can be any.
    pub fn guests(&self) -> Option<&Guests> {
        self.guests.as_ref()
    }

    /// The daemon's state now.
    pub fn status(&self) -> DaemonStatus {
        let state = self.lock();
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            counter: state.keeper.counter().name().to_owned(),
            host_id: self.host_id.clone(),
            time_domain: self.time_domain.clone(),
            clock: state.keeper.report(),
            servers: state.reports(),
            guests: self.guests.as_ref().map(Guests::reports).unwrap_or_default(),
            xen: self.guests.is_some(),
        }
    }

    fn polled(&self, polled: Polled) {
        let mut state = self.lock();
        let source = polled.source;
        let before = state.servers[source].1;
        state.servers[source].0 = polled.report;
        match polled.exchange {
            Some((stamp, counts)) => {
                let complaint = state.keeper.process(source, &stamp, counts).err();
                state.publish(self.guests.as_ref());
                state.servers[source].1 = complaint;
                let name = state.name(source);
                let problem = state.keeper.problem();
                if problem != state.problem {
                    match &problem {
                        Some(problem) => tracing::warn!("{problem}"),
                        None => tracing::info!("the servers agree again"),
                    }
                    state.problem = problem;
                }
                match complaint {
                    Some(complaint) if Some(complaint) != before => tracing::warn!("{name}: {complaint}"),
                    None if before.is_some() => tracing::info!("{name}: its answer fits again"),
                    _ => {}
                }
            }
            None => {
                state.keeper.missed(source);
                state.publish_if_changed(self.guests.as_ref());
            }
        }
        drop(state);
        self.changes.send_replace(());
    }

    /// Looks again whether counters go on as they did; says when to look next.
    fn look(&self) -> Duration {
        self.lock().look(self.guests.as_ref())
    }

    /// Publishes what changed by itself; says when to look again.
    fn tick(&self) -> Duration {
        let mut state = self.lock();
        let next = state.keeper.until_leap(TICK).unwrap_or(TICK);
        if state.publish_if_changed(self.guests.as_ref()) {
            drop(state);
            self.changes.send_replace(());
        }
        if sd_notify::watchdog_enabled().is_some() {
            notify(&[NotifyState::Watchdog]);
        }
        next
    }
}

impl State {
    fn name(&self, source: usize) -> String {
        let report = &self.servers[source].0;
        match &report.address {
            Some(address) if *address != report.name => format!("{} at {address}", report.name),
            _ => report.name.clone(),
        }
    }

    fn reports(&self) -> Vec<ServerReport> {
        let report = |(index, (report, complaint)): (usize, &(ServerReport, Option<Complaint>))| {
            let (opinion, sync) = self.keeper.opinion(index);
            ServerReport {
                last_error: report.last_error.clone().or_else(|| complaint.map(|complaint| complaint.to_string())),
                standing: opinion.standing,
                weight: opinion.weight,
                offset_s: opinion.offset.map(|(offset, _)| offset),
                bound_s: opinion.offset.map(|(_, bound)| bound),
                sync,
                ..report.clone()
            }
        };
        self.servers.iter().enumerate().map(report).collect()
    }

    fn publish_if_changed(&mut self, guests: Option<&Guests>) -> bool {
        let is_outdated = self.keeper.is_outdated();
        if is_outdated {
            self.publish(guests);
        }
        is_outdated
    }

    fn publish(&mut self, guests: Option<&Guests>) {
        let before = self.keeper.page().abi.status();
        if !self.keeper.update() {
            return;
        }
        self.show(guests);
        let after = self.keeper.page().abi.status();
        if before != after {
            announce(&self.keeper, after);
        }
    }

    fn look(&mut self, guests: Option<&Guests>) -> Duration {
        // Before a reader sees much of it: until then its time is wrong.
        if self.keeper.has_slept() {
            self.publish(guests);
        }
        let heard = self.keeper.heard();
        let next = self.pages.look(self.keeper.content().clock.as_ref(), heard.agreed);
        let has_clock = self.keeper.content().clock.is_some();
        let nominal_period = self.keeper.nominal_period();
        if let Some(period) = self.pages.strays(nominal_period)
            && self.keeper.start_anew_at(period)
        {
            tracing::warn!(
                "{} went astray of Xen's system time, by which it counts at {:.6} MHz now instead of {:.6} MHz: the clock \
                 starts anew",
                self.keeper.counter().name(),
                1e-6 / period,
                1e-6 / nominal_period
            );
            self.publish(guests);
        } else if has_clock && let Some(off) = self.pages.parted(heard.refused) {
            tracing::warn!(
                "Xen's system time has left its line by the TSC by {off:.6} s for good, and a server says so too: the clock starts anew"
            );
            self.keeper.start_anew();
            self.pages.forget_line();
            self.publish(guests);
        } else if self.pages.doubt(&self.keeper).is_some_and(|doubt| self.keeper.doubt(doubt)) {
            self.show(guests);
        } else if self.pages.is_wire_outdated(&self.keeper) {
            self.keeper.publish();
            self.show(guests);
        } else {
            self.pages.write_over_tsc(&self.keeper);
        }
        next
    }

    /// Lays out all pages: the guests' first, theirs is the longer way.
    fn show(&mut self, guests: Option<&Guests>) {
        if let Some(guests) = guests {
            guests.publish(&self.pages.wire(&self.keeper));
        }
        self.pages.write(&self.keeper);
        self.run_dir.write_slept(self.keeper.slept_nanos());
    }

    /// Nobody keeps the pages from here on: their bounds go on growing, and they say so.
    fn stop(&mut self) {
        if self.keeper.free_run() {
            self.pages.write(&self.keeper);
        }
    }
}

fn announce(keeper: &Keeper, status: Status) {
    let bound = keeper.bound_now().map_or(0.0, |bound| bound.as_secs_f64() * 1e6);
    let text = match status {
        Status::Synchronized => format!("synchronised to within {bound:.1} us"),
        Status::Freerunning => {
            let why = keeper.problem().unwrap_or_else(|| "no good answer from any server".to_owned());
            format!("free-running, {why}; bound {bound:.1} us")
        }
        Status::Unreliable => "unreliable: the counter cannot be read".to_owned(),
        Status::Initializing | Status::Unknown => "not synchronised yet".to_owned(),
    };
    if status == Status::Synchronized {
        tracing::info!("{text}")
    } else {
        tracing::warn!("{text}")
    }
    notify(&[NotifyState::Status(&text)]);
}

/// This host's own pages.
enum LocalPages {
    /// Without Xen: one page, over the counter that is synchronised.
    Local(PageFile),
    /// With Xen: the guests' page, and one over the TSC for Dom0's own programs.
    Xen {
        wire: PageFile,
        /// What stands there.
        shown: Option<Box<Content>>,
        vmclock: PageFile,
        counter: Arc<HostCounter>,
        /// The TSC's line.
        line: Line,
        /// The counter's own, if that is the platform timer.
        platform: Line,
        /// System time's excursions, if it is the counter.
        excursion: Box<Excursion>,
        /// What the daemon before left in both pages, as long as it has a say.
        twins: Option<Box<Twins>>,
    },
}

/// What a daemon before left since the host booted.
#[derive(Debug, Default)]
struct LeftOver {
    /// How often the counter had been disrupted.
    disruption_marker: u64,
    /// There is a time that can be read.
    was_readable: bool,
    /// A page is to be over another counter than it was.
    is_other_counter: bool,
    /// The page to go on with, and how far it may be off by more than it says.
    clock: Option<(Page, Span)>,
}

impl LeftOver {
    /// Of the pages that are there, with what they are to be over from now on; without a clock.
    fn of(pages: &[(Option<&Page>, CounterId)]) -> LeftOver {
        let mut left = LeftOver::default();
        for (page, counter) in pages.iter().filter_map(|&(page, counter)| Some((page?, counter))) {
            left.disruption_marker = left.disruption_marker.max(page.abi.disruption_marker.get());
            left.was_readable |= page.abi.status().is_readable();
            left.is_other_counter |= page.abi.counter_id != counter.0;
        }
        left
    }

    /// The marker to go on from: who has read a counter under that daemon must not take it for a reading under this one, unless
    /// it is one.
    fn marker(&self) -> u64 {
        let is_disrupted = self.is_other_counter || self.was_readable && self.clock.is_none();
        self.disruption_marker.wrapping_add(is_disrupted.into())
    }
}

/// What is known of a counter against Xen's system time.
enum Line {
    None,
    /// Where the first line starts.
    Begun(Sample),
    Drawn(Box<Relation>),
}

impl Line {
    fn relation(&self) -> Option<&Relation> {
        match self {
            Line::Drawn(relation) => Some(relation),
            _ => None,
        }
    }

    /// Takes the next bracket.
    fn extend(&mut self, sample: Sample) {
        let relation = match std::mem::replace(self, Line::None) {
            Line::None => None,
            Line::Begun(start) => Relation::new(start, sample).map(Box::new),
            Line::Drawn(mut relation) => relation.update(sample).map(|()| relation),
        };
        *self = relation.map_or(Line::Begun(sample), Line::Drawn);
    }
}

impl LocalPages {
    async fn open(run_dir: &RunDir, counter: &Arc<HostCounter>) -> anyhow::Result<LocalPages> {
        let vmclock = run_dir.page("vmclock0")?;
        if matches!(**counter, HostCounter::Local(_)) {
            return Ok(LocalPages::Local(vmclock));
        }
        let wire = run_dir.page("wire0")?;
        let (line, platform) = (Line::None, Line::None);
        let excursion = Box::default();
        let counter = Arc::clone(counter);
        let mut pages = LocalPages::Xen { wire, shown: None, vmclock, counter, line, platform, excursion, twins: None };
        // Without a line there is no page over the TSC, nor one for guests if the counter is not system time. Two looks are one.
        let next = pages.look(None, None);
        tokio::time::sleep(next).await;
        pages.look(None, None);
        Ok(pages)
    }

    /// What a daemon before left, with its clock over this counter, if there is one.
    fn left_over(&mut self, host_id: [u8; 16], counter: CounterId) -> LeftOver {
        match self {
            LocalPages::Local(page) => {
                let page = page.left_over(host_id);
                let mut left = LeftOver::of(&[(page.as_ref(), counter)]);
                left.clock = page.filter(|page| has_time(page, counter)).map(|page| (page, Span::ZERO));
                left
            }
            LocalPages::Xen { wire, vmclock, .. } => {
                let [wire, vmclock] = [wire, vmclock].map(|page| page.left_over(host_id));
                let pages = [(wire, CounterId::XEN_SYSTEM_TIME), (vmclock, CounterId::X86_TSC)];
                let mut left = LeftOver::of(&pages.each_ref().map(|(page, counter)| (page.as_ref(), *counter)));
                left.clock = self.left_clock(pages, counter);
                left
            }
        }
    }

    /// The clock over this counter, and how far it may be off because a counter was held up since.
    fn left_clock(&mut self, pages: [(Option<Page>, CounterId); 2], counter: CounterId) -> Option<(Page, Span)> {
        let [over_system_time, over_tsc] = pages.map(|(page, counter)| page.filter(|page| has_time(page, counter)));
        // One alone cannot tell whether its counter was held up meanwhile.
        let (one, other) = over_system_time.as_ref().zip(over_tsc.as_ref())?;
        let found = Box::new(Twins::new(one, other, &self.xen()?.tsc_sample().ok()?)?);
        let doubt = found.apart();
        let page = match counter {
            CounterId::XEN_SYSTEM_TIME => over_system_time,
            CounterId::X86_TSC => over_tsc,
            _ => None,
        };
        if let LocalPages::Xen { twins, .. } = self {
            *twins = Some(found);
        }
        Some((page?, doubt))
    }

    /// How far what the daemon before left may be off by now, as long as it has a say.
    fn doubt(&mut self, keeper: &Keeper) -> Option<Span> {
        let LocalPages::Xen { twins, .. } = self else { return None };
        if !keeper.is_inheriting() {
            *twins = None;
        }
        twins.as_ref().map(|twins| twins.apart())
    }

    fn xen(&self) -> Option<&XenCounter> {
        let LocalPages::Xen { counter, .. } = self else { return None };
        let HostCounter::Xen(counter) = &**counter else { return None };
        Some(counter)
    }

    /// The counter's line to Xen's system time, if it is not system time itself.
    fn own_line(&self) -> Option<&Line> {
        match self {
            LocalPages::Xen { line, .. } if self.xen()?.is_tsc() => Some(line),
            LocalPages::Xen { platform, .. } if !self.xen()?.is_system_time() => Some(platform),
            _ => None,
        }
    }

    /// Whether what guests have is no longer what they would get now.
    fn is_wire_outdated(&self, keeper: &Keeper) -> bool {
        matches!(self, LocalPages::Xen { shown: Some(shown), .. } if is_outdated(shown, &self.wire_content(keeper)))
    }

    /// The clock over Xen's system time.
    fn wire_content(&self, keeper: &Keeper) -> Content {
        match (self, self.own_line()) {
            (_, Some(line)) => over_system_time(keeper.content(), line.relation()),
            (LocalPages::Xen { excursion, .. }, None) => widened(keeper.content(), excursion),
            _ => *keeper.content(),
        }
    }

    /// The counter's period, s a count, if it is not the nominal one: the clock over it is wrong.
    fn strays(&self, nominal_period: f64) -> Option<f64> {
        Some(self.own_line()?.relation()?.strays(nominal_period * 1e9, NOMINAL_SKEW)? * 1e-9)
    }

    /// By how much system time, which is the counter, has left its line for good, s, if it has.
    fn parted(&self, refused: Option<(Counter, Span)>) -> Option<f64> {
        let LocalPages::Xen { excursion, .. } = self else { return None };
        excursion.parted(refused)
    }

    /// System time has another line from now on.
    fn forget_line(&mut self) {
        if let LocalPages::Xen { excursion, .. } = self {
            **excursion = Excursion::default();
        }
    }

    /// The clock as guests get it.
    fn wire(&self, keeper: &Keeper) -> Page {
        page(&self.wire_content(keeper), keeper)
    }

    /// Writes all pages.
    fn write(&mut self, keeper: &Keeper) {
        let content = self.wire_content(keeper);
        match self {
            LocalPages::Local(page) => page.write(keeper.page()),
            LocalPages::Xen { wire, shown, .. } => {
                wire.write(&page(&content, keeper));
                *shown = Some(Box::new(content));
                self.write_over_tsc(keeper);
            }
        }
    }

    /// Writes the page that changes with the TSC's line.
    fn write_over_tsc(&self, keeper: &Keeper) {
        let (LocalPages::Xen { vmclock, line, .. }, Some(xen)) = (self, self.xen()) else { return };
        if xen.is_tsc() {
            return vmclock.write(keeper.page());
        }
        vmclock.write(&page(&over_tsc(&self.wire_content(keeper), line.relation()), keeper));
    }

    /// Takes the next bracket between the TSC and system time; says when to take the next. `clock` is what is kept, and `heard`
    /// when a server last agreed with it.
    fn look(&mut self, clock: Option<&Clock>, heard: Option<Counter>) -> Duration {
        // One counter alone is looked at by nobody, but the machine may sleep.
        let LocalPages::Xen { counter, line, platform, excursion, twins, .. } = self else { return excursion::LOOK };
        let HostCounter::Xen(xen) = &**counter else { return excursion::LOOK };
        let samples = xen.tsc_sample().and_then(|tsc| Ok((tsc, xen.platform_sample()?)));
        match samples {
            Ok((tsc, own)) => {
                line.extend(tsc);
                if let Some(twins) = twins {
                    twins.look(&tsc);
                }
                match own {
                    Some(own) => platform.extend(own),
                    None if xen.is_system_time() => excursion.look(tsc, clock, heard),
                    None => {}
                }
                excursion::LOOK
            }
            Err(error) => {
                tracing::error!("cannot read Xen's counters: {error}");
                // What system time was off its line, it still is.
                (*line, *platform) = (Line::None, Line::None);
                TICK
            }
        }
    }
}

/// Whether a page over Xen's system time that says `shown` should say `fresh`, of which the reference is now: its time is
/// another, its bound too tight, now or at the next look, or needlessly wide.
fn is_outdated(shown: &Content, fresh: &Content) -> bool {
    let (Some(old), Some(new)) = (&shown.clock, &fresh.clock) else {
        return shown.clock.is_some() != fresh.clock.is_some();
    };
    let next_look = new.counter.offset(excursion::LOOK.as_nanos() as i64);
    let is_other = |at: Counter| {
        let (Some((old, had)), Some((new, has))) = (old.reading_at(at), new.reading_at(at)) else { return true };
        let small = excursion::in_hand(has);
        new.since(old).abs() > small
            || has > had.saturating_add(small)
            || has.as_secs_f64() < NARROWER * had.as_secs_f64()
    };
    shown.status != fresh.status || is_other(new.counter) || is_other(next_look)
}

/// The clock over Xen's system time, by the line of the counter that is kept.
fn over_system_time(content: &Content, relation: Option<&Relation>) -> Content {
    moved(content, CounterId::XEN_SYSTEM_TIME, |clock| {
        let relation = relation?;
        Some((relation.over_system_time(clock)?, relation.reference()))
    })
}

/// The clock over Xen's system time, with a bound that covers its excursion.
fn widened(content: &Content, excursion: &Excursion) -> Content {
    if !excursion.goes_on() {
        return *content;
    }
    moved(content, CounterId::XEN_SYSTEM_TIME, |clock| excursion.widened(clock))
}

/// A clock over Xen's system time, over the TSC.
fn over_tsc(wire: &Content, relation: Option<&Relation>) -> Content {
    moved(wire, CounterId::X86_TSC, |clock| {
        let relation = relation?;
        let info = relation.info();
        let composed = compose(clock, &info, Counter(info.tsc_timestamp), relation.added())?;
        Some((composed, Counter(info.system_time)))
    })
}

/// The same over another counter. `to` gives the clock there, and what the counter before was at its reference; without
/// it there is no time.
fn moved(content: &Content, counter_id: CounterId, to: impl Fn(&Clock) -> Option<(Clock, Counter)>) -> Content {
    let mut moved = Content { counter_id, ..*content };
    let Some(clock) = &content.clock else { return moved };
    let Some((other, reference)) = to(clock) else {
        return Content { clock: None, status: Status::Unreliable, ..moved };
    };
    moved.clock = Some(other);
    // The reference is another, and the validity counts from there.
    let later = clock.period.span(reference.since(clock.counter)).ceil_nanos();
    moved.valid_nanos = content.valid_nanos.saturating_add_signed(later.saturating_neg());
    if moved.valid_nanos == 0 && moved.status == Status::Synchronized {
        // It has just run out. Who says so by a validity of 0 lets the bound grow faster by himself.
        moved.status = Status::Freerunning;
        moved.clock = to(&clock.free_running(content.valid_nanos, reference)).map(|(other, _)| other);
    }
    moved
}

/// The page with this content.
fn page(content: &Content, keeper: &Keeper) -> Page {
    let mut page = Page::new(content);
    // The reference may have moved on across the leap second, which is still the same one.
    page.ext.leap_sec = keeper.page().ext.leap_sec;
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use radclock::page::Flags;
    use radclock::time::Timestamp;

    fn content(clock: Option<Clock>) -> Content {
        Content {
            counter_id: CounterId::XEN_SYSTEM_TIME,
            status: Status::Synchronized,
            clock,
            disruption_marker: 0,
            disruption: Flags::empty(),
            tai_offset: None,
            leap_indicator: 0,
            host_id: [0; 16],
            generation: 0,
            valid_nanos: 1 << 40,
        }
    }

    fn clock(reference: u64, off_nanos: i64, max_error_nanos: u64) -> Clock {
        let time = Timestamp::new(1_800_000_000, 0).saturating_add(Span::from_nanos(reference as i64 + off_nanos));
        let period = Period::from_secs_f64(1e-9).expect("a period");
        Clock { counter: Counter(reference), time, period, period_max_error: 1 << 30, max_error_nanos }
    }

    #[test]
    fn a_page_is_outdated_if_there_is_a_clock_now_or_none_or_another_status() {
        let [none, some] = [None, Some(clock(0, 0, 300_000))].map(content);
        assert!(is_outdated(&none, &some) && is_outdated(&some, &none));
        assert!(!is_outdated(&none, &none) && !is_outdated(&some, &some));
        assert!(is_outdated(&some, &Content { status: Status::Freerunning, ..some }));
    }

    /// The page over the TSC is laid out anew between the end of the validity and the next update.
    #[test]
    fn a_clock_that_is_moved_beyond_its_validity_lets_its_bound_grow() {
        let before = Content { valid_nanos: 1_000_000_000, ..content(Some(clock(1_000_000_000, 0, 300_000))) };
        let to = |after: i64| {
            move |clock: &Clock| {
                let reference = Counter(1_000_000_000).offset(after);
                let (time, max_error) = clock.reading_at(reference)?;
                let max_error_nanos = max_error.ceil_nanos().unsigned_abs();
                Some((Clock { counter: reference, time, max_error_nanos, ..*clock }, reference))
            }
        };
        let valid = moved(&before, CounterId::X86_TSC, to(400_000_000));
        assert!(valid.status == Status::Synchronized && valid.valid_nanos.abs_diff(600_000_000) <= 1);
        let free = moved(&before, CounterId::X86_TSC, to(900_000_000_000));
        assert_eq!((free.status, free.valid_nanos), (Status::Freerunning, 0));
        let later = Counter(1_000_000_000).offset(5_000_000_000_000);
        let bound = |page: &Page| page.reading_at(later).expect("a reading").max_error;
        let [left, moved] = [&before, &free].map(|content| bound(&Page::new(content)));
        assert!((left - moved).ceil_nanos().abs() <= 3, "{left:?}, {moved:?}");
    }

    #[test]
    fn the_disruption_marker_goes_on_over_a_restart() {
        let page = |status, counter_id, disruption_marker| {
            Page::new(&Content { status, counter_id, disruption_marker, ..content(Some(clock(0, 0, 300_000))) })
        };
        let [wire, tsc, raw] = [CounterId::XEN_SYSTEM_TIME, CounterId::X86_TSC, CounterId::MONOTONIC_RAW];
        let marker = |pages: &[(Option<&Page>, CounterId)], is_taken| {
            let left = LeftOver::of(pages);
            LeftOver { clock: pages[0].0.filter(|_| is_taken).map(|page| (*page, Span::ZERO)), ..left }.marker()
        };
        let readable = page(Status::Freerunning, tsc, 3);
        let blank = page(Status::Initializing, tsc, 3);
        assert_eq!(marker(&[(None, tsc)], false), 0);
        assert_eq!(marker(&[(Some(&readable), tsc)], true), 3);
        assert_eq!(marker(&[(Some(&readable), tsc)], false), 4, "a clock that is given up");
        assert_eq!(marker(&[(Some(&blank), tsc)], false), 3, "after a sleep");
        assert_eq!(marker(&[(Some(&blank), raw)], false), 4, "another counter");
        assert_eq!(marker(&[(Some(&readable), raw)], false), 4);
        let newer = page(Status::Unreliable, wire, 5);
        assert_eq!(marker(&[(Some(&newer), wire), (Some(&blank), tsc)], false), 5);
    }

    #[test]
    fn two_looks_are_enough_for_the_page_over_the_tsc() {
        let mut line = Line::None;
        let wire = content(Some(clock(1_000_000_000, 0, 300_000)));
        for (tsc, system_time) in [(5_000_000_000, 2_000_000_000), (5_054_000_000, 2_020_000_000)] {
            assert_eq!(over_tsc(&wire, line.relation()).status, Status::Unreliable);
            line.extend(Sample { tsc: Counter(tsc), system_time, half_width: 100 });
        }
        let content = over_tsc(&wire, line.relation());
        assert_eq!(
            (content.status, content.clock.map(|clock| clock.counter)),
            (wire.status, Some(Counter(5_054_000_000)))
        );
    }

    proptest! {
        /// A page that is left as it is tells what another would: no bound is too tight by more than what is small.
        #[test]
        fn what_is_not_outdated_covers_what_it_would_say_until_the_next_look(
            age in 0u64..2_000_000_000,
            off in prop_oneof![-500i64..500, -20_000i64..20_000, -10_000_000i64..10_000_000],
            had in prop_oneof![1000u64..5000, 20_000u64..1_000_000],
            more in prop_oneof![-500i64..500, -50_000i64..50_000],
            rate in prop::sample::select(vec![1u64 << 30, 1 << 50]),
        ) {
            let shown = clock(1_000_000_000, 0, had);
            let fresh = Clock { period_max_error: rate, ..clock(1_000_000_000 + age, off, had.saturating_add_signed(more)) };
            if is_outdated(&content(Some(shown)), &content(Some(fresh))) {
                return Ok(());
            }
            for later in [0, excursion::LOOK.as_nanos() as i64 / 2, excursion::LOOK.as_nanos() as i64] {
                let at = fresh.counter.offset(later);
                let ((old, had), (new, has)) = shown.reading_at(at).zip(fresh.reading_at(at)).expect("readings");
                let lacks = new.since(old).abs() + has - had;
                let small = excursion::in_hand(has);
                prop_assert!(lacks <= small + small + Span::from_nanos(10), "{lacks:?}");
                prop_assert!(has.as_secs_f64() >= NARROWER * had.as_secs_f64() - 1e-9);
            }
        }
    }
}
