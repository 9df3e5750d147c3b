//! A daemon with `--local` under test, and the servers it is tested against: a real chronyd, and one that does as it
//! is told.
#![allow(dead_code, reason = "each test uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use radclock::report::{DaemonStatus, Request, Response};
use radclock::time::{Span, Timestamp};
use xen_backend::ntp::packet::{self, Packet};
use xen_radclock::{RadClock, Reading, Status};
use zerocopy::{FromBytes, IntoBytes};

pub const RADCLOCKD: &str = env!("CARGO_BIN_EXE_radclockd");

/// Waits until `check` yields something.
pub fn wait_for<T>(what: &str, patience: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < patience, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn realtime() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp::from_unix(now.as_secs(), now.subsec_nanos().into())
}

/// A process that ends with the test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A real NTP server on loopback, IPv4 and IPv6, that serves `CLOCK_REALTIME` as it is.
pub struct Chronyd {
    pub port: u16,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Chronyd {
    pub fn start() -> Chronyd {
        let dir = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let path = dir.path().display();
        let config = dir.path().join("chrony.conf");
        let text = format!(
            "local stratum 1\nallow all\nport {port}\nbindaddress 127.0.0.1\nbindaddress ::1\ncmdport 0\n\
             bindcmdaddress /\npidfile {path}/chronyd.pid\n"
        );
        std::fs::write(&config, text).expect("a configuration");
        let process = Command::new("chronyd")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(["-x", "-U", "-d", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chronyd is needed for this test: apt-get install chrony");
        let mut server = Chronyd { port, _process: Process(process), _dir: dir };
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        wait_for("chronyd to answer", Duration::from_secs(10), || {
            let ended = server._process.0.try_wait().expect("a child");
            assert!(ended.is_none(), "chronyd ended: {ended:?}");
            socket.send_to(Packet::request(1).as_bytes(), ("127.0.0.1", port)).ok()?;
            socket.recv(&mut [0; 48]).ok()
        });
        server
    }
}

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

/// A server that answers each request with what `answer` makes of a right reply.
pub struct FakeServer {
    pub port: u16,
    pub requests: Arc<AtomicUsize>,
}

/// A right reply, and where it is to come from.
pub struct Reply<'a> {
    pub packet: Packet,
    pub socket: &'a UdpSocket,
    pub client: SocketAddr,
    /// Of the request, from 0.
    pub number: usize,
}

impl Reply<'_> {
    pub fn send(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.client).expect("sent");
    }
}

impl FakeServer {
    pub fn start(mut answer: impl FnMut(Reply<'_>) + Send + 'static) -> FakeServer {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = socket.local_addr().expect("an address").port();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        // It ends with the test's process.
        std::thread::spawn(move || {
            let mut bytes = [0; 100];
            while let Ok((length, client)) = socket.recv_from(&mut bytes) {
                let now = packet::from_timestamp(realtime());
                let request = Packet::read_from_bytes(&bytes[..length]).expect("a request of 48 bytes");
                assert_eq!((request.version(), request.mode()), (4, packet::MODE_CLIENT));
                let packet = Packet {
                    flags: (4 << 3) | packet::MODE_SERVER,
                    stratum: 1,
                    poll: 0,
                    precision: -20,
                    root_delay: 0.into(),
                    root_dispersion: 0.into(),
                    reference_id: *b"TEST",
                    reference: now.into(),
                    origin: request.transmit,
                    receive: now.into(),
                    transmit: now.into(),
                };
                let number = counted.fetch_add(1, Ordering::SeqCst);
                answer(Reply { packet, socket: &socket, client, number });
            }
        });
        FakeServer { port, requests }
    }
}

/// radclockd with `--local` in a directory of its own.
pub struct Radclockd {
    pub dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Radclockd {
    /// Follows the server at `port`, polled each second. `more` goes into the configuration.
    pub fn start(address: &str, port: u16, more: &str) -> Radclockd {
        Radclockd::configured(&format!(
            "[server]\naddress = \"{address}\"\nport = {port}\npoll = 1\niburst = false\n{more}"
        ))
    }

    /// Follows several servers of 127.0.0.1, each polled each second.
    pub fn following(ports: &[u16], more: &str) -> Radclockd {
        let servers: String = ports
            .iter()
            .map(|port| format!("[[server]]\naddress = \"127.0.0.1\"\nport = {port}\npoll = 1\niburst = false\n"))
            .collect();
        Radclockd::configured(&format!("{servers}{more}"))
    }

    /// By a configuration that says nothing of where things are.
    pub fn configured(text: &str) -> Radclockd {
        let dir = tempfile::tempdir().expect("a directory");
        let text = format!("{text}\n[paths]\nrun_dir = \"{}/run\"\n", dir.path().display());
        std::fs::write(dir.path().join("radclockd.toml"), text).expect("a configuration");
        let mut daemon = Radclockd { dir, process: None };
        daemon.restart();
        daemon
    }

    pub fn restart(&mut self) {
        assert!(self.process.is_none());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log");
        let process = Command::new(RADCLOCKD)
            .args(["--local", "--log-level", "debug", "--config"])
            .arg(self.dir.path().join("radclockd.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("radclockd");
        self.process = Some(Process(process));
        wait_for("radclockd to answer", Duration::from_secs(10), || {
            let ended = self.process.as_mut()?.0.try_wait().expect("a child");
            assert!(ended.is_none(), "radclockd ended: {}", self.log());
            UnixStream::connect(self.run_dir().join("radclockd.sock")).ok()
        });
    }

    /// As `kill -9` does it.
    pub fn kill(&mut self) {
        drop(self.process.take().expect("running"));
    }

    /// As systemd does it. The daemon must end by itself.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("running");
        rustix::process::kill_process(rustix::process::Pid::from_child(&process.0), rustix::process::Signal::TERM)
            .expect("a signal");
        let status = wait_for("radclockd to end", Duration::from_secs(5), || process.0.try_wait().expect("a child"));
        assert!(status.success(), "{status}: {}", self.log());
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).expect("the log")
    }

    /// Its page, as any program opens it.
    pub fn clock(&self) -> RadClock {
        let path = self.run_dir().join("vmclock0");
        wait_for("the page", Duration::from_secs(5), || RadClock::open_path(&path).ok())
    }

    pub fn connect(&self, request: &Request) -> BufReader<UnixStream> {
        connect(&self.run_dir().join("radclockd.sock"), &serde_json::to_string(request).expect("JSON"))
    }

    pub fn status(&self) -> DaemonStatus {
        status(&mut self.connect(&Request::Status))
    }

    pub fn wait_synchronised(&self) -> RadClock {
        let clock = self.clock();
        wait_for("the clock to be synchronised", Duration::from_secs(20), || {
            clock.now().ok().filter(|reading| reading.status == Status::Synchronized)
        });
        clock
    }
}

pub fn connect(socket: &Path, request: &str) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(socket).expect("the status socket");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    writeln!(stream, "{request}").expect("sent");
    BufReader::new(stream)
}

pub fn response(reader: &mut impl BufRead) -> Response {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a response");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

pub fn status(reader: &mut impl BufRead) -> DaemonStatus {
    match response(reader) {
        Response::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

/// Reads the clock and checks it against `CLOCK_REALTIME`, which the server serves. Yields the reading and its true
/// error.
pub fn right(clock: &RadClock) -> (Reading, Span) {
    let before = realtime();
    let reading = clock.now().expect("a time");
    let after = realtime();
    assert!(
        reading.earliest() <= after && before <= reading.latest(),
        "{} with a bound of {} s, but it is {before} to {after}",
        reading.time,
        reading.max_error.as_secs_f64()
    );
    let middle = before.saturating_add(Span::from_frac(after.since(before).as_frac() / 2));
    (reading, reading.time.since(middle))
}

/// What a command says on standard error, and its exit code.
pub fn refused(arguments: &[&str], input: &str) -> (String, i32) {
    let mut child = Command::new(RADCLOCKD)
        .args(arguments)
        .args(["--log-level", "error"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("radclockd");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("sent");
    let mut error = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut error).expect("text");
    let code = child.wait().expect("a child").code().expect("an exit code");
    (error, code)
}
