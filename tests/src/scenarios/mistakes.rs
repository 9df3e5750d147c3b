//! What a person gets to read when something is wrong.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Lab;
use crate::guest::Kind;

/// What fails must not take long.
const LIMIT: Duration = Duration::from_secs(20);

/// One line on standard error, besides the daemon's log, that names the cause.
fn expect_line(what: &str, output: &Output, names: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !line.contains(" INFO ")).collect();
    ensure!(!output.status.success(), "{what} went well");
    ensure!(
        lines.len() == 1 && lines[0].contains(names),
        "{what} should say one line with {names:?}, but says:\n{said}"
    );
    Ok(())
}

/// Wrong configuration, missing devices, missing privileges, no daemon, no driver.
pub fn each_mistake_is_told_in_one_line(lab: &Lab) -> Result<()> {
    let host = lab.boot()?;
    let check = |command: &str, names: &str| expect_line(command, &host.output(command, LIMIT)?, names);
    let good = host.configuration();
    host.write("/tmp/good.toml", good.clone())?;
    host.write("/tmp/key.toml", good.replace("port", "prot"))?;
    host.write("/tmp/value.toml", good.replace("poll = 1", "poll = 0"))?;
    host.write("/tmp/syntax.toml", good.replace('=', ":"))?;

    check("radclock now", "start radclockd")?;
    check("radclockd --check-config --config /tmp/key.toml", "/tmp/key.toml:3: unknown field `prot`")?;
    check("radclockd --config /tmp/value.toml", "/tmp/value.toml:4: ")?;
    check("radclockd --config /tmp/syntax.toml", "/tmp/syntax.toml:2: ")?;
    check("radclockd --config /tmp/none.toml", "/tmp/none.toml: cannot read the configuration")?;
    host.run("radclockd --check-config --config /tmp/good.toml")?;

    check("setpriv --reuid 65534 --clear-groups radclockd --config /tmp/good.toml", "run as root")?;
    check("setpriv --reuid 65534 --clear-groups radclock-ctl list", "run as root")?;
    for device in ["privcmd", "gntalloc", "evtchn"] {
        host.run(&format!("mv /dev/xen/{device} /tmp/"))?;
        check("radclockd --config /tmp/good.toml", &format!("/dev/xen/{device}"))
            .with_context(|| format!("without /dev/xen/{device}"))?;
        host.run(&format!("mv /tmp/{device} /dev/xen/"))?;
    }

    host.run("mv /run/xenstored/socket /dev/xen/xenbus /tmp/")?;
    check("radclockd --config /tmp/good.toml", "cannot reach XenStore")?;
    check("radclock-ctl list", "nor can XenStore be read")?;
    host.run("mv /tmp/socket /run/xenstored/ && mv /tmp/xenbus /dev/xen/")?;

    check("radclock-ctl attach 0", "radclockd is not running")?;
    let guest = host.create("pvh", Kind::Pvh)?;
    guest.await_boot()?;
    let in_guest = |command: &str, names: &str| expect_line(command, &guest.output(command, LIMIT)?, names);
    in_guest("radclock now", "not synchronised yet")?;
    guest.run("rmmod xen_radclockfront")?;
    in_guest("radclock now", "load the driver")
}
