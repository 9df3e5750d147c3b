//! What this project builds, put where a host finds it: a second disk for Dom0, with the guests' kernel and initramfs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::artefacts::{Artefacts, ext4_image};
use crate::command::{expression, run};
use crate::initramfs::Initramfs;
use crate::progress::Step;

const LIMIT: Duration = Duration::from_secs(1800);
const DRIVER: &str = "xen-radclockfront.ko";
/// The PTP hardware clock of `tests/ptp`, for Dom0: its path in `/lab`.
pub const PTP_CLOCK: &str = "lab-ptp.ko";

/// Packages of the workspace whose programs run in the lab's domains.
const PACKAGES: &[&str] =
    &["xen-backend", "xenstore-tools", "radclock-cli", "radclock-capi", "lab-agent", "lab-publisher"];
/// The lab's own part of them.
const BARE_PACKAGES: &[&str] = &["lab-agent"];

/// Programs that are of no use in a guest.
const DOM0_PROGRAMS: &[&str] = &["radclockd", "radclock-ctl", "lab-publisher", "lab-clocks"];
/// All that a small guest has.
const FEW_PROGRAMS: &[&str] = &["guest", "lab-probe"];

/// What to put on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Everything.
    All,
    /// Only what the lab itself needs: hosts and guests without a shared clock.
    Bare,
}

/// The built parts.
#[derive(Clone)]
pub struct Payload {
    programs: BTreeMap<String, PathBuf>,
    driver: Option<PathBuf>,
    ptp_clock: Option<PathBuf>,
}

impl Payload {
    /// Builds the parts: static programs, and the driver for the guests' kernel.
    pub fn build(artefacts: &Artefacts, parts: Parts) -> Result<Payload> {
        let step = Step::begin("Building the programs");
        let packages = if parts == Parts::All { PACKAGES } else { BARE_PACKAGES };
        let Built { mut programs, c_library } = build_programs(packages)?;
        if let Some(library) = c_library {
            programs.insert("c-example".to_owned(), build_c_example(&library)?);
        }
        let programs = stripped(programs)?;
        step.done();
        let (mut driver, mut ptp_clock) = (None, None);
        if parts == Parts::All {
            let step = Step::begin(format!("Building the driver for Linux {}", artefacts.release));
            driver = Some(build_module(&artefacts.release, "xen-frontend/kmod", DRIVER)?);
            ptp_clock = Some(build_module(&artefacts.release, "tests/ptp", PTP_CLOCK)?);
            step.done();
        }
        Ok(Payload { programs, driver, ptp_clock })
    }

    /// A program that was built; being linked statically, it runs on the build machine as well.
    pub fn program(&self, name: &str) -> Result<&Path> {
        self.programs.get(name).map(PathBuf::as_path).with_context(|| format!("no program {name} was built"))
    }

    /// Writes the disk: `/lab` in Dom0. `authorized_keys` may log in there.
    pub fn write_disk(&self, artefacts: &Artefacts, authorized_keys: &str, dir: &Path) -> Result<PathBuf> {
        let tree = dir.join("lab");
        for folder in ["bin", "guest"] {
            fs::create_dir_all(tree.join(folder))?;
        }
        let programs = self.programs.iter().map(|(name, path)| (name.as_str(), path.as_path()));
        for (name, path) in programs {
            fs::copy(path, tree.join("bin").join(name))?;
        }
        if let Some(module) = &self.ptp_clock {
            fs::copy(module, tree.join(PTP_CLOCK))?;
        }
        script(&tree.join("init"), include_str!("../dom0/init"))?;
        script(&tree.join("bin/guest-create"), include_str!("../dom0/guest-create"))?;
        script(&tree.join("bin/migrate"), include_str!("../dom0/migrate"))?;
        fs::write(tree.join("authorized_keys"), authorized_keys)?;
        fs::copy(&artefacts.unpacked_kernel, tree.join("guest/vmlinux"))?;
        fs::write(tree.join("guest/initrd"), self.guest_initramfs(&artefacts.guest_modules, |_| true)?)?;
        // For guests that are many.
        let few = |name: &str| FEW_PROGRAMS.contains(&name);
        fs::write(tree.join("guest/small-initrd"), self.guest_initramfs(&[], few)?)?;
        let disk = dir.join("lab.img");
        ext4_image(&tree, &disk, "256M")?;
        fs::remove_dir_all(&tree)?;
        Ok(disk)
    }

    /// With those of the guests' programs that `is_wanted`.
    fn guest_initramfs(&self, modules: &[PathBuf], is_wanted: impl Fn(&str) -> bool) -> Result<Vec<u8>> {
        let mut initramfs = Initramfs::default();
        for folder in ["bin", "dev", "etc", "lib", "proc", "run", "sbin", "sys", "tmp"] {
            initramfs.dir(folder);
        }
        initramfs.file("bin/busybox", Path::new("/bin/busybox"))?;
        initramfs.symlink("bin/sh", "busybox");
        initramfs.symlink("init", "bin/busybox");
        // What the kernel starts when Xen asks the guest to go down.
        for program in ["sbin/reboot", "sbin/poweroff"] {
            initramfs.symlink(program, "../bin/busybox");
        }
        initramfs.script("etc/setup", include_str!("../guest/setup"));
        initramfs.content("etc/inittab", include_str!("../guest/inittab"));
        for (name, path) in &self.programs {
            if !DOM0_PROGRAMS.contains(&name.as_str()) && is_wanted(name) {
                initramfs.file(&format!("bin/{name}"), path)?;
            }
        }
        for module in modules {
            let name = module.file_name().context("a module has a name")?.to_string_lossy();
            initramfs.file(&format!("lib/{name}"), module)?;
        }
        if let Some(driver) = &self.driver {
            initramfs.file(&format!("lib/{DRIVER}"), driver)?;
        }
        Ok(initramfs.finish())
    }
}

fn script(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// The workspace's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

/// Where cargo builds.
pub fn target_dir() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").and_then(|path| std::path::absolute(path).ok());
    set.unwrap_or_else(|| workspace().join("target"))
}

/// The version of [`other_radclockd`].
pub const OTHER_VERSION: &str = "99.0.0";

/// `radclockd` from the same sources under another version, built once a run.
pub fn other_radclockd() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_none() {
        *built = Some(build_radclockd_of_version(OTHER_VERSION)?);
    }
    Ok(built.clone().expect("it is there now"))
}

fn build_radclockd_of_version(version: &str) -> Result<PathBuf> {
    let step = Step::begin(format!("Building radclockd {version}"));
    let sources = target_dir().join("other-version");
    fs::create_dir_all(&sources)?;
    let manifest = fs::read_to_string(workspace().join("Cargo.toml"))?;
    let this = format!("version = \"{}\"", env!("CARGO_PKG_VERSION"));
    anyhow::ensure!(manifest.contains(&this), "the workspace's Cargo.toml does not say {this}");
    let members =
        ["Cargo.lock", "hypervisor-patch", "radclock", "xen-backend", "xen-frontend", "xenstore-tools", "tests"];
    let copied = members.map(|member| workspace().join(member).into_os_string());
    let arguments = ["-a", "--update"].map(OsString::from).into_iter().chain(copied).chain([sources.clone().into()]);
    run("cp", &expression("cp", arguments), LIMIT)?;
    fs::write(sources.join("Cargo.toml"), manifest.replacen(&this, &format!("version = \"{version}\""), 1))?;
    let Built { programs, .. } = build_programs_in(&sources, &["xen-backend"])?;
    let program = sources.join("radclockd");
    let built = programs.get("radclockd").context("no radclockd was built")?;
    run("strip", &expression("strip", ["-o".into(), program.clone(), built.clone()]), LIMIT)?;
    step.done();
    Ok(program)
}

fn build_programs(packages: &[&str]) -> Result<Built> {
    build_programs_in(workspace(), packages)
}

/// Builds packages for any Linux: linked statically, for a guest has no libraries.
fn build_programs_in(sources: &Path, packages: &[&str]) -> Result<Built> {
    let mut arguments =
        vec!["build", "--release", "--target=x86_64-unknown-linux-gnu", "--message-format=json-render-diagnostics"];
    arguments.extend(packages.iter().flat_map(|package| ["--package", package]));
    let cargo = expression("cargo", arguments)
        .dir(sources)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_DIR", target_dir());
    let messages = run("cargo build", &cargo, LIMIT)?;
    let mut built = Built::default();
    for message in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(message).context("cargo's messages")?;
        let name = message["target"]["name"].as_str();
        if let (Some(name), Some(executable)) = (name, message["executable"].as_str()) {
            built.programs.insert(name.to_owned(), PathBuf::from(executable));
        }
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(|file| file.as_str());
        for file in files.filter(|file| file.ends_with("/libradclock.a")) {
            built.c_library = Some(PathBuf::from(file));
        }
    }
    Ok(built)
}

/// What cargo has built.
#[derive(Default)]
struct Built {
    programs: BTreeMap<String, PathBuf>,
    c_library: Option<PathBuf>,
}

/// Builds the example of the C library as a C programmer would, but statically.
fn build_c_example(library: &Path) -> Result<PathBuf> {
    let capi = workspace().join("xen-frontend/capi");
    let program = target_dir().join("c-example");
    let arguments = ["-static", "-Wall", "-Wextra", "-Werror", "-o"].map(OsString::from).into_iter().chain([
        program.clone().into(),
        capi.join("examples/now.c").into(),
        "-I".into(),
        capi.join("include").into(),
        library.into(),
        "-lm".into(),
    ]);
    run("cc", &expression("cc", arguments), LIMIT)?;
    Ok(program)
}

/// Copies without debug information: a guest holds them all in its memory.
fn stripped(programs: BTreeMap<String, PathBuf>) -> Result<BTreeMap<String, PathBuf>> {
    let dir = target_dir().join("stripped");
    fs::create_dir_all(&dir)?;
    let strip = |(name, path): (String, PathBuf)| {
        let to = dir.join(&name);
        run("strip", &expression("strip", ["-o".into(), to.clone(), path]), LIMIT)?;
        Ok((name, to))
    };
    programs.into_iter().map(strip).collect()
}

/// Builds a kernel module outside its source folder.
fn build_module(release: &str, source: &str, name: &str) -> Result<PathBuf> {
    let source = workspace().join(source);
    let build = target_dir().join("kmod").join(release).join(name.trim_end_matches(".ko"));
    fs::create_dir_all(&build)?;
    for file in fs::read_dir(&source).with_context(|| source.display().to_string())? {
        let file = file?;
        let name = file.file_name();
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("c" | "h")) || name == "Kbuild" || name == "Makefile" {
            copy_if_changed(&file.path(), &build.join(name))?;
        }
    }
    let headers = format!("/usr/src/linux-headers-{release}");
    let module = format!("M={}", build.display());
    run("make", &expression("make", ["-C", &headers, &module, "modules"]), LIMIT)?;
    Ok(build.join(name))
}

/// Leaves the time of an unchanged file alone, so that make does not build it again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from)?;
    if fs::read(to).ok().as_ref() != Some(&content) {
        fs::write(to, content)?;
    }
    Ok(())
}
