//! Programs of a few system calls, made byte by byte: they run in any root file system without a
//! library, and make calls that no shell makes, with the arguments that are wanted.
//!
//! Such a program makes its calls one after the other, writes the results to standard output as
//! words of its machine's size, the last first, and ends with 0.

/// One argument of a call.
#[derive(Debug, Clone)]
pub enum Arg {
    Number(u64),
    /// The address of these bytes, which may be written to.
    Data(Vec<u8>),
    /// What the call of this index gave.
    Result(usize),
    /// The address of [`SCRATCH_BYTES`] bytes that all calls share.
    Scratch,
}

pub const SCRATCH_BYTES: usize = 64;

/// One call: its number and at most six arguments (32 bit: five).
#[derive(Debug, Clone)]
pub struct SysCall {
    pub number: u64,
    pub args: Vec<Arg>,
}

/// A call with numbers alone.
pub fn call(number: u64, args: &[u64]) -> SysCall {
    SysCall { number, args: args.iter().map(|&arg| Arg::Number(arg)).collect() }
}

/// Bytes as a C string.
pub fn text(text: &str) -> Arg {
    let mut data = text.as_bytes().to_vec();
    data.push(0);
    Arg::Data(data)
}

const BASE: u32 = 0x0040_0000;

/// A program for x86-64; numbers may have the x32 bit.
pub fn x86_64(calls: &[SysCall]) -> Vec<u8> {
    program_64(calls, None)
}

/// A program for x86-64 that makes its calls so many times, and keeps no results: none may refer to
/// a former one.
pub fn x86_64_repeated(calls: &[SysCall], times: u64) -> Vec<u8> {
    program_64(calls, Some(times))
}

fn program_64(calls: &[SysCall], times: Option<u64>) -> Vec<u8> {
    const HEADERS: u32 = 64 + 56;
    let mut code = Vec::new();
    let (mut fixes, mut data) = (Vec::new(), vec![0; SCRATCH_BYTES]);
    if let Some(times) = times {
        load_64(&mut code, [0x49, 0xbc], times); // mov r12
    }
    let begin = code.len();
    for (index, call) in calls.iter().enumerate() {
        for (place, arg) in call.args.iter().enumerate() {
            match arg {
                Arg::Number(value) => load_64(&mut code, MOVE_64[place], *value),
                Arg::Scratch => {
                    load_64(&mut code, MOVE_64[place], 0);
                    fixes.push((code.len() - 8, 0));
                }
                Arg::Data(bytes) => {
                    load_64(&mut code, MOVE_64[place], 0);
                    fixes.push((code.len() - 8, data.len()));
                    data.extend(bytes);
                    data.resize(data.len().next_multiple_of(8), 0);
                }
                Arg::Result(of) => {
                    code.extend(FROM_STACK_64[place]);
                    code.extend(word(8 * (index - 1 - of)).to_le_bytes());
                }
            }
        }
        load_64(&mut code, [0x48, 0xb8], call.number);
        code.extend([0x0f, 0x05]); // syscall
        if times.is_none() {
            code.push(0x50); // push rax
        }
    }
    let length = if times.is_some() {
        let back = word(code.len() - begin + 9);
        code.extend([0x49, 0xff, 0xcc, 0x0f, 0x85]); // dec r12; jnz
        code.extend(back.wrapping_neg().to_le_bytes());
        load_64(&mut code, MOVE_64[0], 1);
        load_64(&mut code, MOVE_64[1], 0);
        fixes.push((code.len() - 8, 0));
        SCRATCH_BYTES
    } else {
        load_64(&mut code, MOVE_64[0], 1);
        code.extend([0x48, 0x89, 0xe6]); // mov rsi, rsp
        8 * calls.len()
    };
    load_64(&mut code, MOVE_64[2], u64::from(word(length)));
    load_64(&mut code, [0x48, 0xb8], 1);
    code.extend([0x0f, 0x05]);
    load_64(&mut code, MOVE_64[0], 0);
    load_64(&mut code, [0x48, 0xb8], 60);
    code.extend([0x0f, 0x05]);
    code.resize(code.len().next_multiple_of(8), 0);
    let start = BASE + HEADERS;
    for (at, offset) in fixes {
        let address = u64::from(start + word(code.len() + offset));
        code[at..at + 8].copy_from_slice(&address.to_le_bytes());
    }
    code.extend(data);
    let mut file = header_64(start, HEADERS + word(code.len()));
    file.extend(code);
    file
}

/// `mov`, of a constant of 64 bits, to the registers of the arguments.
const MOVE_64: [[u8; 2]; 6] =
    [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba], [0x49, 0xb8], [0x49, 0xb9]];
/// `mov`, from the stack, to the same.
const FROM_STACK_64: [[u8; 4]; 6] = [
    [0x48, 0x8b, 0xbc, 0x24],
    [0x48, 0x8b, 0xb4, 0x24],
    [0x48, 0x8b, 0x94, 0x24],
    [0x4c, 0x8b, 0x94, 0x24],
    [0x4c, 0x8b, 0x84, 0x24],
    [0x4c, 0x8b, 0x8c, 0x24],
];

fn load_64(code: &mut Vec<u8>, op: [u8; 2], value: u64) {
    code.extend(op);
    code.extend(value.to_le_bytes());
}

/// The file's and its only segment's header, for a file of `size` bytes that begins at `start`.
fn header_64(start: u32, size: u32) -> Vec<u8> {
    let size = u64::from(size);
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for long in [u64::from(start), 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes()); // PT_LOAD
    file.extend(7u32.to_le_bytes()); // read, write, execute
    for long in [0, u64::from(BASE), u64::from(BASE), size, size, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    file
}

/// A program for 32-bit x86, which enters the kernel by its old door.
pub fn i386(calls: &[SysCall]) -> Vec<u8> {
    const MOVE: [u8; 5] = [0xbb, 0xb9, 0xba, 0xbe, 0xbf];
    const FROM_STACK: [u8; 5] = [0x9c, 0x8c, 0x94, 0xb4, 0xbc];
    const HEADERS: u32 = 52 + 32;
    let (mut code, mut fixes, mut data) = (Vec::new(), Vec::new(), vec![0; SCRATCH_BYTES]);
    let load = |code: &mut Vec<u8>, op: u8, value: u32| {
        code.push(op);
        code.extend(value.to_le_bytes());
    };
    for (index, call) in calls.iter().enumerate() {
        for (place, arg) in call.args.iter().enumerate() {
            match arg {
                Arg::Number(value) => load(&mut code, MOVE[place], low(*value)),
                Arg::Scratch => {
                    load(&mut code, MOVE[place], 0);
                    fixes.push((code.len() - 4, 0));
                }
                Arg::Data(bytes) => {
                    load(&mut code, MOVE[place], 0);
                    fixes.push((code.len() - 4, data.len()));
                    data.extend(bytes);
                    data.resize(data.len().next_multiple_of(8), 0);
                }
                Arg::Result(of) => {
                    code.extend([0x8b, FROM_STACK[place], 0x24]);
                    code.extend(word(4 * (index - 1 - of)).to_le_bytes());
                }
            }
        }
        load(&mut code, 0xb8, low(call.number));
        code.extend([0xcd, 0x80, 0x50]); // int 0x80; push eax
    }
    load(&mut code, MOVE[0], 1);
    code.extend([0x89, 0xe1]); // mov ecx, esp
    load(&mut code, MOVE[2], word(4 * calls.len()));
    load(&mut code, 0xb8, 4);
    code.extend([0xcd, 0x80]);
    load(&mut code, MOVE[0], 0);
    load(&mut code, 0xb8, 1);
    code.extend([0xcd, 0x80]);
    code.resize(code.len().next_multiple_of(8), 0);
    let start = BASE + HEADERS;
    for (at, offset) in fixes {
        let address = start + word(code.len() + offset);
        code[at..at + 4].copy_from_slice(&address.to_le_bytes());
    }
    code.extend(data);
    let size = HEADERS + word(code.len());
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 3] {
        file.extend(half.to_le_bytes());
    }
    for long in [1u32, start, 52, 0, 0] {
        file.extend(long.to_le_bytes());
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for long in [1u32, 0, BASE, BASE, size, size, 7, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    file.extend(code);
    file
}

fn word(value: usize) -> u32 {
    u32::try_from(value).expect("these programs are small")
}

/// The lower half: what a 32-bit register takes of a number such as -1.
fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("the upper half is masked out")
}

/// What such a program wrote, in the order of its calls.
pub fn results(output: &[u8], wide: bool) -> Vec<i64> {
    let mut values: Vec<i64> = if wide {
        output.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("eight"))).collect()
    } else {
        let four = |c: &[u8]| i32::from_le_bytes(c.try_into().expect("four"));
        output.chunks_exact(4).map(|c| i64::from(four(c))).collect()
    };
    values.reverse();
    values
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn ran(program: &[u8], wide: bool) -> Vec<i64> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, program).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Another thread's fork may have it open for writing still.
        let output = crate::wait::until_ok("the program", crate::command::DEFAULT_TIMEOUT, || {
            std::process::Command::new(&path).output()
        });
        results(&output.unwrap().stdout, wide)
    }

    #[test]
    fn calls_data_and_former_results() {
        let missing = format!("/{}", crate::random::token(12));
        let open = |number, path: &str| SysCall { number, args: vec![text(path), Arg::Number(0)] };
        let close = |number, of| SysCall { number, args: vec![Arg::Result(of)] };
        let calls = [open(2, "/"), open(2, &missing), close(3, 0), close(3, 0)];
        assert_eq!(ran(&x86_64(&calls), true), [3, -2, 0, -9]);
        let calls = [open(5, "/"), open(5, &missing), close(6, 0), close(6, 0)];
        assert_eq!(ran(&i386(&calls), false), [3, -2, 0, -9]);
    }

    #[test]
    fn repeated_calls_and_the_shared_bytes() {
        let times = u64::from(crate::random::number(2..500));
        let into = |number, size| SysCall {
            number,
            args: vec![Arg::Scratch, Arg::Number(size), Arg::Number(0)],
        };
        // getcwd(2) writes its answer there.
        let got = ran(&x86_64_repeated(&[into(79, 64)], times), true);
        assert_eq!(got.len(), SCRATCH_BYTES / 8);
        assert_ne!(got.last().copied(), Some(0), "a path begins with a slash: {got:?}");
        let got = ran(&x86_64(&[into(79, 64), into(79, 0)]), true);
        assert!(got[0] > 0 && got[1] == -34, "{got:?}");
    }
}
