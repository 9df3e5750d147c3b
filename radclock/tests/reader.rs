//! Pages through the reader: right within the bound, or an error.

#![allow(missing_docs)]

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use radclock::clock::{Clock, Period, Status};
use radclock::page::{
    Content, CounterId, Flags, LEAP_POS, LEAP_POST_NEG, LEAP_POST_POS, LEAP_PRE_NEG, LEAP_PRE_POS, PAGE_SIZE, Page,
    PageError, TIME_TAI,
};
use radclock::reader::{ReadError, Reading, Sample, read, read_at, sample};
use radclock::seqcount::{Busy, SharedPage};
use radclock::time::{Counter, Span, Timestamp};
use zerocopy::{FromBytes, IntoBytes};

const TSC: CounterId = CounterId::X86_TSC;
const MARKER: u64 = 7;
/// 2026-11-22 12:00:00 UTC.
const NOON: u64 = 1_795_348_800;
const SECOND: i64 = 1_000_000_000;

/// A clock of 1 GHz, wrong by 1 µs and 1 ppm, whose reference is counter 10^12 at noon, valid for 1000 s.
fn content() -> Content {
    let period = Period::from_secs_f64(1e-9).unwrap();
    Content {
        counter_id: TSC,
        status: Status::Synchronized,
        clock: Some(Clock {
            counter: Counter(1_000_000_000_000),
            time: Timestamp::from_unix(NOON, 0),
            period,
            period_max_error: period.frac / 1_000_000,
            max_error_nanos: 1000,
        }),
        disruption_marker: MARKER,
        disruption: Flags::empty(),
        tai_offset: Some(37),
        leap_indicator: 0,
        host_id: [9; 16],
        generation: 3,
        valid_nanos: 1_000_000_000_000,
    }
}

fn shared(page: &Page) -> SharedPage {
    let shared = SharedPage::new();
    shared.write(page);
    shared
}

/// Reads `page` so many nanoseconds after its reference.
fn read_after(page: &Page, nanos: i64) -> Result<Reading, ReadError> {
    read(&shared(page), TSC, || Counter(1_000_000_000_000).offset(nanos))
}

fn altered(alter: impl FnOnce(&mut Page)) -> Page {
    let mut page = Page::new(&content());
    alter(&mut page);
    page
}

#[test]
fn a_reading_says_time_bound_and_state() {
    let reading = read_after(&Page::new(&content()), 100 * SECOND).unwrap();
    assert_eq!(reading.sample, Sample { counter: Counter(1_100_000_000_000), disruption_marker: MARKER });
    assert_eq!(reading.time.saturating_add(Span::from_nanos(1)).secs(), NOON + 100);
    assert_eq!(reading.max_error.ceil_nanos(), 1000 + 100_000 + 1);
    assert_eq!(reading.status, Status::Synchronized);
    assert_eq!(reading.latest().since(reading.earliest()), reading.max_error + reading.max_error);
    assert_eq!(reading.tai().unwrap().since(reading.time), Span::from_secs(37));
}

#[test]
fn parameters_older_than_their_validity_are_freerunning() {
    let page = Page::new(&content());
    assert_eq!(read_after(&page, 999 * SECOND).unwrap().status, Status::Synchronized);
    assert_eq!(read_after(&page, 1001 * SECOND).unwrap().status, Status::Freerunning);
    let foreign = altered(|page| page.ext.magic.set(0));
    assert_eq!(read_after(&foreign, 1001 * SECOND).unwrap().status, Status::Synchronized);
    let short = altered(|page| page.abi.size.set(112));
    assert_eq!(read_after(&short, 1001 * SECOND).unwrap().status, Status::Synchronized);
}

/// As [`Clock::free_running`] does, for who has nobody to do so; a validity of 0 says that it was done.
#[test]
fn a_bound_that_nobody_renews_grows_faster() {
    let clock = content().clock.unwrap();
    let free = clock.free_running(content().valid_nanos, clock.counter.offset(1000 * SECOND));
    for nanos in [1000 * SECOND + 10, 1001 * SECOND, 5000 * SECOND, 90_000 * SECOND] {
        let reading = read_after(&Page::new(&content()), nanos).unwrap();
        let (bound, expected) = (reading.max_error, free.max_error_at(reading.sample.counter));
        assert!((bound - expected).ceil_nanos().abs() <= 2, "{bound:?} instead of {expected:?} after {nanos} ns");
        let grown = altered(|page| page.ext.valid_nanos.set(0));
        let as_it_stands = read_after(&grown, nanos).unwrap();
        assert_eq!(as_it_stands.max_error, clock.max_error_at(reading.sample.counter));
        assert_eq!((as_it_stands.status, reading.status), (Status::Freerunning, Status::Freerunning));
    }
}

#[test]
fn what_cannot_be_right_is_an_error() {
    type Alter = fn(&mut Page);
    let cases: [(Alter, ReadError); 15] = [
        (|page| page.abi.magic.set(1), PageError::Magic(1).into()),
        (|page| page.abi.version.set(2), PageError::Version(2).into()),
        (|page| page.abi.size.set(103), PageError::Size(103).into()),
        (|page| page.abi.counter_id = 0xe0, PageError::CounterId(0xe0).into()),
        (|page| page.abi.time_type = 2, PageError::TimeType(2).into()),
        (|page| page.abi.clock_status = 0, ReadError::Status(Status::Unknown)),
        (|page| page.abi.clock_status = 1, ReadError::Status(Status::Initializing)),
        (|page| page.abi.clock_status = 4, ReadError::Status(Status::Unreliable)),
        (|page| page.abi.clock_status = 5, ReadError::Status(Status::Unknown)),
        (|page| page.abi.counter_period_frac_sec.set(0), PageError::Period.into()),
        (|page| page.abi.counter_period_shift = 64, PageError::Period.into()),
        (|page| page.abi.flags.set(Flags::TIME_MAXERROR_VALID.bits()), PageError::NoBound.into()),
        (|page| page.abi.flags.set(Flags::PERIOD_MAXERROR_VALID.bits()), PageError::NoBound.into()),
        (|page| page.abi.time_sec.set(u64::MAX), ReadError::Range),
        (
            |page| {
                page.abi.time_type = TIME_TAI;
                page.abi.time_sec.set(36);
            },
            PageError::Time.into(),
        ),
    ];
    for (alter, error) in cases {
        assert_eq!(read_after(&altered(alter), SECOND), Err(error), "{error}");
    }
}

#[test]
fn a_page_without_parameters_says_that_it_is_not_synchronised() {
    let page = Page::new(&Content { clock: None, ..content() });
    assert_eq!(read_after(&page, 0), Err(ReadError::Status(Status::Initializing)));
}

#[test]
fn a_counter_that_was_reset_is_an_error_and_a_lagging_one_is_not() {
    let page = Page::new(&content());
    assert_eq!(read(&shared(&page), TSC, || Counter(5)), Err(ReadError::Backwards));
    assert_eq!(read_after(&page, i64::MIN), Err(ReadError::Backwards));
    let lagging = read_after(&page, -10_000).unwrap();
    assert_eq!(lagging.max_error.ceil_nanos(), 1001);
    assert!(lagging.time < Timestamp::from_unix(NOON, 0));
}

#[test]
fn tai_pages_are_read_in_utc() {
    let utc = read_after(&Page::new(&content()), SECOND).unwrap();
    let tai = altered(|page| {
        page.abi.time_type = TIME_TAI;
        page.abi.time_sec.set(NOON + 37);
    });
    assert_eq!(read_after(&tai, SECOND), Ok(utc));
    let unknown_offset = altered(|page| {
        page.abi.time_type = TIME_TAI;
        page.abi.flags.set(page.abi.flags.get() & !Flags::TAI_OFFSET_VALID.bits());
    });
    assert_eq!(read_after(&unknown_offset, SECOND), Err(PageError::TimeType(TIME_TAI).into()));
}

/// A page without error bounds to speak of whose reference is `secs` and a fraction, in UTC with TAI 36 s ahead.
fn leaping(secs: u64, nanos: u32, indicator: u8, offset: i16) -> Page {
    let clock =
        Clock { time: Timestamp::from_unix(secs, nanos.into()), max_error_nanos: 10, ..content().clock.unwrap() };
    let period_max_error = clock.period.frac / 10_000_000_000;
    let clock = Some(Clock { period_max_error, ..clock });
    // A month, so that the bound is that of the clock.
    let valid_nanos = 31 * 86_400_000_000_000;
    Page::new(&Content { clock, leap_indicator: indicator, tai_offset: Some(offset), valid_nanos, ..content() })
}

#[test]
fn utc_and_tai_are_right_each_millisecond_around_a_leap_second_from_a_page_before_during_or_after_it() {
    // (year-month-day 00:00:00 UTC of the month after)
    for month in [
        1_483_228_800u64, // 2017-01-01
        1_456_790_400,    // 2016-03-01
        1_488_326_400,    // 2017-03-01
        951_868_800,      // 2000-03-01
        1_782_864_000,    // 2026-07-01
    ] {
        // TAI at which UTC steps, the step, and pages: milliseconds from there to the reference, and the indicator.
        for (edge, step, pages) in [
            (
                month + 36,
                1,
                &[(-25 * 86_400_000i64, LEAP_PRE_POS), (-1, LEAP_PRE_POS), (500, LEAP_POS), (1700, LEAP_POST_POS)][..],
            ),
            (month + 35, -1, &[(-86_400_000, LEAP_PRE_NEG), (-700, LEAP_PRE_NEG), (800, LEAP_POST_NEG)]),
        ] {
            for &(reference, indicator) in pages {
                let steps = if reference >= 0 { step } else { 0 };
                let tai = Timestamp::new(edge, 0).saturating_add(Span::from_nanos(reference * 1_000_000));
                let utc = tai.saturating_sub(Span::from_secs(36 + steps));
                let with = leaping(utc.secs(), utc.subsec_nanos(), indicator, 36 + steps as i16);
                assert_eq!(with.ext.leap_sec.get(), month, "{indicator}");
                let without = {
                    let mut page = with;
                    page.ext.magic.set(0);
                    page
                };
                // As a driver does that moves the reference on and knows nothing of leap seconds.
                let moved = {
                    let mut page = with;
                    let (counter, time) = (page.abi.counter_value.get(), page.abi.clock().unwrap().time);
                    page.abi.counter_value.set(counter + 3_000_000_000);
                    let time = time.saturating_add(Span::from_secs(3));
                    page.abi.time_sec.set(time.secs());
                    page.abi.time_frac_sec.set(time.frac());
                    page
                };
                let in_tai = {
                    let mut page = with;
                    page.abi.time_type = TIME_TAI;
                    page.abi.time_sec.set(utc.secs() + (36 + steps) as u64);
                    page
                };
                for (page, name) in [(with, "with"), (without, "without"), (moved, "moved"), (in_tai, "TAI")] {
                    let shared = shared(&page);
                    for millis in -3000..3000i64 {
                        let counter = Counter(1_000_000_000_000).offset((millis - reference) * 1_000_000);
                        let sample = Sample { counter, disruption_marker: MARKER };
                        let result = read_at(&shared, TSC, sample);
                        let what = format!("{month} {indicator} {name} {reference} {millis}");
                        if millis == 0 {
                            assert_eq!(result, Err(ReadError::Leap), "{what}: UTC steps right here");
                            continue;
                        }
                        let reading = result.expect(&what);
                        let truth = Timestamp::new(edge, 0).saturating_add(Span::from_nanos(millis * 1_000_000));
                        let passed = if millis > 0 { step } else { 0 };
                        let off = reading.tai().unwrap().since(truth).abs();
                        assert!(off <= reading.max_error, "{what}: TAI {}", off.as_secs_f64());
                        assert_eq!(reading.tai_offset, Some(36 + passed as i16), "{what}");
                        let off = reading.time.since(truth.saturating_sub(Span::from_secs(36 + passed))).abs();
                        assert!(off <= reading.max_error, "{what}: UTC {}", off.as_secs_f64());
                        // Right at its end either is right to within the bound.
                        let inserted = step == 1 && (0..1000).contains(&millis);
                        assert!(reading.leap_second == inserted || millis == 1000, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_page_that_calls_the_inserted_second_by_the_next_ones_number_is_read_as_well() {
    let month = 1_483_228_800;
    let mut page = leaping(month, 400_000_000, LEAP_POS, 36);
    page.ext.magic.set(0);
    let reading = |millis: i64| {
        let reading = read_at(
            &shared(&page),
            TSC,
            Sample {
                counter: Counter(1_000_000_000_000).offset((millis - 400) * 1_000_000),
                disruption_marker: MARKER,
            },
        )
        .unwrap();
        (reading.time.saturating_add(Span::from_nanos(1)).secs(), reading.tai_offset, reading.leap_second)
    };
    assert_eq!(reading(-1), (month - 1, Some(36), false));
    assert_eq!(reading(1), (month - 1, Some(37), true));
    assert_eq!(reading(999), (month - 1, Some(37), true));
    assert_eq!(reading(1001), (month, Some(37), false));
}

/// By hand, from a page that a driver has moved on to anywhere around a leap second: what the reader says.
#[test]
fn parameters_say_what_a_reader_says_across_a_leap_second() {
    let month = 1_483_228_800;
    for (indicator, offset) in [(LEAP_PRE_POS, 36), (LEAP_PRE_NEG, 36)] {
        for moved in [-3_000_000, -2500, -500, 200, 700, 1500, 86_400_000i64] {
            let mut page = leaping(month - 3000, 0, indicator, offset);
            let (counter, time) = (page.abi.counter_value.get(), page.abi.clock().unwrap().time);
            let reference = Counter(counter).offset((3_000_000 + moved) * 1_000_000);
            page.abi.counter_value.set(reference.0);
            let time = time.saturating_add(Span::from_nanos((3_000_000 + moved) * 1_000_000));
            page.abi.time_sec.set(time.secs());
            page.abi.time_frac_sec.set(time.frac());

            let parameters = page.parameters().unwrap();
            assert_eq!((parameters.clock.counter, parameters.disruption_marker), (reference, MARKER));
            for later in [0, 1, 300, 900, 1100, 2200, 4400, 3_100_000, 100_000_000] {
                let at = reference.offset(later * 1_000_000);
                let Ok(reading) = page.reading_at(at) else {
                    assert_eq!(page.reading_at(at), Err(ReadError::Leap));
                    continue;
                };
                let by_formula = parameters.clock.time_at(at);
                let time = parameters.leap.map_or(by_formula, |leap| leap.utc(by_formula).0);
                assert_eq!(time, reading.time, "{indicator}: {later} ms after {moved} ms");
                assert!(parameters.clock.max_error_at(at) >= reading.max_error);
            }
        }
    }
}

/// A month after the last update as well as at once.
#[test]
fn the_bound_of_parameters_holds_at_any_age() {
    let page = Page::new(&content());
    let parameters = page.parameters().unwrap();
    for nanos in [0, 1000 * SECOND, 1001 * SECOND, 30 * 86_400 * SECOND] {
        let at = Counter(1_000_000_000_000).offset(nanos);
        let (time, bound) = parameters.clock.reading_at(at).unwrap();
        let reading = page.reading_at(at).unwrap();
        assert!(time == reading.time && bound >= reading.max_error);
    }
    let grown = altered(|page| page.ext.valid_nanos.set(0));
    assert_eq!(grown.parameters().unwrap().clock, content().clock.unwrap());
    let unreliable = altered(|page| page.abi.clock_status = 4);
    assert_eq!(unreliable.parameters(), Err(ReadError::Status(Status::Unreliable)));
    let foreign = altered(|page| page.abi.magic.set(1));
    assert_eq!(foreign.parameters(), Err(PageError::Magic(1).into()));
}

#[test]
fn an_indicator_that_nobody_knows_changes_nothing() {
    let page = altered(|page| page.abi.leap_indicator = 6);
    assert_eq!(read_after(&page, SECOND), read_after(&Page::new(&content()), SECOND));
}

#[test]
fn a_value_taken_earlier_is_converted_unless_its_counter_is_gone() {
    let page = shared(&Page::new(&content()));
    let earlier = sample(&page, TSC, || Counter(1_000_000_000_000).offset(-500 * SECOND)).unwrap();
    let reading = read_at(&page, TSC, earlier).unwrap();
    assert_eq!(reading.time.saturating_add(Span::from_nanos(1)).secs(), NOON - 500);
    assert_eq!(reading.max_error.ceil_nanos(), 1000 + 500_000 + 1);
    page.write(&Page::new(&Content { disruption_marker: MARKER + 1, ..content() }));
    assert_eq!(read_at(&page, TSC, earlier), Err(ReadError::Disrupted));
}

#[test]
fn a_page_left_in_the_middle_of_a_write_is_busy_until_the_next_write() {
    let page = shared(&Page::new(&content()));
    let half_written = altered(|page| page.abi.seq_count.set(1));
    let mut memory = Box::new(SharedPage::new());
    // SAFETY: the page is borrowed exclusively, and every bit pattern is valid for it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(&mut *memory).cast::<u8>(), PAGE_SIZE) };
    bytes.copy_from_slice(half_written.as_bytes());
    assert_eq!(memory.snapshot(), Err(Busy));
    assert_eq!(read(&memory, TSC, || Counter(0)), Err(Busy.into()));
    memory.write(&Page::new(&content()));
    let written = memory.snapshot().unwrap();
    assert!(written.abi.seq_count.get() > 1 && written.abi.seq_count.get().is_multiple_of(2));
    assert_eq!(written.ext, page.snapshot().unwrap().ext);
}

#[test]
fn readers_never_see_two_writes_at_once() {
    let page = shared(&Page::new(&content()));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each write is a clock of its own: second, fraction, bound and generation all say which.
            for i in 1..=50_000u64 {
                let clock = Clock { time: Timestamp::new(i, i), max_error_nanos: i, ..content().clock.unwrap() };
                page.write(&Page::new(&Content {
                    clock: Some(clock),
                    generation: i,
                    disruption_marker: i,
                    ..content()
                }));
            }
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Acquire) {
                let Ok(snapshot) = page.snapshot() else { continue };
                let i = snapshot.abi.time_sec.get();
                if i != NOON {
                    assert_eq!(snapshot.abi.time_frac_sec.get(), i);
                    assert_eq!(snapshot.abi.time_maxerror_nanosec.get(), i);
                    assert_eq!(snapshot.ext.generation.get(), i);
                    assert!(i >= last);
                    last = i;
                }
                if let Ok(reading) = read(&page, TSC, || Counter(1_000_000_000_000))
                    && reading.time.secs() != NOON
                {
                    assert_eq!(reading.time.frac(), reading.time.secs());
                    assert_eq!(reading.sample.disruption_marker, reading.time.secs());
                }
            }
            assert_eq!(page.snapshot().unwrap().ext.generation.get(), 50_000);
        });
    });
}

fn statuses() -> impl Strategy<Value = Status> {
    prop::sample::select(vec![
        Status::Unknown,
        Status::Initializing,
        Status::Synchronized,
        Status::Freerunning,
        Status::Unreliable,
    ])
}

proptest! {
    #[test]
    fn page_keeps_what_was_put_into_it(
        status in statuses(), id in any::<u8>(), words in any::<[u64; 8]>(), shift in 0..=Period::MAX_SHIFT,
        tai_offset in any::<Option<i16>>(), leap_indicator in any::<u8>(), host_id in any::<[u8; 16]>(),
    ) {
        let clock = Clock {
            counter: Counter(words[0]),
            time: Timestamp::new(words[1], words[2]),
            period: Period { frac: words[3].max(1), shift },
            period_max_error: words[4],
            max_error_nanos: words[5],
        };
        let content = Content {
            counter_id: CounterId(id),
            status,
            clock: Some(clock),
            disruption_marker: words[6],
            disruption: Flags::DISRUPTION_SOON,
            tai_offset,
            leap_indicator,
            host_id,
            generation: words[7],
            valid_nanos: words[0],
        };
        let page = Page::new(&content);
        let snapshot = shared(&page).snapshot().expect("nobody writes");
        prop_assert_eq!(snapshot.abi.check_layout(), Ok(()));
        prop_assert_eq!(snapshot.abi.counter_id, id);
        prop_assert_eq!(snapshot.abi.status(), status);
        prop_assert_eq!(snapshot.abi.clock(), Ok(clock));
        prop_assert_eq!(snapshot.abi.tai_offset(), tai_offset);
        prop_assert_eq!(snapshot.abi.leap_indicator, leap_indicator);
        prop_assert_eq!(snapshot.abi.disruption_marker.get(), words[6]);
        prop_assert!(snapshot.abi.flags().contains(Flags::DISRUPTION_SOON));
        let ext = snapshot.extension().expect("has one");
        prop_assert_eq!((ext.host_id, ext.generation.get(), ext.valid_nanos.get()), (host_id, words[7], words[0]));
        // The whole page, but for the sequence count.
        let mut rewritten = snapshot;
        rewritten.abi.seq_count.set(0);
        prop_assert_eq!(rewritten, page);
    }

    /// Whatever stands in the fields behind a good head: an error, or what the page's own parameters say.
    #[test]
    fn garbage_gives_an_error_or_what_its_parameters_say(
        bytes in prop::collection::vec(any::<u8>(), PAGE_SIZE), good_head in any::<bool>(), good_rest in any::<bool>(),
        status in statuses(), valid_nanos in any::<u64>(),
        shift in any::<u8>(), near in any::<Option<i32>>(), counter in any::<u64>(),
    ) {
        let mut page = Page::read_from_bytes(&bytes).expect("the size of a page");
        if good_head {
            let good = Page::new(&content()).abi;
            page.abi.magic = good.magic;
            page.abi.version = good.version;
            page.abi.size = good.size;
            page.abi.counter_id = good.counter_id;
            page.abi.time_type = good.time_type;
            page.abi.flags |= good.flags;
            page.abi.clock_status = status as u8;
            page.abi.counter_period_shift = shift;
        }
        if good_rest {
            page.ext = Page::new(&content()).ext;
            page.ext.valid_nanos.set(valid_nanos);
            page.abi.leap_indicator = 0;
            page.abi.counter_period_shift = shift % 64;
            page.abi.time_sec.set(page.abi.time_sec.get() >> 1);
        }
        let reference = Counter(page.abi.counter_value.get());
        let counter = near.map_or(Counter(counter), |near| reference.offset(i64::from(near)));
        let shared = shared(&page);
        let sample = Sample { counter, disruption_marker: page.abi.disruption_marker.get() };
        let (now, later) = (read(&shared, TSC, || counter), read_at(&shared, TSC, sample));
        if now != Err(ReadError::Backwards) {
            prop_assert_eq!(now, later);
        }
        for result in [now, later] {
            let Ok(reading) = result else { continue };
            let clock = page.abi.clock().expect("was read");
            prop_assert!(page.abi.status().is_readable());
            let (time, bound) = clock.reading_at(counter).expect("was read");
            prop_assert_eq!(reading.time, time);
            let grows = reading.status == Status::Freerunning && page.ext.valid_nanos.get() > 0;
            prop_assert!(reading.max_error == bound || grows && reading.max_error > bound);
            prop_assert!(reading.earliest() <= reading.time && reading.time <= reading.latest());
        }
    }
}
