//! What the kernel says of this boot of the host.

use std::io;

/// Where Linux keeps a random number that is new at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// 16 random bytes, new at each boot of the host, the same for each run of the daemon.
pub fn host_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string(BOOT_ID)
        .map_err(|error| io::Error::new(error.kind(), format!("{BOOT_ID}: {error}; is /proc mounted?")))?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{BOOT_ID}: not a UUID")))
}

/// As 32 hexadecimal digits.
pub fn hex(id: [u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(uuid: &str) -> Option<[u8; 16]> {
    let digits: String = uuid.trim().chars().filter(|&digit| digit != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

/// What is no sleep, ns: two clocks are read one after the other.
pub const NO_SLEEP_NANOS: i128 = 1_000_000;

/// How often it is looked at before a sleep is believed: whoever is interrupted between the two clocks sees too much, and on a host
/// without time for Dom0 that happens again and again.
const LOOKS: u32 = 100;

/// Tells whether the machine slept: then the counter may have stood still or started over.
#[derive(Debug)]
pub struct SleepWatch {
    slept_nanos: i128,
}

impl SleepWatch {
    /// Watches from now on.
    pub fn new() -> SleepWatch {
        SleepWatch { slept_nanos: (0..LOOKS).map(|_| slept()).min().unwrap_or_default() }
    }

    /// How long it had slept since it booted, by what was seen last, ns.
    pub fn slept_nanos(&self) -> i128 {
        self.slept_nanos
    }

    /// Whether the machine slept since the last call.
    pub fn slept(&mut self) -> bool {
        let mut least = i128::MAX;
        for _ in 0..LOOKS {
            least = least.min(slept());
            if least - self.slept_nanos <= NO_SLEEP_NANOS {
                return false;
            }
        }
        self.slept_nanos = least;
        true
    }
}

impl Default for SleepWatch {
    fn default() -> SleepWatch {
        SleepWatch::new()
    }
}

/// How long this machine slept since it booted, ns, or more: what `CLOCK_BOOTTIME` counts and `CLOCK_MONOTONIC` does not.
fn slept() -> i128 {
    let nanos = |id| {
        let time = rustix::time::clock_gettime(id);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    let monotonic = nanos(rustix::time::ClockId::Monotonic);
    nanos(rustix::time::ClockId::Boottime) - monotonic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_id_is_that_of_this_boot() {
        let id = host_id().unwrap();
        assert_eq!(id, host_id().unwrap());
        assert_eq!(hex(id), std::fs::read_to_string(BOOT_ID).unwrap().trim().replace('-', ""));
        assert_eq!(parse("not-a-uuid"), None);
    }

    #[test]
    fn an_awake_machine_did_not_sleep() {
        let mut watch = SleepWatch::new();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!watch.slept());
    }
}
