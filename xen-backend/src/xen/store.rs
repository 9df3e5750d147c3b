//! What the backend reads and writes in XenStore. Thin: which nodes and when is [`super::guests`]' business; how it hears
//! of changes is [`super::watches`]'.
//!
//! By xenstore-rs, whose limits are kept here: requests go one after the other (it takes up to 32 at once), each
//! with a time limit and none after one that was not answered (it does not notice that xenstored has died), and each
//! connection has a thread with a runtime of its own (its task never ends while xenstored keeps the socket open; it ends
//! with the runtime).

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use radclock::xenbus::{self, XenbusState, node};
use tokio::sync::oneshot;
use xenstore_rs::AsyncXs;
use xenstore_rs::tokio::XsTokio;

use super::XenError;
use super::device::Frontend;
use super::transaction::{self, Directory, Permissions, silent};

/// How long xenstored has for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What a guest's device says in XenStore besides its states.
#[derive(Clone, Debug)]
pub struct Identity {
    /// This boot of the host, 32 hexadecimal digits.
    pub host_id: String,
    /// The name of the time domain.
    pub time_domain: String,
}

/// A domain, as XenStore has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its `vm` node.
    pub vm: String,
    /// Its name, of which only Dom0 has the say; empty if it has none that is UTF-8.
    pub name: String,
}

/// Where libxl keeps what it knows of a domain. It makes a domain's directory when it makes the domain, long before
/// that is introduced to xenstored: for one that is being restored or received, before its memory arrives.
pub(super) const LIBXL: &str = "/libxl";
/// What a domain is asked to do (`shutdown`, `suspend` and the like); it answers by clearing the node.
pub(super) const CONTROL_SHUTDOWN: &str = "control/shutdown";
/// It is to suspend, to be saved or migrated.
const SUSPEND: &str = "suspend";

/// A connection to XenStore.
pub struct Store {
    xs: XsTokio,
    link: Link,
    /// Dropping it is what ends the connection's thread, and with it the connection.
    _close: oneshot::Sender<()>,
}

/// Whether xenstored still answers. Once it did not, nobody waits for it again.
#[derive(Debug, Default)]
struct Link {
    is_lost: AtomicBool,
}

impl Link {
    /// A request that must be answered within [`ANSWER`].
    async fn limit<T>(
        &self,
        what: &'static str,
        path: &str,
        request: impl Future<Output = io::Result<T>>,
    ) -> Result<T, XenError> {
        let limited = async { tokio::time::timeout(ANSWER, request).await.unwrap_or_else(|_| Err(silent())) };
        self.ask(what, path, limited).await
    }

    /// A request with a time limit of its own.
    async fn ask<T>(
        &self,
        what: &'static str,
        path: &str,
        request: impl Future<Output = io::Result<T>>,
    ) -> Result<T, XenError> {
        let answer = if self.is_lost.load(Relaxed) { Err(silent()) } else { request.await };
        answer.map_err(|source| {
            if transaction::is_lost(&source) {
                self.is_lost.store(true, Relaxed);
            }
            XenError::Store { what, path: path.into(), source }
        })
    }
}

/// A connection, and what closes it when dropped.
async fn open() -> io::Result<(XsTokio, oneshot::Sender<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (opened, connection) = oneshot::channel();
    let (close, closed) = oneshot::channel::<()>();
    thread::Builder::new().name("xenstore".to_owned()).spawn(move || {
        runtime.block_on(async {
            // Neither has anyone to tell when the other end is gone.
            let _ = opened.send(XsTokio::new().await);
            let _ = closed.await;
        });
    })?;
    let xs = connection.await.map_err(io::Error::other)??;
    Ok((xs, close))
}

impl Store {
    /// Connects to the local xenstored.
    pub async fn connect() -> Result<Store, XenError> {
        let (xs, close) = open().await.map_err(XenError::NoXenStore)?;
        Ok(Store { xs, link: Link::default(), _close: close })
    }

    /// Asks for nothing any more: another connection has shown that xenstored is lost.
    pub fn give_up(&self) {
        self.link.is_lost.store(true, Relaxed);
    }

    /// The domains there are, without Dom0.
    pub async fn domids(&self) -> Result<BTreeSet<u16>, XenError> {
        let mut domids = self.numbers(xenbus::DOMAINS).await?;
        domids.remove(&0);
        Ok(domids)
    }

    /// The domains for which there are backend nodes, whoever left them.
    pub async fn backends(&self) -> Result<BTreeSet<u16>, XenError> {
        self.numbers(xenbus::BACKEND_ROOT).await
    }

    async fn numbers(&self, path: &str) -> Result<BTreeSet<u16>, XenError> {
        let listed = self.link.limit("list", path, async {
            match self.xs.directory(path).await {
                Ok(names) => Ok(Some(names.into_iter().map(String::from).collect())),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound => Ok(Some(Vec::new())),
                    // Longer than a message.
                    io::ErrorKind::InvalidData => Ok(None),
                    _ => Err(error),
                },
            }
        });
        let names: Vec<String> = match listed.await? {
            Some(names) => names,
            None => {
                let long = path.to_owned();
                let list = tokio::task::spawn_blocking(move || transaction::list(&long));
                self.link
                    .limit("list", path, async { list.await.unwrap_or_else(|panic| Err(io::Error::other(panic))) })
                    .await?
            }
        };
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// What there is of a domain; nothing if it is gone.
    pub async fn domain(&self, domid: u16) -> Result<Option<Domain>, XenError> {
        let directory = xenbus::domain_dir(domid);
        let Some(vm) = self.read(&format!("{directory}/vm")).await? else { return Ok(None) };
        let name = if_utf8(self.read(&format!("{directory}/name")).await)?.unwrap_or_default();
        Ok(Some(Domain { vm, name }))
    }

    /// The state that a guest's frontend has written.
    pub async fn frontend(&self, domid: u16) -> Result<Frontend, XenError> {
        let path = format!("{}/{}", xenbus::frontend_dir(domid), node::STATE);
        let state = self.link.limit("read", &path, async {
            match self.xs.read(&path).await {
                Ok(text) => Ok(XenbusState::parse(&text).map_or(Frontend::Garbage, Frontend::State)),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound => Ok(Frontend::Absent),
                    // Not UTF-8.
                    io::ErrorKind::InvalidData => Ok(Frontend::Garbage),
                    _ => Err(error),
                },
            }
        });
        state.await
    }

    /// Whether a guest is asked to suspend and has not answered yet.
    pub async fn is_suspend_requested(&self, domid: u16) -> Result<bool, XenError> {
        // The guest may write there.
        let request = if_utf8(self.read(&format!("{}/{CONTROL_SHUTDOWN}", xenbus::domain_dir(domid))).await);
        Ok(request?.as_deref() == Some(SUSPEND))
    }

    async fn read(&self, path: &str) -> Result<Option<String>, XenError> {
        self.link
            .limit("read", path, async {
                match self.xs.read(path).await {
                    Ok(value) => Ok(Some(value.into())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .await
    }

    /// Writes a device's nodes of both ends: the backend InitWait, the frontend Initialising.
    ///
    /// # Errors
    ///
    /// [`XenError::Gone`] if the domain is no longer `vm`.
    pub async fn offer(
        &self,
        domid: u16,
        vm: &str,
        page_ref: u32,
        port: u32,
        identity: &Identity,
    ) -> Result<(), XenError> {
        let condition = (format!("{}/vm", xenbus::domain_dir(domid)), vm.to_string());
        let frontend = Directory {
            path: xenbus::frontend_dir(domid),
            permissions: frontend_permissions(domid),
            nodes: vec![
                (node::BACKEND, xenbus::backend_dir(domid)),
                (node::BACKEND_ID, "0".into()),
                (node::STATE, XenbusState::Initialising.number()),
            ],
        };
        let backend = Directory {
            path: xenbus::backend_dir(domid),
            permissions: Permissions { owner: 0, reader: domid },
            nodes: vec![
                (node::FRONTEND, xenbus::frontend_dir(domid)),
                (node::FRONTEND_ID, domid.to_string()),
                (node::ONLINE, "1".into()),
                (node::VERSION, xenbus::PROTOCOL_VERSION.into()),
                (node::PAGE_REF, page_ref.to_string()),
                (node::EVENT_CHANNEL, port.to_string()),
                (node::HOST_ID, identity.host_id.clone()),
                (node::TIME_DOMAIN, identity.time_domain.clone()),
                (node::STATE, XenbusState::InitWait.number()),
            ],
        };
        self.write_if(domid, condition, vec![backend, frontend]).await
    }

    /// Writes a node of the frontend's as it is, which makes the guest look whether it knows the device.
    ///
    /// # Errors
    ///
    /// [`XenError::Gone`] if that node is not as it was offered any more.
    pub async fn knock(&self, domid: u16) -> Result<(), XenError> {
        let (path, backend) = (xenbus::frontend_dir(domid), xenbus::backend_dir(domid));
        let condition = (format!("{path}/{}", node::BACKEND), backend.clone());
        let nodes = vec![(node::BACKEND, backend)];
        self.write_if(domid, condition, vec![Directory { path, permissions: frontend_permissions(domid), nodes }]).await
    }

    /// [`transaction::write_if`], with [`XenError::Gone`] if the condition does not hold.
    async fn write_if(
        &self,
        domid: u16,
        condition: (String, String),
        directories: Vec<Directory>,
    ) -> Result<(), XenError> {
        let path = directories.first().map(|directory| directory.path.clone()).unwrap_or_default();
        let write = move || transaction::write_if((&condition.0, &condition.1), &directories);
        let written =
            async { tokio::task::spawn_blocking(write).await.unwrap_or_else(|panic| Err(io::Error::other(panic))) };
        self.link.ask("write", &path, written).await.map_err(|error| match error {
            XenError::Store { source, .. } if source.kind() == io::ErrorKind::NotFound => XenError::Gone(domid),
            error => error,
        })
    }

    /// Writes the backend's state.
    pub async fn write_state(&self, domid: u16, state: XenbusState) -> Result<(), XenError> {
        self.write_backend(domid, node::STATE, &state.number()).await
    }

    /// Says that the device is being taken away for good.
    pub async fn write_offline(&self, domid: u16) -> Result<(), XenError> {
        self.write_backend(domid, node::ONLINE, "0").await
    }

    async fn write_backend(&self, domid: u16, name: &str, value: &str) -> Result<(), XenError> {
        let path = format!("{}/{name}", xenbus::backend_dir(domid));
        self.link.limit("write", &path, self.xs.write(&path, value)).await
    }

    /// Removes a device's nodes of both ends, as far as there are any.
    pub async fn remove(&self, domid: u16) -> Result<(), XenError> {
        let backend = self.remove_tree(&xenbus::backend_root(domid)).await;
        // By itself, before its parent: the guest's kernel takes no notice of a device whose parent is removed.
        let frontend = self.remove_tree(&xenbus::frontend_dir(domid)).await;
        let root = self.remove_tree(&xenbus::frontend_root(domid)).await;
        backend.and(frontend).and(root)
    }

    /// Removes the parent of all backend directories.
    pub async fn remove_root(&self) -> Result<(), XenError> {
        self.remove_tree(xenbus::BACKEND_ROOT).await
    }

    async fn remove_tree(&self, path: &str) -> Result<(), XenError> {
        self.link
            .limit("remove", path, async {
                match self.xs.rm(path).await {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    result => result,
                }
            })
            .await
    }
}

/// What is not UTF-8 is as good as nothing.
fn if_utf8(read: Result<Option<String>, XenError>) -> Result<Option<String>, XenError> {
    match read {
        Err(XenError::Store { source, .. }) if source.kind() == io::ErrorKind::InvalidData => Ok(None),
        read => read,
    }
}

fn frontend_permissions(domid: u16) -> Permissions {
    Permissions { owner: domid, reader: 0 }
}

impl XenError {
    /// Whether the connection to xenstored is lost, so that only a new one helps.
    pub(super) fn is_disconnected(&self) -> bool {
        match self {
            XenError::NoXenStore(_) => true,
            XenError::Store { source, .. } => transaction::is_lost(source),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_xenstored_that_does_not_answer_is_waited_for_once() {
        let link = Link::default();
        let request = async |answer| link.limit("write", "/a", answer).await;
        let refused = request(Box::pin(async { Err(io::ErrorKind::NotFound.into()) }) as BoxedAnswer);
        assert!(!refused.await.expect_err("refused").is_disconnected());
        let start = tokio::time::Instant::now();
        let silent = request(Box::pin(std::future::pending())).await;
        assert!(silent.expect_err("silent").is_disconnected());
        assert_eq!(start.elapsed(), ANSWER);
        let next = request(Box::pin(async { panic!("asked again") })).await;
        assert!(next.expect_err("lost").is_disconnected());
        assert_eq!(start.elapsed(), ANSWER);
    }

    #[test]
    fn what_is_not_utf_8_is_as_good_as_nothing() {
        let failed =
            |kind: io::ErrorKind| Err(XenError::Store { what: "read", path: "/a".into(), source: kind.into() });
        assert_eq!(if_utf8(failed(io::ErrorKind::InvalidData)).expect("nothing"), None);
        assert_eq!(if_utf8(Ok(Some("db".into()))).expect("a name").as_deref(), Some("db"));
        if_utf8(failed(io::ErrorKind::TimedOut)).expect_err("silent");
    }

    type BoxedAnswer = std::pin::Pin<Box<dyn Future<Output = io::Result<()>>>>;
}
