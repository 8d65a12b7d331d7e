use registry::Target;
use store_api::{Error, Labels, RegistryAccess, ResourceKind, Result, WriteRequest};
use types::{Digest, ImageRef, limits};

use super::{SOURCE, WRITE_BYTES, credentials, refused};
use crate::{Local, content::Writer, fsck::Origin};

/// Why a blob could not be had.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// Nobody answers, or no more: it would be the same with every other blob.
    pub(crate) silent: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, silent: false }
    }
}

fn failed(error: registry::Error) -> Failed {
    let silent = matches!(error, registry::Error::Transport { .. });
    Failed { error: refused(error), silent }
}

/// Brings a blob that is missing or damaged from a repository, `HOST/PATH`, and puts it in place of what
/// is there, for every namespace that has it.
///
/// # Errors
/// When the repository does not have it, or sends something else.
pub(crate) async fn refetch(
    local: &Local,
    digest: &Digest,
    origin: &Origin,
    from: &str,
    access: &RegistryAccess,
) -> Result<(), Failed> {
    let reference: ImageRef = from
        .parse()
        .map_err(|error| Error::invalid(format!("repository {from:?} of a label: {error}")))?;
    let reference = reference.with_digest(digest.clone());
    let client = local.client(access, Some(&reference))?;
    let repository = client.pull(&reference, credentials(access)).await.map_err(failed)?;
    let name = format!("fsck-{}-{digest}", crate::random_name());
    let size = origin.size;
    let ns = origin.namespaces.first().cloned().unwrap_or_else(|| local.ns.to_string());
    let request = WriteRequest { reference: name.clone(), total: size, expected: None };
    let of = Local { ns: ns.into(), ..local.clone() };
    let pins = of.core.guard.pins(&of.ns);
    pins.add(ResourceKind::Ingest, &name);
    of.quick(move |core, ns| core.open_writer(ns, &request, Writer::Store)).await?;
    let received = receive(&of, &repository, digest, origin, &name).await;
    let key = format!("{SOURCE}.{}", reference.domain());
    let labels = Labels::from([(key, reference.path().to_string())]);
    let (expected, reference) = (digest.clone(), name.clone());
    let committed = match received {
        Ok(()) => of
            .heavy(move |core, ns| {
                match core.ingest_commit(ns, &reference, 0, Some(&expected), labels) {
                    Err(error) if error.is_already_exists() => Ok(()),
                    other => other.map(drop),
                }
            })
            .await
            .map_err(Failed::from),
        Err(failed) => Err(failed),
    };
    if committed.is_err() {
        // The failure is what is told. An ingest that stays expires.
        let aborted = of.quick(move |core, ns| core.ingest_abort(ns, &name)).await;
        if let Err(error) = aborted.or_else(gone_already) {
            tracing::warn!(%digest, error = %error, "an unfinished download stays behind");
        }
    }
    committed?;
    for ns in origin.namespaces.iter().skip(1) {
        let of = Local { ns: ns.as_str().into(), ..local.clone() };
        let digest = digest.clone();
        of.heavy(move |core, ns| share(core, ns, &digest)).await?;
    }
    Ok(())
}

/// A commit that fails late has removed its ingest.
fn gone_already(error: Error) -> Result<()> {
    if error.is_not_found() { Ok(()) } else { Err(error) }
}

/// Makes a blob that another namespace has visible in this one.
fn share(core: &crate::Core, ns: &str, digest: &Digest) -> crate::error::Result<()> {
    let reference = format!("fsck-{}-{digest}", crate::random_name());
    let request =
        WriteRequest { reference: reference.clone(), total: 0, expected: Some(digest.clone()) };
    let done = core
        .open_writer(ns, &request, Writer::Store)
        .and_then(|_| core.ingest_commit(ns, &reference, 0, Some(digest), Labels::new()));
    match done {
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

async fn receive(
    local: &Local,
    repository: &registry::Repository,
    digest: &Digest,
    origin: &Origin,
    name: &str,
) -> Result<(), Failed> {
    let mut offset = 0;
    let mut write = async |bytes: bytes::Bytes| -> Result<()> {
        let name = name.to_string();
        offset = local.heavy(move |core, ns| core.ingest_write(ns, &name, offset, &bytes)).await?;
        Ok(())
    };
    if origin.is_document {
        let manifest = repository.get_manifest(Target::Digest(digest)).await.map_err(failed)?;
        if manifest.bytes.len() > limits::MANIFEST_BYTES {
            return Err(Error::invalid(format!("manifest {digest} is too large")).into());
        }
        return Ok(write(manifest.bytes).await?);
    }
    let size = (origin.size > 0).then_some(origin.size);
    let mut blob = repository.get_blob(digest, size, 0).await.map_err(failed)?;
    let mut buffer = bytes::BytesMut::with_capacity(WRITE_BYTES + (64 << 10));
    while let Some(chunk) = blob.chunk().await.map_err(failed)? {
        buffer.extend_from_slice(&chunk);
        if buffer.len() >= WRITE_BYTES {
            write(buffer.split().freeze()).await?;
        }
    }
    if buffer.is_empty() { Ok(()) } else { Ok(write(buffer.freeze()).await?) }
}
