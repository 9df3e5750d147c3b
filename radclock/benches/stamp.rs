//! What a stamp costs at any age of the clock, on a LAN, across the Internet and among eight servers, and what it costs to make a
//! page of the result.

#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "../tests/sync/world.rs"]
mod world;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use radclock::clock::{Clock, Status};
use radclock::compose::{Added, TimeInfo, compose};
use radclock::ensemble::{Ensemble, MAX_SERVERS};
use radclock::page::{Content, CounterId, Flags, Page};
use radclock::stamp::Stamp;
use radclock::sync::{SyncParams, Synchroniser};
use radclock::time::Counter;
use world::{Path, Random, World};

const POLL: f64 = 16.0;
/// So many stamps after the clock has got its age.
const MORE: usize = 200;

/// Some hundred kilometres away: milliseconds, and bursts.
const WAN: Path = Path { min: 6e-3, queue: 300e-6, burst: (0.05, 5e-3) };

/// A clock that has seen a server for so long, and the stamps that follow.
fn aged(world: &World, hours: f64) -> (Synchroniser, Vec<Stamp>) {
    let mut random = Random(1);
    let mut stamps = (0..).map(|k| world.stamp(&mut random, POLL * f64::from(k)));
    let mut sync = Synchroniser::new(SyncParams::default()).unwrap();
    for stamp in stamps.by_ref().take((hours * 3600.0 / POLL) as usize) {
        sync.process(&stamp);
    }
    (sync, stamps.take(MORE).collect())
}

/// The clock of eight servers on a LAN and across the Internet, likewise; each stamp with the number of its server.
fn ensemble(hours: f64) -> (Ensemble, Vec<(usize, Stamp)>) {
    let worlds: Vec<World> = (0..MAX_SERVERS).map(|n| if n % 2 == 0 { lan() } else { wan() }).collect();
    let mut random = Random(1);
    let mut stamps = (0..).map(|k| {
        let server = k % MAX_SERVERS;
        (server, worlds[server].stamp(&mut random, POLL / MAX_SERVERS as f64 * k as f64))
    });
    let mut ensemble = Ensemble::new(&SyncParams::default(), MAX_SERVERS).unwrap();
    for (server, stamp) in stamps.by_ref().take((hours * 3600.0 / POLL) as usize * MAX_SERVERS) {
        ensemble.process(server, &stamp);
    }
    (ensemble, stamps.take(MORE).collect())
}

fn lan() -> World {
    world::lan(1)
}

fn wan() -> World {
    World { path: WAN, ..lan() }
}

/// What one of the stamps costs a clock that has got its age; from there again once they are used up.
fn spent<Clock: Clone, Item>(count: u64, old: &Clock, stamps: &[Item], take: impl Fn(&mut Clock, &Item)) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let mut clock = old.clone();
        let batch = left.min(stamps.len() as u64);
        let begin = Instant::now();
        for stamp in &stamps[..batch as usize] {
            take(&mut clock, stamp);
        }
        spent += begin.elapsed();
        left -= batch;
    }
    spent
}

fn stamp(c: &mut Criterion) {
    let mut group = c.benchmark_group("stamp");
    for (name, world, hours) in
        [("1 h", lan(), 1.0), ("1 day", lan(), 24.0), ("1 week", lan(), 168.0), ("WAN, 1 day", wan(), 24.0)]
    {
        let (old, stamps) = aged(&world, hours);
        let take = |sync: &mut Synchroniser, stamp: &Stamp| {
            black_box(sync.process(stamp));
        };
        group.bench_function(name, |b| b.iter_custom(|count| spent(count, &old, &stamps, take)));
    }
    let (old, stamps) = ensemble(24.0);
    let take = |ensemble: &mut Ensemble, (server, stamp): &(usize, Stamp)| {
        black_box(ensemble.process(*server, stamp));
    };
    group.bench_function("8 servers, 1 day", |b| b.iter_custom(|count| spent(count, &old, &stamps, take)));
    group.finish();
}

fn page(c: &mut Criterion) {
    let (sync, stamps) = aged(&lan(), 1.0);
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
