//! What a filter answers, asked before it is loaded: the kernel's interpreter, for the instructions
//! that the compiler emits.

use sys::seccomp::Insn;

use super::Filter;
use super::compile::{Arch, RET_ALLOW, RET_LOG};
use super::rules::{OFFSET_ARCH, OFFSET_ARGS, OFFSET_NR};

impl Filter {
    /// Whether a call of this program's own architecture goes through unhindered. Arguments that
    /// cannot be known beforehand (pointers) are better given as 0.
    pub(crate) fn passes(&self, call: &str, args: [u64; 6]) -> bool {
        let arch = Arch::NATIVE;
        let answer = arch.number(call).and_then(|nr| answer(&self.program, arch.audit(), nr, args));
        matches!(answer, Some(RET_ALLOW | RET_LOG))
    }
}

/// The filter's return value; `None` for a program that the compiler cannot have made.
pub(super) fn answer(program: &[Insn], arch: u32, nr: u32, args: [u64; 6]) -> Option<u32> {
    let word = |offset: u32| -> Option<u32> {
        match offset {
            OFFSET_NR => Some(nr),
            OFFSET_ARCH => Some(arch),
            o => {
                let o = o.checked_sub(OFFSET_ARGS)?;
                let arg = args.get(usize::try_from(o / 8).ok()?)?;
                // The halves in the order of a little-endian machine.
                let half = if o % 8 == 0 { arg & u64::from(u32::MAX) } else { arg >> 32 };
                u32::try_from(half).ok()
            }
        }
    };
    let (mut pc, mut a) = (0usize, 0u32);
    // Jumps only go forward: every instruction runs once at most.
    loop {
        let i = program.get(pc)?;
        pc += 1;
        let taken = match i.code {
            0x20 => {
                a = word(i.k)?;
                continue;
            }
            0x54 => {
                a &= i.k;
                continue;
            }
            0x05 => {
                pc += usize::try_from(i.k).ok()?;
                continue;
            }
            0x06 => return Some(i.k),
            0x15 => a == i.k,
            0x25 => a > i.k,
            0x35 => a >= i.k,
            _ => return None,
        };
        pc += usize::from(if taken { i.jt } else { i.jf });
    }
}
