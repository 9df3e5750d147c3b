//! Asks the server over UDP and makes stamps of the answers: sockets, names and the kernel's timestamps.
//!
//! What is asked when, and which answer counts, is [`super::association`]'s business; what a timestamp of the kernel
//! means on the counter is [`crate::bracket`]'s.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use radclock::clock::Period;
use radclock::report::ServerReport;
use radclock::stamp::{Stamp, StampSource};
use radclock::time::Span;
use timestamped_socket::socket::{Connected, GeneralTimestampMode, Open, Socket, TimestampData, open_ip};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use zerocopy::IntoBytes;

use super::association::{Answer, Association, Next, Reject};
use crate::bracket::{Bracket, CarryError, Realtime, StepWatch, carry};
use crate::config::Server;
use crate::counter::{CounterError, HostCounter};
use crate::source::{Counts, Polled};

/// How long an answer is waited for; a longer round trip says next to nothing.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// How long after the reply the kernel's timestamp of the request is waited for.
const SEND_STAMP_TIMEOUT: Duration = Duration::from_millis(50);
/// First and longest wait before an unknown name is looked up again.
const RESOLVE_RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(64));

/// Why a poll brought no stamp.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("{}", match .0.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens on its port (connection refused)".to_owned(),
        _ => format!("cannot be reached: {}", .0),
    })]
    Unreachable(io::Error),
    #[error("{0}")]
    Rejected(Reject),
    #[error("{0}: the stamp is dropped")]
    Carry(#[from] CarryError),
    #[error("CLOCK_REALTIME was set during the exchange: the stamp is dropped")]
    Set,
    #[error("{0}")]
    Counter(#[from] CounterError),
    #[error("no random numbers from the kernel: {0}")]
    Random(io::Error),
}

/// Which address each server of this daemon uses, so that the members of a pool use different ones.
#[derive(Clone, Debug, Default)]
pub struct Addresses(Arc<Mutex<HashMap<usize, SocketAddr>>>);

impl Addresses {
    /// Takes the first of `found` that no other server uses, if there is one, and puts it in front.
    fn take(&self, server: usize, found: &mut Vec<SocketAddr>) {
        let mut used = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        found.retain(|address| !used.iter().any(|(&other, used)| other != server && used == address));
        match found.first() {
            Some(&first) => used.insert(server, first),
            None => used.remove(&server),
        };
    }
}

/// The client of one server.
pub struct Client {
    index: usize,
    server: Server,
    addresses: Addresses,
    counter: Arc<HostCounter>,
    period: Period,
    steps: StepWatch,
    /// The kernel stamps arriving packets only while some socket wants it, and takes a while to begin. This idle one
    /// keeps it going between polls.
    _keep_stamping: Socket<SocketAddr, Open>,
    report: ServerReport,
    polled: mpsc::Sender<Polled>,
}

impl Client {
    /// Made ready, but not started: the daemon's server number `index`. `period` is the counter's nominal one.
    pub fn new(
        index: usize,
        server: Server,
        addresses: Addresses,
        counter: Arc<HostCounter>,
        period: Period,
        polled: mpsc::Sender<Polled>,
    ) -> io::Result<Client> {
        let idle = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let report = ServerReport::unheard(name(&server), server.polling().period.as_secs_f64());
        Ok(Client {
            index,
            server,
            addresses,
            counter,
            period,
            steps: StepWatch::new()?,
            _keep_stamping: open_ip(idle, GeneralTimestampMode::SoftwareAll, false)?,
            report,
            polled,
        })
    }

    /// The server as nobody has asked it yet.
    pub fn report(&self) -> &ServerReport {
        &self.report
    }

    /// Asks until the server forbids it, and reports until nobody listens any more.
    pub async fn run(mut self) {
        let mut association = Association::new(self.server.polling());
        let mut addresses = self.resolve(None).await;
        let mut unreachable = 0;
        loop {
            let start = Instant::now();
            let result = self.poll(&mut association, addresses[0]).await;
            let next = association.finish();
            let other_address = matches!(result, Err(PollError::Unreachable(_))) && unreachable + 1 < addresses.len();
            if !self.tell(&association, addresses[0], result).await {
                return;
            }
            if other_address {
                unreachable += 1;
                addresses.rotate_left(1);
                self.addresses.take(self.index, &mut addresses);
                if addresses.is_empty() {
                    addresses = self.resolve(None).await;
                }
                continue;
            }
            unreachable = 0;
            match next {
                Next::Poll(after) => sleep_until(start + after).await,
                Next::Resolve(after) => {
                    sleep_until(start + after).await;
                    addresses = self.resolve(Some(addresses[0])).await;
                }
                Next::Stop => {
                    tracing::error!(
                        "{} at {} denies service: it is not asked again; choose another server",
                        self.report.name,
                        addresses[0]
                    );
                    return self.pass(association).await;
                }
            }
        }
    }

    /// Reports polls at which the server is not asked, so that nobody waits for it.
    async fn pass(mut self, mut association: Association) {
        loop {
            sleep(association.period()).await;
            association.pass();
            self.report.reach = association.reach();
            if !self.send(None).await {
                return;
            }
        }
    }

    /// Reports a poll; says whether anybody listens.
    async fn tell(
        &mut self,
        association: &Association,
        address: SocketAddr,
        result: Result<(Answer, Stamp), PollError>,
    ) -> bool {
        self.report.address = Some(address.to_string());
        self.report.reach = association.reach();
        self.report.poll_s = association.period().as_secs_f64();
        let exchange = match result {
            Ok((answer, stamp)) => {
                let rtt = self.period.span(stamp.tf.since(stamp.ta)).as_secs_f64();
                tracing::debug!(
                    "{address}: rtt {:.1} us, host error {:.3} us, stratum {}, {:?} stamps",
                    rtt * 1e6,
                    stamp.host_error.as_secs_f64() * 1e6,
                    answer.stratum,
                    stamp.source
                );
                if self.report.last_error.take().is_some() {
                    tracing::info!("{}: answers again", self.subject(Some(address)));
                }
                self.report.stratum = Some(answer.stratum);
                self.report.rtt_s = Some(rtt);
                self.report.stamps = Some(stamp.source);
                Some((stamp, Counts::Utc(Some(answer.leap))))
            }
            Err(error) => {
                self.complain(Some(address), &error.to_string());
                None
            }
        };
        self.send(exchange).await
    }

    async fn send(&self, exchange: Option<(Stamp, Counts)>) -> bool {
        self.polled.send(Polled { source: self.index, exchange, report: self.report.clone() }).await.is_ok()
    }

    /// The server as logs call it: its name, and its address if that is not the same.
    fn subject(&self, address: Option<SocketAddr>) -> String {
        match address.map(|address| address.to_string()) {
            Some(address) if address != self.report.name => format!("{} at {address}", self.report.name),
            _ => self.report.name.clone(),
        }
    }

    /// Says what is wrong: as a warning if all was well before, then quietly until the server answers.
    fn complain(&mut self, address: Option<SocketAddr>, error: &str) {
        let subject = self.subject(address);
        match self.report.last_error.replace(format!("{subject}: {error}")) {
            None => tracing::warn!("{subject}: {error}"),
            Some(_) => tracing::debug!("{subject}: {error}"),
        }
    }

    /// The server's addresses, at least one; those after `last` first, so that a dead one is left.
    async fn resolve(&mut self, last: Option<SocketAddr>) -> Vec<SocketAddr> {
        let mut wait = RESOLVE_RETRY.0;
        loop {
            let error = match tokio::net::lookup_host((self.server.address.0.as_str(), self.server.port())).await {
                Ok(found) => {
                    let mut addresses: Vec<SocketAddr> = found.collect();
                    if let Some(at) = addresses.iter().position(|&address| Some(address) == last) {
                        let next = (at + 1) % addresses.len();
                        addresses.rotate_left(next);
                    }
                    let has_any = !addresses.is_empty();
                    self.addresses.take(self.index, &mut addresses);
                    if !addresses.is_empty() {
                        return addresses;
                    }
                    if has_any {
                        "the name has no address that no other server here uses".to_owned()
                    } else {
                        "the name has no address".to_owned()
                    }
                }
                Err(error) => format!("cannot look up the server's name: {error}"),
            };
            self.complain(None, &error);
            if !self.send(None).await {
                // Nobody listens: the next poll finds that, too.
                return std::future::pending().await;
            }
            sleep(wait).await;
            wait = (wait * 2).min(RESOLVE_RETRY.1);
        }
    }

    fn bracket(&self) -> Result<Bracket, CounterError> {
        Bracket::take(self.period, || self.counter.around(Realtime::now))
    }

    async fn poll(&self, association: &mut Association, server: SocketAddr) -> Result<(Answer, Stamp), PollError> {
        // A socket a poll: each has a new random port, and takes packets from this address only.
        let socket = connect(server).map_err(PollError::Unreachable)?;
        let request = association.poll(random_cookie().map_err(PollError::Random)?);
        self.steps.stepped();

        let before = self.bracket()?;
        let asked = self.counter.read()?;
        poll_fn(|context| socket.poll_send(request.as_bytes(), context)).await.map_err(PollError::Unreachable)?;
        let deadline = Instant::now() + REPLY_TIMEOUT;

        let mut send_stamp = pin!(socket.get_send_timestamp());
        let mut sent: Option<(Realtime, Bracket)> = None;
        // Longer than a reply, so that one that is too long shows.
        let mut datagram = [0; 64];
        let (answer, received, arrived, after) = loop {
            tokio::select! {
                stamped = &mut send_stamp, if sent.is_none() => {
                    sent = match stamped {
                        Ok((_, data)) => realtime(&data).map(|time| Ok((time, self.bracket()?))).transpose().map_err(PollError::Counter)?,
                        Err(error) => return Err(PollError::Unreachable(error)),
                    };
                }
                result = timeout_at(deadline, socket.recv(&mut datagram)) => {
                    let received = self.counter.read()?;
                    let Ok(result) = result else {
                        // That the network said no shows only when something is sent.
                        poll_fn(|context| socket.poll_send(request.as_bytes(), context)).await.map_err(PollError::Unreachable)?;
                        return Err(PollError::Timeout(REPLY_TIMEOUT));
                    };
                    let result = result.map_err(PollError::Unreachable)?;
                    match association.handle(&datagram[..result.bytes_read]) {
                        Ok(answer) => break (answer, received, realtime(&result.timestamp_data), self.bracket()?),
                        Err(reject) if reject.is_final() => return Err(PollError::Rejected(reject)),
                        // Where there always is another datagram, nobody looks at the timer.
                        Err(_) if Instant::now() >= deadline => return Err(PollError::Timeout(REPLY_TIMEOUT)),
                        Err(reject) => tracing::debug!("{server}: ignored {reject}"),
                    }
                }
            }
        };
        if sent.is_none()
            && let Ok(Ok((_, data))) = timeout(SEND_STAMP_TIMEOUT, send_stamp).await
            && let Some(time) = realtime(&data)
        {
            sent = Some((time, self.bracket()?));
        }
        let (ta, ta_error) = match sent {
            Some((time, after)) => carry(self.period, &before, &after, time)?,
            None => (asked, Span::ZERO),
        };
        let (tf, tf_error) = match arrived {
            Some(time) => carry(self.period, &before, &after, time)?,
            None => (received, Span::ZERO),
        };
        if self.steps.stepped() {
            return Err(PollError::Set);
        }
        let stamp = Stamp {
            ta,
            tb: answer.receive,
            te: answer.transmit,
            tf,
            host_error: ta_error.max(tf_error),
            root_delay: answer.root_delay,
            root_dispersion: answer.root_dispersion,
            source: if sent.is_some() && arrived.is_some() { StampSource::Kernel } else { StampSource::User },
        };
        Ok((answer, stamp))
    }
}

fn name(server: &Server) -> String {
    let host = &server.address.0;
    if host.contains(':') { format!("[{host}]:{}", server.port()) } else { format!("{host}:{}", server.port()) }
}

fn connect(server: SocketAddr) -> io::Result<Socket<SocketAddr, Connected>> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    open_ip(any, GeneralTimestampMode::SoftwareAll, false)?.connect(server)
}

fn realtime(data: &TimestampData) -> Option<Realtime> {
    data.software.map(|time| Realtime::from_parts(time.seconds, time.nanos.into()))
}

fn random_cookie() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let length = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if length == bytes.len() { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_pool_take_different_addresses_and_give_them_back() {
        let [a, b] = [1, 2].map(|last| SocketAddr::from((Ipv4Addr::new(10, 0, 0, last), 123)));
        let addresses = Addresses::default();
        let taken = |server| {
            let mut found = vec![a, b];
            addresses.take(server, &mut found);
            found
        };
        assert_eq!(taken(0), [a, b]);
        assert_eq!(taken(1), [b]);
        assert_eq!(taken(2), []);
        addresses.take(0, &mut vec![]);
        assert_eq!(taken(2), [a]);
    }
}
