//! The leap-second list, in the format of the IERS and NIST that Debian keeps as `leap-seconds.list` (package tzdata).
//!
//! A line is `TIME OFFSET`, the first UTC second of a month in seconds since 1900 and TAI − UTC from then on; `#@ TIME`
//! says when the list expires; what else follows a `#` is a comment. Text only: files are the caller's business.

use super::{LeapKind, LeapSecond, month_around};

/// 1900-01-01 to 1970-01-01 in seconds.
const UNIX_IN_NTP: u64 = 2_208_988_800;
/// A list is some 30 lines; this many leap seconds would take centuries.
const MAX_ENTRIES: usize = 1000;

/// All leap seconds there were, and those that were decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeapList {
    /// TAI − UTC before the first of them, s.
    pub first_offset: i16,
    /// In order.
    pub leaps: Vec<LeapSecond>,
    /// Until when there are no others, seconds since 1970 in UTC.
    pub expires: u64,
}

/// Why a text is no leap-second list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// A line is neither a comment nor `TIME OFFSET`.
    #[error("line {0} is not `TIME OFFSET`, seconds since 1900 and TAI - UTC")]
    Line(usize),
    /// A leap second elsewhere than at a month's end, or out of order.
    #[error("line {0}: not the start of a month after the line before")]
    Month(usize),
    /// An offset that differs from the one before by something else than one second.
    #[error("line {0}: TAI - UTC does not differ by 1 from the line before")]
    Offset(usize),
    /// No line `#@ TIME`.
    #[error("there is no line `#@ TIME` that says when it expires")]
    NoExpiry,
    /// No offset at all.
    #[error("it has no entry")]
    Empty,
    /// More than any list can have.
    #[error("it has more than {MAX_ENTRIES} entries")]
    TooLong,
}

impl LeapList {
    /// Reads a list.
    pub fn parse(text: &str) -> Result<LeapList, ListError> {
        let mut expires = None;
        let mut entries: Vec<(u64, i16)> = Vec::new();
        let mut leaps = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if let Some(time) = line.strip_prefix("#@") {
                expires = Some(unix(time.trim()).ok_or(ListError::Line(number))?);
                continue;
            }
            let data = line.split_once('#').map_or(line, |(data, _)| data).trim();
            if data.is_empty() {
                continue;
            }
            let mut words = data.split_ascii_whitespace();
            let (Some(time), Some(offset), None) = (words.next(), words.next(), words.next()) else {
                return Err(ListError::Line(number));
            };
            let (month, offset) = unix(time).zip(offset.parse().ok()).ok_or(ListError::Line(number))?;
            if month_around(month).0 != month {
                return Err(ListError::Month(number));
            }
            if let Some(&(month_before, before)) = entries.last() {
                if month <= month_before {
                    return Err(ListError::Month(number));
                }
                let kind = match i32::from(offset) - i32::from(before) {
                    1 => LeapKind::Insert,
                    -1 => LeapKind::Delete,
                    _ => return Err(ListError::Offset(number)),
                };
                leaps.push(LeapSecond { month, kind });
            }
            if entries.len() == MAX_ENTRIES {
                return Err(ListError::TooLong);
            }
            entries.push((month, offset));
        }
        let &(_, first_offset) = entries.first().ok_or(ListError::Empty)?;
        Ok(LeapList { first_offset, leaps, expires: expires.ok_or(ListError::NoExpiry)? })
    }

    /// TAI − UTC at the end of the list, s.
    pub fn last_offset(&self) -> i64 {
        i64::from(self.first_offset) + self.leaps.iter().map(|leap| leap.kind.adjustment()).sum::<i64>()
    }
}

/// Seconds since 1900 as seconds since 1970, if they are not before.
fn unix(text: &str) -> Option<u64> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse::<u64>().ok()?.checked_sub(UNIX_IN_NTP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHORT: &str =
        "#$ 3676924800\n#@ 3707596800\n2272060800 10 # 1 Jan 1972\n2287785600\t11\n\n2303683200 12 # end";

    #[test]
    fn a_list_says_what_it_says() {
        let list = LeapList::parse(SHORT).unwrap();
        assert_eq!((list.first_offset, list.last_offset(), list.expires), (10, 12, 1_498_608_000));
        assert_eq!(list.leaps[0], LeapSecond { month: 78_796_800, kind: LeapKind::Insert });
        let negative = LeapList::parse("#@ 3707596800\n2272060800 10\n2287785600 9").unwrap();
        assert_eq!(negative.leaps[0].kind, LeapKind::Delete);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, error) in [
            ("2272060800 10\nfoo", ListError::Line(2)),
            ("2272060800 10 11", ListError::Line(1)),
            ("2272060800", ListError::Line(1)),
            ("-2272060800 10", ListError::Line(1)),
            ("2272060800 1.5", ListError::Line(1)),
            ("100 10", ListError::Line(1)),
            ("#@ soon\n2272060800 10", ListError::Line(1)),
            ("2272060801 10", ListError::Month(1)),
            ("2287785600 10\n2272060800 11", ListError::Month(2)),
            ("2272060800 10\n2287785600 12", ListError::Offset(2)),
            ("2272060800 10", ListError::NoExpiry),
            ("#@ 3707596800\n# nothing", ListError::Empty),
        ] {
            assert_eq!(LeapList::parse(text), Err(error), "{text}");
        }
        let long: String = (0..2000).map(|_| "2272060800 10\n").collect();
        assert_eq!(LeapList::parse(&long), Err(ListError::Month(2)));
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_an_error(text in "([#@$ 0-9a-f\n\t.-]{0,20}\n?){0,20}") {
            let _ = LeapList::parse(&text);
        }

        #[test]
        fn a_changed_list_is_an_error_or_a_list_in_order(at in 0..SHORT.len(), to in any::<char>()) {
            let text: String =
                SHORT.char_indices().map(|(index, old)| if index == at { to } else { old }).collect();
            if let Ok(list) = LeapList::parse(&text) {
                prop_assert!(list.leaps.windows(2).all(|pair| pair[0].month < pair[1].month));
            }
        }
    }
}
