//! The RADclock, with no I/O and no Xen.
//!
//! A clock here is two separate things: a raw counter that nobody adjusts, and a few parameters that turn a
//! reading of it into time. The path of the data through this crate, in order:
//!
//! [`stamp`] (one exchange with a server) → [`sync`] (the synchronisation algorithm, one a server) → [`ensemble`] (what
//! several servers say together) → [`clock`] (the result: parameters with an error bound) → [`page`] (how they are laid
//! out in shared memory) → [`reader`] (a counter
//! reading turned into time, or an error). [`compose`] moves parameters from one counter to another;
//! [`seqcount`] is the rule by which a page is written and read at once; [`leap`] is about leap seconds;
//! [`disruption`] about warnings of one; [`report`] is what a daemon says of itself;
//! [`xenbus`] names what stands in XenStore.
//!
//! Everything but [`stamp`], [`sync`], [`ensemble`], [`replay`], [`report`] and [`xenbus`] works without the standard
//! library.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod clock;
pub mod compose;
pub mod disruption;
#[cfg(feature = "std")]
pub mod ensemble;
pub mod leap;
pub mod page;
pub mod reader;
#[cfg(feature = "std")]
pub mod replay;
#[cfg(feature = "serde")]
pub mod report;
pub mod seqcount;
#[cfg(feature = "std")]
pub mod stamp;
#[cfg(feature = "std")]
pub mod sync;
pub mod time;
#[cfg(feature = "std")]
pub mod xenbus;
