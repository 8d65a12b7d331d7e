//! The looking.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use store_api::{Finding, ResourceKind};
use types::{Algorithm, Digest};

use super::{Fault, Origin};
use crate::{
    Core,
    containers::ContainerRecord,
    content::{ContentRecord, DAMAGED},
    db::{self, Mismatch, Table, lock},
    error::{Error, Result},
    leases::LeaseRecord,
    snapshots::{Damage, Kind, LayerSource, SnapshotRecord, child_key},
};

/// What lies in a store's root.
const ROOT_NAMES: [&str; 9] =
    ["meta.db", "records", "content", "snapshots", "l", "trash", "tmp", DAMAGED, "meta.rebuilding"];

/// Layers by namespace and diffID.
pub(super) type Sources = BTreeMap<(String, Digest), LayerSource>;

/// What one look found.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) findings: Vec<(Fault, Finding)>,
    pub(super) blobs: u64,
    pub(super) bytes: u64,
    pub(super) snapshots: u64,
    pub(super) images: u64,
    pub(super) origins: BTreeMap<Digest, Origin>,
    pub(super) sources: Sources,
}

impl Checked {
    pub(super) fn add(
        &mut self,
        fault: Fault,
        object: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let finding = Finding {
            object: object.into(),
            problem: problem.into(),
            remedy: remedy.into(),
            repaired: false,
        };
        self.findings.push((fault, finding));
    }

    /// The words for a blob that is damaged or missing.
    pub(super) fn blob(&mut self, digest: &Digest, problem: impl Into<String>) {
        let from = self.origins.get(digest).map(|origin| &origin.repositories);
        let remedy = match from.and_then(|from| from.first()) {
            Some(from) => format!("repair fetches it from {from}, as does the next pull"),
            None => "repair moves it aside; pull or load its image again".to_string(),
        };
        self.add(Fault::Blob(digest.clone()), format!("content {digest}"), problem, remedy);
    }
}

/// Runs `work` for every item, on as many threads as there are cores.
fn parallel<'i, T: Sync>(items: &'i [T], work: impl Fn(&'i T) + Sync) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

impl Core {
    /// Looks at everything once.
    pub(super) fn fsck_check(&self) -> Result<Checked> {
        let mut checked = Checked::default();
        // First what leads where, so that each finding can say where the thing comes from.
        for ns in self.namespaces() {
            self.trace_images(&ns, &mut checked)?;
        }
        self.check_blobs(&mut checked)?;
        for ns in self.namespaces() {
            self.check_references(&ns, &mut checked)?;
        }
        self.check_snapshots(&mut checked)?;
        self.check_records(&mut checked)?;
        if self.rebuilt.load(Ordering::Relaxed) {
            let aside = names(&self.root)?.into_iter().rfind(|name| name.starts_with(db::DAMAGED));
            let kept = aside.map_or(String::new(), |name| format!(" (one is kept as {name})"));
            checked.add(
                Fault::Database,
                format!("database {}", self.root.join("meta.db").display()),
                format!(
                    "it is missing or damaged{kept}; what is told here is what the records beside it say"
                ),
                "repair makes it again from them, as does the next start of the daemon",
            );
        }
        self.check_strays(&mut checked)?;
        Ok(checked)
    }

    /// Every blob's size and bytes against its records and its digest.
    fn check_blobs(&self, checked: &mut Checked) -> Result<()> {
        let mut records: BTreeMap<Digest, u64> = BTreeMap::new();
        let (files, others) = {
            // Under the lock of those that change a file and its records together.
            let _blobs = lock(&self.blobs);
            for ns in self.namespaces() {
                for (name, record) in self.db.list::<ContentRecord>(Table::Content, &ns)? {
                    match name.parse::<Digest>() {
                        Ok(digest) => {
                            checked.origin(&digest, &ns, &record);
                            records.insert(digest, record.size);
                        }
                        Err(_) => checked.add(
                            Fault::Other,
                            format!("content {ns}/{name}"),
                            "its record's name is no digest",
                            "nothing can read it; report this as a bug",
                        ),
                    }
                }
            }
            self.blob_entries()?
        };
        for (digest, kind) in &others {
            checked.blob(digest, format!("it is {kind}, not a regular file"));
        }
        checked.blobs = u64::try_from(files.len()).unwrap_or(u64::MAX);
        checked.bytes = files.values().sum();
        for (digest, size) in &records {
            if others.contains_key(digest) {
                continue;
            }
            if !files.contains_key(digest) {
                checked.blob(digest, "its file is missing");
            } else if files.get(digest) != Some(size) {
                let have = files.get(digest).copied().unwrap_or(0);
                checked.blob(digest, format!("it has {have} bytes, its record says {size}"));
            }
        }
        let whole: Vec<&Digest> =
            files.iter().filter(|(d, n)| records.get(d) == Some(n)).map(|(d, _)| d).collect();
        let bad = Mutex::new(Vec::new());
        parallel(&whole, |digest| {
            let problem = match self.is_whole(digest) {
                Ok(true) => return,
                Ok(false) => "its bytes are not those of its digest".into(),
                // It was removed meanwhile.
                Err(error) if error.is_not_found() => return,
                Err(error) => format!("it cannot be read: {}", store_api::Error::from(error)),
            };
            lock(&bad).push(((*digest).clone(), problem));
        });
        let mut bad = bad.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        bad.sort();
        for (digest, problem) in bad {
            checked.blob(&digest, problem);
        }
        for digest in files.keys().filter(|digest| !records.contains_key(digest)) {
            checked.add(
                Fault::Other,
                format!("content {digest}"),
                "no namespace has it",
                "the next start of the daemon removes it",
            );
        }
        self.check_blob_names(checked)
    }

    fn check_blob_names(&self, checked: &mut Checked) -> Result<()> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.root.join("content/blobs").join(algorithm.name());
            for name in names(&directory)? {
                if format!("{}:{name}", algorithm.name()).parse::<Digest>().is_err() {
                    stray(checked, &directory.join(name), "its name is no digest");
                }
            }
        }
        Ok(())
    }

    fn check_snapshots(&self, checked: &mut Checked) -> Result<()> {
        let mut all: Vec<(String, String, SnapshotRecord)> = Vec::new();
        let mut kinds = BTreeMap::new();
        for ns in self.namespaces() {
            let records = self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)?;
            kinds.extend(records.iter().map(|(key, r)| ((ns.clone(), key.clone()), r.kind)));
            self.check_parents(&ns, &records, checked)?;
            all.extend(records.into_iter().map(|(key, record)| (ns.clone(), key, record)));
        }
        checked.snapshots = u64::try_from(all.len()).unwrap_or(u64::MAX);
        let found = Mutex::new(Vec::new());
        let sources = &checked.sources;
        parallel(&all, |(ns, key, record)| {
            let outcome = self
                .sources_of(sources, ns, key, record)
                .and_then(|sources| self.snapshot_damage(ns, key, record, &sources));
            lock(&found).push((ns, key, outcome));
        });
        let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Those below first: a layer is extracted on them.
        found.sort_by_cached_key(|(ns, key, _)| {
            (self.snapshot_parents(ns, key).map_or(0, |parents| parents.len()), *ns, *key)
        });
        let mut told = Vec::new();
        for (ns, key, outcome) in found {
            match outcome {
                Ok(damages) => told.extend(damages.into_iter().map(|damage| (ns, key, damage))),
                // It was removed meanwhile, or its blob is damaged, which is told of by itself.
                Err(error) if error.is_not_found() || error.is_data_loss() => {}
                Err(error) => {
                    let error = store_api::Error::from(error);
                    checked.add(
                        Fault::Other,
                        format!("snapshot {ns}/{key}"),
                        format!("it could not be checked: {error}"),
                        "see to what the error says, and check again",
                    );
                }
            }
        }
        for (ns, key, damage) in told {
            let kind = kinds.get(&(ns.clone(), key.clone())).copied().unwrap_or(Kind::Committed);
            snapshot(checked, (ns, key, kind), damage);
        }
        Ok(())
    }

    fn check_parents(
        &self,
        ns: &str,
        records: &[(String, SnapshotRecord)],
        checked: &mut Checked,
    ) -> Result<()> {
        let mut wanted = BTreeSet::new();
        for (key, record) in records {
            let Some(parent) = &record.parent else { continue };
            wanted.insert(child_key(parent, key));
            if !self.has_snapshot(ns, parent)? {
                let remedy = match record.kind {
                    Kind::Active => "pull its image again, to which what was written here belongs",
                    _ => "the next start of the daemon takes it out; then pull its image again",
                };
                checked.add(
                    Fault::Other,
                    format!("snapshot {ns}/{key}"),
                    format!("its parent {parent} is missing"),
                    remedy,
                );
            }
        }
        let present: BTreeSet<String> =
            self.db.names(Table::Children, ns, "")?.into_iter().collect();
        for pair in wanted.symmetric_difference(&present) {
            let Some((parent, child)) = pair.split_once('\0') else { continue };
            let there = present.contains(pair);
            // It came or went meanwhile.
            let now = self.db.get::<SnapshotRecord>(Table::Snapshots, ns, child)?;
            if now.is_some_and(|record| record.parent.as_deref() == Some(parent)) == there {
                continue;
            }
            checked.add(
                Fault::Child { ns: ns.into(), parent: parent.into(), child: child.into() },
                format!("snapshot {ns}/{parent}"),
                format!("its list of children is wrong about {child}"),
                "repair puts it right",
            );
        }
        Ok(())
    }

    fn check_records(&self, checked: &mut Checked) -> Result<()> {
        for mismatch in self.db.mismatches()? {
            match mismatch {
                Mismatch::Differs { table, key, path, why } => {
                    let name = key.replacen('\0', "/", 1);
                    checked.add(
                        Fault::Record { table, key },
                        format!("record {}/{}", table.name(), name.trim_end_matches('/')),
                        format!("its file {}: {why}", path.display()),
                        "repair writes it again from the database",
                    );
                }
                Mismatch::Stray(path) if db::is_damaged(&path)? => {
                    stray(
                        checked,
                        &path,
                        "it is no record that can be read, and the database has none for it",
                    );
                }
                Mismatch::Stray(path) => {
                    stray(checked, &path, "the database has no such record");
                }
            }
        }
        Ok(())
    }

    /// Files and directories that belong to nothing.
    fn check_strays(&self, checked: &mut Checked) -> Result<()> {
        let mut used = BTreeSet::new();
        for ns in self.namespaces() {
            let records = self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)?;
            used.extend(records.into_iter().map(|(_, record)| record.id));
        }
        let directory = self.root.join("snapshots");
        for name in names(&directory)? {
            match name.parse::<u64>() {
                Ok(id) if used.contains(&id) || self.disk.is_in_work(id) => {}
                Ok(id) if !self.disk.directory(id).exists() => {}
                Ok(_) => checked.add(
                    Fault::Other,
                    directory.join(name).display().to_string(),
                    "no snapshot has this directory",
                    "the next start of the daemon removes it",
                ),
                Err(_) => stray(checked, &directory.join(name), "no snapshot has it"),
            }
        }
        let links = self.root.join("l");
        for name in names(&links)? {
            let path = links.join(name);
            if !path.exists() && path.is_symlink() {
                checked.add(
                    Fault::Link(path.clone()),
                    path.display().to_string(),
                    "the link leads nowhere",
                    "repair removes it",
                );
            }
        }
        for name in names(&self.root)? {
            let path = self.root.join(&name);
            // A database that was found damaged is told of with its repair.
            if !name.starts_with(db::DAMAGED) && !ROOT_NAMES.contains(&name.as_str()) {
                stray(checked, &path, "it is none of the store's");
            }
        }
        let aside = self.root.join(DAMAGED);
        if aside.is_dir() {
            for name in names(&aside)? {
                stray(checked, &aside.join(name), "it was found damaged, and moved aside");
            }
        }
        Ok(())
    }

    /// The blobs that a snapshot's files are made of, the lowest first: its layer's, or of a whole directory
    /// those of all layers. None, where one is not known.
    pub(super) fn sources_of<'s>(
        &self,
        sources: &'s Sources,
        ns: &str,
        key: &str,
        record: &SnapshotRecord,
    ) -> Result<Vec<&'s LayerSource>> {
        let mut found = Vec::new();
        let mut chain = vec![key.to_string()];
        if record.full {
            chain.extend(self.snapshot_parents(ns, key)?);
        }
        for key in chain.iter().rev() {
            let record = self.snapshot_record(ns, key)?;
            match source_of(sources, ns, key, &record) {
                Some(source) => found.push(source),
                None => return Ok(Vec::new()),
            }
        }
        Ok(found)
    }

    /// Leases and containers of a namespace that name what is not there.
    pub(super) fn check_holders(&self, ns: &str, checked: &mut Checked) -> Result<()> {
        for (id, container) in self.db.list::<ContainerRecord>(Table::Containers, ns)? {
            let key = container.snapshot_key;
            if !key.is_empty() && !self.has_snapshot(ns, &key)? {
                checked.add(
                    Fault::Other,
                    format!("container {ns}/{id}"),
                    format!("its snapshot {key} is missing"),
                    "its files are lost; remove the container and create it again",
                );
            }
        }
        for (id, lease) in self.db.list::<LeaseRecord>(Table::Leases, ns)? {
            for (kind, name) in lease.resources {
                let there = match kind {
                    ResourceKind::Content => {
                        self.db.get::<ContentRecord>(Table::Content, ns, &name)?.is_some()
                    }
                    ResourceKind::Snapshot => self.has_snapshot(ns, &name)?,
                    // One may be leased before it is begun.
                    ResourceKind::Ingest => true,
                };
                if !there {
                    checked.add(
                        Fault::Other,
                        format!("lease {ns}/{id}"),
                        format!("it holds {name}, which is missing"),
                        "what needs it makes it again; the lease goes with its owner",
                    );
                }
            }
        }
        Ok(())
    }

    /// All that could have something mounted.
    pub(super) fn users(&self) -> Result<Users> {
        let mut users = Users::default();
        for ns in self.namespaces() {
            for (key, record) in self.db.list::<SnapshotRecord>(Table::Snapshots, &ns)? {
                if record.kind != Kind::Committed {
                    users.snapshots.insert((ns.clone(), key));
                }
            }
            for (id, record) in self.db.list::<ContainerRecord>(Table::Containers, &ns)? {
                users.containers.push(User { ns: ns.clone(), id, snapshot: record.snapshot_key });
            }
        }
        Ok(users)
    }
}

/// Namespace and key of a snapshot.
pub(super) type SnapshotName = (String, String);

#[derive(Default)]
pub(super) struct Users {
    pub(super) containers: Vec<User>,
    /// Snapshots that can be mounted.
    pub(super) snapshots: BTreeSet<SnapshotName>,
}

/// A container.
pub(super) struct User {
    pub(super) ns: String,
    pub(super) id: String,
    pub(super) snapshot: String,
}

/// What is in a directory, in order; nothing is in one that is gone.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", directory))?,
    };
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let names: std::io::Result<BTreeSet<String>> = entries.map(|entry| entry.map(name)).collect();
    Ok(names.map_err(Error::io("list", directory))?.into_iter().collect())
}

fn stray(checked: &mut Checked, path: &Path, problem: &str) {
    let remedy = "look at it, and remove it by hand if nothing of yours needs it";
    checked.add(Fault::Other, path.display().to_string(), problem, remedy);
}

/// The blob of a snapshot's layer: by the packed layer's diffID, or the one that with the parent's name
/// gives the snapshot's.
fn source_of<'s>(
    sources: &'s Sources,
    ns: &str,
    key: &str,
    record: &SnapshotRecord,
) -> Option<&'s LayerSource> {
    if let Some(packed) = &record.packed {
        return sources.get(&(ns.to_string(), packed.diff_id.clone()));
    }
    if record.kind != Kind::Committed {
        return None;
    }
    let name: Digest = key.parse().ok()?;
    let Some(parent) = &record.parent else { return sources.get(&(ns.to_string(), name)) };
    let mut of_namespace = sources.iter().filter(|((of, _), _)| of == ns);
    let found = of_namespace
        .find(|((_, diff_id), _)| Digest::sha256(format!("{parent} {diff_id}")) == name);
    found.map(|(_, source)| source)
}

fn snapshot(checked: &mut Checked, (ns, key, kind): (&str, &str, Kind), damage: Damage) {
    let (problem, remedy) = match &damage {
        Damage::Gone if kind != Kind::Committed => (
            "its directory is missing".to_string(),
            "what was written there is lost: remove the container, and create it again",
        ),
        Damage::Gone => {
            ("its directory is missing".to_string(), "repair makes it again from its layer's blob")
        }
        Damage::Tar(why) => (why.clone(), "repair makes it again from the layer's blob"),
        Damage::Made(name) => (
            format!("{name} is not what its layer's tar gives"),
            "repair makes it again from the tar",
        ),
        Damage::Directory(what) => (
            format!("it is not what its layer holds: {what}"),
            "stop the containers of the image, and repair: it is extracted again",
        ),
    };
    let fault = Fault::Snapshot { ns: ns.into(), key: key.into(), damage };
    checked.add(fault, format!("snapshot {ns}/{key}"), problem, remedy);
}
