//! What the lab is doing, for a person: a line a step with its time; on a terminal, a moving one.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

thread_local! {
    /// What this thread says, if it is recorded.
    static RECORD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Says a line as `eprintln!` does, or in the record if this thread has one.
macro_rules! say {
    ($($text:tt)*) => { $crate::progress::say_line(format_args!($($text)*)) };
}
pub(crate) use say;

pub(crate) fn say_line(line: fmt::Arguments) {
    RECORD.with_borrow_mut(|record| match record {
        Some(record) => writeln!(record, "{line}").expect("a string takes everything"),
        None => eprintln!("{line}"),
    });
}

/// Does it, and gives what it said meanwhile instead of showing it: for one of several threads.
pub fn recorded<T>(work: impl FnOnce() -> T) -> (T, String) {
    RECORD.set(Some(String::new()));
    let result = work();
    (result, RECORD.take().unwrap_or_default())
}

fn is_recorded() -> bool {
    RECORD.with_borrow(Option::is_some)
}

/// One step. It shows as failed unless [`Step::done`] is called.
pub struct Step {
    what: String,
    start: Instant,
    bar: Option<ProgressBar>,
    finished: bool,
}

impl Step {
    /// Begins a step: `Step::begin("Booting Xen")`.
    pub fn begin(what: impl Into<String>) -> Step {
        let what = what.into();
        let bar = (std::io::stderr().is_terminal() && !is_recorded()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner().with_style(style.expect("a valid template"));
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            say!("  … {what}");
        }
        Step { what, start: Instant::now(), bar, finished: false }
    }

    /// Shows on a terminal what goes on inside the step.
    pub fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.chars().filter(|c| !c.is_control()).collect::<String>());
        }
    }

    /// Ends the step.
    pub fn done(mut self) {
        self.end("✓");
    }

    fn end(&mut self, mark: &str) {
        self.finished = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        say!("  {mark} {} ({:.1} s)", self.what, self.start.elapsed().as_secs_f64());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.end("✗");
        }
    }
}
