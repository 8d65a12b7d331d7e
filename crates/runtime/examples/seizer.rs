//! A hostile program for a test: takes hold of every new process of its pid namespace at once and
//! says what it got hold of. Runs until it has seen as many as its argument says; with a second one it
//! lets go of none and does not end.
//!
//! One line each: pid, bounding and permitted set, seccomp mode, descriptors above 2.

use std::io::Write;

fn main() -> std::io::Result<()> {
    let count: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    let hold = std::env::args().nth(2).is_some();
    let mut out = std::io::stdout();
    writeln!(out, "{}", describe("self"))?;
    // Pids are given in order: the next one is waited for by asking for it.
    let mut last = i32::try_from(std::process::id()).unwrap_or(1);
    let mut seen = 0;
    while seen < count {
        for pid in last + 1..last + 40 {
            if sys::trace::seize(pid).is_err() {
                continue;
            }
            last = pid;
            seen += 1;
            if sys::trace::interrupt(pid).is_ok() && sys::trace::wait_stop(pid).unwrap_or(false) {
                writeln!(out, "{pid} {}", describe(&pid.to_string()))?;
                if !hold {
                    // Gone already is fine.
                    let _gone = sys::trace::detach(pid);
                }
            }
            break;
        }
    }
    if hold {
        loop {
            std::thread::park();
        }
    }
    writeln!(out, "done")
}

fn describe(pid: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("?").trim().to_owned()
    };
    let mut fds = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let number: i32 = entry.file_name().to_string_lossy().parse().unwrap_or(0);
        if number > 2
            && let Ok(link) = std::fs::read_link(entry.path())
        {
            fds.push(link.display().to_string());
        }
    }
    let (bound, have) = (field("CapBnd:"), field("CapPrm:"));
    format!("{bound} {have} {} {}", field("Seccomp:"), fds.join(","))
}
