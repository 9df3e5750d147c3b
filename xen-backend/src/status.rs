//! The status socket: requests and responses of `radclock::report`, a JSON object a line.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use radclock::report::{Request, Response};
use rustix::fs::{Mode, fchmod};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::daemon::Shared;

/// A request is a short line.
const MAX_REQUEST: u64 = 4096;
/// A client that neither asks nor reads for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many clients are served at once; others wait.
const MAX_CLIENTS: usize = 64;
/// How often a watched daemon is looked at for what changes without an update: guests and reach.
const LOOK: Duration = Duration::from_secs(1);
/// Clients that wait to be taken, besides [`MAX_CLIENTS`].
const BACKLOG: i32 = 128;
/// Wait after a connection could not be taken (too many open files).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Opens the socket, for root and its group, in the place of one that a daemon before left.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let new = path.with_extension("new");
    let open = || {
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Linux gives the name the mode that the socket has, less the umask: there is no moment in which everybody may connect.
        fchmod(&socket, Mode::from_raw_mode(0o660))?;
        bind(&socket, &SocketAddrUnix::new(&new)?)?;
        std::fs::set_permissions(&new, Permissions::from_mode(0o660))?;
        net::listen(&socket, BACKLOG)?;
        std::fs::rename(&new, path)?;
        UnixListener::from_std(socket.into())
    };
    open().with_context(|| format!("cannot open the status socket {} (paths.socket)", path.display()))
}

/// Serves clients for ever, each on its own, so that a slow one holds up nobody.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>, changed: watch::Receiver<()>) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let permit = Arc::clone(&clients).acquire_owned().await.expect("never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let (shared, changed) = (Arc::clone(&shared), changed.clone());
                tokio::spawn(async move {
                    if let Err(error) = client(stream, &shared, changed).await {
                        tracing::debug!("status client: {error}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("status socket: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn client(mut stream: UnixStream, shared: &Shared, mut changed: watch::Receiver<()>) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let mut line = String::new();
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let response = match serde_json::from_str(&line) {
        Ok(Request::Watch) => {
            let mut rest = [0; 64];
            let hung_up = async { while !matches!(reader.read(&mut rest).await, Ok(0) | Err(_)) {} };
            return tokio::select! {
                result = watch(&mut writer, shared, &mut changed) => result,
                () = hung_up => Ok(()),
            };
        }
        Ok(Request::Status) => Response::Status(Box::new(shared.status())),
        Ok(Request::Attach { domid }) => match shared.guests() {
            Some(guests) => done(guests.attach(domid).await),
            None => no_guests(),
        },
        Ok(Request::Detach { domid }) => match shared.guests() {
            Some(guests) => done(guests.detach(domid).await),
            None => no_guests(),
        },
        Ok(Request::Warn { domid, warning }) => match shared.guests() {
            Some(guests) => done(guests.warn(domid, warning).await),
            None => no_guests(),
        },
        Err(error) => Response::Error { message: format!("not a request: {error}") },
    };
    send(&mut writer, &response).await
}

async fn watch(
    writer: &mut (impl AsyncWriteExt + Unpin),
    shared: &Shared,
    changed: &mut watch::Receiver<()>,
) -> io::Result<()> {
    loop {
        changed.borrow_and_update();
        let status = shared.status();
        let (guests, state) = (status.guests.clone(), status.clock.status);
        send(writer, &Response::Status(Box::new(status))).await?;
        loop {
            match timeout(LOOK, changed.changed()).await {
                Ok(Ok(())) => break,
                Ok(Err(_)) => return Ok(()),
                Err(_) => {
                    let status = shared.status();
                    if status.guests != guests || status.clock.status != state {
                        break;
                    }
                }
            }
        }
    }
}

fn done(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::Ok,
        Err(message) => Response::Error { message },
    }
}

fn no_guests() -> Response {
    Response::Error { message: "radclockd runs with --local: there are no guests".to_owned() }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    timeout(PATIENCE, writer.write_all(&line)).await?
}
