//! When a server contradicts the clock: whether the server has stepped, the oscillator has gone where nothing foretold, or
//! the server has become noisy. One stamp cannot tell, several can: what a server is off stays as it is until it steps again;
//! what an oscillator is off began at nothing when it was last seen, and goes on growing at a rate that oscillators have; noise
//! goes up and down.

use std::collections::VecDeque;

/// No oscillator's rate leaves what it was by more than this, relative: what moves farther has stepped.
const STEP_RATE: f64 = 20e-6;
/// The rate that an oscillator is believed to have, relative.
const DRIFT_RATE: f64 = 12e-6;
/// So many of the last refused stamps are looked at; an oscillator takes `DRIFTING` at least.
const REMEMBERED: usize = 8;
const DRIFTING: usize = 3;
/// A server is noisy once it contradicted the clock so often upward and as often downward, of which each stamp forgets this share:
/// four times each.
const NOISY: f64 = 3.0;
const FORGOTTEN: f64 = 1.0 / 32.0;
/// Noise is no larger, s.
const MOST_NOISE: f64 = 10e-3;
/// So many stamps in a row may belong to the server's step as well as to a server that is right again, behind longer queues.
const AMBIGUOUS: u32 = 64;

/// True time minus the clock's as one stamp shows it, s: by how much the one packet allows at least, and the other at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// Since the last stamp that was taken, s.
    pub(super) secs: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Shown {
    /// How far it is from no error at all, with its sign, s.
    fn off(&self) -> f64 {
        self.low.max(0.0) + self.high.min(0.0)
    }

    /// Whether the clock may be right, give or take `blur` s.
    pub(super) fn allows_no_error(&self, blur: f64) -> bool {
        self.low <= blur && self.high >= -blur
    }

    fn widened(self, by: f64) -> Shown {
        Shown { low: self.low - by, high: self.high + by, ..self }
    }

    /// What both allow.
    fn and(&self, other: &Shown) -> Option<Shown> {
        let both = Shown { secs: other.secs, low: self.low.max(other.low), high: self.high.min(other.high) };
        (both.low <= both.high).then_some(both)
    }
}

/// What the refused stamps are thought to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cause {
    /// The server's step, or not to be told yet.
    Unknown,
    /// The oscillator's rate has changed by so much, relative.
    Drift(f64),
    /// The server is noisy, by so much at least, s.
    Noise(f64),
}

/// The stamps that were refused since the last one that was taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Dispute {
    recent: VecDeque<Shown>,
    /// What the server claims, by all stamps since it last changed its mind.
    claim: Option<Shown>,
    /// It came about by more than an oscillator can do.
    is_step: bool,
    ambiguous: u32,
    /// How often contradictions went up, and down; and how far at most, s. Outlives the dispute.
    moves: [f64; 2],
    furthest: f64,
}

impl Dispute {
    /// Another stamp has come.
    pub(super) fn tick(&mut self) {
        self.moves.iter_mut().for_each(|moves| *moves *= 1.0 - FORGOTTEN);
        if self.moves[0].max(self.moves[1]) < 0.5 {
            self.furthest = 0.0;
        }
    }

    /// Contradictions went up and down lately, by so much, s; 0 if they did not.
    pub(super) fn noise(&self) -> f64 {
        let is_noisy = self.moves[0].min(self.moves[1]) >= NOISY && self.furthest < MOST_NOISE;
        if is_noisy { self.furthest } else { 0.0 }
    }

    /// What was refused came about by more than an oscillator can do.
    pub(super) fn is_step(&self) -> bool {
        self.is_step
    }

    /// What the server would go on claiming with this stamp, with noise of `blur` s and at a rate that is known to `rate`; `None`
    /// if it would be something else.
    pub(super) fn claimed(&self, shown: &Shown, blur: f64, rate: f64) -> Option<Shown> {
        let claim = self.claim?;
        claim.widened(rate * (shown.secs - claim.secs).abs()).and(&shown.widened(blur))
    }

    /// Whether a stamp that may belong to the clock as well as to the claim is set aside: after a step, though not for ever.
    pub(super) fn sets_aside(&mut self) -> bool {
        self.ambiguous += 1;
        self.is_step && self.ambiguous <= AMBIGUOUS
    }

    /// Takes a stamp that contradicts the clock, `since` s after any other, and by which the server goes on with what it `claimed`.
    /// What the clock could be off without a contradiction is `hand`, s.
    pub(super) fn refuse(&mut self, shown: Shown, claimed: Option<Shown>, since: f64, blur: f64, hand: f64) -> Cause {
        self.ambiguous = 0;
        let before = self.claim.map_or(Shown { secs: shown.secs, low: -hand, high: hand }, |claim| claim.widened(blur));
        let moved = if claimed.is_some() {
            0.0
        } else {
            (shown.low - before.high).max(0.0) + (shown.high - before.low).min(0.0)
        };
        if moved != 0.0 {
            self.moves[usize::from(moved < 0.0)] += 1.0;
            self.furthest = self.furthest.max(shown.off().abs());
            // What has stepped goes on being a step: an oscillator begins where the clock was.
            self.is_step |= moved.abs() > STEP_RATE * since.abs();
        }
        let has_changed = self.claim.is_some() && claimed.is_none();
        self.claim = Some(claimed.unwrap_or(shown));
        self.recent.truncate(REMEMBERED - 1);
        self.recent.push_front(shown);
        let noise = self.noise();
        if noise > 0.0 {
            return Cause::Noise(noise);
        }
        match self.drift(blur, hand) {
            Some(drift) if has_changed => Cause::Drift(drift),
            _ => Cause::Unknown,
        }
    }

    /// The rate of an oscillator that explains the last stamps: they are on a line, which was at nothing when the clock was last
    /// confirmed or since.
    fn drift(&self, blur: f64, hand: f64) -> Option<f64> {
        if self.recent.len() < DRIFTING {
            return None;
        }
        let seen = || self.recent.iter().map(|shown| shown.widened(blur));
        let (mut slowest, mut fastest) = (-DRIFT_RATE, DRIFT_RATE);
        for (index, late) in seen().enumerate() {
            for early in seen().skip(index + 1) {
                let secs = late.secs - early.secs;
                if secs <= 0.0 {
                    return None;
                }
                slowest = f64::max(slowest, (late.low - early.high) / secs);
                fastest = f64::min(fastest, (late.high - early.low) / secs);
            }
        }
        if slowest > fastest {
            return None;
        }
        let first = self.recent.back()?.secs;
        [0.5 * (slowest + fastest), slowest, fastest].into_iter().find(|&rate| {
            let low = seen().map(|shown| shown.low - rate * shown.secs).fold(f64::MIN, f64::max);
            let high = seen().map(|shown| shown.high - rate * shown.secs).fold(f64::MAX, f64::min);
            // Where the line is at the beginning: at nothing, or it starts later.
            let (least, most) = if rate > 0.0 { (-rate * first - hand, hand) } else { (-hand, -rate * first + hand) };
            low <= high && low <= most && high >= least
        })
    }

    /// How far the clock is off if the server is right after all, as far as an oscillator could have gone, s.
    pub(super) fn doubt(&self) -> f64 {
        match self.claim {
            Some(claim) if !self.is_step => claim.high.max(-claim.low),
            _ => 0.0,
        }
    }

    /// A stamp was taken: the server and the clock agree.
    pub(super) fn settle(&mut self) {
        *self = Dispute { moves: self.moves, furthest: self.furthest, ..Dispute::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLL: f64 = 16.0;
    const BLUR: f64 = 10e-6;
    const RATE: f64 = 0.1e-6;
    const HAND: f64 = 100e-6;

    /// A stamp of the `n`th poll, by which the clock is `off`; its packets waited for so long there and back, s.
    fn shown(n: u32, off: f64, (there, back): (f64, f64)) -> Shown {
        Shown { secs: POLL * f64::from(n), low: off - back, high: off + there }
    }

    fn refuse(dispute: &mut Dispute, shown: Shown) -> Cause {
        dispute.tick();
        dispute.refuse(shown, dispute.claimed(&shown, BLUR, RATE), POLL, BLUR, HAND)
    }

    fn queues() -> impl Strategy<Value = Vec<(f64, f64)>> {
        prop::collection::vec((0.0..300e-6, 0.0..300e-6), 200)
    }

    proptest! {
        /// For hours and whatever the queues; and what is near the clock again is not taken for the step.
        #[test]
        fn a_step_stays_one(size in prop_oneof![-1.0..-450e-6, 450e-6..1.0f64], queues in queues(), drift in -RATE..RATE) {
            let mut dispute = Dispute::default();
            for (n, &queue) in (1..).zip(&queues) {
                let stamp = shown(n, size + drift * POLL * f64::from(n), queue);
                prop_assert!(n == 1 || dispute.claimed(&stamp, BLUR, RATE).is_some(), "{n}");
                prop_assert_eq!(refuse(&mut dispute, stamp), Cause::Unknown);
            }
            // The first may have been as long a queue as the step's excess over what an oscillator can do.
            prop_assert!(dispute.doubt() == 0.0 || f64::abs(size) < HAND + 300e-6 + STEP_RATE * POLL);
            prop_assert!(dispute.claimed(&shown(201, 0.0, (20e-6, 20e-6)), BLUR, RATE).is_none());
        }

        /// From whenever it began; until then the bound covers it.
        #[test]
        fn a_drift_is_believed(rate in prop_oneof![-11e-6..-2e-6, 2e-6..11e-6f64], begin in 0.0f64..1.0, queues in queues()) {
            let mut dispute = Dispute::default();
            let mut n = 0;
            let cause = loop {
                let off = rate * POLL * (f64::from(n) + begin);
                let (there, back) = queues[n as usize];
                let stamp = shown(n + 1, off, (there / 10.0, back / 10.0));
                n += 1;
                if stamp.off().abs() <= HAND {
                    continue;
                }
                let cause = refuse(&mut dispute, stamp);
                if cause != Cause::Unknown {
                    break cause;
                }
                // What a packet waited for at most, it may be less.
                prop_assert!(dispute.doubt() + BLUR + 30e-6 >= off.abs(), "{n}");
                prop_assert!(n < 40, "{dispute:?}");
            };
            let Cause::Drift(found) = cause else { return Err(TestCaseError::fail("no drift")) };
            prop_assert!(f64::abs(found - rate) < 3e-6, "{found}");
        }

        /// A server that steps to and fro by more than noise is never taken for a noisy one.
        #[test]
        fn what_goes_up_and_down_by_much_is_no_noise(size in 10e-3..10.0f64, before in 0..30u32) {
            let mut dispute = Dispute::default();
            for n in 1..=before + 30 {
                let off = if n > before { size } else { 1e-3 };
                let cause = refuse(&mut dispute, shown(n, if n % 2 == 0 { off } else { -off }, (0.0, 0.0)));
                prop_assert!(n <= before || cause == Cause::Unknown && dispute.noise() == 0.0, "{n}: {cause:?}");
            }
        }

        #[test]
        fn what_goes_up_and_down_is_noise(offs in prop::collection::vec(400e-6..3e-3f64, 8), up in any::<bool>()) {
            let mut dispute = Dispute::default();
            let causes: Vec<Cause> = (1..)
                .zip(&offs)
                .map(|(n, &off)| refuse(&mut dispute, shown(n, if (n % 2 == 0) == up { off } else { -off }, (0.0, 0.0))))
                .collect();
            let most = offs.iter().fold(0.0f64, |most, &off| most.max(off));
            prop_assert_eq!(causes[7], Cause::Noise(most));
            prop_assert_eq!(causes[0], Cause::Unknown);
            dispute.settle();
            prop_assert_eq!(dispute.noise(), most);
        }
    }
}
