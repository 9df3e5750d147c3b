//! What the programs inside a domain and the lab on the build machine have in common.

use std::arch::x86_64::{__rdtscp, _mm_lfence};
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};

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
