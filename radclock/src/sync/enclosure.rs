//! What must be so whatever the model says: a packet takes no negative time, so each stamp encloses the clock's error
//! between its two delays, and between stamps the error moves no faster than the rate's bound.

/// Bounds on true time minus the clock's, s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Enclosure {
    low: f64,
    high: f64,
}

impl Enclosure {
    /// What one stamp tells: `Tb − C(Ta)` and `C(Tf) − Te`, each wrong by `host` at most, s.
    pub(super) fn of(measured: [f64; 2], host: f64) -> Enclosure {
        Enclosure { low: -measured[1] - host, high: measured[0] + host }
    }

    /// After the error has moved by at most `drift`, another stamp is known.
    ///
    /// If the two contradict each other, the drift was larger: then only the newer one counts.
    pub(super) fn refine(&mut self, drift: f64, stamp: Enclosure) {
        let low = stamp.low.max(self.low - drift);
        let high = stamp.high.min(self.high + drift);
        *self = if low <= high { Enclosure { low, high } } else { stamp };
    }

    /// The clock was corrected by so much, s.
    pub(super) fn rebase(&mut self, theta: f64) {
        self.low -= theta;
        self.high -= theta;
    }

    /// The largest error that is possible, s.
    pub(super) fn worst(self) -> f64 {
        self.high.max(-self.low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_stamps_tighten_it_and_time_widens_it() {
        let mut enclosure = Enclosure::of([300e-6, 200e-6], 0.0);
        assert_eq!(enclosure.worst(), 300e-6);
        enclosure.refine(10e-6, Enclosure::of([250e-6, 900e-6], 0.0));
        assert!((enclosure.worst() - 250e-6).abs() < 1e-12 && (enclosure.low + 210e-6).abs() < 1e-12);
        enclosure.rebase(20e-6);
        assert!((enclosure.worst() - 230e-6).abs() < 1e-12);
    }

    #[test]
    fn what_contradicts_it_replaces_it() {
        let mut enclosure = Enclosure::of([300e-6, 200e-6], 0.0);
        enclosure.refine(10e-6, Enclosure::of([2e-3, -1e-3], 5e-6));
        assert!((enclosure.low - 0.995e-3).abs() < 1e-12 && (enclosure.high - 2.005e-3).abs() < 1e-12);
    }
}
