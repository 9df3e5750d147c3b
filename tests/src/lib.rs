//! The lab: real Xen hosts in QEMU on any x86 machine, from a fresh Debian 12 with Rust, as root.
//!
//! [`artefacts`] (kernel, hypervisor, Dom0's root; cached) and [`payload`] (what this project builds; new in each run)
//! → [`host`] (boots Xen with Dom0, one host or a pair, and runs commands there) → [`guest`] (guests, commands in them, their
//! migration) → [`truth`] (what a clock's error really is), [`observer`] and [`readings`] (the same of each reading of a
//! process, wherever its guest goes), [`divergence`] (how far guests are from Dom0) → [`demo`], [`scenarios`] (which [`runner`]
//! runs) and [`figures`].
//! [`experiments`] end in a [`report`] with plots ([`plot`]); not all of them need a host.
//!
//! It holds no test of a single crate; those sit with what they test. Nothing here runs outside the lab.

pub mod artefacts;
pub mod cache;
pub mod command;
pub mod daemons;
pub mod demo;
pub mod divergence;
pub mod experiments;
pub mod faults;
pub mod figures;
pub mod guest;
pub mod host;
pub mod initramfs;
pub mod ntp;
pub mod observer;
pub mod packages;
pub mod payload;
pub mod plot;
mod probe;
pub mod progress;
pub mod radclockd;
pub mod readings;
pub mod relay;
pub mod report;
pub mod runner;
pub mod scenarios;
pub mod soak;
mod timeline;
pub mod truth;
pub mod wait;
pub mod watch;
pub mod xen;

use anyhow::Result;

use artefacts::Artefacts;
use cache::{Cache, RunDir};
use host::{Host, Pair};
use payload::{Parts, Payload};

/// All that it takes to boot hosts.
pub struct Lab {
    cache: Cache,
    artefacts: Artefacts,
    payload: Payload,
    run: RunDir,
}

impl Lab {
    /// Fetches, or takes from the cache, and builds everything.
    pub fn prepare(parts: Parts) -> Result<Lab> {
        let cache = Cache::open()?;
        let artefacts = Artefacts::get(&cache)?;
        let payload = Payload::build(&artefacts, parts)?;
        let run = cache.run_dir()?;
        Ok(Lab { cache, artefacts, payload, run })
    }

    /// Has all hosts boot our hypervisor instead of Debian's.
    pub fn use_patched_xen(&mut self) -> Result<()> {
        self.artefacts.xen = xen::build(&self.cache, xen::RELEASE)?;
        Ok(())
    }

    /// The same for a part of the run, with a folder of its own for its hosts.
    pub fn part(&self) -> Result<Lab> {
        let Lab { cache, artefacts, payload, run } = self;
        Ok(Lab { cache: cache.clone(), artefacts: artefacts.clone(), payload: payload.clone(), run: run.part()? })
    }

    /// Whether one of its hosts has stood still, by what Xen said.
    pub fn stood_still(&self) -> Result<bool> {
        host::any_stood_still(self.run.path())
    }

    /// Builds what hosts and scenarios build when they need it, so that no compiler runs beside another one's host.
    pub fn build_the_rest(&self) -> Result<()> {
        xen::build(&self.cache, xen::RELEASE)?;
        payload::other_radclockd().map(drop)
    }

    /// Boots a host, up to a Dom0 that takes commands.
    pub fn boot(&self) -> Result<Host> {
        Host::boot(&self.artefacts, &self.payload, &self.run)
    }

    /// The same with memory for dozens of small guests.
    pub fn boot_large(&self) -> Result<Host> {
        Host::boot_large(&self.artefacts, &self.payload, &self.run)
    }

    /// The same with our hypervisor, whichever the others boot.
    pub fn boot_patched(&self) -> Result<Host> {
        let xen = xen::build(&self.cache, xen::RELEASE)?;
        Host::boot(&Artefacts { xen, ..self.artefacts.clone() }, &self.payload, &self.run)
    }

    /// Boots two hosts between which guests can migrate. Their hypervisor is our own build, because Debian's has no
    /// shadow paging, without which a PV guest cannot migrate live.
    pub fn boot_pair(&self) -> Result<Pair> {
        let xen = xen::build(&self.cache, xen::RELEASE)?;
        Pair::boot(&self.artefacts, &xen, &self.payload, &self.run)
    }
}
