//! The work-load: random commands, each possible after those before it, and what each changes.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Images that are loaded and pulled.
pub const IMAGES: usize = 4;
/// The registry, in the guest and in the sandboxes of the checks.
pub const REGISTRY: &str = "127.0.0.1:5000";

const IMPORTED: &str = "d/imported";

/// What an image or a container shows below `/d`: files and what `sha256sum` says of them.
pub type Tree = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Object {
    Image(String),
    Container(String),
    Volume(String),
    Network(String),
}

/// An object that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub tree: Tree,
    /// Files of it that a process wrote or removed, without a sync.
    pub written: BTreeSet<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Effect {
    pub object: Object,
    /// `None`: it is gone.
    pub state: Option<State>,
}

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durable {
    /// It and all that was acknowledged before survive a power cut.
    All,
    /// It survives.
    Itself,
    /// It survives a second later.
    Later,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// A word for reports.
    pub what: String,
    /// For a shell; `$D` is the directory with the files of [`super::guest`].
    pub script: String,
    pub durable: Durable,
    pub effects: Vec<Effect>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    pub commands: Vec<Command>,
}

impl Plan {
    /// Every object that it ever makes.
    pub fn objects(&self) -> BTreeSet<Object> {
        let effects = self.commands.iter().flat_map(|command| &command.effects);
        effects.map(|effect| effect.object.clone()).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Load,
    Pull,
    Import,
    Build,
    Tag,
    Untag,
    Create,
    Run,
    Commit,
    Remove,
    Volume,
    VolumeGone,
    Network,
    NetworkGone,
    Prune,
    Settle,
}

/// How often each stands in one round.
const ROUND: [(Kind, usize); 16] = [
    (Kind::Load, 3),
    (Kind::Pull, 2),
    (Kind::Import, 1),
    (Kind::Build, 1),
    (Kind::Tag, 2),
    (Kind::Untag, 2),
    (Kind::Create, 2),
    (Kind::Run, 1),
    (Kind::Commit, 1),
    (Kind::Remove, 2),
    (Kind::Volume, 1),
    (Kind::VolumeGone, 1),
    (Kind::Network, 1),
    (Kind::NetworkGone, 1),
    (Kind::Prune, 1),
    (Kind::Settle, 1),
];

/// The store's journal has nothing but its first frame when all is in the database; what the engine
/// changed in directories is durable with the file system's next interval, ext4's being 5 s.
const SETTLE: &str = "n=0
until [ $(wc -c < /run/gantry/containerd/journal) -le 44 ]; do
  n=$((n + 1)); [ $n -lt 300 ] || exit 1; usleep 100000
done
sleep 6";

struct Made {
    state: State,
    volume: Option<String>,
    /// It ran, and wrote something.
    ran: bool,
}

struct Planner<'a> {
    rng: StdRng,
    /// What the images to load and pull show.
    sources: &'a [Tree],
    images: BTreeMap<String, Tree>,
    containers: BTreeMap<String, Made>,
    volumes: BTreeSet<String>,
    networks: BTreeSet<String>,
    count: usize,
    files: Vec<(String, Vec<u8>)>,
}

/// A plan of so many rounds for images that show `sources`; the second part are the files that its
/// commands read, beside those of the images.
pub fn plan(seed: u64, rounds: usize, sources: &[Tree]) -> (Plan, Vec<(String, Vec<u8>)>) {
    let mut planner = Planner {
        rng: StdRng::seed_from_u64(seed),
        sources,
        images: BTreeMap::new(),
        containers: BTreeMap::new(),
        volumes: BTreeSet::new(),
        networks: BTreeSet::new(),
        count: 0,
        files: Vec::new(),
    };
    let mut commands = Vec::new();
    let mut deck = Vec::new();
    for _ in 0..rounds {
        deck.extend(ROUND.iter().flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count)));
        while !deck.is_empty() {
            // What takes everything away comes late.
            let is_early = |kind| kind == Kind::Prune && deck.len() > 5;
            let possible: Vec<usize> = (0..deck.len())
                .filter(|i| planner.is_possible(deck[*i]) && !is_early(deck[*i]))
                .collect();
            // What has lost all that it needs waits for the next round.
            let Some(i) = possible.choose(&mut planner.rng) else { break };
            let kind = deck.swap_remove(*i);
            commands.push(planner.command(kind));
        }
    }
    (Plan { seed, commands }, planner.files)
}

impl Planner<'_> {
    fn is_possible(&self, kind: Kind) -> bool {
        match kind {
            Kind::Load | Kind::Pull | Kind::Import | Kind::Volume | Kind::Network => true,
            // Early on there is nothing to settle.
            Kind::Settle => self.count > 8,
            Kind::Build | Kind::Tag | Kind::Create | Kind::Prune => !self.images.is_empty(),
            Kind::Run => self.images.values().any(has_shell),
            Kind::Untag => self.images.len() > 1,
            Kind::Commit => self.containers.values().any(|made| made.ran),
            Kind::Remove => !self.containers.is_empty(),
            Kind::VolumeGone => !self.free_volumes().is_empty(),
            Kind::NetworkGone => !self.networks.is_empty(),
        }
    }

    fn free_volumes(&self) -> Vec<String> {
        let used =
            |name: &str| self.containers.values().any(|made| made.volume.as_deref() == Some(name));
        self.volumes.iter().filter(|name| !used(name)).cloned().collect()
    }

    fn pick<T: Clone>(&mut self, from: impl IntoIterator<Item = T>) -> T {
        let all: Vec<T> = from.into_iter().collect();
        all.choose(&mut self.rng).expect("is_possible has looked").clone()
    }

    fn word(&mut self) -> String {
        format!("w{:08x}", self.rng.random::<u32>())
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(1..most)];
        self.rng.fill(&mut bytes[..]);
        bytes
    }

    fn image(&mut self, what: &str, script: String, tag: String, tree: Tree) -> Command {
        let former = self.images.insert(tag.clone(), tree.clone());
        // What is there already need not be written, and then carries nothing else to the disk.
        let durable = if former.as_ref() == Some(&tree) { Durable::Itself } else { Durable::All };
        let state = Some(State { tree, ..State::default() });
        let effects = vec![Effect { object: Object::Image(tag), state }];
        Command { what: what.into(), script, durable, effects }
    }

    fn command(&mut self, kind: Kind) -> Command {
        self.count += 1;
        let n = self.count;
        match kind {
            Kind::Load => {
                let i = self.rng.random_range(0..self.sources.len());
                let tree = self.sources[i].clone();
                self.image("load", format!("gantry load -i $D/image{i}.tar"), loaded(i), tree)
            }
            Kind::Pull => {
                let i = self.rng.random_range(0..self.sources.len());
                let (tag, tree) = (pulled(i), self.sources[i].clone());
                self.image("pull", format!("gantry pull {tag}"), tag, tree)
            }
            Kind::Import => self.import(n),
            Kind::Build => self.build(n),
            Kind::Tag => self.tag(n),
            Kind::Untag => {
                let tag = self.pick(self.images.keys().cloned().collect::<Vec<_>>());
                self.images.remove(&tag);
                // By force: a container may use it.
                gone("rmi", format!("gantry rmi -f {tag}"), [Object::Image(tag)])
            }
            Kind::Create => self.create(n),
            Kind::Run => self.run(n),
            Kind::Commit => {
                let ran: Vec<String> =
                    self.containers.iter().filter(|c| c.1.ran).map(|c| c.0.clone()).collect();
                let name = self.pick(ran);
                let (tag, tree) =
                    (format!("committed{n}:v1"), self.containers[&name].state.tree.clone());
                self.image("commit", format!("gantry commit {name} {tag}"), tag, tree)
            }
            Kind::Remove => {
                let name = self.pick(self.containers.keys().cloned().collect::<Vec<_>>());
                self.containers.remove(&name);
                gone("rm", format!("gantry rm {name}"), [Object::Container(name)])
            }
            Kind::Volume | Kind::VolumeGone | Kind::Network | Kind::NetworkGone => {
                self.named(kind, n)
            }
            Kind::Prune => self.prune(),
            Kind::Settle => Command {
                what: "settle".into(),
                script: SETTLE.into(),
                durable: Durable::All,
                effects: Vec::new(),
            },
        }
    }

    fn tag(&mut self, n: usize) -> Command {
        let from = self.pick(self.images.keys().cloned().collect::<Vec<_>>());
        let tree = self.images[&from].clone();
        // A new name, or one that another image loses.
        let old: Vec<_> = self.images.keys().filter(|tag| **tag != from).cloned().collect();
        let moved = !old.is_empty() && self.rng.random_bool(0.4);
        let to = if moved { self.pick(old) } else { format!("tagged{n}:v1") };
        self.image("tag", format!("gantry tag {from} {to}"), to, tree)
    }

    /// Volumes and networks.
    fn named(&mut self, kind: Kind, n: usize) -> Command {
        match kind {
            Kind::Volume => {
                let name = format!("volume{n}");
                self.volumes.insert(name.clone());
                made(
                    "volume",
                    format!("gantry volume create {name}"),
                    Object::Volume(name),
                    State::default(),
                )
            }
            Kind::VolumeGone => {
                let name = self.pick(self.free_volumes());
                self.volumes.remove(&name);
                gone("volume rm", format!("gantry volume rm {name}"), [Object::Volume(name)])
            }
            Kind::Network => {
                let name = format!("network{n}");
                self.networks.insert(name.clone());
                let script = format!("gantry network create {name}");
                made("network", script, Object::Network(name), State::default())
            }
            _ => {
                let name = self.pick(self.networks.clone());
                self.networks.remove(&name);
                gone("network rm", format!("gantry network rm {name}"), [Object::Network(name)])
            }
        }
    }

    fn import(&mut self, n: usize) -> Command {
        let bytes = self.bytes(200_000);
        let tree = Tree::from([(IMPORTED.into(), super::guest::sum(&bytes))]);
        let tar = crate::fixtures::tar::TarStream::new().dir("d").file(IMPORTED, 0o644, &bytes);
        self.files.push((format!("rootfs{n}.tar"), tar.finish()));
        let (tag, script) =
            (format!("imported{n}:v1"), format!("gantry import $D/rootfs{n}.tar imported{n}:v1"));
        self.image("import", script, tag, tree)
    }

    fn build(&mut self, n: usize) -> Command {
        let from = self.pick(self.images.keys().cloned().collect::<Vec<_>>());
        let bytes = self.bytes(100_000);
        let mut tree = self.images[&from].clone();
        tree.insert(format!("d/built{n}"), super::guest::sum(&bytes));
        let dockerfile = format!("FROM {from}\nCOPY file /d/built{n}\n");
        self.files.push((format!("build{n}/Dockerfile"), dockerfile.into_bytes()));
        self.files.push((format!("build{n}/file"), bytes));
        let script = format!("gantry build -t built{n}:v1 $D/build{n}");
        self.image("build", script, format!("built{n}:v1"), tree)
    }

    fn create(&mut self, n: usize) -> Command {
        let tag = self.pick(self.images.keys().cloned().collect::<Vec<_>>());
        let name = format!("created{n}");
        let volume = (!self.volumes.is_empty()).then(|| self.pick(self.volumes.clone()));
        let option = volume.as_ref().map_or(String::new(), |volume| format!("-v {volume}:/v "));
        let script = format!("gantry create --name {name} --network none {option}{tag} /bin/true");
        let state = State { tree: self.images[&tag].clone(), ..State::default() };
        self.containers.insert(name.clone(), Made { state: state.clone(), volume, ran: false });
        made("create", script, Object::Container(name), state)
    }

    fn run(&mut self, n: usize) -> Command {
        let with_shell = self.images.iter().filter(|image| has_shell(image.1));
        let tag = self.pick(with_shell.map(|image| image.0.clone()).collect::<Vec<_>>());
        let (name, word) = (format!("ran{n}"), self.word());
        let script = format!(
            "gantry run --name {name} --network none {tag} sh -c 'echo {word} > /d/run{n}; rm -f /d/common'"
        );
        let mut state = State { tree: self.images[&tag].clone(), ..State::default() };
        state.tree.remove("d/common");
        state.tree.insert(format!("d/run{n}"), super::guest::sum(format!("{word}\n").as_bytes()));
        state.written = ["d/common".into(), format!("d/run{n}")].into();
        let entry = Made { state: state.clone(), volume: None, ran: true };
        self.containers.insert(name.clone(), entry);
        made("run", script, Object::Container(name), state)
    }

    /// Images that no container uses: all, once the containers are gone.
    fn prune(&mut self) -> Command {
        let containers = std::mem::take(&mut self.containers).into_keys().map(Object::Container);
        let images = std::mem::take(&mut self.images).into_keys().map(Object::Image);
        let objects: Vec<Object> = containers.chain(images).collect();
        gone("prune", "gantry container prune -f && gantry image prune -af".into(), objects)
    }
}

/// Imported images have nothing but their file.
pub(super) fn has_shell(tree: &Tree) -> bool {
    !tree.contains_key(IMPORTED)
}

/// The name that image `i` is loaded under.
pub fn loaded(i: usize) -> String {
    format!("image{i}:v1")
}

/// The name that image `i` is pulled by.
pub fn pulled(i: usize) -> String {
    format!("{REGISTRY}/image{i}:v1")
}

fn made(what: &str, script: String, object: Object, state: State) -> Command {
    let effects = vec![Effect { object, state: Some(state) }];
    Command { what: what.into(), script, durable: Durable::Itself, effects }
}

fn gone(what: &str, script: String, objects: impl IntoIterator<Item = Object>) -> Command {
    let effects = objects.into_iter().map(|object| Effect { object, state: None }).collect();
    Command { what: what.into(), script, durable: Durable::Later, effects }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_seed_gives_one_plan_and_every_kind_of_command() {
        let sources = vec![Tree::from([("d/common".into(), "x".into())]); IMAGES];
        for seed in 0..50 {
            let (first, files) = plan(seed, 3, &sources);
            let (again, same) = plan(seed, 3, &sources);
            assert_eq!(
                serde_json::to_string(&first).unwrap(),
                serde_json::to_string(&again).unwrap()
            );
            assert_eq!(files, same);
            let kinds: BTreeSet<&str> = first.commands.iter().map(|c| c.what.as_str()).collect();
            assert!(kinds.len() == ROUND.len(), "seed {seed}: {kinds:?}");
        }
        let other = plan(51, 2, &sources).0;
        assert_ne!(format!("{:?}", plan(50, 2, &sources).0), format!("{other:?}"));
    }
}
