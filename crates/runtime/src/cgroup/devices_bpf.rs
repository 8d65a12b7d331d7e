//! Device rules as an eBPF program (`BPF_PROG_TYPE_CGROUP_DEVICE`), for cgroup v2.
//!
//! The kernel gives `{ u32 access_type; u32 major; u32 minor; }` with the access in the high and
//! the type in the low 16 bits of the first word; the program returns 1 to allow. Rules are
//! tried from the last to the first, the first that matches decides: an allow rule if it covers
//! all of the access asked for, a deny rule if it covers any of it.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use sys::bpf::{
    Insn, attach_device_program, detach_device_program, device_programs, load_device_program,
};

use super::devices::Rule;
use crate::error::{Context, Result};

const LDX_W: u8 = 0x61;
const MOV_K: u8 = 0xb4;
const MOV_X: u8 = 0xbc;
const AND_K: u8 = 0x54;
const RSH_K: u8 = 0x74;
const JNE_K: u8 = 0x55;
const JNE_X: u8 = 0x5d;
const JEQ_K: u8 = 0x15;
const EXIT: u8 = 0x95;

/// Access asked for.
const R_ACCESS: u8 = 3;
/// Type: 1 block, 2 character.
const R_TYPE: u8 = 2;
const R_MAJOR: u8 = 4;
const R_MINOR: u8 = 5;

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn { code, regs: src << 4 | dst, off, imm }
}

/// The program for these rules: a pure function.
pub(crate) fn compile(rules: &[Rule]) -> Vec<Insn> {
    let mut out = vec![
        insn(LDX_W, R_TYPE, 1, 0, 0),
        insn(MOV_X, R_ACCESS, R_TYPE, 0, 0),
        insn(AND_K, R_TYPE, 0, 0, 0xffff),
        insn(RSH_K, R_ACCESS, 0, 0, 16),
        insn(LDX_W, R_MAJOR, 1, 4, 0),
        insn(LDX_W, R_MINOR, 1, 8, 0),
    ];
    for rule in merge(rules).iter().rev() {
        if rule.is_default() {
            out.extend(verdict(rule.allow));
            return out;
        }
        block(&mut out, rule);
    }
    out.extend(verdict(false));
    out
}

/// Neighbouring rules for one device become one, so that an access that only both together cover
/// is allowed.
fn merge(rules: &[Rule]) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for rule in rules {
        match out.last_mut() {
            Some(last)
                if (last.allow, last.kind, last.major, last.minor)
                    == (rule.allow, rule.kind, rule.major, rule.minor) =>
            {
                last.access |= rule.access;
            }
            _ => out.push(rule.clone()),
        }
    }
    out
}

fn verdict(allow: bool) -> [Insn; 2] {
    [insn(MOV_K, 0, 0, 0, i32::from(allow)), insn(EXIT, 0, 0, 0, 0)]
}

fn block(out: &mut Vec<Insn>, rule: &Rule) {
    let signed = |n: u32| i32::from_ne_bytes(n.to_ne_bytes());
    let mut body = Vec::new();
    // Jumps whose target, the next rule, is filled in below.
    match rule.kind {
        'b' => body.push(insn(JNE_K, R_TYPE, 0, 0, 1)),
        'c' => body.push(insn(JNE_K, R_TYPE, 0, 0, 2)),
        _ => {}
    }
    body.push(insn(MOV_X, 1, R_ACCESS, 0, 0));
    body.push(insn(AND_K, 1, 0, 0, signed(rule.access)));
    // 32-bit moves and ands clear the upper half, so the 64-bit comparison is exact.
    body.push(match rule.allow {
        true => insn(JNE_X, 1, R_ACCESS, 0, 0),
        false => insn(JEQ_K, 1, 0, 0, 0),
    });
    for (number, register) in [(rule.major, R_MAJOR), (rule.minor, R_MINOR)] {
        if let Some(n) = number {
            body.push(insn(JNE_K, register, 0, 0, signed(n)));
        }
    }
    body.extend(verdict(rule.allow));
    let end = body.len();
    for (at, i) in body.iter_mut().enumerate() {
        if matches!(i.code, JNE_K | JNE_X | JEQ_K) {
            i.off = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
        }
    }
    out.extend(body);
}

/// Attaches the rules' program to the cgroup and takes away one of before.
pub(super) fn apply(dir: &Path, rules: &[Rule]) -> Result<()> {
    let name = || dir.display().to_string();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(dir, flags, Mode::empty()).ctx("open", name)?;
    let before = device_programs(&cgroup).ctx("query device program", name)?;
    let program = load_device_program(&compile(rules)).ctx("load device program", name)?;
    attach_device_program(&cgroup, &program).ctx("attach device program", name)?;
    for old in before {
        detach_device_program(&cgroup, &old).ctx("detach device program", name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::devices::{self, MKNOD, READ, WRITE};
    use super::*;

    /// Runs the subset that is emitted, on `{access << 16 | type, major, minor}`.
    fn run(program: &[Insn], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let (mut r, mut pc) = ([0u64; 6], 0usize);
        loop {
            let i = program[pc];
            pc += 1;
            let (dst, src) = (usize::from(i.regs & 15), usize::from(i.regs >> 4));
            let imm = i.imm as u32 as u64;
            let taken = match i.code {
                LDX_W => {
                    r[dst] = u64::from(context[(i.off / 4) as usize]);
                    continue;
                }
                MOV_K => {
                    r[dst] = imm;
                    continue;
                }
                MOV_X => {
                    r[dst] = r[src];
                    continue;
                }
                AND_K => {
                    r[dst] &= imm;
                    continue;
                }
                RSH_K => {
                    r[dst] >>= imm;
                    continue;
                }
                EXIT => return r[0] == 1,
                JNE_K => r[dst] != i.imm as i64 as u64,
                JNE_X => r[dst] != r[src],
                JEQ_K => r[dst] == i.imm as i64 as u64,
                c => panic!("code {c:#x}"),
            };
            if taken {
                pc += i.off as usize;
            }
        }
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let text = r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"access":"r"},
            {"allow":true,"type":"c","major":10,"minor":200,"access":"r"},
            {"allow":true,"type":"c","major":10,"minor":200,"access":"w"},
            {"allow":false,"type":"b","major":8,"minor":3,"access":"rwm"}]"#;
        let rules: Vec<crate::spec::DeviceRule> = serde_json::from_str(text).unwrap();
        let program = compile(&devices::effective(&rules).unwrap());
        assert!(run(&program, 2, READ | WRITE, 1, 3), "null");
        assert!(run(&program, 2, READ | WRITE | MKNOD, 136, 77), "a pty");
        assert!(run(&program, 1, READ, 8, 1));
        assert!(!run(&program, 1, READ | WRITE, 8, 1), "more than the rule gives");
        assert!(!run(&program, 1, READ, 8, 3));
        assert!(run(&program, 2, READ | WRITE, 10, 200), "two rules together");
        assert!(!run(&program, 2, READ | WRITE, 10, 201));
        assert!(run(&program, 1, MKNOD, 99, 99), "any node may be made");
        assert!(!run(&program, 2, READ, 99, 99));
    }

    #[test]
    fn the_kernel_takes_it() {
        let program = compile(&devices::effective(&[]).unwrap());
        match load_device_program(&program) {
            Ok(_) => {}
            Err(rustix::io::Errno::PERM) => eprintln!("skipped: bpf(2) needs privilege here"),
            Err(e) => panic!("the verifier refused the program: {e}"),
        }
    }
}
