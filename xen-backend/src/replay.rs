//! `radclockd replay`: a recorded trace through the algorithm, a line a stamp on standard output.
//!
//! What a line means is `radclock::replay`'s business; here are the files and the errors.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use radclock::replay::replay;
use radclock::sync::{SyncParams, Synchroniser};

/// Replays the trace in the file `path` (`-` is standard input), whose counter nominally counts `nominal_hz` a second.
///
/// # Errors
///
/// The file cannot be read, or a line of it is no stamp. Whoever reads the output may leave early.
pub fn run(path: &Path, nominal_hz: f64) -> anyhow::Result<()> {
    let params = SyncParams { nominal_period: 1.0 / nominal_hz, ..SyncParams::default() };
    let sync = Synchroniser::new(params).context("--nominal-hz is out of range")?;
    let input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?))
    };
    // Behind the iterator, since a line that cannot be read ends it.
    let mut broken = None;
    let lines = input.lines().map_while(|line| line.map_err(|error| broken = Some(error)).ok());
    let mut output = BufWriter::new(io::stdout().lock());
    for line in replay(lines, sync) {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                output.flush()?;
                return Err(error).with_context(|| path.display().to_string());
            }
        };
        match writeln!(output, "{line}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
    }
    match output.flush() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result?,
    }
    match broken {
        Some(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        None => Ok(()),
    }
}
