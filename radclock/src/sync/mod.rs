//! The synchronisation algorithm: stamps in, parameters with error bounds out. A pure state machine: no clock, no
//! socket, no thread and no log inside.

use crate::clock::{Clock, Status};
use crate::stamp::Stamp;
use crate::time::Counter;

/// The algorithm's parameters, validated by [`Synchroniser::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct SyncParams {
    /// The counter's nominal period, seconds a count (1e-9 for Xen system time).
    pub nominal_period: f64,
    /// How far the real period may be from the nominal one, relative (500e-6).
    pub nominal_skew: f64,
}

impl Default for SyncParams {
    fn default() -> SyncParams {
        SyncParams { nominal_period: 1e-9, nominal_skew: 500e-6 }
    }
}

/// A parameter out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}: it must be {range}")]
pub struct ParamError {
    /// The field of [`SyncParams`].
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// What is allowed.
    pub range: &'static str,
}

/// What became of a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
pub enum Verdict {
    /// Taken into the estimates.
    Accepted,
    /// Out of order, or impossible in itself (`tf` before `ta`, `te` before `tb`, a negative network delay).
    Invalid,
    /// Sound in itself, but its offset contradicts the clock beyond what either's bound allows: not followed.
    Insane,
}

/// What the algorithm says of itself, for status displays.
#[derive(Clone, Debug, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SyncReport {
    /// Stamps accepted, invalid, insane.
    pub accepted: u64,
    /// See [`Verdict::Invalid`].
    pub invalid: u64,
    /// See [`Verdict::Insane`].
    pub insane: u64,
    /// The smallest round trip in use, s.
    pub min_rtt_s: f64,
    /// How far the last stamp's round trip exceeded it, s.
    pub last_point_error_s: f64,
    /// The estimated period, s a count.
    pub period_s: f64,
    /// Bound on its relative error.
    pub period_error: f64,
    /// The last correction of the clock, s.
    pub last_offset_s: f64,
    /// Level shifts of the smallest round trip seen, up and down.
    pub shifts_up: u64,
    /// See `shifts_up`.
    pub shifts_down: u64,
}

/// The RADclock of one server.
#[derive(Clone, Debug)]
pub struct Synchroniser {
    params: SyncParams,
    report: SyncReport,
}

impl Synchroniser {
    /// A clock that knows nothing yet.
    pub fn new(params: SyncParams) -> Result<Synchroniser, ParamError> {
        Ok(Synchroniser { params, report: SyncReport::default() })
    }

    /// Takes one stamp; stamps come in the order of their counter values.
    pub fn process(&mut self, _stamp: &Stamp) -> Verdict {
        let _ = &self.params;
        Verdict::Invalid
    }

    /// The parameters to publish, once there are any.
    pub fn clock(&self) -> Option<Clock> {
        None
    }

    /// The state of the clock at a counter reading.
    pub fn status(&self, _now: Counter) -> Status {
        Status::Initializing
    }

    /// How long after its reference instant the clock counts as synchronised, ns.
    pub fn valid_nanos(&self) -> u64 {
        0
    }

    /// What the algorithm says of itself.
    pub fn report(&self) -> &SyncReport {
        &self.report
    }
}
