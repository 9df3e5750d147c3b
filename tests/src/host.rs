//! A Xen host: QEMU in emulation with Xen 4.17 and a Debian Dom0. Commands go to Dom0 over ssh on loopback.
//! Two hosts can be a [`Pair`], joined by a network between which guests migrate.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::artefacts::Artefacts;
use crate::cache::RunDir;
use crate::command::{self, Background, expression};
use crate::ntp::NtpServer;
use crate::payload::Payload;
use crate::progress::Step;
use crate::wait;

/// Eagerly switched, because QEMU 7.2 lets XSAVE and XRSTOR pass while CR0.TS is set, so that Xen's lazy switching (its
/// default on AMD) hands one process's vector registers to another.
const XEN_OPTIONS: &str =
    "console=com1 com1=115200,8n1 dom0_mem=1200M,max:1200M bootscrub=0 spec-ctrl=no,eager-fpu guest_loglvl=all";
const DOM0_OPTIONS: &str = "console=hvc0 quiet net.ifnames=0 panic=-1 mitigations=off";
/// Without smap and smep, which Xen's Dom0 does not survive in QEMU 7.2; without la57, pku and pks for speed.
const CPU: &str = "max,-smap,-smep,-la57,-pku,-pks,-erms,-fsrm";
const MEMORY: &str = "4G";
/// For dozens of small guests. What is never touched costs the build machine nothing.
const LARGE_MEMORY: &str = "7G";
/// Of each of two: enough for Dom0 and a handful of guests.
const PAIR_MEMORY: &str = "2560M";
/// Of the network between two hosts, whose packets never leave the build machine: fewer of them, less emulation.
const LINK_MTU: u16 = 65_000;
/// See [`keep_interrupting`].
const INTERRUPT_EVERY: Duration = Duration::from_millis(200);
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// For a command in Dom0 that names no other limit.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// For Dom0 to sleep for a tenth of a second.
const NAP_LIMIT: Duration = Duration::from_secs(60);

/// The emulated machine gets no timer interrupts any more, so that nothing in it that waits goes on: what failed there says
/// nothing of what is tested. Holds the processor's state by QEMU.
#[derive(Debug)]
pub struct StoodStill(String);

impl fmt::Display for StoodStill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the emulated machine stands still\n{}", self.0)
    }
}

/// A running host with its NTP server. All of it ends when dropped.
pub struct Host {
    dir: PathBuf,
    master: Background,
    qemu: Background,
    ntp: Rc<NtpServer>,
}

/// Two running hosts with one NTP server, and a network between them on which the first is 10.9.0.1, the second 10.9.0.2.
///
/// They differ as machines do: in when they were booted, and in the rate of Xen's system time, see [`SECOND_RATE_PPB`].
pub struct Pair {
    /// The first.
    pub first: Host,
    /// The second.
    pub second: Host,
}

/// How fast the platform timer of a pair's second host runs, parts in 10⁹: as apart as two real ones may be.
pub const SECOND_RATE_PPB: i64 = 40_000;

/// What makes a host one of a pair.
struct Link {
    /// 1 or 2.
    number: u8,
    /// Where the sockets of both ends are.
    dir: PathBuf,
    /// How fast its platform timer runs, parts in 10⁹, and what makes it do so.
    rate: Option<(i64, PathBuf)>,
}

/// How a host is to be.
enum Form<'a> {
    /// By itself, with so much memory.
    Single(&'static str),
    /// One of a pair.
    Linked(&'a Link),
}

/// A host on its way up.
struct Booting {
    dir: PathBuf,
    qemu: Background,
    ntp: Rc<NtpServer>,
}

impl Booting {
    fn start(
        artefacts: &Artefacts,
        xen: &Path,
        payload: &Payload,
        dir: PathBuf,
        ntp: Rc<NtpServer>,
        form: &Form,
    ) -> Result<Booting> {
        let key = dir.join("key");
        let keygen =
            ["-q", "-t", "ed25519", "-N", "", "-f"].map(OsString::from).into_iter().chain([key.clone().into()]);
        command::run("ssh-keygen", &expression("ssh-keygen", keygen), COMMAND_LIMIT)?;
        let disk = payload.write_disk(artefacts, &fs::read_to_string(key.with_extension("pub"))?, &dir)?;
        // Free now; nobody else on this machine is likely to take it within the second.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        write_ssh_config(&dir, port)?;
        let qemu = start_qemu(artefacts, xen, &disk, port, &dir, form)?;
        Ok(Booting { dir, qemu, ntp })
    }

    fn finish(self, step: &Step) -> Result<Host> {
        let Booting { dir, qemu, ntp } = self;
        wait_for_dom0(&qemu, &dir, step)?;
        keep_interrupting(&dir)?;
        let master = ssh_expression(&dir, ["-M", "-N"], None).stderr_path(dir.join("ssh.log"));
        let master = Background::start("ssh", &master)?;
        let host = Host { dir, master, qemu, ntp };
        wait::until("Dom0's sshd", Duration::from_secs(60), || {
            if host.master.ended()?.is_some() {
                bail!("ssh ended:\n{}", fs::read_to_string(host.dir.join("ssh.log"))?);
            }
            Ok(host.dir.join("ssh").exists().then_some(()))
        })?;
        Ok(host)
    }
}

impl Pair {
    /// Boots two hosts at once with this hypervisor, up to Dom0s that take commands and reach each other.
    pub fn boot(artefacts: &Artefacts, xen: &Path, payload: &Payload, run: &RunDir) -> Result<Pair> {
        let step = Step::begin("Booting two hosts");
        let dirs = [run.host_dir()?, run.host_dir()?];
        let shared = dirs[0].clone();
        let ntp = Rc::new(NtpServer::start(&shared)?);
        let rates = [None, Some((SECOND_RATE_PPB, build_rate_shim(&shared)?))];
        let mut booting = Vec::new();
        for ((number, dir), rate) in (1..).zip(dirs).zip(rates) {
            let link = Link { number, dir: shared.clone(), rate };
            let form = Form::Linked(&link);
            booting.push(Booting::start(artefacts, xen, payload, dir, Rc::clone(&ntp), &form)?);
        }
        let mut hosts = booting.into_iter().map(|booting| booting.finish(&step));
        let (Some(first), Some(second)) = (hosts.next(), hosts.next()) else { unreachable!("two were started") };
        let pair = Pair { first: first?, second: second? };
        step.done();
        Ok(pair)
    }

    /// Both.
    pub fn hosts(&self) -> [&Host; 2] {
        [&self.first, &self.second]
    }

    /// The one that `host` is not.
    pub fn other(&self, host: &Host) -> &Host {
        if std::ptr::eq(host, &self.first) { &self.second } else { &self.first }
    }
}

impl Host {
    /// Boots a host, up to a Dom0 that takes commands, and starts an NTP server for it on the build machine.
    pub fn boot(artefacts: &Artefacts, payload: &Payload, run: &RunDir) -> Result<Host> {
        Host::boot_with(MEMORY, artefacts, payload, run)
    }

    /// The same with memory for dozens of small guests.
    pub fn boot_large(artefacts: &Artefacts, payload: &Payload, run: &RunDir) -> Result<Host> {
        Host::boot_with(LARGE_MEMORY, artefacts, payload, run)
    }

    fn boot_with(memory: &'static str, artefacts: &Artefacts, payload: &Payload, run: &RunDir) -> Result<Host> {
        let step = Step::begin("Booting Xen and Dom0");
        let dir = run.host_dir()?;
        let ntp = Rc::new(NtpServer::start(&dir)?);
        let form = Form::Single(memory);
        let host = Booting::start(artefacts, &artefacts.xen, payload, dir, ntp, &form)?.finish(&step)?;
        step.done();
        Ok(host)
    }

    /// Runs a shell command in Dom0 and gives its standard output. It is an error if it fails.
    pub fn run(&self, shell: &str) -> Result<String> {
        command::success(shell, &self.output(shell, COMMAND_LIMIT)?)
    }

    /// Runs a shell command in Dom0 to its end within `limit`, whatever its exit status.
    ///
    /// # Errors
    ///
    /// It does not end in time. With [`StoodStill`] if nothing that waits would.
    pub fn output(&self, shell: &str, limit: Duration) -> Result<Output> {
        let output = command::output(shell, &self.expression(shell), limit);
        if output.is_err() {
            wait::check()?;
            let nap = "sleep 0.1";
            if command::output(nap, &self.expression(nap), NAP_LIMIT).is_err() {
                let registers = self.ask_qemu("info lapic\ninfo registers\n");
                return output.context(StoodStill(registers.unwrap_or_else(|error| error.to_string())));
            }
        }
        output
    }

    /// What QEMU's monitor answers.
    fn ask_qemu(&self, commands: &str) -> std::io::Result<String> {
        let mut monitor = UnixStream::connect(self.dir.join("monitor"))?;
        monitor.set_read_timeout(Some(Duration::from_secs(2)))?;
        monitor.write_all(commands.as_bytes())?;
        let mut answer = Vec::new();
        match monitor.read_to_end(&mut answer) {
            // It keeps the connection.
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            // Without the echo of what was asked, which it edits as it comes.
            _ => Ok(String::from_utf8_lossy(&answer)
                .lines()
                .filter(|line| !line.contains('\x1b'))
                .collect::<Vec<_>>()
                .join("\n")),
        }
    }

    /// A shell command in Dom0, not yet started.
    pub fn expression(&self, shell: &str) -> duct::Expression {
        ssh_expression(&self.dir, [], Some(shell))
    }

    /// Writes a file in Dom0.
    pub fn write(&self, path: &str, content: impl Into<Vec<u8>>) -> Result<()> {
        let cat = format!("cat > {}", shlex::try_quote(path)?);
        let arguments = ssh_arguments(&self.dir, [], Some(&cat));
        let expression = command::reading("ssh", arguments, content);
        command::run(&cat, &expression, COMMAND_LIMIT).map(drop)
    }

    /// What Xen and Dom0's kernel said on the serial line.
    pub fn console_log(&self) -> Result<String> {
        console_log(&self.dir)
    }

    /// The NTP server: Dom0 reaches it as 10.0.2.2 on this port.
    pub fn ntp_port(&self) -> u16 {
        self.ntp.port()
    }

    /// QEMU's process id on the build machine.
    pub fn qemu_pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Stands still for so long, as under a build machine that has no time for it. Its timers and TSC go on.
    pub fn hold_up(&self, duration: Duration) -> Result<()> {
        let qemu = Pid::from_raw(self.qemu_pid() as i32);
        kill(qemu, Signal::SIGSTOP)?;
        let held = wait::pass(duration);
        kill(qemu, Signal::SIGCONT)?;
        held
    }

    /// For a person: `ssh -F` this file `dom0`.
    pub fn ssh_config(&self) -> PathBuf {
        self.dir.join("ssh_config")
    }

    /// An interactive shell in Dom0 on this process's terminal. Returns when it ends.
    pub fn shell(&self) -> Result<()> {
        std::process::Command::new("ssh").arg("-F").arg(self.ssh_config()).args(["-t", "dom0"]).status()?;
        Ok(())
    }
}

fn wait_for_dom0(qemu: &Background, dir: &Path, step: &Step) -> Result<()> {
    let booted = wait::until("Dom0", BOOT_LIMIT, || {
        if qemu.ended()?.is_some() {
            bail!("QEMU ended:\n{}", fs::read_to_string(dir.join("qemu.log"))?);
        }
        let log = console_log(dir)?;
        step.detail(log.lines().last().unwrap_or_default());
        Ok(log.contains("lab: ready").then_some(()))
    });
    booted.with_context(|| {
        let log = console_log(dir).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the host does not boot; its last words:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    })
}

/// Whether Xen on one of the hosts with a folder in `run` found that its timers had not gone off for a turn of the platform timer,
/// 43 s.
pub fn any_stood_still(run: &Path) -> Result<bool> {
    for host in fs::read_dir(run)? {
        let log = console_log(&host?.path()).unwrap_or_default();
        if log.contains("Platform timer appears to have unexpectedly wrapped") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn console_log(dir: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(dir.join("console.log"))?).replace('\r', ""))
}

/// Builds what gives QEMU a timer with a rate of its own.
fn build_rate_shim(dir: &Path) -> Result<PathBuf> {
    let (source, shim) = (dir.join("rate.c"), dir.join("rate.so"));
    fs::write(&source, include_str!("../qemu/rate.c"))?;
    let arguments = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"].map(OsString::from);
    let arguments = arguments.into_iter().chain([shim.clone().into(), source.into()]);
    command::run("cc", &expression("cc", arguments), COMMAND_LIMIT)?;
    Ok(shim)
}

fn start_qemu(
    artefacts: &Artefacts,
    xen: &Path,
    disk: &Path,
    port: u16,
    dir: &Path,
    form: &Form,
) -> Result<Background> {
    let show = |path: &Path| path.display().to_string();
    let log = dir.join("console.log");
    File::create(&log)?;
    let (memory, link, dom0_options) = match form {
        Form::Single(memory) => (*memory, None, DOM0_OPTIONS.to_owned()),
        Form::Linked(link) => (PAIR_MEMORY, Some(*link), format!("{DOM0_OPTIONS} lab_host={}", link.number)),
    };
    let mut arguments = vec![
        "-nodefaults".to_owned(),
        "-display".to_owned(),
        "none".to_owned(),
        "-no-reboot".to_owned(),
        // The memory is shared so that the lab can look for a probe's page in it.
        "-machine".to_owned(),
        "pc,memory-backend=ram".to_owned(),
        "-object".to_owned(),
        format!("memory-backend-memfd,id=ram,size={memory},share=on"),
        "-m".to_owned(),
        memory.to_owned(),
        // With a second CPU Xen compares their TSCs each second, and is milliseconds wrong whenever the build machine has
        // not kept both running just then.
        "-smp".to_owned(),
        "1".to_owned(),
        "-cpu".to_owned(),
        CPU.to_owned(),
        "-nic".to_owned(),
        format!("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:22"),
        "-drive".to_owned(),
        format!("file={},if=virtio,format=raw,snapshot=on", show(&artefacts.root)),
        "-drive".to_owned(),
        format!("file={},if=virtio,format=raw,readonly=on", show(disk)),
        "-monitor".to_owned(),
        format!("unix:{},server,nowait", show(&dir.join("monitor"))),
        "-chardev".to_owned(),
        format!("socket,id=com1,path={},server=on,wait=off,logfile={}", show(&dir.join("com1")), show(&log)),
        "-serial".to_owned(),
        "chardev:com1".to_owned(),
        "-kernel".to_owned(),
        show(xen),
        "-append".to_owned(),
        XEN_OPTIONS.to_owned(),
        "-initrd".to_owned(),
        format!("{} {dom0_options},{}", show(&artefacts.kernel), show(&artefacts.initramfs)),
    ];
    if let Some(link) = link {
        let end = |number| link.dir.join(format!("link{number}")).display().to_string();
        let (here, there) = (end(link.number), end(3 - link.number));
        arguments.extend([
            "-netdev".to_owned(),
            format!("dgram,id=link,local.type=unix,local.path={here},remote.type=unix,remote.path={there}"),
            "-device".to_owned(),
            format!("virtio-net-pci,netdev=link,mac=52:54:00:00:09:{:02x},host_mtu={LINK_MTU}", link.number),
        ]);
    }
    let mut qemu = expression("qemu-system-x86_64", arguments).env("TMPDIR", dir);
    if let Some((rate, shim)) = link.and_then(|link| link.rate.as_ref()) {
        qemu = qemu.env("LD_PRELOAD", shim).env("LAB_RATE_PPB", rate.to_string());
    }
    Background::start("QEMU", &qemu.stderr_to_stdout().stdout_path(dir.join("qemu.log")))
}

/// Has the serial line interrupt the emulated machine a few times a second, as long as there is one.
///
/// QEMU 7.2 loses an interrupt now and then. If it is that of Xen's timer, nothing in the emulated machine that waits goes on until
/// another interrupt comes, for minutes perhaps. What was seen, and what is thought to be the reason, is in docs/lab.md.
fn keep_interrupting(dir: &Path) -> Result<()> {
    let mut line = UnixStream::connect(dir.join("com1"))?;
    let mut said = line.try_clone()?;
    // Xen is to take what comes by itself, not to leave it to a Dom0 that waits.
    line.write_all(b"\x01\x01\x01")?;
    thread::spawn(move || {
        // A key that means nothing to Xen.
        while line.write_all(b" ").is_ok() {
            thread::sleep(INTERRUPT_EVERY);
        }
    });
    // It is in the log; who does not take it has some of it come there twice.
    thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    Ok(())
}

fn write_ssh_config(dir: &Path, port: u16) -> Result<()> {
    let lines = [
        "Host dom0".to_owned(),
        "HostName 127.0.0.1".to_owned(),
        format!("Port {port}"),
        "User root".to_owned(),
        format!("IdentityFile {}", dir.join("key").display()),
        "IdentitiesOnly yes".to_owned(),
        format!("ControlPath {}", dir.join("ssh").display()),
        "StrictHostKeyChecking no".to_owned(),
        "UserKnownHostsFile /dev/null".to_owned(),
        "LogLevel ERROR".to_owned(),
        "ConnectTimeout 60".to_owned(),
    ];
    Ok(fs::write(dir.join("ssh_config"), lines.join("\n") + "\n")?)
}

fn ssh_expression<const N: usize>(dir: &Path, options: [&str; N], shell: Option<&str>) -> duct::Expression {
    expression("ssh", ssh_arguments(dir, options, shell))
}

fn ssh_arguments<const N: usize>(dir: &Path, options: [&str; N], shell: Option<&str>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-F".into(), dir.join("ssh_config").into()];
    arguments.extend(options.map(OsString::from));
    arguments.push("dom0".into());
    arguments.extend(shell.map(OsString::from));
    arguments
}
