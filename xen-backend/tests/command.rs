//! The command line: what goes wrong is one line that says what to do.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use common::{RADCLOCKD, Radclockd, refused};

#[test]
fn each_failure_is_one_line_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("wrong.toml");
    std::fs::write(&wrong, "[server]\naddress = \"a\"\npoll = 0\n").unwrap();
    let wrong = wrong.to_str().unwrap();
    let with_list = |name: &str, list: &str| {
        let text = format!(
            "[server]\naddress = \"a\"\n[clock]\nleap_seconds = \"{list}\"\n[paths]\nrun_dir = \"{}/run\"\n",
            dir.path().display()
        );
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let list = with_list("list.toml", dir.path().join("leap.list").to_str().unwrap());
    let nowhere = with_list("nowhere.toml", "/nonexistent/leap.list");
    std::fs::write(dir.path().join("leap.list"), "next year\n").unwrap();
    let platform = dir.path().join("platform.toml");
    std::fs::write(&platform, "[server]\naddress = \"a\"\n[clock]\ncounter = \"platform\"\n").unwrap();
    let platform = platform.to_str().unwrap();
    let run = dir.path().join("run");
    let run = run.to_str().unwrap();
    for (arguments, input, part) in [
        (
            &["--check-config", "--config", wrong][..],
            "",
            "wrong.toml:3: invalid value: integer `0`, expected a whole number from 1 to 1024",
        ),
        (&["--config", wrong], "", "wrong.toml:3: "),
        (&["--config", "/nonexistent.toml"], "", "/nonexistent.toml: cannot read the configuration: No such file"),
        (
            &["--local", "--config", &list],
            "",
            "leap.list is no leap-second list (clock.leap_seconds): line 1 is not `TIME OFFSET`",
        ),
        (
            &["--local", "--config", &nowhere],
            "",
            "/nonexistent/leap.list: cannot read the leap-second list (clock.leap_seconds): No such",
        ),
        (
            &["--check-config", "--config", &list],
            "",
            "leap.list is no leap-second list (clock.leap_seconds): line 1 is not",
        ),
        (&["--check-config", "--config", &nowhere], "", "/nonexistent/leap.list: cannot read the leap-second list"),
        (
            &["--local", "--config", platform, "--run-dir", run],
            "",
            "clock.counter is a counter of Xen's: with --local it is \"tsc\", \"monotonic-raw\" or \"auto\"",
        ),
        (&["--local", "--run-dir", "/proc/radclock"], "", "cannot use the run directory /proc/radclock: "),
        (&["replay", "/nonexistent.stamps"], "", "cannot open /nonexistent.stamps: No such file"),
        (&["replay", "-"], "# comment\n1 2 3 x\n", "-: line 2: "),
        (&["replay", "-"], "# comment\n\n", "-: there is no stamp in it"),
        (&["replay", "/dev/null", "-"], "", "/dev/null: there is no stamp in it"),
        (&["replay", "--nominal-hz", "0", "-"], "", "--nominal-hz is out of range"),
    ] {
        let (error, code) = refused(arguments, input);
        assert_eq!(code, 1, "{arguments:?}");
        assert!(error.starts_with("radclockd: ") && error.contains(part), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    }
    let left: Vec<_> =
        std::fs::read_dir(dir.path().join("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["radclockd.lock"], "no page that nobody keeps");
}

#[test]
fn the_version_is_that_of_radclockd() {
    let output = Command::new(RADCLOCKD).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), concat!("radclockd ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_machine_without_xen_is_told_of_local() {
    if std::fs::read_to_string("/sys/hypervisor/type").is_ok_and(|kind| kind.trim() == "xen") {
        panic!("this test is for a machine that does not run on Xen");
    }
    let dir = tempfile::tempdir().unwrap();
    let (error, code) = refused(&["--run-dir", dir.path().to_str().unwrap()], "");
    assert_eq!(
        (error.as_str(), code),
        ("radclockd: this machine does not run on Xen: boot Xen, or run radclockd with --local\n", 1)
    );
}

#[test]
fn a_second_daemon_is_told_of_the_first() {
    let daemon = Radclockd::start("127.0.0.1", 9, "");
    let run_dir = daemon.run_dir();
    let (error, code) = refused(&["--local", "--run-dir", run_dir.to_str().unwrap()], "");
    assert_eq!(code, 1);
    assert!(error.starts_with("radclockd: another radclockd uses the run directory "), "{error}");
    daemon.status();
}

#[test]
fn the_configuration_is_checked_without_starting_anything() {
    let output = Command::new(RADCLOCKD)
        .args(["--check-config", "--config", concat!(env!("CARGO_MANIFEST_DIR"), "/radclockd.toml")])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("radclockd.toml: ok\n"));
}

#[test]
fn a_trace_is_replayed_and_a_reader_may_leave_early() {
    // Once a second, exact, with 20 us each way.
    let trace: String = (1..5000u64)
        .map(|n| {
            let ta = n * 1_000_000_000;
            format!("{ta} {}.000020000 {}.000020000 {}\n", 1_800_000_000 + n, 1_800_000_000 + n, ta + 40_000)
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    std::fs::write(&path, trace).unwrap();

    let output = Command::new(RADCLOCKD).arg("replay").arg(&path).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 4999);
    let last: Vec<&str> = text.lines().last().unwrap().split(' ').collect();
    let [counter, utc, bound] = last[..] else { panic!("{last:?}") };
    assert_eq!(counter, "4999000000000");
    let off = (utc.strip_prefix("1800004").unwrap().parse::<f64>().unwrap() - 999.0).abs();
    let bound: f64 = bound.parse().unwrap();
    assert!(off <= bound && bound < 1e-3, "off {off} bound {bound}");

    assert!(output.stderr.is_empty());

    let output = Command::new(RADCLOCKD).args(["replay", "--nominal-hz", "1.1e9"]).arg(&path).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let asked = "never synchronised in 4999 stamps: does the counter count 1100000000 times a second (--nominal-hz)?\n";
    assert!(output.status.success() && error.ends_with(asked) && error.lines().count() == 1, "{error}");

    let mut child =
        Command::new(RADCLOCKD).arg("replay").arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
