//! The cache of what takes long to make, under `$XDG_CACHE_HOME/xen-radclock` (or `~/.cache/xen-radclock`), by content:
//! an entry's name ends in a hash of all that went into it, so a change makes a new one. It may be deleted at any time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// The cache.
#[derive(Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the user's cache, which may be new.
    pub fn open() -> Result<Cache> {
        let base = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
                .join(".cache"),
        };
        let root = base.join("xen-radclock");
        fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        Ok(Cache { root })
    }

    /// The folder `name` for these inputs, if it is there.
    pub fn get(&self, name: &str, inputs: &[&str]) -> Option<PathBuf> {
        Some(self.path(name, inputs)).filter(|path| path.is_dir())
    }

    fn path(&self, name: &str, inputs: &[&str]) -> PathBuf {
        let mut hash = Sha256::new();
        for input in inputs {
            hash.update((input.len() as u64).to_le_bytes());
            hash.update(input);
        }
        self.root.join(format!("{name}-{}", &format!("{:x}", hash.finalize())[..16]))
    }

    /// The folder `name` for these inputs, made by `build` (which is given an empty folder) unless it is there.
    /// Older folders of the same name are removed.
    pub fn entry(&self, name: &str, inputs: &[&str], build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let entry = self.path(name, inputs);
        if entry.is_dir() {
            return Ok(entry);
        }
        let lock = File::create(self.root.join(format!("{name}.lock")))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        if entry.is_dir() {
            return Ok(entry);
        }
        let partial = self.root.join(format!("{name}.partial"));
        remove(&partial)?;
        fs::create_dir(&partial)?;
        build(&partial).inspect_err(|_| drop(remove(&partial)))?;
        for old in fs::read_dir(&self.root)? {
            let old = old?;
            let file_name = old.file_name();
            let old_hash = file_name.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('-'));
            if old_hash.is_some_and(|hash| hash.len() == 16 && !hash.contains('-')) {
                remove(&old.path())?;
            }
        }
        fs::rename(&partial, &entry)?;
        Ok(entry)
    }

    /// A new folder for one run, under a name of its own, removed when dropped. Folders of runs that died are removed.
    pub fn run_dir(&self) -> Result<RunDir> {
        let runs = self.root.join("run");
        fs::create_dir_all(&runs)?;
        for old in fs::read_dir(&runs)? {
            let old = old?;
            if !Path::new("/proc").join(old.file_name()).exists() {
                remove(&old.path())?;
            }
        }
        let path = runs.join(std::process::id().to_string());
        remove(&path)?;
        fs::create_dir(&path)?;
        Ok(RunDir { path, folders: 0.into() })
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(path.display().to_string()),
        _ => Ok(()),
    }
}

/// A run's own folder.
pub struct RunDir {
    path: PathBuf,
    folders: AtomicU32,
}

impl RunDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new folder in it for a part of the run, removed when dropped.
    pub fn part(&self) -> Result<RunDir> {
        Ok(RunDir { path: self.new_dir("part")?, folders: 0.into() })
    }

    /// A new folder in it for one more host.
    pub fn host_dir(&self) -> Result<PathBuf> {
        self.new_dir("host")
    }

    fn new_dir(&self, name: &str) -> Result<PathBuf> {
        let number = self.folders.fetch_add(1, Ordering::Relaxed) + 1;
        let path = self.path.join(format!("{name}{number}"));
        fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}
