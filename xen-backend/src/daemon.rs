//! The daemon itself: each stamp goes into the algorithm, and its result at once into every page.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use radclock::clock::{Clock, Period, Status};
use radclock::page::{Content, CounterId, Flags, Page};
use radclock::report::{ClockReport, DaemonStatus, ServerReport};
use radclock::sync::{SyncParams, Synchroniser, Verdict};
use radclock::time::{Counter, Span};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::Config;
use crate::counter::{HostCounter, LocalCounter, read_tsc};
use crate::host::{self, SleepWatch};
use crate::ntp::client::{Client, Polled};
use crate::pages::{PageFile, RunDir};
use crate::relation::{Relation, Sample};
use crate::status;
use crate::xen::{Guests, SystemTime};

/// How far a counter may be from its nominal period: what the kernel's and Xen's own calibration can be off by.
const NOMINAL_SKEW: f64 = 500e-6;
/// How often the daemon looks whether the clock's status has changed by itself.
const TICK: Duration = Duration::from_secs(1);
/// The first line between the TSC and Xen's system time is this long.
const FIRST_LINE: Duration = Duration::from_millis(20);

/// Runs until it is told to stop.
///
/// # Errors
///
/// What keeps it from starting, each with what to do.
pub async fn run(config: Config, local: bool) -> anyhow::Result<()> {
    let run_dir = RunDir::open(&config.paths.run_dir.0)?;
    let counter = Arc::new(if local {
        HostCounter::Local(LocalCounter::choose(config.clock.counter)?)
    } else {
        HostCounter::Xen(SystemTime::open()?)
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
    let pages = LocalPages::open(&run_dir, &counter)?;
    let mut keeper = Keeper::new(params, Arc::clone(&counter), host_id, config.clock.validity.0 * 1_000_000_000)?;
    keeper.take_over(&pages);
    let guests = match &*counter {
        HostCounter::Xen(_) => Some(
            Guests::start(config.guests.offer.clone(), host_id, config.clock.time_domain.0.clone(), keeper.page)
                .await?,
        ),
        HostCounter::Local(_) => None,
    };

    let (polled_sender, mut polled) = mpsc::channel(16);
    let client = Client::new(config.server.clone(), Arc::clone(&counter), period, polled_sender)
        .context("cannot open a UDP socket")?;
    let (changes, changed) = watch::channel(());
    let shared = Arc::new(Shared {
        state: Mutex::new(State { keeper, pages, server: client.report().clone(), distrusted: None }),
        guests: guests.clone(),
        host_id: host::hex(host_id),
        time_domain: config.clock.time_domain.0.clone(),
        changes,
    });
    let socket = config.paths.socket();
    let listener = status::listen(&socket)?;
    tokio::spawn(status::serve(listener, Arc::clone(&shared), changed));
    tokio::spawn(client.run());

    let mut stop = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [terminate, interrupt, hangup] = &mut stop;
    let (Ok(terminate), Ok(interrupt), Ok(hangup)) = (terminate, interrupt, hangup) else {
        anyhow::bail!("cannot take signals");
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let look = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(look);
    notify(&[NotifyState::Ready, NotifyState::Status("waiting for the server")]);

    loop {
        tokio::select! {
            Some(polled) = polled.recv() => shared.polled(polled),
            () = &mut look => look.as_mut().reset(Instant::now() + shared.look()),
            _ = tick.tick() => shared.tick(),
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
    pages: LocalPages,
    server: ServerReport,
    /// What was wrong with the server's last answer.
    distrusted: Option<&'static str>,
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
            counter: state.keeper.counter.name().to_owned(),
            host_id: self.host_id.clone(),
            time_domain: self.time_domain.clone(),
            clock: state.keeper.report(),
            servers: vec![state.server.clone()],
            guests: self.guests.as_ref().map(Guests::reports).unwrap_or_default(),
            xen: self.guests.is_some(),
        }
    }

    fn polled(&self, polled: Polled) {
        let mut state = self.lock();
        let distrusted = state.distrusted;
        state.server = polled.report;
        if let Some((stamp, leap)) = polled.exchange {
            let complaint = match state.keeper.process(&stamp, leap) {
                Verdict::Accepted => None,
                Verdict::Invalid => Some("its answer is impossible in itself: not taken"),
                Verdict::Insane => Some("its answer contradicts the clock: not followed"),
            };
            state.publish(self.guests.as_ref());
            state.distrusted = complaint;
            match complaint {
                Some(complaint) if complaint != distrusted.unwrap_or_default() => {
                    tracing::warn!("{}: {complaint}", state.server.name);
                }
                None if distrusted.is_some() => tracing::info!("{}: its answer fits again", state.server.name),
                _ => {}
            }
        }
        if state.server.last_error.is_none() {
            state.server.last_error = state.distrusted.map(str::to_owned);
        }
        drop(state);
        self.changes.send_replace(());
    }

    /// Looks at the TSC again; says when to look next.
    fn look(&self) -> Duration {
        self.lock().look()
    }

    fn tick(&self) {
        let mut state = self.lock();
        if state.keeper.changed() {
            state.publish(self.guests.as_ref());
            drop(state);
            self.changes.send_replace(());
        }
        if sd_notify::watchdog_enabled().is_some() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

impl State {
    /// The guests first: theirs is the longer way.
    fn publish(&mut self, guests: Option<&Guests>) {
        let before = self.keeper.page.abi.status();
        if !self.keeper.update() {
            return;
        }
        if let Some(guests) = guests {
            guests.publish(&self.keeper.page);
        }
        self.pages.write(&self.keeper);
        let after = self.keeper.page.abi.status();
        if before != after {
            self.keeper.announce(after);
        }
    }

    fn look(&mut self) -> Duration {
        self.pages.look(&self.keeper)
    }

    /// Nobody keeps the pages from here on: their bounds go on growing, and they say so.
    fn stop(&mut self) {
        if self.keeper.free_run() {
            self.pages.write(&self.keeper);
        }
    }
}

/// The clock: the algorithm, and the page with its last result, over the host's counter.
struct Keeper {
    params: SyncParams,
    sync: Synchroniser,
    counter: Arc<HostCounter>,
    sleep: SleepWatch,
    max_valid_nanos: u64,
    leap: u8,
    content: Content,
    page: Page,
}

impl Keeper {
    fn new(
        params: SyncParams,
        counter: Arc<HostCounter>,
        host_id: [u8; 16],
        max_valid_nanos: u64,
    ) -> anyhow::Result<Keeper> {
        let content = Content {
            counter_id: counter.id(),
            status: Status::Initializing,
            clock: None,
            disruption_marker: 0,
            disruption: Flags::empty(),
            tai_offset: None,
            leap_indicator: 0,
            host_id,
            generation: 0,
            valid_nanos: 0,
        };
        Ok(Keeper {
            sync: Synchroniser::new(params.clone())?,
            params,
            counter,
            sleep: SleepWatch::new(),
            max_valid_nanos,
            leap: 0,
            page: Page::new(&content),
            content,
        })
    }

    /// Goes on with the page of a daemon before, if it left one of this boot: right to within its growing bound,
    /// which is better than nothing until the server has been heard.
    fn take_over(&mut self, pages: &LocalPages) {
        let Some(page) = pages.left_over(self.content.host_id, self.content.counter_id) else {
            pages.write(self);
            return;
        };
        tracing::info!("going on with the clock that the daemon before left");
        let extension = page.ext;
        self.content.clock = page.abi.clock().ok();
        self.content.disruption_marker = page.abi.disruption_marker.get();
        self.content.leap_indicator = page.abi.leap_indicator;
        self.content.generation = extension.generation.get();
        self.content.valid_nanos = extension.valid_nanos.get();
        self.content.status = Status::Freerunning;
        self.page = Page::new(&self.content);
    }

    fn process(&mut self, stamp: &radclock::stamp::Stamp, leap: u8) -> Verdict {
        self.leap = leap;
        self.sync.process(stamp)
    }

    fn now(&self) -> Option<Counter> {
        match self.counter.read() {
            Ok(counter) => Some(counter),
            Err(error) => {
                tracing::error!("{error}");
                None
            }
        }
    }

    /// The status as of now of the algorithm's clock, under the configured validity.
    fn status(&self, clock: &Clock) -> Status {
        let Some(now) = self.now() else { return Status::Unreliable };
        let status = self.sync.status(now);
        let age = clock.period.span(now.since(clock.counter));
        if status == Status::Synchronized && age > nanos(self.valid_nanos()) { Status::Freerunning } else { status }
    }

    fn valid_nanos(&self) -> u64 {
        self.sync.valid_nanos().min(self.max_valid_nanos)
    }

    /// Whether the page is out of date though no stamp came: its validity has run out, or the machine slept.
    fn changed(&mut self) -> bool {
        if self.sleep.slept() {
            tracing::warn!("the machine slept: its counter may have stopped, so the clock starts anew");
            self.sync = Synchroniser::new(self.params.clone()).expect("these parameters were taken before");
            self.content.clock = None;
            self.content.status = Status::Initializing;
            self.content.disruption_marker += 1;
            return true;
        }
        match self.sync.clock() {
            Some(clock) => self.status(&clock) != self.content.status,
            None => false,
        }
    }

    /// Lays out the next page; says whether there is anything new to publish.
    fn update(&mut self) -> bool {
        if let Some(clock) = self.sync.clock() {
            let status = self.status(&clock);
            self.content.status = status;
            self.content.clock = Some(clock);
            self.content.valid_nanos = self.valid_nanos();
            self.content.leap_indicator = self.leap;
        } else if self.content.clock.is_some() {
            // Still the clock of the daemon before.
            return false;
        }
        self.content.generation += 1;
        self.page = Page::new(&self.content);
        true
    }

    /// Marks the clock as kept by nobody; says whether there is a clock.
    fn free_run(&mut self) -> bool {
        if self.content.clock.is_none() {
            return false;
        }
        self.content.status = Status::Freerunning;
        self.content.generation += 1;
        self.page = Page::new(&self.content);
        true
    }

    fn announce(&self, status: Status) {
        let bound = self.bound_now().map_or(0.0, |bound| bound.as_secs_f64() * 1e6);
        let text = match status {
            Status::Synchronized => format!("synchronised to within {bound:.1} us"),
            Status::Freerunning => format!("free-running, no good answer from the server; bound {bound:.1} us"),
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

    fn bound_now(&self) -> Option<Span> {
        Some(self.content.clock?.max_error_at(self.now()?))
    }

    fn report(&self) -> ClockReport {
        let now = self.now();
        let clock = self.content.clock.zip(now);
        let aged = clock.map(|(clock, now)| clock.period.span(now.since(clock.counter)));
        let stale = aged.is_some_and(|age| age > nanos(self.content.valid_nanos));
        let status = if stale && self.content.status == Status::Synchronized {
            Status::Freerunning
        } else {
            self.content.status
        };
        ClockReport {
            status,
            generation: self.content.generation,
            time: clock.map(|(clock, now)| clock.time_at(now).to_string()),
            max_error_ns: clock.map(|(clock, now)| clock.max_error_at(now).ceil_nanos().unsigned_abs()),
            age_s: aged.map(Span::as_secs_f64),
            sync: self.sync.report().clone(),
        }
    }
}

fn nanos(nanos: u64) -> Span {
    Span::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}

/// This host's own pages.
enum LocalPages {
    /// Without Xen: one page, over the counter that is synchronised.
    Local(PageFile),
    /// With Xen: the guests' page, and one over the TSC for Dom0's own programs.
    Xen { wire: PageFile, vmclock: PageFile, counter: Arc<HostCounter>, line: Line },
}

/// What is known of the TSC against Xen's system time.
enum Line {
    None,
    /// Where the first line starts.
    Begun(Sample),
    Drawn(Relation),
}

impl Line {
    fn relation(&self) -> Option<&Relation> {
        match self {
            Line::Drawn(relation) => Some(relation),
            _ => None,
        }
    }

    /// Takes the next bracket; says when to take the next but one.
    fn extend(&mut self, sample: Sample) -> Duration {
        let relation = match std::mem::replace(self, Line::None) {
            Line::None => None,
            Line::Begun(start) => Relation::new(start, sample),
            Line::Drawn(mut relation) => relation.update(sample).map(|()| relation),
        };
        match relation {
            Some(relation) => {
                let next = relation.look_again();
                *self = Line::Drawn(relation);
                next
            }
            None => {
                *self = Line::Begun(sample);
                FIRST_LINE
            }
        }
    }
}

impl LocalPages {
    fn open(run_dir: &RunDir, counter: &Arc<HostCounter>) -> anyhow::Result<LocalPages> {
        let vmclock = run_dir.page("vmclock0")?;
        Ok(match **counter {
            HostCounter::Local(_) => LocalPages::Local(vmclock),
            HostCounter::Xen(_) => LocalPages::Xen {
                wire: run_dir.page("wire0")?,
                vmclock,
                counter: Arc::clone(counter),
                line: Line::None,
            },
        })
    }

    fn left_over(&self, host_id: [u8; 16], counter: CounterId) -> Option<Page> {
        match self {
            LocalPages::Local(page) => page,
            LocalPages::Xen { wire, .. } => wire,
        }
        .left_over(host_id, counter)
    }

    fn write(&self, keeper: &Keeper) {
        match self {
            LocalPages::Local(page) => page.write(&keeper.page),
            LocalPages::Xen { wire, vmclock, line, .. } => {
                wire.write(&keeper.page);
                vmclock.write(&over_tsc(&keeper.content, line.relation()));
            }
        }
    }

    /// Takes the next bracket between the TSC and system time; says when to take the next.
    fn look(&mut self, keeper: &Keeper) -> Duration {
        let LocalPages::Xen { vmclock, counter, line, .. } = self else { return Duration::from_secs(3600) };
        let HostCounter::Xen(system_time) = &**counter else { return Duration::from_secs(3600) };
        let next = match Sample::take(read_tsc, || system_time.now()) {
            Ok(sample) => line.extend(sample),
            Err(error) => {
                tracing::error!("cannot read Xen's system time: {error}");
                *line = Line::None;
                TICK
            }
        };
        vmclock.write(&over_tsc(&keeper.content, line.relation()));
        next
    }
}

/// `wire` over the TSC.
fn over_tsc(wire: &Content, relation: Option<&Relation>) -> Page {
    let mut content = Content { counter_id: CounterId::X86_TSC, ..*wire };
    if let Some(clock) = &wire.clock {
        let composed = relation.and_then(|relation| {
            let info = relation.info();
            radclock::compose::compose(clock, &info, Counter(info.tsc_timestamp), relation.added())
                .map(|composed| (composed, info.system_time))
        });
        content.clock = composed.map(|(clock, _)| clock);
        match composed {
            // The reference is later than the wire's, and its validity shorter by as much.
            Some((_, system_time)) => {
                let later = clock.period.span(Counter(system_time).since(clock.counter)).ceil_nanos();
                content.valid_nanos = wire.valid_nanos.saturating_add_signed(later.saturating_neg());
                if content.valid_nanos == 0 && content.status == Status::Synchronized {
                    content.status = Status::Freerunning;
                }
            }
            None => content.status = Status::Unreliable,
        }
    }
    Page::new(&content)
}
