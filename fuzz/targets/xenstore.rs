//! What a guest may write into XenStore: the values of its nodes, and their coming and going.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use radclock::xenbus::{XenbusState, uuid_of_vm};
use xen_backend::xen::GuestPolicy;
use xen_backend::xen::device::{Action, Device, Event, Frontend, PATIENCE};

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// The guest's `state` node says this.
    State(&'a str),
    /// It is a valid one.
    Number(u8),
    Absent,
    Binary,
    Attach,
    Detach,
    Gone,
    Pass {
        millis: u16,
        offers_fail: bool,
    },
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    names: Vec<&'a str>,
    vm: &'a str,
    steps: Vec<Step<'a>>,
}

struct World {
    device: Device,
    now: Duration,
    offers_fail: bool,
    page: bool,
    nodes: bool,
    offers: u64,
}

impl World {
    fn event(&mut self, event: Event) {
        for action in self.device.step(self.now, event) {
            match action {
                Action::Offer => {
                    assert!(!self.page, "a second page");
                    self.offers += 1;
                    self.page = !self.offers_fail;
                    self.nodes |= self.page;
                    let answer = if self.offers_fail { Event::OfferFailed } else { Event::Offered };
                    assert_eq!(self.device.step(self.now, answer), []);
                }
                Action::State(_) | Action::Knock => assert!(self.nodes && self.page),
                Action::Offline => assert!(self.nodes),
                Action::Withdraw => {
                    assert!(self.page);
                    self.page = false;
                }
                Action::Remove => self.nodes = false,
            }
        }
        assert_eq!(self.device.is_idle() && self.page, false, "a page that nobody has");
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.device.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.event(Event::Tick);
        }
        self.now = end;
    }
}

fuzz_target!(|input: Input| {
    let uuid = uuid_of_vm(input.vm);
    assert!(uuid.is_none_or(|uuid| !uuid.is_empty() && !uuid.contains('/')));
    let policy = GuestPolicy::List(input.names.iter().skip(1).map(|name| (*name).to_owned()).collect());
    if let Some(name) = input.names.first() {
        let wanted = policy.wants(name, uuid.unwrap_or(""));
        assert!(!wanted || input.names.len() > 1);
    }

    let mut world =
        World { device: Device::new(), now: Duration::ZERO, offers_fail: false, page: false, nodes: false, offers: 0 };
    let mut administrator = 1;
    world.event(Event::Attach);
    for step in &input.steps {
        match step {
            Step::State(text) => {
                let state = XenbusState::parse(text);
                assert!(state.is_none_or(|state| state.number() == *text));
                world.event(Event::Frontend(state.map_or(Frontend::Garbage, Frontend::State)));
            }
            Step::Number(number) => {
                let state = XenbusState::parse(&(number % 9).to_string()).expect("a state");
                world.event(Event::Frontend(Frontend::State(state)));
            }
            Step::Absent => world.event(Event::Frontend(Frontend::Absent)),
            Step::Binary => world.event(Event::Frontend(Frontend::Garbage)),
            Step::Attach => world.event(Event::Attach),
            Step::Detach => world.event(Event::Detach),
            Step::Gone => world.event(Event::Gone),
            Step::Pass { millis, offers_fail } => {
                world.offers_fail = *offers_fail;
                world.pass(Duration::from_millis((*millis).into()));
            }
        }
        administrator += u64::from(matches!(step, Step::Attach));
    }
    // 10 at once and one each 2 s, whatever the guest does; what the administrator asks for comes at once.
    assert!(world.offers <= 10 + world.now.as_secs() / 2 + administrator, "{} offers", world.offers);
    world.offers_fail = false;
    world.event(Event::Detach);
    world.pass(PATIENCE);
    assert!(world.device.is_idle() && !world.page && !world.nodes, "something is left");
});
