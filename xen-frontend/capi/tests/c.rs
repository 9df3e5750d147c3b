//! The library as a C program sees it.

#![allow(missing_docs)]

#[path = "../../tests/local/mod.rs"]
mod local;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use local::{LocalPage, content};
use radclock::clock::Status;
use radclock::page::Content;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// The libraries, as cargo builds them: the shared one and the static one.
fn libraries() -> (PathBuf, PathBuf) {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--message-format=json", "--package=radclock-capi", "--lib"])
        .current_dir(CRATE)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files: Vec<PathBuf> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|message| message["target"]["name"] == "radclock" && message["filenames"].is_array())
        .flat_map(|message| message["filenames"].as_array().unwrap().clone())
        .map(|file| PathBuf::from(file.as_str().unwrap()))
        .collect();
    let ending = |extension: &str| {
        files.iter().find(|file| file.extension().is_some_and(|found| found == extension)).cloned().unwrap()
    };
    (ending("so"), ending("a"))
}

fn compile(output: &Path, link: &[&str]) {
    let status = Command::new("cc")
        .args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .arg(format!("-I{CRATE}/include"))
        .arg(format!("{CRATE}/examples/now.c"))
        .args(link)
        .arg("-o")
        .arg(output)
        .status()
        .expect("a C compiler");
    assert!(status.success());
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn the_example_runs_with_either_library() {
    let dir = tempfile::tempdir().unwrap();
    let (shared, archive) = libraries();
    for name in ["libradclock.so", "libradclock.so.0"] {
        std::os::unix::fs::symlink(&shared, dir.path().join(name)).unwrap();
    }
    let search = dir.path().to_str().unwrap();
    let programs = [dir.path().join("now-shared"), dir.path().join("now-static")];
    compile(&programs[0], &[&format!("-L{search}"), "-lradclock", &format!("-Wl,-rpath,{search}")]);
    compile(&programs[1], &[archive.to_str().unwrap(), "-lpthread", "-ldl", "-lm"]);

    let path = dir.path().join("vmclock0");
    let page = LocalPage::create(&path);
    let run = |program: &Path| Command::new(program).arg(&path).output().unwrap();
    for program in &programs {
        page.write(&content());
        let output = run(program);
        assert!(output.status.success(), "{}", stderr(&output));
        check_output(str::from_utf8(&output.stdout).unwrap());

        page.write(&Content { status: Status::Unreliable, ..content() });
        let output = run(program);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("unreliable"), "{}", stderr(&output));

        let output = Command::new(program).arg(dir.path().join("missing")).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("No such file or directory"), "{}", stderr(&output));
    }
}

/// The three times lie in order and within the minute that the page was written in.
fn check_output(text: &str) {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 4, "{text}");
    let decimal = |text: &str| text.parse::<f64>().unwrap();
    let written = content().clock.unwrap().time.secs() as f64;
    assert_eq!((lines[0][0], lines[1][0]), ("sample", "now"));
    let (sample, now) = (decimal(lines[0][1]), decimal(lines[1][1]));
    assert!(sample <= now && (now - written).abs() < 60.0, "{text}");
    assert!(decimal(lines[1][3]) >= 10_000.0, "{text}");
    assert_eq!(lines[1][5], "synchronized");
    let by_hand = decimal(lines[2][2]) + decimal(lines[2][5]);
    assert!((by_hand - now).abs() < 1e-3, "{text}");
    assert_eq!(text.lines().nth(3), Some("TAI is 37 s ahead of UTC"));
}

#[test]
fn the_header_is_current() {
    let header = Path::new(CRATE).join("include/radclock.h");
    let config = cbindgen::Config::from_file(format!("{CRATE}/cbindgen.toml")).unwrap();
    let mut generated = Vec::new();
    cbindgen::generate_with_config(CRATE, config).unwrap().write(&mut generated);
    let generated = String::from_utf8(generated).unwrap();
    if std::env::var_os("RADCLOCK_WRITE_HEADER").is_some() {
        std::fs::write(&header, generated).unwrap();
    } else {
        let committed = std::fs::read_to_string(&header).unwrap_or_default();
        assert!(
            committed == generated,
            "include/radclock.h is not what src/lib.rs says: RADCLOCK_WRITE_HEADER=1 cargo test -p radclock-capi"
        );
    }
}
