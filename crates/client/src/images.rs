//! Calls about images and builds.

use api_types::*;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};

use crate::client::{Client, Query, Request, escape_path};
use crate::stream::{ByteStream, JsonLines};
use crate::{Body, Result};

const REGISTRY_AUTH: HeaderName = HeaderName::from_static("x-registry-auth");
const REGISTRY_CONFIG: HeaderName = HeaderName::from_static("x-registry-config");

/// How to make an image from a container.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    pub container: String,
    pub repo: String,
    pub tag: String,
    pub comment: String,
    pub author: String,
    pub pause: bool,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
}

/// How to make an image from a tar.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// A URL, or `-` for the body.
    pub source: String,
    pub repo: String,
    pub tag: String,
    pub message: String,
    pub changes: Vec<String>,
    pub platform: String,
}

fn path(name: &str, call: &str) -> String {
    format!("/images/{}{call}", escape_path(name))
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Operating systems that a platform may name without an architecture.
const SYSTEMS: [&str; 4] = ["linux", "windows", "darwin", "freebsd"];

/// `linux/arm64/v8` as the JSON that `platform` parameters of 1.48 and newer want.
fn platform_json(platform: &str) -> Option<String> {
    if platform.is_empty() {
        return None;
    }
    // A word alone that is no system is an architecture, as for containerd's `platforms.Parse`.
    let alone = !platform.contains('/') && !SYSTEMS.contains(&platform);
    let platform = if alone { format!("linux/{platform}") } else { platform.to_owned() };
    let mut parts = platform.splitn(3, '/');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let platform =
        OciPlatform { os: next(), architecture: next(), variant: next(), ..OciPlatform::default() };
    Some(serde_json::json!(platform).to_string())
}

/// What `POST /images/{name}/squash` takes; what is empty is not said.
#[derive(Clone, Debug, Default)]
pub struct SquashOptions {
    pub tag: String,
    pub from: String,
    pub platform: String,
    pub comment: String,
}

/// Credentials as a header.
pub(crate) fn encode_auth(auth: &impl serde::Serialize) -> String {
    URL_SAFE.encode(serde_json::json!(auth).to_string())
}

impl Client {
    pub async fn image_list(
        &self,
        all: bool,
        shared_size: bool,
        filters: &Filters,
    ) -> Result<Vec<ImageSummary>> {
        let filters = (!filters.is_empty()).then(|| filters.to_json());
        let request = Request::get("/images/json")
            .flag("all", all)
            .flag("shared-size", shared_size)
            .maybe("filters", filters);
        self.json(request).await
    }

    pub async fn image_inspect(&self, name: &str) -> Result<ImageInspect> {
        self.json(Request::get(path(name, "/json"))).await
    }

    /// The reply as it is, for printing.
    pub async fn image_inspect_raw(&self, name: &str, platform: &str) -> Result<Bytes> {
        self.bytes(Request::get(path(name, "/json")).maybe("platform", platform_json(platform)))
            .await
    }

    pub async fn image_history(&self, name: &str, platform: &str) -> Result<Vec<HistoryItem>> {
        self.json(Request::get(path(name, "/history")).maybe("platform", platform_json(platform)))
            .await
    }

    /// Of this engine alone. `top`: files named per layer and per advice.
    pub async fn image_layers(&self, name: &str, platform: &str, top: i64) -> Result<ImageLayers> {
        let request = Request::get(path(name, "/layers"))
            .query("top", top.to_string())
            .maybe("platform", platform_json(platform));
        self.json(request).await
    }

    /// Of this engine alone: makes an image with fewer layers; its id.
    pub async fn image_squash(&self, name: &str, options: &SquashOptions) -> Result<String> {
        let request = Request::post(path(name, "/squash"))
            .maybe("t", some(&options.tag))
            .maybe("from", some(&options.from))
            .maybe("platform", platform_json(&options.platform))
            .maybe("comment", some(&options.comment));
        let reply: IdResponse = self.json(request).await?;
        Ok(reply.id)
    }

    pub async fn image_tag(&self, source: &str, repo: &str, tag: &str) -> Result<()> {
        let request = Request::post(path(source, "/tag")).query("repo", repo).query("tag", tag);
        self.done(request).await
    }

    pub async fn image_remove(
        &self,
        name: &str,
        force: bool,
        no_prune: bool,
        platforms: &[String],
    ) -> Result<Vec<ImageDeleteItem>> {
        let mut request =
            Request::delete(path(name, "")).flag("force", force).flag("noprune", no_prune);
        for platform in platforms {
            request = request.maybe("platforms", platform_json(platform));
        }
        self.json(request).await
    }

    /// Pulls `repo` with `tag` (a tag or a digest; empty: all tags).
    pub async fn image_pull(
        &self,
        repo: &str,
        tag: &str,
        platform: &str,
        auth: Option<&AuthConfig>,
    ) -> Result<JsonLines<JsonMessage>> {
        let mut request = Request::post("/images/create")
            .query("fromImage", repo)
            .query("tag", tag)
            .maybe("platform", some(platform));
        if let Some(auth) = auth {
            request = request.header(REGISTRY_AUTH, encode_auth(auth));
        }
        Ok(self.stream(request).await?.json_lines())
    }

    pub async fn image_push(
        &self,
        repo: &str,
        tag: &str,
        platform: &str,
        auth: &AuthConfig,
    ) -> Result<JsonLines<JsonMessage>> {
        let request = Request::post(path(repo, "/push"))
            .maybe("tag", some(tag))
            .maybe("platform", platform_json(platform))
            .header(REGISTRY_AUTH, encode_auth(auth));
        Ok(self.stream(request).await?.json_lines())
    }

    pub async fn image_import(
        &self,
        options: &ImportOptions,
        tar: Body,
    ) -> Result<JsonLines<JsonMessage>> {
        let mut request = Request::post("/images/create")
            .query("fromSrc", options.source.clone())
            .maybe("repo", some(&options.repo))
            .maybe("tag", some(&options.tag))
            .maybe("message", some(&options.message))
            .maybe("platform", some(&options.platform));
        request.query.extend(options.changes.iter().map(|c| ("changes", c.clone())));
        request = request.header(CONTENT_TYPE, "application/x-tar").body(tar);
        Ok(self.stream(request).await?.json_lines())
    }

    pub async fn image_load(
        &self,
        quiet: bool,
        platforms: &[String],
        tar: Body,
    ) -> Result<ByteStream> {
        let mut request =
            Request::post("/images/load").query("quiet", if quiet { "1" } else { "0" });
        for platform in platforms {
            request = request.maybe("platform", platform_json(platform));
        }
        self.stream(request.header(CONTENT_TYPE, "application/x-tar").body(tar)).await
    }

    pub async fn image_save(&self, names: &[String], platforms: &[String]) -> Result<ByteStream> {
        let mut request = Request::get("/images/get");
        for name in names {
            request = request.query("names", name.clone());
        }
        for platform in platforms {
            request = request.maybe("platform", platform_json(platform));
        }
        self.stream(request).await
    }

    pub async fn image_prune(&self, filters: &Filters) -> Result<ImagesPruneReport> {
        let filters = (!filters.is_empty()).then(|| filters.to_json());
        self.json(Request::post("/images/prune").maybe("filters", filters)).await
    }

    pub async fn image_search(
        &self,
        term: &str,
        limit: Option<i64>,
        filters: &Filters,
        auth: Option<&AuthConfig>,
    ) -> Result<Vec<SearchResult>> {
        let filters = (!filters.is_empty()).then(|| filters.to_json());
        let mut request = Request::get("/images/search")
            .query("term", term)
            .maybe("limit", limit.map(|n| n.to_string()))
            .maybe("filters", filters);
        if let Some(auth) = auth {
            request = request.header(REGISTRY_AUTH, encode_auth(auth));
        }
        self.json(request).await
    }

    pub async fn commit(&self, options: &CommitOptions) -> Result<String> {
        let mut query: Query = vec![("container", options.container.clone())];
        let texts = [
            ("repo", &options.repo),
            ("tag", &options.tag),
            ("comment", &options.comment),
            ("author", &options.author),
        ];
        query.extend(texts.into_iter().filter(|(_, v)| !v.is_empty()).map(|(n, v)| (n, v.clone())));
        query.extend(options.changes.iter().map(|c| ("changes", c.clone())));
        query.push(("pause", if options.pause { "1" } else { "0" }.to_owned()));
        let mut request = Request::post("/commit").json(&serde_json::json!({}));
        request.query = query;
        let reply: IdResponse = self.json(request).await?;
        Ok(reply.id)
    }

    /// Builds an image from a context; `auths` by registry host.
    pub async fn build(
        &self,
        options: &BuildOptions,
        auths: &Map<AuthConfig>,
        context: Body,
    ) -> Result<JsonLines<JsonMessage>> {
        let mut request = Request::post("/build");
        request.query = options.to_query();
        request = request
            .header(REGISTRY_CONFIG, encode_auth(auths))
            .header(CONTENT_TYPE, "application/x-tar")
            .body(context);
        Ok(self.stream(request).await?.json_lines())
    }

    pub async fn build_prune(
        &self,
        all: bool,
        keep_storage_bytes: i64,
        filters: &Filters,
    ) -> Result<BuildCachePruneReport> {
        let filters = (!filters.is_empty()).then(|| filters.to_json());
        // Renamed in 1.48.
        let name =
            if self.api_version().await?.at_least(48) { "reserved-space" } else { "keep-storage" };
        let keep = (keep_storage_bytes > 0).then(|| keep_storage_bytes.to_string());
        let request = Request::post("/build/prune")
            .flag("all", all)
            .maybe(name, keep)
            .maybe("filters", filters);
        self.json(request).await
    }
}

#[cfg(test)]
mod platform_tests {
    use super::*;

    #[test]
    fn platforms_are_read_as_containerd_does() {
        let json = |text: &str| platform_json(text).unwrap_or_default();
        assert!(json("arm64").contains(r#""os":"linux""#), "{}", json("arm64"));
        assert!(json("linux/arm/v7").contains(r#""variant":"v7""#), "{}", json("linux/arm/v7"));
        assert!(json("windows").contains(r#""os":"windows""#), "{}", json("windows"));
        assert_eq!(platform_json(""), None);
    }
}
