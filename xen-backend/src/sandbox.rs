//! What the daemon gives up before it hears from anybody: capabilities, files (Landlock) and system calls (seccomp).
//!
//! It comes after everything has been opened that is opened once, `/dev/xen/privcmd` above all, and before the first
//! thread, because capabilities and Landlock bind the thread that gives them up and those it starts. What each restriction
//! is good for, and against whom, is in `docs/threat-model.md`. A system call that is not in the list ends the process:
//! the kernel's log then has a line with `type=1326` and its number. Where names of servers are looked up it only fails,
//! because what the C library's plug-ins call is not ours to know.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, make_bitflags,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// What the daemon goes on needing by its configuration.
#[derive(Debug)]
pub struct Needs {
    /// The directories in which it makes and removes its pages and its socket.
    pub directories: Vec<PathBuf>,
    /// The devices that it opens again and again, for reading and writing.
    pub devices: &'static [&'static str],
    /// The requests that it makes of them.
    pub ioctls: &'static [u64],
    /// PTP hardware clocks, which may go and come back under their names.
    pub clocks: bool,
    /// Names of servers to look up: the C library reads its configuration and may load libraries for that.
    pub names: bool,
}

/// Where the C library, its plug-ins and those who write `resolv.conf` keep what a name is looked up with.
const NAMES: &[&str] = &[
    "/etc",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/run/NetworkManager",
    "/run/nscd",
    "/run/resolvconf",
    "/run/systemd",
    "/var/lib/misc",
];
const DNS_PORT: u16 = 53;
/// Where a library that finds no `getrandom` to call (in a static program) has random numbers from.
const RANDOM: &[&str] = &["/dev/random", "/dev/urandom"];

/// Gives everything else up, for good.
///
/// A kernel without Landlock, or with an old one, is no error: the log says so.
///
/// # Errors
///
/// The kernel refuses, or there are threads already.
pub fn enter(needs: &Needs) -> anyhow::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    ensure!(threads == 1, "the sandbox must come before threads, but there are {threads}");
    drop_capabilities().context("cannot drop capabilities")?;
    let files = restrict_files(needs).context("cannot restrict files (Landlock)")?;
    let calls = restrict_calls(needs).context("cannot restrict system calls (seccomp)")?;
    tracing::info!("sandbox: no capabilities, {calls} system calls, {files}");
    Ok(())
}

fn drop_capabilities() -> std::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    // Only who may set capabilities has to: others can gain none.
    for capability in CapabilitySet::all().iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

/// Says what is in force, for the log.
fn restrict_files(needs: &Needs) -> anyhow::Result<&'static str> {
    let own = make_bitflags!(AccessFs::{ReadFile | WriteFile | RemoveFile | MakeReg | MakeSock | Truncate});
    let device = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
    let clock = make_bitflags!(AccessFs::{ReadFile | IoctlDev});
    let random = AccessFs::ReadFile.into();
    let readable = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let tcp = make_bitflags!(AccessNet::{BindTcp | ConnectTcp});

    let rules = needs.directories.iter().map(|path| (path.as_path(), own));
    let rules = rules.chain(needs.devices.iter().map(|path| (Path::new(path), device)));
    let rules = rules.chain(RANDOM.iter().map(|path| (Path::new(path), random)));
    let rules = rules.chain(needs.clocks.then_some((Path::new("/dev"), clock)));
    let names: &[&str] = if needs.names { NAMES } else { &[] };
    let rules = rules.chain(names.iter().map(|path| (Path::new(path), readable)));
    // What does not exist needs no rule: to open it is an error of its own.
    let rules = rules.filter_map(|(path, access)| Some(PathBeneath::new(PathFd::new(path).ok()?, access)));
    let ports = needs.names.then_some(NetPort::new(DNS_PORT, AccessNet::ConnectTcp));

    let all: BitFlags<AccessFs> = AccessFs::from_all(ABI::V5);
    let ruleset = Ruleset::default().handle_access(all)?.handle_access(tcp)?.create()?;
    let ruleset = ruleset.add_rules(rules.map(Ok::<_, RulesetError>))?;
    let status = ruleset.add_rules(ports.map(Ok::<_, RulesetError>))?.restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => "files by Landlock",
        RulesetStatus::PartiallyEnforced => "files by Landlock, as far as this kernel has it",
        RulesetStatus::NotEnforced => "files not restricted: this kernel has no Landlock",
    })
}

/// Calls that are good with any argument: memory, threads, clocks, files and sockets that are open or may be opened.
const CALLS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_access,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_chmod,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_socketpair,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// `PR_SET_VMA` of Linux's `prctl.h`: the C library gives its mappings names.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Says how many system calls are left.
fn restrict_calls(needs: &Needs) -> anyhow::Result<usize> {
    let any_of = |argument: u8, values: &[u64]| {
        let rule = |&value: &u64| {
            let length = SeccompCmpArgLen::Dword;
            SeccompRule::new(vec![SeccompCondition::new(argument, length, SeccompCmpOp::Eq, value)?])
        };
        values.iter().map(rule).collect::<Result<Vec<_>, _>>()
    };
    let masked = |argument: u8, mask: u64, value: u64| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)?;
        SeccompRule::new(vec![condition]).map(|rule| vec![rule])
    };
    let mut families = vec![libc::AF_UNIX as u64, libc::AF_INET as u64, libc::AF_INET6 as u64];
    // Which addresses this machine has decides in which order those of a name are given.
    families.extend(needs.names.then_some(libc::AF_NETLINK as u64));
    let mut ioctls = vec![libc::FIONBIO];
    ioctls.extend(needs.names.then_some(libc::FIONREAD));
    ioctls.extend(needs.ioctls);
    let thread = libc::CLONE_THREAD as u64;
    // Libraries are loaded to look up names; otherwise all code is there already.
    let code = if needs.names { 0 } else { libc::PROT_EXEC as u64 };

    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|&call| (call, Vec::new())).collect();
    calls.insert(libc::SYS_socket, any_of(0, &families)?);
    calls.insert(libc::SYS_ioctl, any_of(1, &ioctls)?);
    calls.insert(libc::SYS_prctl, any_of(0, &[libc::PR_SET_NAME as u64, PR_SET_VMA])?);
    calls.insert(libc::SYS_clone, masked(0, thread, thread)?);
    calls.insert(libc::SYS_mmap, masked(2, code, 0)?);
    calls.insert(libc::SYS_mprotect, masked(2, code, 0)?);
    // To ask for limits, not to set them.
    calls.insert(libc::SYS_prlimit64, masked(2, u64::MAX, 0)?);
    let count = calls.len();
    let other = if needs.names { SeccompAction::Errno(libc::EPERM as u32) } else { SeccompAction::KillProcess };
    let filter = SeccompFilter::new(calls, other, SeccompAction::Allow, TargetArch::x86_64)?;
    // Its flags stand in memory, where no filter sees them: as if it did not exist, so that clone() is used.
    let none = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, none, TargetArch::x86_64)?;
    for filter in [clone3, filter] {
        seccompiler::apply_filter_all_threads(&BpfProgram::try_from(filter)?)?;
    }
    Ok(count)
}
