//! `radclockd`: keeps the host's RADclock and shares it with every guest.
//!
//! The path of the data, in order: [`ntp`] (exchanges with servers, stamped by the kernel) → [`bracket`] (the stamps
//! carried over to the host's [`counter`], with Xen a [`xen_counter`]), or [`phc`] (a PTP hardware clock) → [`keeper`]
//! (the clock: `radclock`'s algorithm, and UTC with its leap seconds) → [`daemon`] (publishes it) → [`xen`] (the guests'
//! pages) and [`pages`] (this host's own, over the TSC by way of [`relation`]); [`excursion`] widens bounds while Xen's
//! system time is astray. [`status`] answers `radclock-ctl`; [`config`], [`logging`] and
//! [`replay`] are what their names say.

pub mod bracket;
pub mod config;
pub mod counter;
pub mod daemon;
pub mod excursion;
pub mod host;
mod inheritance;
pub mod keeper;
pub mod logging;
pub mod ntp;
pub mod pages;
pub mod phc;
pub mod relation;
pub mod replay;
pub mod sandbox;
pub mod source;
pub mod status;
pub mod xen;
pub mod xen_counter;
