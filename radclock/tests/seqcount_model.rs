//! The seqcount under loom: every interleaving and every reordering that the memory model allows.

#![allow(missing_docs)]

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU32, Ordering, fence};
}
#[path = "../src/seqcount/protocol.rs"]
mod protocol;

use atomic::{AtomicU32, Ordering};

struct Cell {
    seq: AtomicU32,
    words: [AtomicU64; 2],
}

impl Cell {
    fn new(seq: u32) -> Arc<Cell> {
        Arc::new(Cell { seq: AtomicU32::new(seq), words: [AtomicU64::new(0), AtomicU64::new(0)] })
    }

    fn write(&self, value: u64) {
        protocol::write(&self.seq, || self.words.iter().for_each(|word| word.store(value, Ordering::Relaxed)));
    }

    fn try_read(&self) -> Option<[u64; 2]> {
        protocol::try_read(&self.seq, || self.words.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }
}

#[test]
fn a_snapshot_never_mixes_two_writes() {
    loom::model(|| {
        let cell = Cell::new(0);
        let writer = thread::spawn({
            let cell = cell.clone();
            move || (1..=2).for_each(|value| cell.write(value))
        });
        if let Some([first, second]) = cell.try_read() {
            assert_eq!(first, second);
        }
        writer.join().unwrap();
        assert_eq!(cell.try_read(), Some([2, 2]));
    });
}

#[test]
fn a_later_snapshot_is_never_older() {
    loom::model(|| {
        let cell = Cell::new(0);
        let writer = thread::spawn({
            let cell = cell.clone();
            move || cell.write(1)
        });
        let (earlier, later) = (cell.try_read(), cell.try_read());
        if let (Some(earlier), Some(later)) = (earlier, later) {
            assert!(earlier <= later);
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_write_that_was_cut_off_is_not_read_and_the_next_one_is() {
    loom::model(|| {
        let cell = Cell::new(1);
        assert_eq!(cell.try_read(), None);
        let writer = thread::spawn({
            let cell = cell.clone();
            move || cell.write(1)
        });
        assert!(matches!(cell.try_read(), None | Some([1, 1])));
        writer.join().unwrap();
        assert_eq!(cell.try_read(), Some([1, 1]));
    });
}
