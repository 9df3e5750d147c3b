//! What every source of time, an NTP server or a PTP hardware clock, hands to the daemon.

use radclock::report::ServerReport;
use radclock::stamp::Stamp;

/// What the times of a source count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// UTC, with NTP's leap indicator from who has one.
    Utc(Option<u8>),
    /// TAI, with TAI − UTC now, s, if it is configured.
    Tai(Option<i64>),
}

/// What became of a poll.
#[derive(Clone, Debug)]
pub struct Polled {
    /// Which source, counted from 0.
    pub source: usize,
    /// The exchange, if there was an answer: its stamp, and what its times count.
    pub exchange: Option<(Stamp, Counts)>,
    /// The source as it stands now.
    pub report: ServerReport,
}
