//! The client's side of the daemon's status socket (`radclock::report`).

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use radclock::report::{DaemonStatus, Request, Response};

/// How long the daemon has for an answer. Detaching waits a few seconds for the guest's driver.
const ANSWER: Duration = Duration::from_secs(15);

/// A daemon that may or may not be running.
#[derive(Clone, Debug)]
pub struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    /// The daemon behind a socket.
    pub fn new(socket: &Path) -> Daemon {
        Daemon { socket: socket.to_path_buf() }
    }

    /// The directory of its socket, where its pages are as well.
    pub fn run_dir(&self) -> &Path {
        self.socket.parent().unwrap_or(Path::new("/"))
    }

    /// The daemon's state.
    pub fn status(&self) -> anyhow::Result<DaemonStatus> {
        match self.ask(&Request::Status, Some(ANSWER))?.next_response()? {
            Some(Response::Status(status)) => Ok(*status),
            Some(Response::Error { message }) => bail!(message),
            Some(Response::Ok) | None => bail!("radclockd gives no status"),
        }
    }

    /// Has the daemon do something.
    pub fn order(&self, request: &Request) -> anyhow::Result<()> {
        match self.ask(request, Some(ANSWER))?.next_response()? {
            Some(Response::Ok) => Ok(()),
            Some(Response::Error { message }) => bail!(message),
            Some(Response::Status(_)) | None => bail!("radclockd gives no answer"),
        }
    }

    /// Calls `each` with the daemon's state now and after each change, until the daemon ends.
    pub fn watch(&self, mut each: impl FnMut(DaemonStatus) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut answers = self.ask(&Request::Watch, None)?;
        while let Some(response) = answers.next_response()? {
            match response {
                Response::Status(status) => each(*status)?,
                Response::Error { message } => bail!(message),
                Response::Ok => {}
            }
        }
        bail!("radclockd has ended")
    }

    fn ask(&self, request: &Request, limit: Option<Duration>) -> anyhow::Result<Answers> {
        let stream = UnixStream::connect(&self.socket).map_err(|error| self.explain(&error))?;
        stream.set_read_timeout(limit)?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        (&stream).write_all(line.as_bytes()).context("asking radclockd")?;
        Ok(Answers(BufReader::new(stream)))
    }

    fn explain(&self, error: &io::Error) -> anyhow::Error {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                anyhow::anyhow!("radclockd is not running (no socket {socket}): systemctl start radclockd")
            }
            io::ErrorKind::ConnectionRefused => {
                anyhow::anyhow!("radclockd is not running (nobody listens at {socket}): systemctl start radclockd")
            }
            io::ErrorKind::PermissionDenied => anyhow::anyhow!("no permission for {socket}: run as root"),
            _ => anyhow::anyhow!("cannot reach radclockd at {socket}: {error}"),
        }
    }
}

struct Answers(BufReader<UnixStream>);

impl Answers {
    fn next_response(&mut self) -> anyhow::Result<Option<Response>> {
        let mut line = String::new();
        let length = self.0.read_line(&mut line).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => anyhow::anyhow!("radclockd does not answer"),
            _ => anyhow::Error::new(error).context("radclockd's answer"),
        })?;
        if length == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line)
            .map(Some)
            .context("radclockd's answer is not understood: is it of the same version as radclock-ctl?")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A daemon that answers one request with these lines.
    fn answering(lines: &'static str) -> (tempfile::TempDir, Daemon) {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).expect("a request");
            (&stream).write_all(lines.as_bytes()).expect("an answer");
        });
        (directory, Daemon::new(&socket))
    }

    #[test]
    fn a_refusal_is_the_daemons_own_words() {
        let (_directory, daemon) = answering("{\"response\":\"error\",\"message\":\"there is no domain 7\"}\n");
        let error = daemon.order(&Request::Attach { domid: 7 }).expect_err("refused");
        assert_eq!(format!("{error:#}"), "there is no domain 7");
    }

    #[test]
    fn done_is_done() {
        let (_directory, daemon) = answering("{\"response\":\"ok\"}\n");
        daemon.order(&Request::Detach { domid: 7 }).expect("done");
    }

    #[test]
    fn nonsense_and_silence_are_errors() {
        let (_directory, daemon) = answering("hello\n");
        assert!(format!("{:#}", daemon.status().expect_err("nonsense")).contains("of the same version"));
        let (_directory, daemon) = answering("");
        assert_eq!(format!("{:#}", daemon.status().expect_err("silence")), "radclockd gives no status");
    }

    #[test]
    fn a_daemon_that_is_not_there_is_to_be_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = Daemon::new(&directory.path().join("none")).status().expect_err("nobody there");
        assert!(error.to_string().contains("systemctl start radclockd"), "{error}");
    }
}
