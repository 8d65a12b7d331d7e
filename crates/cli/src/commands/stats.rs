//! `stats`.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use api_types::{Filters, Stats};

use crate::commands::{list_format, short_id};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::rows::{Columns, Row, render};
use crate::fmt::units;

/// How often the screen is drawn.
const REDRAW: Duration = Duration::from_millis(500);

const COLUMNS: Columns = Columns {
    headers: &[
        ("Container", "CONTAINER"),
        ("ID", "CONTAINER ID"),
        ("Name", "NAME"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
    default: &["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"],
};

/// A line of the list.
#[derive(Debug, Clone, Default)]
struct Line {
    /// As the user named it.
    container: String,
    sample: Option<Stats>,
    /// Its samples cannot be had.
    failed: bool,
}

#[allow(clippy::cast_precision_loss)] // two decimals of a percentage
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Share of the CPUs between two samples, in percent of one CPU.
fn cpu_percent(s: &Stats) -> f64 {
    let (now, before) = (&s.cpu_stats, &s.precpu_stats);
    let used = now.cpu_usage.total_usage.saturating_sub(before.cpu_usage.total_usage);
    let passed = now.system_cpu_usage.saturating_sub(before.system_cpu_usage);
    let cpus = match now.online_cpus {
        0 => u32::try_from(now.cpu_usage.percpu_usage.len()).unwrap_or(0),
        n => n,
    };
    ratio(used, passed) * f64::from(cpus) * 100.0
}

/// Memory in use without the page cache that can go: v1's name first, then v2's.
fn memory_used(s: &Stats) -> u64 {
    let m = &s.memory_stats;
    for key in ["total_inactive_file", "inactive_file"] {
        if let Some(inactive) = m.stats.get(key).filter(|v| **v < m.usage) {
            return m.usage - inactive;
        }
    }
    m.usage
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn row(line: &Line, trunc: bool) -> Row {
    let Some(s) = line.sample.as_ref().filter(|_| !line.failed) else {
        return Row::new([
            ("Container", line.container.as_str().into()),
            ("ID", "--".into()),
            ("Name", "--".into()),
            ("CPUPerc", "--".into()),
            ("MemUsage", "-- / --".into()),
            ("MemPerc", "--".into()),
            ("NetIO", "--".into()),
            ("BlockIO", "--".into()),
            ("PIDs", "--".into()),
        ]);
    };
    let used = memory_used(s);
    let (rx, tx) = s.networks.values().fold((0, 0), |(r, t), n| (r + n.rx_bytes, t + n.tx_bytes));
    let (mut read, mut written) = (0, 0);
    for entry in &s.blkio_stats.io_service_bytes_recursive {
        match entry.op.bytes().next() {
            Some(b'r' | b'R') => read += entry.value,
            Some(b'w' | b'W') => written += entry.value,
            _ => {}
        }
    }
    let pair =
        |a: u64, b: u64| format!("{} / {}", units::size3(signed(a)), units::size3(signed(b)));
    let memory =
        format!("{} / {}", units::bytes(signed(used)), units::bytes(signed(s.memory_stats.limit)));
    Row::new([
        ("Container", line.container.as_str().into()),
        ("ID", if trunc { short_id(&s.id) } else { s.id.as_str() }.into()),
        ("Name", s.name.trim_start_matches('/').into()),
        ("CPUPerc", format!("{:.2}%", cpu_percent(s)).into()),
        ("MemUsage", memory.into()),
        ("MemPerc", format!("{:.2}%", ratio(used, s.memory_stats.limit) * 100.0).into()),
        ("NetIO", pair(rx, tx).into()),
        ("BlockIO", pair(read, written).into()),
        ("PIDs", s.pids_stats.current.to_string().into()),
    ])
}

async fn names(ctx: &Ctx, all: bool) -> Result<Vec<String>> {
    let list = ctx.client()?.container_list(all, None, false, &Filters::default()).await?;
    Ok(list.into_iter().map(|c| c.id).collect())
}

pub(crate) async fn stats(ctx: &Ctx, m: Matches) -> Result<()> {
    let format = list_format(ctx, &m, "statsFormat");
    let trunc = !m.flag("no-trunc");
    if m.flag("no-stream") {
        return once(ctx, &m, &format, trunc).await;
    }
    stream(ctx, &m, &format, trunc).await
}

async fn once(ctx: &Ctx, m: &Matches, format: &str, trunc: bool) -> Result<()> {
    let wanted = if m.args.is_empty() { names(ctx, m.flag("all")).await? } else { m.args.clone() };
    let client = ctx.client()?;
    let samples = wanted.iter().map(async |name| {
        let body = client.container_stats(name, false).await?;
        body.json_lines::<Stats>().next().await
    });
    let samples = futures_util::future::join_all(samples).await;
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    for (container, sample) in wanted.into_iter().zip(samples) {
        match sample {
            Ok(sample) => rows.push(row(&Line { container, sample, failed: false }, trunc)),
            Err(e) => errors.push(e.to_string()),
        }
    }
    // One that cannot be had is told alone, as docker does.
    crate::commands::fail_with(errors)?;
    ctx.out(&render(format, COLUMNS, &rows)?)
}

/// Samples one container for ever, into its line.
async fn sample(ctx: &Ctx, line: &RefCell<Line>) -> Result<()> {
    let name = line.borrow().container.clone();
    let mut samples = ctx.client()?.container_stats(&name, true).await?.json_lines::<Stats>();
    while let Some(next) = samples.next().await? {
        let mut line = line.borrow_mut();
        line.sample = Some(next);
        line.failed = false;
    }
    Ok(())
}

async fn stream(ctx: &Ctx, m: &Matches, format: &str, trunc: bool) -> Result<()> {
    let follow_all = m.args.is_empty();
    let mut wanted = if follow_all { names(ctx, m.flag("all")).await? } else { m.args.clone() };
    loop {
        let lines: Vec<Rc<RefCell<Line>>> = wanted
            .iter()
            .map(|container| {
                Rc::new(RefCell::new(Line { container: container.clone(), ..Line::default() }))
            })
            .collect();
        let samplers = async {
            let each = lines.iter().map(async |line| {
                let result = sample(ctx, line).await;
                line.borrow_mut().failed = true;
                result
            });
            let results = futures_util::future::join_all(each).await;
            match results.into_iter().find_map(std::result::Result::err) {
                Some(e) if !follow_all => Err::<(), Error>(e),
                // All containers are gone; one that comes changes the list.
                _ => std::future::pending().await,
            }
        };
        let screen = async {
            let mut ticks = tokio::time::interval(REDRAW);
            loop {
                ticks.tick().await;
                let rows: Vec<Row> = lines
                    .iter()
                    .map(|line| line.borrow().clone())
                    // A container of the list that has ended is no longer shown.
                    .filter(|line| !(follow_all && line.failed && !m.flag("all")))
                    .map(|line| row(&line, trunc))
                    .collect();
                let text = render(format, COLUMNS, &rows)?.replace('\n', "\x1b[K\n");
                ctx.out(&format!("\x1b[H{text}\x1b[J"))?;
            }
        };
        let change = async {
            match follow_all {
                true => list_change(ctx).await,
                false => std::future::pending().await,
            }
        };
        ctx.out("\x1b[2J\x1b[H")?;
        tokio::select! {
            result = samplers => return result,
            result = screen => return result,
            result = change => result?,
        }
        wanted = names(ctx, m.flag("all")).await?;
    }
}

/// Returns when a container has come or gone.
async fn list_change(ctx: &Ctx) -> Result<()> {
    let mut filters = Filters::default();
    filters.add("type", "container");
    for event in ["create", "start", "die", "destroy"] {
        filters.add("event", event);
    }
    match ctx.client()?.events("", "", &filters).await?.next().await? {
        Some(_) => Ok(()),
        None => Err("the stream of events has ended".into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers() {
        let sample: Stats = serde_json::from_value(serde_json::json!({
            "id": "0123456789abcdef", "name": "/web",
            "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
            "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
            "memory_stats": {"usage": 4096, "limit": 8192, "stats": {"inactive_file": 2048}},
            "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 1}, "eth1": {"rx_bytes": 500, "tx_bytes": 1}},
            "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 7}, {"op": "write", "value": 8}]},
            "pids_stats": {"current": 3},
        }))
        .unwrap();
        let rows =
            [row(&Line { container: "web".into(), sample: Some(sample), failed: false }, true)];
        let text = render("{{.ID}}|{{.Name}}|{{.CPUPerc}}|{{.MemUsage}}|{{.MemPerc}}|{{.NetIO}}|{{.BlockIO}}|{{.PIDs}}", COLUMNS, &rows).unwrap();
        assert_eq!(text, "0123456789ab|web|40.00%|2KiB / 8KiB|25.00%|1.5kB / 2B|7B / 8B|3\n");
    }
}
