//! The build machine's own time, `CLOCK_REALTIME`, which its NTP server serves, at values of its TSC.

use lab_agent::tsc;
use nix::time::{ClockId, clock_gettime};

/// A mark that is further than this from its neighbours' middle was taken by a build machine too busy for it, ns.
const DISTURBED: f64 = 20e3;

/// The time at one value of the TSC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    tsc: u64,
    /// Since 1970.
    nanos: i64,
    /// The time is that of a TSC within this of `tsc`, counts.
    uncertainty: u64,
}

impl Mark {
    /// The narrowest of so many brackets.
    fn now(brackets: usize) -> Mark {
        let bracket = || {
            let before = tsc();
            let time = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Linux has it");
            let width = tsc() - before;
            let nanos = time.tv_sec() * 1_000_000_000 + time.tv_nsec();
            Mark { tsc: before + width / 2, nanos, uncertainty: width.div_ceil(2) }
        };
        (0..brackets).map(|_| bracket()).min_by_key(|mark| mark.uncertainty).expect("at least one")
    }

    #[cfg(test)]
    pub(crate) fn exact(tsc: u64, nanos: i64) -> Mark {
        Mark { tsc, nanos, uncertainty: 0 }
    }
}

/// Marks, in the order in which they were taken.
#[derive(Debug, Default)]
pub(crate) struct Timeline(Vec<Mark>);

impl Timeline {
    /// Adds a mark: now, the narrowest of so many brackets.
    pub(crate) fn mark(&mut self, brackets: usize) {
        self.0.push(Mark::now(brackets));
    }

    /// The TSC of the last mark.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last().map(|mark| mark.tsc)
    }

    /// Drops marks that are off by themselves, as a busy build machine may give.
    pub(crate) fn drop_disturbed(&mut self) {
        let (Some(first), Some(rate)) = (self.0.first().copied(), self.nanos_per_count()) else { return };
        let off = |mark: &Mark| (mark.nanos - first.nanos) as f64 - (mark.tsc - first.tsc) as f64 * rate;
        let offs: Vec<f64> = self.0.iter().map(off).collect();
        let is_off = |at: usize| {
            let mut around = offs[at.saturating_sub(2)..(at + 3).min(offs.len())].to_vec();
            around.sort_by(f64::total_cmp);
            (offs[at] - around[around.len() / 2]).abs() > DISTURBED
        };
        let kept = self.0.iter().enumerate().filter(|(at, _)| !is_off(*at)).map(|(_, mark)| *mark);
        self.0 = kept.collect();
    }

    /// What a count of the TSC is on the whole, ns.
    pub(crate) fn nanos_per_count(&self) -> Option<f64> {
        let [first, .., last] = self.0.as_slice() else { return None };
        Some((last.nanos - first.nanos) as f64 / (last.tsc - first.tsc) as f64)
    }

    /// The time at a value of the TSC, ns since 1970, and how far off that may be. Beyond the ends, by the nearest two marks;
    /// none if there are not two.
    pub(crate) fn at(&self, tsc: u64) -> Option<(i64, i64)> {
        let next = self.0.partition_point(|mark| mark.tsc < tsc).clamp(1, self.0.len().max(2) - 1);
        let [before, after] = self.0.get(next - 1..=next)? else { return None };
        let rate = (after.nanos - before.nanos) as f64 / (after.tsc - before.tsc) as f64;
        let since = tsc.wrapping_sub(before.tsc).cast_signed() as f64 * rate;
        let uncertainty = before.uncertainty.max(after.uncertainty) as f64 * rate;
        Some((before.nanos + since.round() as i64, uncertainty.ceil() as i64))
    }
}

#[cfg(test)]
impl FromIterator<Mark> for Timeline {
    fn from_iter<Marks: IntoIterator<Item = Mark>>(marks: Marks) -> Timeline {
        Timeline(marks.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_between_and_beyond_the_marks() {
        let timeline =
            Timeline::from_iter([(1000, 50), (3000, 1050), (5000, 2050)].map(|(tsc, at)| Mark::exact(tsc, at)));
        for (tsc, nanos) in [(0, -450), (1000, 50), (2000, 550), (4000, 1550), (9000, 4050)] {
            assert_eq!(timeline.at(tsc), Some((nanos, 0)));
        }
        assert_eq!(timeline.nanos_per_count(), Some(0.5));
    }

    #[test]
    fn one_mark_is_not_enough() {
        assert_eq!(Timeline::from_iter([Mark::exact(1000, 50)]).at(1000), None);
    }

    #[test]
    fn a_mark_that_is_off_by_itself_is_dropped_and_a_step_is_kept() {
        let nanos = |second: i64| {
            let off = if second >= 50 { 900_000 } else { 0 } + if second == 20 { 400_000 } else { 0 };
            second * 1_000_000_000 + off
        };
        let mark = |second: i64| Mark::exact(second as u64 * 2_000_000_000, nanos(second));
        let mut timeline = Timeline::from_iter((0..100).map(mark));
        timeline.drop_disturbed();
        assert_eq!(timeline.0.len(), 99);
        assert!(timeline.0.iter().all(|mark| mark.tsc != 20 * 2_000_000_000));
    }
}
