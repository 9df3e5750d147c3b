//! Debian packages on the build machine.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::{expression, run};
use crate::progress::Step;

/// What the lab needs here, besides Rust.
const NEEDED: &[&str] = &[
    "build-essential",
    "busybox-static",
    "chrony",
    "clang",
    "e2fsprogs",
    "fonts-dejavu-core",
    "kmod",
    "linux-headers-amd64",
    "mmdebstrap",
    "openssh-client",
    "qemu-system-x86",
    "systemd",
    "xz-utils",
];

const LIMIT: Duration = Duration::from_secs(900);

/// Installs what the lab needs and is missing.
pub fn install() -> Result<()> {
    require(NEEDED)
}

/// Installs what is missing of these.
pub fn require(packages: &[&str]) -> Result<()> {
    let installed = run(
        "dpkg-query",
        &expression("dpkg-query", ["--show", "--showformat=${db:Status-Status} ${Package}\n"]),
        LIMIT,
    )?;
    let installed: BTreeSet<&str> = installed.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !installed.contains(name)).collect();
    if !missing.is_empty() {
        let step = Step::begin(format!("Installing {}", missing.join(", ")));
        update()?;
        apt_install(&missing)?;
        step.done();
    }
    Ok(())
}

/// The version of `package` that would be installed here.
pub fn candidate(package: &str) -> Result<String> {
    if let Some(version) = known_candidate(package)? {
        return Ok(version);
    }
    update()?;
    known_candidate(package)?.with_context(|| format!("Debian's archive has no {package}; the lab needs Debian 12"))
}

fn known_candidate(package: &str) -> Result<Option<String>> {
    let policy = run("apt-cache", &expression("apt-cache", ["policy", package]), LIMIT)?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

/// Fetches the archive's lists.
pub fn update() -> Result<()> {
    run("apt-get update", &expression("apt-get", ["update", "-qq"]), LIMIT).map(drop)
}

/// Installs or upgrades packages.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "run it as root: {} must be installed", packages.join(", "));
    let arguments =
        ["install", "-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"].iter().chain(packages);
    let expression = expression("apt-get", arguments).env("DEBIAN_FRONTEND", "noninteractive");
    run("apt-get install", &expression, LIMIT).map(drop)
}

/// The kernel that the installed headers belong to.
pub struct Kernel {
    /// Its release, as `uname -r` says it: `6.1.0-56-amd64`.
    pub release: String,
    /// Its package's version.
    pub version: String,
}

/// The kernel whose headers are installed here: the one to boot, for the driver is built for it.
pub fn kernel() -> Result<Kernel> {
    let show = ["--show", "--showformat=${Depends}", "linux-headers-amd64"];
    let depends = run("dpkg-query", &expression("dpkg-query", show), LIMIT)?;
    // "linux-headers-6.1.0-56-amd64 (= 6.1.192-2)"
    let parts = depends.split(',').find_map(|dependency| {
        let (package, version) = dependency.trim().split_once(" (= ")?;
        Some((package.strip_prefix("linux-headers-")?, version.strip_suffix(')')?))
    });
    let (release, version) = parts.with_context(|| format!("linux-headers-amd64 depends on {depends:?}"))?;
    Ok(Kernel { release: release.to_owned(), version: version.to_owned() })
}
