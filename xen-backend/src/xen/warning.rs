//! One guest's warnings of a coming disruption as a state machine: who gave them, and when they end. Events in, out
//! comes what the guest's page is to say; no I/O, no clock.
//!
//! A warning ends when the guest goes on after a suspend, when it is taken back, when its time has passed without a
//! disruption, and with the guest. On another host it does not exist in the first place.

use std::time::Duration;

use radclock::disruption::Disruption;

/// libxl gives a guest a minute to acknowledge a suspend and another one to carry it out.
const SUSPEND: Duration = Duration::from_secs(120);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The administrator announces a disruption, or takes that back.
    Announced(Option<Disruption>),
    /// The guest was asked to suspend.
    Suspending,
    /// The guest runs again after a suspend, here: what was announced is over or did not happen.
    GoesOn,
    /// Time has passed, at least until [`Warnings::deadline`].
    Tick,
}

/// What one guest is warned of, and until when. Times are those since any fixed instant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Warnings {
    announced: Option<(Disruption, Duration)>,
    suspending: Option<Duration>,
}

impl Warnings {
    /// What the guest's page is to say.
    pub fn level(&self) -> Option<Disruption> {
        match (self.announced, self.suspending) {
            (_, Some(_)) => Some(Disruption::Imminent),
            (Some((level, _)), None) => Some(level),
            (None, None) => None,
        }
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        self.announced.map(|(_, until)| until).into_iter().chain(self.suspending).min()
    }

    /// Takes an event; says whether [`Warnings::level`] has changed.
    pub fn step(&mut self, now: Duration, event: Event) -> bool {
        let before = self.level();
        match event {
            Event::Announced(Some(level)) => {
                self.announced = Some((level, now + Duration::from_secs(level.within_secs())));
            }
            Event::Announced(None) | Event::GoesOn => *self = Warnings::default(),
            Event::Suspending => self.suspending = Some(now + SUSPEND),
            Event::Tick => {
                self.announced = self.announced.filter(|(_, until)| *until > now);
                self.suspending = self.suspending.filter(|until| *until > now);
            }
        }
        self.level() != before
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn an_announcement_holds_until_its_time_has_passed() {
        for (level, secs) in [(Disruption::Soon, 86_400), (Disruption::Imminent, 3600)] {
            let mut warnings = Warnings::default();
            assert!(warnings.step(at(5), Event::Announced(Some(level))));
            assert!(!warnings.step(at(4 + secs), Event::Tick));
            assert_eq!(warnings.level(), Some(level));
            assert_eq!(warnings.deadline(), Some(at(5 + secs)));
            assert!(warnings.step(at(5 + secs), Event::Tick));
            assert_eq!((warnings.level(), warnings.deadline()), (None, None));
        }
    }

    #[test]
    fn a_suspend_is_imminent_and_leaves_the_announcement_if_it_does_not_happen() {
        let mut warnings = Warnings::default();
        warnings.step(at(0), Event::Announced(Some(Disruption::Soon)));
        assert!(warnings.step(at(10), Event::Suspending));
        assert_eq!(warnings.level(), Some(Disruption::Imminent));
        assert!(warnings.step(at(130), Event::Tick));
        assert_eq!(warnings.level(), Some(Disruption::Soon));
    }

    #[test]
    fn an_announcement_replaces_the_one_before() {
        let mut warnings = Warnings::default();
        warnings.step(at(0), Event::Announced(Some(Disruption::Imminent)));
        assert!(warnings.step(at(1), Event::Announced(Some(Disruption::Soon))));
        assert_eq!((warnings.level(), warnings.deadline()), (Some(Disruption::Soon), Some(at(86_401))));
        assert!(!warnings.step(at(2), Event::Announced(Some(Disruption::Soon))), "no change");
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Announced(None)),
            Just(Event::Announced(Some(Disruption::Soon))),
            Just(Event::Announced(Some(Disruption::Imminent))),
            Just(Event::Suspending),
            Just(Event::GoesOn),
            Just(Event::Tick),
        ]
    }

    proptest! {
        #[test]
        fn no_warning_stays_for_ever(events in prop::collection::vec((event(), 0..100_000u64), 0..50)) {
            let mut warnings = Warnings::default();
            let mut now = at(0);
            for (event, pause) in events {
                now += at(pause);
                let before = warnings.level();
                let changed = warnings.step(now, event);
                prop_assert_eq!(changed, before != warnings.level());
                prop_assert_eq!(warnings.level().is_some(), warnings.deadline().is_some());
            }
            let mut ticks = 0;
            while let Some(deadline) = warnings.deadline() {
                warnings.step(deadline, Event::Tick);
                ticks += 1;
            }
            prop_assert!(ticks <= 2 && warnings.level().is_none());
        }

        #[test]
        fn a_guest_that_goes_on_or_is_told_so_is_not_warned(
            events in prop::collection::vec(event(), 0..50),
            end in prop_oneof![Just(Event::GoesOn), Just(Event::Announced(None))],
        ) {
            let mut warnings = Warnings::default();
            for event in events {
                warnings.step(at(0), event);
            }
            warnings.step(at(1), end);
            prop_assert_eq!((warnings.level(), warnings.deadline()), (None, None));
        }
    }
}
