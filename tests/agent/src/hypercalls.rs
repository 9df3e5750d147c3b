//! Calls the platform operation `XENPF_get_counters` of our patched Xen, well and badly, for the lab. It needs
//! `/dev/xen/privcmd`, in a guest from the module xen-privcmd with `unrestricted=1`. Not a tool for users.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lab_agent::counters::{Counters, INTERFACE_VERSION, Outcome, PLATFORM_OP, PlatformOp, Sample};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::libc;
use zerocopy::{FromBytes, IntoBytes};

const PAGE: usize = 4096;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sample a timer (0 the platform timer, 1 the HPET, 2 the ACPI PM timer) so many times, a line of JSON each.
    Sample { timer: u32, count: usize, pause_milliseconds: u64 },
    /// Make each mistake once, and print the answers as JSON.
    Mistakes,
    /// Call with random arguments so many times, and print how often each answer was given as JSON.
    Storm { count: u64, seed: u64 },
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-hypercalls: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    let xen = Xen::open()?;
    match command {
        Command::Sample { timer, count, pause_milliseconds } => {
            for _ in 0..*count {
                thread::sleep(Duration::from_millis(*pause_milliseconds));
                println!("{}", serde_json::to_string(&xen.sample(*timer)?)?);
            }
        }
        Command::Mistakes => println!("{}", serde_json::to_string(&xen.mistakes()?)?),
        Command::Storm { count, seed } => println!("{}", serde_json::to_string(&xen.storm(*count, *seed))?),
    }
    Ok(())
}

/// `struct privcmd_hypercall` of Linux's `xen/privcmd.h`.
#[repr(C)]
struct PrivcmdHypercall {
    op: u64,
    arg: [u64; 5],
}

const IOCTL_PRIVCMD_HYPERCALL: u64 = ((size_of::<PrivcmdHypercall>() as u64) << 16) | ((b'P' as u64) << 8);

struct Xen {
    privcmd: File,
    /// Two pages that the kernel neither swaps nor moves.
    buffer: MmapRaw,
}

impl Xen {
    fn open() -> Result<Xen> {
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path).context(path.to_owned());
        let buffer = MmapOptions::new().len(2 * PAGE).map_raw(&open("/dev/xen/hypercall")?)?;
        Ok(Xen { privcmd: open("/dev/xen/privcmd")?, buffer })
    }

    /// Makes the hypercall with whatever pointer.
    fn call(&self, pointer: u64) -> Result<(), Errno> {
        let call = PrivcmdHypercall { op: PLATFORM_OP, arg: [pointer, 0, 0, 0, 0] };
        // SAFETY: the kernel reads `call`. Xen writes only to a structure at `pointer` that asks for GET_COUNTERS, and
        // none but those in the buffer does.
        Errno::result(unsafe { libc::ioctl(self.privcmd.as_raw_fd(), IOCTL_PRIVCMD_HYPERCALL, &raw const call) })
            .map(drop)
    }

    fn address(&self, offset: usize) -> u64 {
        self.buffer.as_mut_ptr() as u64 + offset as u64
    }

    fn put(&self, offset: usize, operation: &PlatformOp) {
        assert!(offset + size_of::<PlatformOp>() <= 2 * PAGE);
        // SAFETY: inside the buffer, to which nobody holds a reference.
        unsafe {
            self.buffer.as_mut_ptr().add(offset).copy_from(operation.as_bytes().as_ptr(), size_of::<PlatformOp>())
        }
    }

    fn get(&self, offset: usize) -> PlatformOp {
        assert!(offset + size_of::<PlatformOp>() <= 2 * PAGE);
        let mut bytes = [0; size_of::<PlatformOp>()];
        // SAFETY: inside the buffer, to which nobody holds a reference.
        unsafe { self.buffer.as_mut_ptr().add(offset).copy_to(bytes.as_mut_ptr(), bytes.len()) }
        PlatformOp::read_from_bytes(&bytes).expect("as many bytes")
    }

    fn sample(&self, timer: u32) -> Result<Sample> {
        self.put(0, &PlatformOp::get_counters(timer, 0));
        self.call(self.address(0)).with_context(|| format!("sampling timer {timer}"))?;
        Ok(self.get(0).counters.into())
    }

    fn mistakes(&self) -> Result<BTreeMap<String, Outcome>> {
        let good = PlatformOp::get_counters(0, 0);
        let mut outcomes = BTreeMap::new();
        let mut add = |name: &str, outcome: Outcome| {
            outcomes.insert(name.to_owned(), outcome);
        };
        add("none", self.outcome(0, &good));
        add("timer", self.outcome(0, &PlatformOp::get_counters(3, 0)));
        add("flags", self.outcome(0, &PlatformOp::get_counters(0, 1)));
        add("version", self.outcome(0, &PlatformOp { interface_version: INTERFACE_VERSION + 1, ..good }));
        for (name, pointer) in [
            ("null", 0),
            ("unmapped", 0x1000),
            ("not canonical", 1 << 63),
            ("hypervisor", 0xffff_8300_0000_0000),
            ("last", u64::MAX),
        ] {
            add(name, Outcome { errno: errno(self.call(pointer)), changed: false });
        }
        // From here on across both pages, of which the second is not what it should be.
        let across = PAGE - 40;
        for (name, protection) in [("read-only", libc::PROT_READ), ("inaccessible", libc::PROT_NONE)] {
            self.put(across, &good);
            self.protect(protection)?;
            let errno = errno(self.call(self.address(across)));
            self.protect(libc::PROT_READ | libc::PROT_WRITE)?;
            add(name, Outcome { errno, changed: self.get(across) != good });
        }
        Ok(outcomes)
    }

    fn outcome(&self, offset: usize, operation: &PlatformOp) -> Outcome {
        self.put(offset, operation);
        let errno = errno(self.call(self.address(offset)));
        Outcome { errno, changed: self.get(offset) != *operation }
    }

    /// Changes the second page's protection.
    fn protect(&self, protection: i32) -> Result<()> {
        // SAFETY: a page of our own mapping, to which nobody holds a reference.
        let result = unsafe { libc::mprotect(self.buffer.as_mut_ptr().add(PAGE).cast(), PAGE, protection) };
        Errno::result(result).map(drop).context("mprotect")
    }

    fn storm(&self, count: u64, seed: u64) -> BTreeMap<i32, u64> {
        let mut random = SplitMix(seed);
        let mut answers = BTreeMap::new();
        for _ in 0..count {
            let offset = random.below((2 * PAGE - size_of::<PlatformOp>()) as u64) as usize;
            let mut counters = Counters::default();
            for word in counters.as_mut_bytes().chunks_exact_mut(8) {
                word.copy_from_slice(&random.next().to_le_bytes());
            }
            // Mostly almost right, so that not all ends at the first check.
            if random.below(4) > 0 {
                counters.timer = random.below(5) as u32;
            }
            if random.below(4) > 0 {
                counters.flags = 0;
            }
            let mut operation = PlatformOp { counters, ..PlatformOp::get_counters(0, 0) };
            operation.rest.iter_mut().for_each(|byte| *byte = random.next() as u8);
            if random.below(16) == 0 {
                operation.interface_version = random.next() as u32;
            }
            self.put(offset, &operation);
            let pointer = match random.below(8) {
                0 => random.next(),
                // Where the domain's kernel, and with PV the hypervisor, have their memory.
                1 => 0xffff_8000_0000_0000 | random.below(1 << 47),
                2 => random.below(PAGE as u64),
                3 => self.address(2 * PAGE) - random.below(size_of::<PlatformOp>() as u64),
                _ => self.address(offset),
            };
            *answers.entry(errno(self.call(pointer))).or_default() += 1;
        }
        answers
    }
}

/// The error's number, 0 if there is none.
fn errno(result: Result<(), Errno>) -> i32 {
    result.err().map_or(0, |error| error as i32)
}

/// Steele, Lea and Flood's generator: the same numbers from the same seed.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
