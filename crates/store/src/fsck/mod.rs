//! `fsck`: everything that is in the store is looked at, and made whole again where that is asked for.
//!
//! A repair works in passes: what was found is mended, and the next pass looks at all of it again. Only
//! what a later look does not find any more counts as repaired.

mod check;
mod mend;
mod references;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use store_api::{Finding, FsckReport, FsckRequest, RegistryAccess, Result};
use types::{Digest, ErrorKind};

use self::check::{Checked, SnapshotName, User, Users};
use crate::{Local, Purpose, db::Table, snapshots::Damage, transfer};

/// Passes of a repair at most: an index leads to manifests, these to layers, and those to snapshots.
const PASSES: usize = 6;

/// What a finding is about, as far as a repair can do something about it.
#[derive(Clone, Debug)]
enum Fault {
    /// A blob that is damaged or missing.
    Blob(Digest),
    Snapshot {
        ns: String,
        key: String,
        damage: Damage,
    },
    /// The file of a record.
    Record {
        table: Table,
        key: String,
    },
    /// The index of a snapshot's children.
    Child {
        ns: String,
        parent: String,
        child: String,
    },
    /// A link that leads nowhere.
    Link(PathBuf),
    /// The database, which was made again in memory.
    Database,
    /// Nothing that a repair does.
    Other,
}

/// Where a blob can be had from, and what is known of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    /// `HOST/PATH` of the repositories that have it.
    pub(crate) repositories: BTreeSet<String>,
    /// A manifest or index.
    pub(crate) is_document: bool,
    /// Bytes; 0: not known.
    pub(crate) size: u64,
    /// Those that see it, or should.
    pub(crate) namespaces: BTreeSet<String>,
}

/// What a repair asks for blobs.
struct Registries<'r> {
    request: &'r FsckRequest,
    /// Those that did not answer: each has cost its time-out once.
    silent: BTreeSet<String>,
}

/// # Errors
/// When something cannot be looked at at all, or what was repaired cannot be made durable: then nothing
/// counts as repaired. A repair of a store that was opened for a look is refused.
pub(crate) async fn fsck(local: &Local, request: FsckRequest) -> Result<FsckReport> {
    if request.repair && local.core.purpose == Purpose::Check {
        let text = "repair a store that was opened to be looked at: open it for a repair";
        return Err(store_api::Error::new(ErrorKind::FailedPrecondition, text));
    }
    let _alone = local.core.async_flights.enter("fsck").await;
    let mut registries = Registries { request: &request, silent: BTreeSet::new() };
    let mut checked = local.heavy(|core, _| core.fsck_check()).await?;
    if !request.repair {
        return Ok(report(&checked, Vec::new()));
    }
    // By object and problem: how it was told of first, and why it could not be mended.
    let mut seen: BTreeMap<(String, String), Finding> = BTreeMap::new();
    // What failed is tried again once something else was made whole, on which it may have waited.
    let mut progress = true;
    for _ in 0..PASSES {
        let before = problems(&checked);
        let mut tried = false;
        for (fault, finding) in &checked.findings {
            let key = (finding.object.clone(), finding.problem.clone());
            if matches!(fault, Fault::Other) || (seen.contains_key(&key) && !progress) {
                continue;
            }
            tried = true;
            let mut finding = finding.clone();
            if let Err(error) = mend(local, &mut registries, &checked, fault).await {
                finding.remedy = format!("{}; the repair failed: {error}", finding.remedy);
            }
            seen.insert(key, finding);
        }
        if !tried {
            break;
        }
        local.heavy(|core, _| core.relabel()).await?;
        // Files that took the place of others have no record that a flush would write.
        local.heavy(|core, _| core.db.flush().and_then(|()| core.db.sync_files())).await?;
        checked = local.heavy(|core, _| core.fsck_check()).await?;
        progress = !before.is_subset(&problems(&checked));
    }
    // What nothing is found about any more is whole; of the rest is told why.
    let left: BTreeSet<String> =
        checked.findings.iter().map(|(_, finding)| finding.object.clone()).collect();
    for (_, finding) in &mut checked.findings {
        let told = seen.iter().find(|((object, _), _)| *object == finding.object);
        if let Some((_, told)) = told {
            finding.remedy.clone_from(&told.remedy);
        }
    }
    let repaired = seen.into_values().filter(|finding| !left.contains(&finding.object));
    let repaired = repaired.map(|finding| Finding { repaired: true, ..finding }).collect();
    Ok(report(&checked, repaired))
}

/// What is found, by object and problem.
fn problems(checked: &Checked) -> BTreeSet<(String, String)> {
    let of = |finding: &Finding| (finding.object.clone(), finding.problem.clone());
    checked.findings.iter().map(|(_, finding)| of(finding)).collect()
}

fn report(checked: &Checked, repaired: Vec<Finding>) -> FsckReport {
    let mut findings = repaired;
    findings.extend(checked.findings.iter().map(|(_, finding)| finding.clone()));
    findings.sort();
    let more = findings.len().saturating_sub(FsckReport::FINDINGS);
    findings.truncate(FsckReport::FINDINGS);
    FsckReport {
        blobs: checked.blobs,
        bytes: checked.bytes,
        snapshots: checked.snapshots,
        images: checked.images,
        findings,
        more: u64::try_from(more).unwrap_or(u64::MAX),
    }
}

async fn mend(
    local: &Local,
    registries: &mut Registries<'_>,
    checked: &Checked,
    fault: &Fault,
) -> Result<()> {
    if let Fault::Blob(digest) = fault {
        return blob(local, registries, checked, digest).await;
    }
    let busy = busy(local).await?;
    let (fault, sources) = (fault.clone(), checked.sources.clone());
    local.heavy(move |core, _| core.fsck_mend(&fault, &sources, &busy)).await
}

/// Gets a blob from a layer's tar that is the same, or from a registry; what has other bytes than its
/// digest says and cannot be had is moved aside.
async fn blob(
    local: &Local,
    registries: &mut Registries<'_>,
    checked: &Checked,
    digest: &Digest,
) -> Result<()> {
    let origin = checked.origins.get(digest).cloned().unwrap_or_default();
    let (wanted, of) = (digest.clone(), origin.clone());
    if local.heavy(move |core, _| core.blob_from_here(&wanted, &of)).await? {
        return Ok(());
    }
    let mut last = store_api::Error::not_found("registry that has content", digest);
    for repository in &origin.repositories {
        let registry = registry_of(repository);
        if registries.silent.contains(registry) {
            let text = format!("{registry} did not answer, and is not asked again");
            last = store_api::Error::new(ErrorKind::Unavailable, text);
            continue;
        }
        let fetched = match access_to(repository, registries.request).await {
            Ok(access) => transfer::refetch(local, digest, &origin, repository, &access).await,
            Err(error) => Err(error.into()),
        };
        match fetched {
            Ok(()) => return Ok(()),
            Err(transfer::Failed { error, silent }) => {
                if silent {
                    registries.silent.insert(registry.to_string());
                }
                last = store_api::Error::new(error.kind, format!("{repository}: {}", error.message))
            }
        }
    }
    let damaged = digest.clone();
    local.heavy(move |core, _| core.set_aside(&damaged)).await?;
    Err(last)
}

/// `HOST[:PORT]` of a repository.
fn registry_of(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

/// A registry is told the credentials that are its own, and no other's.
async fn access_to(repository: &str, request: &FsckRequest) -> Result<RegistryAccess> {
    let Some(logins) = request.logins.clone() else { return Ok(request.access.clone()) };
    let registry = registry_of(repository).to_string();
    let found = tokio::task::spawn_blocking(move || logins.of(&registry)).await;
    let credentials = found.map_err(|error| {
        store_api::Error::internal(format!("credentials for {repository}: {error}"))
    })??;
    Ok(RegistryAccess { credentials, ..request.access.clone() })
}

/// Snapshots that something may mount at any moment: those of containers with a task, and writable ones
/// and views that belong to no container. While nothing is served nobody is told what to mount; what is
/// mounted is looked up right before an exchange, whoever mounted it.
async fn busy(local: &Local) -> Result<BTreeSet<SnapshotName>> {
    if local.core.purpose != Purpose::Serve {
        return Ok(BTreeSet::new());
    }
    let Users { containers, mut snapshots } = local.heavy(|core, _| core.users()).await?;
    for User { ns, id, snapshot } in containers {
        if !local.tasks.has_task(&ns, &id) {
            snapshots.remove(&(ns, snapshot));
        }
    }
    Ok(snapshots)
}
