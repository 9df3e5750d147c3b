//! `radclock-ctl` on a host with more domains than XenStore lists in one message.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

const DOMAINS: usize = 1500;
/// What a message holds.
const PAYLOAD_MAX: usize = 4096;
const XS_DIRECTORY: u32 = 1;
const XS_READ: u32 = 2;
const XS_ERROR: u32 = 16;
const XS_DIRECTORY_PART: u32 = 22;

/// A XenStore with so many domains, each with a name.
fn serve(mut client: UnixStream) {
    let domids: Vec<u8> = (0..DOMAINS).flat_map(|domid| format!("{domid}\0").into_bytes()).collect();
    let mut header = [0; 16];
    while client.read_exact(&mut header).is_ok() {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(12) as usize];
        client.read_exact(&mut payload).unwrap();
        let payload = String::from_utf8(payload).unwrap();
        let [path, offset] = [0, 1].map(|part| payload.split('\0').nth(part).unwrap());
        let answer = match (word(0), path.rsplit_once('/').unwrap()) {
            (XS_DIRECTORY, ("/local", "domain")) => Err("E2BIG"),
            (XS_DIRECTORY_PART, ("/local", "domain")) => {
                let rest = &domids[offset.parse::<usize>().unwrap()..];
                let part = &rest[..rest.len().min(PAYLOAD_MAX - 3)];
                let end = part.iter().rposition(|byte| *byte == 0).map_or(0, |last| last + 1);
                let is_last: &[u8] = if end == rest.len() { b"\0" } else { b"" };
                Ok([b"1\0", &part[..end], is_last].concat())
            }
            (XS_READ, (_, "vm")) => Ok(b"/vm/u".to_vec()),
            (XS_READ, (domain, "name")) => Ok(format!("guest of {domain}").into_bytes()),
            _ => Err("ENOENT"),
        };
        let (kind, answer) = match answer {
            Ok(answer) => (word(0), answer),
            Err(error) => (XS_ERROR, format!("{error}\0").into_bytes()),
        };
        for word in [kind, word(4), 0, answer.len() as u32] {
            client.write_all(&word.to_ne_bytes()).unwrap();
        }
        client.write_all(&answer).unwrap();
    }
}

#[test]
fn all_domains_are_listed_however_many_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("xenstored");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            std::thread::spawn(move || serve(client.unwrap()));
        }
    });
    let output = Command::new(env!("CARGO_BIN_EXE_radclock-ctl"))
        .args(["list", "--json", "--socket"])
        .arg(dir.path().join("none"))
        .env("XENSTORED_PATH", &socket)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let host: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let guests = host["guests"].as_array().unwrap();
    assert_eq!(guests.len(), DOMAINS - 1, "all but Dom0");
    assert_eq!(guests[DOMAINS - 2]["name"], format!("guest of /local/domain/{}", DOMAINS - 1));
}
