//! Commands in a guest without a network: `guest --serve` runs in the guest on its console (`hvc0`), and
//! `guest DOMAIN COMMAND` in Dom0 sends it a shell command through the console's pseudo-terminal, prints what the
//! command prints, and ends with its exit status.
//!
//! One line of JSON a message, with a marker in front so that a line of the kernel's is not taken for one. One command
//! at a time: a lock in Dom0 sees to it. It is for the lab only: whoever holds the console is root in the guest.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::termios::{self, FlushArg, SetArg};
use serde::{Deserialize, Serialize};

/// Stands in front of every message.
const MARKER: &str = "@lab ";
/// How long a guest may take from its creation until its agent answers: beside others that are busy, on an emulated processor.
const START_LIMIT: Duration = Duration::from_secs(300);

/// From Dom0.
#[derive(Serialize, Deserialize)]
struct Request {
    id: u64,
    /// For `/bin/sh -c`.
    command: String,
}

/// From the guest.
#[derive(Serialize, Deserialize)]
struct Answer {
    id: u64,
    #[serde(flatten)]
    event: Event,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Event {
    /// The agent has read the request.
    Started,
    /// A piece of standard output.
    Out(String),
    /// A piece of standard error.
    Err(String),
    /// The command has ended; a signal counts as 128 and its number, as in a shell.
    Exit(u8),
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let result = match (args.next().as_deref(), args.next()) {
        (Some("--serve"), None) => serve().map(|()| 0),
        (Some(domain), Some(first)) if !domain.starts_with('-') => {
            let command = std::iter::once(first).chain(args).collect::<Vec<_>>().join(" ");
            run(domain, command)
        }
        _ => {
            eprintln!("usage: guest DOMAIN COMMAND...   (in a guest: guest --serve)");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("guest: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn raw(terminal: impl AsFd) -> Result<()> {
    let mut settings = termios::tcgetattr(&terminal).context("the console is not a terminal")?;
    termios::cfmakeraw(&mut settings);
    Ok(termios::tcsetattr(&terminal, SetArg::TCSANOW, &settings)?)
}

fn send(to: &mut impl Write, message: &impl Serialize) -> Result<()> {
    // One write a message, with a line end before it too: whatever the kernel left unfinished ends there.
    to.write_all(format!("\n{MARKER}{}\n", serde_json::to_string(message)?).as_bytes())?;
    Ok(to.flush()?)
}

/// The message in a line, if there is one.
fn parse<'a, T: Deserialize<'a>>(line: &'a str) -> Option<T> {
    serde_json::from_str(line.trim_end().strip_prefix(MARKER)?).ok()
}

fn serve() -> Result<()> {
    raw(std::io::stdin())?;
    let mut last = None;
    for line in std::io::stdin().lock().lines() {
        // A request is repeated until it is heard, so it may be heard twice.
        if let Some(request) = parse::<Request>(&line?)
            && last != Some(request.id)
        {
            last = Some(request.id);
            answer(&request)?;
        }
    }
    Ok(())
}

fn answer(request: &Request) -> Result<()> {
    let id = request.id;
    let mut console = std::io::stdout();
    send(&mut console, &Answer { id, event: Event::Started })?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", &request.command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("/bin/sh")?;
    let (events, pieces) = mpsc::channel();
    pump(child.stdout.take().expect("piped"), events.clone(), Event::Out);
    pump(child.stderr.take().expect("piped"), events, Event::Err);
    for event in pieces {
        send(&mut console, &Answer { id, event })?;
    }
    let status = child.wait()?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0);
    let code = status.code().unwrap_or(128 + signal) as u8;
    send(&mut console, &Answer { id, event: Event::Exit(code) })
}

/// Passes on what `from` gives, line by line.
fn pump(from: impl Read + Send + 'static, to: mpsc::Sender<Event>, event: fn(String) -> Event) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while let Ok(1..) = from.read_until(b'\n', &mut line) {
            if to.send(event(String::from_utf8_lossy(&line).into_owned())).is_err() {
                break;
            }
            line.clear();
        }
    });
}

fn run(domain: &str, command: String) -> Result<u8> {
    let domid = output("xl", &["domid", domain]).with_context(|| format!("no domain called {domain:?}"))?;
    let path = output("xenstore-read", &[&format!("/local/domain/{domid}/console/tty")])
        .with_context(|| format!("{domain} has no console"))?;
    let lock = File::create(format!("/run/guest-{domid}.lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let mut console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOCTTY)
        .open(&path)
        .with_context(|| path.clone())?;
    raw(&console)?;
    termios::tcflush(&console, FlushArg::TCIFLUSH)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let request = Request { id: now ^ (u64::from(std::process::id()) << 48), command };
    send(&mut console, &request)?;
    await_answers(BufReader::new(console), request, domain)
}

fn await_answers(console: BufReader<File>, request: Request, domain: &str) -> Result<u8> {
    let (lines, answers) = mpsc::channel();
    let mut again = console.get_ref().try_clone()?;
    thread::spawn(move || {
        for line in console.lines() {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    let mut started = false;
    let limit = Instant::now() + START_LIMIT;
    loop {
        let line = match answers.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => line.context("the guest's console is gone")?,
            Err(mpsc::RecvTimeoutError::Timeout) if started => continue,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                ensure!(Instant::now() < limit, "{domain} does not answer");
                // What is sent before the guest's agent has opened the console is lost.
                send(&mut again, &request)?;
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the guest's console is gone"),
        };
        match parse(&line) {
            Some(Answer { id, event }) if id == request.id => match event {
                Event::Started => started = true,
                Event::Out(text) => print(std::io::stdout(), &text)?,
                Event::Err(text) => print(std::io::stderr(), &text)?,
                Event::Exit(code) => return Ok(code),
            },
            _ => {}
        }
    }
}

fn print(mut to: impl Write, text: &str) -> Result<()> {
    to.write_all(text.as_bytes())?;
    Ok(to.flush()?)
}

fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output().context(program.to_owned())?;
    ensure!(output.status.success(), "{program} failed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
