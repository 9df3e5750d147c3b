//! `radclock discipline`: keeps `CLOCK_REALTIME` on the shared clock, for every program that knows nothing of us.
//!
//! [`kernel`] looks at the clocks and adjusts the kernel's, [`steer`] says how, [`rivals`] says who else does. Here is
//! the service around them: what it is told, when it looks, what it says, and how it ends.

mod kernel;
mod rivals;
mod steer;

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;
use tracing_subscriber::filter::LevelFilter;
use xen_radclock::{RadClock, Span};

use crate::format;
use steer::{Adjustment, Conflict, Look, Settings, State, Steering, Step};

/// How soon to look again when the shared clock cannot be read; doubled each time, up to the interval.
const SOON: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub struct Args {
    /// When the clock may be stepped; otherwise it is slewed
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Step::Disruption)]
    step: Step,
    /// Offsets of at least so many microseconds are stepped, where that is allowed
    #[arg(long, value_name = "US", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    step_threshold: u32,
    /// How fast an offset is slewed away at most, in microseconds a second
    #[arg(long, value_name = "PPM", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=400))]
    max_slew: u16,
    /// How often to look, in seconds
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    interval: u8,
    /// off, error, warn, info or debug
    #[arg(long, value_name = "LEVEL", env = "RADCLOCK_LOG", default_value = "info")]
    log_level: LevelFilter,
}

/// Why the service does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    #[error(transparent)]
    Lock(#[from] rivals::LockError),
    #[error("{0} (process {1}) adjusts the system's clock already; stop and disable it, or do without this service")]
    Rival(&'static str, u32),
    #[error(
        "somebody else adjusts the system's clock: {0}{by}; the clock is left as it is: stop one of the two",
        by = rivals::running().map_or_else(String::new, |(name, pid)| format!(" ({name}, process {pid}, runs here)"))
    )]
    Conflict(#[from] Conflict),
    #[error(
        "the kernel's tick is {0} us instead of 10000, too far off to make up for; set it with adjtimex --tick 10000"
    )]
    Tick(i64),
    #[error("cannot wait: {0}")]
    Wait(#[from] Errno),
}

impl Error {
    /// Whether there is somebody else, so that starting again is of no use.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Lock(rivals::LockError::Held) | Error::Rival(..) | Error::Conflict(_))
    }
}

pub fn run(clock: &RadClock, args: &Args) -> Result<(), Error> {
    start_log(args.log_level);
    let _lock = rivals::lock()?;
    if let Some((name, pid)) = rivals::running() {
        return Err(Error::Rival(name, pid));
    }
    let mut wait = Wait::new()?;
    kernel::take()?;
    let at_first = kernel::state()?;
    if at_first.tick_part().abs() > steer::MAX_FREQUENCY / 2.0 {
        return Err(Error::Tick(at_first.tick));
    }
    let settings = Settings {
        interval: f64::from(args.interval),
        max_slew: f64::from(args.max_slew) * 1e-6,
        step: args.step,
        step_threshold: Span::from_nanos(i64::from(args.step_threshold) * 1000),
    };
    let interval = Duration::from_secs(args.interval.into());
    let mut steering = Steering::new(settings, &at_first);
    let mut news = News::default();
    let mut soon = SOON;
    notify(&[NotifyState::Ready]);
    loop {
        let look = kernel::look(clock)?;
        let mut holding = false;
        if let Some(adjustment) = steering.look(&look)? {
            kernel::apply(&adjustment, &look, clock)?;
            news.tell(&look, &adjustment);
            holding = adjustment.state == State::Holding;
        }
        let pause = if holding { soon } else { interval };
        soon = if holding { (soon * 2).min(interval) } else { SOON };
        if wait.until(pause)? == Woken::Told {
            break;
        }
    }
    notify(&[NotifyState::Stopping]);
    let state = kernel::state()?;
    kernel::release(steering.free_running(&state))?;
    tracing::info!(
        "stopped; the clock goes on at {:+.3} ppm, and says that it is unsynchronised",
        ppm(&steering, &state)
    );
    Ok(())
}

fn ppm(steering: &Steering, kernel: &steer::Kernel) -> f64 {
    steering.free_running(kernel).relative() * 1e6
}

fn start_log(level: LevelFilter) {
    let log = tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(std::io::stderr);
    // The journal adds the time by itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().with_ansi(false).init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("cannot notify systemd: {error}");
    }
}

/// What has been told: a line for each step and each change of state.
#[derive(Default)]
struct News {
    state: Option<State>,
}

impl News {
    fn tell(&mut self, look: &Look, adjustment: &Adjustment) {
        if let Some(step) = adjustment.step {
            tracing::warn!("stepped the clock by {}", format::signed(step));
        }
        let offset = look.shared.as_ref().ok().map(|shared| look.real.since(shared.time));
        let ppm = adjustment.frequency.relative() * 1e6;
        if let Some(offset) = offset {
            let within = format::secs(look.uncertainty.as_secs_f64());
            tracing::debug!("off by {} (within {within}), frequency {ppm:+.3} ppm", format::signed(offset));
        }
        if self.state.replace(adjustment.state) == Some(adjustment.state) {
            return;
        }
        let status = match adjustment.state {
            State::Following => "following the shared clock".to_owned(),
            State::Slewing => {
                format!("off by {}, slewing", format::signed(offset.unwrap_or_default()))
            }
            State::Holding => format!("the shared clock cannot be read: holding {ppm:+.3} ppm"),
        };
        match adjustment.state {
            State::Following => tracing::info!("{status}"),
            State::Slewing | State::Holding => tracing::warn!("{status}"),
        }
        notify(&[NotifyState::Status(&status)]);
    }
}

/// Waits for time to pass, for the clock to be set by anybody, or to be told to stop.
struct Wait {
    timer: TimerFd,
    signals: SignalFd,
}

#[derive(PartialEq, Eq)]
enum Woken {
    Time,
    Told,
}

impl Wait {
    fn new() -> Result<Wait, Errno> {
        let mask: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        mask.thread_block()?;
        Ok(Wait {
            timer: TimerFd::new(timerfd::ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?,
            signals: SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?,
        })
    }

    /// A timer on `CLOCK_REALTIME` that ends when that clock is set: so a resume, at which the kernel sets it, is seen at
    /// once.
    fn until(&mut self, pause: Duration) -> Result<Woken, Errno> {
        let end = clock_gettime(ClockId::CLOCK_REALTIME)? + TimeSpec::from_duration(pause);
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.timer.set(Expiration::OneShot(end), flags) {
            // It was set since the last time, by ourselves perhaps.
            Err(Errno::ECANCELED) => return Ok(Woken::Time),
            result => result?,
        }
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [readable(self.signals.as_fd()), readable(self.timer.as_fd())];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        let [told, time] = fds.map(|fd| fd.any().unwrap_or_default());
        if told {
            return Ok(Woken::Told);
        }
        if time
            && let Err(error) = self.timer.wait()
            && error != Errno::ECANCELED
        {
            return Err(error);
        }
        Ok(Woken::Time)
    }
}
