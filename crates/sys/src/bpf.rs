//! bpf(2): programs of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// One eBPF instruction: `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source in the high four.
    pub regs: u8,
    /// Jump or memory offset.
    pub off: i16,
    /// Immediate operand.
    pub imm: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;
/// Programs of one cgroup that are looked at; the kernel's own limit is 64.
const QUERY_LIMIT: usize = 64;

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

fn bpf<T>(cmd: libc::c_int, attr: &mut T) -> Result<i32, Errno> {
    // SAFETY: attr is a repr(C) prefix of union bpf_attr with its size; the pointers inside refer
    // to memory that the callers keep alive across the call.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size_of::<T>()) };
    crate::check(rc)
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

/// Loads a device program.
///
/// # Errors
/// The errno of bpf(2): `EPERM` without CAP_BPF or in a user namespace, `EINVAL` or `EACCES` from
/// the verifier.
pub fn load_device_program(insns: &[Insn]) -> Result<OwnedFd, Errno> {
    let mut attr = LoadAttr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(insns.len()).map_err(|_| Errno::TOOBIG)?,
        insns: insns.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..LoadAttr::default()
    };
    let fd = bpf(PROG_LOAD, &mut attr)?;
    // SAFETY: PROG_LOAD returns a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup, beside those that are there.
///
/// # Errors
/// The errno of bpf(2).
pub fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> Result<(), Errno> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI,
        replace_bpf_fd: 0,
    };
    bpf(PROG_ATTACH, &mut attr).map(drop)
}

/// Detaches a device program.
///
/// # Errors
/// The errno of bpf(2).
pub fn detach_device_program(cgroup: impl AsFd, program: impl AsFd) -> Result<(), Errno> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    bpf(PROG_DETACH, &mut attr).map(drop)
}

/// The device programs attached to this cgroup itself (not its parents').
///
/// # Errors
/// The errno of bpf(2).
pub fn device_programs(cgroup: impl AsFd) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0u32; QUERY_LIMIT];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    bpf(PROG_QUERY, &mut attr)?;
    let count = usize::try_from(attr.prog_cnt).unwrap_or(0).min(QUERY_LIMIT);
    let mut found = Vec::with_capacity(count);
    for id in &ids[..count] {
        let mut attr = IdAttr { prog_id: *id, ..IdAttr::default() };
        let fd = bpf(PROG_GET_FD_BY_ID, &mut attr)?;
        // SAFETY: PROG_GET_FD_BY_ID returns a new descriptor that nothing else owns.
        found.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(found)
}
