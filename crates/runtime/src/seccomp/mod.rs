//! seccomp: from the spec's section to a loaded filter.
//!
//! [`compile`] is a pure function: the same section gives the same program on every machine of
//! the same architecture. [`Filter`] is the program with its load flags; it is kept beside the
//! state, so that exec loads it without compiling again.

mod ask;
mod compile;
mod emit;
mod graph;
mod rules;
pub(crate) mod tables;
mod tables_arm;

use std::os::fd::OwnedFd;

use sys::seccomp::Insn;

pub use compile::{Arch, compile, known_actions, known_archs, known_flags, known_operators};

use crate::error::{Context, Error, Result};

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Classic BPF.
    pub program: Vec<Insn>,
    /// `SECCOMP_FILTER_FLAG_*` of seccomp(2).
    pub flags: u32,
}

impl Filter {
    /// Whether loading gives a listener (some action is NOTIFY).
    pub fn notifies(&self) -> bool {
        self.flags & sys::seccomp::FLAG_NEW_LISTENER != 0
    }

    /// Installs the filter on the calling thread.
    ///
    /// # Errors
    /// [`Error::Sys`]; without no_new_privs and CAP_SYS_ADMIN the kernel says `EACCES`.
    pub(crate) fn load(&self) -> Result<Option<OwnedFd>> {
        let optional = sys::seccomp::FLAG_SPEC_ALLOW;
        match sys::seccomp::load(&self.program, self.flags) {
            // Kernels before 4.17 lack SPEC_ALLOW, which is an optimisation.
            Err(rustix::io::Errno::INVAL) if self.flags & optional != 0 => {
                sys::seccomp::load(&self.program, self.flags & !optional)
            }
            other => other,
        }
        .ctx("load", || "seccomp filter")
    }

    /// The file form: a line of text with version and flags, then 8 bytes per instruction.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 8 * self.program.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.flags.to_ne_bytes());
        for i in &self.program {
            out.extend_from_slice(&i.code.to_ne_bytes());
            out.extend_from_slice(&[i.jt, i.jf]);
            out.extend_from_slice(&i.k.to_ne_bytes());
        }
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Filter> {
        let bad = || Error::config("seccomp.bpf", "damaged file");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(bad)?;
        let (flags, insns) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
        let (chunks, tail) = insns.as_chunks::<8>();
        if !tail.is_empty() {
            return Err(bad());
        }
        let program = chunks
            .iter()
            .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Insn {
                code: u16::from_ne_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_ne_bytes([k0, k1, k2, k3]),
            })
            .collect();
        Ok(Filter { program, flags: u32::from_ne_bytes(*flags) })
    }
}

const MAGIC: &[u8] = b"gantry-bpf-1";
