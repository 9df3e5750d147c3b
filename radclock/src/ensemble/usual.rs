//! Where a server's time usually is, beside the common clock: what its path is longer one way than the other stays as
//! it is unless the path changes, or the server's clock. Nothing here says who is right; it says who changed.

/// It is known after so many seconds…
const AFTER_SECS: f64 = 3600.0;
/// …and forgotten within a third of the time that it was observed, at most so many.
const MEMORY_SECS: f64 = 86400.0;
/// The least deviation, s.
const LEAST: f64 = 1e-6;
/// More deviations than that are not usual; what is not usual becomes so only if it lasts.
pub(super) const DEVIATIONS: f64 = 2.0;

/// One server's offset from the common clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usual {
    /// Its time minus the clock's, s, and the mean deviation from that.
    offset: f64,
    deviation: f64,
    /// For how long that was observed, s.
    secs: f64,
}

impl Usual {
    pub(super) fn is_known(&self) -> bool {
        self.secs >= AFTER_SECS
    }

    /// What the clock would be if this server's time were where it usually is.
    pub(super) fn corrected(&self, time: f64) -> f64 {
        time - self.offset
    }

    /// How far it usually is from that, s.
    pub(super) fn deviation(&self) -> f64 {
        self.deviation.max(LEAST)
    }

    /// Its time was so far from the clock's for so many seconds.
    pub(super) fn see(&mut self, offset: f64, secs: f64) {
        let secs = secs.clamp(0.0, AFTER_SECS);
        let mut off = offset - self.offset;
        if self.is_known() {
            let limit = DEVIATIONS * self.deviation();
            off = off.clamp(-limit, limit);
        }
        self.secs = (self.secs + secs).min(3.0 * MEMORY_SECS);
        if self.secs > 0.0 {
            // The beginning, when nobody knew much, counts little.
            let gain = (3.0 * secs / self.secs).min(1.0);
            self.offset += gain * off;
            self.deviation += gain * (off.abs() - self.deviation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_usual_becomes_so_in_days() {
        let mut usual = Usual::default();
        for n in 0..720 {
            assert_eq!(usual.is_known(), f64::from(n) * 16.0 >= AFTER_SECS);
            usual.see(500e-6 + if n % 2 == 0 { 3e-6 } else { -3e-6 }, 16.0);
        }
        let before = (usual.corrected(0.0), usual.deviation());
        assert!((before.0 + 500e-6).abs() < 1e-6 && (2e-6..4e-6).contains(&before.1), "{before:?}");
        for _ in 0..225 {
            usual.see(1.5e-3, 16.0);
        }
        let moved = before.0 - usual.corrected(0.0);
        assert!((0.0..10e-6).contains(&moved), "{moved} in an hour");
    }
}
