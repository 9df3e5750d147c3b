//! Synchronisation runs with known truth, from a seed. The same seed gives the same run on every machine.
//!
//! A [`family`] of scenarios → a [`scenario`] (an [`oscillator`], servers and paths ([`network`]), polls, gaps) → its
//! exchanges with their true times → a [`trace`] that `radclockd replay` takes → a [`score`].
//!
//! It knows nothing of any clock but what it takes to score one: no clock's behaviour is built into the runs.

pub mod family;
pub mod network;
pub mod oscillator;
pub mod random;
pub mod scenario;
pub mod score;
pub mod trace;
