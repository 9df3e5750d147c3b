//! The counter that is kept with Xen: the Xen Clocksource (Xen's system time), the host's TSC or its platform timer.
//!
//! Where Xen has the operation `XENPF_get_counters` of `hypervisor-patch/`, an instant is bracketed by two readings of
//! the TSC instead of two hypercalls: samples of all counters before and after them say what any counter was then. What
//! the counter is used for is none of this module's business.

use std::io;
use std::time::Duration;

use radclock::time::Counter;

use crate::counter::{Around, CounterChoice, CounterError, read_tsc};
use crate::relation::Sample;
use crate::xen::platform::{Timer, XenpfCounters};
use crate::xen::{HostCounters, SystemTime};

/// The counter, and the ways to read it.
#[derive(Debug)]
pub struct XenCounter {
    time: SystemTime,
    host: Option<Host>,
    kind: Kind,
}

/// A Xen that samples all counters at one instant.
#[derive(Debug)]
struct Host {
    counters: HostCounters,
    /// Nanoseconds of Xen's system time a count of the TSC, as measured at the start.
    tsc_nanos: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Clocksource,
    Tsc,
    /// Counted in units of 2^-shift of a count, since the algorithm is for counters of at least 20 MHz.
    Platform {
        frequency: u64,
        shift: u32,
    },
}

/// A count that was read between two values of the TSC of one CPU.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    earliest: u64,
    latest: u64,
    cpu: u32,
    count: Counter,
}

/// The slowest counter that `radclock::sync` takes.
const SLOWEST_HZ: u64 = 20_000_000;
/// Long enough that Xen's and our own rounding is below 1 ppm.
const CALIBRATION: Duration = Duration::from_millis(100);
/// How far the rate of a counter against the TSC may be from what it was at the start.
const RATE_SKEW: f64 = 500e-6;
/// Samples to find one in which this domain's TSC is the host's (it may be moved to another CPU in the midst of one), or to
/// choose the shortest from.
const TRIES: usize = 5;

impl XenCounter {
    /// By `choice`, if this Xen can: without our operation it is Xen's system time, and the log says so.
    ///
    /// # Errors
    ///
    /// Not Xen, not Dom0, no privileges; or a choice that makes sense only without Xen.
    pub fn open(choice: CounterChoice) -> Result<XenCounter, CounterError> {
        if choice == CounterChoice::MonotonicRaw {
            return Err(CounterError::OnlyLocal);
        }
        let time = SystemTime::open()?;
        let host = match Host::open(&time) {
            Ok(host) => Some(host),
            Err(reason) => {
                let fallback = "counting and bracketing by Xen's system time";
                match choice {
                    CounterChoice::Tsc | CounterChoice::Platform => {
                        tracing::warn!("{fallback}, not by what clock.counter says: {reason}");
                    }
                    _ => tracing::info!("{fallback}: {reason}"),
                }
                None
            }
        };
        let kind = match (choice, &host) {
            (CounterChoice::Tsc, Some(_)) => Kind::Tsc,
            (CounterChoice::Platform, Some(host)) => {
                let sample = host.counters.sample(Timer::Platform)?;
                tracing::info!("the platform timer is {} at {} Hz", sample.name(), sample.frequency);
                Kind::platform(sample.frequency)
            }
            _ => Kind::Clocksource,
        };
        if kind == Kind::Tsc
            && let Err(reason) = crate::counter::tsc_is_invariant()
        {
            tracing::warn!("counting by the TSC although it may stop or change its rate ({reason})");
        }
        Ok(XenCounter { time, host, kind })
    }

    /// The counter now.
    pub fn read(&self) -> io::Result<Counter> {
        match (self.kind, &self.host) {
            (Kind::Tsc, _) => Ok(read_tsc()),
            (Kind::Platform { .. }, Some(host)) => Ok(self.at(&host.counters.sample(Timer::Platform)?)),
            _ => Ok(Counter(self.time.now()?)),
        }
    }

    /// What it was at a sample of the platform timer.
    pub fn at(&self, sample: &XenpfCounters) -> Counter {
        self.kind.anchor(sample).count
    }

    /// Whether it is Xen's system time itself, as in guests' pages.
    pub fn is_system_time(&self) -> bool {
        self.kind == Kind::Clocksource
    }

    /// Whether it is this domain's TSC.
    pub fn is_tsc(&self) -> bool {
        self.kind == Kind::Tsc
    }

    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Clocksource => "xen-system-time",
            Kind::Tsc => "tsc",
            Kind::Platform { .. } => "platform",
        }
    }

    /// Its nominal period, s a count.
    pub fn nominal_period(&self) -> f64 {
        match (self.kind, &self.host) {
            (Kind::Tsc, Some(host)) => host.tsc_nanos * 1e-9,
            (Kind::Platform { frequency, shift }, _) => 1.0 / (frequency as f64 * f64::from(1u32 << shift)),
            _ => 1e-9,
        }
    }

    /// Between which counts `read` was done.
    pub fn around<T>(&self, read: impl FnOnce() -> T) -> io::Result<Around<T>> {
        match (self.kind, &self.host) {
            (Kind::Clocksource | Kind::Platform { .. }, Some(host)) => {
                let before = self.kind.anchor(&host.counters.sample(Timer::Platform)?);
                let (first, value, last) = (read_tsc(), read(), read_tsc());
                let after = self.kind.anchor(&host.counters.sample(Timer::Platform)?);
                let per_tsc = host.tsc_nanos * 1e-9 / self.nominal_period();
                let (low, high) = between(&before, first, last, &after, self.kind.unit(), per_tsc);
                Ok(Around { low, value, high })
            }
            _ => Ok(Around { low: self.read()?, value: read(), high: self.read()? }),
        }
    }

    /// This domain's TSC against Xen's system time.
    pub fn tsc_sample(&self) -> io::Result<Sample> {
        if let Some(host) = &self.host
            && let Some(sample) = host.sample()?
        {
            return Ok(Sample { tsc: Counter(sample.tsc), system_time: sample.system_time, half_width: 1 });
        }
        Sample::take(read_tsc, || self.time.now())
    }

    /// The platform timer against Xen's system time, if that is the counter.
    pub fn platform_sample(&self) -> io::Result<Option<Sample>> {
        let (Kind::Platform { .. }, Some(host)) = (self.kind, &self.host) else { return Ok(None) };
        let mut sample = host.counters.sample(Timer::Platform)?;
        for _ in 1..TRIES {
            let next = host.counters.sample(Timer::Platform)?;
            if next.tsc_end.wrapping_sub(next.tsc) < sample.tsc_end.wrapping_sub(sample.tsc) {
                sample = next;
            }
        }
        let half_nanos = sample.tsc_end.saturating_sub(sample.tsc) as f64 / 2.0 * host.tsc_nanos;
        let half_counts = half_nanos * 1e-9 / self.nominal_period();
        Ok(Some(Sample {
            tsc: self.kind.anchor(&sample).count,
            system_time: sample.system_time.wrapping_add(half_nanos as u64),
            half_width: half_counts.ceil() as u64 + self.kind.unit(),
        }))
    }
}

impl Kind {
    fn platform(frequency: u64) -> Kind {
        let doubled = |shift: &u32| frequency.max(1) << shift >= SLOWEST_HZ;
        Kind::Platform { frequency, shift: (0..24).find(doubled).unwrap_or(24) }
    }

    /// What one count of the timer is in units of the counter.
    fn unit(self) -> u64 {
        match self {
            Kind::Platform { shift, .. } => 1 << shift,
            _ => 1,
        }
    }

    fn anchor(self, sample: &XenpfCounters) -> Anchor {
        let XenpfCounters { tsc, tsc_end, cpu, .. } = *sample;
        let (latest, count) = match self {
            Kind::Clocksource => (tsc, sample.system_time),
            Kind::Tsc => (tsc, tsc),
            // Wraps with the counter: only differences matter.
            Kind::Platform { shift, .. } => (tsc_end, sample.count << shift),
        };
        Anchor { earliest: tsc, latest, cpu, count: Counter(count) }
    }
}

/// What the counter was at the readings `first` and `last` of the TSC between two anchors, widened outwards by all that
/// is not known: the sampling's duration, a count of `unit`, and what the counter did other than `per_tsc` counts a
/// count of the TSC in between, which a rate other than that may hide.
fn between(
    before: &Anchor,
    first: Counter,
    last: Counter,
    after: &Anchor,
    unit: u64,
    per_tsc: f64,
) -> (Counter, Counter) {
    let end = after.count.offset(unit as i64);
    let in_order = before.latest <= first.0 && first.0 <= last.0 && last.0 <= after.earliest;
    if before.cpu != after.cpu || !in_order {
        return (before.count, end);
    }
    let half = |anchor: &Anchor| (anchor.latest - anchor.earliest) as f64 / 2.0;
    let (half_before, half_after) = (half(before), half(after));
    let tsc = (after.earliest - before.latest) as f64 + half_before + half_after;
    let counted = after.count.since(before.count) as f64;
    let rate = counted / tsc;
    let stray = (counted - tsc * per_tsc).abs() + RATE_SKEW * tsc * per_tsc;
    let doubt = unit as f64 + half_before.max(half_after) * rate + stray;
    let at = |reading: Counter| ((reading.0 - before.latest) as f64 + half_before) * rate;
    let low = before.count.offset(((at(first) - doubt).floor() as i64).max(0));
    let high = before.count.offset((at(last) + doubt).ceil() as i64);
    (low, if high.since(end) > 0 { end } else { high })
}

impl Host {
    /// Says why not, for the log.
    fn open(time: &SystemTime) -> Result<Host, String> {
        let counters = time.host_counters().map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS) => "this Xen has no XENPF_get_counters (see hypervisor-patch/)".to_owned(),
            _ => format!("Xen refuses XENPF_get_counters: {error}"),
        })?;
        let mut host = Host { counters, tsc_nanos: 1.0 };
        let sample = || {
            let sample = host.sample().map_err(|error| format!("XENPF_get_counters failed: {error}"))?;
            sample.ok_or_else(|| "Dom0 does not see the host's own TSC".to_owned())
        };
        let start = sample()?;
        std::thread::sleep(CALIBRATION);
        let end = sample()?;
        let counts = end.tsc.saturating_sub(start.tsc);
        let nanos = end.system_time.saturating_sub(start.system_time);
        if counts == 0 || nanos == 0 {
            return Err("the host's TSC stands still".to_owned());
        }
        host.tsc_nanos = nanos as f64 / counts as f64;
        Ok(host)
    }

    /// A sample whose TSC is this domain's: it fits between two readings of our own.
    fn sample(&self) -> io::Result<Option<XenpfCounters>> {
        for _ in 0..TRIES {
            let low = read_tsc();
            let sample = self.counters.sample(Timer::Platform)?;
            let high = read_tsc();
            if low.0 <= sample.tsc && sample.tsc <= sample.tsc_end && sample.tsc_end <= high.0 {
                return Ok(Some(sample));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What Xen says at these values of a TSC of `ghz`: a timer of `hz`, and system time that steps at `knee`.
    fn sample(tsc: u64, duration: u64, ghz: f64, hz: u64, knee: f64, step: f64) -> XenpfCounters {
        let nanos = tsc as f64 / ghz;
        let read_at = (tsc + duration / 3) as f64 / ghz;
        XenpfCounters {
            tsc,
            tsc_end: tsc + duration,
            count: (read_at * hz as f64 * 1e-9) as u64,
            system_time: (nanos + if nanos > knee { step } else { 0.0 }) as u64,
            frequency: hz,
            width: 64,
            ..XenpfCounters::default()
        }
    }

    #[test]
    fn slow_timers_are_counted_in_fractions() {
        for (frequency, shift) in [(14_318_180, 1), (3_579_545, 3), (1_193_182, 5), (2_700_000_000, 0)] {
            assert_eq!(Kind::platform(frequency), Kind::Platform { frequency, shift });
        }
    }

    #[test]
    fn samples_of_two_cpus_or_out_of_order_say_no_more_than_themselves() {
        let before = Anchor { earliest: 1000, latest: 1000, cpu: 0, count: Counter(5000) };
        let after = Anchor { earliest: 4000, latest: 4000, cpu: 0, count: Counter(8000) };
        let between = |before: &Anchor, first, after: &Anchor| {
            let (low, high) = between(before, Counter(first), Counter(2100), after, 1, 1.0);
            (low.0, high.0)
        };
        assert_eq!(between(&before, 2000, &after), (5997, 6103));
        assert_eq!(between(&Anchor { cpu: 1, ..before }, 2000, &after), (5000, 8001));
        assert_eq!(between(&before, 900, &after), (5000, 8001));
        assert_eq!(between(&before, 2000, &Anchor { earliest: 2050, ..after }), (5000, 8001));
    }

    proptest! {
        /// Both counters were where the bracket says, even if system time stepped meanwhile.
        #[test]
        fn the_true_counts_are_in_the_bracket(
            ghz in 0.5f64..5.0,
            skew in -400e-6f64..400e-6,
            hz in prop::sample::select(vec![1_193_182u64, 3_579_545, 14_318_180, 100_000_000]),
            gaps in [100u64..20_000, 30u64..5000, 100u64..20_000],
            durations in [100u64..5000, 100u64..5000],
            knee in 0.0f64..1.0,
            step in prop::sample::select(vec![0.0, 30.0, 2000.0]),
        ) {
            let start = (1e9 * ghz) as u64;
            let first = start + durations[0] + gaps[0];
            let last = first + gaps[1];
            let end = last + gaps[2];
            let knee = (start as f64 + knee * (end - start) as f64) / ghz;
            let samples = [sample(start, durations[0], ghz, hz, knee, step), sample(end, durations[1], ghz, hz, knee, step)];
            for kind in [Kind::Clocksource, Kind::platform(hz)] {
                let unit = kind.unit();
                let nominal = if kind == Kind::Clocksource { 1e9 } else { (hz * unit) as f64 };
                let per_tsc = nominal / (ghz * 1e9) * (1.0 + skew);
                let [before, after] = samples.each_ref().map(|sample| kind.anchor(sample));
                let (low, high) = between(&before, Counter(first), Counter(last), &after, unit, per_tsc);
                let truth = |tsc: u64| {
                    let nanos = tsc as f64 / ghz;
                    if kind == Kind::Clocksource {
                        nanos + if nanos > knee { step } else { 0.0 }
                    } else {
                        nanos * nominal * 1e-9
                    }
                };
                // A count: what the samples and this arithmetic round.
                prop_assert!(low.0 as f64 <= truth(first) + 1.0, "{kind:?} {low:?} {}", truth(first));
                prop_assert!(high.0 as f64 >= truth(last) - 1.0, "{kind:?} {high:?} {}", truth(last));
                let exact = (last - first) as f64 * per_tsc;
                let doubt = step + unit as f64 + durations[0].max(durations[1]) as f64 / 2.0 * per_tsc;
                let skewed = 2.0 * RATE_SKEW * (end + durations[1] - start) as f64 * per_tsc;
                prop_assert!((high.since(low) as f64) < exact + 3.0 * (doubt + skewed) + 2.0 * unit as f64 + 50.0);
            }
        }
    }
}
