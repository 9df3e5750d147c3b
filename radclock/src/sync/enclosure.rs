//! How wrong the clock may be by what it cannot see: a packet takes no negative time, so each stamp encloses the clock's
//! error between its two delays. The intersection over all stamps holds on as long as the clock follows them: what it is
//! wrong by then moves no farther than its estimate is uncertain, also when the path becomes a longer one.

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

    /// The error may have moved by so much, s.
    pub(super) fn widen(&mut self, by: f64) {
        self.low -= by;
        self.high += by;
    }

    /// Another stamp is known. If the two contradict each other, only the newer one counts.
    pub(super) fn refine(&mut self, stamp: Enclosure) {
        let (low, high) = (stamp.low.max(self.low), stamp.high.min(self.high));
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
        enclosure.widen(10e-6);
        enclosure.refine(Enclosure::of([250e-6, 900e-6], 0.0));
        assert!((enclosure.worst() - 250e-6).abs() < 1e-12 && (enclosure.low + 210e-6).abs() < 1e-12);
        enclosure.rebase(20e-6);
        assert!((enclosure.worst() - 230e-6).abs() < 1e-12);
    }

    #[test]
    fn what_contradicts_it_replaces_it() {
        let mut enclosure = Enclosure::of([300e-6, 200e-6], 0.0);
        enclosure.refine(Enclosure::of([2e-3, -1e-3], 5e-6));
        assert!((enclosure.low - 0.995e-3).abs() < 1e-12 && (enclosure.high - 2.005e-3).abs() < 1e-12);
    }
}
