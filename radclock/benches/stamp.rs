//! What a stamp costs at any age of the clock, and what it costs to make a page of the result.

#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "../tests/sync/world.rs"]
mod world;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use radclock::clock::{Clock, Status};
use radclock::compose::{Added, TimeInfo, compose};
use radclock::page::{Content, CounterId, Flags, Page};
use radclock::stamp::Stamp;
use radclock::sync::{SyncParams, Synchroniser};
use radclock::time::Counter;
use world::Random;

const POLL: f64 = 16.0;
/// So many stamps after the clock has got its age.
const MORE: usize = 200;

/// A clock that has seen a LAN for so long, and the stamps that follow.
fn aged(hours: f64) -> (Synchroniser, Vec<Stamp>) {
    let world = world::lan(1);
    let mut random = Random(1);
    let mut stamps = (0..).map(|k| world.stamp(&mut random, POLL * f64::from(k)));
    let mut sync = Synchroniser::new(SyncParams::default()).unwrap();
    for stamp in stamps.by_ref().take((hours * 3600.0 / POLL) as usize) {
        sync.process(&stamp);
    }
    (sync, stamps.take(MORE).collect())
}

fn stamp(c: &mut Criterion) {
    let mut group = c.benchmark_group("stamp");
    for (age, hours) in [("1 h", 1.0), ("1 day", 24.0), ("1 week", 168.0)] {
        let (old, stamps) = aged(hours);
        group.bench_function(age, |b| {
            b.iter_custom(|count| {
                let mut spent = Duration::ZERO;
                let mut left = count;
                while left > 0 {
                    let mut sync = old.clone();
                    let batch = left.min(stamps.len() as u64);
                    let begin = Instant::now();
                    for stamp in &stamps[..batch as usize] {
                        black_box(sync.process(stamp));
                    }
                    spent += begin.elapsed();
                    left -= batch;
                }
                spent
            });
        });
    }
    group.finish();
}

fn page(c: &mut Criterion) {
    let (sync, stamps) = aged(1.0);
    let clock: Clock = sync.clock().unwrap();
    let now = stamps[0].ta;
    let info = TimeInfo { tsc_timestamp: 0, system_time: now.0, tsc_to_system_mul: 0xaaaa_aaaa, tsc_shift: -1 };
    let tsc = Counter(1000);
    let mut group = c.benchmark_group("page");
    group.bench_function("compose", |b| b.iter(|| compose(black_box(&clock), &info, tsc, Added::default())));
    group.bench_function("Page::new", |b| {
        let content = Content {
            counter_id: CounterId::XEN_SYSTEM_TIME,
            status: Status::Synchronized,
            clock: Some(clock),
            disruption_marker: 1,
            disruption: Flags::empty(),
            tai_offset: Some(37),
            leap_indicator: 0,
            host_id: [1; 16],
            generation: 1,
            valid_nanos: sync.valid_nanos(),
        };
        b.iter(|| Page::new(black_box(&content)));
    });
    group.finish();
}

criterion_group!(benches, stamp, page);
criterion_main!(benches);
