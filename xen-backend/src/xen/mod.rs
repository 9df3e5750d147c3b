//! Xen, as Dom0 sees it: the system time, and one granted page and event channel a guest.
//!
//! [`SystemTime`] reads the counter, [`platform`] all counters where Xen has our patches; [`Guests`] offers the clock to
//! the guests that [`GuestPolicy`] names. The algorithm and what stands in the page are none of its business. Unsafe code
//! is in [`hypercall`] and [`grant`].

mod allowance;
mod attention;
pub mod device;
mod event;
mod grant;
mod guests;
mod hypercall;
pub mod platform;
mod policy;
mod store;
mod system_time;
mod transaction;
mod warning;
mod watches;
mod wire;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

pub use guests::Guests;
pub use platform::HostCounters;
pub use policy::GuestPolicy;
pub use system_time::SystemTime;
pub use transaction::list as list_directory;

/// The devices that are opened for each guest, or again when XenStore was lost.
pub const DEVICES: &[&str] = &[event::DEVICE, grant::DEVICE, wire::DEVICE];
/// The requests that are made of them, and of the one for hypercalls, which is opened once.
pub const IOCTLS: &[u64] = &[
    event::IOCTL_EVTCHN_BIND_UNBOUND_PORT,
    event::IOCTL_EVTCHN_NOTIFY,
    grant::IOCTL_GNTALLOC_ALLOC_GREF,
    hypercall::IOCTL_PRIVCMD_HYPERCALL,
];

/// Why Xen cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XenError {
    /// Linux says that no hypervisor of the name Xen is below it.
    #[error("this machine does not run on Xen: boot Xen, or run radclockd with --local")]
    NotXen,
    /// A Xen domain, but not the one in control.
    #[error("this is a guest of Xen: radclockd runs in Dom0, here the driver xen-radclockfront is what you need")]
    NotDom0,
    /// A device of the kernel's is not there.
    #[error("{} is missing: load the module {module} (modprobe {module})", path.display())]
    NoDevice {
        /// The device.
        path: PathBuf,
        /// The module that has it.
        module: &'static str,
    },
    /// A device may not be opened.
    #[error("no permission to open {}: run as root", .0.display())]
    Permission(PathBuf),
    /// A device failed in a way of its own.
    #[error("{}: {what} failed: {source}", path.display())]
    Device {
        /// The device.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's limit on granted pages is reached.
    #[error(
        "no page can be granted, the limit of the module xen-gntalloc is reached: raise /sys/module/xen_gntalloc/parameters/limit"
    )]
    GrantLimit,
    /// XenStore cannot be reached at all.
    #[error("cannot reach XenStore: {0}: is xenstored running, and are you root?")]
    NoXenStore(io::Error),
    /// XenStore refused something.
    #[error("XenStore: cannot {what} {path}: {source}")]
    Store {
        /// What was attempted.
        what: &'static str,
        /// The node.
        path: String,
        /// Its answer.
        source: io::Error,
    },
    /// A domain went away meanwhile.
    #[error("domain {0} is gone")]
    Gone(u16),
}

/// Opens one of Xen's device nodes, which `module` makes.
fn open_device(path: &str, module: &'static str) -> Result<File, XenError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| XenError::open(Path::new(path), module, source))
}

impl XenError {
    fn open(path: &Path, module: &'static str, source: io::Error) -> XenError {
        let path = path.to_path_buf();
        match source.kind() {
            // A node without its driver is as good as none.
            io::ErrorKind::NotFound => XenError::NoDevice { path, module },
            _ if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                XenError::NoDevice { path, module }
            }
            io::ErrorKind::PermissionDenied => XenError::Permission(path),
            _ => XenError::Device { path, what: "opening it", source },
        }
    }

    fn device(path: &str, what: &'static str, source: io::Error) -> XenError {
        XenError::Device { path: path.into(), what, source }
    }
}

/// Checks that this is Dom0, as far as the kernel lets anyone know.
fn check_dom0(root: &Path) -> Result<(), XenError> {
    match std::fs::read_to_string(root.join("sys/hypervisor/type")) {
        Ok(kind) if kind.trim_end() == "xen" => {}
        _ => return Err(XenError::NotXen),
    }
    // Absent while xenfs is not mounted, which nothing here needs.
    match std::fs::read_to_string(root.join("proc/xen/capabilities")) {
        Ok(capabilities) if !capabilities.contains("control_d") => Err(XenError::NotDom0),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn host(kind: Option<&str>, capabilities: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in [("sys/hypervisor/type", kind), ("proc/xen/capabilities", capabilities)] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            if let Some(text) = text {
                fs::write(path, text).expect("a file");
            }
        }
        root
    }

    #[test]
    fn only_dom0_passes() {
        assert!(matches!(check_dom0(host(None, None).path()), Err(XenError::NotXen)));
        assert!(matches!(check_dom0(host(Some("kvm\n"), None).path()), Err(XenError::NotXen)));
        assert!(matches!(check_dom0(host(Some("xen\n"), Some("")).path()), Err(XenError::NotDom0)));
        check_dom0(host(Some("xen\n"), Some("control_d\n")).path()).expect("Dom0");
        check_dom0(host(Some("xen\n"), None).path()).expect("perhaps Dom0");
    }

    #[test]
    fn an_error_is_one_line_that_says_what_to_do() {
        let path = Path::new("/dev/xen/gntalloc");
        let missing = XenError::open(path, "xen-gntalloc", io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(
            missing.to_string(),
            "/dev/xen/gntalloc is missing: load the module xen-gntalloc (modprobe xen-gntalloc)"
        );
        let denied = XenError::open(path, "xen-gntalloc", io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(denied.to_string(), "no permission to open /dev/xen/gntalloc: run as root");
    }
}
