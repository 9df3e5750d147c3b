//! Exchanges with servers that say whatever they like, through the synchroniser and the ensemble: no crash, and a clock that
//! can be read without one.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use radclock::ensemble::{Ensemble, MAX_SERVERS};
use radclock::stamp::{Stamp, StampSource};
use radclock::sync::SyncParams;
use radclock::time::{Counter, Span, Timestamp};

#[derive(Arbitrary, Debug)]
enum Step {
    /// A server that is more or less right.
    Exchange {
        server: u8,
        gap_ms: u32,
        forth_us: u16,
        back_us: u16,
        lie_ns: i32,
        root: u16,
    },
    /// Anything that the types hold.
    Anything {
        server: u8,
        ta: u64,
        tb: u128,
        te: u128,
        tf: u64,
        host: u64,
        delay: u64,
        dispersion: u64,
    },
    Missed {
        server: u8,
    },
    /// The counter starts over somewhere, or the servers' time does.
    Jump {
        counter: i64,
        time_ms: i32,
    },
}

#[derive(Arbitrary, Debug)]
struct Input {
    servers: u8,
    start: u64,
    ppm: i16,
    steps: Vec<Step>,
}

fuzz_target!(|input: Input| {
    let servers = usize::from(input.servers) % MAX_SERVERS + 1;
    let mut ensemble = Ensemble::new(&SyncParams::default(), servers).expect("the default holds");
    let index = |server: &u8| usize::from(*server) % servers;
    let mut counter = Counter(input.start);
    let mut time = Timestamp::new(1_800_000_000, 0);
    for step in input.steps.iter().take(300) {
        match step {
            Step::Exchange { server, gap_ms, forth_us, back_us, lie_ns, root } => {
                let mut pass = |nanos: i64| {
                    counter = counter.offset(nanos + nanos / 1_000_000 * i64::from(input.ppm % 400));
                    time = time.saturating_add(Span::from_nanos(nanos));
                    (counter, time)
                };
                let (ta, _) = pass(i64::from(*gap_ms) * 1_000_000);
                let (_, tb) = pass(i64::from(*forth_us) * 1000);
                let (tf, _) = pass(i64::from(*back_us) * 1000);
                let tb = tb.saturating_add(Span::from_nanos((*lie_ns).into()));
                let root = Span::from_nanos(i64::from(*root) * 1000);
                let stamp = Stamp {
                    ta,
                    tb,
                    te: tb,
                    tf,
                    host_error: Span::from_nanos(1000),
                    root_delay: root,
                    root_dispersion: root,
                    source: StampSource::Kernel,
                };
                ensemble.process(index(server), &stamp);
            }
            Step::Anything { server, ta, tb, te, tf, host, delay, dispersion } => {
                let stamp = Stamp {
                    ta: Counter(*ta),
                    tb: Timestamp::from_frac(*tb),
                    te: Timestamp::from_frac(*te),
                    tf: Counter(*tf),
                    host_error: Span::from_frac(i128::from(*host) << 32),
                    root_delay: Span::from_frac(i128::from(*delay) << 48 >> 16),
                    root_dispersion: Span::from_frac(i128::from(*dispersion) << 32),
                    source: StampSource::User,
                };
                ensemble.process(index(server), &stamp);
                counter = Counter(*tf);
            }
            Step::Missed { server } => ensemble.missed(index(server), counter),
            Step::Jump { counter: by, time_ms } => {
                counter = counter.offset(*by);
                time = time.saturating_add(Span::from_nanos(i64::from(*time_ms) * 1_000_000));
            }
        }
        ensemble.update(counter);
        let share: f64 = (0..servers).map(|server| ensemble.opinion(server).weight).sum();
        assert!(share.is_finite() && (-1e-6..=1.0 + 1e-6).contains(&share), "shares of {share}");
        if let Some(clock) = ensemble.clock() {
            assert!(clock.period.frac != 0 && clock.period.shift <= 63);
            for at in [clock.counter, counter, counter.offset(i64::MAX)] {
                if let Some((_, error)) = clock.reading_at(at) {
                    assert!(error > Span::ZERO);
                }
            }
        } else {
            assert!(!ensemble.status(counter).is_readable());
        }
    }
});
