//! Other firewalls at the forward hook. All base chains there see a packet, and
//! one drop is final, whatever our table says. So where another chain denies by
//! default, accepts for our bridges are put at its head (or right after its
//! jump to DOCKER-USER, so that what users put there still counts). Our own
//! table goes on filtering these packets.
//!
//! Our rules have comments that begin with our table's name, so that each daemon
//! removes its own alone. Another daemon's table is not touched: it would be put
//! back at once.

use std::collections::BTreeSet;

use super::nft::{self, Family, Hook, Meta, Place, Transaction, Verdict, comment_udata, msg};
use super::{Error, Socket, is_gantry_table};
use crate::netlink::{Attributes, Event, attributes, be32, text};

/// How a firewall denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockerKind {
    /// An nftables chain.
    Nftables,
    /// A chain of legacy iptables or ip6tables.
    Legacy,
}

/// A firewall that drops traffic of our bridges and could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Which system.
    pub kind: BlockerKind,
    /// Family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// `drop` for the chain's policy, `reject` for a last rule.
    pub policy: &'static str,
    /// Why our accept could not be put there.
    pub reason: String,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            BlockerKind::Nftables => "nftables",
            BlockerKind::Legacy => "legacy iptables",
        };
        write!(
            f,
            "forwarded traffic is dropped by {kind} chain {} {} {} ({}): {}",
            self.family.as_str(),
            self.table,
            self.chain,
            self.policy,
            self.reason
        )
    }
}

/// What the comments of our rules in others' chains begin with.
fn mark(table: &str) -> String {
    format!("{table} ")
}

struct Chain {
    family: Family,
    table: String,
    name: String,
    drops: bool,
}

impl Chain {
    fn blocker(self, policy: &'static str, reason: String) -> Blocker {
        Blocker {
            kind: BlockerKind::Nftables,
            family: self.family,
            table: self.table,
            chain: self.name,
            policy,
            reason,
        }
    }
}

struct ForeignRule {
    handle: u64,
    /// Our comment, if it is ours.
    ours: Option<String>,
    jumps_to: Option<String>,
    denies_all: bool,
}

/// Brings our rules in all foreign forward chains to what `bridges` need.
pub(super) fn open_nft(
    socket: &mut Socket,
    own_table: &str,
    bridges: &[String],
) -> Result<Vec<Blocker>, Error> {
    let mark = mark(own_table);
    let comment = |direction, bridge: &String| format!("{mark}{direction} {bridge}");
    let mut blockers = Vec::new();
    for chain in forward_chains(socket)? {
        if chain.family == Family::Inet && is_gantry_table(&chain.table) {
            if chain.drops && chain.table != own_table && !bridges.is_empty() {
                blockers.push(chain.blocker("drop", "it is another gantry daemon's".to_owned()));
            }
            continue;
        }
        let rules = chain_rules(socket, &chain, &mark)?;
        let rejects = rules.iter().any(|r| r.denies_all);
        let needed: BTreeSet<String> = match chain.drops || rejects {
            true => bridges.iter().flat_map(|b| [comment("in", b), comment("out", b)]).collect(),
            false => BTreeSet::new(),
        };
        if let Err(error) = bring_rules(socket, &chain, &rules, &needed, &mark) {
            if needed.is_empty() {
                return Err(error);
            }
            let policy = if chain.drops { "drop" } else { "reject" };
            blockers.push(chain.blocker(policy, reason(&error)));
        }
    }
    Ok(blockers)
}

fn reason(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn bring_rules(
    socket: &mut Socket,
    chain: &Chain,
    rules: &[ForeignRule],
    needed: &BTreeSet<String>,
    mark: &str,
) -> Result<(), Error> {
    let present: BTreeSet<&String> = rules.iter().filter_map(|r| r.ours.as_ref()).collect();
    let missing: Vec<&String> = needed.iter().filter(|c| !present.contains(c)).collect();
    let mut seen = BTreeSet::new();
    let surplus: Vec<u64> = rules
        .iter()
        .filter(|r| r.ours.as_ref().is_some_and(|c| !needed.contains(c) || !seen.insert(c)))
        .map(|r| r.handle)
        .collect();
    if missing.is_empty() && surplus.is_empty() {
        return Ok(());
    }
    let user_chain = rules.iter().find(|r| r.jumps_to.as_deref() == Some("DOCKER-USER"));
    let place = user_chain.map_or(Place::Head, |r| Place::After(r.handle));
    let mut batch = socket.batch();
    nft::begin(&mut batch);
    let mut transaction = Transaction::new(&mut batch, chain.family, &chain.table);
    for handle in surplus {
        transaction.delete_rule(&chain.name, handle);
    }
    for comment in missing {
        let Some((direction, bridge)) = comment[mark.len()..].split_once(' ') else { continue };
        let key = if direction == "in" { Meta::Iifname } else { Meta::Oifname };
        transaction.rule_at(&chain.name, place, Some(comment), |r| {
            r.ifname_is(key, bridge, true).counter().verdict(Verdict::Accept);
        });
    }
    nft::end(&mut batch);
    socket.commit(&mut batch)
}

fn forward_chains(socket: &mut Socket) -> Result<Vec<Chain>, Error> {
    let operation = "list nftables chains";
    let events = match socket.dump(nft::kind(msg::GETCHAIN), &nft::nfgen(0), operation, |_| {}) {
        Ok(events) => events,
        // A kernel without nftables has no foreign chains either.
        Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(events.iter().filter_map(parse_chain).collect())
}

/// A chain at the forward hook of a family that carries IP.
fn parse_chain(event: &Event) -> Option<Chain> {
    let family = Family::from_number(*event.payload.first()?)?;
    let all = attributes(event.payload.get(4..)?);
    let hook = attributes(all.get(4)?).get(1).and_then(be32)?;
    let filter = all.get(7).map(text).is_some_and(|kind| kind == "filter");
    if hook != Hook::Forward.number() || !filter {
        return None;
    }
    Some(Chain {
        family,
        table: text(all.get(1)?),
        name: text(all.get(3)?),
        drops: all.get(5).and_then(be32) == Some(0),
    })
}

fn chain_rules(socket: &mut Socket, chain: &Chain, mark: &str) -> Result<Vec<ForeignRule>, Error> {
    let operation = format!("list rules of nftables chain {} {}", chain.table, chain.name);
    let fixed = nft::nfgen(chain.family.number());
    let events = socket.dump(nft::kind(msg::GETRULE), &fixed, &operation, |b| {
        b.str(1, &chain.table);
        b.str(2, &chain.name);
    })?;
    let own = |event: &&Event| {
        let all = attributes(event.payload.get(4..).unwrap_or_default());
        // Kernels before 4.17 ignore the filter.
        all.get(1).map(text).as_deref() == Some(&chain.table)
            && all.get(2).map(text).as_deref() == Some(&chain.name)
    };
    Ok(events.iter().filter(own).filter_map(|e| parse_rule(e, mark)).collect())
}

fn parse_rule(event: &Event, mark: &str) -> Option<ForeignRule> {
    let all = attributes(event.payload.get(4..)?);
    let handle = u64::from_be_bytes(all.get(3)?.try_into().ok()?);
    let mut rule =
        ForeignRule { handle, ours: ours(&all, mark), jumps_to: None, denies_all: false };
    let mut conditional = false;
    for (_, expression) in attributes(all.get(4).unwrap_or_default()) {
        let expression = attributes(expression);
        let data = expression.get(2).unwrap_or_default();
        match expression.get(1).map(text).unwrap_or_default().as_str() {
            "immediate" => match verdict(data) {
                Some((0, _)) => rule.denies_all = !conditional,
                Some((_, Some(chain))) => rule.jumps_to = Some(chain),
                _ => {}
            },
            "reject" => rule.denies_all = !conditional,
            "counter" | "log" | "limit" => {}
            _ => conditional = true,
        }
    }
    Some(rule)
}

fn ours(all: &Attributes<'_>, mark: &str) -> Option<String> {
    let data = all.get(7)?;
    let comment = text(data.get(2..)?);
    (comment.starts_with(mark) && data == comment_udata(&comment)).then_some(comment)
}

/// Code and chain of an immediate expression that is a verdict.
fn verdict(data: &[u8]) -> Option<(i32, Option<String>)> {
    let verdict = attributes(attributes(data).get(2)?).get(2)?;
    let all = attributes(verdict);
    let code = i32::from_be_bytes(all.get(1)?.try_into().ok()?);
    Some((code, all.get(2).map(text)))
}
