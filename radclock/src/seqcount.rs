//! A page in shared memory and the seqcount by which it is written and read at once.
//!
//! One writer, any number of readers in any process, none of whom ever waits for the other: a reader that meets a
//! write in progress tries again, a bounded number of times. The order of the accesses is in `protocol`, apart
//! from the page, so that a model checker can run it. What the words mean is [`crate::page`]'s business, what may be
//! read from them [`crate::reader`]'s.

use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::IntoBytes;

use crate::page::{CounterId, PAGE_SIZE, Page, VmclockAbi};

/// The orderings of the seqcount, over whatever atomics `atomic` names: the processor's here, loom's in its test.
mod protocol;

mod atomic {
    pub(super) use core::sync::atomic::{AtomicU32, Ordering, fence};
}

/// How often a reader tries before it gives up. A write takes under a microsecond, so a page that stays busy over
/// some 100 µs has a writer that was interrupted, died, or never pauses.
const TRIES: u32 = 4096;

/// Words before `seq_count`, and itself.
const HEAD: usize = 4;
const SEQ: usize = 3;
const BODY_OFFSET: usize = HEAD * size_of::<u32>();

/// The page stayed in the middle of a write for as long as a reader tries (some 100 µs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page is being written all the time: its writer is interrupted or dead, try again")]
pub struct Busy;

/// A page in memory that another process, or the kernel, writes.
///
/// Only ever behind a reference into a mapping ([`SharedPage::from_ptr`]); a private one for tests comes from
/// [`SharedPage::new`].
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct SharedPage {
    head: [AtomicU32; HEAD],
    body: [AtomicU64; (PAGE_SIZE - BODY_OFFSET) / size_of::<u64>()],
}

const _: () = {
    assert!(size_of::<SharedPage>() == PAGE_SIZE);
    assert!(align_of::<SharedPage>() == PAGE_SIZE);
    assert!(offset_of!(VmclockAbi, seq_count) == SEQ * size_of::<u32>());
};

impl Default for SharedPage {
    fn default() -> Self {
        SharedPage::new()
    }
}

impl SharedPage {
    /// A page of zeroes in this process's own memory.
    pub const fn new() -> SharedPage {
        SharedPage {
            head: [const { AtomicU32::new(0) }; HEAD],
            body: [const { AtomicU64::new(0) }; (PAGE_SIZE - BODY_OFFSET) / size_of::<u64>()],
        }
    }

    /// The page at an address in a mapping.
    ///
    /// # Safety
    ///
    /// `ptr` is aligned to [`PAGE_SIZE`]; that many bytes from it stay mapped and readable for `'a`, and writable if
    /// [`SharedPage::write`] is called. Nothing in this process accesses them but through this type.
    pub const unsafe fn from_ptr<'a>(ptr: *const u8) -> &'a SharedPage {
        // SAFETY: the caller vouches for alignment, size and lifetime; every bit pattern is valid, and all fields are
        // atomics, so that writes from elsewhere are no aliasing violation.
        unsafe { &*ptr.cast::<SharedPage>() }
    }

    /// Writes `page`, whose own `seq_count` is ignored. There must be one writer at a time.
    ///
    /// Carries on after a writer that died in the middle of a write.
    pub fn write(&self, page: &Page) {
        let (head, body) = page.as_bytes().split_at(BODY_OFFSET);
        protocol::write(&self.head[SEQ], || {
            for (word, bytes) in self.head[..SEQ].iter().zip(head.chunks_exact(size_of::<u32>())) {
                word.store(u32::from_ne_bytes(bytes.try_into().expect("4 bytes")), Ordering::Relaxed);
            }
            for (word, bytes) in self.body.iter().zip(body.chunks_exact(size_of::<u64>())) {
                let value = u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
                // Most of a page never changes: leave those cache lines with the readers.
                if word.load(Ordering::Relaxed) != value {
                    word.store(value, Ordering::Relaxed);
                }
            }
        });
    }

    /// A consistent copy of the whole page.
    pub fn snapshot(&self) -> Result<Page, Busy> {
        self.read(|page| zerocopy::transmute!(page.words::<0, { PAGE_SIZE / size_of::<u64>() }>()))
    }

    /// The counter that the page speaks of, which does not change while the page is in use; whoever reads a time
    /// checks it again.
    #[inline]
    pub fn counter_id(&self) -> CounterId {
        let bytes = self.u32_at::<{ offset_of!(VmclockAbi, version) }>().to_le_bytes();
        CounterId(bytes[offset_of!(VmclockAbi, counter_id) - offset_of!(VmclockAbi, version)])
    }

    /// Runs `load` until no write fell into it. It may run on a half-written page, so it only loads.
    pub(crate) fn read<T>(&self, mut load: impl FnMut(&SharedPage) -> T) -> Result<T, Busy> {
        for _ in 0..TRIES {
            if let Some(value) = self.try_read(&mut load) {
                return Ok(value);
            }
            core::hint::spin_loop();
        }
        Err(Busy)
    }

    /// As [`SharedPage::read`], once; nothing if a write was in progress or fell into it.
    #[inline(always)]
    pub(crate) fn try_read<T>(&self, load: impl FnOnce(&SharedPage) -> T) -> Option<T> {
        protocol::try_read(&self.head[SEQ], || load(self))
    }

    /// `N` words of 8 bytes from a byte offset, as they stand in memory.
    pub(crate) fn words<const OFFSET: usize, const N: usize>(&self) -> [u64; N] {
        const { assert!(OFFSET.is_multiple_of(size_of::<u64>()) && OFFSET + N * size_of::<u64>() <= PAGE_SIZE) };
        core::array::from_fn(|i| {
            let word = OFFSET / size_of::<u64>() + i;
            match word.checked_sub(BODY_OFFSET / size_of::<u64>()) {
                Some(word) => self.body[word].load(Ordering::Relaxed),
                None => {
                    zerocopy::transmute!([2 * word, 2 * word + 1].map(|half| self.head[half].load(Ordering::Relaxed)))
                }
            }
        })
    }

    /// The little-endian word at a byte offset up to `seq_count`'s.
    #[inline(always)]
    pub(crate) fn u32_at<const OFFSET: usize>(&self) -> u32 {
        const { assert!(OFFSET < BODY_OFFSET && OFFSET.is_multiple_of(size_of::<u32>())) };
        u32::from_le(self.head[OFFSET / size_of::<u32>()].load(Ordering::Relaxed))
    }

    /// The little-endian word at a byte offset behind `seq_count`.
    #[inline(always)]
    pub(crate) fn u64_at<const OFFSET: usize>(&self) -> u64 {
        const { assert!(OFFSET >= BODY_OFFSET && OFFSET < PAGE_SIZE && OFFSET.is_multiple_of(size_of::<u64>())) };
        u64::from_le(self.body[(OFFSET - BODY_OFFSET) / size_of::<u64>()].load(Ordering::Relaxed))
    }
}
