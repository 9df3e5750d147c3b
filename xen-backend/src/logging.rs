//! Logs to standard error: for a person with times and colours, for the journal with priorities instead.

use std::fmt;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging, at `level` and above.
pub fn init(level: LevelFilter) {
    let mut targets = Targets::new().with_default(level);
    if level == LevelFilter::DEBUG {
        // It dumps each message, byte by byte.
        targets = targets.with_target("xenstore_rs", LevelFilter::INFO);
    }
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(targets);
    if journal() {
        let plain = Format::default().without_time().with_level(false).with_target(false);
        registry.with(layer.with_ansi(false).event_format(Prioritised(plain))).init();
    } else {
        registry.with(layer.with_ansi(std::io::stderr().is_terminal()).with_target(false)).init();
    }
}

/// Whether standard error is the journal, which adds the time itself (systemd.exec(5), `$JOURNAL_STREAM`).
fn journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Lines with a priority in front, as the journal reads them (sd-daemon(3)).
struct Prioritised(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}
