//! `radclockd --local` with several servers, some of which lie, and across leap seconds.

mod common;

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use common::{Chronyd, FakeServer, Radclockd, right, wait_for};
use radclock::ensemble::Standing;
use radclock::report::DaemonStatus;
use radclock::time::{Span, Timestamp};
use xen_backend::ntp::packet::{self, Packet};
use xen_radclock::{ReadError, Status};
use zerocopy::IntoBytes;

/// A server that is wrong by so many seconds, from some request on.
fn liar(by: f64, from: usize) -> FakeServer {
    FakeServer::start(move |reply| {
        let mut packet = reply.packet;
        if reply.number >= from {
            let units = (by * 2f64.powi(32)) as i64;
            packet.receive = packet.receive.get().wrapping_add_signed(units).into();
            packet.transmit = packet.receive;
        }
        reply.send(packet.as_bytes());
    })
}

fn standings(status: &DaemonStatus) -> Vec<Standing> {
    status.servers.iter().map(|server| server.standing).collect()
}

#[test]
fn a_lying_server_among_three_is_named_and_not_followed() {
    let (first, second, liar) = (Chronyd::start(), Chronyd::start(), liar(0.25, 0));
    let daemon = Radclockd::following(&[first.port, liar.port, second.port], "");
    let clock = daemon.wait_synchronised();
    let status = wait_for("the verdicts", Duration::from_secs(20), || {
        right(&clock);
        let status = daemon.status();
        let found = [Standing::Truechimer, Standing::Falseticker, Standing::Truechimer];
        (standings(&status) == found).then_some(status)
    });
    assert_eq!((status.clock.status, &status.clock.problem), (Status::Synchronized, &None));
    let weights: Vec<f64> = status.servers.iter().map(|server| server.weight).collect();
    assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9 && weights[1] == 0.0, "{weights:?}");
    let offset = status.servers[1].offset_s.unwrap();
    assert!((offset - 0.25).abs() < 0.02, "{offset}");
}

#[test]
fn a_server_that_starts_to_lie_leaves_the_clock_to_the_others() {
    let (first, second, liar) = (Chronyd::start(), Chronyd::start(), liar(-7.0, 5));
    let daemon = Radclockd::following(&[first.port, second.port, liar.port], "");
    let clock = daemon.wait_synchronised();
    wait_for("the lie", Duration::from_secs(20), || {
        right(&clock);
        (daemon.status().servers[2].sync.insane >= 3).then_some(())
    });
    assert_eq!(right(&clock).0.status, Status::Synchronized);
    let error = daemon.status().servers[2].last_error.clone().unwrap();
    assert!(error.contains("contradicts the clock"), "{error}");
}

#[test]
fn two_servers_that_disagree_are_no_clock_and_the_status_says_why() {
    let (server, liar) = (Chronyd::start(), liar(3.0, 0));
    let daemon = Radclockd::following(&[server.port, liar.port], "");
    let clock = daemon.clock();
    let status = wait_for("the verdict", Duration::from_secs(20), || {
        let status = daemon.status();
        (standings(&status) == [Standing::Undecided; 2]).then_some(status)
    });
    assert_eq!(status.clock.problem.as_deref(), Some("the servers contradict each other, and no time has a majority"));
    assert_eq!(clock.now(), Err(ReadError::Status(Status::Initializing)));
    assert!(daemon.log().contains("no time has a majority"));
}

#[test]
fn a_server_that_denies_service_from_the_start_is_not_waited_for() {
    let server = Chronyd::start();
    let denier = FakeServer::start(|reply| {
        let packet = Packet { stratum: 0, reference_id: *b"DENY", ..reply.packet };
        reply.send(packet.as_bytes());
    });
    let daemon = Radclockd::following(&[server.port, denier.port], "");
    right(&daemon.wait_synchronised());
    assert_eq!(standings(&daemon.status()), [Standing::Truechimer, Standing::Silent]);
    assert_eq!(denier.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn the_best_server_may_go_and_the_others_keep_the_clock() {
    let (first, second, best) = (Chronyd::start(), Chronyd::start(), Chronyd::start());
    let daemon = Radclockd::following(&[first.port, second.port, best.port], "");
    let clock = daemon.wait_synchronised();
    wait_for("all three", Duration::from_secs(20), || {
        (standings(&daemon.status()) == [Standing::Truechimer; 3]).then_some(())
    });
    drop(best);
    wait_for("it to be missed", Duration::from_secs(20), || {
        right(&clock);
        daemon.status().servers[2].last_error.clone().filter(|error| error.contains("connection refused"))
    });
    assert_eq!(right(&clock).0.status, Status::Synchronized);
}

#[test]
fn a_pool_takes_different_addresses() {
    let server = Chronyd::start();
    // 127.0.0.1 and, on some machines, ::1.
    let config = format!("[server]\naddress = \"localhost\"\nport = {}\npoll = 1\npool = 2\n", server.port);
    let daemon = Radclockd::configured(&config);
    right(&daemon.wait_synchronised());
    let [first, second] = &daemon.status().servers[..] else { panic!("two servers") };
    assert!(first.address != second.address, "{first:?} {second:?}");
    for member in [first, second] {
        let error = member.last_error.as_deref().unwrap_or_default();
        assert!(member.address.is_some() || error.contains("no address that no other server here uses"), "{error}");
    }
}

#[test]
fn a_hardware_clock_that_is_none_is_said_and_its_servers_go_on() {
    let server = Chronyd::start();
    let phc = "[[phc]]\ndevice = \"/dev/null\"\ntimescale = \"utc\"\n";
    let daemon = Radclockd::following(&[server.port], phc);
    right(&daemon.wait_synchronised());
    let status = daemon.status();
    assert_eq!(status.servers[1].name, "/dev/null");
    let error = status.servers[1].last_error.clone().unwrap();
    assert!(error.contains("cannot be read as a clock") && error.contains("is it a PTP hardware clock?"), "{error}");
}

/// 2027-01-01.
const MONTH: u64 = 1_798_761_600;

/// The true time in a test's world: so many seconds before the end of 2026 when the first server is asked.
struct Truth {
    start: OnceLock<Instant>,
    ahead: u64,
}

impl Truth {
    /// Seconds since 1970 and a fraction that UTC would have had there been no leap second.
    fn count(&self) -> Timestamp {
        let elapsed = self.start.get_or_init(Instant::now).elapsed();
        Timestamp::new(MONTH - self.ahead, 0).saturating_add(Span::from_nanos(elapsed.as_nanos() as i64))
    }
}

/// Servers that insert (or leave out) a second at the end of 2026, as Linux does, and announce it if they are told to.
fn leaping(truth: &Arc<Truth>, step: i64, leap: u8) -> FakeServer {
    let truth = Arc::clone(truth);
    FakeServer::start(move |reply| {
        let count = truth.count();
        let edge = if step > 0 { MONTH } else { MONTH - 1 };
        let utc = if count.secs() >= edge { count.saturating_sub(Span::from_secs(step)) } else { count };
        let mut packet = reply.packet;
        packet.receive = packet::from_timestamp(utc).into();
        packet.transmit = packet.receive;
        if count.secs() < MONTH {
            packet.flags |= leap << 6;
        }
        reply.send(packet.as_bytes());
    })
}

/// Reads the clock each millisecond until some seconds after the leap second; counts readings in the inserted second.
fn read_across(truth: &Truth, daemon: &Radclockd, step: i64, tai_offset: Option<i64>) -> u64 {
    let clock = daemon.wait_synchronised();
    let (mut readings, mut refused, mut inserted) = (0u64, 0u64, 0u64);
    let mut indicators = Vec::new();
    loop {
        let before = truth.count();
        let result = clock.now();
        let after = truth.count();
        if after.secs() > MONTH + 3 {
            break;
        }
        let edge = if step > 0 { MONTH } else { MONTH - 1 };
        match result {
            Err(ReadError::Leap) => {
                let off = after.since(Timestamp::new(edge, 0)).abs();
                assert!(off < Span::from_nanos(100_000_000), "refused {} s from the step", off.as_secs_f64());
                refused += 1;
            }
            // The daemon lost its processor in the midst of an update.
            Err(ReadError::Busy(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error} at {before}"),
            Ok(reading) => {
                // UTC back to the count, by what the reading itself says of the leap second.
                let is_after = reading.leap_second || reading.time.secs() >= MONTH;
                let count = if is_after { reading.time.saturating_add(Span::from_secs(step)) } else { reading.time };
                assert!(
                    count.saturating_sub(reading.max_error) <= after
                        && before <= count.saturating_add(reading.max_error),
                    "{} (leap second: {}) with a bound of {} s, but it is {before} to {after}",
                    reading.time,
                    reading.leap_second,
                    reading.max_error.as_secs_f64()
                );
                let offset = tai_offset.map(|offset| offset + if is_after { step } else { 0 });
                assert_eq!(reading.tai_offset.map(i64::from), offset, "{}", reading.time);
                readings += 1;
                inserted += u64::from(reading.leap_second);
            }
        }
        if let Ok(page) = clock.snapshot()
            && indicators.last() != Some(&page.abi.leap_indicator)
        {
            indicators.push(page.abi.leap_indicator);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let expected: &[u8] = if step > 0 { &[1, 3, 4] } else { &[2, 5] };
    assert!(indicators.ends_with(expected), "{indicators:?}");
    assert!(readings > 2000 && refused * 10 < readings, "{readings} {refused}");
    assert_eq!(daemon.status().clock.sync.insane, 0, "the servers' step is none of the clock's");
    inserted
}

fn list(entries: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    // Expires in 2028.
    std::fs::write(file.path(), format!("#@ 4039372800\n3692217600 37 # 1 Jan 2017\n{entries}")).unwrap();
    let more = format!("[clock]\nleap_seconds = \"{}\"\n", file.path().display());
    (file, more)
}

/// 2027-01-01 in seconds since 1900.
const LISTED: u64 = MONTH + 2_208_988_800;

#[test]
fn a_listed_second_is_inserted_though_no_server_announces_it() {
    let truth = Arc::new(Truth { start: OnceLock::new(), ahead: 8 });
    let servers = [1, 2, 3].map(|_| leaping(&truth, 1, 0));
    let (_list, more) = list(&format!("{LISTED} 38\n"));
    let daemon = Radclockd::following(&servers.each_ref().map(|server| server.port), &more);
    assert!(read_across(&truth, &daemon, 1, Some(37)) > 100);
    assert_eq!(daemon.status().clock.tai_offset_s, Some(38));
}

#[test]
fn a_listed_second_is_left_out() {
    let truth = Arc::new(Truth { start: OnceLock::new(), ahead: 9 });
    let servers = [1, 2, 3].map(|_| leaping(&truth, -1, 2));
    let (_list, more) = list(&format!("{LISTED} 36\n"));
    let daemon = Radclockd::following(&servers.each_ref().map(|server| server.port), &more);
    assert_eq!(read_across(&truth, &daemon, -1, Some(37)), 0);
}

#[test]
fn without_a_list_a_majority_announces_it_and_one_liar_does_not_matter() {
    let truth = Arc::new(Truth { start: OnceLock::new(), ahead: 8 });
    let servers = [leaping(&truth, 1, 1), leaping(&truth, 1, 2), leaping(&truth, 1, 1)];
    let ports = servers.each_ref().map(|server| server.port);
    let daemon = Radclockd::following(&ports, "[clock]\nleap_seconds = \"none\"\n");
    assert!(read_across(&truth, &daemon, 1, None) > 100);
}

#[test]
fn what_servers_announce_against_the_list_is_not_followed_but_said() {
    let truth = Arc::new(Truth { start: OnceLock::new(), ahead: 1000 });
    let server = leaping(&truth, 1, 1);
    let (_list, more) = list("");
    let daemon = Radclockd::following(&[server.port], &more);
    let clock = daemon.wait_synchronised();
    wait_for("the complaint", Duration::from_secs(10), || daemon.status().clock.problem.clone())
        .find("does not know")
        .expect("what is wrong");
    assert_eq!(clock.now().unwrap().tai_offset, Some(37));
    assert_eq!(clock.snapshot().unwrap().abi.leap_indicator, 0);
}
