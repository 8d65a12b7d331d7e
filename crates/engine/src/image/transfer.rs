//! Pull, push, load, save: the store's progress as docker's JSON messages.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use api_types::{
    AuthConfig, AuthResponse, DistributionInspect, ErrorDetail, JsonMessage, ProgressDetail,
    PushResult,
};
use store_api::{
    ByteStream, Credentials, ExportRequest, ImportRequest, Imported, Progress, ProgressState,
    PullRequest, PushRequest, RegistryAccess,
};
use tokio::sync::mpsc;
use types::{Digest, ErrorKind, ImageRef, Platform};

use super::Known;
use crate::{Engine, Error, Result, container::descriptor_shape};

/// Messages to a client that have not been sent yet.
const QUEUE: usize = 64;
/// Steps of progress that the store is ahead.
const PROGRESS_QUEUE: usize = 256;

/// A stream of JSON messages; it ends with the operation. A failure is its last item.
pub type Messages = mpsc::Receiver<std::result::Result<JsonMessage, Failure>>;
pub(crate) type MessageSender = mpsc::Sender<std::result::Result<JsonMessage, Failure>>;

/// Why an operation that streams messages failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    pub error: Error,
    /// Exit code of the build step that failed, 0 when it was none.
    pub code: i64,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, code: 0 }
    }
}

impl Failure {
    /// As the last message of a stream that has begun.
    pub fn message(&self) -> JsonMessage {
        let text = &self.error.message;
        JsonMessage {
            error_detail: Some(ErrorDetail { message: text.clone(), code: self.code }),
            error: text.clone(),
            ..JsonMessage::default()
        }
    }
}

/// A registry's refusal, which is not ours: dockerd answers 500 where there is no such image to tell of.
/// A 401 or 403 would make docker's client ask its user for a login to us.
fn refused(error: store_api::Error) -> Error {
    match error.kind {
        ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied
        | ErrorKind::Unavailable
        | ErrorKind::ResourceExhausted => Error::internal(error.message),
        _ => error.into(),
    }
}

pub(crate) fn status(text: impl Into<String>) -> JsonMessage {
    JsonMessage { status: text.into(), ..JsonMessage::default() }
}

/// Turns progress into messages. Every layer is told of once per state, and by bytes while it moves.
pub(crate) struct Teller {
    pushing: bool,
    /// `None`: it was announced.
    told: HashMap<Digest, Option<ProgressState>>,
    /// Where each layer's present state began: the bytes that were there, and when.
    began: HashMap<Digest, (ProgressState, u64, Instant)>,
}

impl Teller {
    pub(crate) fn new(pushing: bool) -> Self {
        Self { pushing, told: HashMap::new(), began: HashMap::new() }
    }

    pub(crate) fn tell(&mut self, step: &Progress) -> Vec<JsonMessage> {
        if !step.is_layer {
            return Vec::new();
        }
        let Some(digest) = &step.digest else { return Vec::new() };
        let text = match (step.state, self.pushing) {
            (ProgressState::Waiting, _) => "Waiting",
            (ProgressState::Downloading, _) => "Downloading",
            (ProgressState::Verifying, _) => "Verifying Checksum",
            (ProgressState::Downloaded, _) => "Download complete",
            (ProgressState::Extracting, _) => "Extracting",
            (ProgressState::Exists, false) => "Already exists",
            (ProgressState::Exists, true) => "Layer already exists",
            (ProgressState::Complete, false) => "Pull complete",
            (ProgressState::Complete | ProgressState::Uploaded, true) => "Pushed",
            (ProgressState::Uploading, _) => "Pushing",
            (ProgressState::Mounted, _) => "Mounted",
            (ProgressState::Retrying, _) => "Retrying",
            _ => return Vec::new(),
        };
        let moving = matches!(
            step.state,
            ProgressState::Downloading | ProgressState::Extracting | ProgressState::Uploading
        );
        let mut messages = Vec::new();
        let before = self.told.get(digest).copied();
        if before.is_none() && (step.state != ProgressState::Exists || self.pushing) {
            let first = if self.pushing { "Preparing" } else { "Pulling fs layer" };
            messages.push(message(digest, first, None));
            self.told.insert(digest.clone(), None);
            // The first wait is the announcement; a second one is for a free connection.
            if step.state == ProgressState::Waiting {
                return messages;
            }
        }
        // Of what was here before nothing more is told, though it may be extracted only now.
        if before == Some(Some(ProgressState::Exists))
            || before == Some(Some(step.state)) && !moving
        {
            return Vec::new();
        }
        self.told.insert(digest.clone(), Some(step.state));
        let detail = moving.then(|| ProgressDetail {
            current: i64::try_from(step.current).unwrap_or(i64::MAX),
            total: i64::try_from(step.total).unwrap_or(i64::MAX),
            start: self.start(digest, step),
            ..ProgressDetail::default()
        });
        let text = match (step.state, step.message.is_empty()) {
            (ProgressState::Mounted, false) => format!("Mounted from {}", step.message),
            (ProgressState::Retrying, false) => format!("Retrying: {}", step.message),
            _ => text.to_string(),
        };
        messages.push(message(digest, &text, detail));
        messages
    }
}

impl Teller {
    /// docker's `start`, from which its client tells the time left; 0: not known yet.
    fn start(&mut self, digest: &Digest, step: &Progress) -> i64 {
        let fresh = (step.state, step.current, Instant::now());
        let (state, base, at) = *self.began.entry(digest.clone()).or_insert(fresh);
        if state != step.state || step.current < base {
            self.began.insert(digest.clone(), fresh);
            return 0;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        start_of(now, at.elapsed(), base, step.current)
    }
}

/// When (in Unix seconds) a transfer of this rate would have begun with its first byte: `base` bytes were
/// there before, `current` are now. 0 in the first second, when a rate says nothing yet.
fn start_of(now: Duration, elapsed: Duration, base: u64, current: u64) -> i64 {
    let moved = u128::from(current.saturating_sub(base));
    if moved == 0 || elapsed < Duration::from_secs(1) {
        return 0;
    }
    let whole =
        (elapsed.as_millis() * u128::from(current) / moved / 1000).min(now.as_secs().into());
    i64::try_from(u128::from(now.as_secs()) - whole).unwrap_or(0)
}

fn message(digest: &Digest, text: &str, detail: Option<ProgressDetail>) -> JsonMessage {
    JsonMessage {
        status: text.into(),
        id: digest.short().into(),
        progress: detail.as_ref().map(bar).unwrap_or_default(),
        progress_detail: Some(detail.unwrap_or_default()),
        ..JsonMessage::default()
    }
}

/// docker's text form of progress, for clients that do not draw their own.
fn bar(detail: &ProgressDetail) -> String {
    const WIDTH: i64 = 50;
    if detail.total <= 0 {
        return human(detail.current);
    }
    let filled = (detail.current.min(detail.total) * WIDTH / detail.total).clamp(0, WIDTH);
    let filled = usize::try_from(filled).unwrap_or(0);
    let empty = 50 - filled;
    format!(
        "[{}>{}]  {}/{}",
        "=".repeat(filled),
        " ".repeat(empty),
        human(detail.current),
        human(detail.total)
    )
}

/// go-units `HumanSize`: four significant digits, powers of 1000.
pub(crate) fn human(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut divisor = 1i64;
    let mut unit = 0;
    while bytes / divisor >= 1000 && unit + 1 < UNITS.len() {
        divisor *= 1000;
        unit += 1;
    }
    let whole = bytes / divisor;
    // Digits behind the point, so that there are four in all.
    let digits = 4 - whole.max(1).to_string().len();
    let scale = 10i64.pow(u32::try_from(digits).unwrap_or(0));
    let fraction = (bytes % divisor).saturating_mul(scale) / divisor;
    let text = format!("{whole}.{fraction:0digits$}");
    format!("{}{}", text.trim_end_matches('0').trim_end_matches('.'), UNITS[unit])
}

impl Engine {
    /// Pulls an image. The stream ends when it is done or the client is gone; failures after the start
    /// are its last message.
    pub async fn image_pull(
        self: &Arc<Self>,
        reference: ImageRef,
        platform: Option<Platform>,
        auth: Option<AuthConfig>,
    ) -> Result<Messages> {
        let (sender, messages) = mpsc::channel(QUEUE);
        let engine = self.clone();
        let access = self.registry_access(auth.as_ref());
        tokio::spawn(async move {
            let result = engine.pull_telling(&reference, platform, access, &sender).await;
            if let Err(error) = result {
                // A client that is gone cannot be told.
                drop(sender.send(Err(error.into())).await);
            }
        });
        Ok(messages)
    }

    /// `docker pull -a`: every tag of a repository.
    pub async fn image_pull_all(
        self: &Arc<Self>,
        repository: ImageRef,
        platform: Option<Platform>,
        auth: Option<AuthConfig>,
    ) -> Result<Messages> {
        let access = self.registry_access(auth.as_ref());
        let tags = self.services.transfer.tags(&repository, &access).await.map_err(refused)?;
        let (sender, messages) = mpsc::channel(QUEUE);
        let engine = self.clone();
        tokio::spawn(async move {
            for tag in tags {
                let pulled = match repository.with_tag(&tag) {
                    Ok(reference) => {
                        engine
                            .pull_telling(&reference, platform.clone(), access.clone(), &sender)
                            .await
                    }
                    Err(error) => Err(error.into()),
                };
                if let Err(error) = pulled {
                    drop(sender.send(Err(error.into())).await);
                    return;
                }
            }
        });
        Ok(messages)
    }

    async fn pull_telling(
        self: &Arc<Self>,
        reference: &ImageRef,
        platform: Option<Platform>,
        access: RegistryAccess,
        sender: &MessageSender,
    ) -> Result<()> {
        let reference = reference.clone().with_default_tag();
        let tag = reference.tag().map_or_else(
            || reference.digest().map(ToString::to_string).unwrap_or_default(),
            Into::into,
        );
        let first = JsonMessage { id: tag, ..status(format!("Pulling from {}", reference.path())) };
        // Said once the registry has answered: until then a failure can still be an HTTP status.
        let mut first = Some(first);
        let before = self.services.images.get(&reference.to_string()).await.ok();
        let (pulled, ()) = {
            let (steps, mut received) = mpsc::channel::<Progress>(PROGRESS_QUEUE);
            let pulling = self.services.transfer.pull(
                PullRequest {
                    reference: reference.clone(),
                    platform,
                    all_platforms: false,
                    all_metadata: false,
                    access,
                    unpack: true,
                    records: Default::default(),
                },
                steps,
            );
            // What is to be done with the image does not wait for a client that stopped reading.
            let pull = async {
                let pulled = pulling.await.map_err(refused)?;
                if let Some(old) = before.filter(|old| old.target.digest != pulled.target.digest) {
                    // It stays without a name until it is pruned.
                    self.ensure_record(&old.target).await?;
                }
                self.drop_dangling(&pulled.target.digest).await?;
                self.image_event("pull", &reference.familiar(), &reference.familiar_name());
                Ok::<_, Error>(pulled)
            };
            let tell = async {
                let mut teller = Teller::new(false);
                while let Some(step) = received.recv().await {
                    let messages = teller.tell(&step);
                    let first = if messages.is_empty() { None } else { first.take() };
                    for message in first.into_iter().chain(messages) {
                        // The pull goes on for others who wait for the same image.
                        drop(sender.send(Ok(message)).await);
                    }
                }
            };
            tokio::join!(pull, tell)
        };
        let pulled = pulled?;
        if let Some(first) = first {
            self.say(sender, first).await?;
        }
        self.say(sender, status(format!("Digest: {}", pulled.target.digest))).await?;
        let outcome = if pulled.up_to_date {
            format!("Status: Image is up to date for {}", reference.familiar())
        } else {
            format!("Status: Downloaded newer image for {}", reference.familiar())
        };
        self.say(sender, status(outcome)).await
    }

    async fn say(&self, sender: &MessageSender, message: JsonMessage) -> Result<()> {
        sender
            .send(Ok(message))
            .await
            .map_err(|_| Error::new(ErrorKind::Cancelled, "the client went away"))
    }

    /// Pushes a tag, or with `tag` empty every tag of the repository.
    pub async fn image_push(
        self: &Arc<Self>,
        name: &str,
        tag: &str,
        (platform, auth): (Option<Platform>, Option<AuthConfig>),
    ) -> Result<Messages> {
        let repository: ImageRef = name.parse()?;
        let mut references = Vec::new();
        if tag.is_empty() && repository.tag().is_none() {
            for known in self.known_images().await?.into_values() {
                let of_it = known.names.into_iter().filter(|n| n.name() == repository.name());
                references.extend(of_it.filter(|n| n.tag().is_some()));
            }
        } else {
            let reference =
                if tag.is_empty() { repository.clone() } else { repository.with_tag(tag)? };
            let known = self.known_images().await?;
            if known.values().any(|image| image.names.contains(&reference)) {
                references.push(reference);
            }
        }
        let (sender, messages) = mpsc::channel(QUEUE);
        let engine = self.clone();
        let access = self.registry_access(auth.as_ref());
        let tag = tag.to_string();
        tokio::spawn(async move {
            let refers = format!("The push refers to repository [{}]", repository.name());
            let mut result = engine.say(&sender, status(refers)).await;
            if references.is_empty() && result.is_ok() {
                let what = if tag.is_empty() {
                    repository.familiar_name()
                } else {
                    format!("{}:{tag}", repository.familiar_name())
                };
                result = Err(Error::not_found(format!(
                    "An image does not exist locally with the tag: {what}"
                )));
            }
            for reference in references {
                if result.is_err() {
                    break;
                }
                result = engine
                    .push_telling(&reference, platform.clone(), access.clone(), &sender)
                    .await;
            }
            if let Err(error) = result {
                drop(sender.send(Err(error.into())).await);
            }
        });
        Ok(messages)
    }

    async fn push_telling(
        self: &Arc<Self>,
        reference: &ImageRef,
        platform: Option<Platform>,
        access: RegistryAccess,
        sender: &MessageSender,
    ) -> Result<()> {
        let (steps, mut received) = mpsc::channel::<Progress>(PROGRESS_QUEUE);
        let request = PushRequest {
            name: reference.to_string(),
            reference: reference.clone(),
            platform,
            access: RegistryAccess { max_concurrent: self.config.max_concurrent_uploads, ..access },
        };
        let push = self.services.transfer.push(request, steps);
        let tell = async {
            let mut teller = Teller::new(true);
            while let Some(step) = received.recv().await {
                for message in teller.tell(&step) {
                    drop(sender.send(Ok(message)).await);
                }
            }
        };
        let (pushed, ()) = tokio::join!(push, tell);
        let pushed = pushed?;
        let tag = reference.tag().unwrap_or_default();
        let size = i64::try_from(pushed.size).unwrap_or(i64::MAX);
        let text = format!("{tag}: digest: {} size: {size}", pushed.digest);
        self.say(sender, status(text)).await?;
        let aux = PushResult { tag: tag.into(), digest: pushed.digest.to_string(), size };
        let aux = serde_json::to_value(aux)
            .map_err(|e| Error::internal(format!("encode push result: {e}")))?;
        self.image_event("push", &reference.familiar(), &reference.familiar_name());
        self.say(sender, JsonMessage { aux: Some(aux), ..JsonMessage::default() }).await
    }

    /// Loads the images of an archive.
    pub async fn image_load(
        self: &Arc<Self>,
        archive: ByteStream,
        platforms: Vec<Platform>,
    ) -> Result<Messages> {
        let (sender, messages) = mpsc::channel(QUEUE);
        let engine = self.clone();
        tokio::spawn(async move {
            if let Err(error) = engine.load_telling(archive, platforms, &sender).await {
                drop(sender.send(Err(error.into())).await);
            }
        });
        Ok(messages)
    }

    async fn load_telling(
        &self,
        archive: ByteStream,
        platforms: Vec<Platform>,
        sender: &MessageSender,
    ) -> Result<()> {
        let before = self.services.images.list(&[]).await?;
        let before: HashMap<String, _> = before.into_iter().map(|i| (i.name, i.target)).collect();
        let (steps, mut received) = mpsc::channel::<Progress>(PROGRESS_QUEUE);
        let request = ImportRequest { platforms, unpack: true, ..ImportRequest::default() };
        let import = self.services.transfer.import(request, archive, steps);
        // Loading shows its result only; the steps are drained so that it does not stall.
        let drain = async { while received.recv().await.is_some() {} };
        let (imported, ()) = tokio::join!(import, drain);
        let imported = imported?;
        let mut texts = Vec::new();
        for Imported { name, target } in imported {
            let Ok(reference) = name.parse::<ImageRef>() else {
                self.ensure_record(&target).await?;
                self.image_event("load", &target.digest.to_string(), "");
                texts.push(format!("Loaded image ID: {}\n", target.digest));
                continue;
            };
            if let Some(old) = before.get(&name).filter(|old| old.digest != target.digest) {
                self.ensure_record(old).await?;
                texts.push(format!(
                    "The image {} already exists, renaming the old one with ID {} to empty string\n",
                    reference.familiar(),
                    old.digest
                ));
            }
            self.drop_dangling(&target.digest).await?;
            self.image_event("load", &target.digest.to_string(), &reference.familiar());
            texts.push(format!("Loaded image: {}\n", reference.familiar()));
        }
        for stream in texts {
            drop(sender.send(Ok(JsonMessage { stream, ..JsonMessage::default() })).await);
        }
        Ok(())
    }

    /// Writes images as a docker archive that is an OCI layout too.
    pub async fn image_save(
        self: &Arc<Self>,
        names: &[String],
        platforms: Vec<Platform>,
    ) -> Result<ByteStream> {
        let mut request =
            ExportRequest { platforms, docker_compatible: true, ..ExportRequest::default() };
        for name in names {
            let known: Known = self.find_image(name).await?;
            let wanted = name.parse::<ImageRef>().ok();
            match wanted {
                // A repository alone means all of its tags.
                Some(reference) if reference.tag().is_none() && reference.digest().is_none() => {
                    let whole = self.known_images().await?;
                    let tags = whole.values().flat_map(|image| &image.names);
                    let of_it: Vec<String> = tags
                        .filter(|n| n.name() == reference.name() && n.tag().is_some())
                        .map(ToString::to_string)
                        .collect();
                    if of_it.is_empty() {
                        request.targets.push(known.target.digest);
                    } else {
                        request.names.extend(of_it);
                    }
                }
                Some(reference) if known.names.contains(&reference) => {
                    request.names.push(reference.to_string());
                }
                _ => request.targets.push(known.target.digest),
            }
        }
        for name in names {
            self.image_event("save", name, name);
        }
        Ok(self.services.transfer.export(request).await?)
    }

    /// Checks credentials against a registry.
    pub async fn auth(&self, auth: AuthConfig) -> Result<AuthResponse> {
        let server = if auth.server_address.is_empty() {
            "https://index.docker.io/v1/".to_string()
        } else {
            auth.server_address.clone()
        };
        let access = RegistryAccess {
            credentials: Some(Credentials {
                username: auth.username.clone(),
                password: auth.password.clone(),
                identity_token: auth.identity_token.clone(),
                registry_token: auth.registry_token.clone(),
            }),
            ..self.registry_access(None)
        };
        let token = self.services.transfer.login(&server, &access).await.map_err(|error| {
            match error.kind {
                // Only a refusal by a token server is one in dockerd's eyes.
                ErrorKind::Unauthenticated => error.into(),
                _ => refused(error),
            }
        })?;
        Ok(AuthResponse {
            identity_token: token.unwrap_or_default(),
            status: "Login Succeeded".into(),
        })
    }

    pub async fn distribution(
        &self,
        name: &str,
        auth: Option<AuthConfig>,
    ) -> Result<DistributionInspect> {
        let reference: ImageRef = name.parse()?;
        let access = self.registry_access(auth.as_ref());
        let reference = reference.with_default_tag();
        let resolved = self.services.transfer.resolve(&reference, &access).await;
        let descriptor = resolved.map_err(refused)?;
        let shape = descriptor_shape(&descriptor);
        let platforms = shape.platform.clone().into_iter().collect();
        Ok(DistributionInspect { descriptor: shape, platforms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_docker_prints_them() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1024, "1.024kB"),
            (3_370_706, "3.37MB"),
            (12_345_678, "12.34MB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn a_layer_is_announced_once() {
        let mut teller = Teller::new(false);
        let step = Progress {
            digest: Some(Digest::sha256("x")),
            diff_id: None,
            is_layer: true,
            state: ProgressState::Downloading,
            current: 1,
            total: 2,
            message: String::new(),
        };
        let texts: Vec<String> = teller.tell(&step).into_iter().map(|m| m.status).collect();
        assert_eq!(texts, ["Pulling fs layer", "Downloading"]);
        assert_eq!(teller.tell(&step).len(), 1);
    }

    #[test]
    fn the_time_left_counts_from_where_a_download_went_on() {
        let (now, ten) = (Duration::from_secs(1_700_000_000), Duration::from_secs(10));
        assert_eq!(start_of(now, ten, 0, 500), 1_699_999_990);
        // 900 bytes were there: 100 in ten seconds are 1000 in a hundred.
        assert_eq!(start_of(now, ten, 900, 1000), 1_699_999_900);
        assert_eq!(start_of(now, ten, 500, 500), 0);
        assert_eq!(start_of(now, Duration::from_millis(900), 0, 500), 0);
        assert_eq!(start_of(now, ten, 1 << 60, (1 << 60) + 1), 0);
    }

    fn told(pushing: bool, states: &[ProgressState]) -> Vec<String> {
        let mut teller = Teller::new(pushing);
        let step = |state: &ProgressState| Progress {
            digest: Some(Digest::sha256("x")),
            diff_id: None,
            is_layer: true,
            state: *state,
            current: 1,
            total: 2,
            message: String::new(),
        };
        states.iter().flat_map(|state| teller.tell(&step(state))).map(|m| m.status).collect()
    }

    #[test]
    fn layers_are_told_of_as_dockerd_does() {
        use ProgressState::{Complete, Downloaded, Exists, Extracting, Uploaded, Waiting};
        assert_eq!(told(false, &[Exists, Extracting, Complete]), ["Already exists"]);
        assert_eq!(
            told(false, &[Waiting, Downloaded, Extracting, Complete]),
            ["Pulling fs layer", "Download complete", "Extracting", "Pull complete"]
        );
        assert_eq!(
            told(false, &[Waiting, Waiting, Waiting, Downloaded]),
            ["Pulling fs layer", "Waiting", "Download complete"]
        );
        assert_eq!(told(true, &[Waiting, Uploaded]), ["Preparing", "Pushed"]);
        assert_eq!(told(true, &[Waiting, Waiting, Uploaded]), ["Preparing", "Waiting", "Pushed"]);
        assert_eq!(told(true, &[Waiting, Exists]), ["Preparing", "Layer already exists"]);
    }

    #[test]
    fn a_registrys_refusal_asks_nobody_for_a_login() {
        for (kind, status) in [
            (ErrorKind::Unauthenticated, 500),
            (ErrorKind::PermissionDenied, 500),
            (ErrorKind::Unavailable, 500),
            (ErrorKind::NotFound, 404),
            (ErrorKind::InvalidArgument, 400),
        ] {
            let error = refused(store_api::Error::new(kind, "words"));
            assert_eq!((error.kind.http_status(), error.message.as_str()), (status, "words"));
        }
    }
}
