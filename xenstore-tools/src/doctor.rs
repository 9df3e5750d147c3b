//! What is missing, on a host, in a guest, or on a machine without Xen, and what to do about it.
//!
//! Each check stands alone and goes on where the one before failed, so that one run shows everything. What it looks
//! at lies below a root directory, `/` but in tests.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use memmap2::{MmapOptions, MmapRaw};
use radclock::clock::Status;
use radclock::ensemble::Standing;
use radclock::page::{CounterId, PAGE_SIZE};
use radclock::reader::{self, Reading};
use radclock::report::{DaemonStatus, ServerReport};
use radclock::seqcount::SharedPage;
use radclock::stamp::StampSource;
use radclock::time::Counter;
use serde::Serialize;

use crate::daemon::Daemon;
use crate::store;

const CONFIG: &str = "/etc/radclock/radclockd.toml";

/// Where this is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The domain in control of a Xen host.
    Dom0,
    /// Another domain.
    Guest,
    /// No Xen below.
    Machine,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could, or not for everybody.
    Warning,
    /// Does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it is.
    pub level: Level,
    /// In words.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// Where this is running.
    pub place: Place,
    /// Nothing is a problem.
    pub ok: bool,
    /// In the order of what rests on what.
    pub checks: Vec<Check>,
}

impl Check {
    fn ok(name: impl Into<String>, message: impl Into<String>) -> Check {
        Check { name: name.into(), level: Level::Ok, message: message.into(), advice: None }
    }

    fn bad(name: impl Into<String>, level: Level, message: impl Into<String>, advice: impl Into<String>) -> Check {
        Check { name: name.into(), level, message: message.into(), advice: Some(advice.into()) }
    }

    fn problem(name: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) -> Check {
        Check::bad(name, Level::Problem, message, advice)
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Dom0 => "Dom0 of a Xen host",
            Place::Guest => "a guest of Xen",
            Place::Machine => "a machine without Xen",
        };
        writeln!(f, "this is {place}")?;
        for check in &self.checks {
            let level = match check.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Problem => "PROBLEM",
            };
            writeln!(f, "{level:7}  {}: {}", check.name, check.message)?;
            if let Some(advice) = &check.advice {
                writeln!(f, "         do: {advice}")?;
            }
        }
        Ok(())
    }
}

/// Looks at everything that matters here.
pub fn examine(daemon: &Daemon) -> Diagnosis {
    let root = Path::new("/");
    let place = place(root);
    let checks = match place {
        Place::Dom0 => {
            let mut checks = vec![privileges()];
            checks.extend(devices(root));
            checks.push(xenstore());
            checks.extend(service(daemon, place));
            checks
        }
        Place::Guest => guest(root),
        Place::Machine => service(daemon, place),
    };
    Diagnosis { place, ok: checks.iter().all(|check| check.level != Level::Problem), checks }
}

fn place(root: &Path) -> Place {
    let xen = fs::read_to_string(root.join("sys/hypervisor/type")).is_ok_and(|kind| kind.trim_end() == "xen");
    let control = fs::read_to_string(root.join("proc/xen/capabilities")).is_ok_and(|text| text.contains("control_d"));
    // The kernel has it in Dom0 only, whether or not xenfs is mounted.
    let backends = root.join("dev/xen/xenbus_backend").exists();
    match (xen, control || backends) {
        (false, _) => Place::Machine,
        (true, true) => Place::Dom0,
        (true, false) => Place::Guest,
    }
}

fn privileges() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("privileges", "root")
    } else {
        Check::problem(
            "privileges",
            "not root: what follows cannot be told from missing privileges",
            "run radclock-ctl doctor as root",
        )
    }
}

fn devices(root: &Path) -> Vec<Check> {
    [("privcmd", "xen-privcmd"), ("hypercall", "xen-privcmd"), ("gntalloc", "xen-gntalloc"), ("evtchn", "xen-evtchn")]
        .map(|(device, module)| {
            let name = format!("/dev/xen/{device}");
            let path = root.join("dev/xen").join(device);
            match OpenOptions::new().read(true).write(true).open(path) {
                Ok(_) => Check::ok(name, "there"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Check::problem(
                    name,
                    "missing",
                    format!("modprobe {module}; for the next boot: echo {module} > /etc/modules-load.d/{module}.conf"),
                ),
                Err(error) => {
                    Check::problem(name, format!("cannot be opened: {error}"), "run as root, outside containers")
                }
            }
        })
        .into()
}

fn xenstore() -> Check {
    match store::check() {
        Ok(()) => Check::ok("XenStore", "answers"),
        Err(error) => Check::problem(
            "XenStore",
            error.to_string(),
            "start xenstored (systemctl start xenstored, or on Debian: service xen start), and run this as root",
        ),
    }
}

/// The daemon, its clock and its guests.
fn service(daemon: &Daemon, place: Place) -> Vec<Check> {
    let status = match daemon.status() {
        Ok(status) => status,
        Err(error) => {
            let advice = match place {
                Place::Machine => "start it here with: radclockd --local",
                _ => "see why: journalctl -u radclockd; try the configuration: radclockd --check-config",
            };
            let mut message = format!("{error:#}");
            if place == Place::Machine {
                // The unit starts in Dom0 only.
                message = message.replace(": systemctl start radclockd", "");
            }
            return vec![Check::problem("radclockd", message, advice)];
        }
    };
    let mut checks = vec![version(&status)];
    if place == Place::Dom0 && !status.xen {
        checks.push(Check::problem(
            "guests",
            "radclockd runs with --local, so guests get nothing",
            "start it without --local",
        ));
    }
    checks.extend(servers(&status.servers));
    checks.push(synchronisation(&status));
    // Before that it says nothing but that it is not synchronised.
    if status.clock.status.is_readable() {
        checks.push(page(&daemon.run_dir().join("vmclock0"), "start radclockd anew"));
    }
    if status.xen {
        checks.push(guests(&status));
    }
    checks
}

fn version(status: &DaemonStatus) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    let message = format!("version {}, process {}, counting by {}", status.version, status.pid, status.counter);
    if status.version == own {
        Check::ok("radclockd", message)
    } else {
        let advice = format!("this is radclock-ctl {own}: install both of one version");
        Check::bad("radclockd", Level::Warning, message, advice)
    }
}

/// One that is of no use is no problem as long as another one makes the clock.
fn servers(servers: &[ServerReport]) -> impl Iterator<Item = Check> {
    let makes_the_clock = |server: &ServerReport| server.reach != 0 && server.standing == Standing::Truechimer;
    let useless = if servers.iter().any(makes_the_clock) { Level::Warning } else { Level::Problem };
    servers.iter().map(move |report| server(report, useless))
}

fn server(server: &ServerReport, useless: Level) -> Check {
    let name = format!("server {}", server.name);
    let problem = server.last_error.as_deref();
    if server.reach == 0 {
        return Check::bad(
            name,
            useless,
            problem.unwrap_or("no answer yet"),
            format!("check the server's name in {CONFIG}, and that UDP to its port gets through"),
        );
    }
    if server.standing == Standing::Silent {
        return Check::bad(
            name,
            useless,
            problem.unwrap_or("answers, but nothing that could be used for a while"),
            format!("see with another tool whether it is right; if not, tell who keeps it, or take it out of {CONFIG}"),
        );
    }
    if server.standing == Standing::Falseticker {
        return Check::bad(
            name,
            Level::Warning,
            match server.offset_s {
                Some(offset) => format!("contradicts the majority by {:.6} s: not followed", offset.abs()),
                None => "contradicts the majority: not followed".into(),
            },
            format!("tell who keeps it, or take it out of {CONFIG}"),
        );
    }
    if server.stamps == Some(StampSource::User) {
        return Check::bad(
            name,
            Level::Warning,
            "answers, but the kernel does not stamp the packets, so the bound is wider",
            "use a network interface whose driver stamps packets (ethtool -T)",
        );
    }
    match server.rtt_s {
        Some(rtt) => Check::ok(name, format!("answers within {:.0} µs", rtt * 1e6)),
        None => Check::ok(name, "answers"),
    }
}

fn synchronisation(status: &DaemonStatus) -> Check {
    let clock = &status.clock;
    let name = "clock";
    match clock.status {
        Status::Synchronized => match clock.max_error_ns {
            Some(error) => Check::ok(name, format!("synchronized to within {:.1} µs", error as f64 / 1000.0)),
            None => Check::ok(name, "synchronized"),
        },
        _ if clock.problem.is_some() => Check::problem(
            name,
            format!("{}: {}", clock.status, clock.problem.as_deref().unwrap_or_default()),
            "add servers, so that a majority can be right; radclock-ctl servers shows what each says",
        ),
        Status::Freerunning => Check::problem(
            name,
            match clock.age_s {
                Some(age) => format!("free-running: its parameters are {age:.0} s old"),
                None => "free-running".into(),
            },
            "see what is wrong with its servers",
        ),
        Status::Initializing => {
            Check::problem(name, "not synchronized yet", "wait a minute; if it stays so, see to its servers")
        }
        Status::Unknown | Status::Unreliable => {
            Check::problem(name, "unreliable", "see the daemon's log: journalctl -u radclockd")
        }
    }
}

fn guests(status: &DaemonStatus) -> Check {
    let attached = status.guests.iter().filter(|guest| guest.attached);
    let (connected, waiting): (Vec<_>, Vec<_>) = attached.partition(|guest| guest.backend_state == "Connected");
    let message = format!("{} of {} connected", connected.len(), connected.len() + waiting.len());
    if waiting.is_empty() {
        return Check::ok("guests", message);
    }
    let names: Vec<&str> = waiting.iter().map(|guest| guest.name.as_str()).collect();
    Check::bad(
        "guests",
        Level::Warning,
        format!("{message}, without a driver: {}", names.join(", ")),
        "in these guests: modprobe xen-radclockfront; radclock status there says whether they have the clock",
    )
}

fn guest(root: &Path) -> Vec<Check> {
    const DRIVER: &str = "xen-radclockfront";
    let mut checks = Vec::new();
    let device = root.join("sys/bus/xen/devices/radclock-0");
    let loaded = root.join("sys/module/xen_radclockfront").exists();
    checks.push(if loaded {
        Check::ok("driver", "loaded")
    } else {
        Check::problem(
            "driver",
            format!("{DRIVER} is not loaded"),
            format!("modprobe {DRIVER}; if there is no such module, install it with DKMS (README)"),
        )
    });
    if device.exists() {
        let state = fs::read_to_string(device.join("state")).unwrap_or_default();
        checks.push(match state.trim_end() {
            "Connected" => Check::ok("device", "connected"),
            // Kernels before 5.10 do not say.
            "" => Check::ok("device", "offered by Dom0"),
            "Closed" => Check::problem(
                "device",
                "taken away by Dom0",
                "in Dom0: radclock-ctl list; systemctl start radclockd or radclock-ctl attach",
            ),
            other => Check::bad(
                "device",
                Level::Warning,
                format!("offered by Dom0, {other}"),
                format!("load {DRIVER}; then see dmesg, and radclock-ctl list in Dom0"),
            ),
        });
    } else {
        checks.push(Check::problem(
            "device",
            "Dom0 does not offer its clock to this guest",
            "in Dom0: systemctl start radclockd, then radclock-ctl attach",
        ));
    }
    let path = root.join("dev/vmclock0");
    match fs::metadata(&path) {
        Ok(metadata) if metadata.permissions().mode() & 0o004 == 0 => checks.push(Check::bad(
            "permissions",
            Level::Warning,
            "/dev/vmclock0 is not readable by everybody",
            "chmod a+r /dev/vmclock0, and see what udev rule took it away",
        )),
        Ok(_) => checks.push(Check::ok("permissions", "everybody may read /dev/vmclock0")),
        // The page's own check says that it is missing.
        Err(_) => {}
    }
    checks.push(page(&path, &format!("load {DRIVER}; in Dom0, radclock-ctl doctor says what is wrong there")));
    checks
}

/// Reads the time from a page as any program would.
fn page(path: &Path, advice: &str) -> Check {
    let name = path.display().to_string();
    match read_page(path) {
        Ok((reading, error_ns)) if reading.status == Status::Synchronized => {
            Check::ok(name, format!("{} ± {:.1} µs", reading.time, error_ns as f64 / 1000.0))
        }
        Ok((reading, error_ns)) => Check::bad(
            name,
            Level::Warning,
            format!("free-running: {} ± {:.1} µs", reading.time, error_ns as f64 / 1000.0),
            advice,
        ),
        Err(error) => Check::problem(name, format!("{error:#}"), advice),
    }
}

fn read_page(path: &Path) -> anyhow::Result<(Reading, i64)> {
    let file = File::open(path)?;
    // Beyond the end of a file a mapping cannot be read; a device has no length.
    let metadata = file.metadata()?;
    anyhow::ensure!(!metadata.is_file() || metadata.len() >= PAGE_SIZE as u64, "shorter than a page");
    let mapping: MmapRaw = MmapOptions::new().len(PAGE_SIZE).map_raw_read_only(&file)?;
    // SAFETY: a whole page, aligned as mmap does, mapped for reading until the end of this function; only read.
    let page = unsafe { SharedPage::from_ptr(mapping.as_ptr()) };
    let id = CounterId(page.snapshot()?.abi.counter_id);
    let reading = match id {
        CounterId::MONOTONIC_RAW => reader::read(page, id, monotonic_raw),
        _ => reader::read(page, CounterId::X86_TSC, tsc),
    }?;
    Ok((reading, reading.max_error.ceil_nanos()))
}

fn tsc() -> Counter {
    // SAFETY: every x86-64 processor has it.
    Counter(unsafe { core::arch::x86_64::_rdtsc() })
}

fn monotonic_raw() -> Counter {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
    Counter(now.tv_sec as u64 * radclock::time::NANOS_PER_SEC + now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use radclock::clock::{Clock, Period};
    use radclock::page::{Content, Flags, Page};
    use radclock::time::Timestamp;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::guests::tests::status;

    fn write(root: &Path, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(&path, content).expect("a file");
        path
    }

    fn levels(checks: &[Check]) -> Vec<(&str, Level)> {
        checks.iter().map(|check| (check.name.as_str(), check.level)).collect()
    }

    /// A page that is right for this machine just now.
    fn good_page() -> Page {
        Page::new(&Content {
            counter_id: CounterId::MONOTONIC_RAW,
            status: Status::Synchronized,
            clock: Some(Clock {
                counter: monotonic_raw(),
                time: Timestamp::from_unix(1_795_000_000, 0),
                period: Period::from_secs_f64(1e-9).expect("a period"),
                period_max_error: 1 << 40,
                max_error_nanos: 1000,
            }),
            disruption_marker: 0,
            disruption: Flags::empty(),
            tai_offset: None,
            leap_indicator: 0,
            host_id: [7; 16],
            generation: 1,
            valid_nanos: 1_000_000_000_000,
        })
    }

    #[test]
    fn the_place_is_what_the_kernel_says() {
        let root = tempfile::tempdir().expect("a directory");
        assert_eq!(place(root.path()), Place::Machine);
        write(root.path(), "sys/hypervisor/type", "xen\n");
        assert_eq!(place(root.path()), Place::Guest);
        write(root.path(), "proc/xen/capabilities", "control_d\n");
        assert_eq!(place(root.path()), Place::Dom0);
    }

    #[test]
    fn a_missing_device_names_its_module() {
        let root = tempfile::tempdir().expect("a directory");
        for device in ["privcmd", "hypercall", "evtchn"] {
            write(root.path(), &format!("dev/xen/{device}"), "");
        }
        let checks = devices(root.path());
        let bad: Vec<_> = checks.iter().filter(|check| check.level != Level::Ok).collect();
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].name, "/dev/xen/gntalloc");
        assert!(bad[0].advice.as_ref().expect("advice").contains("modprobe xen-gntalloc"));
    }

    #[test]
    fn a_guest_without_anything_is_told_all_of_it() {
        let root = tempfile::tempdir().expect("a directory");
        let checks = guest(root.path());
        assert!(checks.iter().all(|check| check.level == Level::Problem && check.advice.is_some()));
        assert_eq!(checks.len(), 3);
    }

    #[test]
    fn a_guest_with_everything_is_well() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("sys/module/xen_radclockfront")).expect("a directory");
        write(root.path(), "sys/bus/xen/devices/radclock-0/state", "Connected\n");
        let page = write(root.path(), "dev/vmclock0", good_page().as_bytes());
        assert_eq!(levels(&guest(root.path())).iter().filter(|(_, level)| *level == Level::Ok).count(), 4);

        write(root.path(), "sys/bus/xen/devices/radclock-0/state", "Closed\n");
        assert!(levels(&guest(root.path())).contains(&("device", Level::Problem)));

        fs::set_permissions(page, fs::Permissions::from_mode(0o600)).expect("permissions");
        assert!(levels(&guest(root.path())).contains(&("permissions", Level::Warning)));
    }

    #[test]
    fn a_page_that_cannot_be_used_is_a_problem() {
        let root = tempfile::tempdir().expect("a directory");
        for content in [&[][..], &[0; PAGE_SIZE][..], &good_page().as_bytes()[..100]] {
            let path = write(root.path(), "page", content);
            assert_eq!(page(&path, "").level, Level::Problem);
        }
        let mut unreliable = good_page();
        unreliable.abi.clock_status = Status::Unreliable as u8;
        assert_eq!(page(&write(root.path(), "page", unreliable.as_bytes()), "").level, Level::Problem);
        assert_eq!(page(&write(root.path(), "page", good_page().as_bytes()), "").level, Level::Ok);
    }

    #[test]
    fn a_silent_server_and_a_clock_without_one_are_problems() {
        let mut status = status();
        assert_eq!(synchronisation(&status).level, Level::Ok);
        status.clock.status = Status::Freerunning;
        assert_eq!(synchronisation(&status).message, "free-running: its parameters are 3 s old");
        let mut silent = ServerReport::unheard("ntp.example:123".into(), 16.0);
        silent.last_error = Some("no such host".into());
        let check = server(&silent, Level::Problem);
        assert_eq!((check.level, check.message.as_str()), (Level::Problem, "no such host"));
    }

    #[test]
    fn a_useless_server_is_a_problem_where_no_other_makes_the_clock() {
        let levels = |reports: &[ServerReport]| servers(reports).map(|check| check.level).collect::<Vec<_>>();
        let good =
            ServerReport { reach: 1, standing: Standing::Truechimer, ..ServerReport::unheard("good:123".into(), 16.0) };
        let refused = ServerReport { standing: Standing::Silent, ..good.clone() };
        let gone = ServerReport { reach: 0, ..refused.clone() };
        let lost = ServerReport { reach: 0, ..good.clone() };
        assert_eq!(levels(&[good.clone(), refused.clone(), gone]), [Level::Ok, Level::Warning, Level::Warning]);
        assert_eq!(levels(&[lost, refused]), [Level::Problem, Level::Problem]);
    }

    #[test]
    fn a_guest_without_a_driver_is_named() {
        let check = guests(&status());
        assert_eq!(check.level, Level::Warning);
        assert!(check.message.contains("2 of 3 connected, without a driver: web"), "{}", check.message);
    }
}
