//! What to do with the kernel's clock, given what was seen of it and of the shared clock: looks in, adjustments out. No
//! clock is read and nothing is set here.
//!
//! Feed-forward: the shared clock says how far off the kernel's clock is, and how fast it would run by itself. Both are
//! known quantities that are taken out, open loop; there is no filter that has to settle and none that can be upset.

use std::collections::VecDeque;

use xen_radclock::{Span, Timestamp};

/// The largest frequency that the kernel takes, relative (Linux, `include/linux/timex.h`, `MAXFREQ`).
pub const MAX_FREQUENCY: f64 = 500e-6;
/// The kernel's tick at its nominal rate, µs.
pub const NOMINAL_TICK: i64 = 10_000;
/// In so many intervals an offset is to be gone. More than one, so that a look that comes late does not overshoot.
const HORIZON: f64 = 2.0;
/// The rate is taken over the last so many intervals.
const WINDOW: f64 = 8.0;
/// A rate that may be wrong by more than this, relative, is not used.
const RATE_UNCERTAINTY: f64 = 10e-6;
/// What the kernel's clock may do against its raw counterpart beyond what was set, before somebody else is blamed for it:
/// a fixed part, s, and a relative one. A new frequency begins up to a timer tick late.
const UNEXPLAINED: (f64, f64) = (200e-6, 100e-6);
/// No clock runs so fast or slow, relative: its seconds were counted otherwise meanwhile. A leap second is more than that of each window.
const NO_RATE: f64 = 2.0 * MAX_FREQUENCY;
/// What the times that a machine slept may differ by without its having slept, ns.
const NO_SLEEP: i64 = 1_000_000;
/// Rounding of a frequency on its way into the kernel and back, 2⁻¹⁶ ppm.
const FREQUENCY_ROUNDING: i64 = 2;

/// How the clock is to be led.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From one look to the next, s.
    pub interval: f64,
    /// How much faster or slower than right the clock may run to make up for an offset, relative.
    pub max_slew: f64,
    /// When it may be stepped.
    pub step: Step,
    /// Offsets from this on are stepped where that is allowed; others are slewed.
    pub step_threshold: Span,
}

/// When the clock may be stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Step {
    /// Never
    Never,
    /// At the first reading only
    Start,
    /// At the first reading, and at the first one after a disruption (migration, restore)
    Disruption,
    /// Whenever it is off by the threshold
    Always,
}

/// A coming leap second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leap {
    /// None today.
    #[default]
    None,
    /// One is inserted at the end of this UTC day.
    Insert,
    /// The last second of this UTC day is left out.
    Delete,
}

/// A frequency as the kernel has it: by how much the clock is made to run fast, 2⁻¹⁶ ppm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frequency(pub i64);

impl Frequency {
    const UNIT: f64 = 1e-6 / 65_536.0;

    /// The nearest one in the kernel's range.
    pub fn from_relative(relative: f64) -> Frequency {
        Frequency((relative.clamp(-MAX_FREQUENCY, MAX_FREQUENCY) / Frequency::UNIT).round() as i64)
    }

    /// As a fraction of the clock's rate.
    pub fn relative(self) -> f64 {
        self.0 as f64 * Frequency::UNIT
    }
}

/// What the kernel says of its adjustments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As set.
    pub frequency: Frequency,
    /// Its other, coarse frequency, µs a tick.
    pub tick: i64,
    /// Whether one of the kernel's own loops (PLL, FLL, PPS) adjusts the clock.
    pub loops: bool,
    /// TAI − UTC, s.
    pub tai_offset: i32,
}

impl Kernel {
    /// What the tick adds to the frequency, relative.
    pub fn tick_part(&self) -> f64 {
        (self.tick - NOMINAL_TICK) as f64 / NOMINAL_TICK as f64
    }
}

/// One look at all clocks at the same instant.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// `CLOCK_MONOTONIC_RAW`, ns.
    pub raw: i64,
    /// How long the machine slept since it booted, ns: at least, and at most.
    pub asleep: (i64, i64),
    /// `CLOCK_REALTIME`.
    pub real: Timestamp,
    /// The clocks were read within this of the same instant, on either side.
    pub uncertainty: Span,
    /// The shared clock's, if its page could be read at all.
    pub disruption_marker: Option<u64>,
    /// What the shared clock said, if it could be read.
    pub shared: Result<Shared, Unreadable>,
    /// What the kernel said just before.
    pub kernel: Kernel,
}

/// A reading of the shared clock.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// UTC.
    pub time: Timestamp,
    /// Bound on its error.
    pub max_error: Span,
    /// TAI − UTC, s, if known.
    pub tai_offset: Option<i16>,
    /// A leap second of today.
    pub leap: Leap,
}

/// Why there is no reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A leap second is happening, and the shared clock is not past it yet.
    Leap,
    /// Whatever else.
    Other,
}

/// What to do to the kernel's clock, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjustment {
    /// Set the clock forward by so much (back if negative).
    pub step: Option<Span>,
    /// Set this frequency.
    pub frequency: Frequency,
    /// Say this of the clock's quality.
    pub quality: Quality,
    /// TAI − UTC, s, if it has to be set.
    pub tai_offset: Option<i32>,
    /// What is going on, for people.
    pub state: State,
}

/// What the kernel is told of its clock's quality.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quality {
    /// Right to within `max_error`.
    Synchronized {
        /// Bound on the error, the offset that is still to be slewed included.
        max_error: Span,
        /// The part of it that is due to this guest's clock.
        est_error: Span,
        /// For the kernel to carry out.
        leap: Leap,
    },
    /// Nobody vouches for it from now on; the kernel lets the bound grow from the last one.
    Unsynchronized,
    /// It may be off by anything.
    Unknown,
}

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The clock follows the shared clock.
    Following,
    /// It is off by the threshold or more, and on its way.
    Slewing,
    /// The shared clock cannot be read.
    Holding,
}

/// Somebody else adjusts the clock.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Conflict {
    /// Its frequency is not the one that was set.
    #[error("its frequency was {found:+.3} ppm where {set:+.3} ppm was set", found = .found.relative() * 1e6, set = .set.relative() * 1e6)]
    Frequency {
        /// By this service.
        set: Frequency,
        /// Now.
        found: Frequency,
    },
    /// So is its tick.
    #[error("its tick was {found} us where {before} us was found at first")]
    Tick {
        /// At first.
        before: i64,
        /// Now.
        found: i64,
    },
    /// One of the kernel's own loops was switched on.
    #[error("one of the kernel's own loops (PLL, FLL or PPS) was switched on")]
    Loop,
    /// It moved by what was not asked for, s.
    #[error("it was stepped by {0:+.6} s")]
    Stepped(f64),
}

/// What was set last, and when.
#[derive(Clone, Copy, Debug)]
struct Applied {
    raw: i64,
    real: Timestamp,
    uncertainty: Span,
    frequency: Frequency,
    tick: i64,
    leap: Leap,
}

/// What must be true before the clock may be stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    Start,
    Disruption,
    None,
}

/// The state from look to look.
#[derive(Clone, Debug)]
pub struct Steering {
    settings: Settings,
    /// The frequency at which the kernel's clock runs right, relative.
    rate: f64,
    /// Readings since the last disruption: raw, shared time, uncertainty.
    readings: VecDeque<(i64, Timestamp, Span)>,
    occasion: Occasion,
    disruption_marker: Option<u64>,
    /// At most, ns.
    asleep: Option<i64>,
    /// The machine slept, and the shared clock does not know it yet: its counter may have stopped.
    is_outdated: bool,
    applied: Option<Applied>,
}

impl Steering {
    /// Begins with the frequency that the kernel has: the best guess before the first two readings.
    pub fn new(settings: Settings, kernel: &Kernel) -> Steering {
        Steering {
            settings,
            rate: kernel.frequency.relative() + kernel.tick_part(),
            readings: VecDeque::new(),
            occasion: Occasion::Start,
            disruption_marker: None,
            asleep: None,
            is_outdated: false,
            applied: None,
        }
    }

    /// What to do after this look; nothing during a leap second, which the kernel carries out by itself.
    pub fn look(&mut self, look: &Look) -> Result<Option<Adjustment>, Conflict> {
        let markers = self.disruption_marker.zip(look.disruption_marker);
        let disrupted = markers.is_some_and(|(before, now)| before != now);
        let slept = self.asleep.is_some_and(|most| look.asleep.0 - most > NO_SLEEP);
        if let Some(applied) = self.applied {
            // The kernel itself sets its clock when it resumes.
            let by_itself = disrupted || slept || look.disruption_marker.is_none();
            check(&applied, look, by_itself)?;
        }
        self.disruption_marker = look.disruption_marker.or(self.disruption_marker);
        self.asleep = Some(look.asleep.1);
        self.is_outdated = !disrupted && (slept || self.is_outdated);
        if disrupted || slept {
            self.readings.clear();
            if self.occasion == Occasion::None {
                self.occasion = Occasion::Disruption;
            }
        }
        let adjustment = match look.shared {
            Ok(_) if self.is_outdated => self.hold(look),
            Ok(shared) => self.follow(look, &shared),
            Err(Unreadable::Leap) => return Ok(None),
            Err(Unreadable::Other) => self.hold(look),
        };
        self.applied = Some(Applied {
            raw: look.raw,
            real: look.real.saturating_add(adjustment.step.unwrap_or(Span::ZERO)),
            uncertainty: look.uncertainty,
            frequency: adjustment.frequency,
            tick: look.kernel.tick,
            leap: match adjustment.quality {
                Quality::Synchronized { leap, .. } => leap,
                // Left as it is in the kernel.
                _ => self.pending_leap(),
            },
        });
        Ok(Some(adjustment))
    }

    /// The frequency to leave the clock with: right, but making up for no offset any more.
    pub fn free_running(&self, kernel: &Kernel) -> Frequency {
        Frequency::from_relative(self.rate - kernel.tick_part())
    }

    /// The leap second that the kernel was told of last.
    fn pending_leap(&self) -> Leap {
        self.applied.map_or(Leap::None, |applied| applied.leap)
    }

    fn follow(&mut self, look: &Look, shared: &Shared) -> Adjustment {
        let Settings { interval, max_slew, step_threshold, .. } = self.settings;
        self.measure_rate(look, shared);
        let offset = look.real.since(shared.time);
        let far = offset.abs() >= step_threshold;
        let step = (far && self.may_step()).then_some(-offset);
        self.occasion = Occasion::None;
        let left = offset + step.unwrap_or(Span::ZERO);
        // An offset that may be due to the look alone is none.
        let certain = (left.abs() - look.uncertainty).as_secs_f64().max(0.0);
        let correction = (certain / (HORIZON * interval)).min(max_slew);
        let correction = if left > Span::ZERO { -correction } else { correction };
        let est_error = left.abs() + look.uncertainty;
        let kernels_tai = i32::from(shared.tai_offset.unwrap_or_default());
        Adjustment {
            step,
            frequency: Frequency::from_relative(self.rate + correction - look.kernel.tick_part()),
            quality: Quality::Synchronized { max_error: shared.max_error + est_error, est_error, leap: shared.leap },
            tai_offset: shared.tai_offset.is_some().then_some(kernels_tai).filter(|tai| *tai != look.kernel.tai_offset),
            state: if far && step.is_none() { State::Slewing } else { State::Following },
        }
    }

    fn hold(&self, look: &Look) -> Adjustment {
        // After the start or a disruption nothing has been read yet, so nothing is known.
        let known = self.occasion == Occasion::None;
        Adjustment {
            step: None,
            frequency: self.free_running(&look.kernel),
            quality: if known { Quality::Unsynchronized } else { Quality::Unknown },
            tai_offset: None,
            state: State::Holding,
        }
    }

    fn may_step(&self) -> bool {
        match self.settings.step {
            Step::Never => false,
            Step::Start => self.occasion == Occasion::Start,
            Step::Disruption => self.occasion != Occasion::None,
            Step::Always => true,
        }
    }

    /// The rate is that of the times, not the page's period: where the counter's frequency changes (a TSC scale that Xen
    /// recalibrates), the period as of now says nothing of the whole window.
    fn measure_rate(&mut self, look: &Look, shared: &Shared) {
        let since = |raw: i64| (look.raw - raw) as f64 * 1e-9;
        while self.readings.len() > 1
            && self.readings.front().is_some_and(|(raw, ..)| since(*raw) > WINDOW * self.settings.interval)
        {
            self.readings.pop_front();
        }
        let rates = self.readings.iter().filter(|(raw, ..)| since(*raw) > 0.0).map(|(raw, time, uncertainty)| {
            let wrong = (*uncertainty + look.uncertainty).as_secs_f64() / since(*raw);
            (wrong, shared.time.since(*time).as_secs_f64() / since(*raw) - 1.0)
        });
        if let Some((wrong, rate)) = rates.min_by(|a, b| a.0.total_cmp(&b.0))
            && wrong <= RATE_UNCERTAINTY
        {
            if rate.abs() < NO_RATE {
                self.rate = rate.clamp(-MAX_FREQUENCY, MAX_FREQUENCY);
            } else {
                self.readings.clear();
            }
        }
        self.readings.push_back((look.raw, shared.time, look.uncertainty));
    }
}

/// Whether the kernel's clock did what was set, and nothing else, unless the kernel may have set it by itself.
fn check(applied: &Applied, look: &Look, by_itself: bool) -> Result<(), Conflict> {
    let kernel = &look.kernel;
    if kernel.loops {
        return Err(Conflict::Loop);
    }
    if (kernel.frequency.0 - applied.frequency.0).abs() > FREQUENCY_ROUNDING {
        return Err(Conflict::Frequency { set: applied.frequency, found: kernel.frequency });
    }
    if kernel.tick != applied.tick {
        return Err(Conflict::Tick { before: applied.tick, found: kernel.tick });
    }
    if by_itself {
        return Ok(());
    }
    let raw = (look.raw - applied.raw) as f64 * 1e-9;
    let expected = raw * (1.0 + applied.frequency.relative() + kernel.tick_part());
    let unexplained = look.real.since(applied.real).as_secs_f64() - expected;
    let (fixed, relative) = UNEXPLAINED;
    let limit = fixed + relative * raw + (applied.uncertainty + look.uncertainty).as_secs_f64();
    let leap = match applied.leap {
        Leap::None => 0.0,
        Leap::Insert => -1.0,
        Leap::Delete => 1.0,
    };
    if unexplained.abs() > limit && (unexplained - leap).abs() > limit {
        return Err(Conflict::Stepped(unexplained));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A guest in which time passes as told: a kernel's clock over a raw one, and a shared clock that is right.
    struct Guest {
        now: f64,
        raw: f64,
        /// The machine slept so long, ns.
        asleep: i64,
        /// The kernel's clock less the true time, s.
        offset: f64,
        /// How much faster than true time the raw clock runs, relative.
        raw_rate: f64,
        kernel: Kernel,
        marker: Option<u64>,
        shared: Result<Leap, Unreadable>,
        uncertainty: Span,
        noise: f64,
    }

    const START: u64 = 1_795_348_800;
    const TAI: i16 = 37;

    impl Guest {
        fn new(offset: f64, raw_rate: f64) -> Guest {
            let kernel = Kernel { frequency: Frequency(0), tick: NOMINAL_TICK, loops: false, tai_offset: 0 };
            Guest {
                now: 0.0,
                raw: 1000.0,
                asleep: 0,
                offset,
                raw_rate,
                kernel,
                marker: Some(1),
                shared: Ok(Leap::None),
                uncertainty: Span::from_nanos(500),
                noise: 0.0,
            }
        }

        fn pass(&mut self, seconds: f64) {
            let raw = seconds * (1.0 + self.raw_rate);
            let real = raw * (1.0 + self.kernel.frequency.relative() + self.kernel.tick_part());
            self.now += seconds;
            self.raw += raw;
            self.offset += real - seconds;
        }

        fn look(&self) -> Look {
            let time = Timestamp::from_unix(START, 0).saturating_add(Span::from_secs_f64(self.now));
            Look {
                raw: (self.raw * 1e9) as i64,
                asleep: (self.asleep - 300, self.asleep + 400),
                real: time.saturating_add(Span::from_secs_f64(self.offset + self.noise)),
                uncertainty: self.uncertainty,
                disruption_marker: self.marker,
                shared: self.shared.map(|leap| Shared {
                    time,
                    max_error: Span::from_nanos(20_000),
                    tai_offset: Some(TAI),
                    leap,
                }),
                kernel: self.kernel,
            }
        }

        fn apply(&mut self, adjustment: &Adjustment) {
            self.offset += adjustment.step.unwrap_or(Span::ZERO).as_secs_f64();
            self.kernel.frequency = adjustment.frequency;
            self.kernel.tai_offset = adjustment.tai_offset.unwrap_or(self.kernel.tai_offset);
        }

        /// A look and what follows from it.
        fn turn(&mut self, steering: &mut Steering) -> Adjustment {
            let adjustment = steering.look(&self.look()).unwrap().unwrap();
            self.apply(&adjustment);
            adjustment
        }
    }

    fn settings(step: Step) -> Settings {
        Settings { interval: 1.0, max_slew: 200e-6, step, step_threshold: Span::from_nanos(1_000_000) }
    }

    fn started(guest: &Guest, step: Step) -> Steering {
        Steering::new(settings(step), &guest.kernel)
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop::sample::select(&[Step::Never, Step::Start, Step::Disruption, Step::Always])
    }

    proptest! {
        #[test]
        fn any_offset_is_slewed_away_at_the_limit_and_never_stepped_if_that_is_forbidden(
            offset in -0.02..0.02,
            // With the tick and the largest slew just within the kernel's range.
            raw_rate in -190e-6..190e-6,
            tick in -1i64..=1,
            waits in prop::collection::vec(0.3..2.5f64, 150),
            noise in prop::collection::vec(-500e-9..500e-9f64, 150),
        ) {
            let mut guest = Guest::new(offset, raw_rate);
            guest.kernel.tick += tick;
            let mut steering = started(&guest, Step::Never);
            // The rate is unknown at first: by as much as the raw clock is off, and the tick.
            let unknown: f64 = (raw_rate.abs() + 100e-6) * 2.5;
            let slewing = (offset.abs() + unknown) / 200e-6;
            for (wait, noise) in waits.into_iter().zip(noise) {
                guest.noise = noise;
                let before = guest.offset;
                let adjustment = guest.turn(&mut steering);
                prop_assert_eq!(adjustment.step, None);
                guest.pass(wait);
                let moved = (guest.offset - before).abs();
                prop_assert!(guest.now < 5.0 || moved <= (200e-6 + 3e-6) * wait, "moved {} in {} s", moved, wait);
                if guest.now > slewing + 25.0 {
                    prop_assert!(guest.offset.abs() < 8e-6, "still off by {} after {} s", guest.offset, guest.now);
                }
            }
        }

        #[test]
        fn steps_come_only_when_allowed_and_leave_nothing(
            step in any_step(),
            offset in -1e4..1e4f64,
            disruption in -1e4..1e4f64,
            raw_rate in -100e-6..100e-6,
        ) {
            prop_assume!(offset.abs() > 0.01 && disruption.abs() > 0.01);
            let mut guest = Guest::new(offset, raw_rate);
            let mut steering = started(&guest, step);
            let stepped = |adjustment: Adjustment| adjustment.step.is_some();
            prop_assert_eq!(stepped(guest.turn(&mut steering)), step >= Step::Start);
            if step >= Step::Start {
                prop_assert!(guest.offset.abs() < 1e-6);
            }
            for _ in 0..5 {
                guest.pass(1.0);
                prop_assert!(!stepped(guest.turn(&mut steering)) || step == Step::Always);
            }
            guest.shared = Err(Unreadable::Other);
            guest.marker = Some(2);
            guest.offset += disruption;
            guest.pass(1.0);
            prop_assert!(!stepped(guest.turn(&mut steering)));
            guest.shared = Ok(Leap::None);
            prop_assume!(guest.offset.abs() > 0.001);
            prop_assert_eq!(stepped(guest.turn(&mut steering)), step >= Step::Disruption);
            guest.pass(1.0);
            prop_assert!(!stepped(guest.turn(&mut steering)));
        }

        #[test]
        fn the_kernel_is_told_a_bound_that_holds(
            offset in -0.5..0.5,
            raw_rate in -250e-6..250e-6,
            step in any_step(),
            noise in prop::collection::vec(-500e-9..500e-9f64, 40),
        ) {
            let mut guest = Guest::new(offset, raw_rate);
            let mut steering = started(&guest, step);
            for noise in noise {
                guest.noise = noise;
                let adjustment = guest.turn(&mut steering);
                let Quality::Synchronized { max_error, .. } = adjustment.quality else {
                    panic!("{adjustment:?}");
                };
                prop_assert!(guest.offset.abs() <= max_error.as_secs_f64());
                guest.pass(1.0);
                // The kernel adds 500 ppm by itself.
                prop_assert!(guest.offset.abs() <= max_error.as_secs_f64() + MAX_FREQUENCY);
            }
        }

        #[test]
        fn a_frequency_or_time_that_somebody_else_sets_is_noticed(
            raw_rate in -100e-6..100e-6,
            by in 0.001..100f64,
            back in any::<bool>(),
            which in 0..4,
        ) {
            let mut guest = Guest::new(0.0, raw_rate);
            let mut steering = started(&guest, Step::Always);
            for _ in 0..10 {
                guest.turn(&mut steering);
                guest.pass(1.0);
            }
            let by = if back { -by } else { by };
            match which {
                0 => guest.offset += by,
                1 => guest.kernel.frequency.0 += (by * 65_536.0) as i64,
                2 => guest.kernel.tick += if back { -1 } else { 1 },
                _ => guest.kernel.loops = true,
            }
            let conflict = steering.look(&guest.look());
            match (which, conflict) {
                (0, Err(Conflict::Stepped(seen))) => prop_assert!((seen - by).abs() < 1e-4),
                (1, Err(Conflict::Frequency { .. })) | (2, Err(Conflict::Tick { .. })) | (3, Err(Conflict::Loop)) => {}
                (_, other) => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn an_outage_holds_the_right_rate_and_says_that_nobody_vouches() {
        let mut guest = Guest::new(300e-6, 50e-6);
        let mut steering = started(&guest, Step::Disruption);
        for _ in 0..5 {
            guest.turn(&mut steering);
            guest.pass(1.0);
        }
        guest.shared = Err(Unreadable::Other);
        let held = guest.turn(&mut steering);
        assert_eq!((held.quality, held.state), (Quality::Unsynchronized, State::Holding));
        let before = guest.offset;
        for _ in 0..100 {
            guest.pass(1.0);
            guest.turn(&mut steering);
        }
        assert!((guest.offset - before).abs() < 100e-6, "{} s in 100 s", guest.offset - before);
        guest.shared = Ok(Leap::None);
        assert_eq!(guest.turn(&mut steering).state, State::Following);
    }

    #[test]
    fn nothing_is_known_before_the_first_reading_and_after_a_disruption() {
        let mut guest = Guest::new(0.0, 0.0);
        let mut steering = started(&guest, Step::Never);
        guest.shared = Err(Unreadable::Other);
        assert_eq!(guest.turn(&mut steering).quality, Quality::Unknown);
        guest.shared = Ok(Leap::None);
        guest.pass(1.0);
        guest.turn(&mut steering);
        guest.marker = Some(2);
        guest.shared = Err(Unreadable::Other);
        guest.pass(1.0);
        assert_eq!(guest.turn(&mut steering).quality, Quality::Unknown);
    }

    #[test]
    fn a_page_that_cannot_be_read_at_all_is_an_outage_and_may_hide_a_disruption() {
        let mut guest = Guest::new(0.0, 0.0);
        let mut steering = started(&guest, Step::Disruption);
        guest.turn(&mut steering);
        guest.pass(1.0);
        (guest.shared, guest.marker) = (Err(Unreadable::Other), None);
        assert_eq!(guest.turn(&mut steering).state, State::Holding);
        // The guest moves meanwhile.
        guest.offset = 5.0;
        guest.pass(1.0);
        assert_eq!(guest.turn(&mut steering).state, State::Holding);
        (guest.shared, guest.marker) = (Ok(Leap::None), Some(2));
        guest.pass(1.0);
        assert!(guest.turn(&mut steering).step.is_some());
    }

    #[test]
    fn a_reading_that_may_be_off_moves_the_clock_by_no_more_than_is_certain() {
        let mut guest = Guest::new(0.0, 0.0);
        let mut steering = started(&guest, Step::Never);
        for _ in 0..10 {
            guest.turn(&mut steering);
            guest.pass(1.0);
        }
        guest.noise = 900e-6;
        guest.uncertainty = Span::from_nanos(900_000);
        guest.turn(&mut steering);
        guest.pass(1.0);
        assert!(guest.offset.abs() < 2e-6, "{}", guest.offset);
    }

    #[test]
    fn the_kernel_is_left_alone_during_its_leap_second_and_told_of_tai() {
        let mut guest = Guest::new(0.0, 0.0);
        let mut steering = started(&guest, Step::Disruption);
        guest.shared = Ok(Leap::Insert);
        let told = guest.turn(&mut steering);
        assert!(matches!(told.quality, Quality::Synchronized { leap: Leap::Insert, .. }));
        assert_eq!(told.tai_offset, Some(TAI.into()));
        guest.pass(1.0);
        assert_eq!(guest.turn(&mut steering).tai_offset, None);
        guest.shared = Err(Unreadable::Leap);
        guest.pass(1.0);
        assert_eq!(steering.look(&guest.look()), Ok(None));
        // The kernel inserts the second, and the shared clock, which never was off, can be read again.
        let mut look = guest.look();
        look.real = look.real.saturating_sub(Span::from_secs(1));
        assert_eq!(steering.look(&look), Ok(None));
        look.shared = Ok(Shared {
            time: look.real,
            max_error: Span::from_nanos(20_000),
            tai_offset: Some(TAI + 1),
            leap: Leap::None,
        });
        let after = steering.look(&look).unwrap().unwrap();
        assert_eq!((after.step, after.tai_offset), (None, Some(i32::from(TAI) + 1)));
    }

    /// However long the window is, and whether a look falls into the leap second or not.
    #[test]
    fn a_leap_second_is_no_rate() {
        for (interval, leap) in [(1.0, 1), (1.0, -1), (64.0, 1), (64.0, -1)] {
            let mut guest = Guest::new(0.0, 20e-6);
            let mut steering = Steering::new(Settings { interval, ..settings(Step::Disruption) }, &guest.kernel);
            for turn in 0..40 {
                if turn == 20 {
                    guest.shared = Ok(if leap > 0 { Leap::Insert } else { Leap::Delete });
                }
                let mut look = guest.look();
                if turn > 20 {
                    // Of both clocks.
                    let shared = look.shared.as_mut().unwrap();
                    (shared.time, shared.leap) = (shared.time.saturating_sub(Span::from_secs(leap)), Leap::None);
                    look.real = look.real.saturating_sub(Span::from_secs(leap));
                }
                let adjustment = steering.look(&look).unwrap().unwrap();
                let ppm = adjustment.frequency.relative() * 1e6;
                assert!(turn < 12 || (ppm + 20.0).abs() < 3.0, "{ppm} ppm at {turn}");
                assert_eq!(adjustment.step, None);
                guest.apply(&adjustment);
                guest.pass(interval);
            }
            assert!(guest.offset.abs() < 100e-6, "{}", guest.offset);
        }
    }

    /// The kernel sets its clock, and the shared clock has not been told yet.
    #[test]
    fn a_machine_that_slept_is_nobody_who_adjusts_the_clock() {
        let mut guest = Guest::new(0.0, 20e-6);
        let mut steering = started(&guest, Step::Disruption);
        for _ in 0..5 {
            guest.turn(&mut steering);
            guest.pass(1.0);
        }
        guest.asleep += 3_600_000_000_000;
        guest.offset += 3600.0;
        for _ in 0..3 {
            let held = guest.turn(&mut steering);
            assert_eq!((held.step, held.quality, held.state), (None, Quality::Unknown, State::Holding));
            guest.pass(0.01);
        }
        guest.marker = Some(2);
        guest.turn(&mut steering);
        assert!(guest.offset.abs() < 1e-3);
        guest.pass(1.0);
        assert_eq!(guest.turn(&mut steering).state, State::Following);
    }
}
