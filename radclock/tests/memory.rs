//! A server takes less than a megabyte, and no more after a week of stamps than after a day.

#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "sync/world.rs"]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use radclock::sync::{SyncParams, Synchroniser};
use world::{Random, World};

/// The system's allocator, which remembers how much is in use, and how much was at most.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system's allocator's; the counters touch no memory of its.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(used, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a server takes at most during the given hours of stamps, bytes, the [`Synchroniser`] itself included.
fn most(world: &World, sync: &mut Synchroniser, poll: f64, hours: std::ops::Range<f64>) -> usize {
    let mut random = Random(world.seed);
    let used = IN_USE.load(Ordering::Relaxed);
    MOST.store(used, Ordering::Relaxed);
    let steps = |hours: f64| (hours * 3600.0 / poll) as u32;
    for step in steps(hours.start)..steps(hours.end) {
        sync.process(&world.stamp(&mut random, poll * f64::from(step)));
    }
    MOST.load(Ordering::Relaxed) + size_of::<Synchroniser>()
}

/// One test, as others would count as well.
#[test]
fn a_server_takes_less_than_a_megabyte_for_a_week() {
    let world = World { shifts: vec![(60_000.0, [300e-6; 2])], ..world::lan(1) };
    for (poll, days) in [(16.0, 7.0), (1.0, 2.0)] {
        let before = IN_USE.load(Ordering::Relaxed);
        let mut sync = Synchroniser::new(SyncParams::default()).expect("valid parameters");
        let early = most(&world, &mut sync, poll, 0.0..24.0) - before;
        let late = most(&world, &mut sync, poll, 24.0..24.0 * days) - before;
        assert_eq!(sync.report().shifts_up, 1);
        assert!(early.max(late) < 1_000_000, "every {poll} s: {early} and {late} bytes");
        assert!(late <= early, "every {poll} s it grows: {early} to {late} bytes");
        println!("every {poll} s: {late} bytes");
    }
}
