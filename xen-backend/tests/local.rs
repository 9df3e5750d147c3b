//! `radclockd --local` against a real chronyd on loopback.

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Chronyd, Radclockd, connect, response, right, status, wait_for};
use radclock::report::{Request, Response};
use radclock::stamp::StampSource;
use radclock::time::Span;
use xen_radclock::{RadClock, Status};

#[test]
fn the_clock_is_right_to_within_its_bound_and_says_how_it_came_to_be() {
    let server = Chronyd::start();
    let daemon = Radclockd::start("127.0.0.1", server.port, "");
    assert!(daemon.clock().now().is_err(), "no time before the first synchronisation");
    let clock = daemon.wait_synchronised();
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let (reading, _) = right(&clock);
        assert_eq!(reading.status, Status::Synchronized);
        assert!(reading.max_error < Span::from_nanos(20_000_000), "{}", reading.max_error.as_secs_f64());
        std::thread::sleep(Duration::from_millis(5));
    }

    let status = daemon.status();
    assert_eq!(status.clock.status, Status::Synchronized);
    assert!(!status.xen && status.guests.is_empty());
    assert!(["tsc", "monotonic-raw"].contains(&status.counter.as_str()), "{}", status.counter);
    assert!(status.clock.sync.accepted >= 3 && status.clock.max_error_ns.is_some() && status.clock.age_s < Some(3.0));
    let server_report = &status.servers[0];
    assert_eq!(server_report.name, format!("127.0.0.1:{}", server.port));
    assert_eq!(server_report.stratum, Some(1));
    assert_eq!(server_report.stamps, Some(StampSource::Kernel));
    assert_eq!(server_report.reach & 1, 1);
    assert!(server_report.rtt_s.is_some_and(|rtt| (0.0..1.0).contains(&rtt)));
}

#[test]
fn names_and_ipv6_addresses_are_servers_too() {
    let server = Chronyd::start();
    for address in ["localhost", "::1"] {
        let daemon = Radclockd::start(address, server.port, "");
        right(&daemon.wait_synchronised());
        let status = daemon.status();
        assert_eq!(status.servers[0].last_error, None);
    }
}

#[test]
fn each_counter_keeps_the_time() {
    let server = Chronyd::start();
    let daemon = Radclockd::start("127.0.0.1", server.port, "[clock]\ncounter = \"monotonic-raw\"\n");
    right(&daemon.wait_synchronised());
    assert_eq!(daemon.status().counter, "monotonic-raw");
}

#[test]
fn readers_read_on_while_the_daemon_is_killed_and_started_again() {
    let server = Chronyd::start();
    let mut daemon = Radclockd::start("127.0.0.1", server.port, "");
    let clock = daemon.wait_synchronised();
    let path = daemon.run_dir().join("vmclock0");
    let inode = std::fs::metadata(&path).unwrap().ino();

    daemon.kill();
    let (dead, _) = right(&clock);
    std::thread::sleep(Duration::from_millis(500));
    assert!(right(&clock).0.max_error > dead.max_error, "the bound grows");

    let generation = |clock: &RadClock| clock.snapshot().unwrap().ext.generation.get();
    let old = generation(&clock);
    daemon.restart();
    right(&clock);
    wait_for("the new daemon's clock", Duration::from_secs(20), || (generation(&clock) > old).then_some(()));
    wait_for("it to be synchronised", Duration::from_secs(20), || {
        (right(&clock).0.status == Status::Synchronized).then_some(())
    });
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);

    daemon.stop();
    let (stopped, _) = right(&clock);
    assert_eq!(stopped.status, Status::Freerunning, "a stopped daemon's clock is kept by nobody");
    assert!(!daemon.run_dir().join("radclockd.sock").exists());
}

#[test]
fn a_clock_of_before_a_sleep_is_not_taken_over() {
    let server = Chronyd::start();
    let mut daemon = Radclockd::start("127.0.0.1", server.port, "");
    let clock = daemon.wait_synchronised();
    daemon.kill();
    let slept = daemon.run_dir().join("slept");
    let before = std::fs::read_to_string(&slept).unwrap();
    // As if the machine had slept for 2 ms since.
    let nanos: i128 = before.trim().parse().unwrap();
    std::fs::write(&slept, (nanos - 2_000_000).to_string()).unwrap();
    daemon.restart();
    // What was read before says nothing now, nor after one more restart.
    let marker = || clock.snapshot().unwrap().abi.disruption_marker.get();
    wait_for("the page to say so", Duration::from_secs(5), || (marker() == 1).then_some(()));
    assert!(daemon.log().contains("the machine slept while no daemon ran"), "{}", daemon.log());
    assert!(!daemon.log().contains("going on with the clock"), "{}", daemon.log());
    right(&daemon.wait_synchronised());

    daemon.kill();
    let after: i128 = std::fs::read_to_string(&slept).unwrap().trim().parse().unwrap();
    assert!(after.abs_diff(nanos) < 1_000_000);
    daemon.restart();
    let status = || clock.snapshot().unwrap().abi.status();
    wait_for("the clock to be taken over", Duration::from_secs(5), || (status() == Status::Freerunning).then_some(()));
    assert!(daemon.log().contains("going on with the clock"), "{}", daemon.log());
    assert_eq!(marker(), 1);
}

#[test]
fn without_its_server_the_clock_runs_free_and_says_so() {
    let server = Chronyd::start();
    let port = server.port;
    let daemon = Radclockd::start("127.0.0.1", port, "[clock]\nvalidity = 2\n");
    let clock = daemon.wait_synchronised();
    drop(server);
    // What the page itself says, for readers that know nothing of validity.
    wait_for("the page to say so", Duration::from_secs(10), || {
        (clock.snapshot().unwrap().abi.status() == Status::Freerunning).then_some(())
    });
    let (reading, _) = right(&clock);
    assert_eq!(reading.status, Status::Freerunning);
    std::thread::sleep(Duration::from_millis(500));
    assert!(right(&clock).0.max_error > reading.max_error);
    assert_eq!(daemon.status().clock.status, Status::Freerunning);
    wait_for("the status to say why", Duration::from_secs(10), || {
        let error = daemon.status().servers[0].last_error.clone()?;
        error.contains("nobody listens on its port (connection refused)").then_some(())
    });
}

#[test]
fn the_status_socket_serves_many_and_waits_for_none() {
    let server = Chronyd::start();
    let daemon = Radclockd::start("127.0.0.1", server.port, "");
    let socket = daemon.run_dir().join("radclockd.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);

    // Clients that say nothing, half a line, or never read.
    let mut rude: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for stream in &mut rude[3..6] {
        stream.write_all(b"{\"request\":").unwrap();
    }
    for stream in &mut rude[6..] {
        stream.write_all(b"{\"request\":\"watch\"}\n").unwrap();
    }

    let mut watch = daemon.connect(&Request::Watch);
    let first = status(&mut watch);
    let mut last = first.clock.generation;
    for _ in 0..5 {
        let next = status(&mut watch).clock.generation;
        assert!(next >= last);
        last = next;
    }
    assert!(last > first.clock.generation);

    for (request, part) in [
        ("nonsense", "not a request"),
        ("{\"request\":\"stop\"}", "unknown variant `stop`"),
        ("{\"request\":\"attach\",\"domid\":1}", "there are no guests"),
        ("{\"request\":\"detach\",\"domid\":1}", "there are no guests"),
        (&"x".repeat(10_000), "not a request"),
    ] {
        match response(&mut connect(&socket, request)) {
            Response::Error { message } => assert!(message.contains(part), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    let mut stream = connect(&socket, "{\"request\":\"status\"}").into_inner();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 1, "one request, one response");
}
