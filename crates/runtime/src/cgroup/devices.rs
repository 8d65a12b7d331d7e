//! Device cgroup rules, the same for v1 and v2.

use crate::error::{Error, Result};
use crate::spec::DeviceRule;

pub(crate) const READ: u32 = 2;
pub(crate) const WRITE: u32 = 4;
pub(crate) const MKNOD: u32 = 1;
const ALL: u32 = READ | WRITE | MKNOD;

/// A checked rule. `None` as a number means all numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    /// `a`, `b` or `c`.
    pub(crate) kind: char,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    /// Bits as the kernel's eBPF context has them.
    pub(crate) access: u32,
}

impl Rule {
    fn new(kind: char, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
        Rule { allow: true, kind, major, minor, access }
    }

    /// The rule covers everything: it sets the default.
    pub(crate) fn is_default(&self) -> bool {
        self.kind == 'a' && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }

    pub(super) fn v1_line(&self) -> String {
        if self.is_default() {
            return "a".to_owned();
        }
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let access = self.letters();
        format!("{} {}:{} {access}", self.kind, number(self.major), number(self.minor))
    }

    /// Of `rwm`, what the rule is about.
    pub(super) fn letters(&self) -> String {
        let bits = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        bits.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter).collect()
    }
}

/// The spec's rules, then those for the devices that every container has (runc's list): making
/// any node, the standard devices, ptys, tun.
pub(crate) fn effective(rules: &[DeviceRule]) -> Result<Vec<Rule>> {
    let mut out: Vec<Rule> = rules.iter().enumerate().map(parse).collect::<Result<_>>()?;
    // runc starts from "nothing", whatever the cgroup's parent allows.
    if !out.first().is_some_and(Rule::is_default) {
        out.insert(0, Rule { allow: false, ..Rule::new('a', None, None, ALL) });
    }
    // After an allow-all nothing more needs to be allowed.
    if out.iter().rev().find(|r| r.is_default()).is_some_and(|r| r.allow) {
        return Ok(out);
    }
    out.push(Rule::new('c', None, None, MKNOD));
    out.push(Rule::new('b', None, None, MKNOD));
    for (_, major, minor) in crate::rootfs::DEFAULT_DEVICES {
        let (major, minor) = (u32::try_from(major).ok(), u32::try_from(minor).ok());
        out.push(Rule::new('c', major, minor, ALL));
    }
    out.push(Rule::new('c', Some(136), None, ALL));
    out.push(Rule::new('c', Some(5), Some(2), ALL));
    out.push(Rule::new('c', Some(10), Some(200), ALL));
    Ok(out)
}

/// v1 rules to write, in order, that lead from one list to another without a moment in which a
/// device that both allow is forbidden. Lists that are more than "nothing, but these" are written
/// from the start.
pub(crate) fn transition(now: &[Rule], new: &[Rule]) -> Vec<Rule> {
    let plain = |rules: &[Rule]| {
        let default = |r: &Rule| r.is_default() && !r.allow;
        rules.split_first().is_some_and(|(f, rest)| default(f) && rest.iter().all(|r| r.allow))
    };
    if !plain(now) || !plain(new) {
        return new.to_vec();
    }
    let gone = now.iter().filter(|r| !new.contains(r));
    let denied = gone.map(|r| Rule { allow: false, ..r.clone() });
    // What a denied rule took from one that overlaps it is given back.
    denied.chain(new.iter().skip(1).cloned()).collect()
}

fn parse((index, rule): (usize, &DeviceRule)) -> Result<Rule> {
    let bad = |problem: String| Error::config("linux.resources.devices", problem);
    let kind = match rule.kind.as_str() {
        "" | "a" => 'a',
        "b" => 'b',
        "c" | "u" => 'c',
        other => return Err(bad(format!("type {other:?}"))),
    };
    let number = |n: Option<i64>| match n {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| bad(format!("number {n}"))),
    };
    let mut access = 0;
    for letter in rule.access.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(bad(format!("access {other:?}"))),
        };
    }
    // The specification does not say what is meant then; runc does not guess either.
    if access == 0 {
        return Err(bad(format!("device access at {index} field cannot be empty")));
    }
    let (major, minor) = (number(rule.major)?, number(rule.minor)?);
    Ok(Rule { allow: rule.allow, kind, major, minor, access })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_and_defaults() {
        let rules: Vec<DeviceRule> = serde_json::from_str(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#,
        )
        .unwrap();
        let out = effective(&rules).unwrap();
        assert_eq!((out[0].v1_line().as_str(), out[0].allow), ("a", false));
        assert_eq!(out[1].v1_line(), "c 10:229 rw");
        assert_eq!(out[2].v1_line(), "c *:* m");
        assert!(out.iter().any(|r| r.v1_line() == "c 136:* rwm"));
        let open: Vec<DeviceRule> =
            serde_json::from_str(r#"[{"allow":true,"access":"rwm"}]"#).unwrap();
        assert_eq!(effective(&open).unwrap().len(), 1);
        assert!(!effective(&[]).unwrap()[0].allow);
        let silent = [open[0].clone(), DeviceRule { access: String::new(), ..open[0].clone() }];
        let got = effective(&silent).unwrap_err().to_string();
        assert!(got.contains("device access at 1 field cannot be empty"), "{got}");
    }

    #[test]
    fn a_transition_denies_what_is_gone_and_allows_the_rest() {
        let rules = |text: &str| {
            let list: Vec<DeviceRule> = serde_json::from_str(text).unwrap();
            effective(&list).unwrap()
        };
        let now = rules(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"}]"#,
        );
        let new = rules(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":7,"minor":1,"access":"rwm"}]"#,
        );
        let steps = transition(&now, &new);
        assert_eq!((steps[0].allow, steps[0].v1_line().as_str()), (false, "c 10:229 rwm"));
        assert_eq!((steps[1].allow, steps[1].v1_line().as_str()), (true, "c 7:1 rwm"));
        assert!(steps[1..].iter().all(|r| r.allow));
        let all = rules(r#"[{"allow":true,"access":"rwm"}]"#);
        assert_eq!(transition(&now, &all), all);
    }
}
