//! What XenStore says of the guests and their devices. Read only.
//!
//! By xenstore-rs, in a thread of its own with a time limit: a kernel whose xenstored is dead lets a reader of
//! `/dev/xen/xenbus` wait for ever.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use radclock::xenbus::{self, XenbusState, node};
use serde::Serialize;
use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

/// How long XenStore has for all of it.
const ANSWER: Duration = Duration::from_secs(5);

/// How Xen runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    /// Paravirtualised.
    Pv,
    /// Hardware virtualisation with paravirtual devices only.
    Pvh,
    /// A virtual PC.
    Hvm,
}

impl Kind {
    /// From libxl's `/libxl/<domid>/type`.
    fn parse(text: &str) -> Option<Kind> {
        match text {
            "pv" => Some(Kind::Pv),
            "pvh" => Some(Kind::Pvh),
            "hvm" => Some(Kind::Hvm),
            _ => None,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Kind::Pv => "PV",
            Kind::Pvh => "PVH",
            Kind::Hvm => "HVM",
        })
    }
}

/// One domain besides Dom0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Xen's number.
    pub domid: u16,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// How Xen runs it, if libxl said so.
    pub kind: Option<Kind>,
    /// The backend's state, if there is a device.
    pub backend: Option<XenbusState>,
    /// The frontend's state, if there is one.
    pub frontend: Option<XenbusState>,
}

/// All domains besides Dom0, by number.
///
/// # Errors
///
/// XenStore cannot be reached or does not answer.
pub fn domains() -> io::Result<Vec<Domain>> {
    with_store(|store| {
        let mut domids = match store.directory(xenbus::DOMAINS) {
            Ok(names) => numbers(&names),
            // Longer than a message.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                numbers(&xen_backend::xen::list_directory(xenbus::DOMAINS)?)
            }
            Err(error) => return Err(error),
        };
        domids.retain(|domid| *domid != 0);
        domids.sort_unstable();
        // Without its `vm` node a domain is on its way in or out.
        Ok(domids.into_iter().filter_map(|domid| domain(store, domid)).collect())
    })
}

fn numbers(names: &[impl AsRef<str>]) -> Vec<u16> {
    names.iter().filter_map(|name| name.as_ref().parse().ok()).collect()
}

fn domain(store: &XsUnix, domid: u16) -> Option<Domain> {
    let read = |path: String| store.read(&path).ok().map(String::from);
    let state = |directory: String| XenbusState::parse(&read(format!("{directory}/{}", node::STATE))?);
    let directory = xenbus::domain_dir(domid);
    let vm = read(format!("{directory}/vm"))?;
    Some(Domain {
        domid,
        name: read(format!("{directory}/name")).unwrap_or_default(),
        uuid: xenbus::uuid_of_vm(&vm).unwrap_or_default().to_string(),
        kind: read(format!("/libxl/{domid}/type")).and_then(|kind| Kind::parse(&kind)),
        backend: state(xenbus::backend_dir(domid)),
        frontend: state(xenbus::frontend_dir(domid)),
    })
}

/// The nodes of a guest's device, of both ends, as names with "backend/" or "frontend/" in front, and values.
///
/// # Errors
///
/// XenStore cannot be reached or does not answer.
pub fn nodes(domid: u16) -> io::Result<Vec<(String, String)>> {
    const BACKEND: [&str; 7] = [
        node::ONLINE,
        node::STATE,
        node::VERSION,
        node::PAGE_REF,
        node::EVENT_CHANNEL,
        node::HOST_ID,
        node::TIME_DOMAIN,
    ];
    // The guest owns these: only what is known is shown, and no control characters.
    const FRONTEND: [&str; 2] = [node::STATE, node::VERSION];
    with_store(move |store| {
        let mut nodes = Vec::new();
        for (end, directory, names) in [
            ("backend", xenbus::backend_dir(domid), BACKEND.as_slice()),
            ("frontend", xenbus::frontend_dir(domid), FRONTEND.as_slice()),
        ] {
            for name in names {
                if let Ok(value) = store.read(&format!("{directory}/{name}")) {
                    nodes.push((format!("{end}/{name}"), printable(&value)));
                }
            }
        }
        Ok(nodes)
    })
}

/// At most 64 characters, without those that steer a terminal.
fn printable(value: &str) -> String {
    value.chars().take(64).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Whether XenStore answers.
///
/// # Errors
///
/// It cannot be reached or does not answer.
pub fn check() -> io::Result<()> {
    // Relative to the caller's own domain, so that it works in a guest as well.
    with_store(|store| {
        store.read("domid").map(drop).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
    })
}

fn with_store<T: Send + 'static>(work: impl FnOnce(&XsUnix) -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // If it comes too late, nobody is there to take it.
        let _ = sender.send(XsUnix::new().map_err(explain).and_then(|store| work(&store)));
    });
    receiver
        .recv_timeout(ANSWER)
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "xenstored does not answer: is it running?")))
}

fn explain(error: io::Error) -> io::Error {
    let what = match error.kind() {
        io::ErrorKind::NotFound => "there is none: this is no domain of Xen, or xenstored is not running",
        io::ErrorKind::PermissionDenied => "no permission: run as root",
        _ => return error,
    };
    io::Error::new(error.kind(), what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_writes_cannot_steer_a_terminal() {
        assert_eq!(printable("1\u{1b}[2J\n"), "1\u{fffd}[2J\u{fffd}");
        assert_eq!(printable(&"x".repeat(4000)).len(), 64);
    }
}
