//! Where the victims live and die.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use store::LayerForm;
use testkit::random;

use crate::scenario::{Input, Step};

/// Set in the process that a test runs itself as.
const ALONE: &str = "FAULTS_ALONE";
const ORDER: &str = "FAULTS_ORDER";
/// How many of each kind of fault `make test` takes.
const SAMPLE: usize = 4;
/// A victim takes a second or two.
const VICTIM_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the disk in memory that layers are mounted from.
const DISK_BYTES: u64 = 256 << 20;

/// Runs a test in a mount namespace of its own: as the process itself, started again.
pub fn alone(test: &str, layers: LayerForm, body: fn(&Ground)) {
    if std::env::var_os(ALONE).is_none() {
        let status = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(ALONE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{test}: {status}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let ground = Ground::new(test, directory.path(), layers);
    body(&ground);
    drop(ground);
    run("umount", &["-R", &directory.path().display().to_string()]);
}

pub fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

pub struct Ground {
    test: &'static str,
    pub path: PathBuf,
    pub layers: LayerForm,
    pub seed: u64,
}

/// What a point is in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Step,
    Write,
    Read,
}

/// One pass of a point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pass {
    pub name: String,
    pub nth: u64,
    pub kind: Kind,
}

impl Ground {
    fn new(test: &str, path: &Path, layers: LayerForm) -> Self {
        let seed = std::env::var("FAULT_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|| u64::from(random::number(0..u32::MAX)));
        let shown = path.display().to_string();
        run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", &shown]);
        let mut path = path.to_path_buf();
        if layers == LayerForm::Index {
            // EROFS is not mounted from files in memory.
            path = disk(&path, "disk", DISK_BYTES);
        }
        Self { test: Box::leak(test.to_string().into_boxed_str()), path, layers, seed }
    }

    /// Runs a victim without faults and answers what it passed.
    pub fn trace(&self, name: &str, only_open: bool, before: impl Fn(&Path)) -> Vec<Pass> {
        let path = self.path.join(name);
        before(&path);
        let file = self.path.join(format!("{name}.trace"));
        let (_, died) = self.victim(&path, only_open, &[("GANTRY_FAULT_TRACE", &file)]);
        assert!(!died, "the victim without a fault has died");
        let mut counts = BTreeMap::<String, u64>::new();
        let mut passes = Vec::new();
        for line in std::fs::read_to_string(file).unwrap().lines() {
            let (kind, name) = line.split_once(' ').unwrap();
            let nth = counts.entry(name.to_string()).or_default();
            *nth += 1;
            let kind = match kind {
                "w" => Kind::Write,
                "r" => Kind::Read,
                _ => Kind::Step,
            };
            passes.push(Pass { name: name.into(), nth: *nth, kind });
        }
        passes
    }

    /// Some of `all`, or all, as the environment wants it: the first pass of every point before any
    /// other.
    pub fn chosen(&self, all: &[Pass]) -> Vec<Pass> {
        if let Ok(one) = std::env::var("FAULT_AT") {
            let is_it = |pass: &&Pass| format!("{}:{}", pass.name, pass.nth) == one;
            return all.iter().filter(is_it).cloned().collect();
        }
        let count = match std::env::var("FAULTS").as_deref() {
            Ok("all") => all.len(),
            Ok(number) => number.parse().unwrap(),
            Err(_) => SAMPLE,
        };
        let mut state = self.seed;
        let mut keyed: Vec<(u64, &Pass)> =
            all.iter().map(|pass| (next(&mut state), pass)).collect();
        keyed.sort();
        let mut chosen: Vec<Pass> = Vec::new();
        for first in [true, false] {
            let passes = keyed.iter().filter(|(_, pass)| (pass.nth == 1) == first);
            chosen.extend(passes.map(|(_, pass)| (*pass).clone()));
        }
        if count < all.len() {
            // A sample has repeated passes as well.
            chosen = keyed.into_iter().map(|(_, pass)| pass.clone()).collect();
        }
        chosen.truncate(count);
        chosen
    }

    /// How much room there is to be, from none on: each at random within its step.
    pub fn rooms(&self) -> Vec<u64> {
        let mut state = self.seed;
        let tries = self.tries(60);
        (0..tries).map(|n| (n * 3_000_000 / tries + next(&mut state) % 50_000) & !4095).collect()
    }

    /// Of so many tries of one kind, those of this run.
    pub fn tries(&self, all: u64) -> u64 {
        if std::env::var_os("FAULTS").is_some_and(|count| count == "all") { all } else { 3 }
    }

    /// One victim for each pass, killed there, and the look at what it has left.
    pub fn killed(&self, all: &[Pass], only_open: bool, before: impl Fn(&Path), input: &Input) {
        let chosen = self.chosen(all);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (mut missed, mut failed) = (0, Vec::new());
        for pass in &chosen {
            let path = self.path.join("victim");
            before(&path);
            let at = format!("{}:{}:kill", pass.name, pass.nth);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let (mut said, died) = self.victim(&path, only_open, &[("GANTRY_FAULT", &at)]);
                if !died {
                    // Threads do not always run in the same order.
                    missed += 1;
                }
                if only_open {
                    // A lost database takes with it what only a label holds: no name leads there.
                    said.extend(Step::ALL.into_iter().filter(|step| *step != Step::Blob));
                }
                runtime.block_on(crate::look(&path, self.layers, input, &said));
            }));
            if outcome.is_err() {
                eprintln!("{}: this was GANTRY_FAULT={at}", self.test);
                failed.push(at);
            }
            // Whoever failed may have left mounts in it.
            run(
                "sh",
                &[
                    "-c",
                    "umount -l \"$0\"/state/layers/* 2> /dev/null; rm -rf \"$0\"",
                    &path.display().to_string(),
                ],
            );
        }
        eprintln!(
            "{}: {} of {} passes of {} points, {missed} were not reached, seed {}",
            self.test,
            chosen.len(),
            all.len(),
            all.iter().map(|pass| &pass.name).collect::<BTreeSet<_>>().len(),
            self.seed
        );
        assert!(failed.is_empty(), "{}: FAULT_SEED={}, {failed:?}", self.test, self.seed);
        assert!(missed * 4 <= chosen.len() + 4, "too few victims reach their point");
    }

    /// What it has acknowledged, and whether it was killed.
    fn victim(
        &self,
        path: &Path,
        only_open: bool,
        env: &[(&str, &dyn AsRef<std::ffi::OsStr>)],
    ) -> (BTreeSet<Step>, bool) {
        let order = Order {
            ground: path.into(),
            input: self.path.join("input.json"),
            layers: self.layers,
            only_open,
        };
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", &VICTIM_LIMIT.as_secs().to_string()]);
        command.arg(std::env::current_exe().unwrap());
        command.args(["victim", "--exact", "--nocapture"]).env(ORDER, order.text());
        for (name, value) in env {
            command.env(name, value.as_ref());
        }
        let started = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let status = child.wait().unwrap();
        assert!(started.elapsed() < VICTIM_LIMIT, "a victim does not end: {text}");
        let said = text.lines().filter_map(|line| line.strip_prefix("said "));
        let said = said.map(|step| serde_json::from_str(step).unwrap()).collect();
        if status.success() {
            return (said, false);
        }
        use std::os::unix::process::ExitStatusExt as _;
        let killed = status.signal() == Some(9) || status.code() == Some(137);
        assert!(killed, "a victim failed by itself: {status}\n{text}");
        (said, true)
    }
}

/// An ext4 file system of so many bytes, in a file beside where it is mounted.
pub fn disk(directory: &Path, name: &str, bytes: u64) -> PathBuf {
    let (image, point) = (directory.join(format!("{name}.img")), directory.join(name));
    std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
    std::fs::create_dir(&point).unwrap();
    let (image, shown) = (image.display().to_string(), point.display().to_string());
    run("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal", &image]);
    run("mount", &["-o", "loop", &image, &shown]);
    point
}

pub fn copy(from: &Path, to: &Path) {
    run("cp", &["-a", &from.display().to_string(), &to.display().to_string()]);
}

/// splitmix64
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a victim is to do.
pub struct Order {
    pub ground: PathBuf,
    pub input: PathBuf,
    pub layers: LayerForm,
    pub only_open: bool,
}

impl Order {
    pub fn of_this_process() -> Option<Self> {
        let text = std::env::var(ORDER).ok()?;
        let parts: Vec<&str> = text.split('\n').collect();
        let [ground, input, layers, what] = parts[..] else { panic!("{ORDER}: {text:?}") };
        Some(Self {
            ground: ground.into(),
            input: input.into(),
            layers: if layers == "index" { LayerForm::Index } else { LayerForm::Directories },
            only_open: what == "open",
        })
    }

    fn text(&self) -> String {
        let layers = if self.layers == LayerForm::Index { "index" } else { "directories" };
        let what = if self.only_open { "open" } else { "all" };
        format!("{}\n{}\n{layers}\n{what}", self.ground.display(), self.input.display())
    }

    #[allow(clippy::print_stdout)]
    pub fn acknowledge(&self, step: Step) {
        println!("\nsaid {}", serde_json::to_string(&step).unwrap());
        std::io::stdout().flush().unwrap();
    }
}

impl Input {
    pub fn read(path: &Path) -> Self {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, serde_json::to_vec(self).unwrap()).unwrap();
    }
}
