//! Watches over our rules: re-asserts them when someone flushes or changes
//! them, and opens firewalls that turn up later.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::nft::{Family, SUBSYSTEM, msg};
use super::{Error, Firewall};
use crate::error::system;
use crate::netlink::{Event, Socket, attributes, text};

/// `NFNLGRP_NFTABLES` is group 7.
const GROUP_MASK: u32 = 1 << 6;
/// Legacy tables send no events; they are looked at this often.
const LEGACY_INTERVAL: Duration = Duration::from_secs(1);
/// Someone else's transaction is waited out for this long.
const SETTLE: Duration = Duration::from_millis(20);
/// Against a program that removes our rules in a loop.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The watching thread; dropping it stops the thread.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts watching in the calling thread's namespace, which must be the one
    /// that `firewall` was opened in. `on_report` hears what blocks whenever it
    /// was looked for: after changes, and every second.
    ///
    /// # Errors
    /// When the event socket or the thread cannot be made.
    pub fn start(
        firewall: Arc<Mutex<Firewall>>,
        on_report: impl FnMut(&super::Report) + Send + 'static,
    ) -> Result<Self, Error> {
        let events = Socket::netfilter(GROUP_MASK)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| system("make", "eventfd")(e.into()))?;
        let stop = Arc::new(stop);
        let (own_port, table) = {
            let firewall = lock(&firewall);
            (firewall.port_id(), firewall.table().to_owned())
        };
        let mut watcher = Watcher {
            own_port,
            table,
            firewall,
            events,
            stop: Arc::clone(&stop),
            on_report: Box::new(on_report),
            last: None,
        };
        let thread = std::thread::Builder::new()
            .name("firewall-watch".to_owned())
            .stack_size(256 << 10)
            .spawn(move || watcher.run())
            .map_err(system("start", "firewall thread"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Err(errno) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            tracing::error!(%errno, "cannot stop the firewall thread");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the firewall thread panicked");
        }
    }
}

fn lock(firewall: &Mutex<Firewall>) -> MutexGuard<'_, Firewall> {
    firewall.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Watcher {
    firewall: Arc<Mutex<Firewall>>,
    own_port: u32,
    table: String,
    events: Socket,
    stop: Arc<OwnedFd>,
    on_report: Box<dyn FnMut(&super::Report) + Send>,
    last: Option<Instant>,
}

/// What events ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    /// Another firewall changed.
    Others,
    /// Our table changed.
    All,
}

impl Watcher {
    fn run(&mut self) {
        let mut need = Need::Nothing;
        loop {
            let timeout = if need == Need::Nothing { LEGACY_INTERVAL } else { self.pause() };
            match self.wait(timeout) {
                Ok(Woken::Stop) => return,
                Ok(Woken::Events) => need = need.max(self.read_events()),
                Ok(Woken::Timeout) => {
                    self.act(need);
                    need = Need::Nothing;
                }
                Err(errno) => {
                    tracing::error!(%errno, "firewall thread cannot wait; rules are no longer watched");
                    return;
                }
            }
        }
    }

    fn pause(&self) -> Duration {
        let rest = self.last.map_or(Duration::ZERO, |l| MIN_INTERVAL.saturating_sub(l.elapsed()));
        rest.max(SETTLE)
    }

    fn wait(&self, timeout: Duration) -> Result<Woken, rustix::io::Errno> {
        let mut fds =
            [PollFd::new(&*self.stop, PollFlags::IN), PollFd::new(&self.events, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(1),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Ok(Woken::Timeout),
            Ok(_) if !fds[0].revents().is_empty() => Ok(Woken::Stop),
            Ok(_) => Ok(Woken::Events),
            Err(rustix::io::Errno::INTR) => Ok(Woken::Timeout),
            Err(errno) => Err(errno),
        }
    }

    fn read_events(&mut self) -> Need {
        match self.events.events() {
            Ok(events) => events
                .iter()
                .filter(|e| e.port != self.own_port)
                .map(|e| need(e, &self.table))
                .max()
                .unwrap_or(Need::Nothing),
            // Events were lost, so ours may be among them.
            Err(_) => Need::All,
        }
    }

    fn act(&mut self, need: Need) {
        let mut firewall = lock(&self.firewall);
        if !firewall.is_active() {
            return;
        }
        let need = match firewall.is_present() {
            Ok(true) => need,
            _ => Need::All,
        };
        let report = match need {
            Need::All => firewall.reassert(),
            Need::Others => firewall.open_others(),
            Need::Nothing => Ok(firewall.open_legacy()),
        };
        drop(firewall);
        if need != Need::Nothing {
            self.last = Some(Instant::now());
        }
        match report {
            Ok(report) => (self.on_report)(&report),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "packet filter not re-asserted"
                );
            }
        }
    }
}

enum Woken {
    Stop,
    Events,
    Timeout,
}

fn need(event: &Event, own_table: &str) -> Need {
    if event.kind >> 8 != SUBSYSTEM {
        return Need::Nothing;
    }
    let family = event.payload.first().copied().and_then(Family::from_number);
    // Attribute 1 is the table's name in all of these messages.
    let table = event.payload.get(4..).and_then(|b| attributes(b).get(1)).map(text);
    match event.kind & 0xff {
        msg::NEWTABLE..=msg::DELSETELEM
            if family == Some(Family::Inet) && table.as_deref() == Some(own_table) =>
        {
            Need::All
        }
        msg::NEWTABLE
        | msg::DELTABLE
        | msg::NEWCHAIN
        | msg::DELCHAIN
        | msg::NEWRULE
        | msg::DELRULE => Need::Others,
        _ => Need::Nothing,
    }
}
