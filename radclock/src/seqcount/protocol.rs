// Included a second time by tests/seqcount_model.rs, over loom's atomics.
use super::atomic::{AtomicU32, Ordering, fence};

/// Runs `store`, whose stores are relaxed, as one write.
pub(crate) fn write(seq: &AtomicU32, store: impl FnOnce()) {
    // Odd, and other than before, even if a writer died and left it odd.
    let writing = seq.load(Ordering::Relaxed).wrapping_add(1) | 1;
    seq.store(writing, Ordering::Relaxed);
    // Pairs with the fence in `try_read`: a reader that sees any of the stores sees `writing` or later.
    fence(Ordering::Release);
    store();
    // Pairs with the first load in `try_read`: a reader that starts from this value sees all of the stores.
    seq.store(writing.wrapping_add(1), Ordering::Release);
}

/// Runs `load`, whose loads are relaxed, once; nothing if a write was in progress or fell into it.
#[inline(always)]
pub(crate) fn try_read<T>(seq: &AtomicU32, load: impl FnOnce() -> T) -> Option<T> {
    let before = seq.load(Ordering::Acquire);
    if before & 1 != 0 {
        return None;
    }
    let value = load();
    fence(Ordering::Acquire);
    (seq.load(Ordering::Relaxed) == before).then_some(value)
}
