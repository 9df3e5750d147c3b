//! Warnings that the counter will be disrupted, by a migration say: vmclock's flags for that as one value.

use core::fmt;

use crate::page::{Flags, Page};

/// How near a disruption is expected to be. Source: Linux, `include/uapi/linux/vmclock-abi.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Disruption {
    /// Within about a day.
    Soon,
    /// Within about an hour.
    Imminent,
}

impl Disruption {
    /// What a page's flags warn of.
    pub const fn from_flags(flags: Flags) -> Option<Disruption> {
        if flags.contains(Flags::DISRUPTION_IMMINENT) {
            Some(Disruption::Imminent)
        } else if flags.contains(Flags::DISRUPTION_SOON) {
            Some(Disruption::Soon)
        } else {
            None
        }
    }

    /// The flags that say so. What is imminent is soon as well, for a reader who knows of one flag only.
    pub const fn flags(self) -> Flags {
        match self {
            Disruption::Soon => Flags::DISRUPTION_SOON,
            Disruption::Imminent => Flags::DISRUPTION_SOON.union(Flags::DISRUPTION_IMMINENT),
        }
    }

    /// The most seconds that it is away, roughly.
    pub const fn within_secs(self) -> u64 {
        match self {
            Disruption::Soon => 24 * 3600,
            Disruption::Imminent => 3600,
        }
    }
}

impl fmt::Display for Disruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Disruption::Soon => "soon",
            Disruption::Imminent => "imminent",
        })
    }
}

/// Puts a warning, or none, into a page in place of the one there.
pub fn warn(page: &mut Page, warning: Option<Disruption>) {
    let flags = page.abi.flags.get() & !Disruption::Imminent.flags().bits();
    page.abi.flags.set(flags | warning.map_or(0, |warning| warning.flags().bits()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_goes_into_a_page_and_out_again_and_leaves_the_rest() {
        let mut page = Page::zeroed();
        let others = (Flags::TAI_OFFSET_VALID | Flags::TIME_MAXERROR_VALID).bits() | 1 << 63;
        page.abi.flags.set(others);
        for warning in [Some(Disruption::Soon), Some(Disruption::Imminent), Some(Disruption::Soon), None] {
            warn(&mut page, warning);
            assert_eq!(Disruption::from_flags(page.abi.flags()), warning);
            assert_eq!(page.abi.flags.get() & !0b110, others);
        }
    }

    #[test]
    fn either_flag_alone_warns() {
        assert_eq!(Disruption::from_flags(Flags::DISRUPTION_IMMINENT), Some(Disruption::Imminent));
        assert_eq!(Disruption::from_flags(Flags::DISRUPTION_SOON), Some(Disruption::Soon));
        assert!(Disruption::Imminent > Disruption::Soon);
    }
}
