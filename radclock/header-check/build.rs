//! Compiles the driver's headers with the functions and figures that the tests ask for.

fn main() {
    let headers = "../../xen-frontend/kmod";
    println!("cargo::rerun-if-changed=src/headers.c");
    for header in ["radclockif.h", "radclock_compose.h", "radclock_line.h"] {
        println!("cargo::rerun-if-changed={headers}/{header}");
    }
    cc::Build::new()
        .file("src/headers.c")
        .include(headers)
        .std("gnu11")
        .extra_warnings(true)
        .warnings_into_errors(true)
        .compile("headers");
}
