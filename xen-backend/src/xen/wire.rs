//! XenStore's messages, for what xenstore-rs has no words for ([`super::transaction`]) or is too slow for
//! ([`super::watches`]). As in Xen's `docs/misc/xenstore.txt` and `public/io/xs_wire.h`.

use std::io;
use std::path::PathBuf;

pub const XS_READ: u32 = 2;
pub const XS_WATCH: u32 = 4;
pub const XS_UNWATCH: u32 = 5;
pub const XS_TRANSACTION_START: u32 = 6;
pub const XS_TRANSACTION_END: u32 = 7;
pub const XS_WRITE: u32 = 11;
pub const XS_SET_PERMS: u32 = 14;
pub const XS_WATCH_EVENT: u32 = 15;
pub const XS_ERROR: u32 = 16;
pub const XS_DIRECTORY_PART: u32 = 22;
/// `XENSTORE_PAYLOAD_MAX`.
pub const PAYLOAD_MAX: usize = 4096;
pub const HEADER: usize = 16;

/// Where there is no socket.
pub const DEVICE: &str = "/dev/xen/xenbus";
const SOCKET: &str = "/run/xenstored/socket";

/// The socket of a local xenstored, as xenstore-rs looks for it.
pub fn socket() -> PathBuf {
    std::env::var_os("XENSTORED_PATH").map_or_else(|| SOCKET.into(), PathBuf::from)
}

/// What stands before a message's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which message.
    pub kind: u32,
    /// Which request it is or answers.
    pub request: u32,
    /// How long the payload is, bytes.
    pub length: usize,
}

impl Header {
    /// Reads one that xenstored sent.
    pub fn parse(bytes: [u8; HEADER]) -> io::Result<Header> {
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let header = Header { kind: word(0), request: word(4), length: word(12) as usize };
        if header.length > PAYLOAD_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an impossible answer"));
        }
        Ok(header)
    }
}

/// A whole message.
pub fn message(kind: u32, request: u32, transaction: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    if payload.len() > PAYLOAD_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "longer than a XenStore message"));
    }
    let mut message = Vec::with_capacity(HEADER + payload.len());
    for word in [kind, request, transaction, payload.len() as u32] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(payload);
    Ok(message)
}

/// Strings as XenStore wants them, each with its NUL.
pub fn strings(strings: &[&str]) -> Vec<u8> {
    strings.iter().flat_map(|string| string.bytes().chain([0])).collect()
}

/// The payload of an [`XS_ERROR`].
pub fn error(payload: &[u8]) -> io::Error {
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
