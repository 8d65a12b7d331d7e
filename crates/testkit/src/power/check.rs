//! An engine on a disk as a power cut may leave it: it starts, everything promised is there, nothing is
//! there by halves, what was under way can be done again, `fsck` finds nothing, and when all is removed
//! nothing is left.

use super::log::{Cut, Log};
use super::plan::{self, Command, Object, Plan, State};
use super::{Mark, Progress, allowed, guest};
use crate::command::Running;
use crate::engine::Daemon;
use crate::error::IoContext;
use crate::sandbox::Sandbox;
use crate::{Error, Result, wait};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// The disk's file in a sandbox, on its tmpfs.
const DISK: &str = "/run/disk";
const SOCKET: &str = "/run/gantry/gantry.sock";
/// For what the engine does in the background.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// For one script of a check.
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

/// All that the checks of one log share.
#[derive(Debug)]
pub struct Case<'a> {
    pub plan: &'a Plan,
    pub log: &'a Log,
    pub marks: &'a [Mark],
    /// With the files of [`guest`].
    pub files: &'a Path,
    /// The disk as it was at first.
    pub disk: &'a Path,
}

/// Where disks are looked at, one after the other.
#[derive(Debug)]
pub struct Bench<'a> {
    case: &'a Case<'a>,
    sandbox: Sandbox,
    /// Serves until the sandbox ends.
    _registry: Running,
}

impl<'a> Bench<'a> {
    pub fn new(case: &'a Case<'a>) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let dir = case.files.display().to_string();
        sandbox.write("/run/registry.yml", guest::registry_config(&dir))?;
        sandbox.link("gantry", &crate::engine::gantry_binary()?)?;
        let registry =
            sandbox.command("docker-registry", ["serve", "/run/registry.yml"]).spawn()?;
        let port = plan::REGISTRY.rsplit(':').next().and_then(|port| port.parse().ok());
        wait::until("the registry", SETTLE_LIMIT, || {
            port.is_some_and(|port| sandbox.listens(port)).then_some(())
        })?;
        Ok(Self { case, sandbox, _registry: registry })
    }

    pub fn close(self) -> Result<()> {
        self.sandbox.close()
    }

    /// Looks at what is left after a cut. After a failure the bench is of no more use.
    ///
    /// # Errors
    /// When something is not as it has to be; the text tells what, and the daemon's log.
    pub fn check(&self, cut: Cut) -> Result<()> {
        let disk = self.sandbox.path(DISK);
        copy_sparse(self.case.disk, &disk)?;
        self.case.log.replay(&disk, cut)?;
        self.sh(&format!("mount -o loop {DISK} /var/lib"))?;
        let mut daemon = Daemon::gantry(&self.sandbox, &[])?;
        let progress = Progress::at(self.case.marks, cut.entries);
        self.look(&mut daemon, progress).map_err(|error| Error::Failed {
            command: format!("the look at the cut {cut}, {}", self.told(progress)),
            status: format!("{error:?}"),
            output: format!("the daemon's log:\n{}", daemon.log()),
        })?;
        self.sh(&format!("umount /var/lib && rm -rf /run/gantry {DISK}"))?;
        Ok(())
    }

    fn told(&self, progress: Progress) -> String {
        let command = self.case.plan.commands.get(progress.acknowledged);
        let script = command.map_or("nothing", |command| command.script.as_str());
        let when = if progress.under_way { "in the middle of" } else { "in front of" };
        format!("{when} command {}, {script}", progress.acknowledged)
    }

    fn look(&self, daemon: &mut Daemon<'_>, progress: Progress) -> Result<()> {
        self.states(progress)?;
        let under_way = self.case.plan.commands.get(progress.acknowledged);
        if let Some(command) = under_way.filter(|_| progress.under_way) {
            self.again(command)?;
        }
        daemon.stop()?;
        self.sh("gantry containerd fsck")?;
        daemon.start_again()?;
        self.sh(EMPTY)?;
        let ground = self.sandbox.path("/var/lib/gantry");
        wait::until_ok("everything to be gone", SETTLE_LIMIT, || match leftovers(&ground) {
            Ok(left) if left.is_empty() => Ok(()),
            Ok(left) => Err(format!("{left:?} is left")),
            Err(error) => Err(format!("{error:?}")),
        })?;
        daemon.stop().map(drop)
    }

    /// Each object of the plan is in a state in which it may be, and there is no other.
    fn states(&self, progress: Progress) -> Result<()> {
        let mut present = self.present()?;
        for object in self.case.plan.objects() {
            let states = allowed(self.case.plan, progress, &object);
            let there = present.remove(&object);
            if !there {
                if states.contains(&None) {
                    continue;
                }
                return Err(wrong(&object, "is lost", &states));
            }
            let shown = self.shown(&object)?;
            if !states.iter().flatten().any(|state| fits(state, &shown)) {
                return Err(wrong(&object, &format!("shows {shown:?}"), &states));
            }
            if let (Object::Container(name), true) = (&object, shows_shell(&states)) {
                self.sh(&format!("gantry start -a {name}"))?;
            }
        }
        match present.iter().next() {
            None => Ok(()),
            Some(object) => Err(wrong(object, "was never made", &[])),
        }
    }

    fn present(&self) -> Result<BTreeSet<Object>> {
        let text = self.sh(LIST)?;
        let objects = text.lines().filter_map(|line| {
            let (kind, name) = line.split_once(' ')?;
            let name = name.to_owned();
            Some(match kind {
                "image" => Object::Image(name),
                "container" => Object::Container(name),
                "volume" => Object::Volume(name),
                _ => Object::Network(name),
            })
        });
        Ok(objects.collect())
    }

    /// What an object shows below `/d`.
    fn shown(&self, object: &Object) -> Result<plan::Tree> {
        let script = match object {
            Object::Image(tag) => format!(
                "gantry create --name look --network none {tag} /bin/true > /run/id
                 gantry export -o /run/look.tar look; gantry rm look > /run/id"
            ),
            Object::Container(name) => format!("gantry export -o /run/look.tar {name}"),
            Object::Volume(_) | Object::Network(_) => return Ok(plan::Tree::new()),
        };
        let text = self.sh(&format!(
            "{script}
             rm -rf /run/look; mkdir /run/look; cd /run/look
             tar -xf /run/look.tar d; find d -type f -exec sha256sum '{{}}' +"
        ))?;
        let pairs = text.lines().filter_map(|line| line.split_once("  "));
        Ok(pairs.map(|(sum, path)| (path.to_owned(), sum.to_owned())).collect())
    }

    /// What was under way is done again, unless it has happened.
    fn again(&self, command: &Command) -> Result<()> {
        let present = self.present()?;
        let is_image = |object: &Object| matches!(object, Object::Image(_));
        let is_open = command.effects.iter().any(|effect| match &effect.state {
            Some(_) => is_image(&effect.object) || !present.contains(&effect.object),
            None => present.contains(&effect.object),
        });
        if !is_open {
            return Ok(());
        }
        self.sh(&command.script)?;
        let present = self.present()?;
        for effect in &command.effects {
            let states = [effect.state.clone()];
            if present.contains(&effect.object) != effect.state.is_some() {
                return Err(wrong(&effect.object, "is not as it was made again", &states));
            }
            if let Some(state) = &effect.state {
                let shown = self.shown(&effect.object)?;
                if !fits(state, &shown) {
                    return Err(wrong(&effect.object, &format!("shows {shown:?}"), &states));
                }
            }
        }
        Ok(())
    }

    fn sh(&self, script: &str) -> Result<String> {
        let command = self.sandbox.command("sh", ["-euc", script]).timeout(SCRIPT_LIMIT);
        let command = command.env("D", self.case.files.display().to_string());
        Ok(command.env("DOCKER_HOST", format!("unix://{SOCKET}")).ok()?.text())
    }
}

/// All objects, a line each; not what every engine has.
const LIST: &str =
    "gantry images --format 'image {{.Repository}}:{{.Tag}}' | grep -v '<none>' || true
gantry ps -a --format 'container {{.Names}}'
gantry volume ls --format 'volume {{.Name}}'
gantry network ls --filter type=custom --format 'network {{.Name}}'";

/// Removes everything.
const EMPTY: &str = "gantry ps -aq | xargs -r gantry rm -fv
gantry images -q | sort -u | xargs -r gantry rmi -f
gantry volume ls -q | xargs -r gantry volume rm
gantry network ls -q --filter type=custom | xargs -r gantry network rm
gantry builder prune -af
gantry system prune -af";

/// What an engine without any object has below its data root; paths that end with a slash are empty
/// directories.
const BARE: [&str; 23] = [
    "build/mounts/",
    "build/salt",
    "build/tmp/",
    "containers/",
    "engine-id",
    "gantry.lock",
    "networks/ula",
    "store/content/blobs/sha256/",
    "store/content/blobs/sha512/",
    "store/content/ingest/",
    "store/l/",
    "store/meta.db",
    "store/records/children/",
    "store/records/containers/",
    "store/records/content/",
    "store/records/images/",
    "store/records/leases/",
    "store/records/namespaces/",
    "store/records/snapshots/",
    "store/snapshots/",
    "store/tmp/",
    "store/trash/",
    "volumes/",
];
/// Where it may have files: what a step of a build was made of outlives its result, to explain why it
/// runs again; namespaces stay, and the networks that every engine has.
const KEPT: [&str; 7] = [
    "build/hashes/",
    "build/manifests/",
    "build/records/",
    "build/slots/",
    "build/states/",
    "networks/",
    "store/records/namespaces/",
];
/// Networks that every engine has: bridge, host, none.
const NETWORKS: usize = 3;

/// What is there beside that.
fn leftovers(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    walk(root, "", &mut found)?;
    let is_network = |path: &str| path.starts_with("networks/") && path.ends_with(".json");
    let networks = found.iter().filter(|path| is_network(path)).count();
    let is_kept = |path: &str| {
        KEPT.iter().any(|directory| {
            let name = path.strip_prefix(directory);
            // Its temporary file is none of it.
            name.is_some_and(|name| !name.contains('/') && !name.ends_with(".new"))
        })
    };
    found.retain(|path| !BARE.contains(&path.as_str()) && path != "tmp/" && !is_kept(path));
    if networks != NETWORKS {
        found.push(format!("{networks} networks"));
    }
    Ok(found)
}

/// Files, and directories that hold nothing.
fn walk(directory: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    let mut empty = true;
    for entry in std::fs::read_dir(directory).context("list", directory.display())? {
        let entry = entry.context("list", directory.display())?;
        empty = false;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().context("stat", &name)?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.push(name);
        }
    }
    if empty {
        found.push(prefix.to_owned());
    }
    Ok(())
}

fn shows_shell(states: &[Option<State>]) -> bool {
    states.iter().flatten().all(|state| plan::has_shell(&state.tree))
}

/// But for what a process wrote without a sync.
fn fits(state: &State, shown: &plan::Tree) -> bool {
    let settled = |tree: &plan::Tree| -> BTreeMap<String, String> {
        let pairs = tree.iter().filter(|(path, _)| !state.written.contains(*path));
        pairs.map(|(path, sum)| (path.clone(), sum.clone())).collect()
    };
    settled(&state.tree) == settled(shown)
}

fn wrong(object: &Object, what: &str, states: &[Option<State>]) -> Error {
    Error::Failed {
        command: format!("{object:?}"),
        status: what.to_owned(),
        output: format!("allowed: {states:?}"),
    }
}

/// Copies a file that is mostly holes.
fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    const PIECE: usize = 64 << 10;
    let source = std::fs::File::open(from).context("open", from.display())?;
    let target = std::fs::File::create(to).context("create", to.display())?;
    let bytes = source.metadata().context("stat", from.display())?.len();
    target.set_len(bytes).context("enlarge", to.display())?;
    let mut at = 0;
    while at < bytes {
        // The end of the file is a hole.
        let Ok(data) = rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) else { break };
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(data));
        let end = end.context("seek in", from.display())?;
        at = data;
        while at < end {
            let mut buffer = vec![0; usize::try_from(end - at).unwrap_or(PIECE).min(PIECE)];
            source.read_exact_at(&mut buffer, at).context("read", from.display())?;
            target.write_all_at(&buffer, at).context("write", to.display())?;
            at += u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        }
    }
    Ok(())
}
