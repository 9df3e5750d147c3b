//! The clock that the daemon keeps: what the sources say together, as UTC, and the page with the last of it.
//!
//! Inside, all times are on a scale without leap seconds (`radclock::leap::scale`); they become UTC where the page is
//! laid out.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use radclock::clock::{Clock, Status};
use radclock::ensemble::{Ensemble, Opinion, Standing};
use radclock::leap::LeapKind;
use radclock::leap::list::LeapList;
use radclock::leap::scale::{Announcement, LeapScale};
use radclock::page::{Content, Flags, LEAP_PRE_NEG, LEAP_PRE_POS, Page};
use radclock::report::ClockReport;
use radclock::stamp::Stamp;
use radclock::sync::{SyncParams, SyncReport, Verdict};
use radclock::time::{Counter, Span, Timestamp};

use crate::config::LeapSeconds;
use crate::counter::HostCounter;
use crate::excursion;
use crate::host::SleepWatch;
use crate::inheritance::Inheritance;
use crate::source::Counts;

/// The clock: the algorithm, and the page with its last result, over the host's counter.
pub struct Keeper {
    params: SyncParams,
    sources: Vec<Source>,
    ensemble: Ensemble,
    scale: LeapScale,
    /// The servers announce a leap second that the list does not know.
    is_unlisted: bool,
    counter: Arc<HostCounter>,
    sleep: SleepWatch,
    max_valid_nanos: u64,
    /// What the daemon before left, as long as it has a say.
    inheritance: Option<Inheritance>,
    /// The page still shows it.
    is_inherited: bool,
    heard: Heard,
    content: Content,
    page: Page,
}

/// What servers have said of the clock that is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    /// When one last agreed with it.
    pub agreed: Option<Counter>,
    /// When one was last refused for contradicting it, and how far ahead of it that one was.
    pub refused: Option<(Counter, Span)>,
}

#[derive(Clone, Debug, Default)]
struct Source {
    /// NTP's leap indicator in the last answer.
    leap: Option<u8>,
    /// What its TAI is off the scale. It stays the same.
    tai_to_scale: Option<Span>,
}

/// Why a stamp does not reach the algorithm, or is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Complaint {
    /// See [`Verdict::Invalid`].
    #[error("its answer is impossible in itself: not taken")]
    Invalid,
    /// See [`Verdict::Insane`].
    #[error("its answer contradicts the clock: not followed")]
    Insane,
    /// Its second is one of two, and there is no clock near it that could tell which.
    #[error("its time lies right at a leap second, and far from the clock: not taken")]
    Ambiguous,
    /// It counts TAI, and neither list nor configuration say what UTC that is.
    #[error("it counts TAI, but the leap-second list is missing or has expired: set its tai_offset")]
    NoTaiOffset,
}

impl Keeper {
    /// Of so many sources, of which nothing is known yet.
    pub fn new(
        params: SyncParams,
        sources: usize,
        list: Option<LeapList>,
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
            sources: vec![Source::default(); sources],
            ensemble: Ensemble::new(&params, sources)?,
            params,
            scale: LeapScale::new(list),
            is_unlisted: false,
            counter,
            sleep: SleepWatch::new(),
            max_valid_nanos,
            inheritance: None,
            is_inherited: false,
            heard: Heard::default(),
            page: Page::new(&content),
            content,
        })
    }

    /// Says that the counter was disrupted as often as this by now, to whoever has read it under a daemon before.
    pub fn go_on_from_marker(&mut self, disruption_marker: u64) {
        self.content.disruption_marker = disruption_marker;
        self.page = Page::new(&self.content);
    }

    /// Goes on with the page of a daemon before: right to within its growing bound, which is better than nothing until
    /// the servers have been heard, and for an hour better than servers that contradict it ([`Inheritance`]). `doubt` is what
    /// it may be off by more than it says, since the counter may have been held up while no daemon ran.
    pub fn take_over(&mut self, page: &Page, doubt: Span) {
        tracing::info!("going on with the clock that the daemon before left");
        let now = self.now();
        let valid_nanos = page.ext.valid_nanos.get();
        let left = page.abi.clock().ok().zip(now).map(|(clock, now)| unconfirmed(clock, valid_nanos, now));
        let bound = left.zip(now).map_or(Span::ZERO, |(clock, now)| clock.max_error_at(now));
        if doubt > bound {
            let seconds = doubt.as_secs_f64();
            tracing::warn!(
                "the TSC and Xen's system time have parted by {seconds:.6} s since then: its bound is as much wider"
            );
        }
        self.content.clock = left.map(|clock| {
            let max_error_nanos = clock.max_error_nanos.saturating_add(doubt.ceil_nanos().unsigned_abs());
            Clock { max_error_nanos, ..clock }
        });
        self.inheritance = left.zip(now).and_then(|(clock, now)| {
            // Its own count may go on as if no leap second had come.
            let on_scale = self.scale.of_utc(page.reading_at(now).ok()?.time, None)?;
            let time = clock.time.saturating_add(on_scale.since(clock.time_at(now)));
            Some(Inheritance::new(Clock { time, ..clock }, doubt, now))
        });
        self.is_inherited = true;
        self.content.tai_offset = page.abi.tai_offset();
        self.content.leap_indicator = page.abi.leap_indicator;
        self.content.generation = page.ext.generation.get();
        self.content.valid_nanos = 0;
        self.content.status = Status::Freerunning;
        self.page = Page::new(&self.content);
        self.page.ext.leap_sec = page.ext.leap_sec;
    }

    /// Whether what the daemon before left has a say still.
    pub fn is_inheriting(&self) -> bool {
        self.inheritance.is_some()
    }

    /// What the daemon before left may be off by `doubt` more than it says by now. Says whether there is anything new to publish.
    pub fn doubt(&mut self, doubt: Span) -> bool {
        let (Some(bound), Some(inheritance)) = (self.bound_now(), &mut self.inheritance) else { return false };
        let Some(more) = inheritance.doubt(doubt, excursion::in_hand(bound)) else { return false };
        if let Some(clock) = self.content.clock.as_mut().filter(|_| self.is_inherited) {
            clock.max_error_nanos = clock.max_error_nanos.saturating_add(more.ceil_nanos().unsigned_abs());
        }
        if !self.update() {
            self.publish();
        }
        true
    }

    /// What stands in the page.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The page, over the host's counter.
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// The counter that is kept.
    pub fn counter(&self) -> &HostCounter {
        &self.counter
    }

    /// Takes a source's stamp.
    pub fn process(&mut self, source: usize, stamp: &Stamp, counts: Counts) -> Result<(), Complaint> {
        let stamp = self.on_scale(source, stamp, counts).inspect_err(|_| self.ensemble.missed(source, stamp.tf))?;
        if let Counts::Utc(leap) = counts {
            self.sources[source].leap = leap;
        }
        let verdict = self.ensemble.process(source, &stamp);
        self.hear_inheritance(stamp.tf);
        self.announce_leap(stamp.tf);
        self.remember(source, &stamp, verdict);
        match verdict {
            Verdict::Accepted => Ok(()),
            Verdict::Invalid => Err(Complaint::Invalid),
            Verdict::Insane => Err(Complaint::Insane),
        }
    }

    /// Remembers what a stamp says of the clock in the page.
    fn remember(&mut self, source: usize, stamp: &Stamp, verdict: Verdict) {
        let vetoed = self.inheritance.filter(Inheritance::is_contradicted);
        let Some(clock) = vetoed.map(|inheritance| inheritance.clock()).or_else(|| self.ensemble.clock()) else {
            return;
        };
        if verdict == Verdict::Insane || verdict == Verdict::Accepted && vetoed.is_some() {
            let middle = stamp.ta.offset(stamp.tf.since(stamp.ta) / 2);
            let by_server = stamp.tb.saturating_add(Span::from_frac(stamp.te.since(stamp.tb).as_frac() / 2));
            self.heard.refused = Some((stamp.tf, by_server.since(clock.time_at(middle))));
        } else if verdict == Verdict::Accepted && self.ensemble.opinion(source).standing == Standing::Truechimer {
            self.heard.agreed = Some(stamp.tf);
        }
    }

    /// What servers have said of the clock.
    pub fn heard(&self) -> Heard {
        self.heard
    }

    /// The servers' clock, unless the daemon before knew better.
    fn clock(&self) -> Option<Clock> {
        let clock = self.ensemble.clock().filter(|_| !self.is_vetoed())?;
        Some(self.inheritance.map_or(clock, |inheritance| inheritance.bound(clock)))
    }

    /// Whether the servers contradict what the daemon before left.
    fn is_vetoed(&self) -> bool {
        self.inheritance.as_ref().is_some_and(Inheritance::is_contradicted)
    }

    /// Whether the page calls a clock synchronised that the servers have left behind.
    fn is_left_behind(&self) -> bool {
        self.is_vetoed() && self.content.status == Status::Synchronized
    }

    fn hear_inheritance(&mut self, now: Counter) {
        let (Some(inheritance), Some(clock)) = (&mut self.inheritance, self.ensemble.claim()) else { return };
        inheritance.hear(&clock, now);
        if inheritance.is_heard(now) {
            self.inheritance = None;
        }
    }

    /// A source did not answer.
    pub fn missed(&mut self, source: usize) {
        if let Some(now) = self.now() {
            self.ensemble.missed(source, now);
        }
    }

    /// The stamp with its times on the scale.
    fn on_scale(&mut self, source: usize, stamp: &Stamp, counts: Counts) -> Result<Stamp, Complaint> {
        let clock = self.ensemble.clock();
        let (tb, te) = match counts {
            Counts::Utc(_) => {
                let put = |utc, counter| self.scale.of_utc(utc, clock.map(|clock| clock.time_at(counter)));
                put(stamp.tb, stamp.ta).zip(put(stamp.te, stamp.tf)).ok_or(Complaint::Ambiguous)?
            }
            Counts::Tai(offset) => {
                let source = &mut self.sources[source];
                if source.tai_to_scale.is_none() {
                    source.tai_to_scale = self.scale.of_tai(stamp.tb, offset).map(|put| put.since(stamp.tb));
                }
                let by = source.tai_to_scale.ok_or(Complaint::NoTaiOffset)?;
                (stamp.tb.saturating_add(by), stamp.te.saturating_add(by))
            }
        };
        Ok(Stamp { tb, te, ..*stamp })
    }

    /// Counts what the servers announce that agree with the majority.
    fn announce_leap(&mut self, now: Counter) {
        let Some(clock) = self.clock() else { return };
        let said: Vec<u8> = self
            .sources
            .iter()
            .enumerate()
            .filter(|&(index, _)| self.ensemble.opinion(index).standing == Standing::Truechimer)
            .filter_map(|(_, source)| source.leap)
            .collect();
        let is_majority = |leap: u8| 2 * said.iter().filter(|&&said| said == leap).count() > said.len();
        let majority = match () {
            () if is_majority(1) => Some(LeapKind::Insert),
            () if is_majority(2) => Some(LeapKind::Delete),
            () => None,
        };
        self.is_unlisted = self.scale.announce(clock.time_at(now), majority) == Announcement::Unlisted;
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

    /// The status of the algorithm's clock, under the configured validity.
    fn status(&self, clock: &Clock, now: Counter) -> Status {
        let status = self.ensemble.status(now);
        let age = clock.period.span(now.since(clock.counter));
        if status == Status::Synchronized && age > nanos(self.valid_nanos()) { Status::Freerunning } else { status }
    }

    fn valid_nanos(&self) -> u64 {
        self.ensemble.valid_nanos().min(self.max_valid_nanos)
    }

    /// Whether the page is out of date though no stamp came: its validity has run out, a leap second came, part of a
    /// change was held back, or the machine slept.
    pub fn is_outdated(&mut self) -> bool {
        if self.has_slept() {
            return true;
        }
        let Some(now) = self.now() else { return self.content.status != Status::Unreliable };
        if self.ensemble.is_moving() {
            self.ensemble.update(now);
            return true;
        }
        match self.clock() {
            Some(clock) => {
                self.status(&clock, now) != self.content.status
                    || self.ensemble.status(now) == Status::Freerunning && self.ensemble.valid_nanos() > 0
                    || self.scale.utc(clock.time_at(now)).indicator != self.content.leap_indicator
            }
            None => self.is_left_behind(),
        }
    }

    /// The counter's nominal period, s a count.
    pub fn nominal_period(&self) -> f64 {
        self.params.nominal_period
    }

    /// Starts anew with another nominal period, s a count: by a wrong one, all that the servers say is a contradiction.
    /// Keeps to the old one if no counter can have the new one; says whether anything has changed then.
    pub fn start_anew_at(&mut self, nominal_period: f64) -> bool {
        let params = SyncParams { nominal_period, ..self.params.clone() };
        let is_possible = Ensemble::new(&params, self.sources.len()).is_ok();
        if is_possible {
            self.params = params;
        }
        let changes = is_possible || self.content.clock.is_some();
        if changes {
            self.start_anew();
        }
        changes
    }

    /// How long the machine had slept since it booted when the clock was last known to go on, ns.
    pub fn slept_nanos(&self) -> i128 {
        self.sleep.slept_nanos()
    }

    /// Whether the machine slept since this was asked last. If so, the clock starts anew.
    pub fn has_slept(&mut self) -> bool {
        let slept = self.sleep.slept();
        if slept {
            tracing::warn!("the machine slept: its counter may have stopped, so the clock starts anew");
            self.start_anew();
        }
        slept
    }

    /// Forgets the clock: the counter went astray.
    pub fn start_anew(&mut self) {
        let sources = self.sources.len();
        self.ensemble = Ensemble::new(&self.params, sources).expect("these parameters were taken before");
        self.inheritance = None;
        self.is_inherited = false;
        self.heard = Heard::default();
        self.content.clock = None;
        self.content.status = Status::Initializing;
        self.content.disruption_marker += 1;
    }

    /// How long until UTC's seconds are counted otherwise, if that is within `within`.
    pub fn until_leap(&self, within: Duration) -> Option<Duration> {
        let clock = self.clock()?;
        let left = self.scale.until_edge(clock.time_at(self.now()?))?;
        let left = Duration::from_nanos(u64::try_from(left.ceil_nanos()).ok()?);
        (left < within).then_some(left)
    }

    /// Lays out the next page; says whether there is anything new to publish.
    pub fn update(&mut self) -> bool {
        // Its bound grows faster once nobody confirms it.
        if let Some(now) = self.now().filter(|&now| self.ensemble.status(now) == Status::Freerunning) {
            self.ensemble.update(now);
        }
        if let Some(mut clock) = self.clock() {
            let mut valid_nanos = self.valid_nanos();
            self.content.status = Status::Unreliable;
            if let Some(now) = self.now() {
                self.content.status = self.status(&clock, now);
                if self.content.status == Status::Freerunning {
                    // By the configured validity, before the algorithm says so.
                    clock = unconfirmed(clock, valid_nanos, now);
                    valid_nanos = 0;
                }
                if self.scale.utc(clock.time).indicator != self.scale.utc(clock.time_at(now)).indicator {
                    // What is published of leap seconds is that of the reference instant.
                    let age = clock.period.span(now.since(clock.counter)).ceil_nanos();
                    valid_nanos = valid_nanos.saturating_add_signed(age.saturating_neg());
                    let max_error_nanos = clock.max_error_at(now).ceil_nanos().unsigned_abs();
                    clock = Clock { counter: now, time: clock.time_at(now), max_error_nanos, ..clock };
                }
            }
            let utc = self.scale.utc(clock.time);
            self.content.clock = Some(Clock { time: utc.time, ..clock });
            self.is_inherited = false;
            self.content.valid_nanos = valid_nanos;
            self.content.leap_indicator = utc.indicator;
            self.content.tai_offset = self.scale.tai_offset(&utc);
            self.lay_out();
            return true;
        } else if self.content.clock.is_some() {
            // Still the clock of the daemon before, or the last one that went with it.
            return self.is_left_behind() && self.free_run();
        }
        self.publish();
        true
    }

    /// The page as another update, since what is derived from it changes. Its reference may have moved on across the leap second that
    /// it speaks of, which is still the same one.
    pub fn publish(&mut self) {
        let leap_sec = self.page.ext.leap_sec;
        self.lay_out();
        self.page.ext.leap_sec = leap_sec;
    }

    fn lay_out(&mut self) {
        self.content.generation += 1;
        self.page = Page::new(&self.content);
    }

    /// Marks the clock as confirmed by nobody; says whether there is a clock.
    pub fn free_run(&mut self) -> bool {
        let (Some(clock), Some(now)) = (self.content.clock, self.now()) else { return false };
        self.content.clock = Some(unconfirmed(clock, self.content.valid_nanos, now));
        self.content.valid_nanos = 0;
        self.content.status = Status::Freerunning;
        self.publish();
        true
    }

    /// The bound on the clock's error now.
    pub fn bound_now(&self) -> Option<Span> {
        Some(self.content.clock?.max_error_at(self.now()?))
    }

    /// What keeps the clock from being synchronised, or will.
    pub fn problem(&self) -> Option<String> {
        if self.ensemble.is_divided() {
            return Some("the servers contradict each other, and no time has a majority".to_owned());
        }
        if self.is_vetoed() {
            return Some(
                "the servers contradict the clock that the daemon before left (if that one was wrong: stop radclockd, remove \
                 the pages in its run directory, start it)"
                    .to_owned(),
            );
        }
        self.is_unlisted.then(|| {
            "the servers announce a leap second that the leap-second list does not know: not followed".to_owned()
        })
    }

    /// What is thought of a source, and what the algorithm says of it.
    pub fn opinion(&self, source: usize) -> (Opinion, SyncReport) {
        (self.ensemble.opinion(source), self.ensemble.report(source).clone())
    }

    /// The clock now, for the status socket.
    pub fn report(&self) -> ClockReport {
        let now = self.now();
        let clock = self.content.clock.zip(now);
        let aged = clock.map(|(clock, now)| clock.period.span(now.since(clock.counter)));
        let stale = aged.is_some_and(|age| age > nanos(self.content.valid_nanos));
        let status = if stale && self.content.status == Status::Synchronized {
            Status::Freerunning
        } else {
            self.content.status
        };
        let time: Option<Timestamp> = clock.map(|(clock, now)| clock.time_at(now));
        ClockReport {
            status,
            generation: self.content.generation,
            time: time.map(|time| time.to_string()),
            max_error_ns: clock.map(|(clock, now)| clock.max_error_at(now).ceil_nanos().unsigned_abs()),
            age_s: aged.map(Span::as_secs_f64),
            tai_offset_s: self.content.tai_offset,
            leap: match self.content.leap_indicator {
                LEAP_PRE_POS => Some(LeapKind::Insert),
                LEAP_PRE_NEG => Some(LeapKind::Delete),
                _ => None,
            },
            problem: self.problem(),
            sync: self.ensemble.report(self.ensemble.heaviest()).clone(),
        }
    }
}

/// Reads the leap-second list that is configured, if one is. The default one may lack: then there is no list.
pub fn leap_list(configured: &LeapSeconds) -> anyhow::Result<Option<LeapList>> {
    let Some(path) = &configured.0 else { return Ok(None) };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let list = LeapList::parse(&text)
                .with_context(|| format!("{} is no leap-second list (clock.leap_seconds)", path.display()))?;
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            if list.expires <= now.as_secs() {
                tracing::warn!(
                    "{} has expired: TAI - UTC is not published, and leap seconds are what the servers announce; update \
                     tzdata",
                    path.display()
                );
            }
            Ok(Some(list))
        }
        Err(error) if *configured == LeapSeconds::default() && error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!("{} is missing: TAI - UTC is not known; install tzdata", path.display());
            Ok(None)
        }
        Err(error) => Err(error)
            .with_context(|| format!("{}: cannot read the leap-second list (clock.leap_seconds)", path.display())),
    }
}

fn nanos(nanos: u64) -> Span {
    Span::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}

/// A clock of which nobody takes care from now on. One with no validity left runs free already.
fn unconfirmed(clock: Clock, valid_nanos: u64, now: Counter) -> Clock {
    if valid_nanos > 0 { clock.free_running(valid_nanos, now) } else { clock }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::LocalCounter;
    use radclock::stamp::StampSource;

    fn keeper(sources: usize) -> Keeper {
        let counter = Arc::new(HostCounter::Local(LocalCounter::MonotonicRaw));
        Keeper::new(SyncParams::default(), sources, None, counter, [7; 16], 1 << 50).expect("a keeper")
    }

    /// One that takes 200 us, by a server that is so far ahead, s.
    fn stamp(at: Counter, ahead: f64) -> Stamp {
        let time = Timestamp::new(1_800_000_000, 0).saturating_add(Span::from_nanos(at.0 as i64 + 100_000));
        let time = time.saturating_add(Span::from_secs_f64(ahead));
        Stamp {
            ta: at,
            tb: time,
            te: time,
            tf: at.offset(200_000),
            host_error: Span::ZERO,
            root_delay: Span::ZERO,
            root_dispersion: Span::ZERO,
            source: StampSource::Kernel,
        }
    }

    /// What a daemon that is no more left at `at`.
    fn left(at: Counter) -> Page {
        let mut keeper = keeper(1);
        keeper.content.status = Status::Synchronized;
        keeper.content.clock = Some(Clock {
            counter: at,
            time: Timestamp::new(1_800_000_000, 0),
            period: radclock::clock::Period::from_secs_f64(1e-9).expect("a period"),
            period_max_error: 1 << 30,
            max_error_nanos: 300_000,
        });
        keeper.publish();
        *keeper.page()
    }

    #[test]
    fn the_page_says_how_far_the_clock_that_was_left_is_in_doubt_as_long_as_it_shows_it() {
        let mut keeper = keeper(1);
        let start = keeper.now().expect("a reading");
        let page = left(start);
        keeper.take_over(&page, Span::from_nanos(1000));
        let shown = |keeper: &Keeper| {
            (keeper.content.generation, keeper.page.abi.clock().expect("a clock").max_error_nanos / 1000)
        };
        let (generation, bound) = shown(&keeper);
        assert_eq!(bound, 301);
        assert!(!keeper.doubt(Span::from_nanos(5000)), "it is in hand");
        assert!(keeper.doubt(Span::from_nanos(9000)));
        assert_eq!(shown(&keeper), (generation + 1, 309));
        assert!(keeper.doubt(Span::from_secs(3)));
        assert_eq!(shown(&keeper), (generation + 2, 3_000_300));
        assert!(!keeper.doubt(Span::ZERO));
        keeper.start_anew();
        assert!(!keeper.is_inheriting() && !keeper.doubt(Span::from_secs(9)));
    }

    /// A daemon was killed before a leap second, and the next one starts after it.
    #[test]
    fn what_was_left_knows_its_leap_second_as_long_as_it_is_shown() {
        const MONTH: u64 = 1_483_228_800;
        let leap = radclock::leap::LeapSecond { month: MONTH, kind: LeapKind::Insert };
        let list = LeapList { first_offset: 36, leaps: vec![leap], expires: MONTH + 1_000_000 };
        for list in [None, Some(list)] {
            let first_offset = list.as_ref().map_or(0, |list| i64::from(list.first_offset));
            let mut keeper = keeper(1);
            keeper.scale = LeapScale::new(list);
            let now = keeper.now().expect("a reading");
            let mut page = left(now.offset(-60_000_000_000));
            page.abi.time_sec.set(MONTH - 30);
            page.abi.leap_indicator = LEAP_PRE_POS;
            page.ext.leap_sec.set(MONTH);
            page.ext.valid_nanos.set(128_000_000_000);
            keeper.take_over(&page, Span::ZERO);
            let utc =
                |page: &Page| page.reading_at(now).expect("a time").time.saturating_add(Span::from_nanos(1)).secs();
            assert_eq!(utc(keeper.page()), MONTH + 29);
            // Of servers that count on after it.
            let after = if first_offset == 0 { 0 } else { first_offset + 1 };
            let on_scale = keeper.inheritance.expect("a veto").clock().time_at(now);
            assert_eq!(on_scale.saturating_add(Span::from_nanos(1)).secs(), (MONTH as i64 + 29 + after) as u64);

            assert!(keeper.doubt(Span::from_nanos(20_000)));
            assert_eq!((utc(keeper.page()), keeper.page().ext.leap_sec.get()), (MONTH + 29, MONTH));
            keeper.publish();
            assert_eq!(utc(keeper.page()), MONTH + 29);
            assert!(keeper.free_run());
            assert_eq!(utc(keeper.page()), MONTH + 29);
        }
    }

    /// Readers add nothing to a page whose validity is 0.
    #[test]
    fn a_clock_whose_configured_validity_has_run_out_lets_its_bound_grow() {
        let mut keeper = keeper(1);
        keeper.max_valid_nanos = 5_000_000_000;
        let start = keeper.now().expect("a reading").offset(-40_000_000_000);
        for second in 0..20 {
            assert_eq!(keeper.process(0, &stamp(start.offset(second * 1_000_000_000), 0.0), Counts::Utc(None)), Ok(()));
        }
        let confirmed = keeper.clock().expect("a clock");
        assert_eq!(keeper.ensemble.status(keeper.now().expect("a reading")), Status::Synchronized);
        keeper.update();
        assert_eq!((keeper.content.status, keeper.content.valid_nanos), (Status::Freerunning, 0));
        let clock = keeper.content.clock.expect("a clock");
        assert!(clock.period_max_error > confirmed.period_max_error + (confirmed.period.frac >> 21));
    }

    #[test]
    fn what_servers_say_of_the_clock_is_remembered() {
        let mut keeper = keeper(1);
        let start = keeper.now().expect("a reading");
        let mut say = |second: i64, ahead| {
            let stamp = stamp(start.offset(second * 1_000_000_000), ahead);
            let complaint = keeper.process(0, &stamp, Counts::Utc(None)).err();
            keeper.update();
            (complaint, keeper.heard(), stamp.tf)
        };
        let (_, heard, _) = say(0, 0.0);
        assert_eq!(heard.agreed, None, "there is no clock that it could agree with");
        let (complaint, heard, tf) = (1..10).map(|second| say(second, 0.0)).last().expect("some");
        assert_eq!((complaint, heard.agreed, heard.refused), (None, Some(tf), None));
        let (complaint, heard, later) = say(10, 43.0);
        assert_eq!((complaint, heard.agreed), (Some(Complaint::Insane), Some(tf)));
        let (at, ahead) = heard.refused.expect("it was");
        assert!(at == later && (ahead.as_secs_f64() - 43.0).abs() < 1e-3, "{ahead:?}");
        keeper.start_anew();
        assert!(keeper.heard().agreed.is_none() && keeper.heard().refused.is_none());
    }

    #[test]
    fn a_clock_that_starts_anew_at_another_period_is_one_soon() {
        let mut keeper = keeper(1);
        // By Xen's system time as it was at the start, 1 % off.
        keeper.start_anew_at(1.01e-9);
        let clock = |keeper: &mut Keeper, from: u64| {
            for second in from..from + 20 {
                // 1 ms away, so that the wrong period is no impossible delay.
                let stamp = stamp(Counter(second * 1_000_000_000), 0.0);
                let _ = keeper.process(0, &Stamp { tf: stamp.ta.offset(1_000_000), ..stamp }, Counts::Utc(None));
            }
            keeper.ensemble.report(0).insane
        };
        assert!(clock(&mut keeper, 1) > 0);
        keeper.start_anew_at(1e-9);
        assert_eq!((clock(&mut keeper, 21), keeper.nominal_period()), (0, 1e-9));
        assert!(keeper.clock().is_some());
        keeper.update();
        let changed = [0.0, f64::INFINITY, f64::NAN, 1.0].map(|nonsense| keeper.start_anew_at(nonsense));
        assert_eq!(changed, [true, false, false, false]);
        assert_eq!((keeper.clock(), keeper.nominal_period()), (None, 1e-9));
    }

    #[test]
    fn a_source_of_tai_without_an_offset_is_not_waited_for() {
        let mut keeper = keeper(2);
        for second in 1..=8 {
            assert_eq!(keeper.process(0, &stamp(Counter(second * 1_000_000_000), 0.0), Counts::Utc(None)), Ok(()));
            assert_eq!(
                keeper.process(1, &stamp(Counter(second * 1_000_000_000), 0.0), Counts::Tai(None)),
                Err(Complaint::NoTaiOffset)
            );
        }
        assert!(keeper.clock().is_some());
        assert_eq!(keeper.opinion(1).0.standing, Standing::Silent);
    }
}
