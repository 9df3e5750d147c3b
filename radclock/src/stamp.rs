//! Stamps: one exchange with a server each, and the text format in which they are recorded and replayed.
//!
//! A trace is a text file with a stamp a line: `Ta Tb Te Tf`, counter values as integers and server times as decimal
//! seconds since 1970. Two more columns `RefA RefF`, the true time at `Ta` and at `Tf`, may follow: they are there to
//! score a clock and never reach the algorithm. What follows a `#` is a comment.

use core::fmt;
use core::str::FromStr;

use crate::time::{Counter, Span, Timestamp};

/// How the two counter values of a stamp were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum StampSource {
    /// By the kernel, when the packet left and arrived.
    Kernel,
    /// By the daemon, before sending and after receiving: wider, and always too wide.
    User,
    /// By the daemon, before and after it read a PTP hardware clock.
    Phc,
}

/// One exchange with a server: `(Ta, Tb, Te, Tf)` of the RADclock papers, and what the server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The counter when the request left.
    pub ta: Counter,
    /// The server's time when the request arrived.
    pub tb: Timestamp,
    /// The server's time when the reply left.
    pub te: Timestamp,
    /// The counter when the reply arrived.
    pub tf: Counter,
    /// Bound on the error of `ta` and of `tf` as readings of the counter (bracketing), each. Zero in a trace.
    pub host_error: Span,
    /// The server's distance to its reference, there and back (NTP's root delay). Zero in a trace.
    pub root_delay: Span,
    /// The server's own claim of its error (NTP's root dispersion). Zero in a trace.
    pub root_dispersion: Span,
    /// How `ta` and `tf` were taken.
    pub source: StampSource,
}

/// What is wrong with a line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StampError {
    /// Neither four columns nor six.
    #[error("{0} columns: a stamp is `Ta Tb Te Tf`, with `RefA RefF` behind it or not")]
    Columns(usize),
    /// A counter value that is no integer of 64 bits.
    #[error("{column} is `{text}`: a counter value is an integer from 0 to 18446744073709551615")]
    Counter {
        /// Its name.
        column: &'static str,
        /// What stands there.
        text: String,
    },
    /// A time that is no decimal number of seconds.
    #[error("{column} is `{text}`: a time is decimal seconds since 1970 with at most 19 digits behind the point")]
    Time {
        /// Its name.
        column: &'static str,
        /// What stands there.
        text: String,
    },
}

impl FromStr for Stamp {
    type Err = StampError;

    /// Reads one line of a trace; the line's comment must be off already.
    fn from_str(line: &str) -> Result<Stamp, StampError> {
        let mut columns = [""; 6];
        let mut count = 0;
        for word in line.split_ascii_whitespace() {
            if let Some(column) = columns.get_mut(count) {
                *column = word;
            }
            count += 1;
        }
        if count != 4 && count != 6 {
            return Err(StampError::Columns(count));
        }
        if count == 6 {
            parse_time("RefA", columns[4])?;
            parse_time("RefF", columns[5])?;
        }
        Ok(Stamp {
            ta: parse_counter("Ta", columns[0])?,
            tb: parse_time("Tb", columns[1])?,
            te: parse_time("Te", columns[2])?,
            tf: parse_counter("Tf", columns[3])?,
            host_error: Span::ZERO,
            root_delay: Span::ZERO,
            root_dispersion: Span::ZERO,
            source: StampSource::Kernel,
        })
    }
}

impl fmt::Display for Stamp {
    /// The line of a trace, with times rounded down to the nanosecond.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.ta.0, self.tb, self.te, self.tf.0)
    }
}

fn parse_counter(column: &'static str, text: &str) -> Result<Counter, StampError> {
    digits(text)
        .and_then(|text| text.parse().ok())
        .map(Counter)
        .ok_or_else(|| StampError::Counter { column, text: text.to_owned() })
}

fn parse_time(column: &'static str, text: &str) -> Result<Timestamp, StampError> {
    let parse = || {
        let (secs, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let secs: u64 = digits(secs)?.parse().ok()?;
        let scale = 10u64.checked_pow(u32::try_from(decimals.len()).ok()?)?;
        let frac: u64 = digits(decimals)?.parse().ok()?;
        // Upward, so that rounding down for display gives the same digits again.
        Some(Timestamp::new(secs, (u128::from(frac) << 64).div_ceil(u128::from(scale)) as u64))
    };
    parse().ok_or_else(|| StampError::Time { column, text: text.to_owned() })
}

/// The text, if it is digits and nothing else (Rust's own parser also takes a sign).
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> String {
        line.parse::<Stamp>().unwrap_err().to_string()
    }

    #[test]
    fn a_line_becomes_a_stamp_and_a_line_again() {
        let line = "21623424151522 1800000008.107485859 1800000008.107511740 21623424717507";
        let stamp: Stamp = line.parse().unwrap();
        assert_eq!(stamp.ta, Counter(21_623_424_151_522));
        assert_eq!(stamp.te.since(stamp.tb).floor_nanos() / 10, 2_588);
        assert_eq!(stamp.to_string(), line);
    }

    #[test]
    fn the_truth_may_follow_and_is_not_taken_in() {
        let with: Stamp = "1 5.5 5.6 9 5.4 5.7".parse().unwrap();
        assert_eq!(with, "1 5.5 5.6 9".parse().unwrap());
    }

    #[test]
    fn times_keep_all_their_digits() {
        let stamp: Stamp = "0 7 7.0000000000000000001 1".parse().unwrap();
        assert_eq!(stamp.tb, Timestamp::new(7, 0));
        assert_eq!(stamp.te, Timestamp::new(7, 2));
        let half: Stamp = "0 18446744073709551615.5 18446744073709551615.500 1".parse().unwrap();
        assert_eq!((half.tb, half.te), (Timestamp::new(u64::MAX, 1 << 63), Timestamp::new(u64::MAX, 1 << 63)));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        assert_eq!(error("1 2.0 3.0"), "3 columns: a stamp is `Ta Tb Te Tf`, with `RefA RefF` behind it or not");
        assert_eq!(error("1 2.0 3.0 4 5.0"), "5 columns: a stamp is `Ta Tb Te Tf`, with `RefA RefF` behind it or not");
        assert!(error("-1 2.0 3.0 4").starts_with("Ta is `-1`: a counter value"));
        assert!(error("1 2.0 3.0 18446744073709551616").starts_with("Tf is `18446744073709551616`"));
        assert!(error("1 2. 3.0 4").starts_with("Tb is `2.`: a time"));
        assert!(error("1 2.0 1e9 4").starts_with("Te is `1e9`"));
        assert!(error("1 2.00000000000000000000 3.0 4").starts_with("Tb is"));
        assert!(error("1 2.0 3.0 4 five 6.0").starts_with("RefA is `five`"));
    }
}
