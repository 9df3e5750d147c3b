//! A page of whatever content, to whoever reads one: the library's reader, and the composition in Rust and in C.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use radclock::compose::{Added, compose};
use radclock::page::{CounterId, PageError, TIME_UTC};
use radclock::reader::{ReadError, Sample, read, read_at, sample};
use radclock::seqcount::SharedPage;
use radclock::time::{Counter, Span};
use radclock_fuzz::{AnyPage, AnyRecord, covers, driver_composes, driver_takes};
use zerocopy::IntoBytes;

#[derive(Arbitrary, Debug)]
struct Input {
    page: AnyPage,
    counter: u64,
    record: AnyRecord,
    tsc: u64,
    later: i32,
    added: [u32; 2],
}

fuzz_target!(|input: Input| {
    reader(&input);
    composition(&input);
});

fn reader(input: &Input) {
    let id = CounterId::X86_TSC;
    let content = input.page.page(id);
    let shared = SharedPage::new();
    // As it would be found in memory: SharedPage::write() would make its sequence count even.
    // SAFETY: a whole page, which nobody else knows of.
    unsafe {
        (&raw const shared).cast_mut().cast::<u8>().copy_from(content.as_bytes().as_ptr(), content.as_bytes().len())
    };
    let counter = Counter(input.counter);
    let now = read(&shared, id, || counter);
    let sampled = sample(&shared, id, || counter);
    if content.abi.seq_count.get() & 1 == 1 {
        assert!(matches!(now, Err(ReadError::Busy(_))) && matches!(sampled, Err(ReadError::Busy(_))));
        return;
    }
    let marker = content.abi.disruption_marker.get();
    let later = read_at(&shared, id, Sample { counter, disruption_marker: marker });
    match now {
        Ok(reading) => {
            assert_eq!(later, now, "two ways to read");
            assert!(content.abi.status().is_readable() && content.abi.check_layout().is_ok());
            assert!(reading.status.is_readable() && reading.sample == Sample { counter, disruption_marker: marker });
            let claimed = Span::from_nanos(content.abi.time_maxerror_nanosec.get().min(i64::MAX as u64) as i64);
            assert!(reading.max_error >= claimed, "a smaller bound than the page's");
            assert!(reading.earliest() <= reading.time && reading.time <= reading.latest());
        }
        Err(ReadError::Backwards) => {}
        Err(error) => {
            assert_eq!(later, Err(error));
            assert!(!error.to_string().contains('\n'));
        }
    }
    match sampled {
        Ok(sampled) => assert_eq!(sampled, Sample { counter, disruption_marker: marker }),
        Err(error) => {
            let layout = content.abi.check_layout().err();
            let expected = layout.unwrap_or(PageError::CounterId(content.abi.counter_id));
            assert_eq!(error, ReadError::Page(expected));
        }
    }
    let other = Sample { counter, disruption_marker: marker.wrapping_add(1) };
    assert!(read_at(&shared, id, other).is_err(), "read on another counter");
}

fn composition(input: &Input) {
    let wire = input.page.page(CounterId::XEN_SYSTEM_TIME);
    let info = input.record.info();
    let tsc = Counter(input.tsc);
    let added = Added { nanos: input.added[0].into(), rate: u64::from(input.added[1]) << 22 };
    let Ok(clock) = wire.abi.clock() else {
        assert!(!driver_takes(&wire) || !wire.abi.status().is_readable(), "no clock, but the driver takes it");
        return;
    };
    let in_rust = compose(&clock, &info, tsc, added);
    // The driver refuses TAI, which the clock above has been converted from.
    if wire.abi.time_type == TIME_UTC {
        assert_eq!(in_rust, driver_composes(&wire, &info, tsc, added));
    }
    let Some(guest) = in_rust else { return };
    if !driver_takes(&wire) || !wire.abi.status().is_readable() {
        // Over something else than nanoseconds, of which the bound knows nothing.
        return;
    }
    // Counters that are half of their range away from where they were seen may go either way round.
    let is_near = |counts: i64| counts.unsigned_abs() < 1 << 61;
    let is_ordinary = !input.record.is_wild
        && is_near(tsc.since(Counter(info.tsc_timestamp)))
        && is_near(Counter(info.system_time(tsc)).since(clock.counter));
    let later = if is_ordinary { input.later.into() } else { 0 };
    for at in [tsc, tsc.offset(later)] {
        assert!(covers(&guest, at, &clock, Counter(info.system_time(at))), "{clock:?} by {info:?} is {guest:?}");
    }
}
