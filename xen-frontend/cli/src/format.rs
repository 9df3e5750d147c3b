//! Figures in words.

use std::io::{self, Write};

use serde::Serialize;
use xen_radclock::{Period, Span, Timestamp};

/// ISO 8601 with nine decimals, or plain seconds after the year 9999.
pub fn utc(time: Timestamp) -> String {
    let known = i64::try_from(time.secs())
        .ok()
        .and_then(|secs| jiff::Timestamp::new(secs, time.subsec_nanos().cast_signed()).ok());
    known.map_or_else(|| format!("{time} s since 1970"), |known| format!("{known:.9}"))
}

/// With a unit that gives one to three digits before the point: `850 ns`, `12.3 µs`, `1.25 s`.
pub fn nanos(nanos: u64) -> String {
    secs(nanos as f64 * 1e-9)
}

/// As [`nanos`], of seconds.
pub fn secs(secs: f64) -> String {
    let (value, unit) = match secs.abs() {
        s if s < 999.5e-9 => return format!("{:.0} ns", secs * 1e9),
        s if s < 999.5e-6 => (secs * 1e6, "µs"),
        s if s < 999.5e-3 => (secs * 1e3, "ms"),
        s if s < 1e6 => (secs, "s"),
        _ => (secs / 86_400.0, "days"),
    };
    let decimals = if value.abs() < 9.995 { 2 } else { usize::from(value.abs() < 99.95) };
    format!("{value:.decimals$} {unit}")
}

/// A jump, with its sign.
pub fn signed(span: Span) -> String {
    let secs = span.as_secs_f64();
    format!("{}{}", if secs < 0.0 { "" } else { "+" }, self::secs(secs))
}

/// A counter's frequency.
pub fn frequency(period: Period) -> String {
    let hertz = 1.0 / period.as_secs_f64();
    if hertz < 1e9 { format!("{:.6} MHz", hertz * 1e-6) } else { format!("{:.9} GHz", hertz * 1e-9) }
}

/// 32 hexadecimal digits.
pub fn host_id(id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

/// Which counter, in words.
pub fn counter(id: u8) -> &'static str {
    match id {
        1 => "TSC",
        0xe1 => "CLOCK_MONOTONIC_RAW",
        _ => "unknown counter",
    }
}

/// Prints one object and a newline, at once.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_three_digits_and_a_fitting_unit() {
        for (nanos, text) in [
            (0, "0 ns"),
            (850, "850 ns"),
            (1_000, "1.00 µs"),
            (12_345, "12.3 µs"),
            (999_400, "999 µs"),
            (999_600, "1.00 ms"),
            (1_250_000_000, "1.25 s"),
            (86_400_000_000_000, "86400 s"),
            (8_640_000_000_000_000, "100 days"),
        ] {
            assert_eq!(super::nanos(nanos), text);
        }
        assert_eq!(signed(Span::from_nanos(-1500)), "-1.50 µs");
        assert_eq!(signed(Span::from_nanos(20)), "+20 ns");
    }

    #[test]
    fn dates_have_nine_decimals() {
        assert_eq!(utc(Timestamp::from_unix(1_795_348_800, 5)), "2026-11-22T12:00:00.000000005Z");
        assert_eq!(utc(Timestamp::from_frac(u128::MAX)), "18446744073709551615.999999999 s since 1970");
    }
}
