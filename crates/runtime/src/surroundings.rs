//! What every process of a container shares beside namespaces: execution domain, memory policy,
//! session keyring. The first process takes them on, and so does each that joins.

use std::ffi::{CStr, CString};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::procfs::ProcFs;
use crate::spec::{Linux, MemoryPolicy, Personality};

/// (the specification's word, `MPOL_*`).
pub(crate) const MODES: [(&str, i32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

/// (the specification's word, its bit).
pub(crate) const FLAGS: [(&str, i32); 3] = [
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_STATIC_NODES", 1 << 15),
];

/// The label that new keys of this process get.
const KEY_LABEL: &str = "self/attr/keycreate";

/// Checked values, as they are in the state file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    /// personality(2)'s argument.
    persona: Option<u32>,
    memory: Option<Memory>,
    /// Name of the session keyring; none: the caller's stays.
    keyring: Option<String>,
    /// The process's SELinux label: the keyring has it as well, or the process may not use it.
    #[serde(default)]
    label: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    mode: i32,
    nodes: Vec<usize>,
}

impl Surroundings {
    pub(crate) fn new(linux: &Linux, keyring: Option<String>, label: &str) -> Result<Surroundings> {
        Ok(Surroundings {
            persona: linux.personality.as_ref().map(persona).transpose()?,
            memory: linux.memory_policy.as_ref().map(memory).transpose()?,
            keyring,
            label: label.to_owned(),
        })
    }

    /// For the calling process, while it still has every right.
    pub(crate) fn take_on(&self, proc: &ProcFs) -> Result<()> {
        if let Some(persona) = self.persona {
            sys::process::set_personality(persona)
                .ctx("personality", || "linux.personality.domain")?;
        }
        if let Some(m) = &self.memory {
            sys::mempolicy::set_memory_policy(m.mode, &m.nodes)
                .ctx("set_mempolicy", || "linux.memoryPolicy")?;
        }
        match &self.keyring {
            Some(name) => {
                let name = CString::new(name.as_str())
                    .map_err(|_| Error::InvalidId("with a NUL".into()))?;
                if self.label.is_empty() {
                    return keyring(&name);
                }
                proc.write(KEY_LABEL, self.label.as_bytes())?;
                let joined = keyring(&name);
                proc.write(KEY_LABEL, b"")?;
                joined
            }
            None => Ok(()),
        }
    }
}

/// Joins the session keyring of this name; makes it if it is not there.
fn keyring(name: &CStr) -> Result<()> {
    match sys::process::join_session_keyring(name) {
        Ok(id) => match sys::process::keyring_allow_user_search(id) {
            Ok(()) | Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Ok(()),
            Err(e) => Err(e).ctx("keyctl", || "session keyring"),
        },
        // No keyrings here, or a sandbox that forbids them.
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        Err(e) => Err(e).ctx("keyctl", || {
            "session keyring (the user's quota, sysctl kernel.keys.maxkeys, may be used up; --no-new-keyring does without)"
        }),
    }
}

fn persona(p: &Personality) -> Result<u32> {
    let bad = |problem: String| Error::config("linux.personality", problem);
    if !p.flags.is_empty() {
        return Err(bad(format!("flags {:?} are not supported", p.flags)));
    }
    match p.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(bad(format!("domain {other:?} is neither LINUX nor LINUX32"))),
    }
}

fn memory(p: &MemoryPolicy) -> Result<Memory> {
    let find = |table: &[(&str, i32)], word: &str| {
        table.iter().find(|(known, _)| *known == word).map(|(_, value)| *value)
    };
    let mut mode = find(&MODES, &p.mode).ok_or_else(|| {
        Error::config("linux.memoryPolicy.mode", format!("{:?} is not known", p.mode))
    })?;
    for flag in &p.flags {
        mode |= find(&FLAGS, flag).ok_or_else(|| {
            Error::config("linux.memoryPolicy.flags", format!("{flag:?} is not known"))
        })?;
    }
    let nodes = number_list(&p.nodes, sys::mempolicy::NODE_LIMIT).ok_or_else(|| {
        Error::config("linux.memoryPolicy.nodes", format!("{:?} is no list of nodes", p.nodes))
    })?;
    Ok(Memory { mode, nodes })
}

/// `0-3,7`: the kernel's form of a list. `None` if it is none, or names numbers from `limit` on.
pub(crate) fn number_list(text: &str, limit: usize) -> Option<Vec<usize>> {
    let mut out = Vec::new();
    for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (usize, usize) = (low.parse().ok()?, high.parse().ok()?);
        if low > high || high >= limit {
            return None;
        }
        out.extend(low..=high);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lists_of_numbers() {
        assert_eq!(number_list("0-2, 5", 64).unwrap(), [0, 1, 2, 5]);
        assert!(number_list("", 64).unwrap().is_empty());
        for bad in ["3-1", "x", "64", "1,,2", "-1"] {
            assert!(number_list(bad, 64).is_none(), "{bad}");
        }
    }

    #[test]
    fn policies_and_domains() {
        let p = MemoryPolicy {
            mode: "MPOL_BIND".into(),
            nodes: "0".into(),
            flags: vec!["MPOL_F_STATIC_NODES".into()],
        };
        assert_eq!(memory(&p).unwrap(), Memory { mode: 2 | 1 << 15, nodes: vec![0] });
        let bad = MemoryPolicy { mode: "MPOL_X".into(), ..p };
        assert!(memory(&bad).unwrap_err().chain().contains("MPOL_X"));
        let p = Personality { domain: "LINUX32".into(), flags: Vec::new() };
        assert_eq!(persona(&p).unwrap(), 8);
    }
}
