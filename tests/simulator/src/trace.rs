//! A single server's exchanges with their truth, simulated or recorded, and the text file that holds them: the format of
//! `radclock::stamp` with the two columns of truth, behind a line that says how the trace was made.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use radclock::stamp::Stamp;
use radclock::time::Timestamp;

use crate::scenario::{Scenario, World, seconds};

/// A trace.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What it is called.
    pub name: String,
    /// The smallest delay there and back, s. Half of their difference no client can see.
    pub min_delays: (f64, f64),
    /// In order.
    pub lines: Vec<Line>,
}

/// An exchange with the truth beside it.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// What a clock is given.
    pub stamp: Stamp,
    /// True time at `Ta`.
    pub sent: Timestamp,
    /// True time at `Tf`.
    pub received: Timestamp,
}

impl Trace {
    /// What a server of a scenario that was run said.
    pub fn of(name: &str, scenario: &Scenario, world: &World, server: usize) -> Trace {
        let exchanges = world.exchanges().iter().filter(|exchange| exchange.server == server);
        let mut lines: Vec<Line> = exchanges
            .map(|exchange| Line { stamp: exchange.stamp, sent: exchange.sent, received: exchange.received })
            .collect();
        // A clock is asked at each `Ta`, so one that came back late must not come behind the next.
        lines.sort_by_key(|line| line.sent);
        let server = &scenario.servers[server];
        Trace { name: name.to_owned(), min_delays: (server.there.min, server.back.min), lines }
    }

    /// Half of the difference between the smallest one-way delays, s.
    pub fn asymmetry(&self) -> f64 {
        (self.min_delays.0 - self.min_delays.1) / 2.0
    }

    /// What the packets were on their way, s, without the first exchange, which may be cut off at its beginning in a given trace.
    pub fn round_trips(&self) -> impl Iterator<Item = f64> {
        let round_trip =
            |line: &Line| (line.received.since(line.sent) - line.stamp.te.since(line.stamp.tb)).as_secs_f64();
        self.lines.iter().skip(1).map(round_trip)
    }

    /// Half of the smallest round trip, s: that of the path at first, or of one that became shorter.
    pub fn half_round_trip(&self) -> f64 {
        let trips = self.round_trips().fold(f64::INFINITY, f64::min);
        trips.min(self.min_delays.0 + self.min_delays.1) / 2.0
    }

    /// From when on a clock is scored, s after the first exchange: 2 h, or 10 min where there is no more than that.
    pub fn warm(&self) -> f64 {
        let length = self
            .lines
            .last()
            .zip(self.lines.first())
            .map_or(0.0, |(last, first)| seconds(last.sent) - seconds(first.sent));
        if length > 3.0 * 3600.0 { 2.0 * 3600.0 } else { 600.0 }
    }

    /// The file's text. `how` says how the trace was made.
    pub fn to_text(&self, how: &str) -> String {
        let (there, back) = self.min_delays;
        let mut text = format!("# {} {how} fmin={there} bmin={back}\n# Ta Tb Te Tf RefA RefF\n", self.name);
        for Line { stamp, sent, received } in &self.lines {
            let _ = writeln!(text, "{stamp} {sent} {received}");
        }
        text
    }

    /// Reads a file with truth; its name without the ending is the trace's.
    pub fn read(path: &Path) -> Result<Trace> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Trace::parse(&name, &text).with_context(|| path.display().to_string())
    }

    /// All traces (`*.stamps`) in a folder, by name.
    pub fn read_all(dir: &Path) -> Result<Vec<Trace>> {
        let entries = fs::read_dir(dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        let mut paths: Vec<_> = entries.with_context(|| dir.display().to_string())?.iter().map(|e| e.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "stamps"));
        if paths.is_empty() {
            bail!("{}: no traces there (*.stamps)", dir.display());
        }
        paths.sort();
        paths.iter().map(|path| Trace::read(path)).collect()
    }

    fn parse(name: &str, text: &str) -> Result<Trace> {
        let mut min_delays = None;
        let mut lines = vec![];
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                let value = |key| line.split(' ').find_map(|word| word.strip_prefix(key)?.parse::<f64>().ok());
                min_delays = min_delays.or(value("fmin=").zip(value("bmin=")));
                continue;
            }
            if line.trim().is_empty() {
                continue;
            }
            let parsed = (|| {
                let stamp: Stamp = line.parse()?;
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                let [.., sent, received] = words[..] else { unreachable!("a stamp has four columns") };
                if words.len() != 6 {
                    bail!("no truth: two more columns `RefA RefF` must follow");
                }
                // The times of a stamp, read by the one parser that there is.
                let truth: Stamp = format!("0 {sent} {received} 0").parse()?;
                Ok::<_, anyhow::Error>(Line { stamp, sent: truth.tb, received: truth.te })
            })();
            lines.push(parsed.with_context(|| format!("line {}", index + 1))?);
        }
        let min_delays = min_delays.ok_or_else(|| anyhow!("no comment says fmin= and bmin=, the smallest delays"))?;
        Ok(Trace { name: name.to_owned(), min_delays, lines })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family;

    #[test]
    fn a_trace_is_read_as_it_was_written() {
        let family = family::find("lan-16s").expect("a family");
        let scenario = Scenario { hours: 1.0, ..family.scenario(3) };
        let trace = Trace::of("lan-16s", &scenario, &scenario.run(3), 0);
        let read = Trace::parse("lan-16s", &trace.to_text("seed=3")).expect("a trace");
        assert_eq!((read.min_delays, read.lines.len()), (trace.min_delays, trace.lines.len()));
        for (read, written) in read.lines.iter().zip(&trace.lines) {
            assert_eq!((read.stamp.ta, read.stamp.tf), (written.stamp.ta, written.stamp.tf));
            for (read, written) in [
                (read.stamp.tb, written.stamp.tb),
                (read.stamp.te, written.stamp.te),
                (read.sent, written.sent),
                (read.received, written.received),
            ] {
                assert!((0.0..1e-9).contains(&written.since(read).as_secs_f64()));
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let error = |text| format!("{:#}", Trace::parse("x", text).expect_err("wrong"));
        assert_eq!(
            error("# fmin=1 bmin=1\n1 2.0 3.0 4\n"),
            "line 2: no truth: two more columns `RefA RefF` must follow"
        );
        assert!(error("# fmin=1 bmin=1\n\n1 2.0 x 4 5.0 6.0\n").starts_with("line 3: Te is `x`"));
        assert_eq!(error("1 2.0 3.0 4 5.0 6.0\n"), "no comment says fmin= and bmin=, the smallest delays");
        let dir = tempfile::tempdir().expect("a folder");
        assert!(
            format!("{:#}", Trace::read_all(dir.path()).expect_err("empty")).ends_with("no traces there (*.stamps)")
        );
    }
}
