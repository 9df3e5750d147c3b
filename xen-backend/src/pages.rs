//! The daemon's pages as files of one page under the run directory, which programs of this host map read-only.
//!
//! A file keeps its inode over a restart of the daemon, so that a mapping made before goes on being the clock; and
//! what the daemon before left in it is kept until there is something better, because it is right to within its bound.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use radclock::page::{CounterId, PAGE_SIZE, Page};
use radclock::seqcount::SharedPage;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::host::NO_SLEEP_NANOS;

/// The file that says how long the machine had slept when the pages were written, ns: no page can tell.
const SLEPT: &str = "slept";

/// Why there is no run directory or no page in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagesError {
    /// Neither there nor to be made.
    #[error(
        "cannot use the run directory {}: {source}; run as root, or choose another with --run-dir or paths.run_dir",
        path.display()
    )]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon writes these pages.
    #[error("another radclockd uses the run directory {}: stop it, or choose another with --run-dir", .0.display())]
    Locked(PathBuf),
    /// A page cannot be made or mapped.
    #[error("cannot create {}: {source}", path.display())]
    Page {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The run directory, held by this daemon alone.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// What stands in [`SLEPT`], if this daemon wrote it.
    slept_nanos: Option<i128>,
    _lock: File,
}

impl RunDir {
    /// Makes the directory if it is not there and takes it.
    pub fn open(path: &Path) -> Result<RunDir, PagesError> {
        let failed = |source| PagesError::RunDir { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(path.join("radclockd.lock"))
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(RunDir { path: path.to_owned(), slept_nanos: None, _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(PagesError::Locked(path.to_owned())),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the machine, which has slept for so long since it booted, did so after the pages were written: not known of those of
    /// a daemon that wrote nothing down.
    pub fn has_slept(&self, slept_nanos: i128) -> bool {
        let path = self.path.join(SLEPT);
        match read_own(&path) {
            Ok(text) => {
                let then = text.trim().parse::<i128>().ok();
                then.is_none_or(|then| slept_nanos.abs_diff(then) > NO_SLEEP_NANOS.unsigned_abs())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!("{}: {error}", path.display());
                true
            }
        }
    }

    /// Writes down how long the machine has slept. To be done once no page has a clock of before that sleep any more.
    pub fn write_slept(&mut self, slept_nanos: i128) {
        if self.slept_nanos == Some(slept_nanos) {
            return;
        }
        let path = self.path.join(SLEPT);
        let new = unnamed(&path);
        let written = create(&new, 0o600).and_then(|mut file| file.write_all(format!("{slept_nanos}\n").as_bytes()));
        match written.and_then(|()| std::fs::rename(&new, &path)) {
            Ok(()) => self.slept_nanos = Some(slept_nanos),
            Err(error) => {
                tracing::warn!("{}: {error}: the next daemon may not know that the machine slept", path.display())
            }
        }
    }

    /// The page `name`, as it was left or, if there was none, of zeroes.
    pub fn page(&self, name: &str) -> Result<PageFile, PagesError> {
        let path = self.path.join(name);
        PageFile::open(&path).map_err(|source| PagesError::Page { path, source })
    }
}

/// A page in a file, mapped. A new one gets its name when it is first written: nobody finds a page without content, and one
/// that is never written leaves nothing behind.
#[derive(Debug)]
pub struct PageFile {
    map: MmapRaw,
    path: PathBuf,
    /// Its file still has the name of [`unnamed`].
    is_unnamed: AtomicBool,
}

impl Drop for PageFile {
    fn drop(&mut self) {
        let new = unnamed(&self.path);
        if *self.is_unnamed.get_mut()
            && let Err(error) = std::fs::remove_file(&new)
        {
            tracing::debug!("{}: {error}", new.display());
        }
    }
}

impl PageFile {
    fn open(path: &Path) -> io::Result<PageFile> {
        let (file, is_unnamed) = match open_left(path) {
            Ok(file) => (file, false),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("{}: {error}: making it anew", path.display());
                }
                let file = create(&unnamed(path), 0o644)?;
                file.set_len(PAGE_SIZE as u64)?;
                (file, true)
            }
        };
        Ok(PageFile {
            map: MmapOptions::new().len(PAGE_SIZE).map_raw(&file)?,
            path: path.to_owned(),
            is_unnamed: is_unnamed.into(),
        })
    }

    fn shared(&self) -> &SharedPage {
        // SAFETY: the mapping is one whole page, writable, and lives as long as `self`; it is only ever reached
        // through here. The file belongs to this daemon and is not cut short while it is mapped.
        unsafe { SharedPage::from_ptr(self.map.as_ptr()) }
    }

    /// Writes the page.
    pub fn write(&self, page: &Page) {
        self.shared().write(page);
        if self.is_unnamed.swap(false, Ordering::Relaxed)
            && let Err(error) = std::fs::rename(unnamed(&self.path), &self.path)
        {
            tracing::error!("{}: {error}: programs cannot find the clock", self.path.display());
        }
    }

    /// What stands in the page, if a daemon before left it since the host booted.
    pub fn left_over(&self, host_id: [u8; 16]) -> Option<Page> {
        let page = self.shared().snapshot().ok()?;
        let is_ours =
            page.abi.check_layout().is_ok() && page.extension().is_some_and(|extension| extension.host_id == host_id);
        is_ours.then_some(page)
    }
}

/// Whether there is a time in the page that can be read by this counter.
pub fn has_time(page: &Page, counter: CounterId) -> bool {
    page.abi.counter_id == counter.0 && page.abi.status().is_readable() && page.abi.clock().is_ok()
}

/// The page that a daemon before left, if it is ours and has the right size.
fn open_left(path: &Path) -> io::Result<File> {
    let file = open_own(OpenOptions::new().read(true).write(true), path)?;
    if file.metadata()?.len() != PAGE_SIZE as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a page of this daemon"));
    }
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

/// A file that nobody else can have written.
fn open_own(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if metadata.is_file() && ours {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of this daemon"))
    }
}

fn read_own(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open_own(OpenOptions::new().read(true), path)?.take(64).read_to_string(&mut text)?;
    Ok(text)
}

/// Where a page is until its first content.
fn unnamed(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// A file of its own, empty.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use radclock::clock::{Clock, Period, Status};
    use radclock::page::{Content, Flags};
    use radclock::time::{Counter, Timestamp};

    fn page(host_id: [u8; 16]) -> Page {
        Page::new(&Content {
            counter_id: CounterId::X86_TSC,
            status: Status::Synchronized,
            clock: Some(Clock {
                counter: Counter(1),
                time: Timestamp::new(1_800_000_000, 0),
                period: Period::from_secs_f64(1e-9).unwrap(),
                period_max_error: 1,
                max_error_nanos: 1,
            }),
            disruption_marker: 0,
            disruption: Flags::empty(),
            tai_offset: None,
            leap_indicator: 0,
            host_id,
            generation: 1,
            valid_nanos: 1,
        })
    }

    #[test]
    fn a_page_keeps_its_inode_and_its_time_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let run = RunDir::open(&path).unwrap();
        let first = run.page("vmclock0").unwrap();
        assert_eq!(first.left_over([7; 16]), None);
        first.write(&page([7; 16]));
        let inode = std::fs::metadata(path.join("vmclock0")).unwrap().ino();
        drop((first, run));

        let run = RunDir::open(&path).unwrap();
        let second = run.page("vmclock0").unwrap();
        let metadata = std::fs::metadata(path.join("vmclock0")).unwrap();
        assert_eq!((metadata.ino(), metadata.len(), metadata.mode() & 0o777), (inode, 4096, 0o644));
        let left = second.left_over([7; 16]).unwrap();
        assert!(has_time(&left, CounterId::X86_TSC));
        assert_eq!(left.abi.clock(), page([7; 16]).abi.clock());
        assert_eq!(second.left_over([8; 16]), None, "another boot");
        assert!(!has_time(&left, CounterId::MONOTONIC_RAW), "another counter");
    }

    #[test]
    fn what_is_no_page_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmclock0");
        std::fs::write(&path, "short").unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        run.page("vmclock0").unwrap().write(&page([7; 16]));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    }

    #[test]
    fn a_page_that_was_never_written_is_not_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let page = run.page("vmclock0").unwrap();
        assert!(!dir.path().join("vmclock0").exists());
        drop(page);
        assert!(!unnamed(&dir.path().join("vmclock0")).exists());
    }

    #[test]
    fn a_sleep_is_known_to_the_next_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let open = || RunDir::open(dir.path()).unwrap();
        assert!(!open().has_slept(5), "nobody has written it down");
        open().write_slept(1 << 70);
        assert!(!open().has_slept((1 << 70) + 1_000_000));
        for other in [(1 << 70) + 1_000_001, (1 << 70) - 1_000_001, 0] {
            assert!(open().has_slept(other));
        }
        open().write_slept(0);
        assert!(!open().has_slept(0));
        let path = dir.path().join(SLEPT);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!unnamed(&path).exists());
        for (text, mode) in [("", 0o600), ("nonsense", 0o600), ("0", 0o666)] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(open().has_slept(0), "{text:?} {mode:o}");
        }
    }

    #[test]
    fn two_daemons_do_not_share_a_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _run = RunDir::open(dir.path()).unwrap();
        let error = RunDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("another radclockd uses the run directory"), "{error}");
    }

    #[test]
    fn a_run_directory_that_cannot_be_made_is_named_with_what_to_do() {
        let error = RunDir::open(Path::new("/proc/radclock")).unwrap_err().to_string();
        assert!(error.starts_with("cannot use the run directory /proc/radclock: "), "{error}");
        assert!(error.ends_with("choose another with --run-dir or paths.run_dir"), "{error}");
    }
}
