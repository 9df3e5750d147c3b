//! The one thing that xenstore-rs has no words for: writing a device's nodes with their permissions, all or none.
//!
//! A device's directories are created in one XenStore transaction that first looks whether the domain still exists,
//! so that none is left behind in a domain that is being destroyed, and that gives the frontend's directory to the
//! guest. The messages are those of Xen's `docs/misc/xenstore.txt` and `public/io/xs_wire.h`. Blocking: a local
//! socket, answered at once.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const XS_READ: u32 = 2;
const XS_TRANSACTION_START: u32 = 6;
const XS_TRANSACTION_END: u32 = 7;
const XS_WRITE: u32 = 11;
const XS_SET_PERMS: u32 = 14;
const XS_WATCH_EVENT: u32 = 15;
const XS_ERROR: u32 = 16;
/// `XENSTORE_PAYLOAD_MAX`.
const PAYLOAD_MAX: usize = 4096;

const SOCKET: &str = "/run/xenstored/socket";
const DEVICE: &str = "/dev/xen/xenbus";
/// How long xenstored has for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a transaction is tried that somebody else's keeps overtaking.
const TRIES: u32 = 20;

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
/// [`io::ErrorKind::NotFound`] if the condition does not hold; whatever XenStore answers.
pub fn write_if(condition: (&str, &str), directories: &[Directory]) -> io::Result<()> {
    let mut connection = Connection::open()?;
    for _ in 0..TRIES {
        match connection.try_write_if(condition, directories) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
            result => return result,
        }
    }
    Err(io::Error::other("others change it all the time"))
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection to XenStore, with one request under way at a time.
struct Connection(Box<dyn Stream>);

impl Connection {
    /// The same places in the same order as xenstore-rs.
    fn open() -> io::Result<Connection> {
        let path = std::env::var("XENSTORED_PATH").unwrap_or_else(|_| SOCKET.to_string());
        if let Ok(stream) = UnixStream::connect(path) {
            stream.set_read_timeout(Some(ANSWER))?;
            stream.set_write_timeout(Some(ANSWER))?;
            return Ok(Connection(Box::new(stream)));
        }
        Ok(Connection(Box::new(OpenOptions::new().read(true).write(true).open(DEVICE)?)))
    }

    fn try_write_if(&mut self, condition: (&str, &str), directories: &[Directory]) -> io::Result<()> {
        let id = self.call(XS_TRANSACTION_START, 0, b"\0")?;
        let id = std::str::from_utf8(&id)
            .ok()
            .and_then(|id| id.trim_end_matches('\0').parse().ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no transaction number"))?;
        let written = self.write_directories(id, condition, directories);
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
        if payload.len() > PAYLOAD_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "longer than a XenStore message"));
        }
        let mut message = Vec::with_capacity(16 + payload.len());
        for word in [kind, 0, transaction, payload.len() as u32] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(payload);
        self.0.write_all(&message)?;
        loop {
            let mut header = [0; 16];
            self.0.read_exact(&mut header)?;
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
            let (answer, length) = (word(0), word(12) as usize);
            if length > PAYLOAD_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an impossible answer"));
            }
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload)?;
            match answer {
                XS_WATCH_EVENT => {}
                XS_ERROR => return Err(error(&payload)),
                _ if answer == kind => return Ok(payload),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to something else")),
            }
        }
    }
}

/// Strings as XenStore wants them, each with its NUL.
fn strings(strings: &[&str]) -> Vec<u8> {
    strings.iter().flat_map(|string| string.bytes().chain([0])).collect()
}

fn error(payload: &[u8]) -> io::Error {
    let name = String::from_utf8_lossy(payload);
    let name = name.trim_end_matches('\0');
    let kind = match name {
        "ENOENT" => io::ErrorKind::NotFound,
        "EAGAIN" => io::ErrorKind::WouldBlock,
        "EACCES" | "EPERM" => io::ErrorKind::PermissionDenied,
        "ENOSPC" | "EQUOTA" => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, name.to_string())
}
