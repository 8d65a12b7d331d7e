//! libseccomp, in a process of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use runtime::spec::Seccomp;
use serde_json::json;
use sys::seccomp::Insn;

use crate::model::action;

/// Numbers by architecture (`SCMP_ARCH_*`) and name; x32's with its bit.
pub(crate) type Tables = BTreeMap<String, BTreeMap<String, u32>>;

/// Why there is no program.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    /// The rules contradict each other so plainly that libseccomp says so.
    Contradiction,
    /// libseccomp does not come to an end.
    Endless,
}

pub(crate) struct Libseccomp {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    pub(crate) tables: Tables,
}

impl Libseccomp {
    pub(crate) fn start() -> Libseccomp {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seccomp/libseccomp.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(library())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let ask = child.stdin.take().unwrap();
        let mut answer = BufReader::new(child.stdout.take().unwrap());
        let tables = serde_json::from_str(&line(&mut answer)).unwrap();
        Libseccomp { child, ask, answer, tables }
    }

    /// Both of the section's programs: the one that tests one call after the other, and the one that
    /// searches.
    pub(crate) fn both(&mut self, section: &Seccomp) -> Result<[Vec<Insn>; 2], Refusal> {
        Ok([self.compile(section, 1)?, self.compile(section, 2)?])
    }

    /// The section's program. `optimize`: 1 or 2.
    fn compile(&mut self, section: &Seccomp, optimize: u32) -> Result<Vec<Insn>, Refusal> {
        let rules: Vec<_> = section
            .syscalls
            .iter()
            .map(|s| {
                let args: Vec<_> = s
                    .args
                    .iter()
                    .map(|a| json!({"index": a.index, "op": a.op, "value": a.value, "valueTwo": a.value_two}))
                    .collect();
                json!({"names": s.names, "action": action(&s.action, s.errno_ret), "args": args})
            })
            .collect();
        let profile = json!({
            "default": action(&section.default_action, section.default_errno_ret),
            "architectures": section.architectures,
            "optimize": optimize,
            "rules": rules,
        });
        writeln!(self.ask, "{profile}").unwrap();
        let text = line(&mut self.answer);
        match text.as_str() {
            "contradiction" => return Err(Refusal::Contradiction),
            "endless" => return Err(Refusal::Endless),
            _ => {}
        }
        let bytes: Vec<u8> = (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let (chunks, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty());
        let insns = chunks
            .iter()
            .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Insn {
                code: u16::from_le_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_le_bytes([k0, k1, k2, k3]),
            })
            .collect();
        Ok(insns)
    }
}

impl Drop for Libseccomp {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn line(from: &mut impl BufRead) -> String {
    let mut text = String::new();
    assert!(from.read_line(&mut text).unwrap() > 0, "libseccomp's process ended, see above");
    text.trim_end().to_owned()
}

fn library() -> PathBuf {
    let cache = std::env::var("GANTRY_CACHE").unwrap_or_else(|_| "/var/cache/gantry-test".into());
    let path = Path::new(&cache).join("libseccomp/usr/lib/x86_64-linux-gnu/libseccomp.so.2");
    assert!(path.exists(), "{} is missing: scripts/deps unpacks it", path.display());
    path
}
