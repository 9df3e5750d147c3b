//! A scale without leap seconds, on which the synchroniser and all its servers live, and what UTC is there.
//!
//! Servers tell UTC, which repeats or skips a second now and then. Here their times are put on a scale that counts every
//! second once, and the clock's time is turned back into UTC when it is published. With a leap-second list the scale
//! is TAI; without one it is UTC as of the start, going on without leap seconds. It never is published, so that does
//! not matter.

use super::list::LeapList;
use super::{LeapKind, LeapSecond, Phase, month_around};
use crate::page::{LEAP_POS, LEAP_POST_NEG, LEAP_POST_POS, LEAP_PRE_NEG, LEAP_PRE_POS};
use crate::time::{Span, Timestamp};

/// So long around a leap second a server's UTC may belong to either side of it, s: servers are a little late, and some
/// slew over it.
const AMBIGUOUS_SECS: u64 = 5;
/// A server's time that is this far from the clock on either side of a leap second is wrong by something else.
const NEAR: Span = Span::from_frac(1 << 63);
/// How long after it a leap second is announced as past, s.
const POST_SECS: u64 = 86_400;

/// An instant in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    /// Seconds since 1970; an inserted second has the number of the one before.
    pub time: Timestamp,
    /// In an inserted second.
    pub inserted: bool,
    /// The scale minus UTC, s.
    pub offset: i64,
    /// vmclock's `VMCLOCK_LEAP_*` for this instant.
    pub indicator: u8,
}

/// What servers announce, held against the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// What is to be is agreed on, or there is no list that could object.
    Taken,
    /// The list knows of no leap second at the end of this month, which the servers announce: not followed.
    Unlisted,
}

/// The scale, and the leap seconds that are known.
#[derive(Clone, Debug, Default)]
pub struct LeapScale {
    /// The scale minus UTC before the first leap second, s.
    first_offset: i64,
    /// In order: those of the list, and those that servers announced and that came.
    leaps: Vec<LeapSecond>,
    /// Behind them, announced by servers and still to come.
    announced: Option<LeapSecond>,
    /// Until when the list says all, seconds since 1970.
    listed_until: u64,
}

impl LeapScale {
    /// By a list, or without one.
    pub fn new(list: Option<LeapList>) -> LeapScale {
        match list {
            Some(list) => LeapScale {
                first_offset: list.first_offset.into(),
                leaps: list.leaps,
                announced: None,
                listed_until: list.expires,
            },
            None => LeapScale::default(),
        }
    }

    fn all(&self) -> impl DoubleEndedIterator<Item = LeapSecond> + '_ {
        self.leaps.iter().copied().chain(self.announced)
    }

    /// A server's UTC on the scale. Near a leap second it may be one of two instants; then it is the one near `clock`,
    /// what the clock says on the scale, or nothing if that cannot tell.
    pub fn of_utc(&self, utc: Timestamp, clock: Option<Timestamp>) -> Option<Timestamp> {
        let mut offset = self.first_offset;
        for leap in self.all() {
            let after = offset + leap.kind.adjustment();
            if utc.secs().abs_diff(leap.month) <= AMBIGUOUS_SECS {
                let clock = clock?;
                let sides = [offset, after].map(|offset| utc.checked_add(Span::from_secs(offset)));
                return sides.into_iter().flatten().find(|side| side.since(clock).abs() < NEAR);
            }
            if utc.secs() < leap.month {
                break;
            }
            offset = after;
        }
        utc.checked_add(Span::from_secs(offset))
    }

    /// A source's TAI on the scale, by a list that has not expired, or by TAI − UTC at that time, s. Nothing without either.
    pub fn of_tai(&self, tai: Timestamp, tai_offset: Option<i64>) -> Option<Timestamp> {
        if self.tai_offset(&self.utc(tai)).is_some() {
            return Some(tai);
        }
        let utc = tai.saturating_sub(Span::from_secs(tai_offset?));
        self.of_utc(utc, None)
    }

    /// What UTC is at an instant of the scale.
    pub fn utc(&self, instant: Timestamp) -> Utc {
        let mut offset = self.first_offset;
        let mut post = None;
        for leap in self.all() {
            let count = instant.saturating_sub(Span::from_secs(offset));
            let (time, phase) = leap.utc(count);
            let indicator = match (phase, leap.kind) {
                (Phase::Before, _) if month_around(count.secs()).1 != leap.month => break,
                (Phase::Before, LeapKind::Insert) => LEAP_PRE_POS,
                (Phase::Before, LeapKind::Delete) => LEAP_PRE_NEG,
                (Phase::During, _) => {
                    return Utc { time, inserted: true, offset: offset + 1, indicator: LEAP_POS };
                }
                (Phase::After, kind) => {
                    offset += kind.adjustment();
                    post = Some(leap);
                    continue;
                }
            };
            return Utc { time, inserted: false, offset, indicator };
        }
        let time = instant.saturating_sub(Span::from_secs(offset));
        let indicator = match post {
            Some(leap) if time.secs() < leap.month.saturating_add(POST_SECS) => match leap.kind {
                LeapKind::Insert => LEAP_POST_POS,
                LeapKind::Delete => LEAP_POST_NEG,
            },
            _ => 0,
        };
        Utc { time, inserted: false, offset, indicator }
    }

    /// TAI − UTC there, s, if a list that has not expired says it.
    pub fn tai_offset(&self, utc: &Utc) -> Option<i16> {
        if utc.time.secs() < self.listed_until { i16::try_from(utc.offset).ok() } else { None }
    }

    /// How long from an instant of the scale until UTC's seconds are counted otherwise, if that is in sight.
    pub fn until_edge(&self, instant: Timestamp) -> Option<Span> {
        let mut offset = self.first_offset;
        for leap in self.all() {
            for edge in [leap.edge(), leap.month + 1] {
                let edge = Timestamp::new(edge, 0).checked_add(Span::from_secs(offset))?;
                if edge > instant {
                    return Some(edge.since(instant));
                }
            }
            offset += leap.kind.adjustment();
        }
        None
    }

    /// Takes note of what the majority of the servers announces for the end of the month, as of an instant of the
    /// scale.
    ///
    /// A list that has not expired knows better: it alone decides. Without one the servers do. What they announce may
    /// be taken back until it comes.
    pub fn announce(&mut self, instant: Timestamp, majority: Option<LeapKind>) -> Announcement {
        let now = self.utc(instant);
        if let Some(came) = self.announced
            && now.time.secs() >= came.month
        {
            self.leaps.push(came);
            self.announced = None;
        }
        let announced = majority.map(|kind| LeapSecond::ending_month_of(now.time.secs(), kind));
        if now.inserted || matches!(now.indicator, LEAP_POST_POS | LEAP_POST_NEG) {
            // Servers that have not noticed yet.
            return Announcement::Taken;
        }
        if self.listed_until > now.time.secs() {
            let agreed = announced.is_none_or(|leap| self.leaps.contains(&leap));
            return if agreed { Announcement::Taken } else { Announcement::Unlisted };
        }
        // A list that expired may still know of this one.
        self.announced = announced.filter(|leap| self.leaps.last().is_none_or(|last| last.month < leap.month));
        Announcement::Taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2017-01-01.
    const MONTH: u64 = 1_483_228_800;

    fn list(kind: LeapKind) -> LeapScale {
        LeapScale::new(Some(LeapList {
            first_offset: 36,
            leaps: vec![LeapSecond { month: MONTH, kind }],
            expires: MONTH + 100 * 86_400,
        }))
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::new(MONTH + 36, 0).saturating_add(Span::from_nanos(millis * 1_000_000))
    }

    #[test]
    fn tai_runs_on_and_utc_counts_as_it_should_each_millisecond_around_a_leap_second() {
        for kind in [LeapKind::Insert, LeapKind::Delete] {
            let scale = list(kind);
            let edge = if kind == LeapKind::Insert { 0 } else { -1000 };
            for millis in -3000..3000 {
                let utc = scale.utc(at(millis));
                let after = millis >= edge;
                let offset = 36 + if after { kind.adjustment() } else { 0 };
                let tai = utc.time.saturating_add(Span::from_secs(scale.tai_offset(&utc).unwrap().into()));
                assert_eq!((utc.offset, tai), (offset, at(millis)), "{millis}");
                let inserted = kind == LeapKind::Insert && (0..1000).contains(&millis);
                let indicator = match kind {
                    _ if inserted => LEAP_POS,
                    LeapKind::Insert if after => LEAP_POST_POS,
                    LeapKind::Insert => LEAP_PRE_POS,
                    LeapKind::Delete if after => LEAP_POST_NEG,
                    LeapKind::Delete => LEAP_PRE_NEG,
                };
                assert_eq!((utc.inserted, utc.indicator), (inserted, indicator), "{millis}");
                // And back, from what a server says there.
                assert_eq!(scale.of_utc(utc.time, Some(at(millis + 100))), Some(at(millis)), "{millis}");
                assert_eq!(scale.of_utc(utc.time, None), None);
            }
            assert_eq!(scale.utc(at(-31 * 86_400_000 - 1000)).indicator, 0, "the month before");
            assert_eq!(scale.utc(at(86_500_000)).indicator, 0, "two days later");
            assert_eq!(scale.of_utc(Timestamp::new(MONTH - 100, 0), None), Some(at(-100_000)));
            let later = if kind == LeapKind::Insert { 101_000 } else { 99_000 };
            assert_eq!(scale.of_utc(Timestamp::new(MONTH + 100, 0), None), Some(at(later)));
            assert_eq!(scale.until_edge(at(edge - 500)), Some(Span::from_nanos(500_000_000)));
        }
    }

    #[test]
    fn tai_is_the_scale_by_a_list_and_needs_its_offset_without_one() {
        let (listed, expired) = (at(5000), Timestamp::new(MONTH + 200 * 86_400, 0));
        let scale = list(LeapKind::Insert);
        assert_eq!((scale.of_tai(listed, None), scale.of_tai(expired, None)), (Some(listed), None));
        let later = expired.saturating_sub(Span::from_secs(1));
        assert_eq!(scale.of_tai(expired, Some(38)), Some(later), "a leap second that the list does not know");
        let utc = expired.saturating_sub(Span::from_secs(37));
        assert_eq!(LeapScale::new(None).of_tai(expired, Some(37)), Some(utc));
    }

    #[test]
    fn a_server_far_from_the_clock_is_on_neither_side() {
        assert_eq!(list(LeapKind::Insert).of_utc(Timestamp::new(MONTH, 0), Some(at(3700))), None);
    }

    #[test]
    fn without_a_list_the_servers_decide_and_may_take_it_back() {
        let mut scale = LeapScale::new(None);
        let now = Timestamp::new(MONTH - 1000, 0);
        scale.announce(now, Some(LeapKind::Insert));
        let utc = scale.utc(now);
        assert_eq!((utc.indicator, utc.time, scale.tai_offset(&utc)), (LEAP_PRE_POS, now, None));
        scale.announce(now, None);
        assert_eq!(scale.utc(now).indicator, 0);
        scale.announce(now, Some(LeapKind::Insert));
        let late = Timestamp::new(MONTH + 50, 0);
        // Some still announce it: that is no second one at the end of the next month.
        scale.announce(late, Some(LeapKind::Insert));
        let utc = scale.utc(late);
        assert_eq!((utc.time.secs(), utc.offset, utc.indicator), (MONTH + 49, 1, LEAP_POST_POS));
        scale.announce(Timestamp::new(MONTH + 100_000, 0), None);
        assert_eq!(scale.utc(Timestamp::new(MONTH + 200_000, 0)).offset, 1, "what came stays");
    }

    #[test]
    fn a_list_in_force_decides_and_an_expired_one_leaves_it_to_the_servers() {
        let mut scale = list(LeapKind::Insert);
        let may = Timestamp::new(MONTH + 90 * 86_400, 0);
        assert_eq!(scale.announce(may, Some(LeapKind::Insert)), Announcement::Unlisted);
        assert_eq!(scale.utc(may).indicator, 0);
        assert_eq!(scale.announce(at(-1000), None), Announcement::Taken);
        assert_eq!(scale.utc(at(-1000)).indicator, LEAP_PRE_POS, "though no server says so");
        let expired = Timestamp::new(MONTH + 101 * 86_400, 0);
        assert_eq!(scale.announce(expired, Some(LeapKind::Delete)), Announcement::Taken);
        let utc = scale.utc(expired);
        assert_eq!((utc.indicator, scale.tai_offset(&utc)), (LEAP_PRE_NEG, None));
    }
}
