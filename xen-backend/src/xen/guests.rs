//! All guests at once: which domains there are, which of them have the clock, and getting it to them.
//!
//! One task owns the guests, follows XenStore and carries out what each guest's [`Device`] decides. Publishing goes
//! past it: the pages and ports in use stand in a list that is locked only for as long as it takes to write the
//! pages or to change an entry, never while XenStore or the kernel's grants are waited for.
//!
//! Nothing that a guest writes is logged or kept but its state. How closely that is followed is [`Attention`]'s business.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use radclock::disruption::{self, Disruption};
use radclock::page::Page;
use radclock::report::GuestReport;
use radclock::xenbus::{self, XenbusState};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::XenError;
use super::allowance::Allowance;
use super::attention::{self, Attention};
use super::device::{Action, Device, Event, Frontend, PATIENCE};
use super::event::Port;
use super::grant::GrantedPage;
use super::policy::GuestPolicy;
use super::store::{Domain, Identity, Store};
use super::warning::{self, Warnings};
use super::watches::{Changes, Topic, Watches};

/// Domains are looked for at least so often, whatever the watches say: a domain's nodes may go after the event that
/// announces it, and names change without one.
const RESCAN: Duration = Duration::from_secs(10);
/// After an event of domains coming and going, look once more: XenStore is tidied up after it.
const RESCAN_AFTER_EVENT: Duration = Duration::from_secs(1);
/// Lines in the log that a guest can bring about: four an offer, so ten offers at once, and then one in 10 s.
const LINES: Allowance = Allowance::new(Duration::from_secs(10), 40);
/// How long to wait before another attempt to reach a xenstored that was lost.
const RECONNECT: Duration = Duration::from_secs(5);

/// The guests of this host. Cheap to clone; all clones speak of the same.
#[derive(Clone)]
pub struct Guests {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

type Reply = oneshot::Sender<Result<(), String>>;

enum Command {
    Attach(u16, Reply),
    Detach(u16, Reply),
    Warn(u16, Option<Disruption>, Reply),
    Shutdown(oneshot::Sender<()>),
}

/// What the publisher and the task have in common.
struct Shared {
    board: Mutex<Board>,
    reports: Mutex<Vec<GuestReport>>,
}

/// The page as last published, and where it goes.
struct Board {
    page: Page,
    offers: BTreeMap<u16, Offer>,
}

/// What a guest is given. Dropping it ends it.
struct Offer {
    grant: GrantedPage,
    port: Port,
    warning: Option<Disruption>,
}

impl Offer {
    /// Writes a page that is the same for all guests, with what only this one is told.
    fn write(&self, page: &Page) {
        let Some(warning) = self.warning else { return self.grant.page().write(page) };
        let mut page = *page;
        disruption::warn(&mut page, Some(warning));
        self.grant.page().write(&page);
    }

    fn notify(&self, domid: u16) {
        if let Err(error) = self.port.notify() {
            debug!("domain {domid}: cannot send an event: {error}");
        }
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reports(&self) -> MutexGuard<'_, Vec<GuestReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guests {
    /// Starts to offer the clock to the guests that `policy` wants, with `first` as their page's content until the
    /// first [`Guests::publish`]. Has to be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// A device of the kernel's or XenStore cannot be used; each says what to do.
    pub async fn start(
        policy: GuestPolicy,
        host_id: [u8; 16],
        time_domain: String,
        first: Page,
    ) -> Result<Guests, XenError> {
        GrantedPage::check()?;
        Port::check()?;
        let changes = Arc::new(Changes::default());
        let store = Store::connect().await?;
        let watches = Watches::connect(changes.clone()).await?;
        let shared = Arc::new(Shared {
            board: Mutex::new(Board { page: first, offers: BTreeMap::new() }),
            reports: Mutex::new(Vec::new()),
        });
        let (commands, receiver) = mpsc::channel(16);
        let host_id = host_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut manager = Manager {
            policy,
            identity: Identity { host_id, time_domain },
            shared: shared.clone(),
            store,
            watches,
            changes,
            guests: BTreeMap::new(),
            epoch: Instant::now(),
            rescan_at: Instant::now(),
            appeared: Instant::now(),
            disconnected: false,
        };
        // Now rather than in the task, so that a XenStore that does not answer is an error here.
        manager.watch_all().await?;
        manager.remove_stale().await?;
        manager.report();
        tokio::spawn(manager.run(receiver));
        Ok(Guests { shared, commands })
    }

    /// Writes a page to every guest that has the clock, and tells them. Does not wait for anything but the kernel's
    /// sending of the events.
    pub fn publish(&self, page: &Page) {
        let mut board = self.shared.board();
        board.page = *page;
        for offer in board.offers.values() {
            offer.write(page);
        }
        for (domid, offer) in &board.offers {
            offer.notify(*domid);
        }
    }

    /// Offers the clock to a domain, whatever the policy says, and returns when its nodes are written.
    ///
    /// # Errors
    ///
    /// One line for a person.
    pub async fn attach(&self, domid: u16) -> Result<(), String> {
        self.command(|reply| Command::Attach(domid, reply)).await
    }

    /// Takes the clock away from a domain until it is attached again or gone, and returns when that is done.
    ///
    /// # Errors
    ///
    /// One line for a person.
    pub async fn detach(&self, domid: u16) -> Result<(), String> {
        self.command(|reply| Command::Detach(domid, reply)).await
    }

    /// Has a guest's page warn of a disruption, in place of what it warned of before, until the guest goes on after
    /// one, the warning's time has passed, or it is taken back.
    ///
    /// # Errors
    ///
    /// One line for a person.
    pub async fn warn(&self, domid: u16, warning: Option<Disruption>) -> Result<(), String> {
        self.command(|reply| Command::Warn(domid, warning, reply)).await
    }

    async fn command(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let ended = |_| "radclockd is shutting down".to_string();
        self.commands.send(command(reply)).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))?
    }

    /// The guests there are, by number.
    pub fn reports(&self) -> Vec<GuestReport> {
        let generations: BTreeMap<u16, u64> = {
            let board = self.shared.board();
            let generation = board.page.ext.generation.get();
            board.offers.keys().map(|domid| (*domid, generation)).collect()
        };
        let mut reports = self.shared.reports().clone();
        for report in &mut reports {
            report.generation = generations.get(&report.domid).copied().unwrap_or(0);
        }
        reports
    }

    /// Takes the clock away from all guests: says Closing, waits for them a few seconds at most, ends grants and
    /// event channels, removes all nodes.
    pub async fn shutdown(self) {
        let (done, answer) = oneshot::channel();
        if self.commands.send(Command::Shutdown(done)).await.is_ok() {
            // An error says that the task has already ended.
            let _ = answer.await;
        }
    }
}

/// One domain.
struct Guest {
    /// When there was first a sign of it.
    appeared: Instant,
    domain: Domain,
    device: Device,
    /// What the administrator said, over the policy.
    wish: Option<bool>,
    backend: XenbusState,
    frontend: Frontend,
    /// Its watches were just set: the event that comes at once says nothing of the guest.
    is_watch_new: bool,
    warnings: Warnings,
    /// From the first offer to the end of the domain.
    attention: Option<Attention>,
    /// Granted, but not in use until the next offer.
    page: Option<GrantedPage>,
    lines: Allowance,
    /// Who waits for the offer to stand, or for the device to be gone.
    attaching: Vec<Reply>,
    detaching: Vec<Reply>,
}

impl Guest {
    fn new(domain: Domain, appeared: Instant) -> Guest {
        Guest {
            appeared,
            domain,
            device: Device::new(),
            wish: None,
            backend: XenbusState::Unknown,
            frontend: Frontend::Absent,
            is_watch_new: false,
            warnings: Warnings::default(),
            attention: None,
            page: None,
            lines: LINES,
            attaching: Vec::new(),
            detaching: Vec::new(),
        }
    }

    fn uuid(&self) -> &str {
        xenbus::uuid_of_vm(&self.domain.vm).unwrap_or("")
    }

    fn wanted(&self, policy: &GuestPolicy) -> bool {
        self.wish.unwrap_or_else(|| policy.wants(&self.domain.name, self.uuid()))
    }

    /// Logs what a guest has brought about, unless it does so all the time.
    fn say(&mut self, now: Duration, domid: u16, what: &str) {
        let name = &self.domain.name;
        if self.lines.take(now, 1) {
            info!("domain {domid} ({name}): {what}");
        } else {
            debug!("domain {domid} ({name}): {what}");
        }
    }

    fn report(&self, domid: u16) -> GuestReport {
        let frontend = match self.frontend {
            Frontend::State(state) => state,
            Frontend::Absent | Frontend::Garbage => XenbusState::Unknown,
        };
        GuestReport {
            domid,
            name: self.domain.name.clone(),
            uuid: self.uuid().to_string(),
            attached: self.device.is_attached(),
            backend_state: self.backend.to_string(),
            frontend_state: frontend.to_string(),
            generation: 0,
            warning: self.warnings.level().filter(|_| self.device.is_attached()),
        }
    }
}

/// The task.
struct Manager {
    policy: GuestPolicy,
    identity: Identity,
    shared: Arc<Shared>,
    store: Store,
    watches: Watches,
    changes: Arc<Changes>,
    guests: BTreeMap<u16, Guest>,
    /// From where the devices' time counts.
    epoch: Instant,
    rescan_at: Instant,
    /// Since when the domains that are found now may have been there.
    appeared: Instant,
    /// XenStore is lost.
    disconnected: bool,
}

impl Manager {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let changes = self.changes.clone();
        loop {
            self.turn().await;
            self.report();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Attach(domid, reply)) => self.attach(domid, reply).await,
                    Some(Command::Detach(domid, reply)) => self.detach(domid, reply).await,
                    Some(Command::Warn(domid, warning, reply)) => self.announce(domid, warning, reply).await,
                    Some(Command::Shutdown(done)) => {
                        self.shutdown().await;
                        // Whoever asked may have stopped waiting.
                        let _ = done.send(());
                        return;
                    }
                    // Nobody is left to ask for anything: the daemon is being torn down.
                    None => return self.shutdown().await,
                },
                () = changes.wait() => {}
                () = tokio::time::sleep_until(self.next_turn()) => {}
            }
        }
    }

    fn report(&self) {
        *self.shared.reports() = self.guests.iter().map(|(domid, guest)| guest.report(*domid)).collect();
    }

    fn next_turn(&self) -> Instant {
        if self.disconnected {
            return self.rescan_at;
        }
        let deadlines = self.guests.values().flat_map(|guest| {
            let attention = guest.attention.as_ref().and_then(Attention::deadline);
            [guest.device.deadline(), guest.warnings.deadline(), attention]
        });
        let deadlines = deadlines.flatten().map(|at| self.epoch + at);
        deadlines.chain([self.rescan_at]).min().expect("there is the next scan at least")
    }

    /// Does whatever is due.
    async fn turn(&mut self) {
        let pending = self.changes.take();
        let now = Instant::now();
        self.appeared = pending.domains.unwrap_or(now);
        if pending.domains.is_some() {
            self.rescan_at = now;
        }
        if let Some(source) = pending.lost {
            self.check(Err(XenError::Store { what: "hear of changes in", path: "/".into(), source }));
        }
        if now >= self.rescan_at {
            self.rescan_at = now + if pending.domains.is_some() { RESCAN_AFTER_EVENT } else { RESCAN };
            let scanned = self.reconnect_and_scan().await;
            self.check(scanned);
        }
        if self.disconnected {
            return;
        }
        let epoch = self.epoch;
        // A guest acknowledges a request at once: whoever is to see that must be quick.
        for domid in pending.requests.into_iter().filter(|domid| self.is_watched(*domid)).collect::<Vec<_>>() {
            let read = self.read_request(domid).await;
            self.check(read);
        }
        for domid in pending.frontends.into_iter().filter(|domid| self.is_watched(*domid)).collect::<Vec<_>>() {
            let read = self.read_frontend(domid, true).await;
            self.check(read);
        }
        for (domid, events) in pending.events {
            let heard = self.heard(domid, events).await;
            self.check(heard);
        }
        let attention = |guest: &Guest| guest.attention.as_ref().and_then(Attention::deadline);
        for domid in self.due(now, |guest, now| attention(guest).is_some_and(|at| epoch + at <= now)) {
            let attended = self.attend(domid).await;
            self.check(attended);
        }
        for domid in self.due(now, |guest, now| guest.warnings.deadline().is_some_and(|at| epoch + at <= now)) {
            self.warn(domid, warning::Event::Tick);
        }
        for domid in self.due(now, |guest, now| guest.device.deadline().is_some_and(|at| epoch + at <= now)) {
            self.step(domid, Event::Tick).await;
        }
    }

    fn due(&self, now: Instant, is_due: impl Fn(&Guest, Instant) -> bool) -> Vec<u16> {
        self.guests.iter().filter(|(_, guest)| is_due(guest, now)).map(|(domid, _)| *domid).collect()
    }

    /// Notes an error, and whether XenStore is lost by it.
    fn check(&mut self, result: Result<(), XenError>) {
        let Err(error) = result else { return };
        if error.is_disconnected() {
            if !self.disconnected {
                warn!("lost XenStore ({error}): guests keep the clock they have, trying again");
            }
            self.disconnected = true;
            self.store.give_up();
            self.rescan_at = Instant::now() + RECONNECT;
        } else {
            warn!("{error}");
        }
    }

    /// The same of what a guest may have brought about, which is not noted if it does so all the time.
    fn check_guest(&mut self, domid: u16, result: Result<(), XenError>) {
        let now = self.now();
        let mut allowed = || self.guests.get_mut(&domid).is_none_or(|guest| guest.lines.take(now, 1));
        match result {
            Err(error) if !error.is_disconnected() && !allowed() => debug!("{error}"),
            result => self.check(result),
        }
    }

    /// What is wrong with one domain of many is noted, and keeps nobody from the others unless XenStore is lost.
    fn check_one(&mut self, domid: u16, result: Result<(), XenError>) -> Result<(), XenError> {
        match result {
            Err(error) if error.is_disconnected() => Err(error),
            result => {
                self.check_guest(domid, result);
                Ok(())
            }
        }
    }

    fn is_watched(&self, domid: u16) -> bool {
        let attention = self.guests.get(&domid).and_then(|guest| guest.attention.as_ref());
        attention.is_some_and(Attention::is_watching)
    }

    async fn watch_all(&mut self) -> Result<(), XenError> {
        for topic in Topic::DOMAINS {
            self.watches.watch(topic).await?;
        }
        let guests = self.guests.keys().copied().filter(|domid| self.is_watched(*domid));
        for domid in guests.collect::<Vec<_>>() {
            self.watch(domid).await?;
        }
        Ok(())
    }

    /// A guest has made so many events.
    async fn heard(&mut self, domid: u16, events: u32) -> Result<(), XenError> {
        let now = self.now();
        let Some(guest) = self.guests.get_mut(&domid) else { return Ok(()) };
        if guest.attention.as_mut().is_some_and(|attention| attention.heard(now, events)) {
            debug!("domain {domid}: too many events, not watched for a while");
            self.unwatch(domid).await?;
        }
        Ok(())
    }

    /// What is due with a guest that is not watched.
    async fn attend(&mut self, domid: u16) -> Result<(), XenError> {
        let now = self.now();
        let Some(guest) = self.guests.get_mut(&domid) else { return Ok(()) };
        match guest.attention.as_mut().and_then(|attention| attention.tick(now)) {
            None => Ok(()),
            Some(attention::Action::Look) => self.read_frontend(domid, false).await,
            Some(attention::Action::Watch) => self.watch(domid).await,
        }
    }

    async fn watch(&mut self, domid: u16) -> Result<(), XenError> {
        if let Some(guest) = self.guests.get_mut(&domid) {
            guest.is_watch_new = true;
        }
        for topic in Topic::of_guest(domid) {
            self.watches.watch(topic).await?;
        }
        Ok(())
    }

    async fn unwatch(&mut self, domid: u16) -> Result<(), XenError> {
        for topic in Topic::of_guest(domid) {
            self.watches.unwatch(topic).await?;
        }
        Ok(())
    }

    /// As the state machines count it.
    fn now(&self) -> Duration {
        Instant::now().duration_since(self.epoch)
    }

    /// Removes the nodes that a predecessor left for domains that are gone or are not to have the clock. What it left
    /// for the others is overwritten.
    async fn remove_stale(&mut self) -> Result<(), XenError> {
        self.scan().await?;
        for domid in self.store.backends().await? {
            if !self.guests.get(&domid).is_some_and(|guest| guest.device.is_attached()) {
                info!("domain {domid}: removing what an earlier radclockd left");
                let removed = self.store.remove(domid).await;
                self.check_one(domid, removed)?;
            }
        }
        Ok(())
    }

    async fn reconnect_and_scan(&mut self) -> Result<(), XenError> {
        if self.disconnected {
            self.store = Store::connect().await?;
            self.watches = Watches::connect(self.changes.clone()).await?;
            self.watch_all().await?;
            self.disconnected = false;
            info!("reached XenStore again");
        }
        self.scan().await
    }

    /// Brings the guests up to date with the domains there are.
    async fn scan(&mut self) -> Result<(), XenError> {
        let domids = self.store.domids().await?;
        let known: BTreeSet<u16> = self.guests.keys().copied().collect();
        for domid in &known - &domids {
            self.forget(domid).await;
        }
        for domid in domids {
            let looked = self.look_at(domid).await;
            self.check_one(domid, looked)?;
        }
        Ok(())
    }

    /// Brings one guest up to date.
    async fn look_at(&mut self, domid: u16) -> Result<(), XenError> {
        let domain = self.store.domain(domid).await?;
        if self.guests.get(&domid).is_some_and(|guest| domain.as_ref().is_none_or(|new| new.vm != guest.domain.vm)) {
            self.forget(domid).await;
        }
        let Some(domain) = domain else { return Ok(()) };
        let appeared = self.appeared;
        let guest = self.guests.entry(domid).or_insert_with(|| Guest::new(domain.clone(), appeared));
        guest.domain = domain;
        match (guest.wanted(&self.policy), guest.device.is_attached()) {
            (true, false) => self.step(domid, Event::Attach).await,
            (false, true) => self.step(domid, Event::Detach).await,
            _ => {}
        }
        Ok(())
    }

    /// `written` if an event says that it has been.
    async fn read_frontend(&mut self, domid: u16, written: bool) -> Result<(), XenError> {
        if !self.guests.contains_key(&domid) {
            return Ok(());
        }
        let frontend = self.store.frontend(domid).await?;
        if frontend == Frontend::Absent {
            // Removed by the guest, or with the whole domain.
            self.look_at(domid).await?;
        }
        if let Some(guest) = self.guests.get_mut(&domid) {
            // A driver says it again when its guest goes on after a suspend.
            let is_news = written && !std::mem::take(&mut guest.is_watch_new);
            let goes_on = is_news && frontend == Frontend::State(XenbusState::Connected) && frontend == guest.frontend;
            guest.frontend = frontend;
            self.step(domid, Event::Frontend(frontend)).await;
            if goes_on {
                self.warn(domid, warning::Event::GoesOn);
            }
        }
        Ok(())
    }

    async fn read_request(&mut self, domid: u16) -> Result<(), XenError> {
        if !self.guests.contains_key(&domid) {
            return Ok(());
        }
        if self.store.is_suspend_requested(domid).await? {
            self.warn(domid, warning::Event::Suspending);
        }
        Ok(())
    }

    /// Feeds an event to a guest's warnings, and has its page say what they come to.
    fn warn(&mut self, domid: u16, event: warning::Event) {
        let now = self.now();
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        if !guest.warnings.step(now, event) {
            return;
        }
        let warning = guest.warnings.level();
        let name = &guest.domain.name;
        let said = match warning {
            Some(warning) => format!("domain {domid} ({name}): warned, a disruption is {warning}"),
            None => format!("domain {domid} ({name}): no longer warned of a disruption"),
        };
        match event {
            warning::Event::Announced(_) | warning::Event::Tick => info!("{said}"),
            // The guest can make believe that these happen, as often as it likes.
            warning::Event::Suspending | warning::Event::GoesOn => debug!("{said}"),
        }
        let mut board = self.shared.board();
        let page = board.page;
        if let Some(offer) = board.offers.get_mut(&domid) {
            offer.warning = warning;
            offer.write(&page);
            offer.notify(domid);
        }
    }

    async fn announce(&mut self, domid: u16, warning: Option<Disruption>, reply: Reply) {
        let result = match self.guests.get(&domid) {
            None => Err(format!("there is no domain {domid}")),
            Some(guest) if warning.is_some() && !guest.device.is_attached() => {
                Err("it does not have the clock: radclock-ctl attach".to_string())
            }
            Some(_) => {
                self.warn(domid, warning::Event::Announced(warning));
                Ok(())
            }
        };
        answer(vec![reply], &result);
    }

    /// A domain is gone.
    async fn forget(&mut self, domid: u16) {
        if let Some(guest) = self.guests.get(&domid)
            && !guest.device.is_idle()
        {
            info!("domain {domid} ({}): gone", guest.domain.name);
        }
        self.step(domid, Event::Gone).await;
        if let Some(guest) = self.guests.remove(&domid) {
            if guest.attention.is_some_and(|attention| attention.is_watching()) && !self.disconnected {
                let unwatched = self.unwatch(domid).await;
                self.check(unwatched);
            }
            answer(guest.attaching, &Err(XenError::Gone(domid).to_string()));
            answer(guest.detaching, &Ok(()));
        }
    }

    /// Feeds an event to a guest's device and carries out what it decides.
    async fn step(&mut self, domid: u16, event: Event) {
        let epoch = self.epoch;
        let now = || Instant::now().duration_since(epoch);
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        for action in guest.device.step(now(), event) {
            debug!("domain {domid}: {event:?}: {action:?}");
            let result = self.act(domid, action).await;
            let Some(guest) = self.guests.get_mut(&domid) else { return };
            match (action, result) {
                (Action::Offer, Ok(())) => {
                    guest.device.step(now(), Event::Offered);
                    guest.say(now(), domid, "offered the clock");
                    debug!("domain {domid}: attached {:?} after it appeared", guest.appeared.elapsed());
                    answer(std::mem::take(&mut guest.attaching), &Ok(()));
                }
                (Action::Offer, Err(error)) => {
                    guest.device.step(now(), Event::OfferFailed);
                    answer(std::mem::take(&mut guest.attaching), &Err(error.to_string()));
                    if matches!(error, XenError::Gone(_)) {
                        debug!("{error}");
                    } else {
                        self.check_guest(domid, Err(error));
                    }
                }
                // The clock is taken away whether or not the nodes can say so.
                (_, result) => self.check_guest(domid, result),
            }
        }
        if let Some(guest) = self.guests.get_mut(&domid)
            && guest.device.is_idle()
        {
            answer(std::mem::take(&mut guest.detaching), &Ok(()));
        }
    }

    async fn act(&mut self, domid: u16, action: Action) -> Result<(), XenError> {
        let now = self.now();
        let Some(guest) = self.guests.get_mut(&domid) else { return Ok(()) };
        match action {
            Action::Offer => {
                if guest.attention.is_none() {
                    self.watch(domid).await?;
                }
                let Some(guest) = self.guests.get_mut(&domid) else { return Ok(()) };
                guest.attention.get_or_insert_default();
                let warning = guest.warnings.level();
                let port = Port::new(domid)?;
                let grant = guest.page.take().map_or_else(|| GrantedPage::new(domid), Ok)?;
                let offer = Offer { grant, port, warning };
                let (page_ref, port) = (offer.grant.reference(), offer.port.number());
                {
                    // From here on it is kept up to date: it is right before anybody can learn of it.
                    let mut board = self.shared.board();
                    offer.write(&board.page);
                    board.offers.insert(domid, offer);
                }
                let written = self.store.offer(domid, &guest.domain.vm, page_ref, port, &self.identity).await;
                if written.is_err() {
                    self.withdraw(domid);
                } else {
                    guest.backend = XenbusState::InitWait;
                    guest.frontend = Frontend::State(XenbusState::Initialising);
                }
                written
            }
            Action::State(state) => {
                if state != guest.backend {
                    guest.say(now, domid, &state.to_string());
                }
                guest.backend = state;
                self.store.write_state(domid, state).await
            }
            Action::Knock => match self.store.knock(domid).await {
                // As it shall: its domain, or its guest, has just removed it.
                Err(XenError::Gone(_)) => Ok(()),
                result => result,
            },
            Action::Offline => self.store.write_offline(domid).await,
            Action::Withdraw => {
                self.withdraw(domid);
                Ok(())
            }
            Action::Remove => {
                guest.backend = XenbusState::Unknown;
                guest.frontend = Frontend::Absent;
                guest.page = None;
                self.store.remove(domid).await
            }
        }
    }

    fn withdraw(&mut self, domid: u16) {
        let offer = self.shared.board().offers.remove(&domid);
        // The port ends here, the board unlocked: the kernel may take its time.
        let page = offer.map(|offer| offer.grant);
        if let Some(guest) = self.guests.get_mut(&domid) {
            guest.page = page;
        }
    }

    async fn attach(&mut self, domid: u16, reply: Reply) {
        self.command(domid, true, reply).await;
    }

    async fn detach(&mut self, domid: u16, reply: Reply) {
        self.command(domid, false, reply).await;
    }

    async fn command(&mut self, domid: u16, attach: bool, reply: Reply) {
        let looked = if domid == 0 { Ok(()) } else { self.look_at(domid).await };
        let refusal = match (&looked, self.guests.get_mut(&domid)) {
            (Err(error), _) => Some(error.to_string()),
            _ if domid == 0 => Some("Dom0 has the clock under /run/radclock, it is no guest".into()),
            (Ok(()), None) => Some(format!("there is no domain {domid}")),
            (Ok(()), Some(guest)) => {
                guest.wish = Some(attach);
                None
            }
        };
        self.check(looked);
        if let Some(refusal) = refusal {
            return answer(vec![reply], &Err(refusal));
        }
        let Some(guest) = self.guests.get_mut(&domid) else { return };
        if attach == guest.device.is_offered() && attach != guest.device.is_idle() {
            return answer(vec![reply], &Ok(()));
        }
        if attach {
            guest.attaching.push(reply);
            answer(std::mem::take(&mut guest.detaching), &Err("attached again meanwhile".into()));
        } else {
            guest.detaching.push(reply);
            answer(std::mem::take(&mut guest.attaching), &Err("detached meanwhile".into()));
        }
        self.step(domid, if attach { Event::Attach } else { Event::Detach }).await;
    }

    async fn shutdown(&mut self) {
        // For domains that appear meanwhile.
        self.policy = GuestPolicy::None;
        for domid in self.guests.keys().copied().collect::<Vec<_>>() {
            if let Some(guest) = self.guests.get_mut(&domid) {
                guest.wish = Some(false);
            }
            self.step(domid, Event::Detach).await;
        }
        let deadline = Instant::now() + PATIENCE;
        let changes = self.changes.clone();
        while !self.disconnected && Instant::now() < deadline && !self.guests.values().all(|g| g.device.is_idle()) {
            let until = self.next_turn().min(deadline);
            tokio::select! {
                () = changes.wait() => {}
                () = tokio::time::sleep_until(until) => {}
            }
            self.turn().await;
        }
        for domid in self.guests.keys().copied().collect::<Vec<_>>() {
            self.forget(domid).await;
        }
        if !self.disconnected {
            let removed = self.store.remove_root().await;
            self.check(removed);
        }
    }
}

fn answer(replies: Vec<Reply>, result: &Result<(), String>) {
    for reply in replies {
        // Whoever asked may have stopped waiting.
        let _ = reply.send(result.clone());
    }
}
