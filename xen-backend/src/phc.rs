//! A PTP hardware clock (`/dev/ptp*`) as a source: what a host has where ptp4l keeps such a clock.
//!
//! A stamp is the clock read between two readings of the counter, the narrowest of some tries; its round trip is their
//! distance. The clock is read as the dynamic POSIX clock that its device is (clock_gettime(2), the kernel's
//! `Documentation/driver-api/ptp.rst`). The kernel's own cross timestamps (`PTP_SYS_OFFSET_EXTENDED` and `_PRECISE`)
//! are narrower, but tell `CLOCK_REALTIME` or `CLOCK_MONOTONIC_RAW`, and it takes such a bracket to carry them to the
//! counter.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use radclock::clock::Period;
use radclock::report::ServerReport;
use radclock::stamp::{Stamp, StampSource};
use radclock::time::{Counter, Span, Timestamp};
use rustix::fs::Mode;
use rustix::time::{DynamicClockId, Timespec, clock_gettime_dynamic};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Phc, Timescale};
use crate::counter::{Around, CounterError, HostCounter};
use crate::source::{Counts, Polled};

/// Readings to choose the narrowest from: a PCI device's take a microsecond each.
const TRIES: usize = 10;

/// Why there is no clock to read, or no reading.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PhcError {
    /// The device cannot be opened.
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// It is no clock, or a clock that does not answer.
    #[error("cannot be read as a clock: {0}; is it a PTP hardware clock?")]
    Read(#[source] io::Error),
    /// The clock stands before 1970.
    #[error("it shows a time before 1970: nobody has set it")]
    Unset,
    /// The counter cannot be read.
    #[error("{0}")]
    Counter(#[from] CounterError),
}

/// One hardware clock.
pub struct PhcClient {
    index: usize,
    phc: Phc,
    counter: Arc<HostCounter>,
    period: Period,
    report: ServerReport,
    polled: mpsc::Sender<Polled>,
}

impl PhcClient {
    /// Made ready, but not started: the daemon's source number `index`. `period` is the counter's nominal one.
    pub fn new(
        index: usize,
        phc: Phc,
        counter: Arc<HostCounter>,
        period: Period,
        polled: mpsc::Sender<Polled>,
    ) -> PhcClient {
        let report = ServerReport::unheard(phc.device.0.display().to_string(), phc.poll.0 as f64);
        PhcClient { index, phc, counter, period, report, polled }
    }

    /// The clock as nobody has read it yet.
    pub fn report(&self) -> &ServerReport {
        &self.report
    }

    /// Reads the clock as long as somebody listens.
    pub async fn run(mut self) {
        let mut polls = interval(Duration::from_secs(self.phc.poll.0));
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut device = None;
        let counts = match self.phc.timescale {
            Timescale::Utc => Counts::Utc(None),
            Timescale::Tai => Counts::Tai(self.phc.tai_offset.map(|offset| offset.0 as i64)),
        };
        loop {
            polls.tick().await;
            let exchange = match self.poll(&mut device) {
                Ok(stamp) => {
                    if self.report.last_error.take().is_some() {
                        tracing::info!("{}: answers again", self.report.name);
                    }
                    self.report.reach = self.report.reach << 1 | 1;
                    self.report.rtt_s = Some(self.period.span(stamp.tf.since(stamp.ta)).as_secs_f64());
                    self.report.stamps = Some(StampSource::Phc);
                    Some((stamp, counts))
                }
                Err(error) => {
                    // A device that went away may come back under its name.
                    device = None;
                    self.report.reach <<= 1;
                    let error = error.to_string();
                    match self.report.last_error.replace(format!("{}: {error}", self.report.name)) {
                        None => tracing::warn!("{}: {error}", self.report.name),
                        Some(_) => tracing::debug!("{}: {error}", self.report.name),
                    }
                    None
                }
            };
            let polled = Polled { source: self.index, exchange, report: self.report.clone() };
            if self.polled.send(polled).await.is_err() {
                return;
            }
        }
    }

    fn poll(&self, device: &mut Option<File>) -> Result<Stamp, PhcError> {
        let device = match device {
            Some(device) => device,
            None => device.insert(open(&self.phc).map_err(PhcError::Open)?),
        };
        let read_clock = || {
            clock_gettime_dynamic(DynamicClockId::Dynamic(device.as_fd())).map_err(|error| PhcError::Read(error.into()))
        };
        let mut stamp = bracket(|| Ok(self.counter.around(read_clock)?))?;
        stamp.root_dispersion = Span::from_nanos(self.phc.accuracy.0 as i64);
        Ok(stamp)
    }
}

fn open(phc: &Phc) -> io::Result<File> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    Ok(rustix::fs::open(&phc.device.0, flags, Mode::empty())?.into())
}

/// Reads the clock between two readings of the counter, the narrowest of some tries.
fn bracket(
    mut around: impl FnMut() -> Result<Around<Result<Timespec, PhcError>>, PhcError>,
) -> Result<Stamp, PhcError> {
    let mut best: Option<(i64, Counter, Timespec)> = None;
    for _ in 0..TRIES {
        let Around { low, value: time, high } = around()?;
        let time = time?;
        let width = high.since(low);
        if width > 0 && best.is_none_or(|best| width < best.0) {
            best = Some((width, low, time));
        }
    }
    let (width, ta, time) = best.ok_or(PhcError::Counter(CounterError::Stopped))?;
    let (Ok(secs), Ok(nanos)) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec)) else {
        return Err(PhcError::Unset);
    };
    let time = Timestamp::from_unix(secs, nanos);
    Ok(Stamp {
        ta,
        tb: time,
        te: time,
        tf: ta.offset(width),
        // The clock's whole nanoseconds, rounded down.
        host_error: Span::from_nanos(1),
        root_delay: Span::ZERO,
        root_dispersion: Span::ZERO,
        source: StampSource::Phc,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn around(
        counter: impl Fn() -> Counter,
        clock: impl Fn() -> Result<Timespec, PhcError>,
    ) -> impl FnMut() -> Result<Around<Result<Timespec, PhcError>>, PhcError> {
        move || Ok(Around { low: counter(), value: clock(), high: counter() })
    }

    #[test]
    fn the_narrowest_bracket_makes_the_stamp() {
        let now = Cell::new(1000i64);
        let widths = [900, 500, 40, 700, 800, 600, 500, 400, 300, 200];
        let tried = Cell::new(0);
        let counter = || {
            now.set(now.get() + 1);
            Counter(now.get() as u64)
        };
        let clock = || {
            let time = Timespec { tv_sec: 1_800_000_000, tv_nsec: now.get() + 5 };
            now.set(now.get() + widths[tried.replace(tried.get() + 1)]);
            Ok(time)
        };
        let stamp = bracket(around(counter, clock)).unwrap();
        assert_eq!((stamp.tf.since(stamp.ta), stamp.source), (41, StampSource::Phc));
        assert_eq!(stamp.tb, Timestamp::from_unix(1_800_000_000, stamp.ta.0 + 5));
        assert_eq!(tried.get(), TRIES);
    }

    #[test]
    fn a_clock_before_1970_and_a_counter_that_stands_still_are_errors() {
        let counts = Cell::new(0);
        let counter = || {
            counts.set(counts.get() + 1);
            Counter(counts.get())
        };
        let before_1970 = || Ok(Timespec { tv_sec: -1, tv_nsec: 0 });
        let error = bracket(around(counter, before_1970)).unwrap_err();
        assert_eq!(error.to_string(), "it shows a time before 1970: nobody has set it");
        let still = around(|| Counter(5), || Ok(Timespec { tv_sec: 1, tv_nsec: 0 }));
        assert!(bracket(still).is_err());
    }

    #[test]
    fn a_bracket_around_a_kernels_clock_is_right_to_within_its_width() {
        let start = std::time::Instant::now();
        let counter = || Counter(start.elapsed().as_nanos() as u64 + 1);
        let clock = || {
            clock_gettime_dynamic(DynamicClockId::Known(rustix::time::ClockId::Realtime))
                .map_err(|error| PhcError::Read(error.into()))
        };
        let first = bracket(around(&counter, &clock)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let second = bracket(around(counter, clock)).unwrap();
        let counted = second.ta.since(first.ta);
        let passed = second.tb.since(first.tb).floor_nanos();
        let width = second.tf.since(second.ta) + first.tf.since(first.ta);
        assert!((counted - passed).abs() <= width + 20_000_000 / 1000, "{counted} {passed} {width}");
    }
}
