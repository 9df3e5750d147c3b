//! The time daemons that people run in guests today, as Debian has them, made ready to be laid over a guest's root.
//!
//! Their configuration is their package's, except that the servers are [`SERVERS`]: a lab has no DNS.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::command::{expression, run};
use crate::host::Host;
use crate::packages;

const LIMIT: Duration = Duration::from_secs(300);

/// As many as Debian's pool gives. All of them are the lab's NTP server, see [`Host::serve_guests`]. The addresses are
/// those for documentation (RFC 5737), which nobody has.
pub const SERVERS: [&str; 4] = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];

/// A time daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// chrony's.
    Chronyd,
    /// NTPsec's.
    Ntpd,
}

impl Daemon {
    fn package(self) -> &'static str {
        match self {
            Daemon::Chronyd => "chrony",
            Daemon::Ntpd => "ntpsec",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Daemon::Chronyd => "usr/sbin/chronyd",
            Daemon::Ntpd => "usr/sbin/ntpd",
        }
    }

    /// Where the package has its configuration, and where the daemon looks for it.
    fn configuration(self) -> (&'static str, &'static str) {
        match self {
            Daemon::Chronyd => ("usr/share/chrony/chrony.conf", "etc/chrony/chrony.conf"),
            Daemon::Ntpd => ("etc/ntpsec/ntp.conf", "etc/ntpsec/ntp.conf"),
        }
    }

    /// The command that starts it in a guest, with the options of its unit that say how it keeps time.
    pub fn command(self) -> &'static str {
        match self {
            Daemon::Chronyd => "chronyd -d -u root",
            Daemon::Ntpd => "ntpd -n -g -N -c /etc/ntpsec/ntp.conf",
        }
    }

    /// Lays it over the root of the guests that are created on `host` from now on, instead of what was there.
    pub fn install(self, host: &Host) -> Result<()> {
        let overlay = self.overlay()?;
        let tar = expression("tar", ["-C".as_ref(), overlay.as_os_str(), "-c".as_ref(), ".".as_ref()] as [&OsStr; 4]);
        let file = overlay.with_extension("tar");
        run("tar", &tar.stdout_path(&file), LIMIT)?;
        host.write("/run/overlay.tar", fs::read(&file)?)?;
        host.run("rm -rf /guest && mkdir /guest && tar -C /guest -xf /run/overlay.tar && rm /run/overlay.tar").map(drop)
    }

    /// A folder with the daemon and all that it needs.
    fn overlay(self) -> Result<PathBuf> {
        let package = self.package();
        let version = packages::candidate(package)?;
        let servers = SERVERS.join(" ");
        let entry = Cache::open()?.entry(package, &[&version, &servers], |dir| {
            let download = ["download", "-qq", "-o", "APT::Sandbox::User=root", &format!("{package}={version}")]
                .map(str::to_owned);
            run("apt-get download", &expression("apt-get", download).dir(dir), LIMIT)?;
            let archive = fs::read_dir(dir)?.next().context("apt-get downloaded nothing")??.path();
            let unpacked = dir.join("unpacked");
            run("dpkg-deb", &expression("dpkg-deb", ["-x".as_ref(), archive.as_path(), &unpacked]), LIMIT)?;
            fs::remove_file(archive)?;
            self.lay_out(&unpacked, &dir.join("root"))?;
            Ok(fs::remove_dir_all(unpacked)?)
        })?;
        Ok(entry.join("root"))
    }

    fn lay_out(self, package: &Path, root: &Path) -> Result<()> {
        let program = package.join(self.program());
        let name = program.file_name().context("a program's name")?;
        copy(&program, &root.join("bin").join(name))?;
        for library in libraries(&program)? {
            copy(&library, &root.join(library.strip_prefix("/")?))?;
        }
        let (from, to) = self.configuration();
        let configuration = fs::read_to_string(package.join(from)).with_context(|| from.to_owned())?;
        write(&root.join(to), &with_servers(&configuration))?;
        write(&root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
        write(&root.join("etc/group"), "root:x:0:\n")?;
        for folder in ["var/lib/chrony", "var/lib/ntpsec", "var/log/ntpsec"] {
            fs::create_dir_all(root.join(folder))?;
        }
        Ok(())
    }
}

/// The libraries of a program of this Debian, and what loads them.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let said = run("ldd", &expression("ldd", [program]), LIMIT)?;
    // "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)", "linux-vdso.so.1 (0x…)"
    ensure!(!said.contains("not found"), "{} lacks libraries here:\n{said}", program.display());
    let paths = said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(paths.collect())
}

/// A configuration with the lab's servers in place of the pools.
fn with_servers(configuration: &str) -> String {
    let is_pool = |line: &&str| line.starts_with("pool ");
    let others = configuration.lines().filter(|line| !is_pool(line)).map(str::to_owned);
    let servers = SERVERS.map(|server| format!("server {server} iburst"));
    others.chain(servers).map(|line| line + "\n").collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).map(drop).with_context(|| from.display().to_string())
}

fn write(path: &Path, content: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content).with_context(|| path.display().to_string())
}

impl Host {
    /// Makes this host the gateway of guests with a network, through which [`SERVERS`] are the lab's NTP server.
    pub fn serve_guests(&self) -> Result<()> {
        let port = self.ntp_port();
        let rules = format!(
            "table ip lab {{
                 chain prerouting {{
                     type nat hook prerouting priority -100;
                     ip daddr 192.0.2.0/24 udp dport 123 dnat to 10.0.2.2:{port}
                 }}
                 chain postrouting {{
                     type nat hook postrouting priority 100;
                     oif eth0 masquerade
                 }}
             }}\n"
        );
        self.write("/run/nat", rules)?;
        self.run("nft -f /run/nat && echo 1 > /proc/sys/net/ipv4/ip_forward").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_become_the_labs_servers_and_nothing_else_changes() {
        let configuration = "confdir /etc/chrony/conf.d\npool 2.debian.pool.ntp.org iburst\nmakestep 1 3\n";
        assert_eq!(
            with_servers(configuration),
            "confdir /etc/chrony/conf.d\nmakestep 1 3\nserver 192.0.2.1 iburst\nserver 192.0.2.2 iburst\n\
             server 192.0.2.3 iburst\nserver 192.0.2.4 iburst\n"
        );
    }
}
