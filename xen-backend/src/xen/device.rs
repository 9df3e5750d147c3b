//! One guest's device as a state machine: what the frontend's state and the administrator's wishes make the backend
//! do. Events in, actions out; no I/O, no clock, no domain numbers.
//!
//! The protocol is that of `xen-frontend/kmod/radclockif.h`. The frontend's state is the guest's to write, so
//! whatever stands there can only cost the guest its own device: nothing it does makes the backend hold more than
//! one page and port, keep them when they are no longer wanted, or work more often than [`OFFERS`] allows.

use std::time::Duration;

use radclock::xenbus::XenbusState;

use super::allowance::Allowance;

/// In the long run the clock is offered to one guest no more often than this, since each offer costs a port and a XenStore
/// transaction. A driver that waits for an offer holds up its guest's suspend, so not much less often. So many offers may
/// come faster: a driver that is being unloaded and loaded, not one that loops.
const OFFERS: Allowance = Allowance::new(PERIOD, BURST);
const PERIOD: Duration = Duration::from_secs(2);
const BURST: u32 = 10;
/// From the end of one offer to the next: time for the other end to see `Closed`.
const SETTLE: Duration = Duration::from_millis(100);
/// From a failed offer to the next.
const RETRY: Duration = Duration::from_secs(1);
/// From an offer to the first [`Action::Knock`]; twice as long to the next, and so on.
const FIRST_KNOCK: Duration = Duration::from_secs(1);
/// Between two knocks at most.
const KNOCKS: Duration = Duration::from_secs(60);
/// How long a frontend has to let go of the page after `Closing`.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// What the frontend's state node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// There is no such node.
    Absent,
    /// A state.
    State(XenbusState),
    /// Anything else.
    Garbage,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest is to have the clock.
    Attach,
    /// The guest is not to have the clock.
    Detach,
    /// The domain no longer exists.
    Gone,
    /// The last [`Action::Offer`] was carried out.
    Offered,
    /// The last [`Action::Offer`] failed and left nothing behind.
    OfferFailed,
    /// The frontend's state was read.
    Frontend(Frontend),
    /// Time has passed, at least until [`Device::deadline`].
    Tick,
}

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Bring the guest's page up to date, or grant one if it has none; allocate a new port, write the nodes of both ends: the
    /// backend InitWait, the frontend Initialising. To be answered by [`Event::Offered`] or [`Event::OfferFailed`].
    Offer,
    /// Draw the guest's attention to the offer. A kernel that was not running when the nodes were written, as while it is
    /// migrated here, takes no notice of a device that it did not have before, until one of its nodes is written again.
    Knock,
    /// Write the backend's state.
    State(XenbusState),
    /// Say that the device is being taken away for good.
    Offline,
    /// Unbind the port and write to the page no more. It stays granted for the next offer: a guest that does not let go of
    /// its pages has one.
    Withdraw,
    /// Remove the nodes of both ends, end the grant.
    Remove,
}

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not offered; no page, no port, no nodes.
    Idle,
    /// To be offered, not before that time; no page in use, no port.
    Waiting { until: Duration },
    /// An [`Action::Offer`] is being carried out.
    Offering,
    /// Backend InitWait. To knock then, and so much later again.
    Offered { knock: Duration, next: Duration },
    /// Backend Connected.
    Connected,
    /// Backend Closing, until the frontend has let go or the deadline has passed.
    Ending { deadline: Duration, again: bool },
}

/// One guest's device. Times are those since any fixed instant.
#[derive(Clone, Debug)]
pub struct Device {
    phase: Phase,
    offers: Allowance,
}

impl Default for Device {
    fn default() -> Device {
        Device::new()
    }
}

impl Device {
    /// A device that is not offered.
    pub fn new() -> Device {
        Device { phase: Phase::Idle, offers: OFFERS }
    }

    /// Whether the guest has the clock or is about to have it.
    pub fn is_attached(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Ending { again: false, .. })
    }

    /// Whether there is nothing left of an offer.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Whether an offer stands.
    pub fn is_offered(&self) -> bool {
        matches!(self.phase, Phase::Offered { .. } | Phase::Connected)
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Offered { knock, .. } => Some(knock),
            Phase::Ending { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// What an event leads to.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        match event {
            Event::Attach => self.attach(now),
            Event::Detach => self.detach(now),
            Event::Gone => self.gone(),
            Event::Offered => {
                self.phase = Phase::Offered { knock: now + FIRST_KNOCK, next: FIRST_KNOCK * 2 };
                vec![]
            }
            Event::OfferFailed => {
                self.phase = self.waiting(now, RETRY);
                vec![]
            }
            Event::Frontend(frontend) => self.frontend(now, frontend),
            Event::Tick => self.tick(now),
        }
    }

    fn attach(&mut self, now: Duration) -> Vec<Action> {
        match self.phase {
            Phase::Idle => {
                self.phase = self.waiting(now, Duration::ZERO);
                self.tick(now)
            }
            Phase::Ending { deadline, again: false } => {
                self.phase = Phase::Ending { deadline, again: true };
                vec![]
            }
            _ => vec![],
        }
    }

    fn detach(&mut self, now: Duration) -> Vec<Action> {
        match self.phase {
            Phase::Idle => vec![],
            Phase::Waiting { .. } => self.end(now, false),
            // Nobody has said that it uses the page.
            Phase::Offering | Phase::Offered { .. } => {
                let mut actions = vec![Action::Offline];
                actions.extend(self.end(now, false));
                actions
            }
            Phase::Connected => {
                self.phase = Phase::Ending { deadline: now + PATIENCE, again: false };
                vec![Action::Offline, Action::State(XenbusState::Closing)]
            }
            Phase::Ending { deadline, .. } => {
                self.phase = Phase::Ending { deadline, again: false };
                vec![Action::Offline]
            }
        }
    }

    fn gone(&mut self) -> Vec<Action> {
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        match phase {
            Phase::Idle => vec![],
            Phase::Waiting { .. } => vec![Action::Remove],
            _ => vec![Action::Withdraw, Action::Remove],
        }
    }

    fn frontend(&mut self, now: Duration, frontend: Frontend) -> Vec<Action> {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
        match (self.phase, frontend) {
            (Phase::Offered { .. }, Frontend::State(Connected)) => {
                self.phase = Phase::Connected;
                vec![Action::State(Connected)]
            }
            (Phase::Offered { .. }, Frontend::State(Closing | Closed) | Frontend::Absent) => self.end(now, true),
            (Phase::Connected, Frontend::State(Closing)) => {
                self.phase = Phase::Ending { deadline: now + PATIENCE, again: true };
                vec![Action::State(Closing)]
            }
            // A frontend that starts from the beginning without a word knows nothing of what it had.
            (Phase::Connected, Frontend::State(Closed | Initialising | InitWait | Initialised) | Frontend::Absent) => {
                self.end(now, true)
            }
            (Phase::Ending { again, .. }, Frontend::State(Closed | Initialising) | Frontend::Absent) => {
                self.end(now, again)
            }
            _ => vec![],
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        match self.phase {
            Phase::Waiting { until } if now >= until => {
                self.phase = Phase::Offering;
                // There is one: that is what was waited for.
                self.offers.take(now, 1);
                vec![Action::Offer]
            }
            Phase::Offered { knock, next } if now >= knock => {
                self.phase = Phase::Offered { knock: now + next, next: KNOCKS.min(next * 2) };
                vec![Action::Knock]
            }
            Phase::Ending { deadline, again } if now >= deadline => self.end(now, again),
            _ => vec![],
        }
    }

    /// Ends what there is of an offer, and makes way for the next or removes the device.
    fn end(&mut self, now: Duration, again: bool) -> Vec<Action> {
        let mut actions = match self.phase {
            Phase::Waiting { .. } => vec![],
            _ => vec![Action::State(XenbusState::Closed), Action::Withdraw],
        };
        if again {
            self.phase = self.waiting(now, SETTLE);
        } else {
            self.phase = Phase::Idle;
            actions.push(Action::Remove);
        }
        actions
    }

    fn waiting(&self, now: Duration, at_least: Duration) -> Phase {
        Phase::Waiting { until: (now + at_least).max(self.offers.next()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A guest's part of the world: what the actions do to it.
    #[derive(Debug)]
    struct World {
        device: Device,
        now: Duration,
        page: bool,
        nodes: bool,
        state: Option<XenbusState>,
        offers: Vec<Duration>,
        knocks: Vec<Duration>,
    }

    impl World {
        fn new() -> World {
            World {
                device: Device::new(),
                now: Duration::ZERO,
                page: false,
                nodes: false,
                state: None,
                offers: Vec::new(),
                knocks: Vec::new(),
            }
        }

        fn event(&mut self, event: Event, offers_work: bool) {
            for action in self.device.step(self.now, event) {
                match action {
                    Action::Offer => {
                        assert!(!self.page, "a second page");
                        self.offers.push(self.now);
                        if offers_work {
                            self.page = true;
                            self.nodes = true;
                            self.state = Some(XenbusState::InitWait);
                        }
                        let result = if offers_work { Event::Offered } else { Event::OfferFailed };
                        assert_eq!(self.device.step(self.now, result), []);
                    }
                    Action::State(state) => {
                        assert!(self.nodes, "{state} written where there is no device");
                        assert!(self.page, "{state} without a page");
                        self.state = Some(state);
                    }
                    Action::Knock => {
                        assert_eq!(self.state, Some(XenbusState::InitWait));
                        self.knocks.push(self.now);
                    }
                    Action::Offline => assert!(self.nodes),
                    Action::Withdraw => {
                        assert!(self.page);
                        self.page = false;
                    }
                    Action::Remove => {
                        self.nodes = false;
                        self.state = None;
                    }
                }
            }
            let usable = matches!(self.state, Some(XenbusState::InitWait | XenbusState::Connected));
            assert_eq!(usable, self.page && self.state != Some(XenbusState::Closing), "{self:?}");
            assert_eq!(self.device.is_offered(), usable);
            if self.device.is_idle() {
                assert!(!self.page && !self.nodes, "something is left: {self:?}");
            }
        }

        /// Lets time pass, with ticks when they are due.
        fn pass(&mut self, time: Duration, offers_work: bool) {
            let end = self.now + time;
            while let Some(deadline) = self.device.deadline().filter(|deadline| *deadline <= end) {
                self.now = self.now.max(deadline);
                self.event(Event::Tick, offers_work);
            }
            self.now = end;
            self.event(Event::Tick, offers_work);
        }

        /// What a driver does that keeps to the protocol, once.
        fn good_driver(&mut self) {
            match self.state {
                Some(XenbusState::InitWait) => self.event(state(XenbusState::Connected), true),
                Some(XenbusState::Closing) => self.event(state(XenbusState::Closed), true),
                _ => {}
            }
        }
    }

    fn state(state: XenbusState) -> Event {
        Event::Frontend(Frontend::State(state))
    }

    #[derive(Clone, Debug)]
    enum Input {
        Event(Event),
        Pass(Duration),
    }

    fn frontend() -> impl Strategy<Value = Event> {
        prop_oneof![
            1 => Just(Event::Frontend(Frontend::Absent)),
            1 => Just(Event::Frontend(Frontend::Garbage)),
            8 => (0..=8u8).prop_map(|n| state(XenbusState::parse(&n.to_string()).expect("a state"))),
        ]
    }

    fn input() -> impl Strategy<Value = (Input, bool)> {
        let input = prop_oneof![
            10 => frontend().prop_map(Input::Event),
            2 => Just(Input::Event(Event::Attach)),
            1 => Just(Input::Event(Event::Detach)),
            1 => Just(Input::Event(Event::Gone)),
            1 => Just(Input::Event(Event::Tick)),
            3 => (0..20_000u64).prop_map(|ms| Input::Pass(Duration::from_millis(ms))),
        ];
        (input, prop::bool::weighted(0.9))
    }

    fn run(world: &mut World, inputs: Vec<(Input, bool)>) {
        for (input, offers_work) in inputs {
            match input {
                Input::Event(event) => world.event(event, offers_work),
                Input::Pass(time) => world.pass(time, offers_work),
            }
        }
    }

    proptest! {
        #[test]
        fn a_detached_guest_keeps_nothing(
            inputs in prop::collection::vec(input(), 0..200),
            stubborn in prop::collection::vec(frontend(), 0..5),
        ) {
            let mut world = World::new();
            run(&mut world, inputs);
            world.event(Event::Detach, true);
            for event in stubborn {
                world.event(event, true);
            }
            world.pass(PATIENCE, true);
            prop_assert!(world.device.is_idle() && !world.page && !world.nodes);
        }

        #[test]
        fn a_guest_that_is_gone_keeps_nothing(inputs in prop::collection::vec(input(), 0..200)) {
            let mut world = World::new();
            run(&mut world, inputs);
            world.event(Event::Gone, true);
            prop_assert!(world.device.is_idle() && !world.page && !world.nodes);
            prop_assert_eq!(world.device.deadline(), None);
        }

        #[test]
        fn a_guest_costs_a_bounded_number_of_offers(inputs in prop::collection::vec(input(), 0..500)) {
            let mut world = World::new();
            world.event(Event::Attach, true);
            // Only what the guest does counts: attaching and detaching is the administrator's business.
            let guest = |(input, _): &(Input, bool)| {
                !matches!(input, Input::Event(Event::Attach | Event::Detach | Event::Gone))
            };
            run(&mut world, inputs.into_iter().filter(guest).collect());
            for (first, from) in world.offers.iter().enumerate() {
                for (last, to) in world.offers.iter().enumerate().skip(first) {
                    let allowed = BURST as usize + (*to - *from).div_duration_f64(PERIOD) as usize;
                    prop_assert!(last - first < allowed, "{:?}", world.offers);
                }
            }
        }

        #[test]
        fn a_driver_that_keeps_to_the_protocol_gets_the_clock_whatever_was_before(
            inputs in prop::collection::vec(input(), 0..200),
        ) {
            let mut world = World::new();
            run(&mut world, inputs);
            world.event(Event::Attach, true);
            for _ in 0..20 {
                world.good_driver();
                world.pass(PERIOD, true);
            }
            prop_assert_eq!(world.state, Some(XenbusState::Connected));
            // Nothing more happens then.
            let offers = world.offers.len();
            world.pass(PERIOD * 10, true);
            prop_assert_eq!(world.offers.len(), offers);
        }
    }

    #[test]
    fn a_driver_that_is_unloaded_and_loaded_is_offered_a_new_page_at_once() {
        let mut world = World::new();
        world.event(Event::Attach, true);
        for _ in 0..BURST / 2 {
            world.good_driver();
            assert_eq!(world.state, Some(XenbusState::Connected));
            world.event(state(XenbusState::Closing), true);
            assert_eq!(world.state, Some(XenbusState::Closing));
            assert!(world.page, "withdrawn while the frontend has it");
            world.event(state(XenbusState::Closed), true);
            assert_eq!((world.state, world.page), (Some(XenbusState::Closed), false));
            world.pass(SETTLE, true);
            assert_eq!((world.state, world.page), (Some(XenbusState::InitWait), true));
        }
    }

    #[test]
    fn a_frontend_that_does_not_let_go_is_waited_for_and_then_left() {
        let mut world = World::new();
        world.event(Event::Attach, true);
        world.good_driver();
        world.event(Event::Detach, true);
        assert_eq!((world.state, world.page), (Some(XenbusState::Closing), true));
        world.pass(PATIENCE - Duration::from_millis(1), true);
        assert!(world.page);
        world.pass(Duration::from_millis(1), true);
        assert!(!world.page && !world.nodes);
    }

    #[test]
    fn a_guest_that_takes_no_notice_is_knocked_at_ever_less_often() {
        let mut world = World::new();
        world.event(Event::Attach, true);
        world.pass(Duration::from_secs(200), true);
        assert_eq!(world.knocks, [1, 3, 7, 15, 31, 63, 123, 183].map(Duration::from_secs));
        world.good_driver();
        world.pass(Duration::from_secs(200), true);
        assert_eq!(world.knocks.len(), 8, "{world:?}");
    }

    #[test]
    fn garbage_changes_nothing() {
        let mut world = World::new();
        world.event(Event::Attach, true);
        world.event(Event::Frontend(Frontend::Garbage), true);
        assert_eq!(world.state, Some(XenbusState::InitWait));
        world.good_driver();
        world.event(Event::Frontend(Frontend::Garbage), true);
        assert_eq!((world.state, world.page), (Some(XenbusState::Connected), true));
    }
}
