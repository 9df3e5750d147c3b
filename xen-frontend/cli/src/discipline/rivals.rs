//! Who else adjusts the clock: another one of us, or another time daemon.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held for as long as the service runs.
pub const LOCK: &str = "/run/radclock-discipline.lock";

/// Programs that adjust the clock, by the name that the kernel has of them, which ends after 15 bytes.
const RIVALS: &[(&str, &str)] = &[
    ("chronyd", "chronyd"),
    ("ntpd", "ntpd"),
    ("ntp-daemon", "ntpd-rs"),
    ("systemd-timesyn", "systemd-timesyncd"),
    ("phc2sys", "phc2sys"),
    ("ptpd", "ptpd"),
    ("ptpd2", "ptpd"),
];

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one of us has it.
    #[error("another radclock discipline runs already (it holds {LOCK}); stop it first")]
    Held,
    /// The file cannot be used.
    #[error("cannot lock {LOCK}: {0}; run it as root")]
    Io(io::Error),
}

/// Takes the lock.
pub fn lock() -> Result<Flock<File>, LockError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(LOCK).map_err(LockError::Io)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Held),
        Err((_, error)) => Err(LockError::Io(error.into())),
    }
}

/// Another time daemon that runs here: its name and process id.
pub fn running() -> Option<(&'static str, u32)> {
    running_in(Path::new("/proc"))
}

fn running_in(proc: &Path) -> Option<(&'static str, u32)> {
    let processes = fs::read_dir(proc).ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        // A process that has ended meanwhile is none.
        let name = fs::read_to_string(proc.join(format!("{pid}/comm"))).ok()?;
        let (_, program) = RIVALS.iter().find(|(comm, _)| *comm == name.trim_end())?;
        let arguments = fs::read(proc.join(format!("{pid}/cmdline"))).ok()?;
        // `chronyd -x` does not touch the clock. A zombie has no arguments.
        let harmless = *program == "chronyd" && arguments.split(|byte| *byte == 0).any(|argument| argument == b"-x");
        (!harmless && !arguments.is_empty()).then_some((*program, pid))
    })
    .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_daemons_are_found_by_their_name() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, comm: &str, arguments: &str| {
            let dir = proc.path().join(pid.to_string());
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
            fs::write(dir.join("cmdline"), arguments.replace(' ', "\0")).unwrap();
        };
        process(1, "systemd", "/sbin/init ");
        process(300, "chronyd", "/usr/sbin/chronyd -x -d ");
        process(301, "ntpd", "");
        fs::create_dir(proc.path().join("self")).unwrap();
        assert_eq!(running_in(proc.path()), None);
        process(302, "systemd-timesyn", "/lib/systemd/systemd-timesyncd ");
        assert_eq!(running_in(proc.path()), Some(("systemd-timesyncd", 302)));
    }
}
