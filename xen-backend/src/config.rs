//! The configuration file: TOML, every key known, every value checked, one line an error.
//!
//! The manual is `docs/man/radclockd.toml.5.md`; the commented example, `radclockd.toml`, doubles as the default.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use radclock::ensemble::MAX_SERVERS;
use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};

use crate::counter::CounterChoice;
use crate::ntp::association::Polling;
use crate::xen::GuestPolicy;

/// Where the configuration is looked for unless the command line names another file.
pub const DEFAULT_PATH: &str = "/etc/radclock/radclockd.toml";
/// The example, which is also what holds without a file.
pub const EXAMPLE: &str = include_str!("../radclockd.toml");

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What stands in it is not allowed.
    #[error("{}:{line}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// What stands in it does not go together.
    #[error("{}: {message}", path.display())]
    Whole {
        /// The file.
        path: PathBuf,
        /// What is wrong and what is allowed.
        message: String,
    },
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The NTP servers to follow.
    #[serde(default, deserialize_with = "one_or_several")]
    pub server: Vec<Server>,
    /// PTP hardware clocks to follow.
    #[serde(default)]
    pub phc: Vec<Phc>,
    /// The clock that is kept.
    #[serde(default)]
    pub clock: ClockConfig,
    /// Who gets it.
    #[serde(default)]
    pub guests: Guests,
    /// Where things are.
    #[serde(default)]
    pub paths: Paths,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// A DNS name, an IPv4 or an IPv6 address.
    pub address: Host,
    /// UDP port.
    #[serde(default)]
    pub port: Number<1, 65_535, 123>,
    /// Poll period, s.
    #[serde(default)]
    pub poll: Number<1, 1024, 16>,
    /// Whether the first polls follow each other quickly.
    #[serde(default = "yes")]
    pub iburst: bool,
    /// So many of the name's addresses are followed, each as a server of its own.
    #[serde(default)]
    pub pool: Number<1, 8, 1>,
}

impl Server {
    /// The UDP port.
    pub fn port(&self) -> u16 {
        self.port.0 as u16
    }

    /// How the server is asked.
    pub fn polling(&self) -> Polling {
        Polling { period: Duration::from_secs(self.poll.0), burst: self.iburst }
    }
}

/// `[[phc]]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phc {
    /// Its device.
    pub device: AbsolutePath,
    /// The scale that it counts.
    pub timescale: Timescale,
    /// TAI − UTC for one that counts TAI, s; without it the leap-second list says it.
    pub tai_offset: Option<Number<0, 100, 37>>,
    /// Bound on its error against UTC or TAI, ns.
    #[serde(default)]
    pub accuracy: Number<1, 1_000_000_000, 1000>,
    /// How often it is read, s.
    #[serde(default)]
    pub poll: Number<1, 1024, 1>,
}

/// The scale of a PTP hardware clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Timescale {
    /// TAI, as PTP has it.
    Tai,
    /// UTC.
    Utc,
}

/// `[clock]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClockConfig {
    /// The counter that is kept.
    pub counter: CounterChoice,
    /// A name for "the same clock", told to guests.
    pub time_domain: TimeDomain,
    /// At most how long after its last update the clock counts as synchronised, s.
    pub validity: Number<1, 604_800, 3600>,
    /// The system's leap-second list.
    pub leap_seconds: LeapSeconds,
}

/// `[guests]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guests {
    /// Which guests the clock is offered to.
    pub offer: GuestPolicy,
}

/// `[paths]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    /// The directory of the pages and, by default, of the socket.
    pub run_dir: AbsolutePath,
    /// The status socket.
    pub socket: Option<AbsolutePath>,
}

impl Default for Paths {
    fn default() -> Paths {
        Paths { run_dir: AbsolutePath("/run/radclock".into()), socket: None }
    }
}

impl Paths {
    /// The status socket's path.
    pub fn socket(&self) -> PathBuf {
        match &self.socket {
            Some(path) => path.0.clone(),
            None => self.run_dir.0.join("radclockd.sock"),
        }
    }
}

fn yes() -> bool {
    true
}

/// `[server]`, or any number of `[[server]]`.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Server>, D::Error> {
    struct OneOrSeveral;

    impl<'de> Visitor<'de> for OneOrSeveral {
        type Value = Vec<Server>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table [server], or several [[server]]")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Vec<Server>, A::Error> {
            Ok(vec![Server::deserialize(de::value::MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Server>, A::Error> {
            let mut servers = Vec::new();
            while let Some(server) = seq.next_element()? {
                servers.push(server);
            }
            Ok(servers)
        }
    }

    deserializer.deserialize_any(OneOrSeveral)
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Config::parse(&text, path)
    }

    /// What holds without a file: [`EXAMPLE`].
    pub fn example() -> Config {
        Config::parse(EXAMPLE, Path::new("radclockd.toml")).expect("a test checks the example")
    }

    /// Checks the text of the file `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            ConfigError::Content {
                path: path.to_owned(),
                line: text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1,
                message: error.message().trim().replace('\n', ": "),
            }
        })?;
        let whole = |message: String| ConfigError::Whole { path: path.to_owned(), message };
        if let Some(problem) = config.doubled() {
            return Err(whole(problem));
        }
        match config.sources() {
            0 => Err(whole("there is nothing to follow: name a server in [server], or a [[phc]]".to_owned())),
            1..=MAX_SERVERS => Ok(config),
            many => Err(whole(format!("{many} servers and clocks to follow: at most {MAX_SERVERS} are allowed"))),
        }
    }

    /// What is wrong if one source is named as if it were two: it would have two votes, or the second one no address.
    fn doubled(&self) -> Option<String> {
        let mut seen = BTreeSet::new();
        for server in &self.server {
            let Ok(address) = server.address.0.parse::<IpAddr>() else { continue };
            if server.pool.0 > 1 {
                return Some(format!("server.pool is for a name with several addresses, {address} is one"));
            }
            let address = SocketAddr::new(address.to_canonical(), server.port());
            if !seen.insert(address.to_string()) {
                return Some(format!("the server {address} is named twice"));
            }
        }
        let clock = self.phc.iter().find(|phc| !seen.insert(phc.device.0.display().to_string()))?;
        Some(format!("the clock {} is named twice", clock.device.0.display()))
    }

    /// How many servers and clocks are followed, pools counted by their members.
    pub fn sources(&self) -> usize {
        self.server.iter().map(|server| server.pool.0 as usize).sum::<usize>() + self.phc.len()
    }
}

/// `clock.leap_seconds`: a path, or `"none"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeapSeconds(pub Option<PathBuf>);

/// Where Debian has it.
const LEAP_SECONDS_LIST: &str = "/usr/share/zoneinfo/leap-seconds.list";

impl Default for LeapSeconds {
    fn default() -> LeapSeconds {
        LeapSeconds(Some(LEAP_SECONDS_LIST.into()))
    }
}

impl<'de> Deserialize<'de> for LeapSeconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "none" => Ok(LeapSeconds(None)),
            path if path.starts_with('/') && !path.contains('\0') => Ok(LeapSeconds(Some(path.into()))),
            other => Err(de::Error::invalid_value(Unexpected::Str(other), &"an absolute path or \"none\"")),
        }
    }
}

/// A whole number from `MIN` to `MAX`, `DEFAULT` if it is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number<const MIN: u64, const MAX: u64, const DEFAULT: u64>(pub u64);

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Default for Number<MIN, MAX, DEFAULT> {
    fn default() -> Self {
        Number(DEFAULT)
    }
}

impl<'de, const MIN: u64, const MAX: u64, const DEFAULT: u64> Deserialize<'de> for Number<MIN, MAX, DEFAULT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InRange<const MIN: u64, const MAX: u64>;

        impl<const MIN: u64, const MAX: u64> Visitor<'_> for InRange<MIN, MAX> {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
                match u64::try_from(value) {
                    Ok(number) if (MIN..=MAX).contains(&number) => Ok(number),
                    _ => Err(E::invalid_value(Unexpected::Signed(value), &self)),
                }
            }
        }

        deserializer.deserialize_i64(InRange::<MIN, MAX>).map(Number)
    }
}

/// Declares a checked string: its name, what is allowed, and the check.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident($inner:ty), $allowed:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Checked;

                impl Visitor<'_> for Checked {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($allowed)
                    }

                    fn visit_str<E: de::Error>(self, value: &str) -> Result<$name, E> {
                        let check: fn(&str) -> bool = $check;
                        if check(value) {
                            Ok($name(value.into()))
                        } else {
                            Err(E::invalid_value(Unexpected::Str(value), &self))
                        }
                    }
                }

                deserializer.deserialize_str(Checked)
            }
        }
    };
}

checked_string!(
    /// A server's name or address.
    Host(String),
    "a DNS name, an IPv4 or an IPv6 address, without a port (that is server.port)",
    |host| {
        host.parse::<IpAddr>().is_ok()
            || (!host.is_empty()
                && host.len() <= 253
                && host.trim_end_matches('.').split('.').all(|label| {
                    !label.is_empty()
                        && label.len() <= 63
                        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                })
                && !host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
    }
);

checked_string!(
    /// The name of a time domain: it becomes the value of a XenStore node.
    TimeDomain(String),
    "1 to 64 letters, digits, dots, dashes or underscores",
    |name| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    }
);

impl Default for TimeDomain {
    fn default() -> TimeDomain {
        TimeDomain("utc".into())
    }
}

checked_string!(
    /// A path that does not depend on where the daemon was started.
    AbsolutePath(PathBuf),
    "an absolute path",
    |path| path.starts_with('/') && !path.contains('\0')
);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/radclock/radclockd.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_holds_and_shows_every_key_with_its_default() {
        let example = Config::example();
        let minimal = parse(&format!("[server]\naddress = \"{}\"\npool = 4", example.server[0].address.0)).unwrap();
        assert_eq!(example, minimal);
        let shown: String = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("#").filter(|rest| rest.contains(" = ")).unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n");
        for key in [
            "address",
            "port",
            "poll",
            "iburst",
            "pool",
            "device",
            "timescale",
            "tai_offset",
            "accuracy",
            "counter",
            "time_domain",
            "validity",
            "leap_seconds",
            "offer",
            "run_dir",
            "socket",
        ] {
            assert!(shown.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is not shown");
        }
    }

    #[test]
    fn each_error_is_one_line_with_file_line_and_what_is_allowed() {
        for (text, line, parts) in [
            ("[server]\nadress = \"a\"", 2, &["unknown field `adress`", "`address`", "`iburst`"][..]),
            ("[server]\naddress = \"a\"\n\n[sever]\n", 4, &["unknown field `sever`", "`server`"]),
            ("[server]\naddress = \"a\"\nport = 0", 3, &["`0`", "a whole number from 1 to 65535"]),
            ("[server]\naddress = \"a\"\nport = \"ntp\"", 3, &["\"ntp\"", "a whole number from 1 to 65535"]),
            ("[server]\naddress = \"a\"\npoll = 4000", 3, &["`4000`", "from 1 to 1024"]),
            ("[server]\naddress = \"a\"\niburst = 1", 3, &["`1`", "boolean"]),
            ("[server]\naddress = \"ntp.example:123\"", 2, &["without a port"]),
            ("[server]\naddress = \"10.0.0\"", 2, &["IPv4"]),
            ("[server]\naddress = \"\"", 2, &["DNS name"]),
            ("[server]\nport = 123", 1, &["missing field `address`"]),
            ("server = 7", 1, &["7", "[server]", "[[server]]"]),
            ("[[server]]\naddress = \"a\"\n[[server]]\naddress = \"b\"\npoll = 0", 5, &["`0`", "from 1 to 1024"]),
            ("[[server]]\naddress = \"a\"\n[[server]]\nport = 1", 3, &["missing field `address`"]),
            ("[server]\naddress = \"a\"\npool = 9", 3, &["`9`", "from 1 to 8"]),
            ("[[phc]]\ndevice = \"ptp0\"\ntimescale = \"tai\"", 2, &["\"ptp0\"", "an absolute path"]),
            ("[[phc]]\ndevice = \"/dev/ptp0\"", 1, &["missing field `timescale`"]),
            ("[[phc]]\ndevice = \"/dev/ptp0\"\ntimescale = \"gps\"", 3, &["`gps`", "`tai`", "`utc`"]),
            (
                "[server]\naddress = \"a\"\n[clock]\nleap_seconds = \"list\"",
                4,
                &["\"list\"", "an absolute path or \"none\""],
            ),
            (
                "[server]\naddress = \"a\"\n[clock]\ncounter = \"hpet\"",
                4,
                &["`hpet`", "`auto`", "`xen-clocksource`", "`tsc`", "`platform`", "`monotonic-raw`"],
            ),
            ("[server]\naddress = \"a\"\n[clock]\ntime_domain = \"a b\"", 4, &["letters, digits"]),
            ("[server]\naddress = \"a\"\n[clock]\nvalidity = -1", 4, &["`-1`", "from 1 to 604800"]),
            ("[server]\naddress = \"a\"\n[guests]\noffer = \"some\"", 4, &["some", "all", "none"]),
            ("[server]\naddress = \"a\"\n[guests]\noffer = 7", 4, &["7", "all", "none"]),
            ("[server]\naddress = \"a\"\n[paths]\nrun_dir = \"run\"", 4, &["\"run\"", "an absolute path"]),
            ("[server]\naddress = a", 2, &[]),
            ("[server\naddress = \"a\"", 1, &[]),
            ("[server]\naddress = \"a\"\naddress = \"b\"", 3, &["duplicate"]),
        ] {
            let error = parse(text).expect_err(text);
            let prefix = format!("/etc/radclock/radclockd.toml:{line}: ");
            assert!(error.starts_with(&prefix), "{text:?}: {error}");
            assert!(error.len() > prefix.len() + 5 && !error.contains('\n'), "{text:?}: {error}");
            for part in parts {
                assert!(error.contains(part), "{text:?}: {error} lacks {part}");
            }
        }
    }

    #[test]
    fn one_server_or_several_and_clocks_may_be_named() {
        let server = |name: &str| format!("[[server]]\naddress = \"{name}\"\n");
        let phc = "[[phc]]\ndevice = \"/dev/ptp0\"\ntimescale = \"utc\"\n";
        let config = parse(&format!("{}{}{phc}", server("a"), server("b"))).unwrap();
        assert_eq!((config.server.len(), config.phc.len(), config.sources()), (2, 1, 3));
        assert_eq!(parse(phc).unwrap().sources(), 1);
        assert_eq!(
            parse("").unwrap_err(),
            "/etc/radclock/radclockd.toml: there is nothing to follow: name a server in [server], or a [[phc]]"
        );
        assert_eq!(
            parse(&format!("{}pool = 8\n{phc}", server("a"))).unwrap_err(),
            "/etc/radclock/radclockd.toml: 9 servers and clocks to follow: at most 8 are allowed"
        );
    }

    #[test]
    fn no_source_is_named_as_if_it_were_two() {
        let servers = |servers: &[(&str, u16, u64)]| -> String {
            let server =
                |(address, port, pool)| format!("[[server]]\naddress = \"{address}\"\nport = {port}\npool = {pool}\n");
            servers.iter().copied().map(server).collect()
        };
        let phc = |device: &str| format!("[[phc]]\ndevice = \"{device}\"\ntimescale = \"utc\"\n");
        for (text, problem) in [
            (
                servers(&[("10.0.0.1", 123, 1), ("a", 123, 1), ("10.0.0.1", 123, 1)]),
                "the server 10.0.0.1:123 is named twice",
            ),
            (servers(&[("fd00::1", 123, 1), ("fd00:0::1", 123, 1)]), "the server [fd00::1]:123 is named twice"),
            (servers(&[("10.0.0.1", 9, 1), ("::ffff:10.0.0.1", 9, 1)]), "the server 10.0.0.1:9 is named twice"),
            (servers(&[("10.0.0.1", 123, 2)]), "server.pool is for a name with several addresses, 10.0.0.1 is one"),
            (phc("/dev/ptp0") + &phc("/dev/ptp0"), "the clock /dev/ptp0 is named twice"),
        ] {
            assert_eq!(parse(&text).unwrap_err(), format!("/etc/radclock/radclockd.toml: {problem}"));
        }
        // Members of a pool, and servers of a test.
        parse(&servers(&[("a", 123, 2), ("a", 123, 1), ("10.0.0.1", 1, 1), ("10.0.0.1", 2, 1)])).unwrap();
        parse(&(phc("/dev/ptp0") + &phc("/dev/ptp1"))).unwrap();
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nonexistent/radclockd.toml")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/radclockd.toml: cannot read the configuration"), "{error}");
    }
}
