//! A backend that breaks what `radclockd` keeps: one page, granted and written as it is told. A good one says what the
//! radclockd says that runs here and offers its clock to no guest, so that readings can be held against true time.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::libc;
use radclock::page::{CounterId, PAGE_SIZE, Page, TIME_TAI};
use radclock::seqcount::SharedPage;
use radclock::time::Timestamp;
use xen_backend::xen::{IOCTLS, SystemTime};
use zerocopy::IntoBytes;

use crate::{Wire, rebased};

/// From a good page to the next.
const UPDATE: Duration = Duration::from_secs(1);
/// How long a flood of events lasts.
const FLOOD: Duration = Duration::from_secs(2);
/// 9999-01-01.
const YEAR_9999: u64 = 253_370_764_800;

/// Linux's `struct ioctl_gntalloc_alloc_gref`, for one page.
#[repr(C)]
struct AllocGref {
    domid: u16,
    flags: u16,
    count: u32,
    index: u64,
    gref: u32,
}

struct Backend {
    system_time: SystemTime,
    events: File,
    port: u32,
    /// All that keeps the grant; nothing once it is torn down.
    mapping: Option<MmapRaw>,
    wire: Wire,
    /// What stood there last.
    newest: Page,
    generation: u64,
}

/// Runs until the FIFO says `end`.
pub fn run(domid: u16, fifo: &Path) -> Result<()> {
    let open = |path: &str| OpenOptions::new().read(true).write(true).open(path).context(path.to_owned());
    let [bind, _, allocate, _] = *IOCTLS else { bail!("other requests than expected") };
    let memory = open("/dev/xen/gntalloc")?;
    let mut request = AllocGref { domid, flags: 0, count: 1, index: 0, gref: 0 };
    // SAFETY: the kernel reads and writes `request`, which is laid out as it expects for one page.
    Errno::result(unsafe { libc::ioctl(memory.as_raw_fd(), allocate, &raw mut request) }).context("granting a page")?;
    let mapping = MmapOptions::new().offset(request.index).len(PAGE_SIZE).map_raw(&memory)?;
    // The grant is the file's and the mapping's: it ends with the latter alone.
    drop(memory);
    let events = open("/dev/xen/evtchn")?;
    let remote = u32::from(domid);
    // SAFETY: the kernel reads the number of the domain.
    let port = Errno::result(unsafe { libc::ioctl(events.as_raw_fd(), bind, &raw const remote) })? as u32;
    let wire = Wire::open()?;
    let newest = wire.page().snapshot()?;
    let generation = newest.ext.generation.get();
    let mut backend =
        Backend { system_time: SystemTime::open()?, events, port, mapping: Some(mapping), wire, newest, generation };
    backend.act("good")?;
    println!("{} {port}", request.gref);
    std::io::stdout().flush()?;
    // For writing as well, so that it does not end with each writer.
    let fifo = OpenOptions::new().read(true).write(true).open(fifo).context(fifo.display().to_string())?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || BufReader::new(fifo).lines().try_for_each(|line| sender.send(line)));
    let mut is_good = true;
    loop {
        match lines.recv_timeout(UPDATE) {
            Ok(line) => {
                let line = line?;
                if line == "end" {
                    return Ok(());
                }
                backend.act(&line)?;
                is_good = matches!(line.as_str(), "good" | "flood");
            }
            Err(RecvTimeoutError::Timeout) if is_good => backend.act("good")?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the FIFO has ended"),
        }
    }
}

impl Backend {
    fn act(&mut self, action: &str) -> Result<()> {
        match action {
            "flood" => {
                let start = Instant::now();
                while start.elapsed() < FLOOD {
                    self.notify()?;
                }
                return Ok(());
            }
            // The grant ends, too; if the guest maps the page, Dom0's kernel puts that off until it does no longer.
            "torn down" => {
                self.mapping = None;
                return Ok(());
            }
            _ => {}
        }
        self.generation += 1;
        // If radclockd was interrupted while it writes the page, what stood there goes on being right.
        if let Ok(newer) = self.wire.page().snapshot() {
            self.newest = newer;
        }
        let mut page = rebased(&self.newest, self.system_time.now()?, self.generation)?;
        let abi = &mut page.abi;
        match action {
            "good" | "stuck" => {}
            "zeroes" => page = Page::zeroed(),
            "magic" => abi.magic.set(0x1234_5678),
            "version" => abi.version.set(2),
            "size" => abi.size.set(64),
            "extension" => page.ext.version.set(7),
            "counter" => abi.counter_id = CounterId::X86_TSC.0,
            "tai" => abi.time_type = TIME_TAI,
            "status" => abi.clock_status = 77,
            "no bound" => abi.flags.set(0),
            "period of zero" => abi.counter_period_frac_sec.set(0),
            "period overflows" => {
                abi.counter_period_frac_sec.set(u64::MAX);
                abi.counter_period_shift = 0;
            }
            "shift" => abi.counter_period_shift = 255,
            "rate overflows" => abi.counter_period_maxerror_rate_frac_sec.set(u64::MAX),
            "bound overflows" => abi.time_maxerror_nanosec.set(u64::MAX),
            "year 9999" => {
                let time = Timestamp::from_unix(YEAR_9999, 0);
                abi.time_sec.set(time.secs());
            }
            "time overflows" => abi.time_sec.set(u64::MAX),
            other => bail!("{other:?} is nothing that can be done"),
        }
        let mapping = self.mapping.as_ref().context("the page is torn down")?;
        // SAFETY: a whole page, aligned, mapped for as long as `mapping` lives.
        let shared = unsafe { SharedPage::from_ptr(mapping.as_ptr()) };
        shared.write(&page);
        if action == "stuck" {
            let mut odd = shared.snapshot()?;
            odd.abi.seq_count.set(odd.abi.seq_count.get() | 1);
            // SAFETY: as above; the guest may read what it likes.
            unsafe { mapping.as_mut_ptr().copy_from(odd.as_bytes().as_ptr(), 16) };
        }
        self.notify()
    }

    fn notify(&self) -> Result<()> {
        // SAFETY: the kernel reads the number of the port.
        Errno::result(unsafe { libc::ioctl(self.events.as_raw_fd(), IOCTLS[1], &raw const self.port) })?;
        Ok(())
    }
}
