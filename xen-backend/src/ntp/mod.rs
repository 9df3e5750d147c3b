//! The NTP client: a packet's layout, the protocol as a pure state, and the sockets with the kernel's timestamps.

pub mod association;
pub mod client;
pub mod packet;
