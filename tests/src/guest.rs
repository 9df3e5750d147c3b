//! Guests on a host: created by `xl`, reached through their console.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::host::{COMMAND_LIMIT, Host};

/// For a command in a guest, which may have to boot before, beside others that are busy.
pub const GUEST_LIMIT: Duration = Duration::from_secs(330);

/// For a migration under load, on a build machine that does other things too.
const MIGRATION_LIMIT: Duration = Duration::from_secs(600);

/// The kernel, unpacked, takes two thirds of it while it is loaded.
const SMALL_MEGABYTES: u32 = 96;

/// How a guest is virtualised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Paravirtual: page tables and privileged instructions by hypercall.
    Pv,
    /// In hardware (here emulated) virtualisation, without a device model.
    Pvh,
}

impl Kind {
    /// As `xl` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pv => "pv",
            Kind::Pvh => "pvh",
        }
    }
}

/// A guest on a host. It goes with its host unless destroyed before.
pub struct Guest<'host> {
    host: &'host Host,
    name: String,
    kind: Kind,
}

impl Host {
    /// Creates a guest; it boots while this returns. [`Guest::run`] waits for it.
    pub fn create(&self, name: &str, kind: Kind) -> Result<Guest<'_>> {
        self.run(&format!("guest-create {name} {}", kind.name()))?;
        Ok(Guest { host: self, name: name.to_owned(), kind })
    }

    /// Creates a guest with so many virtual CPUs.
    pub fn create_with_cpus(&self, name: &str, kind: Kind, cpus: u32) -> Result<Guest<'_>> {
        self.run(&format!("guest-create {name} {} 128 {cpus}", kind.name()))?;
        Ok(Guest { host: self, name: name.to_owned(), kind })
    }

    /// Creates a guest that has little more than the agent and the driver, one of many.
    pub fn create_small(&self, name: &str, kind: Kind) -> Result<Guest<'_>> {
        self.run(&format!("SMALL=1 guest-create {name} {} {SMALL_MEGABYTES}", kind.name()))?;
        Ok(Guest { host: self, name: name.to_owned(), kind })
    }

    /// Makes a guest of another name from what [`Guest::save`] left of `original`, which was created on this host.
    pub fn restore_copy(&self, name: &str, kind: Kind, original: &str, path: &str) -> Result<Guest<'_>> {
        let configuration = format!("/run/{name}.cfg");
        let shell = format!(
            "sed 's/^name = .*/name = \"{name}\"/' /run/{original}.cfg > {configuration} && xl restore {configuration} {path}"
        );
        command::success(&shell, &self.output(&shell, MIGRATION_LIMIT)?)?;
        Ok(Guest { host: self, name: name.to_owned(), kind })
    }

    /// Creates a guest with a network interface that has this address, of 10.9.0.0/24, on the link of a pair of hosts, and
    /// with memory for what is laid over its root.
    pub fn create_with_network(&self, name: &str, kind: Kind, address: &str) -> Result<Guest<'_>> {
        self.run(&format!("ADDRESS={address} guest-create {name} {} 160", kind.name()))?;
        Ok(Guest { host: self, name: name.to_owned(), kind })
    }
}

impl<'host> Guest<'host> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its number on the host, a new one after each reboot.
    pub fn domid(&self) -> Result<u16> {
        Ok(self.host.run(&format!("xl domid {}", self.name))?.trim().parse()?)
    }

    /// Waits until the guest takes commands.
    pub fn await_boot(&self) -> Result<()> {
        self.run("true").map(drop).with_context(|| format!("{} does not boot; {}", self.name, self.last_words()))
    }

    /// The end of its console's log, and what Xen says of its processors.
    pub fn last_words(&self) -> String {
        let log = self.console_log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let cpus = self.host.run(&format!("xl vcpu-list {}", self.name)).unwrap_or_default();
        format!("its last words:\n{}\n{cpus}", lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    /// Runs a shell command in the guest and gives its standard output. It is an error if it fails.
    pub fn run(&self, shell: &str) -> Result<String> {
        command::success(&format!("{}: {shell}", self.name), &self.output(shell, GUEST_LIMIT)?)
    }

    /// Runs a shell command in the guest to its end within `limit`, whatever its exit status.
    pub fn output(&self, shell: &str, limit: Duration) -> Result<Output> {
        self.host.output(&self.shell_line(shell)?, limit)
    }

    /// A shell command in the guest, not yet started.
    pub fn expression(&self, shell: &str) -> Result<duct::Expression> {
        Ok(self.host.expression(&self.shell_line(shell)?))
    }

    fn shell_line(&self, shell: &str) -> Result<String> {
        Ok(format!("guest {} {}", self.name, shlex::try_quote(shell)?))
    }

    /// Reboots it from outside. Afterwards it is a new domain of the same name.
    pub fn reboot(&self) -> Result<()> {
        let old = self.domid()?;
        self.host.run(&format!("xl reboot {}", self.name))?;
        let what = format!("{} to reboot", self.name);
        crate::wait::until(&what, COMMAND_LIMIT, || {
            let Some(new) = self.domid().ok().filter(|domid| *domid != old) else { return Ok(None) };
            let console = format!("xenstore-read /local/domain/{new}/console/tty");
            Ok(self.host.output(&console, COMMAND_LIMIT)?.status.success().then_some(()))
        })
    }

    /// The host that it runs on.
    pub fn host(&self) -> &'host Host {
        self.host
    }

    /// Moves it to another host of its pair, live. If that fails it is still on this one, running or not.
    pub fn migrate(&mut self, to: &'host Host) -> Result<()> {
        let shell = format!("migrate {}", self.name);
        let output = self.host.output(&shell, MIGRATION_LIMIT)?;
        command::success(&shell, &output).with_context(|| {
            let log = to.run("tail -n 20 /var/log/xen/migrate-receive.log").unwrap_or_default();
            format!("{} does not migrate; the receiver said:\n{log}", self.name)
        })?;
        self.host = to;
        Ok(())
    }

    /// Notes that it runs on another host now, moved there by other means than [`Guest::migrate`].
    pub fn moved_to(&mut self, host: &'host Host) {
        self.host = host;
    }

    /// Saves it to a file in Dom0, and thereby ends it.
    pub fn save(&self, path: &str) -> Result<()> {
        let shell = format!("xl save {} {path}", self.name);
        command::success(&shell, &self.host.output(&shell, MIGRATION_LIMIT)?).map(drop)
    }

    /// Goes on from a file in this host's Dom0, which is removed.
    pub fn restore(&mut self, host: &'host Host, path: &str) -> Result<()> {
        let shell = format!("xl restore {path} && rm {path}");
        command::success(&shell, &host.output(&shell, MIGRATION_LIMIT)?)?;
        self.host = host;
        Ok(())
    }

    /// Ends it at once, and waits until Xen knows nothing of it.
    pub fn destroy(self) -> Result<()> {
        let domid = self.domid()?;
        self.host.run(&format!("xl destroy {domid}"))?;
        let what = format!("{} to be gone", self.name);
        crate::wait::until(&what, COMMAND_LIMIT, || {
            let list = self.host.output(&format!("xl list {domid}"), COMMAND_LIMIT)?;
            Ok((!list.status.success()).then_some(()))
        })
    }

    /// What its kernel and the agent said on its console.
    pub fn console_log(&self) -> Result<String> {
        let path = format!("/var/log/xen/console/guest-{}.log", self.name);
        self.host.run(&format!("cat {path}")).with_context(|| format!("the log of {}", self.name))
    }
}
