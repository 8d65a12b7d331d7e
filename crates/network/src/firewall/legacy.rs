//! Legacy iptables and ip6tables: their FORWARD chain is opened for our bridges
//! through the socket options that iptables(8) itself uses. A table that is not
//! in use in this namespace is not even looked up (that would create it).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};

use super::foreign::{Blocker, BlockerKind};
use super::legacy_table::{Direction, LAYOUT4, LAYOUT6, Layout, MAX_BYTES, Malformed, Table};
use super::nft::Family;
use crate::error::{Error, system};
use crate::util;

/// `IPT_BASE_CTL`, also `IP6T_BASE_CTL`.
const SET_REPLACE: i32 = 64;
const SET_ADD_COUNTERS: i32 = 65;
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
const NAME: usize = 32;
const INFO_LEN: usize = 84;
const ENTRIES_HEADER: usize = 40;
const REPLACE_HEADER: usize = 96;
const COUNTER: usize = sys::netns::XT_COUNTERS_LEN;
/// iptables(8) holds this while it edits.
const LOCK_PATH: &str = "/run/xtables.lock";
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// How often a table that changed under us is read again.
const ATTEMPTS: usize = 5;

struct Kind {
    family: Family,
    title: &'static str,
    names: &'static str,
    socket: AddressFamily,
    level: i32,
    layout: &'static Layout,
}

const KINDS: [Kind; 2] = [
    Kind {
        family: Family::Ip,
        title: "ip filter",
        names: "/proc/thread-self/net/ip_tables_names",
        socket: AddressFamily::INET,
        level: libc::SOL_IP,
        layout: &LAYOUT4,
    },
    Kind {
        family: Family::Ip6,
        title: "ip6 filter",
        names: "/proc/thread-self/net/ip6_tables_names",
        socket: AddressFamily::INET6,
        level: libc::SOL_IPV6,
        layout: &LAYOUT6,
    },
];

/// Brings our accepts in the calling thread's legacy tables, those with our
/// comment, to what `bridges` need; what could not be opened is returned.
pub(super) fn open_legacy(comment: &str, bridges: &[String]) -> Vec<Blocker> {
    KINDS.iter().filter_map(|kind| open_kind(kind, comment, bridges)).collect()
}

fn open_kind(kind: &Kind, comment: &str, bridges: &[String]) -> Option<Blocker> {
    // Absent in kernels without legacy tables.
    let names = util::read_text(Path::new(kind.names)).ok()?;
    if !names.lines().any(|n| n == "filter") {
        return None;
    }
    let mut policy = "unknown";
    let reason = match bring(kind, comment, bridges, &mut policy) {
        Ok(()) => return None,
        Err(error) if bridges.is_empty() => {
            tracing::warn!(error = &error as &dyn std::error::Error, "legacy table not cleaned");
            return None;
        }
        Err(error) => match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    };
    Some(Blocker {
        kind: BlockerKind::Legacy,
        family: kind.family,
        table: "filter".to_owned(),
        chain: "FORWARD".to_owned(),
        policy,
        reason,
    })
}

fn bring(
    kind: &Kind,
    comment: &str,
    bridges: &[String],
    policy: &mut &'static str,
) -> Result<(), Error> {
    let socket = rustix::net::socket_with(
        kind.socket,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(Protocol::from_raw(
            rustix::net::RawProtocol::new(libc::IPPROTO_RAW.unsigned_abs()).expect("255 is not 0"),
        )),
    )
    .map_err(|e| system("open", "raw socket for legacy tables")(e.into()))?;
    let mut lock = None;
    for attempt in 1.. {
        let table = read(kind, &socket)?;
        let denies = table.denies(kind.layout).map_err(malformed(kind))?;
        *policy = denies.unwrap_or("unknown");
        let wanted: Vec<(Direction, String)> = match denies {
            Some(_) => bridges
                .iter()
                .flat_map(|b| [(Direction::In, b.clone()), (Direction::Out, b.clone())])
                .collect(),
            None => Vec::new(),
        };
        if table.ours(kind.layout, comment).map_err(malformed(kind))? == wanted {
            return Ok(());
        }
        if lock.is_none() {
            // Read again: it may have been edited until the lock was ours.
            lock = Some(take_lock()?);
            continue;
        }
        match write(kind, &socket, &table, (comment, &wanted)) {
            Err(error) if error.errno() == Some(libc::EAGAIN) && attempt < ATTEMPTS => {}
            other => return other,
        }
    }
    Ok(())
}

fn malformed(kind: &Kind) -> impl Fn(Malformed) -> Error + use<> {
    let table = kind.title;
    move |Malformed| Error::LegacyTable { table, reason: "its entries are not laid out as known" }
}

/// The lock, or nothing where there is no place for it.
fn take_lock() -> Result<Option<OwnedFd>, Error> {
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(fd) = rustix::fs::open(LOCK_PATH, flags, Mode::from_raw_mode(0o600)) else {
        return Ok(None);
    };
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(fd)),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(errno) => return Err(system("lock", LOCK_PATH)(errno.into())),
        }
    }
}

fn name_field() -> [u8; NAME] {
    let mut name = [0u8; NAME];
    name[..6].copy_from_slice(b"filter");
    name
}

fn words<const N: usize>(bytes: &[u8], at: usize) -> [u32; N] {
    std::array::from_fn(|n| {
        let at = at + 4 * n;
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
    })
}

fn read(kind: &Kind, socket: &OwnedFd) -> Result<Table, Error> {
    for attempt in 1.. {
        let mut info = [0u8; INFO_LEN];
        info[..NAME].copy_from_slice(&name_field());
        sys::netns::get_option(socket, kind.level, GET_INFO, &mut info)
            .map_err(system("read legacy table", kind.title))?;
        let [valid_hooks] = words(&info, NAME);
        let [size] = words(&info, 80);
        let len = usize::try_from(size).ok().filter(|l| *l <= MAX_BYTES);
        let len = len.ok_or(Error::LegacyTable { table: kind.title, reason: "it is too large" })?;
        let mut buf = vec![0u8; ENTRIES_HEADER + len];
        buf[..NAME].copy_from_slice(&name_field());
        buf[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        match sys::netns::get_option(socket, kind.level, GET_ENTRIES, &mut buf) {
            Ok(_) => {
                let entries = buf.split_off(ENTRIES_HEADER);
                return Ok(Table {
                    valid_hooks,
                    hook_entry: words(&info, 36),
                    underflow: words(&info, 56),
                    entries,
                });
            }
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < ATTEMPTS => {}
            Err(error) => return Err(system("read entries of legacy table", kind.title)(error)),
        }
    }
    Err(Error::LegacyTable { table: kind.title, reason: "it keeps changing" })
}

fn write(
    kind: &Kind,
    socket: &OwnedFd,
    old: &Table,
    (comment, wanted): (&str, &[(Direction, String)]),
) -> Result<(), Error> {
    let bad = malformed(kind);
    let (mut new, origin) = old.with_accepts(kind.layout, comment, wanted).map_err(&bad)?;
    new.clear_counters(kind.layout).map_err(&bad)?;
    let old_count = old.count(kind.layout).map_err(&bad)?;
    let number = |n: usize| u32::try_from(n).map_err(|_| bad(Malformed));
    let mut replace = vec![0u8; REPLACE_HEADER];
    replace[..NAME].copy_from_slice(&name_field());
    let head = [new.valid_hooks, number(origin.len())?, number(new.entries.len())?];
    let all =
        head.into_iter().chain(new.hook_entry).chain(new.underflow).chain([number(old_count)?]);
    for (position, value) in all.enumerate() {
        let at = NAME + 4 * position;
        replace[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    replace.extend_from_slice(&new.entries);
    let mut counters = vec![0u8; old_count * COUNTER];
    sys::netns::xt_replace(socket, kind.level, SET_REPLACE, &mut replace, &mut counters)
        .map_err(system("replace legacy table", kind.title))?;
    restore_counters(kind, socket, &origin, &counters)
        .map_err(system("restore counters of legacy table", kind.title))
}

/// A replaced table starts at zero; what the old entries counted is added.
fn restore_counters(
    kind: &Kind,
    socket: &OwnedFd,
    origin: &[Option<usize>],
    old: &[u8],
) -> io::Result<()> {
    let count = u32::try_from(origin.len()).map_err(io::Error::other)?;
    let mut add = vec![0u8; ENTRIES_HEADER];
    add[..NAME].copy_from_slice(&name_field());
    add[NAME..NAME + 4].copy_from_slice(&count.to_ne_bytes());
    for position in origin {
        let counter = position.and_then(|p| old.get(p * COUNTER..(p + 1) * COUNTER));
        add.extend_from_slice(counter.unwrap_or(&[0; COUNTER]));
    }
    sys::netns::set_option(socket, kind.level, SET_ADD_COUNTERS, &add)
}
