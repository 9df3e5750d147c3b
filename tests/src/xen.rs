//! Hypervisors with our patch series, built from Debian's source package. `ci/build-xen` is its face.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::command::{expression, run};
use crate::packages;
use crate::progress::Step;

/// The release that the lab boots.
pub const RELEASE: &str = "4.17";

/// Releases that there is a series for, and the Debian suite whose source package each is applied to.
pub const SUITES: &[(&str, &str)] = &[(RELEASE, "bookworm"), ("4.20", "trixie")];

/// What it takes to build a hypervisor.
const NEEDED: &[&str] = &["build-essential", "bison", "flex", "git", "patch", "python3"];

/// Debian's configuration, which is Xen's default but for debugging; shadow paging is in Xen's default and said here
/// because the live migration of PV guests depends on it.
const CONFIG: &str = "CONFIG_DEBUG=n\nCONFIG_SHADOW_PAGING=y\n";

/// For the patch of the FLASK hook, which is not compiled otherwise. The policy, which takes Debian's checkpolicy, is not built in.
const FLASK: &str = "CONFIG_EXPERT=y\nCONFIG_XSM=y\nCONFIG_XSM_FLASK=y\nCONFIG_XSM_FLASK_POLICY=n\n";

const LIMIT: Duration = Duration::from_secs(1800);

/// The hypervisor of `release` with the series, from the cache or built now: a multiboot ELF.
pub fn build(cache: &Cache, release: &str) -> Result<PathBuf> {
    build_configured(cache, "xen", release, CONFIG)
}

/// The same with FLASK, to see that it compiles.
pub fn build_with_flask(cache: &Cache, release: &str) -> Result<PathBuf> {
    build_configured(cache, "xen-flask", release, &format!("{CONFIG}{FLASK}"))
}

fn build_configured(cache: &Cache, name: &str, release: &str, config: &str) -> Result<PathBuf> {
    let entry = made(cache, name, release, config, |source, series, dir| {
        let step = Step::begin(format!("Building Xen {} with our patches", source.version));
        let tree = source.unpack(dir)?;
        series.apply(&tree)?;
        fs::write(tree.join("xen/.config"), config)?;
        let jobs = format!("-j{}", std::thread::available_parallelism()?);
        for target in ["olddefconfig", "xen"] {
            run("make", &expression("make", ["-C", "xen", target, &jobs]).dir(&tree), LIMIT)?;
        }
        fs::copy(tree.join("xen/xen"), dir.join("xen"))?;
        fs::remove_dir_all(&tree)?;
        step.done();
        Ok(())
    })?;
    Ok(entry.join("xen"))
}

/// Applies the series to `release` with patch and with git am, unless that was seen to work before. Builds nothing.
pub fn check(cache: &Cache, release: &str) -> Result<()> {
    made(cache, "xen-series", release, CONFIG, |source, series, dir| {
        let step = Step::begin(format!("Applying our patches to Xen {}", source.version));
        let tree = source.unpack(dir)?;
        git(&tree, &["init", "-q"])?;
        git(&tree, &["add", "--all", "--force"])?;
        git(&tree, &["commit", "-q", "-m", "Debian's source"])?;
        git(&tree, &["branch", "unpatched"])?;
        let patches: Vec<String> = series.patches.iter().map(|patch| patch.display().to_string()).collect();
        git(&tree, &["am", "-q"].into_iter().chain(patches.iter().map(String::as_str)).collect::<Vec<_>>())?;
        git(&tree, &["checkout", "-q", "--detach", "unpatched"])?;
        series.apply(&tree)?;
        // Both ways must come to the same.
        git(&tree, &["add", "--all"])?;
        git(&tree, &["diff", "--exit-code", "--cached", "master"])?;
        fs::remove_dir_all(&tree)?;
        step.done();
        Ok(())
    })
    .map(drop)
}

/// What `make` makes of the source and the series, given a folder for it; once for the same two.
fn made(
    cache: &Cache,
    name: &str,
    release: &str,
    config: &str,
    make: impl FnOnce(&Source, &Series, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let series = Series::read(release)?;
    let source = Source::find(cache, release)?;
    let name = format!("{name}-{release}");
    if let Some(entry) = cache.get(&name, &[&source.version, &series.content, config]) {
        return Ok(entry);
    }
    // The archive holds the newest source only.
    let source = source.newest()?;
    cache.entry(&name, &[&source.version, &series.content, config], |dir| {
        packages::require(NEEDED)?;
        make(&source, &series, dir)
    })
}

fn git(tree: &Path, arguments: &[&str]) -> Result<()> {
    let identity =
        ["-c", "user.name=lab", "-c", "user.email=lab@localhost", "-c", "init.defaultBranch=master", "-c", "gc.auto=0"];
    let git = expression("git", identity.iter().chain(arguments)).dir(tree);
    run(&format!("git {}", arguments.join(" ")), &git, LIMIT).map(drop)
}

/// The patches for a release, in order.
struct Series {
    patches: Vec<PathBuf>,
    content: String,
}

impl Series {
    fn read(release: &str) -> Result<Series> {
        let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hypervisor-patch")).join(release);
        let list = dir.join("series");
        let names = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
        let patches: Vec<PathBuf> = names.lines().map(|name| dir.join(name)).collect();
        let mut content = String::new();
        for patch in &patches {
            content += &fs::read_to_string(patch).with_context(|| patch.display().to_string())?;
        }
        Ok(Series { patches, content })
    }

    fn apply(&self, tree: &Path) -> Result<()> {
        for patch in &self.patches {
            let arguments = ["-p1", "--fuzz=0", "--no-backup-if-mismatch", "-i"].map(Into::into).into_iter();
            let arguments = arguments.chain([patch.as_os_str().to_owned()]);
            run(&format!("patch with {}", patch.display()), &expression("patch", arguments).dir(tree), LIMIT)?;
        }
        Ok(())
    }
}

/// A mirror may lag behind its own index.
#[derive(Debug)]
pub struct NotServed {
    version: String,
}

impl fmt::Display for NotServed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Debian's archive lists the source of Xen {}, but does not serve it now", self.version)
    }
}

/// Debian's source package of Xen, through an apt configuration of its own: the machine's need not have sources.
struct Source {
    apt: Vec<String>,
    version: String,
}

impl Source {
    /// Asks the archive only if this machine does not know the suite yet.
    fn find(cache: &Cache, release: &str) -> Result<Source> {
        let Some((_, suite)) = SUITES.iter().find(|(name, _)| *name == release) else {
            let known: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
            bail!("there is no series for Xen {release}; there is one for {}", known.join(" and "));
        };
        let list = format!(
            "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n"
        );
        let dir = cache.entry(&format!("sources-{suite}"), &[&list], |dir| {
            fs::write(dir.join("sources.list"), &list)?;
            fs::create_dir_all(dir.join("lists/partial"))?;
            apt_get(&apt_options(dir), &["update", "-qq"], dir)
        })?;
        Source::known(apt_options(&dir))
    }

    fn known(apt: Vec<String>) -> Result<Source> {
        let arguments = apt.iter().map(String::as_str).chain(["showsrc", "--only-source", "xen"]);
        let records = run("apt-cache showsrc", &expression("apt-cache", arguments), LIMIT)?;
        let version = records.lines().find_map(|line| line.strip_prefix("Version: "));
        let version = version.context("Debian's archive has no source of Xen")?.to_owned();
        Ok(Source { apt, version })
    }

    /// The same after a look at the archive.
    fn newest(self) -> Result<Source> {
        apt_get(&self.apt, &["update", "-qq"], Path::new("/"))?;
        Source::known(self.apt)
    }

    /// Fetches the package into `dir` and unpacks it there with Debian's patches. Gives the tree.
    ///
    /// By hand, and not with dpkg-source, since a mirror may lag behind with the small file that describes the two
    /// archives. apt checks them against the suite's signed index either way.
    fn unpack(&self, dir: &Path) -> Result<PathBuf> {
        for part in ["--tar-only", "--diff-only"] {
            let package = format!("xen={}", self.version);
            let fetched = apt_get(&self.apt, &["source", "-qq", "--only-source", part, &package], dir);
            fetched.map_err(|error| match error.to_string().contains("404  Not Found") {
                true => error.context(NotServed { version: self.version.clone() }),
                false => error,
            })?;
        }
        let upstream = self.version.rsplit_once('-').map_or(&*self.version, |(upstream, _)| upstream);
        let tree = dir.join("source");
        fs::create_dir(&tree)?;
        let archives = [(format!("{upstream}.orig"), "1"), (format!("{}.debian", self.version), "0")];
        for (name, strip) in archives {
            let archive = format!("xen_{name}.tar.xz");
            let arguments = ["-x", "--strip-components", strip, "-f", &format!("../{archive}")].map(str::to_owned);
            run("tar", &expression("tar", arguments).dir(&tree), LIMIT)?;
            fs::remove_file(dir.join(archive))?;
        }
        let debian = tree.join("debian/patches");
        for name in fs::read_to_string(debian.join("series"))?.lines() {
            let arguments = ["-p1", "-s", "-i"].map(Into::into).into_iter().chain([debian.join(name).into_os_string()]);
            run(&format!("patch with Debian's {name}"), &expression("patch", arguments).dir(&tree), LIMIT)?;
        }
        Ok(tree)
    }
}

fn apt_options(dir: &Path) -> Vec<String> {
    let settings = [
        ("Dir::Etc::sourcelist", dir.join("sources.list").display().to_string()),
        ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
        ("Dir::State::lists", dir.join("lists").display().to_string()),
        ("Dir::Cache", dir.display().to_string()),
        ("APT::Sandbox::User", "root".to_owned()),
    ];
    settings.iter().flat_map(|(name, value)| ["-o".to_owned(), format!("{name}={value}")]).collect()
}

fn apt_get(options: &[String], arguments: &[&str], dir: &Path) -> Result<()> {
    let arguments = options.iter().map(String::as_str).chain(arguments.iter().copied());
    run("apt-get", &expression("apt-get", arguments).dir(dir), LIMIT).map(drop)
}
