//! Compiles the driver for user space, whole, with the kernel's interfaces from `driver/kernel.h`; by clang, so that the
//! fuzzer sees its branches.

use std::path::{Path, PathBuf};
use std::{env, fs};

const KMOD: &str = "../xen-frontend/kmod";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let include = out.join("include");
    for file in ["xen-radclockfront.c", "radclockif.h", "radclock_compose.h", "radclock_line.h"] {
        println!("cargo::rerun-if-changed={KMOD}/{file}");
    }
    println!("cargo::rerun-if-changed=driver");
    let driver = fs::read_to_string(Path::new(KMOD).join("xen-radclockfront.c")).expect("the driver");
    // The kernel's headers are empty here: driver/kernel.h, which comes first, has it all.
    for line in driver.lines() {
        if let Some(header) = line.strip_prefix("#include <").and_then(|rest| rest.strip_suffix('>')) {
            let header = include.join(header);
            fs::create_dir_all(header.parent().expect("a folder")).expect("a folder");
            fs::write(header, "").expect("a file");
        }
    }
    let mut build = cc::Build::new();
    build.compiler("clang").file("driver/driver.c").include(include).include(KMOD).std("gnu11");
    // The kernel's u64 is another type here, and its callbacks have parameters that nobody needs.
    build.extra_warnings(false).warnings_into_errors(true).flag("-Wno-format");
    build.flags(["-fsanitize=undefined", "-fsanitize-trap=undefined"]);
    // As cargo-fuzz does it for Rust; the crate cc takes over the sanitizer by itself.
    if env::var("CARGO_CFG_FUZZING").is_ok() {
        build.flag("-fsanitize-coverage=trace-cmp,inline-8bit-counters,pc-table");
    }
    build.compile("driver");
}
