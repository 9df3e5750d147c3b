//! Stamps: one exchange with a server each, and the text format in which they are recorded and replayed.

use crate::time::{Counter, Span, Timestamp};

/// How the two counter values of a stamp were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum StampSource {
    /// By the kernel, when the packet left and arrived.
    Kernel,
    /// By the daemon, before sending and after receiving: wider, and always too wide.
    User,
}

/// One exchange with a server: `(Ta, Tb, Te, Tf)` of the RADclock papers, and what the server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The counter when the request left.
    pub ta: Counter,
    /// The server's time when the request arrived.
    pub tb: Timestamp,
    /// The server's time when the reply left.
    pub te: Timestamp,
    /// The counter when the reply arrived.
    pub tf: Counter,
    /// Bound on the error of `ta` and of `tf` as readings of the counter (bracketing), each. Zero in a trace.
    pub host_error: Span,
    /// The server's distance to its reference, there and back (NTP's root delay). Zero in a trace.
    pub root_delay: Span,
    /// The server's own claim of its error (NTP's root dispersion). Zero in a trace.
    pub root_dispersion: Span,
    /// How `ta` and `tf` were taken.
    pub source: StampSource,
}
