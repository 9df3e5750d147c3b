//! `radclockd` in a host's Dom0.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::host::{COMMAND_LIMIT, Host};
use crate::{payload, wait};

/// How long the clock may take from the daemon's start to being synchronised.
const SYNCHRONISATION_LIMIT: u64 = 90;
const LOG: &str = "/var/log/radclockd.log";

impl Host {
    /// The lab's configuration: this host's NTP server, asked every second, and the clock for all guests.
    pub fn configuration(&self) -> String {
        let port = self.ntp_port();
        format!("[server]\naddress = \"10.0.2.2\"\nport = {port}\npoll = 1\n\n[guests]\noffer = \"all\"\n")
    }

    /// Starts the daemon with [`Host::configuration`].
    pub fn start_radclockd(&self) -> Result<()> {
        self.start_radclockd_with(&self.configuration())
    }

    /// Starts the daemon with this configuration.
    pub fn start_radclockd_with(&self, configuration: &str) -> Result<()> {
        self.start_radclockd_program("radclockd", configuration)
    }

    /// Starts this program as the daemon.
    pub fn start_radclockd_program(&self, program: &str, configuration: &str) -> Result<()> {
        self.write("/etc/radclockd.toml", configuration)?;
        self.run(&format!("setsid {program} --config /etc/radclockd.toml < /dev/null >> {LOG} 2>&1 &"))?;
        wait::until("radclockd's socket", COMMAND_LIMIT, || {
            Ok(self.output("test -S /run/radclock/radclockd.sock", COMMAND_LIMIT)?.status.success().then_some(()))
        })
        .with_context(|| self.radclockd_log().unwrap_or_default())
    }

    /// Installs [`payload::other_radclockd`]: the program for [`Host::start_radclockd_program`].
    pub fn install_other_radclockd(&self) -> Result<&'static str> {
        const PROGRAM: &str = "/root/radclockd";
        self.write(PROGRAM, std::fs::read(payload::other_radclockd()?)?)?;
        self.run(&format!("chmod +x {PROGRAM}"))?;
        Ok(PROGRAM)
    }

    /// Waits until the clock is synchronised in Dom0.
    pub fn await_synchronized(&self) -> Result<()> {
        let wait = format!("lab-probe await synchronized {SYNCHRONISATION_LIMIT}");
        command::success(&wait, &self.output(&wait, Duration::from_secs(SYNCHRONISATION_LIMIT + 30))?)
            .map(drop)
            .with_context(|| self.radclockd_log().unwrap_or_default())
    }

    /// The daemon's process id.
    pub fn radclockd_pid(&self) -> Result<u32> {
        Ok(self.run("pidof radclockd")?.trim().parse()?)
    }

    /// Ends the daemon with a signal and waits for its end.
    pub fn stop_radclockd(&self, signal: &str) -> Result<()> {
        let pid = self.radclockd_pid()?;
        self.run(&format!("kill -{signal} {pid}"))?;
        wait::until("radclockd to end", COMMAND_LIMIT, || {
            let alive = self.output(&format!("test -d /proc/{pid}"), COMMAND_LIMIT)?;
            Ok((!alive.status.success()).then_some(()))
        })
    }

    /// What the daemon logged, all starts together.
    pub fn radclockd_log(&self) -> Result<String> {
        self.run(&format!("touch {LOG}; cat {LOG}"))
    }
}
