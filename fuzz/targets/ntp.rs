//! Datagrams from a server that says whatever it likes, in any order.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use radclock::time::Span;
use xen_backend::ntp::association::{Association, MAX_POLL, Next, Polling, Reject};
use zerocopy::IntoBytes;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Poll(u64),
    Datagram(&'a [u8]),
    /// One that carries the cookie and has a reply's mode and version.
    Reply {
        leap: u8,
        old: bool,
        bytes: [u8; 48],
    },
    Finish,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    period_secs: u16,
    burst: bool,
    steps: Vec<Step<'a>>,
}

fuzz_target!(|input: Input| {
    let period = Duration::from_secs(u64::from(input.period_secs).clamp(1, 1024));
    let mut association = Association::new(Polling { period, burst: input.burst });
    let mut cookie = None;
    let mut denied = false;
    for step in &input.steps {
        let datagram: &[u8] = match step {
            Step::Poll(random) => {
                let request = association.poll(*random);
                assert_ne!(request.transmit.get(), 0);
                assert_eq!(association.reach() & 1, 0);
                cookie = Some(request.transmit);
                continue;
            }
            Step::Finish => {
                match association.finish() {
                    Next::Stop => assert!(denied),
                    Next::Poll(after) | Next::Resolve(after) => {
                        assert!(!denied && after >= Duration::from_secs(1) && after <= MAX_POLL)
                    }
                }
                cookie = None;
                continue;
            }
            Step::Datagram(bytes) => bytes,
            Step::Reply { leap, old, bytes } => {
                let mut bytes = *bytes;
                bytes[0] = (leap << 6) | if *old { 3 << 3 } else { 4 << 3 } | 4;
                if let Some(cookie) = &cookie {
                    bytes[24..32].copy_from_slice(cookie.as_bytes());
                }
                &bytes.clone()
            }
        };
        let before = association.period();
        let result = association.handle(datagram);
        assert!(association.period() >= before && association.period() <= MAX_POLL);
        let spent = match result {
            Ok(answer) => {
                assert!(cookie.is_some(), "an answer that nobody asked for");
                assert!(answer.transmit >= answer.receive);
                assert!((1..=15).contains(&answer.stratum) && answer.leap < 3);
                assert!(answer.root_dispersion > Span::ZERO && answer.root_delay >= Span::ZERO);
                assert_eq!(association.reach() & 1, 1);
                true
            }
            Err(reject) => {
                assert!(!reject.to_string().contains('\n'), "{reject}");
                denied |= matches!(reject, Reject::Denied(_));
                reject.is_final()
            }
        };
        if spent {
            cookie = None;
        }
    }
});
