//! containerd's transfer service: images between registries, the store and archives.
//!
//! | from | to | |
//! |---|---|---|
//! | `OCIRegistry` | `ImageStore` | pull |
//! | `ImageStore` | `OCIRegistry` | push |
//! | `ImageImportStream` | `ImageStore` | import |
//! | `ImageStore` | `ImageExportStream` | export |
//! | `ImageStore` | `ImageStore` | tag |
//!
//! What a client asks for and this store does not have is refused by name; nothing is left out silently.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ::types::{ImageRef, Platform};
use prost::Message;
use protos::containerd::{
    transfer::{self as proto, auth_type},
    types,
};
use store_api::{
    Credentials, Descriptor, Error, ExportRequest, Image, ImportRequest, Labels, Progress,
    ProgressSender, ProgressState, PullRecords, PullRequest, PushRequest, RegistryAccess, Services,
    Timestamp,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status},
    convert::{descriptor_out, required, size_out, unimplemented},
    services::transfer as api,
    streaming::Stream,
};

/// Steps that wait for a slow client; the store drops what does not fit unless it is a change of state.
const PROGRESS_QUEUE: usize = 256;
/// Platforms of one pull, which asks the registry once for each.
const PLATFORMS_MAX: usize = 64;
/// How long the last steps of an ended transfer may take to reach the client.
const PROGRESS_END: Duration = Duration::from_secs(5);

pub(crate) struct Transfer(pub(crate) Arc<Context>);

/// One end of a transfer.
enum End {
    Registry(proto::OciRegistry),
    Store(proto::ImageStore),
    Import(proto::ImageImportStream),
    Export(proto::ImageExportStream),
}

impl End {
    fn read(what: &str, any: Option<prost_types::Any>) -> Result<Self, Status> {
        let any = required(what, any)?;
        let bad = |error: prost::DecodeError| {
            Status::invalid_argument(format!("{what}: {error}: invalid argument"))
        };
        let bytes = &any.value[..];
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            proto::OCI_REGISTRY => Message::decode(bytes).map(Self::Registry).map_err(bad),
            proto::IMAGE_STORE => Message::decode(bytes).map(Self::Store).map_err(bad),
            proto::IMAGE_IMPORT_STREAM => Message::decode(bytes).map(Self::Import).map_err(bad),
            proto::IMAGE_EXPORT_STREAM => Message::decode(bytes).map(Self::Export).map_err(bad),
            other => Err(unimplemented(format!("a transfer with {other:?} as its {what}"))),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Registry(_) => proto::OCI_REGISTRY,
            Self::Store(_) => proto::IMAGE_STORE,
            Self::Import(_) => proto::IMAGE_IMPORT_STREAM,
            Self::Export(_) => proto::IMAGE_EXPORT_STREAM,
        }
    }
}

impl api::Transfer for Transfer {
    async fn transfer(
        &self,
        request: Request<api::TransferRequest>,
    ) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let source = End::read("source", request.source)?;
        let destination = End::read("destination", request.destination)?;
        let progress = match request.options.unwrap_or_default().progress_stream {
            id if id.is_empty() => None,
            id => Some(self.0.streams.take(&services.namespace, &id)?),
        };
        let (progress, told) = Steps::new(progress);
        let work = Work { context: &self.0, services, progress };
        let done = tokio::select! {
            done = work.run(source, destination) => done,
            () = self.0.shutdown.cancelled() => {
                Err(Status::unavailable("the store is shutting down"))
            }
        };
        // The work is gone and with it the sender of the steps: what is told ends.
        drop(tokio::time::timeout(PROGRESS_END, told).await);
        done.map(Response::new)
    }
}

/// What a transfer has at hand.
struct Work<'a> {
    context: &'a Context,
    services: Services,
    progress: Steps,
}

impl Work<'_> {
    async fn run(self, source: End, destination: End) -> Result<(), Status> {
        match (source, destination) {
            (End::Registry(from), End::Store(to)) => self.pull(from, to).await,
            (End::Store(from), End::Registry(to)) => self.push(from, to).await,
            (End::Import(from), End::Store(to)) => self.import(from, to).await,
            (End::Store(from), End::Export(to)) => self.export(from, to).await,
            (End::Store(from), End::Store(to)) => self.tag(from, to).await,
            (from, to) => {
                Err(unimplemented(format!("a transfer from {} to {}", from.name(), to.name())))
            }
        }
    }

    async fn pull(self, from: proto::OciRegistry, to: proto::ImageStore) -> Result<(), Status> {
        let mut reference = reference(&from.reference)?;
        let names = whole_names(&to)?;
        let all_metadata = to.all_metadata;
        let wanted = platforms(&to)?;
        let unpacked = self.unpacked(&to, &wanted)?;
        self.progress.say(&format!("Resolving from OCI Registry ({})", from.reference)).await;
        let access = self.access(&from).await?;
        let all_platforms = wanted.is_empty();
        let each: Vec<Option<Platform>> =
            if all_platforms { vec![None] } else { wanted.into_iter().map(Some).collect() };
        let mut top = None;
        for (platform, unpack) in each.into_iter().zip(unpacked) {
            let request = PullRequest {
                reference: reference.clone(),
                platform,
                all_platforms,
                all_metadata,
                access: access.clone(),
                unpack,
                records: PullRecords { names: names.clone(), labels: to.labels.clone() },
            };
            let pulled = self.services.transfer.pull(request, self.progress.sender.clone()).await;
            let target = pulled.map_err(status)?.target;
            // The other platforms are those of the same index, whatever the tag names meanwhile.
            reference = reference.with_digest(target.digest.clone());
            top = Some(target);
        }
        for name in &names {
            self.progress.saved(name, top.as_ref()).await;
        }
        self.progress.say(&format!("Completed pull from OCI Registry ({})", from.reference)).await;
        Ok(())
    }

    async fn push(self, from: proto::ImageStore, to: proto::OciRegistry) -> Result<(), Status> {
        let request = PushRequest {
            name: from.name.clone(),
            reference: reference(&to.reference)?,
            platform: one_platform(&from)?,
            access: self.access(&to).await?,
        };
        self.progress.say(&format!("Pushing to OCI Registry ({})", to.reference)).await;
        let pushed = self.services.transfer.push(request, self.progress.sender.clone()).await;
        pushed.map_err(status)?;
        self.progress.say(&format!("Completed push to OCI Registry ({})", to.reference)).await;
        Ok(())
    }

    async fn import(
        self,
        from: proto::ImageImportStream,
        to: proto::ImageStore,
    ) -> Result<(), Status> {
        if from.force_compress {
            return Err(unimplemented("force_compress of an ImageImportStream"));
        }
        let mut prefixes = to.extra_references.iter();
        let base = prefixes.next().cloned().unwrap_or_default();
        if to.extra_references.iter().any(|reference| !reference.is_prefix) {
            return Err(unimplemented("an extra name without a prefix for an import"));
        }
        let like = |other: &proto::ImageReference| {
            (&other.name, other.allow_overwrite) == (&base.name, base.allow_overwrite)
        };
        if !prefixes.all(like) {
            return Err(unimplemented("several prefixes of names for an import"));
        }
        let platform = one_platform(&to)?;
        let unpack = self.unpacked(&to, platform.as_slice())?.contains(&true);
        let archive = self.context.streams.take(&self.services.namespace, &from.stream)?;
        let request = ImportRequest {
            platforms: platform.into_iter().collect(),
            unpack,
            index_name: to.name.clone(),
            base_only: !base.name.is_empty() && !base.allow_overwrite,
            base_name: base.name,
        };
        self.progress.say("Importing").await;
        let (archive, sender) = (archive.receive(), self.progress.sender.clone());
        let imported = self.services.transfer.import(request, archive, sender).await;
        let imported = imported.map_err(status)?;
        for image in imported {
            if !image.name.is_empty() && !to.labels.is_empty() {
                self.put(&image.name, &image.target, &to.labels).await?;
            }
            for prefix in to.extra_references.iter().filter(|prefix| prefix.add_digest) {
                if image.name.is_empty() || !prefix.skip_named_digest {
                    let name = format!("{}@{}", prefix.name, image.target.digest);
                    self.put(&name, &image.target, &to.labels).await?;
                }
            }
            if !image.name.is_empty() {
                self.progress.saved(&image.name, Some(&image.target)).await;
            }
        }
        self.progress.say("Completed import").await;
        Ok(())
    }

    async fn export(
        self,
        from: proto::ImageStore,
        to: proto::ImageExportStream,
    ) -> Result<(), Status> {
        if to.skip_non_distributable {
            return Err(unimplemented("skip_non_distributable of an ImageExportStream"));
        }
        let platforms = match (to.platforms, to.all_platforms) {
            (_, true) => Vec::new(),
            (given, false) if given.is_empty() => vec![Platform::host()],
            (given, false) => given.into_iter().map(platform_in).collect(),
        };
        let request = ExportRequest {
            names: whole_names(&from)?,
            targets: Vec::new(),
            platforms,
            docker_compatible: !to.skip_compatibility_manifest,
        };
        let stream = self.context.streams.take(&self.services.namespace, &to.stream)?;
        self.progress.say("Exporting").await;
        let archive = self.services.transfer.export(request).await.map_err(status)?;
        stream.send_all(archive).await?;
        self.progress.say("Completed export").await;
        Ok(())
    }

    async fn tag(self, from: proto::ImageStore, to: proto::ImageStore) -> Result<(), Status> {
        let image = self.services.images.get(&from.name).await.map_err(status)?;
        // Labels are a name's own, as containerd has it: they do not come along.
        for name in whole_names(&to)? {
            self.put(&name, &image.target, &to.labels).await?;
        }
        Ok(())
    }

    async fn put(&self, name: &str, target: &Descriptor, labels: &Labels) -> Result<(), Status> {
        let (name, target, labels) = (name.to_owned(), target.clone(), labels.clone());
        let (created_at, updated_at) = (Timestamp::now(), Timestamp::now());
        let image = Image { name: name.clone(), target, labels, created_at, updated_at };
        let put = self.services.images.put(image).await.map_err(status)?;
        self.progress.saved(&name, Some(&put.target)).await;
        Ok(())
    }

    /// For each wanted platform, or for all together where none is named, which then are this machine's:
    /// are its layers to become snapshots? Others than the wanted ones' cannot.
    fn unpacked(&self, to: &proto::ImageStore, wanted: &[Platform]) -> Result<Vec<bool>, Status> {
        let host = [Platform::host()];
        let wanted = if wanted.is_empty() { &host[..] } else { wanted };
        let mut unpacked = vec![false; wanted.len()];
        let there = self.services.snapshots.name();
        for unpack in &to.unpacks {
            if !unpack.snapshotter.is_empty() && unpack.snapshotter != there {
                let text = format!("snapshotter not loaded: {}", unpack.snapshotter);
                return Err(Status::invalid_argument(format!("{text}: invalid argument")));
            }
            let Some(platform) = unpack.platform.clone().map(platform_in) else {
                unpacked.fill(true);
                continue;
            };
            let mut fits = false;
            for (own, unpacked) in wanted.iter().zip(&mut unpacked) {
                if own.rank(&platform).is_some() {
                    (fits, *unpacked) = (true, true);
                }
            }
            if !fits {
                let own: Vec<String> = wanted.iter().map(ToString::to_string).collect();
                let own = own.join(", ");
                return Err(unimplemented(format!("unpacking for {platform} beside {own}")));
            }
        }
        Ok(unpacked)
    }

    /// How the registry is reached; asks the client for credentials where it offers to be asked.
    async fn access(&self, registry: &proto::OciRegistry) -> Result<RegistryAccess, Status> {
        let resolver = registry.resolver.clone().unwrap_or_default();
        if resolver.http_debug != proto::http_debug::DISABLED {
            return Err(unimplemented("http_debug of a RegistryResolver, a dump of its requests"));
        }
        if !resolver.logs_stream.is_empty() {
            // There is nothing to dump: the stream ends, if the client opened it at all.
            drop(self.context.streams.take(&self.services.namespace, &resolver.logs_stream));
        }
        let plain_http = match resolver.default_scheme.as_str() {
            "" | "https" => false,
            "http" => true,
            other => {
                let text = format!("default scheme {other:?} is neither http nor https");
                return Err(Status::invalid_argument(format!("{text}: invalid argument")));
            }
        };
        let credentials = match resolver.auth_stream.as_str() {
            "" => None,
            id => {
                let stream = self.context.streams.take(&self.services.namespace, id)?;
                ask_credentials(stream, &registry.reference).await?
            }
        };
        let directory = Some(resolver.host_dir).filter(|directory| !directory.is_empty());
        Ok(RegistryAccess {
            credentials,
            certs_dirs: directory.into_iter().map(PathBuf::from).collect(),
            plain_http,
            headers: resolver.headers.into_iter().collect(),
            ..RegistryAccess::default()
        })
    }
}

async fn ask_credentials(mut stream: Stream, name: &str) -> Result<Option<Credentials>, Status> {
    let question = proto::AuthRequest {
        host: reference(name)?.domain().to_owned(),
        reference: name.to_owned(),
        wwwauthenticate: Vec::new(),
    };
    let answer: proto::AuthResponse =
        stream.ask(proto::AUTH_REQUEST, &question, proto::AUTH_RESPONSE).await?;
    let (username, secret) = (answer.username, answer.secret);
    if username.is_empty() && secret.is_empty() {
        return Ok(None);
    }
    let none = Credentials::default();
    match answer.auth_type {
        auth_type::NONE => Ok(None),
        auth_type::CREDENTIALS => Ok(Some(Credentials { username, password: secret, ..none })),
        auth_type::REFRESH => Ok(Some(Credentials { identity_token: secret, ..none })),
        auth_type::HEADER => match secret.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Some(Credentials { registry_token: token.to_owned(), ..none }))
            }
            // The header itself is a secret.
            _ => Err(unimplemented("an authorization header of another scheme than Bearer")),
        },
        other => Err(unimplemented(format!("the authorization type {other}"))),
    }
}

fn reference(text: &str) -> Result<ImageRef, Status> {
    text.parse().map_err(|error: ::types::ReferenceError| {
        Status::invalid_argument(format!("reference {text:?}: {error}: invalid argument"))
    })
}

fn platform_in(platform: types::Platform) -> Platform {
    Platform { os: platform.os, architecture: platform.architecture, variant: platform.variant }
}

/// The platforms that are meant; none: all of them.
fn platforms(store: &proto::ImageStore) -> Result<Vec<Platform>, Status> {
    if store.platforms.len() > PLATFORMS_MAX {
        let text = format!("{} platforms, at most {PLATFORMS_MAX}", store.platforms.len());
        return Err(Status::invalid_argument(format!("{text}: invalid argument")));
    }
    let platforms: Vec<Platform> = store.platforms.iter().cloned().map(platform_in).collect();
    let limit = usize::try_from(store.manifest_limit).unwrap_or(usize::MAX);
    if limit > 0 && (platforms.is_empty() || platforms.len() > limit) {
        let text = format!("a manifest_limit of {limit} for more platforms than that");
        return Err(unimplemented(text));
    }
    Ok(platforms)
}

/// The one platform that is meant, or all of them, where no choice of several is possible.
fn one_platform(store: &proto::ImageStore) -> Result<Option<Platform>, Status> {
    if store.all_metadata {
        return Err(unimplemented("all_metadata of an ImageStore in other transfers than pulls"));
    }
    let mut platforms = platforms(store)?;
    if platforms.len() > 1 {
        return Err(unimplemented("a push or an import of some of several platforms"));
    }
    Ok(platforms.pop())
}

/// The names that an image is to have, or that are to be found.
fn whole_names(store: &proto::ImageStore) -> Result<Vec<String>, Status> {
    let mut names: Vec<String> = Vec::new();
    names.extend(Some(store.name.clone()).filter(|name| !name.is_empty()));
    for extra in &store.extra_references {
        if extra.is_prefix || extra.add_digest {
            return Err(unimplemented(format!("the image names that begin with {:?}", extra.name)));
        }
        names.push(extra.name.clone());
    }
    if names.is_empty() {
        return Err(status(Error::invalid("no image name is given: invalid argument")));
    }
    names.iter().try_for_each(|name| Image::check_name(name)).map_err(status)?;
    Ok(names)
}

/// What is told of a transfer.
struct Steps {
    sender: ProgressSender,
    /// `None`: nobody listens.
    words: Option<mpsc::Sender<proto::Progress>>,
}

impl Steps {
    /// The task ends once the steps are dropped, or with the client.
    fn new(stream: Option<Stream>) -> (Self, JoinHandle<()>) {
        let (sender, mut steps) = mpsc::channel::<Progress>(PROGRESS_QUEUE);
        let (words, mut said) = mpsc::channel::<proto::Progress>(PROGRESS_QUEUE);
        let words = stream.is_some().then_some(words);
        let told = tokio::spawn(async move {
            let Some(stream) = stream else {
                while steps.recv().await.is_some() {}
                return;
            };
            loop {
                let message = tokio::select! {
                    Some(step) = steps.recv() => step_out(&step),
                    Some(word) = said.recv() => word,
                    else => return,
                };
                if !stream.send(proto::PROGRESS, &message).await {
                    // Nobody reads any more; the transfer goes on.
                    drop(said);
                    while steps.recv().await.is_some() {}
                    return;
                }
            }
        });
        (Self { sender, words }, told)
    }

    async fn say(&self, event: &str) {
        self.tell(proto::Progress { event: event.to_owned(), ..Default::default() }).await;
    }

    async fn saved(&self, name: &str, target: Option<&Descriptor>) {
        let (event, name) = ("saved".to_owned(), name.to_owned());
        let target = target.cloned().and_then(descriptor_out);
        self.tell(proto::Progress { event, name, target, ..Default::default() }).await;
    }

    async fn tell(&self, progress: proto::Progress) {
        if let Some(words) = &self.words {
            // The client may be gone.
            drop(words.send(progress).await);
        }
    }
}

/// In the words of containerd's own transfers where it has them.
fn step_out(step: &Progress) -> proto::Progress {
    let event = match step.state {
        ProgressState::Waiting => "waiting",
        ProgressState::Downloading => "downloading",
        ProgressState::Verifying => "verifying",
        ProgressState::Downloaded | ProgressState::Complete => "complete",
        ProgressState::Extracting => "extracting",
        ProgressState::Exists => "already exists",
        ProgressState::Uploading => "uploading",
        ProgressState::Uploaded => "complete",
        ProgressState::Mounted => "mounted",
        ProgressState::Resolving => "resolving",
        ProgressState::Resolved => "resolved",
        ProgressState::Retrying => "retrying",
    };
    let kind = if step.is_layer { "layer" } else { "manifest" };
    proto::Progress {
        event: event.to_owned(),
        name: match &step.digest {
            Some(digest) => format!("{kind}-{digest}"),
            None => step.message.clone(),
        },
        parents: Vec::new(),
        progress: size_out(step.current),
        total: size_out(step.total),
        target: None,
    }
}
