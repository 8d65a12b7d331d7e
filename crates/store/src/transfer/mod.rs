//! Images in and out: registries and archives.

mod count;
mod export;
mod import;
mod old_docker;
mod pull;
mod push;
mod refetch;
mod resolve;
mod verify;

use std::sync::Mutex;

use registry::Client;
use store_api::{Credentials, Error, Fetched, Labels, RegistryAccess, Result};
use types::{Digest, ImageRef};

use crate::{
    Local,
    db::lock,
    error::{self, Error as Fail},
};

/// containerd's label that tells which repositories of a registry have a blob:
/// `containerd.io/distribution.source.HOST` = `path,path`.
pub(crate) const SOURCE: &str = "containerd.io/distribution.source";
/// Repositories remembered per blob and registry.
const SOURCES: usize = 8;
/// Bytes gathered before they are hashed and written in one go.
const WRITE_BYTES: usize = 1 << 20;

/// The client for the last configuration that was asked for: its certificates are read once.
#[derive(Default)]
pub(crate) struct Clients(Mutex<Option<(Key, Client)>>);

#[derive(PartialEq)]
struct Key {
    mirrors: Vec<String>,
    insecure: Vec<String>,
    certs_dirs: Vec<std::path::PathBuf>,
    attempts: u32,
    proxy: store_api::ProxyAccess,
}

impl Clients {
    fn get(&self, access: &RegistryAccess, reference: Option<&ImageRef>) -> Result<Client> {
        let mut insecure = access.insecure.clone();
        if let (true, Some(reference)) = (access.plain_http, reference) {
            insecure.push(reference.domain().to_string());
        }
        let key = Key {
            mirrors: access.mirrors.clone(),
            insecure,
            certs_dirs: access.certs_dirs.clone(),
            attempts: access.attempts,
            proxy: access.proxy.clone(),
        };
        let mut last = lock(&self.0);
        if let Some((_, client)) = last.as_ref().filter(|(present, _)| *present == key) {
            return Ok(client.clone());
        }
        let mut config =
            registry::Config { proxy: registry::Proxy::from_env(), ..registry::Config::default() };
        config.mirrors = key.mirrors.clone();
        config.insecure = key.insecure.clone();
        if !key.certs_dirs.is_empty() {
            config.certs_dirs = key.certs_dirs.clone();
        }
        if key.attempts > 0 {
            config.attempts = key.attempts;
        }
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        config.proxy.http = given(&key.proxy.http).or(config.proxy.http);
        config.proxy.https = given(&key.proxy.https).or(config.proxy.https);
        config.proxy.no_proxy = given(&key.proxy.except).unwrap_or(config.proxy.no_proxy);
        let client = Client::new(config).map_err(refused)?;
        *last = Some((key, client.clone()));
        Ok(client)
    }
}

impl Local {
    fn client(&self, access: &RegistryAccess, reference: Option<&ImageRef>) -> Result<Client> {
        if !access.headers.is_empty() {
            // They are a registry operator's own; no known registry acts on them.
            tracing::debug!("X-Meta headers are not passed on to the registry");
        }
        self.core.clients.get(access, reference)
    }
}

fn credentials(access: &RegistryAccess) -> registry::Credentials {
    match access.credentials.clone() {
        Some(Credentials { registry_token, .. }) if !registry_token.is_empty() => {
            registry::Credentials::RegistryToken { token: registry_token }
        }
        Some(Credentials { identity_token, .. }) if !identity_token.is_empty() => {
            registry::Credentials::IdentityToken { token: identity_token }
        }
        Some(Credentials { username, password, .. }) if !username.is_empty() => {
            registry::Credentials::Password { username, password }
        }
        _ => registry::Credentials::Anonymous,
    }
}

/// A registry's refusal in docker's words, with its causes.
fn refused(error: registry::Error) -> Error {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        message.push_str(": ");
        message.push_str(&plain(source));
        cause = source.source();
    }
    Error::new(error.kind(), message)
}

/// An error number's text as docker's programs print it: `connection refused`.
fn plain(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error.to_string();
    let number = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    let Some(number) = number else { return text };
    let text = text.strip_suffix(&format!(" (os error {number})")).unwrap_or(&text);
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

fn descriptor(of: &registry::Descriptor) -> store_api::Descriptor {
    let mut descriptor = store_api::Descriptor::new(&of.media_type, of.digest.clone(), of.size);
    descriptor.annotations.clone_from(&of.annotations);
    descriptor.platform.clone_from(&of.platform);
    descriptor
}

/// A repository to read from.
async fn repository(
    local: &Local,
    reference: &ImageRef,
    access: &RegistryAccess,
) -> Result<registry::Repository> {
    let client = local.client(access, Some(reference))?;
    client.pull(reference, credentials(access)).await.map_err(refused)
}

pub(crate) async fn resolve(
    local: &Local,
    reference: &ImageRef,
    access: &RegistryAccess,
) -> Result<store_api::Descriptor> {
    let repository = repository(local, reference, access).await?;
    let found = repository.head_manifest(registry::Target::of(reference)).await.map_err(refused)?;
    found.as_ref().map(descriptor).ok_or_else(|| Error::not_found("manifest", reference))
}

pub(crate) async fn tags(
    local: &Local,
    reference: &ImageRef,
    access: &RegistryAccess,
) -> Result<Vec<String>> {
    let repository = repository(local, reference, access).await?;
    repository.list_tags().await.map_err(refused)
}

/// Writes to the file as the bytes come; what is there of it after a failure is removed.
pub(crate) async fn fetch(
    local: &Local,
    url: &str,
    (to, limit_bytes): (&std::path::Path, u64),
    access: &RegistryAccess,
) -> Result<Fetched> {
    let failed = |operation: &'static str, source| Error::from(Fail::io(operation, to)(source));
    let download = local.client(access, None)?.download(url).await.map_err(refused)?;
    let fetched =
        Fetched { last_modified: download.last_modified, file_name: download.file_name.clone() };
    let file = tokio::fs::File::options().write(true).create_new(true).open(to).await;
    let file = file.map_err(|error| failed("create", error))?;
    let written = write_download(download, file, limit_bytes, &failed).await;
    if written.is_err() {
        // The failure is what is told; the directory is emptied at the latest by the next start.
        tokio::fs::remove_file(to).await.ok();
    }
    written.map(|()| fetched)
}

async fn write_download(
    mut download: registry::Download,
    mut file: tokio::fs::File,
    limit_bytes: u64,
    failed: &(dyn Fn(&'static str, std::io::Error) -> Error + Sync),
) -> Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let mut left = limit_bytes;
    while let Some(chunk) = download.chunk().await.map_err(refused)? {
        left =
            left.checked_sub(u64::try_from(chunk.len()).unwrap_or(u64::MAX)).ok_or_else(|| {
                let text = format!("the download has more than {limit_bytes} bytes");
                Error::new(types::ErrorKind::ResourceExhausted, text)
            })?;
        file.write_all(&chunk).await.map_err(|error| failed("write", error))?;
    }
    file.flush().await.map_err(|error| failed("write", error))
}

pub(crate) async fn login(
    local: &Local,
    server: &str,
    access: &RegistryAccess,
) -> Result<Option<String>> {
    let client = local.client(access, None)?;
    let login = client.login(server, credentials(access)).await.map_err(refused)?;
    Ok(login.identity_token)
}

/// Remembers that a repository has these blobs: a push elsewhere on its registry mounts them.
fn remember_source(
    core: &crate::Core,
    ns: &str,
    reference: &ImageRef,
    blobs: &[Digest],
) -> error::Result<()> {
    let key = format!("{SOURCE}.{}", reference.domain());
    for digest in blobs {
        let record = match core.content_record(ns, digest) {
            Err(error) if error.is_not_found() => continue,
            other => other?,
        };
        let present = record.labels.get(&key).cloned().unwrap_or_default();
        let mut paths: Vec<&str> = present.split(',').filter(|path| !path.is_empty()).collect();
        if paths.contains(&reference.path()) {
            continue;
        }
        paths.push(reference.path());
        let from = paths.len().saturating_sub(SOURCES);
        let labels = Labels::from([(key.clone(), paths[from..].join(","))]);
        match core.content_add_labels(ns, digest, &labels) {
            // A label that would be too long only costs a mount.
            Err(Fail::Api(error)) if error.kind == types::ErrorKind::InvalidArgument => {}
            other => other?,
        }
    }
    Ok(())
}

pub(crate) use self::{
    export::export,
    import::{import, is_name},
    pull::pull,
    push::push,
    refetch::{Failed, refetch},
};
