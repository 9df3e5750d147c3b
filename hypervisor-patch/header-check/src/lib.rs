//! Holds radclockd's structure of the platform operation `XENPF_get_counters` against the public header that the patches
//! add to Xen. Tests only: there is nothing here to use.

#![cfg(test)]

use std::mem::{offset_of, size_of};

use xen_backend::xen::platform::{GET_COUNTERS, Timer, XenPlatformOp, XenpfCounters};

const LEN: usize = 1 + 2 * 10 + 4;

unsafe extern "C" {
    static check_counters: [u64; LEN];
    static check_counters_len: u64;
}

#[test]
fn the_structure_is_the_headers() {
    macro_rules! layout {
        ($($field:ident),*) => {{
            fn size<T, F>(_: impl Fn(&T) -> &F) -> u64 { size_of::<F>() as u64 }
            [$([offset_of!(XenpfCounters, $field) as u64, size(|whole: &XenpfCounters| &whole.$field)]),*]
        }};
    }
    let fields = layout!(timer, flags, tsc, count, tsc_end, system_time, frequency, width, cpu, name);
    let values = [GET_COUNTERS.into(), Timer::Platform as u64, Timer::Hpet as u64, Timer::AcpiPm as u64];
    let rust: Vec<u64> = [size_of::<XenpfCounters>() as u64].into_iter().chain(fields.concat()).chain(values).collect();
    // SAFETY: constants in C.
    unsafe {
        assert_eq!(check_counters_len, LEN as u64);
        assert_eq!(check_counters.as_slice(), rust);
    }
}

#[test]
fn the_operation_is_as_large_as_xens_with_its_union() {
    // `uint8_t pad[128]`, which stands in the patch's context, makes the union; cmd and interface_version come before it.
    let patch = include_str!("../../4.17/0003-x86-introduce-XENPF_get_counters.patch");
    assert!(patch.contains("\n         uint8_t                       pad[128];\n     } u;\n };"));
    assert_eq!(offset_of!(XenPlatformOp, counters), 8);
    assert_eq!(size_of::<XenPlatformOp>(), 8 + 128);
}
