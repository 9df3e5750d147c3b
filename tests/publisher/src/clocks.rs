//! Independent RADclocks in one Dom0 on the same NTP exchanges, over Xen's system time, the TSC and the platform timer,
//! with the kernel's stamps and with those of user space. By radclockd's code, without radclockd. Prints what all counters
//! and clocks say, again and again; what is right the build machine knows.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use lab_agent::clocks::{Exchange, Line, Sample};
use radclock::clock::Period;
use radclock::stamp::{Stamp, StampSource};
use radclock::sync::{SyncParams, Synchroniser};
use radclock::time::{Counter, Span};
use timestamped_socket::socket::{GeneralTimestampMode, TimestampData, open_ip};
use tokio::time::{Instant, sleep_until, timeout};
use xen_backend::bracket::{Bracket, Realtime, StepWatch, carry};
use xen_backend::counter::{Around, CounterChoice};
use xen_backend::ntp::association::{Association, Polling};
use xen_backend::xen::platform::{Timer, XenpfCounters};
use xen_backend::xen::{HostCounters, SystemTime};
use xen_backend::xen_counter::XenCounter;
use zerocopy::IntoBytes;

const POLL: Duration = Duration::from_secs(1);
const REPLY_LIMIT: Duration = Duration::from_millis(800);
const SEND_STAMP_LIMIT: Duration = Duration::from_millis(50);
/// All counters are looked at so often between two polls.
const LOOKS: u32 = 10;
/// Samples to choose the shortest from.
const TRIES: usize = 5;

#[derive(Parser)]
struct Arguments {
    server: SocketAddr,
    seconds: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-clocks: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let mut clocks = Clocks::open()?;
    // The kernel stamps arriving packets only while some socket wants it.
    let idle = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let _keep_stamping = open_ip(idle, GeneralTimestampMode::SoftwareAll, false)?;
    let mut association = Association::new(Polling { period: POLL, burst: false });
    let start = Instant::now();
    for poll in 0..arguments.seconds {
        match clocks.exchange(&mut association, arguments.server).await {
            Ok(exchange) => print(&Line::Exchange(exchange))?,
            Err(error) => eprintln!("lab-clocks: {error:#}"),
        }
        association.finish();
        for look in 1..=LOOKS {
            sleep_until(start + POLL * poll as u32 + POLL / LOOKS * look).await;
            print(&Line::Sample(clocks.sample()?))?;
        }
    }
    Ok(())
}

fn print(line: &Line) -> Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

struct Clocks {
    system_time: SystemTime,
    host: HostCounters,
    steps: StepWatch,
    /// Xen's system time, the TSC and the platform timer.
    counters: [XenCounter; 3],
    periods: [Period; 3],
    /// In the order of [`lab_agent::clocks::CLOCKS`].
    synchronisers: [Synchroniser; 7],
}

/// Which of the three counters each clock is over.
const COUNTER_OF: [usize; 7] = [0, 1, 2, 0, 0, 1, 2];

impl Clocks {
    fn open() -> Result<Clocks> {
        let system_time = SystemTime::open()?;
        let host = system_time.host_counters().context("this Xen has no XENPF_get_counters")?;
        let choices = [CounterChoice::XenClocksource, CounterChoice::Tsc, CounterChoice::Platform];
        let [clocksource, tsc, platform] = choices.map(XenCounter::open);
        let counters = [clocksource?, tsc?, platform?];
        let names = counters.each_ref().map(XenCounter::name);
        ensure!(names == ["xen-system-time", "tsc", "platform"], "the counters are {names:?}");
        let period = |counter: &XenCounter| {
            Period::from_secs_f64(counter.nominal_period()).expect("in range: the counter is in use")
        };
        let periods = counters.each_ref().map(period);
        let synchroniser = |counter: usize| {
            let nominal_period = counters[counter].nominal_period();
            Synchroniser::new(SyncParams { nominal_period, nominal_skew: 500e-6 })
        };
        let [a, b, c, d, e, f, g] = COUNTER_OF.map(synchroniser);
        Ok(Clocks {
            steps: StepWatch::new()?,
            synchronisers: [a?, b?, c?, d?, e?, f?, g?],
            system_time,
            host,
            counters,
            periods,
        })
    }

    /// `CLOCK_REALTIME` at each counter, as radclockd takes it, and at system time by hypercalls.
    fn brackets(&self) -> io::Result<[Bracket; 4]> {
        let by = |index: usize| Bracket::take(self.periods[index], || self.counters[index].around(Realtime::now));
        let by_hypercalls = Bracket::take(self.periods[0], || {
            let low = Counter(self.system_time.now()?);
            let value = Realtime::now();
            Ok::<_, io::Error>(Around { low, value, high: Counter(self.system_time.now()?) })
        })?;
        Ok([by(0)?, by(1)?, by(2)?, by_hypercalls])
    }

    fn counts(&self, sample: &XenpfCounters) -> [Counter; 3] {
        self.counters.each_ref().map(|counter| counter.at(sample))
    }

    async fn exchange(&mut self, association: &mut Association, server: SocketAddr) -> Result<Exchange> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = open_ip(any, GeneralTimestampMode::SoftwareAll, false)?.connect(server)?;
        let mut cookie = [0; 8];
        io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut cookie)?;
        let request = association.poll(u64::from_ne_bytes(cookie));
        self.steps.stepped();
        let before = self.brackets()?;
        let asked = self.host.sample(Timer::Platform)?;
        poll_fn(|context| socket.poll_send(request.as_bytes(), context)).await?;
        let mut datagram = [0; 64];
        let received = timeout(REPLY_LIMIT, socket.recv(&mut datagram)).await.context("no answer")??;
        let answered = self.host.sample(Timer::Platform)?;
        let after = self.brackets()?;
        let answer = association.handle(&datagram[..received.bytes_read])?;
        let (_, sent) = timeout(SEND_STAMP_LIMIT, socket.get_send_timestamp()).await.context("no stamp")??;
        let kernel = [realtime(&sent)?, realtime(&received.timestamp_data)?];
        ensure!(!self.steps.stepped(), "CLOCK_REALTIME was set during the exchange");

        let user = [self.counts(&asked), self.counts(&answered)];
        let mut bracket_ns = [0.0; 4];
        let mut by_tsc = [Counter(0); 2];
        for (index, &counter) in COUNTER_OF.iter().enumerate() {
            let (ta, tf, host_error, source) = if index < 4 {
                let carried = kernel.map(|stamp| carry(self.periods[counter], &before[index], &after[index], stamp));
                let [(ta, sent_error), (tf, received_error)] = match carried {
                    [Ok(sent), Ok(received)] => [sent, received],
                    [Err(error), _] | [_, Err(error)] => return Err(error.into()),
                };
                let error = sent_error.max(received_error);
                bracket_ns[index] = error.as_secs_f64() * 1e9;
                if index == 1 {
                    by_tsc = [ta, tf];
                }
                (ta, tf, error, StampSource::Kernel)
            } else {
                (user[0][counter], user[1][counter], Span::ZERO, StampSource::User)
            };
            self.synchronisers[index].process(&Stamp {
                ta,
                tb: answer.receive,
                te: answer.transmit,
                tf,
                host_error,
                root_delay: answer.root_delay,
                root_dispersion: answer.root_dispersion,
                source,
            });
        }
        let nanos = |from: Counter, to: Counter| self.periods[1].span(to.since(from)).as_secs_f64() * 1e9;
        Ok(Exchange {
            rtt_ns: nanos(by_tsc[0], by_tsc[1]),
            bracket_ns,
            send_ns: nanos(user[0][1], by_tsc[0]),
            receive_ns: nanos(by_tsc[1], user[1][1]),
        })
    }

    fn sample(&self) -> Result<Sample> {
        // The platform timer is read at some time during a sample, so that one counts only if it is short.
        let mut sample = self.host.sample(Timer::Platform)?;
        for _ in 1..TRIES {
            let next = self.host.sample(Timer::Platform)?;
            if next.tsc_end - next.tsc < sample.tsc_end - sample.tsc {
                sample = next;
            }
        }
        let counts = self.counts(&sample);
        let mut readings = [None; 7];
        for (index, reading) in readings.iter_mut().enumerate() {
            let clock = self.synchronisers[index].clock();
            *reading = clock.and_then(|clock| clock.reading_at(counts[COUNTER_OF[index]])).map(|(time, bound)| {
                let nanos = time.as_nanos();
                (nanos, bound.ceil_nanos() as u64)
            });
        }
        let XenpfCounters { tsc, tsc_end, system_time, count, frequency, .. } = sample;
        Ok(Sample { tsc, tsc_end, system_time, count, frequency, readings })
    }
}

fn realtime(data: &TimestampData) -> Result<Realtime> {
    let time = data.software.context("the kernel gave no stamp")?;
    Ok(Realtime::from_parts(time.seconds, time.nanos.into()))
}
