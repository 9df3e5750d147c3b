//! How one guest's nodes are followed, as a state machine: by watches, whose events tell of a change at once, or, while
//! the guest causes too many of them, by a look every so often. Events in, actions out; no I/O, no clock.
//!
//! Each event of a watch is a message that has to be taken, wanted or not, and a guest writes its nodes as often as it
//! likes. One that makes more than [`EVENTS`] is not watched for [`REST`], and costs a look each [`LOOK`] instead. A
//! driver that is loaded and unloaded without end comes into this, too, and is then answered [`LOOK`] later at most.

use std::time::Duration;

use super::allowance::Allowance;

/// A guest makes some five events when its driver connects or leaves, and two when it suspends. Two a second in the long
/// run, and 20 at once.
const EVENTS: Allowance = Allowance::new(Duration::from_millis(500), 20);
/// How long a guest is not watched that made too many. By then it has all of its allowance again.
const REST: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the state, unasked.
    Look,
    /// Watch the nodes again.
    Watch,
}

/// How a guest is followed. Times are those since any fixed instant.
#[derive(Clone, Debug)]
pub struct Attention {
    events: Allowance,
    resting: Option<Resting>,
}

#[derive(Clone, Copy, Debug)]
struct Resting {
    look: Duration,
    until: Duration,
}

impl Default for Attention {
    fn default() -> Attention {
        Attention { events: EVENTS, resting: None }
    }
}

impl Attention {
    /// Whether the guest is watched.
    pub fn is_watching(&self) -> bool {
        self.resting.is_none()
    }

    /// So many events came. Whether the watches are to be taken back.
    pub fn heard(&mut self, now: Duration, events: u32) -> bool {
        // Those that were under way when the watches were taken back cost nothing more.
        if !self.is_watching() || self.events.take(now, events) {
            return false;
        }
        self.resting = Some(Resting { look: now + LOOK, until: now + REST });
        true
    }

    /// When [`Attention::tick`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        self.resting.map(|resting| resting.look.min(resting.until))
    }

    /// Time has passed, at least until [`Attention::deadline`].
    pub fn tick(&mut self, now: Duration) -> Option<Action> {
        let resting = self.resting.as_mut()?;
        if now >= resting.until {
            self.resting = None;
            return Some(Action::Watch);
        }
        if now < resting.look {
            return None;
        }
        resting.look = now + LOOK;
        Some(Action::Look)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A guest that writes each millisecond of `writes`, and what following it costs.
    #[derive(Default)]
    struct World {
        attention: Attention,
        messages: u32,
        looks: u32,
        watches: u32,
        /// How long a write was not known of, at most.
        late: Duration,
        unknown: Option<Duration>,
    }

    impl World {
        fn run(&mut self, writes: impl IntoIterator<Item = bool>) {
            for (millis, writes) in (0..).zip(writes) {
                let now = Duration::from_millis(millis);
                if self.attention.deadline().is_some_and(|at| at <= now) {
                    match self.attention.tick(now).expect("something was due") {
                        Action::Look => self.looks += 1,
                        // A new watch makes an event of its own.
                        Action::Watch => {
                            self.watches += 1;
                            self.messages += 1;
                            self.attention.heard(now, 1);
                        }
                    }
                    self.unknown = None;
                }
                if writes {
                    self.unknown.get_or_insert(now);
                    if self.attention.is_watching() {
                        self.messages += 1;
                        self.unknown = None;
                        self.attention.heard(now, 1);
                    }
                }
                if let Some(since) = self.unknown {
                    self.late = self.late.max(now - since);
                }
            }
        }
    }

    #[test]
    fn a_guest_that_writes_all_the_time_costs_little_more_than_one_that_does_not() {
        let mut world = World::default();
        world.run(std::iter::repeat_n(true, 100_000));
        assert!(world.messages <= 10 * 22 && world.looks <= 200 && world.watches <= 10, "{}", world.messages);
        assert!(world.late <= LOOK, "{:?}", world.late);
    }

    #[test]
    fn a_guest_that_keeps_to_its_allowance_is_watched_all_the_time() {
        let mut world = World::default();
        world.run((0..100_000).map(|millis| millis % 500 == 7 || millis < 16));
        assert_eq!((world.looks, world.watches), (0, 0));
    }

    proptest! {
        #[test]
        fn no_write_is_missed_or_known_late(
            phases in prop::collection::vec((1..3_000usize, 1..400usize), 1..30),
        ) {
            let mut world = World::default();
            world.run(phases.into_iter().flat_map(|(length, period)| (0..length).map(move |n| n % period == 0)));
            prop_assert!(world.late <= LOOK, "{:?}", world.late);
        }
    }
}
