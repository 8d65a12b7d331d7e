//! Calls about containers and exec.

use api_types::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;

use crate::client::{Client, Hijacked, Request, escape_path};
use crate::stream::ByteStream;
use crate::{Body, Error, Result};

/// What to attach.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Replay what was logged first.
    pub logs: bool,
    /// Empty: the engine's default.
    pub detach_keys: String,
}

/// What of the logs to fetch.
#[derive(Debug, Clone, Default)]
pub struct LogsOptions {
    pub follow: bool,
    pub timestamps: bool,
    pub details: bool,
    /// Unix seconds, with a fraction; empty: from the start.
    pub since: String,
    pub until: String,
    /// Number of lines, or `all`.
    pub tail: String,
}

/// How to start an exec.
#[derive(Debug, Clone, Default)]
pub struct StartExec {
    pub tty: bool,
    pub console_size: Option<[u32; 2]>,
}

fn path(id: &str, call: &str) -> String {
    format!("/containers/{}{call}", escape_path(id))
}

impl Client {
    pub async fn container_list(
        &self,
        all: bool,
        limit: Option<i64>,
        size: bool,
        filters: &Filters,
    ) -> Result<Vec<ContainerSummary>> {
        let filters = (!filters.is_empty()).then(|| filters.to_json());
        let request = Request::get("/containers/json")
            .flag("all", all)
            .maybe("limit", limit.map(|n| n.to_string()))
            .flag("size", size)
            .maybe("filters", filters);
        self.json(request).await
    }

    pub async fn container_create(
        &self,
        body: &ContainerCreateBody,
        name: &str,
        platform: &str,
    ) -> Result<ContainerCreateResponse> {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let request = Request::post("/containers/create")
            .maybe("name", some(name))
            .maybe("platform", some(platform))
            .json(body);
        self.json(request).await
    }

    pub async fn container_inspect(&self, id: &str) -> Result<ContainerInspect> {
        self.json(Request::get(path(id, "/json"))).await
    }

    /// The reply as it is, for printing.
    pub async fn container_inspect_raw(&self, id: &str, size: bool) -> Result<Bytes> {
        self.bytes(Request::get(path(id, "/json")).flag("size", size)).await
    }

    pub async fn container_attach(&self, id: &str, options: &AttachOptions) -> Result<Hijacked> {
        let keys = &options.detach_keys;
        let request = Request::post(path(id, "/attach"))
            .flag("stream", true)
            .flag("stdin", options.stdin)
            .flag("stdout", options.stdout)
            .flag("stderr", options.stderr)
            .flag("logs", options.logs)
            .maybe("detachKeys", (!keys.is_empty()).then(|| keys.clone()))
            .header(CONTENT_TYPE, "text/plain");
        self.hijack(request).await
    }

    pub async fn container_start(&self, id: &str, detach_keys: &str) -> Result<()> {
        let keys = (!detach_keys.is_empty()).then(|| detach_keys.to_owned());
        self.done(Request::post(path(id, "/start")).maybe("detachKeys", keys)).await
    }

    /// `timeout_s`: -1 waits for ever, `None` is the container's own.
    pub async fn container_stop(
        &self,
        id: &str,
        signal: &str,
        timeout_s: Option<i64>,
    ) -> Result<()> {
        let signal = (!signal.is_empty()).then(|| signal.to_owned());
        let request = Request::post(path(id, "/stop"))
            .maybe("signal", signal)
            .maybe("t", timeout_s.map(|t| t.to_string()));
        self.done(request).await
    }

    pub async fn container_restart(
        &self,
        id: &str,
        signal: &str,
        timeout_s: Option<i64>,
    ) -> Result<()> {
        let signal = (!signal.is_empty()).then(|| signal.to_owned());
        let request = Request::post(path(id, "/restart"))
            .maybe("signal", signal)
            .maybe("t", timeout_s.map(|t| t.to_string()));
        self.done(request).await
    }

    pub async fn container_kill(&self, id: &str, signal: &str) -> Result<()> {
        let signal = (!signal.is_empty()).then(|| signal.to_owned());
        self.done(Request::post(path(id, "/kill")).maybe("signal", signal)).await
    }

    pub async fn container_pause(&self, id: &str) -> Result<()> {
        self.done(Request::post(path(id, "/pause"))).await
    }

    pub async fn container_unpause(&self, id: &str) -> Result<()> {
        self.done(Request::post(path(id, "/unpause"))).await
    }

    pub async fn container_rename(&self, id: &str, name: &str) -> Result<()> {
        self.done(Request::post(path(id, "/rename")).query("name", name)).await
    }

    pub async fn container_remove(
        &self,
        id: &str,
        volumes: bool,
        link: bool,
        force: bool,
    ) -> Result<()> {
        let request = Request::delete(path(id, ""))
            .flag("v", volumes)
            .flag("link", link)
            .flag("force", force);
        self.done(request).await
    }

    /// Sends the wait and returns once the engine has answered its header: from then on no exit
    /// is missed. The status itself is read from the stream.
    pub async fn container_wait(&self, id: &str, condition: &str) -> Result<ByteStream> {
        let condition = (!condition.is_empty()).then(|| condition.to_owned());
        self.stream(Request::post(path(id, "/wait")).maybe("condition", condition)).await
    }

    pub async fn container_logs(&self, id: &str, options: &LogsOptions) -> Result<ByteStream> {
        let some = |s: &String| (!s.is_empty()).then(|| s.clone());
        let request = Request::get(path(id, "/logs"))
            .flag("stdout", true)
            .flag("stderr", true)
            .flag("follow", options.follow)
            .flag("timestamps", options.timestamps)
            .flag("details", options.details)
            .maybe("since", some(&options.since))
            .maybe("until", some(&options.until))
            .maybe("tail", some(&options.tail));
        self.stream(request).await
    }

    pub async fn container_resize(&self, id: &str, height: u32, width: u32) -> Result<()> {
        let request = Request::post(path(id, "/resize"))
            .query("h", height.to_string())
            .query("w", width.to_string());
        self.done(request).await
    }

    pub async fn container_top(&self, id: &str, ps_args: &str) -> Result<TopResponse> {
        let args = (!ps_args.is_empty()).then(|| ps_args.to_owned());
        self.json(Request::get(path(id, "/top")).maybe("ps_args", args)).await
    }

    pub async fn container_changes(&self, id: &str) -> Result<Vec<Change>> {
        let changes: Option<Vec<Change>> = self.json(Request::get(path(id, "/changes"))).await?;
        Ok(changes.unwrap_or_default())
    }

    pub async fn container_update(&self, id: &str, body: &UpdateBody) -> Result<UpdateResponse> {
        self.json(Request::post(path(id, "/update")).json(body)).await
    }

    /// Samples, one JSON object a second, or a single one.
    pub async fn container_stats(&self, id: &str, stream: bool) -> Result<ByteStream> {
        let request =
            Request::get(path(id, "/stats")).query("stream", if stream { "1" } else { "0" });
        self.stream(request).await
    }

    pub async fn container_export(&self, id: &str) -> Result<ByteStream> {
        self.stream(Request::get(path(id, "/export"))).await
    }

    pub async fn container_prune(&self, filters: &Filters) -> Result<ContainersPruneReport> {
        let filters = (!filters.is_empty()).then(|| filters.to_json());
        self.json(Request::post("/containers/prune").maybe("filters", filters)).await
    }

    /// What stands at `path` inside the container.
    pub async fn container_stat(&self, id: &str, inside: &str) -> Result<PathStat> {
        let request = Request::new(Method::HEAD, path(id, "/archive")).query("path", inside);
        let what = format!("HEAD {}", request.path);
        let reply =
            ByteStream::new(self.send(request).await.map_err(|e| bare_head_error(e, id, inside))?);
        path_stat(&reply, &what)
    }

    /// The tar of `path` inside the container, and what stands there.
    pub async fn container_archive_get(
        &self,
        id: &str,
        inside: &str,
    ) -> Result<(ByteStream, PathStat)> {
        let request = Request::get(path(id, "/archive")).query("path", inside);
        let what = format!("GET {}", request.path);
        let stream = self.stream(request).await?;
        let stat = path_stat(&stream, &what)?;
        Ok((stream, stat))
    }

    /// Unpacks a tar at `path` inside the container.
    pub async fn container_archive_put(
        &self,
        id: &str,
        inside: &str,
        copy_uid_gid: bool,
        tar: Body,
    ) -> Result<()> {
        let request = Request::new(Method::PUT, path(id, "/archive"))
            .query("path", inside)
            .query("noOverwriteDirNonDir", "true")
            .maybe("copyUIDGID", copy_uid_gid.then(|| "true".to_owned()))
            .header(CONTENT_TYPE, "application/x-tar")
            .body(tar);
        self.done(request).await
    }

    pub async fn exec_create(&self, id: &str, body: &ExecCreate) -> Result<String> {
        let reply: IdResponse = self.json(Request::post(path(id, "/exec")).json(body)).await?;
        Ok(reply.id)
    }

    pub async fn exec_start_detached(&self, exec: &str, options: &StartExec) -> Result<()> {
        let body = ExecStart { detach: true, tty: options.tty, console_size: options.console_size };
        self.done(Request::post(format!("/exec/{}/start", escape_path(exec))).json(&body)).await
    }

    pub async fn exec_start(&self, exec: &str, options: &StartExec) -> Result<Hijacked> {
        let body =
            ExecStart { detach: false, tty: options.tty, console_size: options.console_size };
        self.hijack(Request::post(format!("/exec/{}/start", escape_path(exec))).json(&body)).await
    }

    pub async fn exec_resize(&self, exec: &str, height: u32, width: u32) -> Result<()> {
        let request = Request::post(format!("/exec/{}/resize", escape_path(exec)))
            .query("h", height.to_string())
            .query("w", width.to_string());
        self.done(request).await
    }

    pub async fn exec_inspect(&self, exec: &str) -> Result<ExecInspect> {
        self.json(Request::get(format!("/exec/{}/json", escape_path(exec)))).await
    }
}

/// A reply to HEAD has no body, hence no text.
fn bare_head_error(error: Error, id: &str, inside: &str) -> Error {
    match error {
        Error::Api { status, .. } if status == http::StatusCode::NOT_FOUND => Error::Api {
            status,
            message: format!("Could not find the file {inside} in container {id}"),
        },
        other => other,
    }
}

fn path_stat(reply: &ByteStream, what: &str) -> Result<PathStat> {
    const HEADER: &str = "X-Docker-Container-Path-Stat";
    let bad = || Error::Header { what: what.to_owned(), header: HEADER };
    let text = reply.header(HEADER).ok_or_else(bad)?;
    let json = STANDARD.decode(text).map_err(|_| bad())?;
    serde_json::from_slice(&json).map_err(|_| bad())
}
