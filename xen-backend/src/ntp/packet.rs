//! The NTP packet of RFC 5905 without extension fields: its layout, and its time formats turned into ours.
//!
//! No judgement of what a packet says: that is [`super::association`].

use radclock::time::{Span, Timestamp};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version that is spoken here.
pub const VERSION: u8 = 4;
/// `mode` of a request.
pub const MODE_CLIENT: u8 = 3;
/// `mode` of a reply.
pub const MODE_SERVER: u8 = 4;
/// `leap` of a server that is not synchronised.
pub const LEAP_UNSYNCHRONISED: u8 = 3;

/// 1900-01-01 to 1970-01-01 in seconds.
const UNIX_IN_NTP: u64 = 2_208_988_800;
/// 2020-01-01 in NTP seconds. A 32-bit time names the first such second from here on, so that packets are read
/// rightly until 2156, without asking a local clock that may be wrong.
const PIVOT: u64 = 3_786_825_600;

/// An NTP header as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Packet {
    /// Leap indicator (2 bits), version (3), mode (3).
    pub flags: u8,
    /// The sender's stratum; 0 in a reply is a kiss-of-death, its code in `reference_id`.
    pub stratum: u8,
    /// Poll interval, log2 s.
    pub poll: i8,
    /// Resolution of the sender's clock, log2 s.
    pub precision: i8,
    /// Round trip to the reference, 2⁻¹⁶ s.
    pub root_delay: U32,
    /// The sender's claim of its error, 2⁻¹⁶ s.
    pub root_dispersion: U32,
    /// Whom the sender follows, or a kiss code.
    pub reference_id: [u8; 4],
    /// When the sender's clock was last set.
    pub reference: U64,
    /// In a reply, the request's `transmit`.
    pub origin: U64,
    /// When the request arrived.
    pub receive: U64,
    /// When this packet left; in our requests a random cookie, so that our clock is told to nobody.
    pub transmit: U64,
}

const _: () = assert!(size_of::<Packet>() == 48);

impl Packet {
    /// A request that carries nothing but a cookie, to be found again in the reply's `origin`.
    pub fn request(cookie: u64) -> Packet {
        Packet {
            flags: (VERSION << 3) | MODE_CLIENT,
            stratum: 0,
            poll: 0,
            precision: 0x20,
            root_delay: 0.into(),
            root_dispersion: 0.into(),
            reference_id: [0; 4],
            reference: 0.into(),
            origin: 0.into(),
            receive: 0.into(),
            transmit: cookie.into(),
        }
    }

    /// The leap indicator, 0 to 3.
    pub fn leap(&self) -> u8 {
        self.flags >> 6
    }

    /// The version, 0 to 7.
    pub fn version(&self) -> u8 {
        (self.flags >> 3) & 7
    }

    /// The mode, 0 to 7.
    pub fn mode(&self) -> u8 {
        self.flags & 7
    }
}

/// An NTP time (32 bits of seconds since 1900 modulo 2³², 32 bits of fraction) as UTC between 2020 and 2156.
/// NTP's zero means "not known" and yields nothing.
pub fn timestamp(ntp: u64) -> Option<Timestamp> {
    if ntp == 0 {
        return None;
    }
    let secs = ntp >> 32;
    let secs = if secs < PIVOT { secs + (1 << 32) } else { secs };
    Some(Timestamp::new(secs - UNIX_IN_NTP, ntp << 32))
}

/// UTC as an NTP time: the inverse of [`timestamp`].
pub fn from_timestamp(time: Timestamp) -> u64 {
    (time.secs().wrapping_add(UNIX_IN_NTP) << 32) | (time.frac() >> 32)
}

/// An NTP short (2⁻¹⁶ s).
pub fn short(ntp: u32) -> Span {
    Span::from_frac(i128::from(ntp) << 48)
}

/// 2^`log2` s, for `precision`; capped at 1 s, and at 2⁻³² s, the resolution of an NTP time.
pub fn log2_span(log2: i8) -> Span {
    Span::from_frac(1 << (64 + i32::from(log2.clamp(-32, 0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_eras_are_unfolded_around_2036() {
        // RFC 5905, figure 4: the first day of NTP era 1 is 2036-02-07 06:28:16.
        assert_eq!(timestamp(0x0000_0000_8000_0000), Some(Timestamp::new(2_085_978_496, 1 << 63)));
        assert_eq!(timestamp(0xffff_ffff_0000_0000), Some(Timestamp::new(2_085_978_495, 0)));
        assert_eq!(timestamp(0), None);
    }

    #[test]
    fn a_request_is_a_version_4_client_packet_and_tells_nothing_else() {
        let bytes = Packet::request(0x0102_0304_0506_0708);
        let bytes = bytes.as_bytes();
        assert_eq!(bytes[0], 0x23);
        assert_eq!(bytes[40..], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(bytes[4..40].iter().all(|&byte| byte == 0));
    }

    proptest! {
        #[test]
        fn times_from_2020_to_2156_survive_the_wire(secs in 1_577_836_800u64..5_872_804_096, frac: u32) {
            let time = Timestamp::new(secs, u64::from(frac) << 32);
            prop_assume!(from_timestamp(time) != 0);
            prop_assert_eq!(timestamp(from_timestamp(time)), Some(time));
        }
    }
}
