//! Commands on containers that exist.

use std::process::{Command, Stdio};

use serde_json::json;

use super::flags::{Parsed, decimal_times};
use super::{Context, Failure, Outcome, one_id, say, say_err};
use crate::error::Context as _;
use crate::operate::skips_pids;
use crate::spec::{BlockIo, Cpu, IntelRdt, Memory, Pids, Resources};
use crate::state::{from_json, read_file};
use crate::{ContainerId, State};

pub(super) fn kill(cx: &Context, parsed: &Parsed) -> Outcome {
    let (id, signal) = match parsed.rest.as_slice() {
        [id, signal] if !signal.is_empty() => (id.clone(), signal.as_str()),
        words => (words.first().cloned().unwrap_or_default(), "SIGTERM"),
    };
    let id = ContainerId::new(id)?;
    crate::kill(&cx.options, &id, signal_number(signal)?, parsed.is_set("all"))?;
    Ok(0)
}

/// A signal by number, or by name with or without SIG, in any case.
fn signal_number(text: &str) -> Result<i32, String> {
    #[rustfmt::skip]
    const NAMES: [(&str, i32); 35] = [
        ("HUP", 1), ("INT", 2), ("QUIT", 3), ("ILL", 4), ("TRAP", 5), ("ABRT", 6), ("IOT", 6),
        ("BUS", 7), ("FPE", 8), ("KILL", 9), ("USR1", 10), ("SEGV", 11), ("USR2", 12),
        ("PIPE", 13), ("ALRM", 14), ("TERM", 15), ("STKFLT", 16), ("CHLD", 17), ("CLD", 17),
        ("CONT", 18), ("STOP", 19), ("TSTP", 20), ("TTIN", 21), ("TTOU", 22), ("URG", 23),
        ("XCPU", 24), ("XFSZ", 25), ("VTALRM", 26), ("PROF", 27), ("WINCH", 28), ("IO", 29),
        ("POLL", 29), ("PWR", 30), ("SYS", 31), ("UNUSED", 31),
    ];
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let bad = || format!("unknown signal {text:?}");
    if let Ok(n) = text.parse::<i32>() {
        return if (0..=RTMAX).contains(&n) { Ok(n) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, n)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*n);
    }
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let n = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest).map(|o| RTMIN + o),
        (_, Some(rest)) => offset(rest).map(|o| RTMAX + o),
        _ => None,
    };
    n.filter(|n| (RTMIN..=RTMAX).contains(n)).ok_or_else(bad)
}

pub(super) fn delete(cx: &Context, parsed: &Parsed) -> Outcome {
    let id = one_id(parsed)?;
    for warning in crate::delete_with_warnings(&cx.options, &id, parsed.is_set("force"))? {
        cx.log.warning(&warning.chain());
    }
    Ok(0)
}

pub(super) fn pause(cx: &Context, parsed: &Parsed) -> Outcome {
    crate::pause(&cx.options, &one_id(parsed)?)?;
    Ok(0)
}

pub(super) fn resume(cx: &Context, parsed: &Parsed) -> Outcome {
    crate::resume(&cx.options, &one_id(parsed)?)?;
    Ok(0)
}

pub(super) fn state(cx: &Context, parsed: &Parsed) -> Outcome {
    let state = crate::state(&cx.options, &one_id(parsed)?)?;
    let text = serde_json::to_string_pretty(&state).map_err(|e| e.to_string())?;
    Ok(say(&text))
}

pub(super) fn list(cx: &Context, parsed: &Parsed) -> Outcome {
    let (mut states, unread) = crate::operate::list(&cx.options)?;
    unread.iter().for_each(|e| say_err(&e.chain()));
    for s in &mut states {
        s.owner = owner(&cx.options.root.join(&s.id));
    }
    if parsed.is_set("quiet") {
        return Ok(say(&states.iter().map(|s| format!("{}\n", s.id)).collect::<String>()));
    }
    match parsed.last("format") {
        None | Some("table") => Ok(say(&table(&states))),
        // Go's form of an empty slice that was never made.
        Some("json") if states.is_empty() => Ok(say("null\n")),
        Some("json") => Ok(say(&format!("{}\n", json!(states)))),
        Some(other) => Err(format!("invalid format option: {other}").into()),
    }
}

/// The state directory's owner by the host's passwd file, else by number.
fn owner(dir: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let Ok(uid) = std::fs::metadata(dir).map(|m| m.uid()) else { return String::new() };
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|l| {
        let mut fields = l.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

/// Columns as Go's tabwriter makes them with width 12 and padding 3.
fn table(states: &[State]) -> String {
    let mut rows: Vec<[String; 6]> =
        vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(states.iter().map(|s| {
        [
            s.id.clone(),
            s.pid.to_string(),
            s.status.to_string(),
            s.bundle.display().to_string(),
            s.created.clone(),
            s.owner.clone(),
        ]
    }));
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            out.push_str(&format!("{cell:width$}"));
        }
        out.push_str(&row[5]);
        out.push('\n');
    }
    out
}

pub(super) fn ps(cx: &Context, parsed: &Parsed) -> Outcome {
    let options = parsed.rest.get(1..).unwrap_or_default();
    let pids = crate::pids(&cx.options, &one_id(parsed)?)?;
    match parsed.last("format") {
        Some("json") => Ok(say(&format!("{}\n", json!(pids)))),
        None | Some("table") => {
            if let Some(text) = host_ps(options, &pids)? {
                return Ok(say(&text));
            }
            if !options.is_empty() && options != ["-ef"] {
                return Err(
                    format!("ps options {options:?} need ps(1), which is not in PATH").into()
                );
            }
            let mut text = String::from("UID          PID    PPID CMD\n");
            for pid in pids {
                text.push_str(&process_line(pid).unwrap_or_default());
            }
            Ok(say(&text))
        }
        Some(other) => Err(format!("invalid format option {other:?}").into()),
    }
}

/// The lines of the host's ps(1) about these processes; `None` if there is no such program.
fn host_ps(options: &[String], pids: &[i32]) -> Result<Option<String>, Failure> {
    let mut command = Command::new("ps");
    match options {
        [] => command.arg("-ef"),
        _ => command.args(options),
    };
    let output = match command.stdin(Stdio::null()).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| format!("ps: {e}"))?,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("ps: {}: {}", output.status, said.trim()).into());
    }
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_whitespace().position(|h| h == "PID");
    let column = column.ok_or_else(|| "couldn't find PID field in ps output".to_owned())?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|p| p.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let mut out = format!("{header}\n");
    for line in lines.filter(ours) {
        out.push_str(&format!("{line}\n"));
    }
    Ok(Some(out))
}

/// `None` for a process that has ended in the meantime.
fn process_line(pid: i32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key))?;
        line.split_whitespace().next().map(str::to_owned)
    };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let command = match command.trim() {
        "" => format!("[{}]", field("Name:")?),
        text => text.to_owned(),
    };
    Some(format!("{:<8} {pid:>7} {:>7} {command}\n", field("Uid:")?, field("PPid:")?))
}

pub(super) fn update(cx: &Context, parsed: &Parsed) -> Outcome {
    let id = one_id(parsed)?;
    let resources = match parsed.value("resources") {
        Some(path) => from_file(path)?,
        None => from_flags(parsed)?,
    };
    let schema = |name: &str| parsed.value(name).unwrap_or_default().to_owned();
    let rdt = IntelRdt {
        l3_cache_schema: schema("l3-cache-schema"),
        mem_bw_schema: schema("mem-bw-schema"),
        ..IntelRdt::default()
    };
    crate::update(&cx.options, &id, &resources)?;
    // Said to a person only: in engines' files it has no meaning.
    if parsed.value("resources").is_none() && skips_pids(&cx.options, &id, &resources)? {
        cx.log.warning(
            "--pids-limit 0 changes nothing in a container whose ociVersion is below 1.3 (-1: no limit)",
        );
    }
    if rdt != IntelRdt::default() {
        crate::update_rdt(&cx.options, &id, &rdt)?;
    }
    Ok(0)
}

/// `-` is standard input. `null` changes nothing, as in runc.
fn from_file(path: &str) -> Result<Resources, Failure> {
    let limit = usize::try_from(crate::spec::CONFIG_LIMIT_BYTES).unwrap_or(usize::MAX);
    let (bytes, name) = match path {
        "-" => {
            let name = "standard input";
            let bytes = crate::procfs::read_bytes(rustix::stdio::stdin(), limit);
            (bytes.ctx("read", || name)?, name)
        }
        path => (read_file(path.as_ref(), limit)?, path),
    };
    Ok(from_json::<Option<Resources>>(&bytes, name.as_ref())?.unwrap_or_default())
}

fn from_flags(p: &Parsed) -> Result<Resources, Failure> {
    let bytes = |name: &str| -> Result<Option<i64>, String> {
        p.value(name).filter(|v| !v.is_empty()).map(|v| size(v, name)).transpose()
    };
    let memory = Memory {
        limit: bytes("memory")?,
        reservation: bytes("memory-reservation")?,
        swap: bytes("memory-swap")?,
        kernel: bytes("kernel-memory")?,
        kernel_tcp: bytes("kernel-memory-tcp")?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: p.number("cpu-share")?,
        quota: p.number("cpu-quota")?,
        burst: p.number("cpu-burst")?,
        period: p.number("cpu-period")?,
        realtime_runtime: p.number("cpu-rt-runtime")?,
        realtime_period: p.number("cpu-rt-period")?,
        cpus: p.value("cpuset-cpus").unwrap_or_default().to_owned(),
        mems: p.value("cpuset-mems").unwrap_or_default().to_owned(),
        idle: p.number("cpu-idle")?,
    };
    let weight: Option<u16> = p.number("blkio-weight")?;
    let pids: Option<i64> = p.number("pids-limit")?;
    Ok(Resources {
        memory: Some(memory),
        cpu: Some(cpu),
        pids: pids.map(|limit| Pids { limit: Some(limit) }),
        block_io: weight.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() }),
        ..Resources::default()
    })
}

/// `-1`, or a decimal number with an optional unit of 1024s (`512m`, `1.5g`, `1 GiB`), as go-units'
/// RAMInBytes reads it; a fraction of a byte is cut off.
fn size(text: &str, flag: &str) -> Result<i64, String> {
    let bad = || format!("invalid value for {flag}: invalid size: '{text}'");
    if text == "-1" {
        return Ok(-1);
    }
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    // A lone point at either end is none of it.
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
        return Err(bad());
    }
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let shift = match unit.strip_suffix('i').unwrap_or(unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(bad()),
    };
    decimal_times(number, 1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn signals_and_sizes() {
        for (text, n) in
            [("0", 0), ("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)]
        {
            assert_eq!(signal_number(text).unwrap(), n, "{text}");
        }
        for text in ["65", "SIGX", "RTMIN+31", "-9"] {
            assert!(signal_number(text).is_err(), "{text}");
        }
        assert_eq!(size("2g", "memory").unwrap(), 2 << 30);
        assert_eq!(size("-1", "memory").unwrap(), -1);
        // What runc 1.1 makes of them.
        for (text, n) in [
            ("1.5g", 1_610_612_736),
            ("0.5", 0),
            ("64 m", 64 << 20),
            ("64MiB", 64 << 20),
            ("1gi", 1 << 30),
            ("1p", 1 << 50),
            ("64B", 64),
        ] {
            assert_eq!(size(text, "memory").unwrap(), n, "{text}");
        }
        for text in [
            "",
            "2x",
            "1e9",
            ".5g",
            "64.g",
            "+64m",
            "-2",
            "1.5.5g",
            "1g ",
            " 1g",
            "0x10",
            "1bb",
            "9999999999999999999",
            "8192p",
        ] {
            assert!(size(text, "memory").is_err(), "{text:?}");
        }
    }
}
