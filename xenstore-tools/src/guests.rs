//! The guests of a host, from what the daemon says and what XenStore says.

use anyhow::bail;
use radclock::disruption::Disruption;
use radclock::report::{ClockReport, DaemonStatus, GuestReport};
use radclock::xenbus::XenbusState;
use serde::Serialize;

use crate::daemon::Daemon;
use crate::store::{self, Domain, Kind};

/// A host and its guests.
#[derive(Debug, Serialize)]
pub struct Host {
    /// The host's clock, if the daemon is running.
    pub clock: Option<ClockReport>,
    /// This boot of the host, if the daemon is running.
    pub host_id: Option<String>,
    /// Why the daemon says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon_problem: Option<String>,
    /// By number.
    pub guests: Vec<Guest>,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Guest {
    /// Xen's number of the domain.
    pub domid: u16,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// How Xen runs it, if libxl said so.
    pub kind: Option<Kind>,
    /// Whether the clock is offered to it.
    pub attached: bool,
    /// What that amounts to.
    pub state: State,
    /// The backend's XenBus state, by name.
    pub backend_state: String,
    /// The frontend's XenBus state, by name.
    pub frontend_state: String,
    /// The generation of the parameters last pushed to it, if the daemon is running and it has any.
    pub generation: Option<u64>,
    /// How old these are, s.
    pub age_s: Option<f64>,
    /// What its page warns of.
    pub warning: Option<Disruption>,
}

/// What a guest has of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is not offered.
    Detached,
    /// It is offered; no driver has taken it yet.
    Offered,
    /// The guest's driver has it.
    Connected,
    /// It is being taken away, or about to be offered anew.
    Closing,
    /// Nodes say so, but no daemon keeps it up to date.
    Orphaned,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            State::Detached => "detached",
            State::Offered => "offered",
            State::Connected => "connected",
            State::Closing => "closing",
            State::Orphaned => "orphaned",
        })
    }
}

impl Host {
    /// Asks the daemon and XenStore.
    ///
    /// # Errors
    ///
    /// Neither says anything.
    pub fn look(daemon: &Daemon) -> anyhow::Result<Host> {
        match (daemon.status(), store::domains()) {
            (Ok(status), domains) => Ok(Host::new(Some(status), domains.unwrap_or_default(), None)),
            (Err(problem), Ok(domains)) => Ok(Host::new(None, domains, Some(format!("{problem:#}")))),
            (Err(problem), Err(store)) => bail!("{problem:#}; nor can XenStore be read ({store})"),
        }
    }

    /// Puts together what both say.
    pub fn new(status: Option<DaemonStatus>, domains: Vec<Domain>, daemon_problem: Option<String>) -> Host {
        let Some(status) = status else {
            let guests = domains.into_iter().map(Guest::without_daemon).collect();
            return Host { clock: None, host_id: None, daemon_problem, guests };
        };
        let guests = status
            .guests
            .iter()
            .map(|report| {
                let domain = domains.iter().find(|domain| domain.domid == report.domid);
                Guest::reported(report, domain, &status.clock)
            })
            .collect();
        Host { clock: Some(status.clock), host_id: Some(status.host_id), daemon_problem, guests }
    }

    /// A guest by its number, name or UUID, in this order, as xl does it.
    ///
    /// # Errors
    ///
    /// There is none, or there are several of the name.
    pub fn find(&self, wanted: &str) -> anyhow::Result<&Guest> {
        if let Ok(domid) = wanted.parse::<u16>()
            && let Some(guest) = self.guests.iter().find(|guest| guest.domid == domid)
        {
            return Ok(guest);
        }
        let named: Vec<&Guest> = self.guests.iter().filter(|guest| guest.name == wanted).collect();
        match named[..] {
            [guest] => return Ok(guest),
            [] => {}
            _ => bail!("there are {} guests of the name {wanted}: give the number or the UUID", named.len()),
        }
        match self.guests.iter().find(|guest| guest.uuid.eq_ignore_ascii_case(wanted)) {
            Some(guest) => Ok(guest),
            None => bail!("there is no guest {wanted}: radclock-ctl list shows those there are"),
        }
    }
}

impl Guest {
    fn reported(report: &GuestReport, domain: Option<&Domain>, clock: &ClockReport) -> Guest {
        let state = match (report.attached, report.backend_state.as_str()) {
            (true, "Connected") => State::Connected,
            (true, "InitWait") => State::Offered,
            (false, "Unknown") => State::Detached,
            _ => State::Closing,
        };
        let pushed = matches!(state, State::Offered | State::Connected);
        Guest {
            domid: report.domid,
            // XenStore knows at once of a guest that is renamed when its migration ends, the daemon within seconds.
            name: domain.map_or(&report.name, |domain| &domain.name).clone(),
            uuid: report.uuid.clone(),
            kind: domain.and_then(|domain| domain.kind),
            attached: report.attached,
            state,
            backend_state: report.backend_state.clone(),
            frontend_state: report.frontend_state.clone(),
            generation: pushed.then_some(report.generation),
            // All guests get each update at once, so the age of the newest is the age of theirs.
            age_s: clock.age_s.filter(|_| pushed && report.generation == clock.generation),
            warning: report.warning,
        }
    }

    fn without_daemon(domain: Domain) -> Guest {
        let name = |state: Option<XenbusState>| state.unwrap_or(XenbusState::Unknown).to_string();
        Guest {
            domid: domain.domid,
            name: domain.name,
            uuid: domain.uuid,
            kind: domain.kind,
            attached: domain.backend.is_some(),
            state: if domain.backend.is_some() { State::Orphaned } else { State::Detached },
            backend_state: name(domain.backend),
            frontend_state: name(domain.frontend),
            generation: None,
            age_s: None,
            warning: None,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use radclock::clock::Status;
    use radclock::sync::SyncReport;

    use super::*;

    pub fn status() -> DaemonStatus {
        let guest = |domid: u16, name: &str, backend: &str, attached: bool, generation: u64| GuestReport {
            domid,
            name: name.into(),
            uuid: format!("{domid:08}-0000-4000-8000-00000000ABCD"),
            attached,
            backend_state: backend.into(),
            frontend_state: "Connected".into(),
            generation,
            warning: (domid == 1).then_some(Disruption::Imminent),
        };
        DaemonStatus {
            version: "0.1.0".into(),
            pid: 1,
            counter: "xen-system-time".into(),
            host_id: "00".repeat(16),
            time_domain: "lab".into(),
            clock: ClockReport {
                status: Status::Synchronized,
                generation: 9,
                time: Some("1795000000.123456789".into()),
                max_error_ns: Some(12_345),
                age_s: Some(3.25),
                tai_offset_s: None,
                leap: None,
                problem: None,
                sync: SyncReport::default(),
            },
            servers: vec![],
            guests: vec![
                guest(1, "db", "Connected", true, 9),
                guest(2, "web", "InitWait", true, 9),
                guest(3, "7", "Unknown", false, 0),
                guest(4, "twin", "Closing", false, 9),
                guest(5, "twin", "Connected", true, 8),
            ],
            xen: true,
        }
    }

    pub fn domains() -> Vec<Domain> {
        vec![Domain {
            domid: 1,
            name: "db".into(),
            uuid: "x".into(),
            kind: Some(Kind::Pvh),
            backend: Some(XenbusState::Connected),
            frontend: None,
        }]
    }

    #[test]
    fn a_guest_has_the_age_of_what_was_pushed_to_it() {
        let host = Host::new(Some(status()), domains(), None);
        let ages: Vec<Option<f64>> = host.guests.iter().map(|guest| guest.age_s).collect();
        // Number 5 missed the last update, so nothing is known of its age.
        assert_eq!(ages, [Some(3.25), Some(3.25), None, None, None]);
        let states: Vec<State> = host.guests.iter().map(|guest| guest.state).collect();
        assert_eq!(states, [State::Connected, State::Offered, State::Detached, State::Closing, State::Connected]);
        assert_eq!((host.guests[0].kind, host.guests[1].kind), (Some(Kind::Pvh), None));
    }

    #[test]
    fn a_guest_is_found_by_number_name_or_uuid() {
        let host = Host::new(Some(status()), vec![], None);
        let find = |wanted: &str| host.find(wanted).map(|guest| guest.domid).map_err(|error| error.to_string());
        assert_eq!(find("2"), Ok(2));
        assert_eq!(find("db"), Ok(1));
        assert_eq!(find("7"), Ok(3), "a name that looks like a number");
        assert_eq!(find("00000002-0000-4000-8000-00000000abcd"), Ok(2));
        assert!(find("twin").expect_err("two of them").contains("2 guests of the name twin"));
        assert!(find("nobody").expect_err("none").contains("there is no guest nobody"));
    }

    #[test]
    fn a_guest_has_the_name_that_it_has_now() {
        let mut status = status();
        status.guests[0].name = "db--incoming".into();
        let host = Host::new(Some(status), domains(), None);
        assert_eq!(host.find("db").expect("it is there").domid, 1);
    }

    #[test]
    fn without_a_daemon_nothing_is_connected() {
        let host = Host::new(None, domains(), Some("radclockd is not running".into()));
        assert_eq!(host.guests[0].state, State::Orphaned);
        assert_eq!(host.guests[0].backend_state, "Connected");
        assert_eq!(host.guests[0].age_s, None);
    }
}
