//! Reading the raw counters that a page may speak of.
//!
//! Nothing here says what they mean: a page does.

use radclock::page::CounterId;
use radclock::time::Counter;

/// A counter that can be read here.
pub trait RawCounter {
    /// What pages call it.
    const ID: CounterId;

    /// Its value now, ordered after all loads before it in the program.
    fn now() -> Counter;
}

/// The TSC, as `rdtsc` gives it in this domain.
pub enum Tsc {}

#[cfg(target_arch = "x86_64")]
impl RawCounter for Tsc {
    const ID: CounterId = CounterId::X86_TSC;

    /// `lfence; rdtsc` rather than `rdtscp`: the same order, not slower, and it exists wherever the TSC does.
    /// (Under Xen a guest whose TSC is emulated may be refused `rdtscp`.)
    #[inline]
    fn now() -> Counter {
        // SAFETY: both instructions are in every x86-64 processor, and no memory is accessed.
        Counter(unsafe {
            std::arch::x86_64::_mm_lfence();
            std::arch::x86_64::_rdtsc()
        })
    }
}

/// Linux's `CLOCK_MONOTONIC_RAW` in nanoseconds, which the kernel's vDSO reads without a system call.
pub enum MonotonicRaw {}

impl RawCounter for MonotonicRaw {
    const ID: CounterId = CounterId::MONOTONIC_RAW;

    #[inline]
    fn now() -> Counter {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes to `time` only. It cannot fail: the clock exists since Linux 2.6.28.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &mut time) };
        Counter(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
}
