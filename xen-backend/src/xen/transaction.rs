//! What xenstore-rs has no words for: writing a device's nodes with their permissions, all or none, and listing a
//! directory that is longer than a message.
//!
//! A device's directories are created in one XenStore transaction that first looks whether the domain still exists,
//! so that none is left behind in a domain that is being destroyed, and that gives the frontend's directory to the
//! guest. Blocking: a local socket, answered at once.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::wire::{
    self, DEVICE, HEADER, Header, XS_DIRECTORY_PART, XS_ERROR, XS_READ, XS_SET_PERMS, XS_TRANSACTION_END,
    XS_TRANSACTION_START, XS_WATCH_EVENT, XS_WRITE, strings,
};

/// How long xenstored has for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a transaction is tried that somebody else's keeps overtaking.
const TRIES: u32 = 20;
/// From one try to the next.
const RETRY: Duration = Duration::from_millis(2);

/// Who may do what with a node. The owner always may read and write it, and so may Dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// The domain that owns it.
    pub owner: u16,
    /// The domain that may read it.
    pub reader: u16,
}

/// A directory and its nodes.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Its path.
    pub path: String,
    /// Of the directory, and inherited by those of its nodes that are new.
    pub permissions: Permissions,
    /// Names and values.
    pub nodes: Vec<(&'static str, String)>,
}

/// Writes directories, if and only if the node `condition.0` says `condition.1`. Nodes that exist are overwritten,
/// others in the same directories stay.
///
/// # Errors
///
/// [`io::ErrorKind::NotFound`] if the condition does not hold; whatever XenStore answers; if it does not, one that [`is_lost`].
pub fn write_if(condition: (&str, &str), directories: &[Directory]) -> io::Result<()> {
    Connection::open()?.write_if(condition, directories)
}

/// The names of a directory's nodes, however many they are: one message holds those of some 800 domains.
///
/// # Errors
///
/// [`io::ErrorKind::NotFound`] if there is no such directory; whatever XenStore answers, or that it does not.
pub fn list(path: &str) -> io::Result<Vec<String>> {
    Connection::open()?.list(path)
}

/// Whether an error says that xenstored does not answer or has gone, not what it answered.
pub fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::TimedOut)
}

/// An error of the connection. Not as the system has it: a time limit would look like a transaction that others overtook.
fn lost(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => silent(),
        _ => io::Error::new(io::ErrorKind::BrokenPipe, error),
    }
}

/// No answer in time.
pub fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "xenstored does not answer")
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection to XenStore, with one request under way at a time.
struct Connection(Box<dyn Stream>);

impl Connection {
    /// The same places in the same order as xenstore-rs. But where xenstored has left its socket behind, the device would
    /// be waited for in vain.
    fn open() -> io::Result<Connection> {
        match UnixStream::connect(wire::socket()) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_write_timeout(Some(ANSWER))?;
                Ok(Connection(Box::new(stream)))
            }
            Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => Err(lost(refused)),
            Err(_) => {
                let device = OpenOptions::new().read(true).write(true).open(DEVICE);
                Ok(Connection(Box::new(device.map_err(lost)?)))
            }
        }
    }

    fn write_if(&mut self, condition: (&str, &str), directories: &[Directory]) -> io::Result<()> {
        for _ in 0..TRIES {
            match self.try_write_if(condition, directories) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
                result => return result,
            }
        }
        Err(io::Error::other("others change XenStore all the time"))
    }

    fn list(&mut self, path: &str) -> io::Result<Vec<String>> {
        for _ in 0..TRIES {
            if let Some(names) = self.try_list(path)? {
                return Ok(names);
            }
        }
        Err(io::Error::other("others change XenStore all the time"))
    }

    /// Nothing if the directory changed between two parts.
    fn try_list(&mut self, path: &str) -> io::Result<Option<Vec<String>>> {
        let mut names: Vec<u8> = Vec::new();
        let mut first = None;
        loop {
            let part = self.call(XS_DIRECTORY_PART, 0, &strings(&[path, &names.len().to_string()]))?;
            let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not a part of a directory");
            let end = part.iter().position(|byte| *byte == 0).ok_or_else(malformed)?;
            let (generation, part) = (&part[..end], &part[end + 1..]);
            if first.get_or_insert_with(|| generation.to_vec()) != generation {
                return Ok(None);
            }
            // The last part ends with an empty name.
            let (part, is_last) = match part {
                [] | [0] => (&part[..0], true),
                [part @ .., 0, 0] => (&part[..part.len()], true),
                [.., 0] => (part, false),
                _ => return Err(malformed()),
            };
            names.extend_from_slice(part);
            if is_last {
                let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                return Ok(Some(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()));
            }
        }
    }

    fn try_write_if(&mut self, condition: (&str, &str), directories: &[Directory]) -> io::Result<()> {
        let id = self.call(XS_TRANSACTION_START, 0, b"\0")?;
        let id = std::str::from_utf8(&id)
            .ok()
            .and_then(|id| id.trim_end_matches('\0').parse().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no transaction number"))?;
        let written = self.write_directories(id, condition, directories);
        if written.as_ref().is_err_and(is_lost) {
            // The transaction ends with the connection.
            return written;
        }
        let end: &[u8] = if written.is_ok() { b"T\0" } else { b"F\0" };
        let ended = self.call(XS_TRANSACTION_END, id, end);
        written.and(ended.map(drop))
    }

    fn write_directories(&mut self, id: u32, condition: (&str, &str), directories: &[Directory]) -> io::Result<()> {
        let value = self.call(XS_READ, id, &strings(&[condition.0]))?;
        if value != condition.1.as_bytes() {
            return Err(io::ErrorKind::NotFound.into());
        }
        for directory in directories {
            let Permissions { owner, reader } = directory.permissions;
            self.call(XS_WRITE, id, &strings(&[&directory.path]))?;
            self.call(XS_SET_PERMS, id, &strings(&[&directory.path, &format!("n{owner}"), &format!("r{reader}")]))?;
            for (name, value) in &directory.nodes {
                let mut payload = strings(&[&format!("{}/{name}", directory.path)]);
                payload.extend_from_slice(value.as_bytes());
                self.call(XS_WRITE, id, &payload)?;
            }
        }
        Ok(())
    }

    fn call(&mut self, kind: u32, transaction: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(&wire::message(kind, 0, transaction, payload)?).map_err(lost)?;
        loop {
            let mut header = [0; HEADER];
            self.0.read_exact(&mut header).map_err(lost)?;
            let header = Header::parse(header)?;
            let mut payload = vec![0; header.length];
            self.0.read_exact(&mut payload).map_err(lost)?;
            match header.kind {
                XS_WATCH_EVENT => {}
                XS_ERROR => return Err(wire::error(&payload)),
                answer if answer == kind => return Ok(payload),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to something else")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread::{self, JoinHandle};

    use super::super::wire::PAYLOAD_MAX;
    use super::*;

    const CONDITION: (&str, &str) = ("/local/domain/7/vm", "/vm/u");

    /// What a store holds: values and, in their wire format, permissions.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Tree(BTreeMap<String, (Vec<u8>, Option<String>)>);

    /// A xenstored with one client, which lets so many transactions fail first. Returns what it holds at the end.
    fn xenstored(mut tree: Tree, mut conflicts: u32) -> (Connection, JoinHandle<Tree>) {
        let (client, mut server) = UnixStream::pair().expect("sockets");
        client.set_read_timeout(Some(ANSWER)).expect("a timeout");
        let serve = move || {
            let mut open: Option<Tree> = None;
            let mut header = [0; 16];
            while server.read_exact(&mut header).is_ok() {
                let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
                let (kind, transaction) = (word(0), word(8));
                let mut payload = vec![0; word(12) as usize];
                server.read_exact(&mut payload).expect("a payload");
                assert_eq!(transaction, if open.is_some() { 77 } else { 0 });
                let (path, rest) = payload.split_at(payload.iter().position(|byte| *byte == 0).expect("a NUL"));
                let path = String::from_utf8(path.to_vec()).expect("a path");
                let rest = &rest[1..];
                let answer: Result<&[u8], &[u8]> = match kind {
                    XS_TRANSACTION_START => {
                        open = Some(tree.clone());
                        Ok(b"77\0")
                    }
                    XS_TRANSACTION_END => {
                        let written = open.take().expect("a transaction");
                        match path.as_str() {
                            "T" if conflicts > 0 => {
                                conflicts -= 1;
                                Err(b"EAGAIN\0")
                            }
                            "T" => {
                                tree = written;
                                Ok(b"OK\0")
                            }
                            _ => Ok(b"OK\0"),
                        }
                    }
                    XS_READ => match tree.0.get(&path) {
                        Some((value, _)) => Ok(value),
                        None => Err(b"ENOENT\0"),
                    },
                    XS_WRITE => {
                        open.as_mut().expect("a transaction").0.entry(path).or_default().0 = rest.to_vec();
                        Ok(b"OK\0")
                    }
                    XS_SET_PERMS => {
                        let nodes = &mut open.as_mut().expect("a transaction").0;
                        let permissions = String::from_utf8(rest.to_vec()).expect("permissions");
                        nodes.get_mut(&path).expect("a node").1 = Some(permissions);
                        Ok(b"OK\0")
                    }
                    other => panic!("message {other}"),
                };
                // An event of some watch comes in between.
                for (kind, payload) in [(XS_WATCH_EVENT, &b"a\0b\0"[..])].into_iter().chain([match answer {
                    Ok(payload) => (kind, payload),
                    Err(payload) => (XS_ERROR, payload),
                }]) {
                    for word in [kind, 0, transaction, payload.len() as u32] {
                        server.write_all(&word.to_ne_bytes()).expect("an answer");
                    }
                    server.write_all(payload).expect("an answer");
                }
            }
            tree
        };
        (Connection(Box::new(client)), thread::spawn(serve))
    }

    fn with_domain() -> Tree {
        Tree(BTreeMap::from([(CONDITION.0.to_string(), (CONDITION.1.into(), None))]))
    }

    fn directories() -> [Directory; 2] {
        [
            Directory {
                path: "/b".into(),
                permissions: Permissions { owner: 0, reader: 7 },
                nodes: vec![("state", "2".into())],
            },
            Directory {
                path: "/f".into(),
                permissions: Permissions { owner: 7, reader: 0 },
                nodes: vec![("backend", "/b".into()), ("state", "1".into())],
            },
        ]
    }

    #[test]
    fn a_device_is_written_whole_with_its_permissions() {
        for conflicts in [0, 3] {
            let (mut connection, server) = xenstored(with_domain(), conflicts);
            connection.write_if(CONDITION, &directories()).expect("written");
            drop(connection);
            let tree = server.join().expect("a tree").0;
            let value = |path: &str| String::from_utf8(tree[path].0.clone()).expect("text");
            assert_eq!(
                (value("/b/state"), value("/f/state"), value("/f/backend")),
                ("2".into(), "1".into(), "/b".into())
            );
            assert_eq!(tree["/b"].1.as_deref(), Some("n0\0r7\0"));
            assert_eq!(tree["/f"].1.as_deref(), Some("n7\0r0\0"));
        }
    }

    #[test]
    fn nothing_is_written_for_a_domain_that_is_gone_or_another() {
        let other = Tree(BTreeMap::from([(CONDITION.0.to_string(), (b"/vm/other".to_vec(), None))]));
        for tree in [Tree::default(), other] {
            let (mut connection, server) = xenstored(tree.clone(), 0);
            let error = connection.write_if(CONDITION, &directories()).expect_err("gone");
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            drop(connection);
            assert_eq!(server.join().expect("a tree"), tree);
        }
    }

    #[test]
    fn a_store_in_which_others_always_win_is_given_up() {
        let (mut connection, server) = xenstored(with_domain(), u32::MAX);
        connection.write_if(CONDITION, &directories()).expect_err("conflicts");
        drop(connection);
        assert_eq!(server.join().expect("a tree"), with_domain());
    }

    /// A xenstored with a directory of these names, which is another one after each of the first answers.
    fn xenstored_with(names: Vec<String>, mut changes: u32) -> Connection {
        let (client, mut server) = UnixStream::pair().expect("sockets");
        let children = strings(&names.iter().map(String::as_str).collect::<Vec<_>>());
        thread::spawn(move || {
            let mut header = [0; 16];
            let mut generation = 0;
            while server.read_exact(&mut header).is_ok() {
                let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
                assert_eq!((word(0), word(8)), (XS_DIRECTORY_PART, 0));
                let mut payload = vec![0; word(12) as usize];
                server.read_exact(&mut payload).expect("a payload");
                let payload = String::from_utf8(payload).expect("text");
                let [path, offset, ""] = payload.split('\0').collect::<Vec<_>>()[..] else { panic!("{payload:?}") };
                assert_eq!(path, "/local/domain");
                let rest = &children[offset.parse().expect("a number")..];
                let mut answer = strings(&[&generation.to_string()]);
                // Whole names, and room for the end.
                let fits = rest.len().min(PAYLOAD_MAX - answer.len() - 1);
                let part = rest[..fits].iter().rposition(|byte| *byte == 0).map_or(&rest[..0], |last| &rest[..=last]);
                answer.extend_from_slice(part);
                if part.len() == rest.len() {
                    answer.push(0);
                }
                generation += u32::from(changes > 0);
                changes = changes.saturating_sub(1);
                for word in [XS_DIRECTORY_PART, 0, 0, answer.len() as u32] {
                    server.write_all(&word.to_ne_bytes()).expect("an answer");
                }
                server.write_all(&answer).expect("an answer");
            }
        });
        Connection(Box::new(client))
    }

    #[test]
    fn a_directory_is_listed_however_long_it_is_and_whoever_changes_it_meanwhile() {
        for count in [0, 1, 10, 1000, 1100, 32_000] {
            let names: Vec<String> = (0..count).map(|domid: u32| domid.to_string()).collect();
            for changes in [0, 3] {
                let mut connection = xenstored_with(names.clone(), changes);
                assert_eq!(connection.list("/local/domain").expect("names"), names, "{count}, {changes}");
            }
        }
        let names: Vec<String> = (0..1100).map(|domid: u32| domid.to_string()).collect();
        xenstored_with(names, u32::MAX).list("/local/domain").expect_err("changes all the time");
    }

    #[test]
    fn a_silent_or_dead_xenstored_is_lost_and_not_asked_again() {
        let (client, server) = UnixStream::pair().expect("sockets");
        drop(server);
        let error = Connection(Box::new(client)).write_if(CONDITION, &directories()).expect_err("dead");
        assert!(is_lost(&error), "{error:?}");

        // It falls silent in the midst of the transaction.
        for answers in [0, 1, 3] {
            let (client, mut server) = UnixStream::pair().expect("sockets");
            client.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
            let silent = thread::spawn(move || {
                let mut requests = 0;
                let mut header = [0; HEADER];
                while server.read_exact(&mut header).is_ok() {
                    let length = Header::parse(header).expect("a request").length;
                    server.read_exact(&mut vec![0; length]).expect("a payload");
                    let kind = u32::from_ne_bytes(header[..4].try_into().expect("4 bytes"));
                    let payload = if kind == XS_READ { CONDITION.1.as_bytes() } else { b"77\0" };
                    if requests < answers {
                        server.write_all(&wire::message(kind, 0, 0, payload).expect("short")).expect("an answer");
                    }
                    requests += 1;
                }
                requests
            });
            let error = Connection(Box::new(client)).write_if(CONDITION, &directories()).expect_err("silent");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(silent.join().expect("requests"), answers + 1);
        }
    }
}
