//! `radclockd`: keeps the host's RADclock and shares it with every guest.
//!
//! The path of the data, in order: [`ntp`] (exchanges with a server, stamped by the kernel) → [`bracket`] (the stamps
//! carried over to the host's [`counter`]) → `radclock::sync` (the algorithm) → [`daemon`] (publishes its result) →
//! [`xen`] (the guests' pages) and [`pages`] (this host's own, over the TSC by way of [`relation`]). [`status`]
//! answers `radclock-ctl`; [`config`], [`logging`] and [`replay`] are what their names say.

pub mod bracket;
pub mod config;
pub mod counter;
pub mod daemon;
pub mod host;
pub mod logging;
pub mod ntp;
pub mod pages;
pub mod relation;
pub mod replay;
pub mod status;
pub mod xen;
