//! Sees a guest's counter from the build machine, wherever the guest goes: the truth for who reads a clock over
//! migrations.
//!
//! `lab-reader` in the guest owns a page ([`Beacon`]) in which the build machine keeps writing its own TSC, and the guest
//! answers with its counter. So the counter had that value between question and answer. When the page falls silent the
//! guest is on its way: the page is looked for in the memory of all hosts until one copy of it beats again.
//!
//! Nothing is assumed of what migration does to the counter. Between two answers the counter's rate is taken to be
//! near what it is on the whole, within what makes them agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab_agent::{Beacon, tsc};

use crate::guest::Kind;
use crate::host::Host;
use crate::probe::{Memory, REORDERING};
use crate::timeline::Timeline;

/// How far the rate of a guest's counter may be from what it is on the whole, at least. Xen's system time, which the emulated
/// TSC of a PV guest follows, changes its rate each second: by up to 100 ppm on a quiet build machine, and by a hundred
/// times that if the build machine held up Xen's calibration. Where answers nearby contradict each other at this rate,
/// twice as much is allowed, and so on.
const LEAST_SLACK: f64 = 200e-6;
/// Beyond this only the order of the answers counts.
const MOST_SLACK: f64 = 0.02;
/// How far the truth may be where no answer limits it, in counts: minutes.
const UNKNOWN: u64 = 1 << 40;
/// Over so many counts the rate on the whole can be told well enough. Before that it is taken to be the build machine's.
const RATE_SPAN: u64 = 2_000_000_000;
/// A page whose beat has not changed for so long is not used any more. Longer than a guest waits for its CPU.
const SILENT: Duration = Duration::from_millis(300);
/// Between two searches of all memory.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at the page. A reader in a busy guest may run for a millisecond in forty, and is asked only then.
const PAUSE: Duration = Duration::from_micros(250);
/// How many questions are asked at once.
const BURST: usize = 4;
/// Between two marks of the build machine's time, in counts: some 2 ms.
const MARK_PAUSE: u64 = 5_000_000;
/// Each is the narrowest of so many brackets.
const MARK: usize = 5;
/// How long an answer is waited for within a burst, in counts: some 50 µs.
const PATIENCE: u64 = 150_000;
/// How far to look around a counter value for answers that tell what the time was.
const NEIGHBOURS: usize = 60;

/// The guest's counter had this value between two of the build machine's TSC.
#[derive(Clone, Copy, Debug)]
struct Observation {
    counter: u64,
    asked: u64,
    answered: u64,
}

/// An observer at work.
pub struct Observer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Observed>>>,
}

/// What an observer saw.
pub struct Observed {
    /// By disruption marker, in the order of the counter.
    counters: BTreeMap<u64, Vec<Observation>>,
    timeline: Timeline,
    /// How often the page was found anew.
    pub found: usize,
}

/// A true time, ns since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// It was not before this.
    pub earliest: i64,
    /// Nor after this.
    pub latest: i64,
}

impl Interval {
    /// Half its width, ns.
    pub fn tolerance(self) -> i64 {
        (self.latest - self.earliest) / 2
    }
}

impl Observer {
    /// Begins to look for the page with this magic on these hosts, and to ask.
    pub fn start(hosts: &[&Host], magic: [u64; 2]) -> Result<Observer> {
        let memories = hosts.iter().map(|host| Memory::of(host)).collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || observe(&memories, magic, &stopped));
        Ok(Observer { stop, thread: Some(thread) })
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<Observed> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("taken only here and when dropped");
        thread.join().map_err(|_| anyhow!("the observer panicked"))?
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A page that may be the one in use, and its beat when it was last looked at.
struct Candidate {
    map: memmap2::MmapRaw,
    beat: u64,
}

impl Candidate {
    fn beacon(&self) -> &Beacon {
        // SAFETY: the mapping is a page long and aligned, and lives as long as the reference; the struct is all atomics.
        unsafe { &*self.map.as_ptr().cast::<Beacon>() }
    }

    fn beats(&mut self, magic: [u64; 2]) -> bool {
        let beacon = self.beacon();
        if beacon.magic.each_ref().map(|word| word.load(Ordering::Relaxed)) != magic {
            return false;
        }
        let beat = beacon.beat.load(Ordering::Relaxed);
        std::mem::replace(&mut self.beat, beat) != beat
    }
}

fn observe(memories: &[Memory], magic: [u64; 2], stop: &AtomicBool) -> Result<Observed> {
    let mut observed = Observed { counters: BTreeMap::new(), timeline: Timeline::default(), found: 0 };
    while !stop.load(Ordering::Relaxed) {
        let Some(page) = find(memories, magic, stop, &mut observed)? else { break };
        observed.found += 1;
        question(page, magic, stop, &mut observed);
    }
    // So that no reading is after the last of these.
    thread::sleep(Duration::from_millis(10));
    observed.mark_time();
    for observations in observed.counters.values_mut() {
        observations.sort_unstable_by_key(|observation| observation.counter);
    }
    Ok(observed)
}

/// The copy of the page that beats. Copies are watched while more are looked for, so it is found within milliseconds if
/// its memory was there before the guest goes on.
fn find(memories: &[Memory], magic: [u64; 2], stop: &AtomicBool, observed: &mut Observed) -> Result<Option<Candidate>> {
    let done = AtomicBool::new(false);
    let (copies, found) = mpsc::channel();
    thread::scope(|scope| {
        let search = scope.spawn(|| search(memories, magic, &done, &copies));
        let beating = watch(memories, magic, &found, observed, || stop.load(Ordering::Relaxed) || search.is_finished());
        done.store(true, Ordering::Relaxed);
        search.join().map_err(|_| anyhow!("the search panicked"))??;
        beating
    })
}

/// Looks for copies again and again, and tells each place once: which memory, and where in it.
fn search(memories: &[Memory], magic: [u64; 2], done: &AtomicBool, copies: &Sender<(usize, u64)>) -> Result<()> {
    let mut known = BTreeSet::new();
    while !done.load(Ordering::Relaxed) {
        for (index, memory) in memories.iter().enumerate() {
            for offset in memory.find_all(magic)? {
                if known.insert((index, offset)) {
                    copies.send((index, offset))?;
                }
            }
        }
        thread::sleep(SEARCH_PAUSE);
    }
    Ok(())
}

/// The first of the copies to beat; none if it is `over` before.
fn watch(
    memories: &[Memory],
    magic: [u64; 2],
    copies: &Receiver<(usize, u64)>,
    observed: &mut Observed,
    over: impl Fn() -> bool,
) -> Result<Option<Candidate>> {
    let mut candidates: Vec<Candidate> = Vec::new();
    while !over() {
        for (index, offset) in copies.try_iter() {
            let mut candidate = Candidate { map: memories[index].page(offset)?, beat: 0 };
            candidate.beats(magic);
            candidates.push(candidate);
        }
        observed.mark_time();
        thread::sleep(Duration::from_millis(1));
        if let Some(beating) = candidates.iter_mut().position(|candidate| candidate.beats(magic)) {
            return Ok(Some(candidates.swap_remove(beating)));
        }
    }
    Ok(None)
}

/// Asks until the page falls silent. Asks only when the page has just changed, since memory that is not used for the page
/// any more must not be written to.
fn question(mut page: Candidate, magic: [u64; 2], stop: &AtomicBool, observed: &mut Observed) {
    let mut alive = Instant::now();
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) && alive.elapsed() < SILENT {
        observed.mark_time();
        thread::sleep(PAUSE);
        if !page.beats(magic) {
            continue;
        }
        alive = Instant::now();
        let beacon = page.beacon();
        // The answer to the last burst's last question, if it came late.
        observed.note_answer(beacon, &mut asked);
        for _ in 0..BURST {
            asked = tsc();
            beacon.question.store(asked, Ordering::Release);
            while asked != 0 && tsc() - asked < PATIENCE {
                observed.note_answer(beacon, &mut asked);
            }
            if asked != 0 {
                break;
            }
        }
    }
}

impl Observed {
    fn note_answer(&mut self, beacon: &Beacon, asked: &mut u64) {
        if *asked == 0 || beacon.answer.load(Ordering::Acquire) != *asked {
            return;
        }
        let answered = tsc();
        let counter = beacon.counter.load(Ordering::Relaxed);
        let marker = beacon.marker.load(Ordering::Relaxed);
        self.counters.entry(marker).or_default().push(Observation { counter, asked: *asked, answered });
        *asked = 0;
    }

    fn mark_time(&mut self) {
        if self.timeline.last().is_some_and(|last| tsc() - last < MARK_PAUSE) {
            return;
        }
        self.timeline.mark(MARK);
    }

    /// How many answers there were.
    pub fn answers(&self) -> usize {
        self.counters.values().map(Vec::len).sum()
    }

    /// How the counter of the clock with this marker runs; none if it was not seen.
    pub fn relation(&self, marker: u64, kind: Kind) -> Option<Relation<'_>> {
        let observations = self.counters.get(&marker)?;
        let constant = match kind {
            Kind::Pv => None,
            Kind::Pvh => constant(observations),
        };
        Some(Relation { observed: self, observations, constant, rate: rate(observations) })
    }
}

/// The range of the build machine's TSC less the counter, if it can be a constant: the counter is the machine's own then.
fn constant(observations: &[Observation]) -> Option<(i64, i64)> {
    let least = |observation: &Observation| {
        observation.asked.wrapping_sub(observation.counter).cast_signed() - REORDERING as i64
    };
    let most = |observation: &Observation| observation.answered.wrapping_sub(observation.counter).cast_signed();
    let least = observations.iter().map(least).max()?;
    let most = observations.iter().map(most).min()?;
    (least <= most).then_some((least, most))
}

/// How many counts of the build machine's TSC one of the counter's is, on the whole: by the promptest answers, for a guest
/// that did not run when it was asked may have answered much later.
fn rate(observations: &[Observation]) -> f64 {
    let quarter = observations.len() / 4;
    let promptest = |part: &[Observation]| part.iter().min_by_key(|one| one.answered - one.asked).copied();
    let (first, last) = (&observations[..quarter], &observations[observations.len() - quarter..]);
    let (Some(first), Some(last)) = (promptest(first), promptest(last)) else { return 1.0 };
    let counts = last.counter.wrapping_sub(first.counter);
    if counts < RATE_SPAN {
        return 1.0;
    }
    let middle = |one: &Observation| one.asked.midpoint(one.answered);
    middle(&last).wrapping_sub(middle(&first)) as f64 / counts as f64
}

/// How a guest's counter was related to the true time while one clock lasted.
pub struct Relation<'observed> {
    observed: &'observed Observed,
    observations: &'observed [Observation],
    constant: Option<(i64, i64)>,
    rate: f64,
}

impl Relation<'_> {
    /// Whether the counter is the build machine's TSC and a constant.
    pub fn is_constant(&self) -> bool {
        self.constant.is_some()
    }

    /// The true time at which the counter had this value.
    pub fn true_time(&self, counter: u64) -> Result<Interval> {
        self.real(self.by_constant(counter).unwrap_or_else(|| self.between_neighbours(counter)))
    }

    /// The same without any assumption of the counter's rate: where all answers agree on a constant by that, otherwise by
    /// nothing but that the counter never runs backwards.
    pub fn certain_time(&self, counter: u64) -> Result<Interval> {
        let at = || self.observations.partition_point(|observation| observation.counter < counter);
        self.real(self.by_constant(counter).unwrap_or_else(|| self.by_order(at())))
    }

    fn by_constant(&self, counter: u64) -> Option<(u64, u64)> {
        let (least, most) = self.constant?;
        Some((counter.wrapping_add_signed(least), counter.wrapping_add_signed(most)))
    }

    fn real(&self, (earliest, latest): (u64, u64)) -> Result<Interval> {
        let real = |tsc| self.observed.timeline.at(tsc).context("the observer saw no time");
        let ((earliest, before), (latest, after)) = (real(earliest)?, real(latest)?);
        Ok(Interval { earliest: earliest - before, latest: latest + after })
    }

    /// What the answers nearby allow.
    fn between_neighbours(&self, counter: u64) -> (u64, u64) {
        let at = self.observations.partition_point(|observation| observation.counter < counter);
        let near = &self.observations[at.saturating_sub(NEIGHBOURS)..(at + NEIGHBOURS).min(self.observations.len())];
        let mut slack = LEAST_SLACK;
        while slack < MOST_SLACK {
            let (earliest, latest) = self.within(near, counter, slack);
            if earliest <= latest {
                return (earliest, latest);
            }
            slack *= 2.0;
        }
        self.by_order(at)
    }

    /// Between the answers before and after this place.
    fn by_order(&self, at: usize) -> (u64, u64) {
        let (before, after) = self.observations.split_at(at);
        let earliest = before.last().map(|before| before.asked - REORDERING);
        let latest = after.first().map(|after| after.answered);
        (
            earliest.or(latest.map(|latest| latest.saturating_sub(UNKNOWN))).unwrap_or(0),
            latest.or(earliest.map(|earliest| earliest + UNKNOWN)).unwrap_or(UNKNOWN),
        )
    }

    /// What these answers allow if the counter's rate is within `slack` of what it is on the whole.
    fn within(&self, near: &[Observation], counter: u64, slack: f64) -> (u64, u64) {
        let mut range = (0, u64::MAX);
        for observation in near {
            let since = counter.wrapping_sub(observation.counter).cast_signed();
            let slack = (since.unsigned_abs() as f64 * slack) as u64;
            let since = (since as f64 * self.rate) as i64;
            let earliest = observation.asked.wrapping_add_signed(since) - slack - REORDERING;
            let latest = observation.answered.wrapping_add_signed(since) + slack;
            range = (range.0.max(earliest), range.1.min(latest));
        }
        range
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::timeline::Mark;

    /// A build machine whose TSC counts nanoseconds since 1970, asked each millisecond for 100 s; the counter is `rate` times
    /// that, and 5000 more.
    pub(crate) fn observed(rate: f64) -> Observed {
        let times = || (1..=100_000).map(|milliseconds: u64| milliseconds * 1_000_000);
        let observation = |at: u64| Observation {
            counter: (at as f64 * rate) as u64 + 5000,
            asked: at - 2000,
            answered: at + 1000 + at % 7919,
        };
        Observed {
            counters: BTreeMap::from([(7, times().map(observation).collect())]),
            timeline: times().map(|tsc| Mark::exact(tsc, tsc as i64)).collect(),
            found: 1,
        }
    }

    #[test]
    fn a_counter_of_the_same_rate_is_known_to_within_the_narrowest_answer() {
        let observed = observed(1.0);
        let relation = observed.relation(7, Kind::Pvh).expect("answers");
        let truth = relation.true_time(50_000_405_000).expect("in range");
        assert!(relation.is_constant() && truth.tolerance() < 2500, "{truth:?}");
        assert!((truth.earliest..=truth.latest).contains(&50_000_400_000), "{truth:?}");
    }

    #[test]
    fn a_counter_of_another_rate_is_known_from_the_answers_nearby() {
        let observed = observed(1.000_04);
        for kind in [Kind::Pv, Kind::Pvh] {
            let relation = observed.relation(7, kind).expect("answers");
            let at = 50_000_400_000_u64;
            let truth = relation.true_time((at as f64 * 1.000_04) as u64 + 5000).expect("in range");
            assert!(!relation.is_constant() && truth.tolerance() < 4000, "{truth:?}");
            assert!((truth.earliest..=truth.latest).contains(&(at as i64)), "{truth:?}");
        }
    }

    #[test]
    fn nothing_is_known_of_a_clock_under_which_nobody_answered() {
        assert!(observed(1.0).relation(8, Kind::Pv).is_none());
    }
}
