//! The command on a page in a file.

#![allow(missing_docs)]

#[path = "../../tests/local/mod.rs"]
mod local;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use local::{LocalPage, content};
use radclock::clock::Status;
use radclock::page::{Content, CounterId, Flags};
use radclock::time::Span;
use serde_json::Value;
use tempfile::TempDir;

struct Setup {
    _dir: TempDir,
    path: PathBuf,
    page: LocalPage,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmclock0");
    let page = LocalPage::create(&path);
    page.write(&content());
    Setup { _dir: dir, path, page }
}

impl Setup {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_radclock"));
        command.args(args).arg("--device").arg(&self.path);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The one line of an error.
    fn failure(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("radclock: ") && text.ends_with('\n') && text.lines().count() == 1, "{text}");
        text
    }
}

fn text(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn now_prints_time_and_bound() {
    let setup = setup();
    let output = setup.run(&["now"]);
    let line = text(&output);
    assert!(line.starts_with("20") && line.contains("Z ± ") && line.ends_with(", synchronized\n"), "{line}");

    let json = setup.json(&["now"]);
    let secs = |key: &str| json[key].as_str().unwrap().parse::<f64>().unwrap();
    let written = content().clock.unwrap().time.secs() as f64;
    assert!((secs("time") - written).abs() < 60.0);
    assert!(secs("earliest") <= secs("time") && secs("time") <= secs("latest"));
    assert!(json["max_error_ns"].as_u64().unwrap() >= 10_000);
    assert_eq!(json["status"], "synchronized");
    assert_eq!(json["tai_offset_s"], 37);
    assert_eq!(json["disruption_marker"], 1);
}

#[test]
fn status_says_what_is_known() {
    let setup = setup();
    setup.page.write(&Content { leap_indicator: 4, disruption: Flags::DISRUPTION_SOON, ..content() });
    let output = setup.run(&["status"]);
    let words = text(&output);
    for expected in [
        "(TSC at 2.500000000 GHz)",
        "synchronized",
        "30313233343536373839616263646566",
        "generation  1",
        "marker 1",
        "37 s",
        "growing by 10.0 ms a second",
        "valid for 86400 s",
        "just over",
        "within a day",
    ] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    let json = setup.json(&["status"]);
    assert_eq!(json["host_id"], "30313233343536373839616263646566");
    assert_eq!(json["valid_s"], 86_400.0);
    assert!((json["period_max_error"].as_f64().unwrap() - 0.01).abs() < 1e-9);
    assert!(json["flags"].as_array().unwrap().contains(&"disruption_soon".into()));
    assert_eq!(json["error"], Value::Null);
}

#[test]
fn status_of_a_clock_that_cannot_be_read_says_why_and_fails() {
    let setup = setup();
    setup.page.write(&Content { clock: None, ..content() });
    let output = setup.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let words = str::from_utf8(&output.stdout).unwrap();
    assert!(words.contains("initializing: the clock is not synchronised yet; wait"), "{words}");
    let json = setup.json(&["status"]);
    assert_eq!(json["status"], "initializing");
    assert_eq!(json["reading"], Value::Null);
    assert_eq!(json["error"], "the clock is not synchronised yet");
}

#[test]
fn errors_are_one_line_that_says_what_to_do() {
    let mut setup = setup();
    setup.page.write(&Content { status: Status::Unreliable, ..content() });
    assert!(setup.failure(&["now"]).contains("unreliable now"));
    assert!(setup.failure(&["bench"]).contains("radclock-ctl doctor"));
    setup.page.write(&Content { counter_id: CounterId::XEN_SYSTEM_TIME, ..content() });
    assert!(setup.failure(&["now"]).contains("this page is for guests' drivers"));
    setup.path = setup.path.with_file_name("missing");
    assert!(setup.failure(&["now"]).contains("start radclockd"));
}

#[test]
fn bench_measures_all_three() {
    let setup = setup();
    let json = setup.json(&["bench", "--batches", "11"]);
    for key in ["now_ns", "clock_gettime_ns", "rdtscp_ns"] {
        assert!(json[key].as_f64().unwrap() > 1.0, "{json}");
    }
    let output = setup.run(&["bench", "--batches", "11"]);
    assert!(text(&output).contains("medians of 11 batches"));
}

#[test]
fn watch_prints_what_matters_and_nothing_else() {
    let setup = setup();
    // Reference and time fixed, so that rewriting it is no jump.
    let first = content();
    setup.page.write(&first);
    let mut child =
        setup.command(&["watch", "--interval", "5", "--count", "11"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert!(next().ends_with(" synchronized, host 30313233343536373839616263646566, disruption marker 1"));

    // A new generation and a jump below the threshold are not worth a line.
    let mut small = Content { generation: 2, ..first };
    let time = &mut small.clock.as_mut().unwrap().time;
    *time = time.saturating_add(Span::from_nanos(500));
    setup.page.write(&small);
    std::thread::sleep(std::time::Duration::from_millis(50));

    let mut jumped = Content { generation: 3, ..small };
    let time = &mut jumped.clock.as_mut().unwrap().time;
    *time = time.saturating_add(Span::from_nanos(-5000));
    setup.page.write(&jumped);
    let line = next();
    assert!(line.ends_with("Z jump -5.00 µs"), "{line}");

    let mut beyond = jumped;
    let time = &mut beyond.clock.as_mut().unwrap().time;
    *time = time.saturating_add(Span::from_secs(100));
    setup.page.write(&beyond);
    let line = next();
    assert!(line.contains("Z jump +100 s (beyond the bound of "), "{line}");

    setup.page.write(&Content { disruption: Flags::DISRUPTION_IMMINENT, ..beyond });
    let line = next();
    assert!(line.ends_with("Z a disruption is imminent, within an hour"), "{line}");

    // A disruption, one line each, in the order in which it goes by.
    setup.page.write(&Content { status: Status::Unreliable, disruption_marker: 2, ..beyond });
    let mut expect = |tail: &str| {
        let line = next();
        assert!(line.ends_with(tail), "{line}");
        line
    };
    assert!(expect("Z disrupted, disruption marker 1 -> 2").starts_with('~'), "no reading, so the system's time");
    expect("Z synchronized -> unreliable");
    expect("Z no longer warned of a disruption");
    setup.page.write(&Content { host_id: [7; 16], disruption_marker: 2, ..first });
    expect("Z unreliable -> synchronized");
    expect(&format!("Z new host {}", "07".repeat(16)));
    // Back by the 100 s from above, which no standstill explains.
    let line = next();
    assert!(line.contains("Z jump -") && line.ends_with("so one of the clocks is wrong"), "{line}");
    setup.page.write(&Content { host_id: [7; 16], disruption_marker: 3, ..first });
    let line = next();
    assert!(line.ends_with("Z disrupted, disruption marker 2 -> 3"), "{line}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_closed_pipe_ends_the_command_quietly() {
    let setup = setup();
    let mut child = setup
        .command(&["watch", "--interval", "5", "--jump", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    setup.page.write(&Content { disruption_marker: 2, ..content() });
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn usage_and_version() {
    let radclock = |arg: &str| Command::new(env!("CARGO_BIN_EXE_radclock")).arg(arg).output().unwrap();
    assert_eq!(text(&radclock("--version")), format!("radclock {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(radclock("when").status.code(), Some(2));
}
