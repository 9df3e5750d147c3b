//! Stands between hosts and the NTP server, and does to its answers what bad servers and bad paths do.

use std::io;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// How long the server has for an answer.
const ANSWER: Duration = Duration::from_millis(500);
/// Longer than any packet that is passed on.
const PACKET_MAX: usize = 2048;
/// What an answer without extensions is long.
const HEADER: usize = 48;

/// What happens to the server's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Nothing.
    Right,
    /// They do not arrive.
    Lost,
    /// All of the server's times are this much later, ns.
    Shifted(i64),
    /// They answer a request that nobody sent.
    WrongOrigin,
    /// The server asks to be left alone: kiss code DENY.
    Kiss,
    /// The server says that it is not synchronised: stratum 16, leap indicator 3.
    Unsynchronized,
    /// Each octet is any.
    Garbage,
    /// They end in the middle.
    Truncated,
    /// A kilobyte follows, which is no extension.
    Oversized,
}

/// A running relay. It ends when dropped.
pub struct Relay {
    port: u16,
    shared: Arc<Mutex<Shared>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    answers: Answers,
    /// Of those, so many were made since they were asked for.
    made: u64,
    stopped: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// Starts one on a free port of 127.0.0.1, in front of the server on this port.
    pub fn start(server: u16) -> Result<Relay> {
        let clients = UdpSocket::bind("127.0.0.1:0")?;
        clients.set_read_timeout(Some(Duration::from_millis(100)))?;
        let upstream = UdpSocket::bind("127.0.0.1:0")?;
        upstream.connect(("127.0.0.1", server))?;
        upstream.set_read_timeout(Some(ANSWER))?;
        let port = clients.local_addr()?.port();
        let shared = Arc::new(Mutex::new(Shared { answers: Answers::Right, made: 0, stopped: false }));
        let seen = Arc::clone(&shared);
        let thread = thread::spawn(move || relay(&clients, &upstream, &seen));
        Ok(Relay { port, shared, thread: Some(thread) })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What happens to the answers from now on.
    pub fn set(&self, answers: Answers) {
        let mut shared = lock(&self.shared);
        (shared.answers, shared.made) = (answers, 0);
    }

    /// How many answers were so since [`Relay::set`], lost ones included.
    pub fn made(&self) -> u64 {
        lock(&self.shared).made
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        lock(&self.shared).stopped = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn relay(clients: &UdpSocket, upstream: &UdpSocket, shared: &Mutex<Shared>) {
    let mut packet = [0; PACKET_MAX];
    while !lock(shared).stopped {
        let Ok((length, client)) = clients.recv_from(&mut packet) else { continue };
        let Ok(Some(answer)) = exchange(upstream, &packet[..length]) else { continue };
        let mut shared = lock(shared);
        shared.made += 1;
        if let Some(answer) = change(answer, shared.answers) {
            // A client that is gone is told by its silence.
            let _ = clients.send_to(&answer, client);
        }
    }
}

/// The server's answer to this request; none if there is none in time.
fn exchange(upstream: &UdpSocket, request: &[u8]) -> io::Result<Option<Vec<u8>>> {
    upstream.send(request)?;
    let mut answer = [0; PACKET_MAX];
    loop {
        let length = match upstream.recv(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            result => result?,
        };
        // One to an earlier request may come late.
        if length >= HEADER && request.len() >= HEADER && answer[24..32] == request[40..48] {
            return Ok(Some(answer[..length].to_vec()));
        }
    }
}

fn change(mut answer: Vec<u8>, answers: Answers) -> Option<Vec<u8>> {
    match answers {
        Answers::Right => {}
        Answers::Lost => return None,
        Answers::Shifted(nanos) => [16, 32, 40].into_iter().for_each(|at| shift(&mut answer[at..at + 8], nanos)),
        Answers::WrongOrigin => answer[24..32].fill(0x5a),
        Answers::Kiss => {
            answer[0] |= 3 << 6;
            answer[1] = 0;
            answer[12..16].copy_from_slice(b"DENY");
        }
        Answers::Unsynchronized => {
            answer[0] |= 3 << 6;
            answer[1] = 16;
        }
        Answers::Garbage => {
            // Of the answer's own octets: what a client could take for right comes along, too.
            let mut state = u64::from_le_bytes(answer[40..48].try_into().expect("8 octets")) | 1;
            for octet in &mut answer {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *octet = state as u8;
            }
        }
        Answers::Truncated => answer.truncate(HEADER / 2),
        Answers::Oversized => answer.resize(answer.len() + 1024, 0xff),
    }
    Some(answer)
}

/// Shifts an NTP time stamp (RFC 5905, section 6).
fn shift(stamp: &mut [u8], nanos: i64) {
    let value = u64::from_be_bytes((&*stamp).try_into().expect("8 octets"));
    let units = ((i128::from(nanos) << 32) / 1_000_000_000) as i64;
    stamp.copy_from_slice(&value.wrapping_add_signed(units).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers with the request's transmit time as origin, and 1000 s since 1900 as all of its own.
    fn server() -> UdpSocket {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let answering = server.try_clone().expect("a copy");
        thread::spawn(move || {
            let mut packet = [0; PACKET_MAX];
            while let Ok((_, client)) = answering.recv_from(&mut packet) {
                let mut answer = [0; HEADER];
                answer[0] = 4 << 3 | 4;
                answer[1] = 1;
                answer[24..32].copy_from_slice(&packet[40..48]);
                for at in [16, 32, 40] {
                    answer[at..at + 8].copy_from_slice(&(1000_u64 << 32).to_be_bytes());
                }
                let _ = answering.send_to(&answer, client);
                if packet[0] == 0 {
                    break;
                }
            }
        });
        server
    }

    #[test]
    fn answers_arrive_as_they_are_told_to() {
        let server = server();
        let relay = Relay::start(server.local_addr().expect("bound").port()).expect("a relay");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let ask = |answers, first: u8| {
            relay.set(answers);
            let mut request = [7; HEADER];
            request[0] = first;
            client.send_to(&request, ("127.0.0.1", relay.port())).expect("sent");
            let mut answer = [0; PACKET_MAX];
            let length = client.recv(&mut answer).expect("an answer");
            answer[..length].to_vec()
        };
        let right = ask(Answers::Right, 0x23);
        assert_eq!((right.len(), &right[24..32], right[1]), (48, &[7_u8; 8][..], 1));
        let receive = |answer: &[u8]| u64::from_be_bytes(answer[32..40].try_into().expect("8 octets"));
        assert_eq!(receive(&ask(Answers::Shifted(-1_500_000_000), 0x23)), (998 << 32) + (1 << 31));
        assert_ne!(ask(Answers::WrongOrigin, 0x23)[24..32], [7; 8]);
        assert_eq!(ask(Answers::Unsynchronized, 0x23)[1], 16);
        assert_eq!(ask(Answers::Kiss, 0x23)[12..16], *b"DENY");
        assert_eq!(ask(Answers::Truncated, 0x23).len(), 24);
        assert_eq!(ask(Answers::Oversized, 0x23).len(), 1072);
        assert_ne!(ask(Answers::Garbage, 0)[..24], right[..24]);
        assert_eq!(relay.made(), 1);
    }
}
