//! The library on a page in a file.

#![allow(missing_docs)]

mod local;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use local::{LocalPage, content, tsc};
use radclock::page::{Content, CounterId};
use tempfile::TempDir;
use xen_radclock::{OpenError, PageError, RadClock, ReadError, Status};

fn page() -> (TempDir, PathBuf, LocalPage) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmclock0");
    let page = LocalPage::create(&path);
    (dir, path, page)
}

fn synchronised() -> (TempDir, RadClock, LocalPage) {
    let (dir, path, page) = page();
    page.write(&content());
    (dir, RadClock::open_path(path).unwrap(), page)
}

#[test]
fn now_is_the_systems_time_within_the_bound() {
    let (_dir, path, page) = page();
    let mut first = content();
    // Whatever the TSC's true frequency is, 0.1–10 GHz lies within so much.
    first.clock.as_mut().unwrap().period_max_error = u64::MAX;
    page.write(&first);
    let clock = RadClock::open_path(path).unwrap();
    let before = SystemTime::now();
    let now = clock.now().unwrap();
    let after = SystemTime::now();
    assert!(now.earliest().to_system_time().unwrap() <= after);
    assert!(now.latest().to_system_time().unwrap() >= before);
    assert_eq!(now.status, Status::Synchronized);
    assert_eq!(now.tai().unwrap().secs(), now.time.secs() + 37);
}

#[test]
fn an_update_is_seen_by_the_next_reading() {
    let (_dir, clock, page) = synchronised();
    page.write(&Content { status: Status::Unreliable, ..content() });
    assert_eq!(clock.now(), Err(ReadError::Status(Status::Unreliable)));
    page.write(&Content { status: Status::Freerunning, ..content() });
    assert_eq!(clock.now().unwrap().status, Status::Freerunning);
}

#[test]
fn a_sample_becomes_a_time_later_unless_the_counter_was_disrupted() {
    let (_dir, clock, page) = synchronised();
    let before = tsc();
    let sample = clock.sample().unwrap();
    assert!(sample.counter.since(before) >= 0);
    let reading = clock.time_of(sample).unwrap();
    assert_eq!(reading.sample, sample);
    assert!(reading.time <= clock.now().unwrap().time);

    page.write(&Content { disruption_marker: 2, ..content() });
    assert_eq!(clock.time_of(sample), Err(ReadError::Disrupted));
    assert_eq!(clock.time_of(clock.now().unwrap().sample).unwrap().status, Status::Synchronized);
}

#[test]
fn monotonic_raw_pages_are_read_too() {
    let (_dir, clock, page) = synchronised();
    let mut raw = Content { counter_id: CounterId::MONOTONIC_RAW, ..content() };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to `time` only.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &mut time) };
    let parameters = raw.clock.as_mut().unwrap();
    parameters.counter.0 = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
    parameters.period = radclock::clock::Period::from_secs_f64(1e-9).unwrap();
    page.write(&raw);
    let now = clock.now().unwrap();
    let age = now.time.since(raw.clock.unwrap().time).as_secs_f64();
    assert!((0.0..60.0).contains(&age), "{age}");
    assert!(clock.time_of(clock.sample().unwrap()).unwrap().time >= now.time);
}

#[test]
fn what_is_no_clock_cannot_be_opened() {
    let (dir, path, page) = page();
    let missing = dir.path().join("missing");
    assert!(matches!(RadClock::open_path(&missing), Err(OpenError::Io { path, .. }) if path == missing));
    let zeroes = RadClock::open_path(&path).unwrap_err();
    assert!(matches!(zeroes, OpenError::Page { source: PageError::Magic(0), .. }));
    assert_eq!(zeroes.to_string(), format!("cannot use {}: not a vmclock page (magic 0x00000000)", path.display()));
    page.write(&Content { counter_id: CounterId::XEN_SYSTEM_TIME, ..content() });
    assert!(matches!(RadClock::open_path(&path), Err(OpenError::Page { source: PageError::CounterId(0xe0), .. })));
    let short = dir.path().join("short");
    std::fs::write(&short, "VCLK").unwrap();
    assert!(matches!(RadClock::open_path(&short), Err(OpenError::Io { .. })));
}

#[test]
fn threads_share_a_clock_and_see_it_go_forward() {
    let (_dir, clock, _page) = synchronised();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut last = clock.now().unwrap().time;
                for _ in 0..10_000 {
                    let now = clock.now().unwrap().time;
                    assert!(now >= last);
                    last = now;
                }
            });
        }
    });
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn reading_allocates_nothing() {
    let (_dir, clock, page) = synchronised();
    let before = ALLOCATIONS.get();
    for _ in 0..100 {
        clock.time_of(clock.sample().unwrap()).unwrap();
        clock.now().unwrap();
    }
    page.write(&Content { status: Status::Unreliable, ..content() });
    assert!(clock.now().is_err());
    assert_eq!(ALLOCATIONS.get(), before);
}

#[test]
fn reading_makes_no_system_call() {
    let (_dir, clock, _page) = synchronised();
    // SAFETY: the child only reads the clock and makes plain system calls before it exits, as it must after a fork
    // of a process with threads; the filter and its program live on its stack.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
            let mut filter = [
                statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0),
                libc::sock_filter {
                    jt: 0,
                    jf: 1,
                    ..statement((libc::BPF_JMP | libc::BPF_JEQ) as u16, libc::SYS_exit_group as u32)
                },
                statement(libc::BPF_RET as u16, libc::SECCOMP_RET_ALLOW),
                statement(libc::BPF_RET as u16, libc::SECCOMP_RET_KILL_PROCESS),
            ];
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
            {
                libc::_exit(2);
            }
            let readable = (0..1000).all(|_| clock.now().is_ok() && clock.sample().is_ok());
            libc::_exit(i32::from(!readable));
        }
        child
    };
    let mut status = 0;
    // SAFETY: writes to `status` only.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_ne!(libc::WEXITSTATUS(status), 2, "the kernel has no seccomp filters");
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
}

#[test]
fn old_parameters_are_freerunning_with_a_grown_bound() {
    let (_dir, clock, page) = synchronised();
    page.write(&Content { valid_nanos: 1_000_000, ..content() });
    let early = clock.now().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let late = clock.now().unwrap();
    assert_eq!(late.status, Status::Freerunning);
    assert!(late.max_error > early.max_error);
}
