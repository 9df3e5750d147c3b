//! ClockBound's synchroniser for one NTP server, `ff::Ntp`, fed with the stamps of a trace, as its daemon would.

use clock_bound::daemon::clock_parameters::ClockParameters;
use clock_bound::daemon::clock_sync_algorithm::FfSyncParams;
use clock_bound::daemon::clock_sync_algorithm::ff;
use clock_bound::daemon::event::{self, NtpData, Stratum};
use clock_bound::daemon::time::{Duration, Instant, TscCount};
use radclock::stamp::Stamp;
use radclock::time::{Counter, Span, Timestamp};
use simulator::score::Clock;

/// The synchroniser with its default parameters.
pub struct ClockBound {
    inner: ff::Ntp,
    drift: f64,
}

impl ClockBound {
    /// For a poll period, s. Nothing if it is one that it does not work with: it needs two samples in 1024 s.
    pub fn new(poll: f64) -> Option<ClockBound> {
        let params = FfSyncParams::default();
        let poll = Duration::from_seconds_f64(poll);
        (poll < params.skm_window / 2)
            .then(|| ClockBound { inner: ff::Ntp::new(poll, &params, &params.ntp), drift: params.max_dispersion.get() })
    }
}

impl Clock for ClockBound {
    /// A stamp that it does not take as an event at all is passed over.
    fn process(&mut self, stamp: &Stamp) {
        let event = event::Ntp::builder()
            .counter_pre(TscCount::new(stamp.ta.0.cast_signed()))
            .counter_post(TscCount::new(stamp.tf.0.cast_signed()))
            .ntp_data(NtpData {
                server_recv_time: instant(stamp.tb),
                server_send_time: instant(stamp.te),
                root_delay: Duration::from_nanos(stamp.root_delay.ceil_nanos()),
                root_dispersion: Duration::from_nanos(stamp.root_dispersion.ceil_nanos()),
                stratum: Stratum::ONE,
            })
            .build();
        if let Some(event) = event {
            self.inner.feed(event);
        }
    }

    fn read(&self, counter: Counter) -> Option<(Timestamp, Span)> {
        let parameters: &ClockParameters = self.inner.clock_parameters()?;
        let counter = TscCount::new(counter.0.cast_signed());
        let nanos = parameters.time_at(counter).as_nanos();
        let time = Timestamp::from_unix(0, 0).saturating_add(Span::from_nanos(nanos));
        // As its client does: the bound grows by the drift that the hardware may have and by the error of the period.
        let age = (counter - parameters.tsc_count).abs().get() as f64 * parameters.period.get();
        let growth = self.drift + parameters.period_max_error.get() / parameters.period.get();
        let bound = Span::from_nanos(parameters.clock_error_bound.as_nanos());
        Some((time, bound.saturating_add(Span::from_secs_f64(age * growth))))
    }
}

fn instant(time: Timestamp) -> Instant {
    Instant::from_nanos(time.as_nanos() as i64)
}
