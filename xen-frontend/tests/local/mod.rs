//! A page in a file, for tests and benches: the TSC, taken for 2.5 GHz, set to the system's clock.

#![allow(dead_code, reason = "each user needs its own part")]

use std::fs::OpenOptions;
use std::path::Path;
use std::time::SystemTime;

use memmap2::MmapMut;
use radclock::clock::{Clock, Period, Status};
use radclock::page::{Content, CounterId, Flags, PAGE_SIZE, Page};
use radclock::seqcount::SharedPage;
use radclock::time::{Counter, Timestamp};

pub struct LocalPage(MmapMut);

impl LocalPage {
    pub fn create(path: &Path) -> LocalPage {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(PAGE_SIZE as u64).unwrap();
        // SAFETY: accessed through `SharedPage` only, and nobody truncates the file of a test.
        LocalPage(unsafe { MmapMut::map_mut(&file) }.unwrap())
    }

    pub fn write(&self, content: &Content) {
        self.write_page(&Page::new(content));
    }

    pub fn write_page(&self, page: &Page) {
        // SAFETY: one page, mapped for writing, for as long as `self` lives.
        unsafe { SharedPage::from_ptr(self.0.as_ptr()) }.write(page);
    }
}

pub fn tsc() -> Counter {
    // SAFETY: rdtsc is in every x86-64 processor.
    Counter(unsafe { std::arch::x86_64::_rdtsc() })
}

/// Synchronised as of now, to 10 µs and 1 %, and for a day.
pub fn content() -> Content {
    let period = Period::from_secs_f64(0.4e-9).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Content {
        counter_id: CounterId::X86_TSC,
        status: Status::Synchronized,
        clock: Some(Clock {
            counter: tsc(),
            time: Timestamp::from_unix(now.as_secs(), now.subsec_nanos().into()),
            period,
            period_max_error: period.frac / 100,
            max_error_nanos: 10_000,
        }),
        disruption_marker: 1,
        disruption: Flags::empty(),
        tai_offset: Some(37),
        leap_indicator: 0,
        host_id: *b"0123456789abcdef",
        generation: 1,
        valid_nanos: 86_400_000_000_000,
    }
}
