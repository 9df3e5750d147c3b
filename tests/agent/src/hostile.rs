//! A guest that means harm, for the lab: rewrites its nodes in XenStore, floods its event channel, keeps its grant. It
//! runs in the guest, with what a guest has: `/dev/xen/xenbus`, and the modules xen-evtchn and xen-gntdev.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use memmap2::MmapOptions;
use nix::errno::Errno;
use nix::libc;

const PAGE: usize = 4096;
/// `XENSTORE_PAYLOAD_MAX`.
const PAYLOAD_MAX: usize = 4096;
/// xenstored's quota for a node of a guest's, `quota_max_entry_size`: value, permissions and names below it.
const NODE_MAX: usize = 2048;
const XS_WRITE: u32 = 11;
const XS_RM: u32 = 13;
const XS_ERROR: u32 = 16;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Rewrite the device's nodes and what the toolstack asks for, as fast as XenStore takes it; print how often it did and how
    /// often it did not, a line for each kind of deed. VICTIM is another guest's domain, whose nodes it tries.
    Nodes { victim: u16, seconds: u64 },
    /// Bind a port of Dom0's and send events as fast as Xen takes them; print how many.
    Flood { port: u32, seconds: u64 },
    /// Map a page of Dom0's, try to write it, and keep it until the end of the guest.
    Hold { page_ref: u32 },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Nodes { victim, seconds } => nodes(victim, Duration::from_secs(seconds)),
        Command::Flood { port, seconds } => flood(port, Duration::from_secs(seconds)),
        Command::Hold { page_ref } => hold(page_ref),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-hostile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn open(path: &str) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).context(path.to_owned())
}

/// XenStore by its messages (Xen's `public/io/xs_wire.h`), since no library sends what is not a string.
struct Store(File);

impl Store {
    fn open() -> Result<Store> {
        Ok(Store(open("/dev/xen/xenbus")?))
    }

    fn send(&mut self, kind: u32, payload: &[u8]) -> Result<()> {
        let mut message = Vec::with_capacity(16 + payload.len());
        for word in [kind, 0, 0, payload.len() as u32] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(payload);
        Ok(self.0.write_all(&message)?)
    }

    fn answer(&mut self) -> Result<()> {
        let mut header = [0; 16];
        self.0.read_exact(&mut header)?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let mut answer = vec![0; word(12) as usize];
        self.0.read_exact(&mut answer)?;
        if word(0) == XS_ERROR {
            bail!("{}", String::from_utf8_lossy(&answer).trim_end_matches('\0').to_owned());
        }
        Ok(())
    }

    fn call(&mut self, kind: u32, payload: &[u8]) -> Result<()> {
        self.send(kind, payload)?;
        self.answer()
    }

    /// Asks for a suspend and takes it back before the guest's own kernel, whose requests come after these, can see it: nobody
    /// would wake it.
    fn ask_for_suspend(&mut self) -> Result<()> {
        for text in ["suspend", ""] {
            self.send(XS_WRITE, format!("control/shutdown\0{text}").as_bytes())?;
        }
        self.answer().and(self.answer())
    }

    fn write(&mut self, path: &str, value: &[u8]) -> Result<()> {
        self.call(XS_WRITE, &[path.as_bytes(), b"\0", value].concat())
    }

    fn remove(&mut self, path: &str) -> Result<()> {
        self.call(XS_RM, &[path.as_bytes(), b"\0"].concat())
    }
}

fn nodes(victim: u16, duration: Duration) -> Result<()> {
    const DEVICE: &str = "device/radclock/0";
    let mut store = Store::open()?;
    let node = |name: &str| format!("{DEVICE}/{name}");
    let start = Instant::now();
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    // As much as a message has room for, and as much as xenstored lets a guest keep in a node.
    let huge = vec![b'4'; PAYLOAD_MAX - 64];
    let large = vec![b'4'; NODE_MAX - 64];
    let binary: Vec<u8> = (0..=255u8).cycle().take(1000).collect();
    let others = format!("/local/domain/0/backend/radclock/{victim}/0");
    let mut step = 0u64;
    while start.elapsed() < duration {
        step += 1;
        let (kind, done) = match step % 16 {
            0 => ("huge state", store.write(&node("state"), &huge)),
            1 => ("binary state", store.write(&node("state"), &binary)),
            2 => ("empty state", store.write(&node("state"), b"")),
            3 => ("no state", store.remove(&node("state"))),
            4 => ("another backend", store.write(&node("backend"), others.as_bytes())),
            5 => ("another backend's domain", store.write(&node("backend-id"), victim.to_string().as_bytes())),
            6 => ("suspend", store.ask_for_suspend()),
            7 => ("binary shutdown", store.write("control/shutdown", &binary)),
            8 => ("large version", store.write(&node("version"), &large)),
            9 => ("below state", store.write(&node(&format!("state/{}", step % 5000)), b"4")),
            // Only once all else was done: most of it is refused until the next offer.
            10 if step % 256 == 26 => ("no device", store.remove(DEVICE)),
            11 => ("another's state", store.write(&format!("{others}/state"), b"6")),
            // Nine states, one after the other, Connected between them.
            n if n % 2 == 0 => ("connected", store.write(&node("state"), b"4")),
            _ => ("any state", store.write(&node("state"), (step / 16 % 9).to_string().as_bytes())),
        };
        counts.entry(kind).or_default()[usize::from(done.is_err())] += 1;
    }
    for (kind, [written, refused]) in counts {
        println!("{kind}: {written} written, {refused} refused");
    }
    println!("end");
    Ok(())
}

/// `struct ioctl_evtchn_bind_interdomain` of Linux's `xen/evtchn.h`.
#[repr(C)]
struct BindInterdomain {
    remote_domain: u32,
    remote_port: u32,
}

const IOCTL_EVTCHN_BIND_INTERDOMAIN: u64 = ((size_of::<BindInterdomain>() as u64) << 16) | ((b'E' as u64) << 8) | 1;
const IOCTL_EVTCHN_NOTIFY: u64 = ((size_of::<u32>() as u64) << 16) | ((b'E' as u64) << 8) | 4;

fn flood(remote_port: u32, duration: Duration) -> Result<()> {
    let events = open("/dev/xen/evtchn")?;
    let request = BindInterdomain { remote_domain: 0, remote_port };
    // SAFETY: the kernel reads the structure, which is laid out as it expects.
    let port = unsafe { libc::ioctl(events.as_raw_fd(), IOCTL_EVTCHN_BIND_INTERDOMAIN, &raw const request) };
    let port = Errno::result(port).context("binding the port")? as u32;
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < duration {
        for _ in 0..100 {
            // SAFETY: the kernel reads the number of the port.
            Errno::result(unsafe { libc::ioctl(events.as_raw_fd(), IOCTL_EVTCHN_NOTIFY, &raw const port) })?;
        }
        sent += 100;
    }
    println!("{sent} events");
    Ok(())
}

/// `struct ioctl_gntdev_map_grant_ref` of Linux's `xen/gntdev.h`, for one page.
#[repr(C)]
struct MapGrantRef {
    count: u32,
    pad: u32,
    index: u64,
    domid: u32,
    gref: u32,
}

const IOCTL_GNTDEV_MAP_GRANT_REF: u64 = ((size_of::<MapGrantRef>() as u64) << 16) | ((b'G' as u64) << 8);

fn hold(gref: u32) -> Result<()> {
    let device = open("/dev/xen/gntdev")?;
    let take = || {
        let mut request = MapGrantRef { count: 1, pad: 0, index: 0, domid: 0, gref };
        // SAFETY: the kernel reads and writes the structure, which is laid out as it expects.
        Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_GNTDEV_MAP_GRANT_REF, &raw mut request) })?;
        let mut options = MmapOptions::new();
        options.offset(request.index).len(PAGE);
        Ok::<_, Errno>(options)
    };
    // To write first: Xen is to refuse it.
    ensure!(take()?.map_raw(&device).is_err(), "the page could be mapped for writing");
    let page = take()?.map_raw_read_only(&device).context("mapping the page")?;
    // SAFETY: the mapping is a page long, and read as bytes that may be any.
    let magic = unsafe { page.as_ptr().cast::<u32>().read_volatile() };
    println!("holding {magic:#010x}");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
