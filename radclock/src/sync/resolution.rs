//! How coarse a server's times are, as seen: not every server's precision tells, and a trace has none.

use crate::stamp::Stamp;
use crate::time::Timestamp;

/// Steps a second that a clock may count in, the coarsest first: decimal digits, ticks of kernels, powers of two.
const RATES: [u32; 32] = [
    50, 60, 64, 100, 128, 200, 250, 256, 300, 500, 512, 1_000, 1_024, 2_000, 2_048, 4_096, 5_000, 8_192, 10_000,
    16_384, 20_000, 32_768, 50_000, 65_536, 100_000, 131_072, 200_000, 262_144, 500_000, 524_288, 1_000_000, 1_048_576,
];
/// A time that was rounded to nanoseconds is within 2 ns of its step, in units of 2⁻⁶⁴ s.
const NEAR: u64 = 36_893_488_147;

/// The steps in which all of a server's times so far may have been counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolution {
    /// A bit for each of [`RATES`].
    possible: u32,
}

impl Resolution {
    /// As far as the first stamp tells.
    pub(super) fn of(stamp: &Stamp) -> Resolution {
        let mut resolution = Resolution { possible: u32::MAX };
        resolution.see(stamp);
        resolution
    }

    /// Another stamp is known.
    pub(super) fn see(&mut self, stamp: &Stamp) {
        let is_possible = |index: &usize| {
            self.possible >> index & 1 == 1 && [stamp.tb, stamp.te].iter().all(|&time| is_step(time, RATES[*index]))
        };
        self.possible = (0..RATES.len()).filter(is_possible).map(|index| 1 << index).sum();
    }

    /// The coarsest step, s; 0 if it is below a microsecond, which is less than stamps are worth.
    pub(super) fn secs(self) -> f64 {
        RATES.get(self.possible.trailing_zeros() as usize).map_or(0.0, |&rate| f64::from(rate).recip())
    }
}

/// Whether a time is a whole number of steps, of which a second has `rate`.
fn is_step(time: Timestamp, rate: u32) -> bool {
    let rate = u64::from(rate);
    let beyond = time.frac().wrapping_mul(rate);
    beyond.min(beyond.wrapping_neg()) <= NEAR * rate
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(tb: u64, te: u64) -> Stamp {
        format!("0 {}.{:09} {}.{:09} 1", tb / 1_000_000_000, tb % 1_000_000_000, te / 1_000_000_000, te % 1_000_000_000)
            .parse()
            .expect("a stamp")
    }

    proptest! {
        /// Rounded down to steps, and those to nanoseconds: the step is found, or a coarser one that fits as well.
        #[test]
        fn a_coarse_clock_is_seen_and_a_fine_one_is_not_taken_for_one(
            index in 0..RATES.len(),
            times in prop::collection::vec((1u64 << 60..1 << 61, 0u64..2_000_000_000), 8..20),
        ) {
            let coarse = |nanos: u64| {
                let steps = u128::from(nanos) * u128::from(RATES[index]) / 1_000_000_000;
                (steps * 1_000_000_000 / u128::from(RATES[index])) as u64
            };
            let stamps: Vec<Stamp> = times.iter().map(|&(tb, held)| stamp(coarse(tb), coarse(tb + held))).collect();
            let mut seen = Resolution::of(&stamps[0]);
            stamps[1..].iter().for_each(|stamp| seen.see(stamp));
            prop_assert!(seen.secs() >= f64::from(RATES[index]).recip());

            let mut fine = Resolution::of(&stamp(times[0].0, times[0].0));
            times[1..].iter().for_each(|&(tb, held)| fine.see(&stamp(tb, tb + held)));
            prop_assert_eq!(fine.secs(), 0.0);
        }
    }
}
