//! What the programs inside a domain and the lab on the build machine have in common.

pub mod samples;

use std::arch::x86_64::{__rdtscp, _mm_lfence};
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub mod clocks;
pub mod counters;

/// A page in a domain's memory through which the probe and the build machine talk: the domain's memory is a file
/// there. Each side writes words of its own only. It begins as zeroes and never moves, for the build machine would find
/// what is left at the old place.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Exchange {
    /// Random, so that the build machine finds this page. Written once by the domain.
    pub magic: [AtomicU64; 2],
    _gap: [u64; 6],
    /// The build machine's TSC, written again and again by the build machine; 0 before the first time.
    pub question: AtomicU64,
    /// Not 0: the build machine has seen enough.
    pub stop: AtomicU64,
    _gap2: [u64; 6],
    /// The question that [`Exchange::sample`] answers, written last, by the domain; 0 while a sample is written.
    pub answer: AtomicU64,
    /// Seconds since 1970, fraction in 2⁻⁶⁴ s, bound in ns (rounded up), counter value, 1 if synchronised.
    pub sample: [AtomicU64; 5],
    /// `CLOCK_REALTIME`, ns since 1970, read right after the sample, and what the kernel says its error is at most, µs. Only
    /// where it was asked for.
    pub system: [AtomicU64; 2],
}

/// A page in a guest's memory through which the build machine sees the guest's counter, wherever the guest goes. Each
/// side writes words of its own only.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Beacon {
    /// Random, so that the build machine finds this page. Written once by the guest.
    pub magic: [AtomicU64; 2],
    /// Changes all the time: this page is the one in use, and not a copy that was left behind on the way.
    pub beat: AtomicU64,
    _gap: [u64; 5],
    /// The build machine's TSC, written by the build machine.
    pub question: AtomicU64,
    _gap2: [u64; 7],
    /// The question that is answered, written last; 0 while the answer is written.
    pub answer: AtomicU64,
    /// The guest's counter, read after it saw the question.
    pub counter: AtomicU64,
    /// The disruption marker of the clock that the counter belongs to.
    pub marker: AtomicU64,
}

/// How much time one [`Record`] spans at most, ns.
pub const RECORD_NANOS: u64 = 10_000_000;

/// What a [`Record`] is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum RecordKind {
    /// Readings of a synchronised clock.
    Synchronized,
    /// Readings of a clock that runs free.
    Freerunning,
    /// The page was being written all the time.
    Busy,
    /// The clock was not synchronised yet.
    Initializing,
    /// The clock was disrupted.
    Unreliable,
    /// Another error.
    OtherError,
}

impl RecordKind {
    /// The kind with this number.
    pub fn new(number: u64) -> Option<RecordKind> {
        use RecordKind::*;
        [Synchronized, Freerunning, Busy, Initializing, Unreliable, OtherError].get(number as usize).copied()
    }

    /// Whether there were readings.
    pub fn is_readable(self) -> bool {
        matches!(self, RecordKind::Synchronized | RecordKind::Freerunning)
    }
}

/// One reading; of an error, only the counter.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Point {
    /// The counter that was read.
    pub counter: u64,
    /// The time, ns since 1970, rounded down.
    pub time: u64,
    /// The bound on its error, ns.
    pub bound: u64,
}

/// Consecutive readings or errors of one kind, on one clock. Of readings it keeps what is needed to tell whether each
/// of them was right: readings are compared with a line from the first one on, by the rate that the page had then, and
/// the true time less that line must be between the two limits all the while.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// A [`RecordKind`].
    pub kind: u64,
    /// How many.
    pub count: u64,
    /// The disruption marker.
    pub marker: u64,
    /// `CLOCK_MONOTONIC_RAW` right after the first, ns.
    pub raw_nanos: u64,
    /// The first.
    pub first: Point,
    /// The last.
    pub last: Point,
    /// The line at the last reading, ns from the first one's time.
    pub line_nanos: i64,
    /// The largest of reading less line less bound.
    pub lower_nanos: i64,
    /// The smallest of reading less line plus bound.
    pub upper_nanos: i64,
    /// How far a reading was before the one that was taken before it, at most; 0 if none was.
    pub backwards_nanos: i64,
    /// The same less the bounds of both: above 0, one of the two is wrong.
    pub overlap_nanos: i64,
}

/// The TSC, read after what stands before it and before what stands after it.
pub fn tsc() -> u64 {
    let mut aux = 0;
    // SAFETY: every x86-64 processor that the lab runs on, or emulates, has RDTSCP.
    unsafe {
        let now = __rdtscp(&mut aux);
        _mm_lfence();
        now
    }
}

/// A guest's TSC with Xen's system time at that value, and the guest's page that was valid then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pair {
    /// The guest's TSC.
    pub tsc: u64,
    /// Xen's system time, ns.
    pub system_time: u64,
    /// The beginning of the page, in hexadecimal.
    pub page: String,
}

/// A page as it stood, in hexadecimal, as far as it is used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recorded {
    /// The beginning of the page.
    pub page: String,
}

/// The generation of the page that ends a series of updates; those before it carry the system time of their publication.
pub const LAST_GENERATION: u64 = u64::MAX;

/// An update as a guest saw it. All on Xen's system time, ns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    /// Its publication in Dom0.
    pub published: u64,
    /// When the clock could first be read with it.
    pub seen: u64,
    /// How wrong `seen` may be.
    pub bound: u64,
}

/// When a guest's driver took an update over. All on Xen's system time, ns.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Arrival {
    /// Its publication in Dom0.
    pub published: u64,
    /// The reference instant of the page that the driver made of it, which is when it did.
    pub taken: u64,
    /// How wrong `taken` may be.
    pub bound: u64,
}
