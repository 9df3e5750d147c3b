//! The guest time API: the host's shared clock, with a bound on its error, for any process in a Xen guest or in Dom0.
//!
//! A page that the guest's driver (`/dev/vmclock0`) or Dom0's `radclockd` (`/run/radclock/vmclock0`) keeps is mapped
//! once; from then on a reading takes no system call, no lock and no allocation, and no privileges ever. A migration
//! needs nothing from the program: the page changes, and the next reading is the new host's time.
//!
//! ```no_run
//! use xen_radclock::{RadClock, Status};
//!
//! let clock = RadClock::open()?;
//! let now = clock.now()?;
//! println!("{} s since 1970, wrong by at most {} ns", now.time, now.max_error_nanos());
//! if now.status == Status::Freerunning {
//!     println!("the host's clock lost its servers; the bound grows");
//! }
//! // Two events are in order for certain if the latest of the one is before the earliest of the other.
//! let later = clock.now()?;
//! if now.latest() < later.earliest() {
//!     println!("{:?} really is before {:?}", now.time.to_system_time(), later.time.to_system_time());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A raw counter value is cheaper than a time, and can be turned into one later, or never:
//!
//! ```no_run
//! # let clock = xen_radclock::RadClock::open()?;
//! let sample = clock.sample()?;
//! // ... what must not be held up ...
//! let reading = clock.time_of(sample)?;
//!
//! // Differences need the period only, and so are better than the difference of two times.
//! let page = clock.snapshot()?;
//! let since = page.abi.clock()?.period.span(clock.sample()?.counter.since(sample.counter));
//! println!("{} s, at {}", since.as_secs_f64(), reading.time);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Any page of Linux's `struct vmclock_abi` version 1 that states its error bounds is read, whoever keeps it.

mod counter;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapOptions};
use radclock::page::{CounterId, PAGE_SIZE};
use radclock::reader;
use radclock::seqcount::SharedPage;

pub use radclock::clock::{Clock, Period, Status};
pub use radclock::disruption::Disruption;
pub use radclock::leap::{LeapKind, LeapSecond};
pub use radclock::page::{Extension, Flags, Page, PageError, VmclockAbi};
pub use radclock::reader::{Parameters, ReadError, Reading, Sample};
pub use radclock::seqcount::Busy;
pub use radclock::time::{Counter, Span, Timestamp};

use counter::{MonotonicRaw, RawCounter, Tsc};

/// Where [`RadClock::open`] looks, in this order: the guest's driver, then Dom0's daemon.
pub const DEFAULT_PATHS: [&str; 2] = ["/dev/vmclock0", "/run/radclock/vmclock0"];

/// Why a clock cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// None of [`DEFAULT_PATHS`] exists.
    #[error("no clock found: there is neither {} nor {}", DEFAULT_PATHS[0], DEFAULT_PATHS[1])]
    NotFound,
    /// The device or file cannot be opened or mapped.
    #[error("cannot open {}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a page that can be used here: too short, another layout, or another counter.
    #[error("cannot use {}: {source}", path.display())]
    Page {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: PageError,
    },
    /// It is in the middle of a write that does not end.
    #[error("cannot use {}: {source}", path.display())]
    Busy {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: Busy,
    },
}

/// A clock: a mapped page. Cheap to share between threads by reference.
///
/// The file behind it must not be made shorter while it is mapped (the process would die of `SIGBUS`); neither the
/// driver nor `radclockd` ever does that.
#[derive(Debug)]
pub struct RadClock {
    map: Mmap,
    path: PathBuf,
}

impl RadClock {
    /// Opens the first of [`DEFAULT_PATHS`] that exists.
    ///
    /// The clock need not be synchronised, that is for each reading to say.
    pub fn open() -> Result<RadClock, OpenError> {
        for path in DEFAULT_PATHS {
            match RadClock::open_path(path) {
                Err(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                result => return result,
            }
        }
        Err(OpenError::NotFound)
    }

    /// Opens a given device or file.
    pub fn open_path(path: impl AsRef<Path>) -> Result<RadClock, OpenError> {
        let path = path.as_ref().to_owned();
        let map = match map(&path) {
            Ok(map) => map,
            Err(source) => return Err(OpenError::Io { path, source }),
        };
        let clock = RadClock { map, path };
        let check = |page: &Page| {
            page.abi.check_layout()?;
            match CounterId(page.abi.counter_id) {
                Tsc::ID | MonotonicRaw::ID => Ok(()),
                CounterId(id) => Err(PageError::CounterId(id)),
            }
        };
        match clock.snapshot().map(|page| check(&page)) {
            Ok(Ok(())) => Ok(clock),
            Ok(Err(source)) => Err(OpenError::Page { path: clock.path, source }),
            Err(source) => Err(OpenError::Busy { path: clock.path, source }),
        }
    }

    /// The device or file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The time now, with the bound on its error.
    ///
    /// # Errors
    ///
    /// While the clock is not synchronised or was disrupted, or the page makes no sense: see [`ReadError`]. All of
    /// them may pass, so a program that lives long tries again.
    #[inline(always)]
    pub fn now(&self) -> Result<Reading, ReadError> {
        match self.page().counter_id() {
            MonotonicRaw::ID => self.now_raw(),
            _ => reader::read(self.page(), Tsc::ID, Tsc::now),
        }
    }

    #[cold]
    fn now_raw(&self) -> Result<Reading, ReadError> {
        reader::read(self.page(), MonotonicRaw::ID, MonotonicRaw::now)
    }

    /// The raw counter now.
    ///
    /// # Errors
    ///
    /// [`ReadError::Busy`] and [`ReadError::Page`]. The clock need not be synchronised.
    #[inline]
    pub fn sample(&self) -> Result<Sample, ReadError> {
        match self.page().counter_id() {
            MonotonicRaw::ID => reader::sample(self.page(), MonotonicRaw::ID, MonotonicRaw::now),
            _ => reader::sample(self.page(), Tsc::ID, Tsc::now),
        }
    }

    /// The time at which a raw counter value was taken, by the parameters as they are now.
    ///
    /// # Errors
    ///
    /// [`ReadError::Disrupted`] if the counter was disrupted (by a migration, say) since the value was taken, and
    /// what [`RadClock::now`] may say.
    pub fn time_of(&self, sample: Sample) -> Result<Reading, ReadError> {
        let id = match self.page().counter_id() {
            MonotonicRaw::ID => MonotonicRaw::ID,
            _ => Tsc::ID,
        };
        reader::read_at(self.page(), id, sample)
    }

    /// The whole page: parameters as they stand ([`VmclockAbi::clock`]), flags, disruption marker, host and generation
    /// ([`Page::extension`]).
    ///
    /// A copy of 4096 bytes, so not for the fast path.
    pub fn snapshot(&self) -> Result<Page, Busy> {
        self.page().snapshot()
    }

    /// The parameters, for a conversion of one's own.
    ///
    /// Not for the fast path, as [`RadClock::snapshot`].
    ///
    /// # Errors
    ///
    /// Any [`ReadError`] but [`ReadError::Disrupted`] and [`ReadError::Backwards`].
    pub fn parameters(&self) -> Result<Parameters, ReadError> {
        self.snapshot()?.parameters()
    }

    /// What the host warns of: that the counter will be disrupted, by a migration say. Can be asked of a clock that
    /// cannot be read, too. A warning is a courtesy: a disruption may come without one, and readings are right either
    /// way.
    ///
    /// Not for the fast path.
    ///
    /// # Errors
    ///
    /// [`Busy`]: the page was being written all the while.
    pub fn warning(&self) -> Result<Option<Disruption>, Busy> {
        Ok(Disruption::from_flags(self.snapshot()?.abi.flags()))
    }

    #[inline]
    fn page(&self) -> &SharedPage {
        // SAFETY: the mapping is one page, aligned as mappings are, and lives as long as `self`; only this reference
        // reads it, and nothing calls `SharedPage::write` on it.
        unsafe { SharedPage::from_ptr(self.map.as_ptr()) }
    }
}

fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.len() < PAGE_SIZE as u64 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than a page"));
    }
    // SAFETY: the memory is read as atomics only, so that its changing under us is no data race; that it does not
    // shrink is said to the user.
    unsafe { MmapOptions::new().len(PAGE_SIZE).map(&file) }
}
