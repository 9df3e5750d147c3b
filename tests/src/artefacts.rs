//! What a host boots from and does not change from run to run: the kernel, the hypervisor, Dom0's initramfs and root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::command::{expression, reading, run};
use crate::initramfs::Initramfs;
use crate::packages;
use crate::progress::Step;

const HYPERVISOR: &str = "xen-hypervisor-4.17-amd64";

/// Debian packages in Dom0, besides the essential ones.
const DOM0_PACKAGES: &[&str] =
    &["xen-utils-4.17", "openssh-server", "iproute2", "procps", "busybox-static", "socat", "chrony", "nftables"];

/// Kernel modules that Dom0 loads before its root is there, those they depend on left out.
const DOM0_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "crc32c_generic",
    "ext4",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "bridge",
    "xen-netback",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
];

/// Modules at hand in a guest, for a network, for hypercalls, and for what a hostile one does; they depend on nothing.
const GUEST_MODULES: &[&str] = &[
    "kernel/drivers/net/xen-netfront.ko",
    "kernel/drivers/xen/xen-evtchn.ko",
    "kernel/drivers/xen/xen-gntdev.ko",
    "kernel/drivers/xen/xen-privcmd.ko",
];

const INITRAMFS_INIT: &str = include_str!("../dom0/initramfs-init");
const LIMIT: Duration = Duration::from_secs(900);

/// Where the artefacts are.
#[derive(Clone)]
pub struct Artefacts {
    /// The kernel of Dom0 and of the guests.
    pub kernel: PathBuf,
    /// The same unpacked, for the guests: Xen's tools take 10 s to unpack it in emulation.
    pub unpacked_kernel: PathBuf,
    /// Its release.
    pub release: String,
    /// The hypervisor, unpacked: a multiboot ELF.
    pub xen: PathBuf,
    /// Dom0's initramfs.
    pub initramfs: PathBuf,
    /// Modules for the guests' `/lib`.
    pub guest_modules: Vec<PathBuf>,
    /// Dom0's root, an ext4 image. Never written to.
    pub root: PathBuf,
}

impl Artefacts {
    /// From the cache, or made now.
    pub fn get(cache: &Cache) -> Result<Artefacts> {
        packages::install()?;
        let (boot, release) = boot(cache)?;
        let kernel = boot.join("vmlinuz");
        let unpacked = cache.entry("vmlinux", &[&boot.to_string_lossy()], |dir| {
            let step = Step::begin("Unpacking the kernel");
            unpack_kernel(&kernel, &dir.join("vmlinux"))?;
            step.done();
            Ok(())
        })?;
        let root = root(cache)?;
        Ok(Artefacts {
            kernel,
            unpacked_kernel: unpacked.join("vmlinux"),
            release,
            xen: boot.join("xen"),
            initramfs: boot.join("initramfs"),
            guest_modules: GUEST_MODULES.iter().map(|module| boot.join(file_name(module))).collect(),
            root: root.join("root.img"),
        })
    }
}

fn boot(cache: &Cache) -> Result<(PathBuf, String)> {
    let versions = || Ok::<_, anyhow::Error>((packages::kernel()?, packages::candidate(HYPERVISOR)?));
    let (kernel, hypervisor) = versions()?;
    let modules = [DOM0_MODULES, GUEST_MODULES].concat().join(" ");
    if let Some(path) = cache.get("boot", &[&kernel.version, &hypervisor, INITRAMFS_INIT, &modules]) {
        return Ok((path, kernel.release));
    }
    // The archive holds the newest kernel only: the headers here, and what this machine knows of the archive, may be
    // older.
    let step = Step::begin("Looking for the newest kernel and its headers");
    packages::update()?;
    packages::apt_install(&["linux-headers-amd64"])?;
    let (kernel, hypervisor) = versions()?;
    step.done();
    let path = cache.entry("boot", &[&kernel.version, &hypervisor, INITRAMFS_INIT, &modules], |dir| {
        let step = Step::begin(format!("Fetching Linux {} and Xen {hypervisor}", kernel.release));
        let image = format!("linux-image-{}", kernel.release);
        let versions = [format!("{image}={}", kernel.version), format!("{HYPERVISOR}={hypervisor}")];
        let download = ["download", "-qq", "-o", "APT::Sandbox::User=root"].map(str::to_owned);
        run("apt-get download", &expression("apt-get", download.iter().chain(&versions)).dir(dir), LIMIT)?;
        for package in fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()? {
            let arguments = ["-x".into(), package.path(), dir.join("unpacked")];
            run("dpkg-deb", &expression("dpkg-deb", arguments), LIMIT)?;
            fs::remove_file(package.path())?;
        }
        let unpacked = dir.join("unpacked");
        fs::rename(unpacked.join("boot").join(format!("vmlinuz-{}", kernel.release)), dir.join("vmlinuz"))?;
        let gzip = ["-dc".into(), unpacked.join("boot/xen-4.17-amd64.gz")];
        run("gzip", &expression("gzip", gzip).stdout_path(dir.join("xen")), LIMIT)?;
        fs::write(dir.join("initramfs"), dom0_initramfs(&unpacked, &kernel.release)?)?;
        for module in GUEST_MODULES {
            let path = unpacked.join("lib/modules").join(&kernel.release).join(module);
            fs::copy(&path, dir.join(file_name(module))).with_context(|| path.display().to_string())?;
        }
        fs::remove_dir_all(&unpacked)?;
        step.done();
        Ok(())
    })?;
    Ok((path, kernel.release))
}

/// Takes the ELF image out of a bzImage, by the header of Linux's Documentation/arch/x86/boot.rst.
fn unpack_kernel(kernel: &Path, to: &Path) -> Result<()> {
    let image = fs::read(kernel)?;
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let payload = || {
        let setup_sectors = usize::from(*image.get(0x1f1)?);
        let start = (setup_sectors + 1) * 512 + word(0x248)?;
        image.get(start..start + word(0x24c)?)
    };
    let payload = payload().with_context(|| format!("{} is no bzImage", kernel.display()))?;
    // The kernel's build appends the unpacked size to the stream.
    let xz = reading("xz", ["-dc", "--single-stream"], payload).stdout_path(to);
    run("xz", &xz, LIMIT).map(drop)
}

fn dom0_initramfs(unpacked: &Path, release: &str) -> Result<Vec<u8>> {
    let release = release.to_owned();
    run(
        "depmod",
        &expression("depmod", ["-b".into(), unpacked.as_os_str().to_owned(), release.clone().into()]),
        LIMIT,
    )?;
    let modules = unpacked.join("lib/modules").join(&release);
    let order = load_order(&fs::read_to_string(modules.join("modules.dep"))?)?;
    let mut initramfs = Initramfs::default();
    initramfs.dir("bin");
    initramfs.dir("modules");
    initramfs.file("bin/busybox", Path::new("/bin/busybox"))?;
    initramfs.symlink("bin/sh", "busybox");
    initramfs.script("init", INITRAMFS_INIT);
    let mut names = String::new();
    for module in order {
        let name = file_name(&module);
        initramfs.file(&format!("modules/{name}"), &modules.join(&module))?;
        names += &format!("{name}\n");
    }
    initramfs.content("modules/order", &names);
    Ok(initramfs.finish())
}

/// [`DOM0_MODULES`] and what they depend on, each after what it needs, from the lines of `modules.dep`:
/// `path: what it needs, the nearest first`.
fn load_order(modules_dep: &str) -> Result<Vec<String>> {
    let dependencies: BTreeMap<&str, (&str, &str)> = modules_dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (file_name(path), (path, needs)))
        .collect();
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in DOM0_MODULES {
        let (path, needs) =
            dependencies.get(format!("{name}.ko").as_str()).with_context(|| format!("the kernel has no {name}"))?;
        for module in needs.split_whitespace().rev().chain([*path]) {
            if seen.insert(module) {
                order.push(module.to_owned());
            }
        }
    }
    Ok(order)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn root(cache: &Cache) -> Result<PathBuf> {
    let utils = packages::candidate("xen-utils-4.17")?;
    let include = DOM0_PACKAGES.join(",");
    cache.entry("dom0", &[&utils, &include], |dir| {
        let step = Step::begin("Making Dom0's root");
        let tree = dir.join("tree");
        let arguments = [
            "--quiet",
            "--variant=minbase",
            "--aptopt=APT::Install-Recommends \"false\"",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            &format!("--include={include}"),
            "--format=directory",
            "bookworm",
        ]
        .map(Into::into);
        let arguments = arguments.into_iter().chain([tree.clone().into_os_string()]);
        run("mmdebstrap", &expression("mmdebstrap", arguments).env("TMPDIR", dir), LIMIT)?;
        fs::create_dir_all(tree.join("lab"))?;
        ext4_image(&tree, &dir.join("root.img"), "1G")?;
        fs::remove_dir_all(&tree)?;
        step.done();
        Ok(())
    })
}

/// Makes an ext4 image of a folder, without mounting anything.
pub fn ext4_image(tree: &Path, image: &Path, size: &str) -> Result<()> {
    let arguments = ["-q", "-t", "ext4", "-O", "^has_journal", "-d"].map(Into::into).into_iter();
    let arguments = arguments.chain([tree.as_os_str().to_owned(), image.as_os_str().to_owned(), size.into()]);
    run("mke2fs", &expression("mke2fs", arguments), LIMIT).map(drop)
}
