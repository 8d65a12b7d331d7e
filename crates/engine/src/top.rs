//! `docker top` without running the host's `ps`: the columns of its common forms, read from /proc.

use std::path::Path;

use api_types::TopResponse;

use crate::{Error, Result, util::read_limited};

const LIMIT_BYTES: u64 = 1 << 20;
const TICKS_PER_SECOND: u64 = 100;

/// A process as /proc tells of it.
struct Process {
    pid: u32,
    ppid: u32,
    uid: u32,
    tty: i64,
    state: String,
    ticks: u64,
    start_ticks: u64,
    virtual_kb: u64,
    resident_kb: u64,
    name: String,
    command: String,
}

/// The table for `ps_args`: `-ef` (the default), `aux`, or `-o` / `-eo` with column names.
pub(crate) fn table(pids: &[u32], ps_args: &str) -> Result<TopResponse> {
    let columns = columns(ps_args)?;
    let mut processes: Vec<Process> = pids.iter().filter_map(|pid| read(*pid)).collect();
    processes.sort_by_key(|process| process.pid);
    let clock = Clock::read();
    Ok(TopResponse {
        titles: columns.iter().map(|column| column.title.clone()).collect(),
        processes: processes
            .iter()
            .map(|process| {
                columns.iter().map(|column| value(process, &column.name, &clock)).collect()
            })
            .collect(),
    })
}

const FULL: &[&str] = &["uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];
const USER: &[&str] =
    &["user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "bsdtime", "command"];

struct Column {
    name: String,
    title: String,
}

impl Column {
    fn named(name: &str) -> Self {
        Self { name: name.into(), title: title(name).into() }
    }

    /// `NAME[:WIDTH][=TITLE]`, as ps(1) has it; a width says nothing in a table of fields.
    fn parse(text: &str) -> Result<Self> {
        let (name, own) = match text.split_once('=') {
            Some((name, own)) => (name, Some(own.to_string())),
            None => (text, None),
        };
        let name = match name.split_once(':') {
            Some((name, width)) if width.parse::<u16>().is_ok_and(|width| width > 0) => name,
            Some((_, width)) => {
                return Err(Error::invalid(format!("ps: the width {width:?} of {text:?} is none")));
            }
            None => name,
        };
        let name = name.to_ascii_lowercase();
        if title(&name) == "?" {
            return Err(Error::not_implemented(format!("ps column {name}")));
        }
        let title = own.unwrap_or_else(|| title(&name).to_string());
        Ok(Self { name, title })
    }
}

fn columns(ps_args: &str) -> Result<Vec<Column>> {
    let words: Vec<&str> = ps_args.split_whitespace().collect();
    let owned = |list: &[&str]| list.iter().copied().map(Column::named).collect();
    match words.as_slice() {
        [] | ["-ef" | "-fe" | "ef"] => return Ok(owned(FULL)),
        ["aux" | "-aux" | "axu" | "u" | "-u"] => return Ok(owned(USER)),
        _ => {}
    }
    let mut chosen = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let list = match word.strip_prefix("-o").or_else(|| word.strip_prefix("-eo")) {
            Some("") => *rest.next().unwrap_or(&""),
            Some(list) => list,
            None if matches!(*word, "-e" | "-A" | "ax" | "a" | "x") => continue,
            None => match *word {
                "o" => *rest.next().unwrap_or(&""),
                _ => return Err(Error::not_implemented(format!("ps option {word}"))),
            },
        };
        for column in list.split(',').filter(|column| !column.is_empty()) {
            chosen.push(Column::parse(column)?);
        }
    }
    if chosen.is_empty() {
        return Ok(owned(FULL));
    }
    // As moby's `daemon/top_unix.go` finds the processes in what ps prints.
    if !chosen.iter().any(|column| column.title == "PID") {
        return Err(Error::invalid("Couldn't find PID field in ps output"));
    }
    Ok(chosen)
}

fn title(column: &str) -> &'static str {
    match column {
        "uid" => "UID",
        "user" => "USER",
        "pid" => "PID",
        "ppid" => "PPID",
        "c" => "C",
        "stime" => "STIME",
        "start" => "START",
        "tty" | "tt" => "TTY",
        "time" | "bsdtime" => "TIME",
        "cmd" => "CMD",
        "command" | "args" => "COMMAND",
        "comm" => "COMMAND",
        "%cpu" | "pcpu" => "%CPU",
        "%mem" | "pmem" => "%MEM",
        "vsz" => "VSZ",
        "rss" => "RSS",
        "stat" | "s" | "state" => "STAT",
        "etime" => "ELAPSED",
        _ => "?",
    }
}

struct Clock {
    boot_seconds: u64,
    now_seconds: u64,
    memory_kb: u64,
}

impl Clock {
    fn read() -> Self {
        let text = read_limited(Path::new("/proc/stat"), LIMIT_BYTES * 4).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let boot = text.lines().find_map(|line| line.strip_prefix("btime "));
        let now = store_api::Timestamp::now().seconds;
        Self {
            boot_seconds: boot.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            now_seconds: u64::try_from(now).unwrap_or(0),
            memory_kb: crate::system::memory_total() / 1024,
        }
    }
}

fn value(process: &Process, column: &str, clock: &Clock) -> String {
    let started = clock.boot_seconds + process.start_ticks / TICKS_PER_SECOND;
    let elapsed = clock.now_seconds.saturating_sub(started).max(1);
    let cpu_seconds = process.ticks / TICKS_PER_SECOND;
    match column {
        "uid" | "user" => user_name(process.uid),
        "pid" => process.pid.to_string(),
        "ppid" => process.ppid.to_string(),
        "c" => (cpu_seconds * 100 / elapsed).min(99).to_string(),
        "%cpu" | "pcpu" => {
            let per_mille = process.ticks * 1000 / TICKS_PER_SECOND / elapsed;
            format!("{}.{}", per_mille / 10, per_mille % 10)
        }
        "%mem" | "pmem" => {
            let per_mille = process.resident_kb * 1000 / clock.memory_kb.max(1);
            format!("{}.{}", per_mille / 10, per_mille % 10)
        }
        "stime" | "start" => {
            let of_day = started % 86400;
            format!("{:02}:{:02}", of_day / 3600, of_day / 60 % 60)
        }
        "tty" | "tt" => match process.tty {
            0 => "?".into(),
            number => format!("pts/{}", number & 0xff),
        },
        // BSD's form is shorter.
        "bsdtime" => format!("{}:{:02}", cpu_seconds / 60, cpu_seconds % 60),
        "time" => {
            let (hours, minutes) = (cpu_seconds / 3600, cpu_seconds / 60 % 60);
            format!("{hours:02}:{minutes:02}:{:02}", cpu_seconds % 60)
        }
        "etime" => format!("{:02}:{:02}", elapsed / 60, elapsed % 60),
        "vsz" => process.virtual_kb.to_string(),
        "rss" => process.resident_kb.to_string(),
        "stat" => process.state.clone(),
        "s" | "state" => process.state.get(..1).unwrap_or_default().into(),
        "comm" => process.name.clone(),
        _ => process.command.clone(),
    }
}

/// ps(1)'s STAT: the state, and flags of priority, session, threads and foreground group (proc(5)).
fn process_state(fields: &[&str], pid: i64) -> String {
    let number = |index: usize| fields.get(index).and_then(|f| f.parse::<i64>().ok()).unwrap_or(0);
    let mut state = fields.first().copied().unwrap_or("?").to_string();
    // `fields` begins with the state, which is proc(5)'s third.
    let (group, session, foreground) = (number(2), number(3), number(5));
    let (nice, threads) = (number(16), number(17));
    for (flag, holds) in [
        ('<', nice < 0),
        ('N', nice > 0),
        ('s', session == pid),
        ('l', threads > 1),
        ('+', foreground > 0 && foreground == group),
    ] {
        if holds {
            state.push(flag);
        }
    }
    state
}

/// From `status`, which tells kB whatever the size of a page is; a kernel thread has no such line.
fn resident_kb(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn user_name(uid: u32) -> String {
    let passwd = read_limited(Path::new("/etc/passwd"), LIMIT_BYTES).unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd).into_owned();
    let wanted = uid.to_string();
    let entry = passwd.lines().find(|line| line.split(':').nth(2) == Some(wanted.as_str()));
    match entry.and_then(|line| line.split(':').next()) {
        Some(name) => name.into(),
        None => wanted,
    }
}

fn read(pid: u32) -> Option<Process> {
    let file = |name: &str| {
        read_limited(&Path::new("/proc").join(pid.to_string()).join(name), LIMIT_BYTES).ok()
    };
    let stat = String::from_utf8_lossy(&file("stat")?).into_owned();
    // The name may hold anything, also parentheses.
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let name = stat.get(open + 1..close)?.to_string();
    let fields: Vec<&str> = stat.get(close + 2..)?.split(' ').collect();
    let number = |index: usize| fields.get(index).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let status = String::from_utf8_lossy(&file("status")?).into_owned();
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())?;
    let command = file("cmdline").unwrap_or_default();
    let command: Vec<String> = command
        .split(|b| *b == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    Some(Process {
        pid,
        ppid: u32::try_from(number(1)).ok()?,
        uid,
        tty: fields.get(4).and_then(|f| f.parse().ok()).unwrap_or(0),
        state: process_state(&fields, i64::from(pid)),
        ticks: number(11) + number(12),
        start_ticks: number(19),
        virtual_kb: number(20) / 1024,
        resident_kb: resident_kb(&status),
        command: if command.is_empty() { format!("[{name}]") } else { command.join(" ") },
        name,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn resident_memory_is_in_kb_for_any_page_size() {
        assert_eq!(resident_kb("VmHWM:\t   99 kB\nVmRSS:\t  65536 kB\n"), 65536);
        assert_eq!(resident_kb("Name:\tkthreadd\n"), 0);
    }

    #[test]
    fn states_with_flags() {
        let leader = "S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0";
        let fields: Vec<&str> = leader.split(' ').collect();
        assert_eq!(process_state(&fields, 77), "Ss");
        let threads = "R 1 80 77 34816 80 0 0 0 0 0 0 0 0 0 20 -5 4 0";
        let fields: Vec<&str> = threads.split(' ').collect();
        assert_eq!(process_state(&fields, 80), "R<l+");
    }

    #[test]
    fn tables_of_this_very_process() {
        let pid = std::process::id();
        let top = table(&[pid], "-ef").unwrap();
        assert_eq!(top.titles[1], "PID");
        assert_eq!(top.processes[0][1], pid.to_string());
        let top = table(&[pid], "-o pid,comm").unwrap();
        assert_eq!(top.titles, ["PID", "COMMAND"]);
        assert!(table(&[pid], "-o comm").is_err());
        let top = table(&[pid], "-o pid,rss").unwrap();
        let resident: u64 = top.processes[0][1].parse().unwrap();
        let now = resident_kb(&std::fs::read_to_string("/proc/self/status").unwrap());
        assert!(resident.abs_diff(now) < now / 2, "{resident} {now}");
        assert!(table(&[pid], "-o pid,nonsense").is_err());
        let top = table(&[pid], "-o pid:9,comm:30=NAME").unwrap();
        assert_eq!(top.titles, ["PID", "NAME"]);
        assert_eq!(top.processes[0][0], pid.to_string());
        for bad in ["-o pid:x", "-o pid:", "-o pid=NUMBER"] {
            assert!(table(&[pid], bad).is_err(), "{bad}");
        }
    }
}
