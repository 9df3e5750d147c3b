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
/// Ends the name of a deed that is done where servers are given by name.
const WITH_NAMES: &str = ", with names";
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
    for deed in ["run", "fork", "trace", "netlink", "raw socket", "code", "foreign ioctl"] {
        assert_eq!(outcome(deed).signal(), Some(libc::SIGSYS), "{deed}");
    }
    // Names are looked up by plug-ins, which may try what is not allowed; they load code, and ask which addresses there are.
    for deed in ["run", "fork", "trace", "raw socket", "foreign ioctl"] {
        assert!(is_denied(outcome(&format!("{deed}{WITH_NAMES}"))), "{deed}, with names");
    }
    for deed in ["netlink", "code"] {
        assert!(outcome(&format!("{deed}{WITH_NAMES}")).success(), "{deed}, with names");
    }
}

fn in_sandbox(deed: &str, own: &Path) -> io::Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?;
    let (deed, names) = deed.strip_suffix(WITH_NAMES).map_or((deed, false), |deed| (deed, true));
    let needs = Needs { directories: vec![own.to_owned()], devices: &["/dev/null"], ioctls: &[], clocks: false, names };
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
        // SAFETY: the child, if there is one, ends at once.
        "fork" => match unsafe { libc::syscall(libc::SYS_fork) } {
            0 => std::process::exit(0),
            pid => checked(pid),
        },
        // SAFETY: it takes no pointer.
        "trace" => checked(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0) }),
        "netlink" => socket(libc::AF_NETLINK, libc::SOCK_RAW),
        "raw socket" => socket(libc::AF_PACKET, libc::SOCK_RAW),
        "code" => {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: new memory, which nobody uses.
            checked(unsafe { libc::syscall(libc::SYS_mmap, 0, 4096, protection, flags, -1, 0) })
        }
        // SAFETY: the argument is there to be written.
        "foreign ioctl" => checked(unsafe { libc::syscall(libc::SYS_ioctl, 0, libc::TIOCGWINSZ, &mut [0u16; 4]) }),
        other => panic!("no deed {other}"),
    }
}

fn socket(family: i32, kind: i32) -> io::Result<()> {
    // SAFETY: it takes no pointer.
    checked(unsafe { libc::syscall(libc::SYS_socket, family, kind, 0) })
}

/// What a system call returned.
fn checked(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
