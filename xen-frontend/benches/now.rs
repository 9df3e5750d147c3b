//! `now()`, bound included, against the system's clock and the bare counter, in one run.

#![allow(missing_docs)]

#[path = "../tests/local/mod.rs"]
mod local;

use std::time::SystemTime;

use criterion::{Criterion, criterion_group, criterion_main};
use local::LocalPage;
use xen_radclock::RadClock;

fn now(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmclock0");
    LocalPage::create(&path).write(&local::content());
    let clock = RadClock::open_path(&path).unwrap();

    let mut group = c.benchmark_group("read");
    group.bench_function("RadClock::now", |b| b.iter(|| clock.now()));
    group.bench_function("RadClock::sample", |b| b.iter(|| clock.sample()));
    group.bench_function("clock_gettime(CLOCK_REALTIME)", |b| b.iter(SystemTime::now));
    group.bench_function("rdtscp", |b| {
        b.iter(|| {
            let mut aux = 0;
            // SAFETY: the benchmark is for machines that have it.
            unsafe { std::arch::x86_64::__rdtscp(&mut aux) }
        });
    });
    group.finish();
}

criterion_group!(benches, now);
criterion_main!(benches);
