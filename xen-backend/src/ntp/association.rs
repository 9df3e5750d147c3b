//! The client's side of NTP as a pure state: when to ask, whether a reply is to be believed, when to give up.
//!
//! No socket, no clock and no randomness here: the caller ([`super::client`]) hands in random cookies and datagrams
//! and gets requests and answers.

use std::time::Duration;

use radclock::time::{Span, Timestamp};
use zerocopy::FromBytes;

use super::packet::{self, LEAP_UNSYNCHRONISED, MODE_SERVER, Packet};

/// The longest poll period, s: NTP's own way of backing off ends there, too.
pub const MAX_POLL: Duration = Duration::from_secs(1024);
/// Polls in the burst at the start.
const BURST: u32 = 8;
/// Their distance; what NTP's `iburst` uses, and what public servers put up with.
const BURST_PERIOD: Duration = Duration::from_secs(2);
/// Polls in a row without an answer after which the name is looked up again.
const FAILURES_TO_RESOLVE: u32 = 4;
/// RFC 5905's MAXDISP: a server further than this from its reference is not synchronised.
const MAX_DISTANCE: Span = Span::from_secs(16);

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polling {
    /// The poll period.
    pub period: Duration,
    /// Whether the first polls follow each other quickly.
    pub burst: bool,
}

/// What a sound reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's time when the request arrived.
    pub receive: Timestamp,
    /// The server's time when the reply left.
    pub transmit: Timestamp,
    /// The server's stratum, 1 to 15.
    pub stratum: u8,
    /// NTP's leap indicator: 0 none, 1 a second is to be inserted, 2 one is to be left out.
    pub leap: u8,
    /// Round trip from the server to its reference.
    pub root_delay: Span,
    /// The server's claim of its error, its clock's resolution included.
    pub root_dispersion: Span,
}

/// Why a datagram is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reject {
    /// Not the length of an NTP reply to a request without extension fields.
    #[error("a datagram of {0} bytes instead of 48")]
    Length(usize),
    /// An NTP version other than 3 and 4.
    #[error("NTP version {0}")]
    Version(u8),
    /// Not a server's reply.
    #[error("NTP mode {0} instead of 4")]
    Mode(u8),
    /// Not the reply to the request that is open: late, doubled, or forged.
    #[error("a reply to some other request")]
    Origin,
    /// The server asks for fewer polls.
    #[error("the server asks for a lower rate (RATE)")]
    Rate,
    /// The server does not want to serve this client.
    #[error("the server denies service ({})", String::from_utf8_lossy(.0))]
    Denied([u8; 4]),
    /// A kiss-of-death of another kind.
    #[error("kiss-of-death {:?}", String::from_utf8_lossy(.0))]
    Kiss([u8; 4]),
    /// The server says that it has no time.
    #[error("the server is not synchronised (stratum {stratum}, leap {leap})")]
    Unsynchronised {
        /// Its stratum.
        stratum: u8,
        /// Its leap indicator.
        leap: u8,
    },
    /// The server is too far from its reference.
    #[error("the server is more than 16 s from its reference")]
    Distance,
    /// A time of zero, which in NTP means "not known".
    #[error("a time of zero")]
    Zero,
    /// The reply left before the request arrived.
    #[error("the reply left before the request arrived")]
    Reversed,
}

impl Reject {
    /// Whether the datagram came from the server we asked, and so ends the poll. Anything else may be forged or
    /// late, and the answer is still to be waited for.
    pub fn is_final(self) -> bool {
        !matches!(self, Reject::Length(_) | Reject::Version(_) | Reject::Mode(_) | Reject::Origin)
    }
}

/// What to do after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Poll again so long after the start of the last poll.
    Poll(Duration),
    /// Look the server's name up again, or take its next address; then poll, so long after the last poll.
    Resolve(Duration),
    /// Never ask this server again: its polls pass.
    Stop,
}

/// One server as the client sees it.
#[derive(Clone, Debug)]
pub struct Association {
    period: Duration,
    burst_left: u32,
    cookie: Option<u64>,
    reach: u8,
    failures: u32,
    denied: bool,
}

impl Association {
    /// A server that was not asked yet.
    pub fn new(polling: Polling) -> Association {
        Association {
            period: polling.period.min(MAX_POLL),
            burst_left: if polling.burst { BURST } else { 0 },
            cookie: None,
            reach: 0,
            failures: 0,
            denied: false,
        }
    }

    /// NTP's reach register: the last eight polls, the newest in the lowest bit.
    pub fn reach(&self) -> u8 {
        self.reach
    }

    /// The poll period now.
    pub fn period(&self) -> Duration {
        if self.burst_left > 0 { self.period.min(BURST_PERIOD) } else { self.period }
    }

    /// Opens a poll: the request to send. `cookie` is random; only a reply that carries it counts.
    pub fn poll(&mut self, cookie: u64) -> Packet {
        // A zero origin is what a server sends that lost ours.
        let cookie = cookie.max(1);
        self.pass();
        self.cookie = Some(cookie);
        Packet::request(cookie)
    }

    /// Lets a poll go by without asking.
    pub fn pass(&mut self) {
        self.reach <<= 1;
        self.burst_left = self.burst_left.saturating_sub(1);
    }

    /// Judges a datagram from the server's address.
    pub fn handle(&mut self, datagram: &[u8]) -> Result<Answer, Reject> {
        let packet = Packet::read_from_bytes(datagram).map_err(|_| Reject::Length(datagram.len()))?;
        if !(3..=4).contains(&packet.version()) {
            return Err(Reject::Version(packet.version()));
        }
        if packet.mode() != MODE_SERVER {
            return Err(Reject::Mode(packet.mode()));
        }
        if self.cookie != Some(packet.origin.get()) {
            return Err(Reject::Origin);
        }
        // A second reply to the same request is a replay.
        self.cookie = None;
        self.judge(&packet)
    }

    fn judge(&mut self, packet: &Packet) -> Result<Answer, Reject> {
        let (stratum, leap) = (packet.stratum, packet.leap());
        if stratum == 0 {
            return Err(match &packet.reference_id {
                b"RATE" => {
                    self.period = (self.period * 2).min(MAX_POLL);
                    self.burst_left = 0;
                    Reject::Rate
                }
                b"DENY" | b"RSTR" => {
                    self.denied = true;
                    Reject::Denied(packet.reference_id)
                }
                code => Reject::Kiss(*code),
            });
        }
        if stratum > 15 || leap == LEAP_UNSYNCHRONISED {
            return Err(Reject::Unsynchronised { stratum, leap });
        }
        let root_delay = packet::short(packet.root_delay.get());
        let root_dispersion = packet::short(packet.root_dispersion.get()) + packet::log2_span(packet.precision);
        if Span::from_frac(root_delay.as_frac() / 2) + root_dispersion >= MAX_DISTANCE {
            return Err(Reject::Distance);
        }
        let receive = packet::timestamp(packet.receive.get()).ok_or(Reject::Zero)?;
        let transmit = packet::timestamp(packet.transmit.get()).ok_or(Reject::Zero)?;
        if transmit < receive {
            return Err(Reject::Reversed);
        }
        self.reach |= 1;
        self.failures = 0;
        Ok(Answer { receive, transmit, stratum, leap, root_delay, root_dispersion })
    }

    /// Closes a poll, answered or not, and says what comes next.
    pub fn finish(&mut self) -> Next {
        self.cookie = None;
        if self.denied {
            return Next::Stop;
        }
        if self.reach & 1 == 0 {
            self.failures += 1;
            if self.failures.is_multiple_of(FAILURES_TO_RESOLVE) {
                return Next::Resolve(self.period());
            }
        }
        Next::Poll(self.period())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    const POLLING: Polling = Polling { period: Duration::from_secs(16), burst: false };

    fn reply(request: &Packet) -> Packet {
        Packet {
            flags: (4 << 3) | MODE_SERVER,
            stratum: 2,
            poll: 4,
            precision: -20,
            root_delay: 0x0000_8000.into(),
            root_dispersion: 0x0000_4000.into(),
            reference_id: *b"GPS\0",
            reference: (0xe000_0000_0000_0000).into(),
            origin: request.transmit,
            receive: (0xe000_0001_0000_0000).into(),
            transmit: (0xe000_0001_8000_0000).into(),
        }
    }

    fn judged(change: impl FnOnce(&mut Packet)) -> (Result<Answer, Reject>, Association) {
        let mut association = Association::new(POLLING);
        let mut packet = reply(&association.poll(77));
        change(&mut packet);
        (association.handle(packet.as_bytes()), association)
    }

    #[test]
    fn a_sound_reply_is_taken() {
        let (answer, association) = judged(|_| {});
        let answer = answer.unwrap();
        assert_eq!(answer.stratum, 2);
        assert_eq!(answer.transmit.since(answer.receive), Span::from_frac(1 << 63));
        assert_eq!(answer.root_delay, Span::from_frac(1 << 63));
        assert_eq!(answer.root_dispersion, Span::from_frac((1 << 62) + (1 << 44)));
        assert_eq!(association.reach(), 1);
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let rejected = |change: fn(&mut Packet)| judged(change).0.unwrap_err();
        assert_eq!(rejected(|p| p.flags = (2 << 3) | 4), Reject::Version(2));
        assert_eq!(rejected(|p| p.flags = (4 << 3) | 3), Reject::Mode(3));
        assert_eq!(rejected(|p| p.origin = 78.into()), Reject::Origin);
        assert_eq!(rejected(|p| p.origin = 0.into()), Reject::Origin);
        assert_eq!(rejected(|p| p.stratum = 16), Reject::Unsynchronised { stratum: 16, leap: 0 });
        assert_eq!(rejected(|p| p.flags |= 0xc0), Reject::Unsynchronised { stratum: 2, leap: 3 });
        assert_eq!(rejected(|p| p.root_delay = 0x0020_0000.into()), Reject::Distance);
        assert_eq!(rejected(|p| p.transmit = 0.into()), Reject::Zero);
        assert_eq!(rejected(|p| p.receive = 0.into()), Reject::Zero);
        assert_eq!(rejected(|p| p.transmit = (0xe000_0000_ffff_ffff).into()), Reject::Reversed);
    }

    #[test]
    fn a_reply_counts_once() {
        let mut association = Association::new(POLLING);
        let packet = reply(&association.poll(77));
        assert!(association.handle(packet.as_bytes()).is_ok());
        assert_eq!(association.handle(packet.as_bytes()), Err(Reject::Origin));
        association.finish();
        assert_eq!(association.handle(packet.as_bytes()), Err(Reject::Origin));
    }

    #[test]
    fn a_forged_kiss_changes_nothing() {
        let (result, mut association) = judged(|p| {
            p.stratum = 0;
            p.reference_id = *b"DENY";
            p.origin = 1.into();
        });
        assert_eq!(result, Err(Reject::Origin));
        assert_eq!(association.finish(), Next::Poll(POLLING.period));
    }

    #[test]
    fn rate_doubles_the_period_and_deny_stops() {
        let (result, mut association) = judged(|p| {
            p.stratum = 0;
            p.reference_id = *b"RATE";
        });
        assert_eq!(result, Err(Reject::Rate));
        assert_eq!(association.finish(), Next::Poll(POLLING.period * 2));
        for code in [*b"DENY", *b"RSTR"] {
            let (result, mut association) = judged(|p| {
                p.stratum = 0;
                p.reference_id = code;
            });
            assert_eq!(result, Err(Reject::Denied(code)));
            assert_eq!(association.finish(), Next::Stop);
        }
    }

    #[test]
    fn a_poll_that_passes_counts_as_not_answered() {
        let (_, mut association) = judged(|_| {});
        association.pass();
        assert_eq!(association.reach(), 0b10);
    }

    #[test]
    fn the_burst_ends_and_a_silent_server_is_looked_up_again() {
        let mut association = Association::new(Polling { burst: true, ..POLLING });
        let mut steps = Vec::new();
        for cookie in 1..=12 {
            association.poll(cookie);
            steps.push(association.finish());
        }
        assert_eq!(steps[0], Next::Poll(BURST_PERIOD));
        assert_eq!(steps[3], Next::Resolve(BURST_PERIOD));
        assert_eq!(steps[6], Next::Poll(BURST_PERIOD));
        assert_eq!(steps[7], Next::Resolve(POLLING.period));
        assert_eq!(steps[8], Next::Poll(POLLING.period));
    }

    proptest! {
        #[test]
        fn garbage_is_never_an_answer(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20)) {
            let mut association = Association::new(POLLING);
            association.poll(0x5555_aaaa_1234_5678);
            for datagram in datagrams {
                prop_assert!(association.handle(&datagram).is_err());
            }
            prop_assert_eq!(association.finish(), Next::Poll(POLLING.period));
        }

        #[test]
        fn whatever_the_server_says_an_answer_is_in_order(bytes: [u8; 48], cookie: u64) {
            let mut association = Association::new(POLLING);
            let request = association.poll(cookie);
            let mut packet = Packet::read_from_bytes(&bytes).unwrap();
            packet.flags = (packet.flags & 0xc0) | (4 << 3) | MODE_SERVER;
            packet.origin = request.transmit;
            if let Ok(answer) = association.handle(packet.as_bytes()) {
                prop_assert!(answer.transmit >= answer.receive);
                prop_assert!((1..=15).contains(&answer.stratum) && answer.leap < 3);
                prop_assert!(answer.root_dispersion > Span::ZERO && answer.root_delay >= Span::ZERO);
            }
        }
    }
}
