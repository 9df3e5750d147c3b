//! Waiting for conditions, each with a time limit, none deaf to Ctrl-C.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on Ctrl-C, `SIGTERM` and `SIGHUP` make [`check`] fail, so that everything started is ended on the way out.
/// A second signal ends the process at once; what it started dies with it.
pub fn catch_signals() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag))?;
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Fails once the run was interrupted.
pub fn check() -> Result<()> {
    let interrupted = INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed));
    ensure!(!interrupted, "interrupted");
    Ok(())
}

/// Tries `condition` until it gives a value, fails, or `limit` has passed. `what` completes "waited 10 s for …".
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        check()?;
        if let Some(value) = condition().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Lets time pass, where time itself is what a test is about.
pub fn pass(duration: Duration) -> Result<()> {
    let start = Instant::now();
    while let Some(left) = duration.checked_sub(start.elapsed()) {
        check()?;
        thread::sleep(left.min(Duration::from_millis(100)));
    }
    Ok(())
}
