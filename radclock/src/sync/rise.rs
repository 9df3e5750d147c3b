//! Level shifts upward: when the smallest round trip has risen for good, and by how much in each direction.
//!
//! A round trip does not depend on the clock's error, so neither does this. (A fall shows in a single stamp and needs no
//! such patience.)

use std::collections::VecDeque;

use super::bank::Bank;
use super::filter::Direction;

/// So many of the last stamps are looked at…
const STAMPS: [usize; 9] = [8, 12, 16, 24, 32, 48, 64, 96, 128];
/// …over at least so many seconds: what is over sooner is congestion.
const MIN_SECS: f64 = 100.0;
/// A rise is what would be so unlikely without one (natural logarithm), all of them together…
const LOG_PROBABILITY: f64 = -27.0;
/// …and each for itself: many stamps that are hardly unusual are congestion.
const LOG_PROBABILITY_EACH: f64 = -1.0;
/// And if queues have grown, as a load makes them, that must be no explanation: as long as these stamps' queues would be
/// then, all of them together must still be so unlikely.
const LOG_PROBABILITY_CONGESTED: f64 = -8.0;
/// Median of the sum of two exponential delays, in units of either's mean.
const GAMMA_MEDIAN: f64 = 1.678;
/// Rise or not, the clock is hidden by stamps that are so unlikely (natural logarithm), each…
const HIDDEN_EACH: f64 = -0.25;
/// …and together.
const HIDDEN: f64 = -8.0;
/// A stamp is poor if both delays are so unusual (natural logarithm), each…
const POOR_EACH: f64 = -1.5;
/// …and together.
const POOR: f64 = -5.0;
/// Fewer stamps may all be slow.
const SLACK_STAMPS: usize = 64;
/// Nothing is unusual before so many stamps have taught what is usual.
const TAUGHT_STAMPS: u64 = 50;
/// Of a run of poor stamps at most so many are learnt from, so that a stamp never takes long.
const LEARNT_STAMPS: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Recent {
    secs: f64,
    /// What its delays exceeded the smallest by, s.
    excess: [f64; 2],
}

/// A rise of the smallest delays: by how much (s), and how well that is known (standard deviation, s).
#[derive(Clone, Copy, Debug)]
pub(super) struct Rise {
    pub(super) moved: [f64; 2],
    pub(super) sigma: [f64; 2],
}

/// The recent stamps, newest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    recent: VecDeque<Recent>,
    /// How many of the newest were poor.
    poor: usize,
    /// Unusual delays have hidden the clock since it was last seen well enough.
    is_hidden: bool,
    seen: u64,
}

impl Watch {
    /// Whether a stamp with these delays above the smallest (s) is to be left alone for now: if it belongs to a rise that
    /// is not known yet, it would drag the clock.
    pub(super) fn is_poor(&self, bank: &Bank, excess: [f64; 2]) -> bool {
        let logs = Direction::BOTH.map(|direction| bank.tail(direction, excess[direction as usize]).ln());
        self.seen > TAUGHT_STAMPS && logs[0].max(logs[1]) < POOR_EACH && logs[0] + logs[1] < POOR
    }

    /// The run of poor stamps, if any, ended without a rise: so it belongs to how long delays are.
    pub(super) fn learn_poor(&mut self, bank: &mut Bank) {
        for recent in self.recent.iter().take(self.poor.min(LEARNT_STAMPS)) {
            bank.learn_delays(recent.excess);
        }
        self.poor = 0;
    }

    /// Remembers a stamp that came `secs` after the one before, and looks for a rise.
    pub(super) fn look(&mut self, bank: &Bank, secs: f64, excess: [f64; 2], poor: bool) -> Option<Rise> {
        self.seen += 1;
        self.poor += usize::from(poor);
        self.recent.truncate(STAMPS[STAMPS.len() - 1] - 1);
        self.recent.push_front(Recent { secs, excess });
        let rise = self.rise(bank);
        if rise.is_some() {
            self.recent.clear();
            (self.poor, self.is_hidden) = (0, false);
        }
        rise
    }

    /// How much farther than `enough` (s) the clock may have gone since unusual delays hide it, if its rate is off by `rate` at
    /// most: no farther than the quickest packets allow. Nothing more once that is not farther than `enough`.
    pub(super) fn unseen(&mut self, rate: f64, enough: f64) -> f64 {
        if !self.is_hidden {
            return 0.0;
        }
        let mut age = 0.0;
        let mut unseen = f64::INFINITY;
        for recent in &self.recent {
            unseen = unseen.min(recent.excess[0] + recent.excess[1] + rate * age);
            age += recent.secs;
        }
        self.is_hidden = unseen > enough;
        (unseen - enough).max(0.0)
    }

    /// What even the quickest of the recent round trips exceeded the smallest by, s.
    pub(super) fn slack(&self) -> f64 {
        if self.recent.len() < SLACK_STAMPS {
            return 0.0;
        }
        self.recent.iter().map(|recent| recent.excess[0] + recent.excess[1]).fold(f64::INFINITY, f64::min)
    }

    fn rise(&mut self, bank: &Bank) -> Option<Rise> {
        // What may be the noise of readings or of the server is no rise.
        let blur = 2.0 * bank.noise();
        let mut span = 0.0;
        let mut lowest = f64::INFINITY;
        let mut lowest_each = [f64::INFINITY; 2];
        let mut sums = [0.0; 2];
        // For the lowest one so far.
        let (mut known, mut log) = (f64::INFINITY, 0.0);
        for (index, recent) in self.recent.iter().enumerate() {
            let count = index + 1;
            span += recent.secs;
            lowest = lowest.min(recent.excess[0] + recent.excess[1]);
            for direction in 0..2 {
                lowest_each[direction] = lowest_each[direction].min(recent.excess[direction]);
                sums[direction] += recent.excess[direction];
            }
            if lowest <= blur {
                return None;
            }
            if !STAMPS.contains(&count) || span < MIN_SECS {
                continue;
            }
            // One direction's delay alone makes a long round trip far more often than both together.
            if lowest < known {
                let either: f64 = Direction::BOTH.iter().map(|&direction| bank.tail(direction, lowest)).sum();
                (known, log) = (lowest, either.min(1.0).ln());
            }
            if log < HIDDEN_EACH && count as f64 * log < HIDDEN {
                self.is_hidden = true;
            }
            let is_rise = log < LOG_PROBABILITY_EACH && count as f64 * log < LOG_PROBABILITY;
            if is_rise && self.by_congestion(count, lowest) < LOG_PROBABILITY_CONGESTED {
                // The smallest of n delays lies about their mean over n above the smallest there is.
                let n = count as f64;
                let above = [0, 1].map(|direction| (sums[direction] / n - lowest_each[direction]) / n);
                return Some(Rise {
                    moved: [0, 1].map(|direction| lowest_each[direction] - above[direction]),
                    sigma: above.map(|above| 2.0 * above),
                });
            }
        }
        None
    }

    /// The probability (natural logarithm) that so many of the last round trips all exceed the smallest by `lowest` (s) only
    /// because queues have grown, in one direction or in both: how long they are then, the median tells.
    fn by_congestion(&self, count: usize, lowest: f64) -> f64 {
        let round_trip = |recent: &Recent| recent.excess[0] + recent.excess[1];
        let mut sums: Vec<f64> = self.recent.iter().take(count).map(round_trip).collect();
        let median = *sums.select_nth_unstable_by(count / 2, f64::total_cmp).1;
        let part = lowest / median;
        let one = -part * std::f64::consts::LN_2;
        let both = (GAMMA_MEDIAN * part).ln_1p() - GAMMA_MEDIAN * part;
        count as f64 * one.max(both)
    }
}
