//! Programs on the build machine: with their output, a time limit, and an end at the latest with the lab's own.

use std::ffi::OsString;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wait;

/// A program with its arguments: `expression("ls", ["-l"])`.
///
/// It is in its own process group (Ctrl-C is the lab's business) and is killed when the thread that starts it ends.
pub fn expression<A: Into<OsString>>(program: &str, args: impl IntoIterator<Item = A>) -> duct::Expression {
    confined(duct::cmd(program, args).stdin_null())
}

/// The same, with something to read on standard input.
pub fn reading<A: Into<OsString>>(
    program: &str,
    args: impl IntoIterator<Item = A>,
    input: impl Into<Vec<u8>>,
) -> duct::Expression {
    confined(duct::cmd(program, args).stdin_bytes(input))
}

fn confined(expression: duct::Expression) -> duct::Expression {
    expression.unchecked().before_spawn(|command| {
        std::os::unix::process::CommandExt::process_group(command, 0);
        // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(command, || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        Ok(())
    })
}

/// Runs it to its end, whatever its exit status. Ends it, and what it started, when `limit` has passed.
pub fn output(what: &str, expression: &duct::Expression, limit: Duration) -> Result<Output> {
    let handle =
        expression.stdout_capture().stderr_capture().start().with_context(|| format!("cannot start {what}"))?;
    let start = Instant::now();
    loop {
        if let Some(output) = handle.wait_timeout(Duration::from_millis(100))? {
            return Ok(output.clone());
        }
        let interrupted = wait::check();
        if interrupted.is_err() || start.elapsed() > limit {
            end(&handle);
            interrupted?;
            bail!("{what} took more than {} s", limit.as_secs());
        }
    }
}

/// A program in the background that holds nothing worth saving: killed when this is dropped.
pub struct Background(duct::Handle);

impl Background {
    /// Starts it.
    pub fn start(what: &str, expression: &duct::Expression) -> Result<Background> {
        Ok(Background(expression.start().with_context(|| format!("cannot start {what}"))?))
    }

    /// Its output and exit status, once it has ended.
    pub fn ended(&self) -> Result<Option<Output>> {
        Ok(self.0.try_wait()?.cloned())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.pids()[0]
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends a program and what it started: asks first, so that it can clean up.
fn end(handle: &duct::Handle) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for pid in handle.pids() {
            let _ = killpg(Pid::from_raw(pid as i32), signal);
        }
        if let Ok(Some(_)) = handle.wait_timeout(Duration::from_secs(5)) {
            return;
        }
    }
}

/// Runs it and gives its standard output; a failure is an error that ends with what it said last.
pub fn run(what: &str, expression: &duct::Expression, limit: Duration) -> Result<String> {
    let output = output(what, expression, limit)?;
    success(what, &output)
}

/// The standard output of a program that succeeded, or an error that ends with what it printed.
pub fn success(what: &str, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = if stderr.trim().is_empty() { &stdout } else { stderr.as_ref() };
    let lines: Vec<&str> = said.lines().collect();
    let tail = lines[lines.len().saturating_sub(30)..].join("\n");
    bail!("{what} failed ({}):\n{tail}", output.status);
}
