//! `radclockd replay`: recorded traces through the algorithm, a line a stamp on standard output.
//!
//! What a line means is `radclock::replay`'s business; here are the files and the errors.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use radclock::ensemble::{Ensemble, MAX_SERVERS};
use radclock::replay::{replay, replay_several, stamps};
use radclock::sync::{SyncParams, Synchroniser};

/// Replays the traces in the files `paths` (`-` is standard input), one a server, all of the counter that nominally counts
/// `nominal_hz` a second.
///
/// # Errors
///
/// A file cannot be read, a line of it is no stamp, or none is one; or there are more than eight. Whoever reads the output
/// may leave early.
pub fn run(paths: &[PathBuf], nominal_hz: f64) -> anyhow::Result<()> {
    let params = SyncParams { nominal_period: 1.0 / nominal_hz, ..SyncParams::default() };
    let sync = Synchroniser::new(params.clone()).context("--nominal-hz is out of range")?;
    if let [path] = paths {
        // Behind the iterator, since a line that cannot be read ends it.
        let mut broken = None;
        let lines = replay(lines(path, &mut broken)?, sync);
        let written = write(lines.map(|line| line.with_context(|| path.display().to_string())))?;
        unbroken(path, broken)?;
        ensure_any(path, written.stamps)?;
        written.conclude(nominal_hz);
        return Ok(());
    }
    anyhow::ensure!(paths.len() <= MAX_SERVERS, "{} traces: at most {MAX_SERVERS} servers are allowed", paths.len());
    let mut traces = Vec::new();
    for path in paths {
        let mut broken = None;
        let trace: Result<Vec<_>, _> = stamps(lines(path, &mut broken)?).collect();
        let trace = trace.with_context(|| path.display().to_string())?;
        unbroken(path, broken)?;
        ensure_any(path, trace.len())?;
        traces.push(trace);
    }
    write(replay_several(&traces, Ensemble::new(&params, paths.len())?).map(Ok))?.conclude(nominal_hz);
    Ok(())
}

fn ensure_any(path: &Path, stamps: usize) -> anyhow::Result<()> {
    anyhow::ensure!(stamps > 0, "{}: there is no stamp in it", path.display());
    Ok(())
}

/// The lines of a file; what goes wrong on the way ends them and goes to `broken`.
fn lines<'a>(path: &Path, broken: &'a mut Option<io::Error>) -> anyhow::Result<impl Iterator<Item = String> + use<'a>> {
    let input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?))
    };
    Ok(input.lines().map_while(|line| line.map_err(|error| *broken = Some(error)).ok()))
}

fn unbroken(path: &Path, broken: Option<io::Error>) -> anyhow::Result<()> {
    match broken {
        Some(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        None => Ok(()),
    }
}

/// What a replay came to, as far as somebody read on.
#[derive(Default)]
struct Written {
    stamps: usize,
    is_synchronised: bool,
}

impl Written {
    fn conclude(&self, nominal_hz: f64) {
        if !self.is_synchronised {
            tracing::warn!(
                "never synchronised in {} stamps: does the counter count {nominal_hz} times a second (--nominal-hz)?",
                self.stamps
            );
        }
    }
}

fn write(lines: impl Iterator<Item = anyhow::Result<String>>) -> anyhow::Result<Written> {
    let mut output = BufWriter::new(io::stdout().lock());
    let mut written = Written::default();
    for line in lines {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                output.flush()?;
                return Err(error);
            }
        };
        written.stamps += 1;
        // Without a clock it is a comment.
        written.is_synchronised |= !line.starts_with('#');
        match writeln!(output, "{line}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(written),
            result => result?,
        }
    }
    match output.flush() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(written),
        result => result.map(|()| written).map_err(Into::into),
    }
}
