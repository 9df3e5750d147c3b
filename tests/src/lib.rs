//! The lab: real Xen hosts in QEMU on any x86 machine, from a fresh Debian 12 with Rust, as root.
//!
//! [`artefacts`] (kernel, hypervisor, Dom0's root; cached) and [`payload`] (what this project builds; new in each run)
//! → [`host`] (boots Xen with Dom0, runs commands there) → [`guest`] (guests, and commands in them) → [`truth`] (what a
//! clock's error really is) → [`demo`] and [`scenarios`].
//!
//! It holds no test of a single crate; those sit with what they test. Nothing here runs outside the lab.

pub mod artefacts;
pub mod cache;
pub mod command;
pub mod guest;
pub mod host;
pub mod initramfs;
pub mod ntp;
pub mod packages;
pub mod payload;
pub mod progress;
pub mod wait;
