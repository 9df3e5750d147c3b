//! Leap seconds: how the seconds of UTC are counted around one.
//!
//! UTC has no number of its own for an inserted second. As in POSIX systems, `23:59:60` has the number of the second
//! before it once more, together with an offset to TAI that is larger by one already; so TAI always is the number plus
//! the offset, and never steps. [`list`] reads the system's leap-second list; [`scale`] keeps a scale without leap
//! seconds for the synchroniser, and decides which leap second is to come.

#[cfg(feature = "std")]
pub mod list;
#[cfg(feature = "std")]
pub mod scale;

use crate::time::{Span, Timestamp};

const DAY: u64 = 86_400;

/// Which way the last minute of a month differs from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum LeapKind {
    /// It has a second more, `23:59:60`.
    Insert,
    /// It has a second less: there is no `23:59:59`.
    Delete,
}

impl LeapKind {
    /// What is added to TAI − UTC, s.
    pub const fn adjustment(self) -> i64 {
        match self {
            LeapKind::Insert => 1,
            LeapKind::Delete => -1,
        }
    }
}

/// A leap second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeapSecond {
    /// The first second of the month after it, seconds since 1970 in UTC.
    pub month: u64,
    /// Whether a second is inserted before it or left out.
    pub kind: LeapKind,
}

/// Where an instant lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the leap second.
    Before,
    /// In the second that is inserted.
    During,
    /// After it.
    After,
}

impl LeapSecond {
    /// The one at the end of the month that `secs` since 1970 lie in.
    pub const fn ending_month_of(secs: u64, kind: LeapKind) -> LeapSecond {
        LeapSecond { month: month_around(secs).1, kind }
    }

    /// The UTC of an instant and where it lies; `count` is the UTC that it would have had there been no leap second.
    pub const fn utc(self, count: Timestamp) -> (Timestamp, Phase) {
        let secs = count.secs();
        let phase = match self.kind {
            _ if secs < self.edge() => return (count, Phase::Before),
            LeapKind::Insert if secs == self.month => Phase::During,
            _ => Phase::After,
        };
        (count.saturating_sub(Span::from_secs(self.kind.adjustment())), phase)
    }

    /// The first second, had there been no leap second, whose UTC is another because of it.
    pub const fn edge(self) -> u64 {
        match self.kind {
            LeapKind::Insert => self.month,
            LeapKind::Delete => self.month - 1,
        }
    }
}

/// The first second of the month that `secs` since 1970 lie in, and of the month after.
pub(crate) const fn month_around(secs: u64) -> (u64, u64) {
    // Days since 1 March of the year 0, so that the leap day is a year's last; then the usual cycles of 400, 100, 4
    // and 1 years, the last of which may be a day longer than its formula says.
    let days = secs / DAY + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let starts = (153 * month + 2) / 5;
    let is_february = month == 11;
    let next_starts = if is_february {
        let year = year_of_era + 1;
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        365 + leap as u64
    } else {
        (153 * (month + 1) + 2) / 5
    };
    let first = days - day_of_year;
    ((first + starts).saturating_sub(719_468) * DAY, (first + next_starts - 719_468).saturating_mul(DAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_and_end_where_the_calendar_says() {
        for (secs, first, next) in [
            (1_483_228_799, 1_480_550_400, 1_483_228_800), // 2016-12-31 23:59:59
            (1_483_228_800, 1_483_228_800, 1_485_907_200), // 2017-01-01
            (1_456_704_000, 1_454_284_800, 1_456_790_400), // 2016-02-29
            (1_488_240_000, 1_485_907_200, 1_488_326_400), // 2017-02-28
            (951_782_400, 949_363_200, 951_868_800),       // 2000-02-29
            (1_782_777_600, 1_780_272_000, 1_782_864_000), // 2026-06-30
            (0, 0, 2_678_400),
        ] {
            assert_eq!(month_around(secs), (first, next), "{secs}");
        }
        // No panic at the end of the range.
        month_around(u64::MAX);
    }

    #[test]
    fn an_inserted_second_repeats_the_number_before_it_and_a_deleted_one_has_none() {
        let month = 1_483_228_800;
        let secs = |kind, count| {
            let (time, phase) = LeapSecond { month, kind }.utc(Timestamp::new(count, 5));
            assert_eq!(time.frac(), 5);
            (time.secs(), phase)
        };
        assert_eq!(secs(LeapKind::Insert, month - 1), (month - 1, Phase::Before));
        assert_eq!(secs(LeapKind::Insert, month), (month - 1, Phase::During));
        assert_eq!(secs(LeapKind::Insert, month + 1), (month, Phase::After));
        assert_eq!(secs(LeapKind::Delete, month - 2), (month - 2, Phase::Before));
        assert_eq!(secs(LeapKind::Delete, month - 1), (month, Phase::After));
    }
}
