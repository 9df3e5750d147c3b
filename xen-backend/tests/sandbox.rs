//! What the daemon gave up is refused to it. The sandbox is for good and comes before threads, so each deed is done by a process
//! of its own, which is this program again, without a harness.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::{env, io};

use xen_backend::sandbox::{self, Needs};

/// Names the deed, in the process that does it.
const DEED: &str = "SANDBOX_DEED";
/// Where the process may do what it likes; beside it, where it may not.
const OWN: &str = "SANDBOX_OWN";
/// The exit status of a deed that the kernel has refused.
const DENIED: i32 = 13;
/// The first of Landlock's versions with rules for TCP.
const LANDLOCK_TCP: i64 = 4;

fn main() {
    if let Ok(deed) = env::var(DEED) {
        let own = PathBuf::from(env::var_os(OWN).expect("given with the deed"));
        let status = match in_sandbox(&deed, &own) {
            Ok(()) => 0,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => DENIED,
            Err(error) => panic!("{deed}: {error}"),
        };
        std::process::exit(status);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let own = dir.path().join("own");
    fs::create_dir(&own).expect("a directory");
    fs::write(dir.path().join("other"), "another's").expect("a file");
    let outcome = |deed: &str| {
        let this = env::current_exe().expect("this program");
        let status = Command::new(this).env(DEED, deed).env(OWN, &own).status().expect("a process");
        println!("{deed}: {status}");
        status
    };
    let is_denied = |status: ExitStatus| status.code() == Some(DENIED);
    for deed in ["write own", "read own", "remove own", "device", "UDP"] {
        assert!(outcome(deed).success(), "{deed}");
    }
    // SAFETY: it reads nothing and only tells the version.
    let landlock = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) };
    if landlock > 0 {
        for deed in ["read another's", "write another's", "remove another's", "another device", "passwords"] {
            assert!(is_denied(outcome(deed)), "{deed}");
        }
    } else {
        println!("this kernel has no Landlock: files were not looked at");
    }
    if landlock >= LANDLOCK_TCP {
        assert!(is_denied(outcome("TCP")), "TCP");
    }
    assert_eq!(outcome("run").signal(), Some(libc::SIGSYS), "a program was run");
}

fn in_sandbox(deed: &str, own: &Path) -> io::Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?;
    let needs =
        Needs { directories: vec![own.to_owned()], devices: &["/dev/null"], ioctls: &[], clocks: false, names: false };
    sandbox::enter(&needs).map_err(io::Error::other)?;
    let (mine, other) = (own.join("mine"), own.with_file_name("other"));
    match deed {
        "write own" => fs::write(mine, "mine"),
        "read own" => fs::read(mine).map(drop),
        "remove own" => fs::remove_file(mine),
        "device" => File::open("/dev/null").map(drop),
        "UDP" => UdpSocket::bind("127.0.0.1:0").map(drop),
        "read another's" => fs::read(other).map(drop),
        "write another's" => fs::write(own.with_file_name("new"), "mine"),
        "remove another's" => fs::remove_file(other),
        "another device" => File::open("/dev/zero").map(drop),
        "passwords" => fs::read("/etc/shadow").map(drop),
        "TCP" => TcpStream::connect(port.local_addr()?).map(drop),
        "run" => Command::new("/bin/true").status().map(drop),
        other => panic!("no deed {other}"),
    }
}
