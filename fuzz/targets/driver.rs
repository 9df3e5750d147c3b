//! The guest's driver under a backend that writes whatever it likes, a Xen that gives odd time records, suspends in between:
//! its kernel survives, nothing stays mapped or bound, and what processes are given is right by what the backend said.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use radclock::page::{CounterId, Page};
use radclock::reader::{ReadError, Sample, read_at};
use radclock::seqcount::SharedPage;
use radclock::time::Counter;
use radclock_fuzz::{AnyPage, AnyRecord, CTimeInfo, covers, driver_takes};

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// 0 page-ref, 1 event-channel, 2 version, 3 state, 4 the frontend's `backend`.
    Node {
        which: u8,
        text: &'a [u8],
        exists: bool,
    },
    /// All of them as they should be.
    Offer {
        page_ref: u8,
        port: u8,
    },
    State(u8),
    Page(Box<AnyPage>),
    Busy(u16),
    Time {
        cpu: u8,
        record: AnyRecord,
        ahead: u32,
        odd: bool,
        is_true: bool,
    },
    /// A record that goes on from the one before.
    Pass {
        ahead: u32,
    },
    Refuse {
        grant: bool,
        port: bool,
        time: bool,
        error: i32,
    },
    Event,
    Work,
    Suspend {
        early: bool,
        restored: bool,
        lost: bool,
    },
    FrontendNode,
    Rebind,
    Attributes,
}

unsafe extern "C" {
    fn fuzz_start();
    fn fuzz_stop();
    fn fuzz_node(which: u32, text: *const u8, length: usize, exists: bool);
    fn fuzz_backend_state(state: u32);
    fn fuzz_wire() -> *mut Page;
    fn fuzz_busy(times: u32);
    fn fuzz_time(cpu: u32, info: &CTimeInfo, tsc: u64, odd: bool, is_true: bool);
    fn fuzz_refuse(grant: bool, port: bool, time: bool, error: i64);
    fn fuzz_event();
    fn fuzz_work();
    fn fuzz_suspend(early: bool, restored: bool, lost: bool);
    fn fuzz_frontend_node_changed();
    fn fuzz_rebind();
    fn fuzz_read_attributes();
    fn fuzz_guest_page() -> *const Page;
    fn fuzz_composed(wire: &mut Page, info: &mut CTimeInfo) -> bool;
    fn fuzz_is_blind() -> bool;
}

fuzz_target!(|steps: Vec<Step>| {
    // SAFETY (for all of this block): one thread; the functions keep to the memory that they are given, and the pages stay
    // where they are from fuzz_start() to fuzz_stop().
    unsafe {
        fuzz_start();
        let mut tsc = 1_000_000u64;
        let mut marker = None;
        for step in steps.iter().take(200) {
            match step {
                Step::Node { which, text, exists } => fuzz_node((*which).into(), text.as_ptr(), text.len(), *exists),
                Step::Offer { page_ref, port } => {
                    let (page_ref, port) = (page_ref.to_string(), port.to_string());
                    let dir = "/local/domain/0/backend/radclock/7/0";
                    for (which, text) in (0..).zip([&*page_ref, &port, "1", "2", dir]) {
                        fuzz_node(which, text.as_ptr(), text.len(), true);
                    }
                    fuzz_backend_state(2);
                }
                Step::State(state) => fuzz_backend_state((*state).into()),
                Step::Page(page) => *fuzz_wire() = page.page(CounterId::XEN_SYSTEM_TIME),
                Step::Busy(times) => fuzz_busy((*times).into()),
                Step::Time { cpu, record, ahead, odd, is_true } => {
                    let info = record.info();
                    tsc = info.tsc_timestamp.wrapping_add((*ahead).into());
                    fuzz_time((*cpu).into(), &info.into(), tsc, *odd, *is_true);
                }
                Step::Pass { ahead } => {
                    tsc = tsc.wrapping_add((*ahead).into());
                    let (mut wire, mut info) = (Page::zeroed(), CTimeInfo::default());
                    fuzz_composed(&mut wire, &mut info);
                    for cpu in 0..2 {
                        fuzz_time(cpu, &info, tsc, false, true);
                    }
                }
                Step::Refuse { grant, port, time, error } => fuzz_refuse(*grant, *port, *time, (*error).into()),
                Step::Event => fuzz_event(),
                Step::Work => fuzz_work(),
                Step::Suspend { early, restored, lost } => {
                    let before = (*fuzz_guest_page()).abi.disruption_marker.get();
                    fuzz_suspend(*early, *restored, *lost);
                    assert_ne!((*fuzz_guest_page()).abi.disruption_marker.get(), before, "a suspend that nobody sees");
                }
                Step::FrontendNode => fuzz_frontend_node_changed(),
                Step::Rebind => fuzz_rebind(),
                Step::Attributes => fuzz_read_attributes(),
            }
            check(&mut marker);
        }
        fuzz_stop();
    }
});

/// What processes may rely on, after each step.
unsafe fn check(marker: &mut Option<(u64, [u8; 16])>) {
    let (mut wire, mut info) = (Page::zeroed(), CTimeInfo::default());
    // SAFETY: as above.
    let (page, is_composed, is_blind) =
        unsafe { (*fuzz_guest_page(), fuzz_composed(&mut wire, &mut info), fuzz_is_blind()) };
    let abi = &page.abi;
    abi.check_layout().expect("the layout never changes");
    assert!(abi.seq_count.get() & 1 == 0 && abi.counter_id == CounterId::X86_TSC.0);
    let shared = SharedPage::new();
    shared.write(&page);
    let reference =
        Sample { counter: Counter(abi.counter_value.get()), disruption_marker: abi.disruption_marker.get() };
    let reading = read_at(&shared, CounterId::X86_TSC, reference);
    if !abi.status().is_readable() {
        assert_eq!(reading, Err(ReadError::Status(abi.status())));
        assert!(abi.counter_period_frac_sec.get() == 0 && abi.time_sec.get() == 0, "parameters are left in the page");
        return;
    }
    let clock = abi.clock().expect("a readable page has a clock with a bound");
    assert!(matches!(reading, Ok(_) | Err(ReadError::Leap | ReadError::Range)), "{reading:?}");
    assert!(is_composed && driver_takes(&wire), "out of nothing");
    let system_time = radclock::compose::TimeInfo::from(info).system_time(clock.counter);
    let wires = wire.abi.clock().expect("the driver has taken it");
    assert!(is_blind || covers(&clock, clock.counter, &wires, Counter(system_time)), "{clock:?} is not {wires:?}");
    // The same counter as long as the marker stays.
    if let Some((before, host_id)) = *marker
        && before == abi.disruption_marker.get()
    {
        assert_eq!(host_id, page.ext.host_id, "another host, and nobody is told");
    }
    *marker = Some((abi.disruption_marker.get(), page.ext.host_id));
}
