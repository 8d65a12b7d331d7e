//! One stage: FROM, then its instructions one after the other.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc};

use dockerfile::{Instruction, Located, Run, Transfer, expand::Expander};
use serde_json::{Value, json};
use store_api::{Descriptor, ResourceKind, Timestamp};
use tokio::sync::mpsc;
use types::{Digest, Platform};

use crate::{
    api::{BaseRequest, BuildEvent},
    build::Build,
    cache::{Layer, Record, Slots},
    config::ImageConfig,
    error::{Error, Result},
    graph::BaseOf,
    key::{self, Earlier, Inputs, Parent},
    print::Voice,
    vars::Scope,
};

/// What a stage has come to.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) config: ImageConfig,
    /// Snapshot of all layers; `None` for none.
    pub(crate) chain: Option<Digest>,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) base_layers: usize,
    pub(crate) scope: Scope,
    pub(crate) platform: Platform,
    /// All instructions so far, as text.
    lineage: String,
    /// What the last change of the layers is called in reasons.
    parent: Parent,
    /// CMD was set in this stage.
    cmd_set: bool,
    /// Of the last step that took time: RFC 3339.
    created: String,
}

/// Where an instruction stands.
pub(crate) struct Place<'a> {
    pub(crate) voice: &'a Voice,
    pub(crate) stage: usize,
    /// Counted within the stage, FROM being 0; triggers share their FROM's.
    pub(crate) index: usize,
    pub(crate) located: &'a Located,
    /// `step 3/7`
    pub(crate) name: String,
}

/// What a step does when it is not cached.
pub(crate) enum Work {
    Run(Box<crate::run::RunWork>),
    Copy(Box<crate::transfer::CopyWork>),
    Workdir(PathBuf),
}

/// A step, ready to be looked up or executed.
pub(crate) struct Step {
    pub(crate) inputs: Inputs,
    pub(crate) manifest: Option<String>,
    pub(crate) history: String,
    pub(crate) work: Work,
    /// Its layer is made on nothing and then put on the stage's others (`--link`).
    pub(crate) alone: bool,
}

pub(crate) type Shared = Result<Arc<Stage>, Arc<Error>>;
type Future_<'a> = Pin<Box<dyn Future<Output = Result<Arc<Stage>>> + Send + 'a>>;

impl Stage {
    /// The id of the image that the stage is by now, which docker prints after each step.
    fn id(&self) -> Result<Digest> {
        crate::export::image_id(&self.config.to_bytes(&self.diff_ids)?, &self.layers)
    }

    fn note(&mut self, text: &str, empty: bool) {
        let created = self.created.clone();
        self.config.add_history(&created, text, empty);
    }

    fn add_layer(&mut self, layer: &Layer) -> Result<()> {
        if self.layers.len() >= types::limits::BUILT_LAYERS {
            let limit = u64::try_from(types::limits::BUILT_LAYERS).unwrap_or(u64::MAX);
            return Err(Error::Limit { what: "layers of an image", limit });
        }
        self.chain = Some(layer.chain_id.clone());
        self.layers.push(layer.descriptor.clone());
        self.diff_ids.push(layer.diff_id.clone());
        Ok(())
    }
}

impl Build {
    /// The stage's result; it is made once, whoever asks first.
    pub(crate) fn stage(self: &Arc<Self>, index: usize) -> Future_<'_> {
        Box::pin(async move {
            let shared = self.stages[index]
                .get_or_init(|| async {
                    let voice = self.printer.voice(index);
                    let result = self.run_stage(index, &voice).await;
                    voice.finish().await;
                    if result.is_err() {
                        self.failed.cancel();
                    }
                    result.map(Arc::new).map_err(Arc::new)
                })
                .await;
            shared.clone().map_err(Error::Stage)
        })
    }

    pub(crate) fn stage_name(&self, index: usize) -> String {
        match &self.file.stages[index].name {
            Some(name) => format!("stage {name}"),
            None => format!("stage {index}"),
        }
    }

    async fn run_stage(self: &Arc<Self>, index: usize, voice: &Voice) -> Result<Stage> {
        self.check_cancelled()?;
        let from = &self.file.stages[index];
        if let Some(number) = self.plan.number(index, 0) {
            voice.text(format!("Step {number}/{} : {}\n", self.plan.total, from.text)).await;
        }
        let mut stage = self.from(index, voice).await?;
        let triggers = stage.config.triggers();
        if !triggers.is_empty() {
            let plural = if triggers.len() == 1 { "" } else { "s" };
            voice.text(format!("# Executing {} build trigger{plural}\n", triggers.len())).await;
            stage.config.remove("OnBuild");
            for text in &triggers {
                let mut located = dockerfile::parse_trigger(text, self.globals.escape())?;
                located.lines = from.lines;
                let name = format!("the trigger {text}");
                let place = Place { voice, stage: index, index: 0, located: &located, name };
                self.instruction(&mut stage, &place).await?;
            }
        }
        for (at, located) in from.instructions.iter().enumerate() {
            self.check_cancelled()?;
            let number = self.plan.number(index, at + 1).unwrap_or(at + 1);
            let total = self.plan.total;
            voice.text(format!("Step {number}/{total} : {}\n", located.text)).await;
            let name = format!("step {number}/{total}");
            let place = Place { voice, stage: index, index: at + 1, located, name };
            self.instruction(&mut stage, &place).await?;
        }
        Ok(stage)
    }

    async fn from(self: &Arc<Self>, index: usize, voice: &Voice) -> Result<Stage> {
        let from = &self.file.stages[index];
        let platform = match &from.platform {
            None => self.platform.clone(),
            Some(text) => {
                let text = self.globals.expand_from(text, from.lines.start)?;
                if text.is_empty() {
                    self.platform.clone()
                } else {
                    text.parse()
                        .map_err(|error: types::PlatformError| Error::Invalid(error.to_string()))?
                }
            }
        };
        let parent = |name: String| Parent { name: format!("the base {name}") };
        let stage = match &self.plan.bases[index] {
            BaseOf::Scratch => {
                voice.text(" ---> \n").await;
                Stage {
                    config: ImageConfig::scratch(&platform),
                    chain: None,
                    layers: Vec::new(),
                    diff_ids: Vec::new(),
                    base_layers: 0,
                    scope: Scope::default(),
                    platform,
                    lineage: "scratch\n".into(),
                    parent: parent("scratch".into()),
                    cmd_set: false,
                    created: self.now(),
                }
            }
            BaseOf::Stage(base) => {
                let mut stage = Stage::clone(&*self.stage(*base).await?);
                voice.text(format!(" ---> {}\n", stage.id()?.short())).await;
                stage.lineage = format!("{}\nFROM\n", stage.lineage);
                stage.cmd_set = false;
                stage.parent = parent(self.stage_name(*base));
                stage
            }
            BaseOf::Image(name) => {
                let name = name.clone();
                self.image(&name, &platform, voice).await?
            }
        };
        Ok(stage)
    }

    async fn image(
        self: &Arc<Self>,
        name: &str,
        platform: &Platform,
        voice: &Voice,
    ) -> Result<Stage> {
        let (image, short) = self.resolve_image(name, platform, voice).await?;
        voice.text(format!(" ---> {short}\n")).await;
        let bytes = crate::export::read_blob(
            &self.session.services,
            &image.config,
            types::limits::IMAGE_CONFIG_BYTES,
        )
        .await?;
        let config = ImageConfig::parse(&bytes, name)?;
        let created = config.created().unwrap_or_else(|| self.now());
        Ok(Stage {
            chain: image.chain_ids.last().cloned(),
            base_layers: image.layers.len(),
            layers: image.layers,
            diff_ids: image.diff_ids,
            scope: Scope::default(),
            platform: platform.clone(),
            lineage: format!("{name}\n"),
            parent: Parent { name: format!("the base image {name}") },
            cmd_set: false,
            created: self.epoch.clone().unwrap_or(created),
            config,
        })
    }

    /// Finds or pulls an image and unpacks it; answers its short id too.
    pub(crate) async fn resolve_image(
        self: &Arc<Self>,
        name: &str,
        platform: &Platform,
        voice: &Voice,
    ) -> Result<(store_api::UnpackedImage, String)> {
        // One look-up and pull per image, however many stages want it.
        let _once = self.lock(&format!("image {name} {platform}")).await?;
        let pull = self.pull && self.first_pull(name, platform);
        let request = BaseRequest {
            name: name.into(),
            platform: platform.clone(),
            pull,
            credentials: self.credentials.clone(),
        };
        let (sender, mut receiver) = mpsc::channel(64);
        let teller = voice.clone();
        let tell = async move {
            while let Some(progress) = receiver.recv().await {
                teller.event(BuildEvent::Progress(progress)).await;
            }
        };
        let found = self.host.resolve_base(request, sender, self.failed.child_token());
        let (base, ()) = tokio::join!(found, tell);
        let base = base.map_err(Error::host)?;
        self.session.pin(ResourceKind::Content, base.target.digest.to_string()).await?;
        let extras = &self.session.services.extras;
        let image = extras.unpack(&base.target, Some(platform)).await;
        let image = image.map_err(Error::store(format!("unpack image {name}")))?;
        for blob in [&image.manifest, &image.config].into_iter().chain(&image.layers) {
            self.session.pin(ResourceKind::Content, blob.digest.to_string()).await?;
        }
        if let Some(chain) = image.chain_ids.last() {
            self.session.pin(ResourceKind::Snapshot, chain.to_string()).await?;
        }
        Ok((image, base.target.digest.short().to_string()))
    }

    pub(crate) async fn instruction(
        self: &Arc<Self>,
        stage: &mut Stage,
        place: &Place<'_>,
    ) -> Result<()> {
        let located = place.located;
        stage.lineage.push_str(&located.text);
        stage.lineage.push('\n');
        let env = stage.config.env();
        if let Instruction::Arg(args) = &located.instruction {
            stage.scope.declare(args, located, &self.globals, &env)?;
            stage.note(&located.text, true);
            return self.say_described(stage, place).await;
        }
        let instruction = {
            let scope = &stage.scope;
            let lookup = |name: &str| scope.lookup(&env, name);
            let mut expander = Expander::new(self.globals.escape(), &lookup);
            located.instruction.expand(&mut expander).map_err(|source| Error::Expand {
                line: located.lines.start,
                source: dockerfile::ParseErrorKind::Expand(source),
            })?
        };
        match instruction {
            Instruction::Run(run) => self.run_instruction(stage, place, &run).await,
            Instruction::Copy(transfer) | Instruction::Add(transfer) => {
                self.transfer_instruction(stage, place, &transfer).await
            }
            Instruction::Workdir(path) => self.workdir(stage, place, &path).await,
            other => {
                let text = describe(stage, &other, located)?;
                stage.note(&text, true);
                self.say_described(stage, place).await
            }
        }
    }

    async fn run_instruction(
        self: &Arc<Self>,
        stage: &mut Stage,
        place: &Place<'_>,
        run: &Run,
    ) -> Result<()> {
        let step = self.prepare_run(stage, place, run).await?;
        self.step(stage, place, step).await
    }

    async fn transfer_instruction(
        self: &Arc<Self>,
        stage: &mut Stage,
        place: &Place<'_>,
        transfer: &Transfer,
    ) -> Result<()> {
        let step = self.prepare_transfer(stage, place, transfer).await?;
        self.step(stage, place, step).await
    }

    async fn workdir(
        self: &Arc<Self>,
        stage: &mut Stage,
        place: &Place<'_>,
        path: &str,
    ) -> Result<()> {
        let path = join(&stage.config.working_dir(), path);
        stage.config.set("WorkingDir", json!(path));
        let inputs = Inputs {
            instruction: format!("WORKDIR {path}"),
            parent: chain_text(stage),
            ..Inputs::default()
        };
        let work = Work::Workdir(crate::tree::inside(&path));
        let history = format!("WORKDIR {path}");
        self.step(stage, place, Step { inputs, manifest: None, history, work, alone: false }).await
    }

    async fn say_state(&self, stage: &Stage, place: &Place<'_>) -> Result<()> {
        place.voice.text(format!(" ---> {}\n", stage.id()?.short())).await;
        Ok(())
    }

    /// After an instruction that only describes: cached is what a stage had come to before.
    async fn say_described(&self, stage: &Stage, place: &Place<'_>) -> Result<()> {
        let known = self.cache.reached(&stage.id()?)?;
        if known && !self.no_cache {
            place.voice.text(" ---> Using cache\n").await;
        }
        self.say_state(stage, place).await
    }

    /// Takes a step's result from the cache, or says why it cannot and executes it.
    async fn step(
        self: &Arc<Self>,
        stage: &mut Stage,
        place: &Place<'_>,
        step: Step,
    ) -> Result<()> {
        let Step { inputs, manifest, history, work, alone } = step;
        let key = inputs.key();
        let slots = Slots::new(
            &stage.lineage,
            &self.project,
            &self.stage_name(place.stage),
            place.index,
            &place.located.text,
        );
        // The same step in another stage or build is waited for, not repeated.
        let _once = self.lock(&key).await?;
        self.check_cancelled()?;
        let record = match self.cached(&key).await? {
            Some(record) => {
                place.voice.text(" ---> Using cache\n").await;
                self.cache.touch(record.clone(), &slots)?;
                record
            }
            None => {
                let redacted = inputs.redacted(self.cache.salt());
                self.cache.memory.learn(&inputs, self.cache.salt());
                let reason = self.reason(&redacted, manifest.as_deref(), stage, &slots, &key);
                place.voice.text(format!(" ---> Cache miss: {reason}\n")).await;
                let below = stage.chain.as_ref().filter(|_| !alone);
                let layer = self.execute(below, place, work, &key).await?;
                let record = self.record(key, redacted, layer, &history);
                self.cache.put(&record, manifest.as_deref(), &slots)?;
                record
            }
        };
        stage.created = self.epoch.clone().unwrap_or_else(|| rfc3339(record.created));
        if let Some(layer) = &record.layer {
            match (&stage.chain, alone) {
                (Some(chain), true) => {
                    let layer = self.session.stack(&record.key, layer, chain).await?;
                    stage.add_layer(&layer)?;
                }
                _ => stage.add_layer(layer)?,
            }
            let text = &place.located.text;
            stage.parent = Parent { name: format!("the parent {} ({})", place.name, clip(text)) };
        }
        stage.note(&history, record.layer.is_none());
        self.say_state(stage, place).await
    }

    async fn cached(&self, key: &str) -> Result<Option<Record>> {
        if self.no_cache {
            return Ok(None);
        }
        let Some(record) = self.cache.get(key).filter(|record| !record.pruned) else {
            return Ok(None);
        };
        Ok(match &record.layer {
            Some(layer) if !self.session.is_present(layer).await? => None,
            _ => Some(record),
        })
    }

    fn reason(
        &self,
        now: &Inputs,
        manifest: Option<&str>,
        stage: &Stage,
        slots: &Slots,
        key: &str,
    ) -> String {
        if self.no_cache {
            return "the build does not use the cache (--no-cache)".into();
        }
        // A record of this very key whose layer is gone says most.
        let found = match self.cache.get(key) {
            Some(record) => Some((record, None)),
            None => self.cache.predecessor(slots),
        };
        let memory = &self.cache.memory;
        let found = found.map(|(record, manifest)| (memory.recall(&record.inputs), manifest));
        let earlier =
            found.as_ref().map(|(inputs, manifest)| Earlier { inputs, manifest: manifest.clone() });
        let now = &memory.recall(now);
        key::reason(now, manifest, &stage.parent, earlier.as_ref())
    }

    fn record(&self, key: String, inputs: Inputs, layer: Option<Layer>, text: &str) -> Record {
        let now = Timestamp::now();
        Record {
            key,
            inputs,
            bytes: layer.as_ref().map_or(0, |layer| layer.descriptor.size),
            layer,
            description: text.into(),
            created: now,
            last_used: now,
            uses: 1,
            pruned: false,
        }
    }

    /// Runs a step on a snapshot of its own, and makes a layer of what it changed.
    async fn execute(
        self: &Arc<Self>,
        below: Option<&Digest>,
        place: &Place<'_>,
        work: Work,
        key: &str,
    ) -> Result<Option<Layer>> {
        let (snapshot, mounts) = self.session.prepare(below).await?;
        let changed = match work {
            Work::Run(run) => self.execute_run(place, &snapshot, mounts, *run).await.map(|()| true),
            Work::Copy(copy) => self.execute_copy(place, mounts, *copy).await.map(|()| true),
            Work::Workdir(path) => match self.session.open_tree(mounts).await {
                Ok(root) => {
                    crate::session::blocking(move || {
                        crate::copy::make_dir(std::os::fd::AsFd::as_fd(&root), &path)
                    })
                    .await
                }
                Err(error) => Err(error),
            },
        };
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) => {
                if let Err(second) = self.session.discard(&snapshot).await {
                    tracing::warn!(error = %second, snapshot, "snapshot of a failed step stays");
                }
                return Err(error);
            }
        };
        if !changed {
            self.session.discard(&snapshot).await?;
            return Ok(None);
        }
        let layer = self.session.commit(&snapshot, below).await?;
        self.session.hold(key, &layer).await?;
        Ok(Some(layer))
    }
}

pub(crate) fn chain_text(stage: &Stage) -> String {
    stage.chain.as_ref().map(Digest::to_string).unwrap_or_default()
}

/// A path as WORKDIR sees it: absolute and clean.
pub(crate) fn join(dir: &str, path: &str) -> String {
    if path.starts_with('/') {
        return dockerfile::glob::clean(path);
    }
    dockerfile::glob::clean(&format!("{dir}/{path}"))
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

pub(crate) fn rfc3339(time: Timestamp) -> String {
    let nanos = i32::try_from(time.nanos).unwrap_or(0);
    match jiff::Timestamp::new(time.seconds, nanos) {
        Ok(time) => time.to_string(),
        Err(_) => "1970-01-01T00:00:00Z".into(),
    }
}

/// Applies an instruction that only changes the configuration; answers its line in the history.
fn describe(stage: &mut Stage, instruction: &Instruction, located: &Located) -> Result<String> {
    let list = |words: &[String]| json!(words).to_string();
    let config = &mut stage.config;
    Ok(match instruction {
        Instruction::Env(pairs) => {
            config.set_env(pairs);
            format!("ENV {}", pairs_text(pairs))
        }
        Instruction::Label(pairs) => {
            let labels = pairs.iter().map(|(name, value)| (name.clone(), json!(value)));
            config.extend("Labels", labels);
            format!("LABEL {}", pairs_text(pairs))
        }
        Instruction::User(user) => {
            config.set("User", json!(user));
            format!("USER {user}")
        }
        Instruction::Cmd(command) => {
            let words = config.command_line(command);
            config.set("Cmd", json!(words));
            stage.cmd_set = true;
            format!("CMD {}", list(&words))
        }
        Instruction::Entrypoint(command) => {
            let words = config.command_line(command);
            config.set("Entrypoint", json!(words));
            if !stage.cmd_set {
                config.remove("Cmd");
            }
            format!("ENTRYPOINT {}", list(&words))
        }
        Instruction::Expose(words) => {
            let ports = dockerfile::exposed_ports(words)
                .map_err(|source| Error::Expand { line: located.lines.start, source })?;
            config.extend("ExposedPorts", ports.iter().map(|port| (port.clone(), json!({}))));
            format!("EXPOSE {}", ports.join(" "))
        }
        Instruction::Volume(paths) => {
            config.extend("Volumes", paths.iter().map(|path| (path.clone(), json!({}))));
            format!("VOLUME {}", list(paths))
        }
        Instruction::Shell(words) => {
            config.set("Shell", json!(words));
            format!("SHELL {}", list(words))
        }
        Instruction::StopSignal(signal) => {
            config.set("StopSignal", Value::String(signal.clone()));
            format!("STOPSIGNAL {signal}")
        }
        Instruction::Healthcheck(check) => {
            config.set_healthcheck(check);
            located.text.clone()
        }
        Instruction::Onbuild(text) => {
            config.add_trigger(text);
            format!("ONBUILD {text}")
        }
        Instruction::Maintainer(author) => {
            config.set_author(author);
            format!("MAINTAINER {author}")
        }
        // These make layers or were handled before.
        Instruction::Run(_)
        | Instruction::Copy(_)
        | Instruction::Add(_)
        | Instruction::Workdir(_)
        | Instruction::Arg(_) => located.text.clone(),
    })
}

fn pairs_text(pairs: &[(String, String)]) -> String {
    let texts: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    texts.join(" ")
}
