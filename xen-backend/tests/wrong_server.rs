//! `radclockd --local` against servers that answer wrongly: never a wrong time.

mod common;

use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{FakeServer, Radclockd, right, wait_for};
use xen_backend::ntp::packet::Packet;
use xen_radclock::Status;
use zerocopy::IntoBytes;

/// Follows a server whose replies `spoil` makes wrong; waits for the error that the status then shows.
fn spoilt(spoil: fn(&mut Packet)) -> String {
    let server = FakeServer::start(move |reply| {
        let mut packet = reply.packet;
        spoil(&mut packet);
        reply.send(packet.as_bytes());
    });
    let daemon = Radclockd::start("127.0.0.1", server.port, "");
    let error = wait_for("an error", Duration::from_secs(10), || daemon.status().servers[0].last_error.clone());
    assert!(daemon.clock().now().is_err(), "no time from such a server");
    error
}

#[test]
fn a_server_without_a_time_of_its_own_is_not_followed() {
    assert!(spoilt(|packet| packet.stratum = 16).contains("not synchronised (stratum 16"));
    assert!(spoilt(|packet| packet.flags |= 0xc0).contains("not synchronised (stratum 1, leap 3)"));
    assert!(spoilt(|packet| packet.transmit = 0.into()).contains("a time of zero"));
    assert!(spoilt(|packet| packet.receive = (packet.transmit.get() + 1).into()).contains("before the request"));
}

#[test]
fn what_nobody_asked_for_is_ignored() {
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = FakeServer::start(move |reply| {
        let right = reply.packet;
        let wrong = |change: fn(&mut Packet)| {
            let mut packet = right;
            packet.receive = (right.receive.get() + (1000 << 32)).into();
            packet.transmit = packet.receive;
            change(&mut packet);
            packet
        };
        reply.send(&[]);
        reply.send(&[0xff; 7]);
        reply.send(&[0x24; 1400]);
        reply.send(wrong(|packet| packet.origin = 0.into()).as_bytes());
        reply.send(wrong(|packet| packet.origin = (packet.origin.get() ^ 1).into()).as_bytes());
        reply.send(wrong(|packet| packet.flags = 0x23).as_bytes());
        reply.send(wrong(|packet| packet.flags = 0x3c).as_bytes());
        reply.send(
            wrong(|packet| {
                packet.origin = 0.into();
                packet.stratum = 0;
                packet.reference_id = *b"DENY";
            })
            .as_bytes(),
        );
        stranger.send_to(wrong(|_| {}).as_bytes(), reply.client).unwrap();
        reply.send(right.as_bytes());
        // A replay, right behind.
        reply.send(wrong(|_| {}).as_bytes());
    });
    let daemon = Radclockd::start("127.0.0.1", server.port, "");
    right(&daemon.wait_synchronised());
    assert_eq!(daemon.status().servers[0].last_error, None);
}

/// The poll ends in time, and the daemon does its other work meanwhile.
#[test]
fn a_flood_of_what_nobody_asked_for_is_no_answer() {
    let server = FakeServer::start(move |reply| {
        let end = Instant::now() + Duration::from_secs(30);
        let wrong = Packet { origin: (reply.packet.origin.get() ^ 1).into(), ..reply.packet };
        while Instant::now() < end {
            reply.send(wrong.as_bytes());
        }
    });
    let daemon = Radclockd::start("127.0.0.1", server.port, "");
    let error = wait_for("an error", Duration::from_secs(20), || daemon.status().servers[0].last_error.clone());
    assert!(error.contains("no answer within 3 s"), "{error}");
}

#[test]
fn a_server_that_denies_service_is_asked_once() {
    let server = FakeServer::start(|reply| {
        let packet = Packet { stratum: 0, reference_id: *b"DENY", ..reply.packet };
        reply.send(packet.as_bytes());
    });
    let daemon = Radclockd::start("127.0.0.1", server.port, "");
    wait_for("the denial", Duration::from_secs(10), || {
        daemon.status().servers[0].last_error.clone().filter(|error| error.contains("denies service (DENY)"))
    });
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
    assert!(daemon.log().contains("it is not asked again; choose another server"));
}

#[test]
fn a_server_that_asks_for_a_lower_rate_gets_it() {
    let server = FakeServer::start(|reply| {
        let packet = Packet { stratum: 0, reference_id: *b"RATE", ..reply.packet };
        reply.send(packet.as_bytes());
    });
    let daemon = Radclockd::start("127.0.0.1", server.port, "");
    wait_for("a poll period of 4 s", Duration::from_secs(10), || {
        (daemon.status().servers[0].poll_s == 4.0).then_some(())
    });
    assert_eq!(server.requests.load(Ordering::SeqCst), 2);
}

#[test]
fn a_server_that_starts_to_lie_does_not_move_the_clock() {
    let server = FakeServer::start(|reply| {
        let mut packet = reply.packet;
        if reply.number >= 5 {
            packet.receive = (packet.receive.get() + (10 << 32)).into();
            packet.transmit = packet.receive;
        }
        reply.send(packet.as_bytes());
    });
    let daemon = Radclockd::start("127.0.0.1", server.port, "");
    let clock = daemon.wait_synchronised();
    wait_for("the lie", Duration::from_secs(10), || {
        right(&clock);
        (daemon.status().clock.sync.insane >= 3).then_some(())
    });
    assert_ne!(right(&clock).0.status, Status::Unreliable);
    let error = daemon.status().servers[0].last_error.clone().unwrap();
    assert!(error.contains("contradicts the clock"), "{error}");
}
