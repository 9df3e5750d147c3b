//! Takes what the patches add to Xen's public header `platform.h` out of them, and compiles it.

use std::path::Path;
use std::{env, fs};

const PATCH: &str = "0003-x86-introduce-XENPF_get_counters.patch";
const HEADER: &str = "+++ b/xen/include/public/platform.h";

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets it");
    println!("cargo::rerun-if-changed=src/header.c");
    let added = ["4.17", "4.20"].map(|release| {
        let path = format!("../{release}/{PATCH}");
        println!("cargo::rerun-if-changed={path}");
        added(&fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
    });
    assert_eq!(added[0], added[1], "the two series add different headers");
    fs::write(Path::new(&out).join("counters.h"), &added[0]).expect("cargo's folder can be written");
    cc::Build::new()
        .file("src/header.c")
        .include(&out)
        .std("gnu11")
        .extra_warnings(true)
        .warnings_into_errors(true)
        .compile("header");
}

/// The lines that a patch adds to the header, without the union's member.
fn added(patch: &str) -> String {
    let header = patch.split_once(HEADER).expect("the patch changes the header").1;
    let header = header.split("\ndiff --git").next().expect("at least one part");
    let lines = header.lines().filter_map(|line| line.strip_prefix('+'));
    lines
        .filter(|line| !line.starts_with(' ') || !line.ends_with(" counters;"))
        .map(|line| format!("{line}\n"))
        .collect()
}
