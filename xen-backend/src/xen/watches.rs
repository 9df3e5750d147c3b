//! Watches of XenStore's, and what they have told. Thin: what is watched and when is [`super::guests`]' business.
//!
//! On a connection of their own and not by xenstore-rs, which cannot take a watch back while its events keep coming (it
//! forgets to tell xenstored of the end if one of them arrives in between), and which passes each event on by itself,
//! from a thread to a task to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use radclock::xenbus::{self, node};
use tokio::fs::OpenOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::XenError;
use super::store::{CONTROL_SHUTDOWN, LIBXL};
use super::transaction::silent;
use super::wire::{self, HEADER, Header, XS_ERROR, XS_UNWATCH, XS_WATCH, XS_WATCH_EVENT};

/// How long xenstored has for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How much is read at once.
const CHUNK: usize = 16 * 1024;

/// What can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Domains that are introduced to xenstored.
    Introduced,
    /// Domains that go.
    Released,
    /// Domains that libxl makes, before they are introduced.
    Made,
    /// The state of this guest's frontend.
    State(u16),
    /// What this guest is asked to do, and its answer.
    Request(u16),
}

impl Topic {
    /// All that tell of domains coming and going. With libxl they come when they are made, else when they are introduced.
    pub const DOMAINS: [Topic; 3] = [Topic::Introduced, Topic::Released, Topic::Made];

    /// Both that tell what a guest does.
    pub fn of_guest(domid: u16) -> [Topic; 2] {
        [Topic::State(domid), Topic::Request(domid)]
    }

    fn path(self) -> String {
        match self {
            Topic::Introduced => "@introduceDomain".into(),
            Topic::Released => "@releaseDomain".into(),
            Topic::Made => LIBXL.into(),
            Topic::State(domid) => format!("{}/{}", xenbus::frontend_dir(domid), node::STATE),
            Topic::Request(domid) => format!("{}/{CONTROL_SHUTDOWN}", xenbus::domain_dir(domid)),
        }
    }

    /// What xenstored repeats with each event.
    fn token(self) -> String {
        match self {
            Topic::Introduced => "introduced".into(),
            Topic::Released => "released".into(),
            Topic::Made => "made".into(),
            Topic::State(domid) => format!("state {domid}"),
            Topic::Request(domid) => format!("request {domid}"),
        }
    }

    fn parse(token: &str) -> Option<Topic> {
        let topic = match token.split_once(' ') {
            None => Topic::DOMAINS.into_iter().find(|topic| topic.token() == token)?,
            Some(("state", domid)) => Topic::State(domid.parse().ok()?),
            Some(("request", domid)) => Topic::Request(domid.parse().ok()?),
            Some(_) => return None,
        };
        Some(topic)
    }
}

/// What has changed since it was last asked, however often it did.
#[derive(Debug, Default)]
pub struct Changes {
    pending: Mutex<Pending>,
    notify: Notify,
}

/// What has changed.
#[derive(Debug, Default)]
pub struct Pending {
    /// Domains came or went, first at that time.
    pub domains: Option<Instant>,
    /// The frontends of these domains wrote their state.
    pub frontends: BTreeSet<u16>,
    /// These domains were asked to do something, or answered.
    pub requests: BTreeSet<u16>,
    /// How many events these domains made.
    pub events: BTreeMap<u16, u32>,
    /// Why there will be no more events.
    pub lost: Option<io::Error>,
}

impl Changes {
    fn mark(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    /// Waits for a change.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }

    /// What has changed since the last call.
    pub fn take(&self) -> Pending {
        std::mem::take(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Pending {
    fn note(&mut self, topic: Topic, path: &str) {
        match topic {
            Topic::Made if !is_libxl_domain(path) => {}
            Topic::Introduced | Topic::Released | Topic::Made => {
                self.domains.get_or_insert_with(Instant::now);
            }
            Topic::State(domid) => {
                self.frontends.insert(domid);
                self.count(domid);
            }
            Topic::Request(domid) => {
                self.requests.insert(domid);
                self.count(domid);
            }
        }
    }

    fn count(&mut self, domid: u16) {
        let events = self.events.entry(domid).or_default();
        *events = events.saturating_add(1);
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection with watches. All of them end when it is dropped.
pub struct Watches {
    writer: Writer,
    requests: u32,
    waiting: Arc<Waiting>,
    listener: JoinHandle<()>,
}

/// Who waits for the answer to which request.
#[derive(Default)]
struct Waiting(Mutex<BTreeMap<u32, oneshot::Sender<io::Result<()>>>>);

impl Watches {
    /// Connects to the local xenstored, as xenstore-rs does: by its socket, or by the kernel's device.
    pub async fn connect(changes: Arc<Changes>) -> Result<Watches, XenError> {
        let (reader, writer) = open().await.map_err(XenError::NoXenStore)?;
        Ok(Watches::on(reader, writer, changes))
    }

    fn on(reader: Reader, writer: Writer, changes: Arc<Changes>) -> Watches {
        let waiting = Arc::new(Waiting::default());
        let answers = waiting.clone();
        let listener = tokio::spawn(async move {
            let Err(lost) = listen(reader, &answers, &changes).await;
            // Nobody is going to answer them.
            answers.lock().clear();
            changes.mark(|pending| pending.lost = Some(lost));
        });
        Watches { writer, requests: 0, waiting, listener }
    }

    /// Begins to watch. The first event comes at once.
    pub async fn watch(&mut self, topic: Topic) -> Result<(), XenError> {
        self.request(XS_WATCH, "watch", topic).await
    }

    /// Ends a watch. No event of it comes after that.
    pub async fn unwatch(&mut self, topic: Topic) -> Result<(), XenError> {
        self.request(XS_UNWATCH, "unwatch", topic).await
    }

    async fn request(&mut self, kind: u32, what: &'static str, topic: Topic) -> Result<(), XenError> {
        let path = topic.path();
        let asked = self.ask(kind, wire::strings(&[&path, &topic.token()]));
        let answer = tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(silent()));
        answer.map_err(|source| XenError::Store { what, path, source })
    }

    async fn ask(&mut self, kind: u32, payload: Vec<u8>) -> io::Result<()> {
        self.requests = self.requests.wrapping_add(1);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().insert(self.requests, sender);
        if self.listener.is_finished() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.writer.write_all(&wire::message(kind, self.requests, 0, &payload)?).await?;
        self.writer.flush().await?;
        answer.await.map_err(|_| io::ErrorKind::BrokenPipe)?
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, oneshot::Sender<io::Result<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn listen(mut reader: Reader, waiting: &Waiting, changes: &Changes) -> io::Result<Infallible> {
    let mut received = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = reader.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        received.extend_from_slice(&chunk[..read]);
        while let Some((header, payload)) = take_message(&mut received)? {
            handle(header, &payload, waiting, changes);
        }
        // Where events never end, others have to get on, too.
        tokio::task::yield_now().await;
    }
}

fn handle(header: Header, payload: &[u8], waiting: &Waiting, changes: &Changes) {
    if header.kind == XS_WATCH_EVENT {
        let mut parts = payload.split(|byte| *byte == 0).map(std::str::from_utf8);
        let (Some(Ok(path)), Some(Ok(token))) = (parts.next(), parts.next()) else { return };
        if let Some(topic) = Topic::parse(token) {
            changes.mark(|pending| pending.note(topic, path));
        }
        return;
    }
    let answer = if header.kind == XS_ERROR { Err(wire::error(payload)) } else { Ok(()) };
    if let Some(waiting) = waiting.lock().remove(&header.request) {
        // Whoever asked may have stopped waiting.
        let _ = waiting.send(answer);
    }
}

async fn open() -> io::Result<(Reader, Writer)> {
    if let Ok(stream) = UnixStream::connect(wire::socket()).await {
        let (reader, writer) = stream.into_split();
        return Ok((Box::new(reader), Box::new(writer)));
    }
    let device = OpenOptions::new().read(true).write(true).open(wire::DEVICE).await?;
    Ok((Box::new(device.try_clone().await?), Box::new(device)))
}

/// The first message of what was received, if it is whole.
fn take_message(received: &mut Vec<u8>) -> io::Result<Option<(Header, Vec<u8>)>> {
    let Some(header) = received.first_chunk::<HEADER>() else { return Ok(None) };
    let header = Header::parse(*header)?;
    let end = HEADER + header.length;
    if received.len() < end {
        return Ok(None);
    }
    let payload = received[HEADER..end].to_vec();
    received.drain(..end);
    Ok(Some((header, payload)))
}

/// Whether a path is that of a domain's directory in [`LIBXL`], not of what lies in it.
fn is_libxl_domain(path: &str) -> bool {
    path.strip_prefix(LIBXL).and_then(|rest| rest.strip_prefix('/')).is_some_and(|domid| domid.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A xenstored that answers each request, after some events of each watch that there is.
    async fn xenstored(mut stream: UnixStream, events: usize) -> io::Result<()> {
        let mut watches: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let mut header = [0; HEADER];
            stream.read_exact(&mut header).await?;
            let header = Header::parse(header)?;
            let mut payload = vec![0; header.length];
            stream.read_exact(&mut payload).await?;
            let text = String::from_utf8(payload).expect("text");
            let [path, token, ""] = text.split('\0').collect::<Vec<_>>()[..] else { panic!("{text:?}") };
            let mut answer = Vec::new();
            for (token, path) in &watches {
                for _ in 0..events {
                    let event = wire::strings(&[path, token]);
                    answer.extend(wire::message(XS_WATCH_EVENT, 0, 0, &event).expect("short"));
                }
            }
            let known = match header.kind {
                XS_WATCH => watches.insert(token.to_owned(), path.to_owned()).is_none(),
                _ => watches.remove(token).is_some(),
            };
            let (kind, payload) = if known { (header.kind, "OK\0") } else { (XS_ERROR, "ENOENT\0") };
            answer.extend(wire::message(kind, header.request, 0, payload.as_bytes()).expect("short"));
            stream.write_all(&answer).await?;
        }
    }

    fn watches(events: usize) -> (Watches, Arc<Changes>, JoinHandle<io::Result<()>>) {
        let (client, server) = UnixStream::pair().expect("sockets");
        let server = tokio::spawn(xenstored(server, events));
        let changes = Arc::new(Changes::default());
        let (reader, writer) = client.into_split();
        (Watches::on(Box::new(reader), Box::new(writer), changes.clone()), changes, server)
    }

    #[tokio::test]
    async fn a_watch_that_is_flooded_can_be_taken_back_and_then_tells_nothing() {
        let (mut watches, changes, _server) = watches(1000);
        watches.watch(Topic::State(7)).await.expect("watched");
        watches.watch(Topic::Request(8)).await.expect("watched");
        assert_eq!(changes.take().events, BTreeMap::from([(7, 1000)]));
        watches.unwatch(Topic::State(7)).await.expect("unwatched");
        changes.take();
        watches.watch(Topic::Made).await.expect("watched");
        let pending = changes.take();
        assert_eq!((pending.events, pending.frontends), (BTreeMap::from([(8, 1000)]), BTreeSet::new()));
        assert_eq!(pending.requests, BTreeSet::from([8]));
        watches.unwatch(Topic::State(7)).await.expect_err("not watched");
    }

    #[tokio::test]
    async fn a_lost_xenstored_is_noticed_and_answers_nobody() {
        let (mut watches, changes, server) = watches(0);
        watches.watch(Topic::Introduced).await.expect("watched");
        server.abort();
        changes.wait().await;
        assert!(changes.take().lost.is_some());
        let error = watches.watch(Topic::Released).await.expect_err("lost");
        assert!(error.is_disconnected(), "{error}");
    }

    #[test]
    fn a_token_says_what_is_watched() {
        for topic in Topic::DOMAINS.into_iter().chain(Topic::of_guest(7)).chain(Topic::of_guest(u16::MAX)) {
            assert_eq!(Topic::parse(&topic.token()), Some(topic));
        }
        for token in ["", "state", "state ", "state 65536", "other 7"] {
            assert_eq!(Topic::parse(token), None, "{token:?}");
        }
    }

    #[test]
    fn only_domains_of_libxl_are_taken_for_domains() {
        assert!(is_libxl_domain("/libxl/7"));
        for path in ["/libxl", "/libxl/", "/libxl/7/device", "/libxl/x", "/libxl/70000", "@introduceDomain"] {
            assert!(!is_libxl_domain(path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            pieces in prop::collection::vec(1..200usize, 1..50),
        ) {
            let sent: Vec<u8> = payloads.iter().flat_map(|p| wire::message(XS_WATCH_EVENT, 3, 0, p).expect("short")).collect();
            let (mut received, mut taken) = (Vec::new(), Vec::new());
            let (mut rest, mut pieces) = (&sent[..], pieces.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*pieces.next().expect("endless")));
                received.extend_from_slice(piece);
                rest = after;
                while let Some((header, payload)) = take_message(&mut received).expect("messages") {
                    prop_assert_eq!((header.kind, header.request, header.length), (XS_WATCH_EVENT, 3, payload.len()));
                    taken.push(payload);
                }
            }
            prop_assert_eq!(taken, payloads);
            prop_assert!(received.is_empty());
        }

        #[test]
        fn whatever_arrives_is_a_message_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            while let Ok(Some(_)) = take_message(&mut bytes) {}
        }
    }
}
