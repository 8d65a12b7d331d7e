//! Classic BPF as seccomp has it: an interpreter, and the kernel's check of a program.

use sys::seccomp::Insn;

/// A system call as the filter sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// `AUDIT_ARCH_*`.
    pub(crate) arch: u32,
    pub(crate) nr: u32,
    pub(crate) args: [u64; 6],
}

impl Call {
    /// The 32-bit word at an offset of `struct seccomp_data`.
    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.nr),
            4 => Some(self.arch),
            // The instruction pointer, which no program here looks at, is left out.
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[usize::try_from((offset - 16) / 8).ok()?];
                let half =
                    if offset.is_multiple_of(8) { arg & u64::from(u32::MAX) } else { arg >> 32 };
                u32::try_from(half).ok()
            }
            _ => None,
        }
    }
}

/// The program's return value.
pub(crate) fn run(program: &[Insn], call: &Call) -> Result<u32, String> {
    trace(program, call).map(|(answer, _)| answer)
}

/// The program's return value, and how many instructions it took.
pub(crate) fn trace(program: &[Insn], call: &Call) -> Result<(u32, u32), String> {
    let (mut pc, mut a, mut mem) = (0usize, 0u32, [0u32; 16]);
    for steps in 1.. {
        let i = program.get(pc).ok_or_else(|| format!("runs out of the program at {pc}"))?;
        let slot = usize::try_from(i.k).unwrap();
        let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        pc += 1;
        match i.code {
            0x20 => a = call.word(i.k).ok_or_else(|| format!("{pc}: load of {}", i.k))?,
            0x60 => a = mem[slot],
            0x02 => mem[slot] = a,
            0x54 => a &= i.k,
            0x05 => pc += slot,
            0x15 => pc += jump(a == i.k),
            0x25 => pc += jump(a > i.k),
            0x35 => pc += jump(a >= i.k),
            0x45 => pc += jump(a & i.k != 0),
            0x06 => return Ok((i.k, steps)),
            code => return Err(format!("{pc}: code {code:#x}")),
        }
    }
    Err("does not end".to_owned())
}

/// What the kernel's bpf_check_classic and seccomp_check_filter demand.
pub(crate) fn check(program: &[Insn]) -> Result<(), String> {
    let len = program.len();
    let inside = |at: usize, by: usize| {
        let target = at.saturating_add(1).saturating_add(by);
        if target < len { Ok(()) } else { Err(format!("{at}: jump to {target} of {len}")) }
    };
    for (at, i) in program.iter().enumerate() {
        match i.code {
            0x20 if i.k < 64 && i.k.is_multiple_of(4) => {}
            0x54 | 0x06 => {}
            0x05 => inside(at, usize::try_from(i.k).unwrap())?,
            0x15 | 0x25 | 0x35 | 0x45 => {
                inside(at, usize::from(i.jt))?;
                inside(at, usize::from(i.jf))?;
            }
            code => return Err(format!("{at}: code {code:#x}, operand {:#x}", i.k)),
        }
    }
    match program.last() {
        Some(i) if i.code == 0x06 => Ok(()),
        _ => Err("does not end in a return".to_owned()),
    }
}
