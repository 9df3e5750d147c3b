//! One page of this domain, granted read-only to another, by `/dev/xen/gntalloc`.
//!
//! The kernel ends the grant when the last use of the page is gone: the file and the mapping. The file is closed as
//! soon as the page is mapped, so the mapping alone keeps the grant, and it ends with this process, however that
//! dies. While the other domain still maps the page, the kernel keeps page and grant entry and frees them once it
//! lets go or is gone (Linux, `drivers/xen/gntalloc.c` and `grant-table.c`).
//!
//! The crate krata-xengnt 0.0.25 is not used: its request to allocate has the wrong size (20 bytes for 24, which
//! the kernel refuses) and the halves of its page count swapped.

use std::io;
use std::os::fd::AsRawFd;

use memmap2::{MmapOptions, MmapRaw};
use radclock::page::PAGE_SIZE;
use radclock::seqcount::SharedPage;

use super::{XenError, open_device};

pub(super) const DEVICE: &str = "/dev/xen/gntalloc";
const MODULE: &str = "xen-gntalloc";

/// `struct ioctl_gntalloc_alloc_gref` of Linux's `xen/gntalloc.h`, for one page.
#[repr(C)]
struct AllocGref {
    domid: u16,
    flags: u16,
    count: u32,
    /// Out: the offset at which the file maps the page.
    index: u64,
    /// Out: the grant reference.
    gref: u32,
}

/// `IOCTL_GNTALLOC_ALLOC_GREF`: `_IOC(_IOC_NONE, 'G', 5, sizeof(struct ioctl_gntalloc_alloc_gref))`.
pub(super) const IOCTL_GNTALLOC_ALLOC_GREF: u64 = ((size_of::<AllocGref>() as u64) << 16) | ((b'G' as u64) << 8) | 5;

/// Without `GNTALLOC_FLAG_WRITABLE` (1) Xen lets the other domain map the page only for reading.
const READ_ONLY: u16 = 0;

/// A page that one domain may read. The grant ends when this is dropped.
#[derive(Debug)]
pub struct GrantedPage {
    reference: u32,
    mapping: MmapRaw,
}

impl GrantedPage {
    /// Says whether pages can be granted here at all.
    pub fn check() -> Result<(), XenError> {
        open_device(DEVICE, MODULE).map(drop)
    }

    /// Grants a page of zeroes to a domain. Whether that exists is not checked.
    pub fn new(domid: u16) -> Result<GrantedPage, XenError> {
        let file = open_device(DEVICE, MODULE)?;
        let mut request = AllocGref { domid, flags: READ_ONLY, count: 1, index: 0, gref: 0 };
        // SAFETY: the kernel reads and writes `request`, which is laid out as it expects for one page.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), IOCTL_GNTALLOC_ALLOC_GREF, &raw mut request) };
        if result < 0 {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::ENOSPC) => XenError::GrantLimit,
                _ => XenError::device(DEVICE, "granting a page", source),
            });
        }
        let mapping = MmapOptions::new()
            .offset(request.index)
            .len(PAGE_SIZE)
            .map_raw(&file)
            .map_err(|source| XenError::device(DEVICE, "mapping the granted page", source))?;
        Ok(GrantedPage { reference: request.gref, mapping })
    }

    /// The number under which the other domain maps it.
    pub fn reference(&self) -> u32 {
        self.reference
    }

    /// The page.
    pub fn page(&self) -> &SharedPage {
        // SAFETY: a whole page, aligned as mmap does, mapped for reading and writing until `self` is dropped, and
        // accessed through this reference alone.
        unsafe { SharedPage::from_ptr(self.mapping.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_has_the_kernels_number() {
        assert_eq!(size_of::<AllocGref>(), 24);
        assert_eq!(IOCTL_GNTALLOC_ALLOC_GREF, 0x18_4705);
    }
}
