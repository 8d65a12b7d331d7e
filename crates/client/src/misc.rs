//! Calls about networks, volumes and the engine itself.

use api_types::*;
use bytes::Bytes;

use crate::Result;
use crate::client::{Client, Request, escape_path};
use crate::stream::JsonLines;

fn filters_of(filters: &Filters) -> Option<String> {
    (!filters.is_empty()).then(|| filters.to_json())
}

impl Client {
    pub async fn network_list(&self, filters: &Filters) -> Result<Vec<Network>> {
        self.json(Request::get("/networks").maybe("filters", filters_of(filters))).await
    }

    /// The reply as it is, for printing.
    pub async fn network_inspect_raw(&self, name: &str, verbose: bool) -> Result<Bytes> {
        let request =
            Request::get(format!("/networks/{}", escape_path(name))).flag("verbose", verbose);
        self.bytes(request).await
    }

    pub async fn network_create(&self, body: &NetworkCreate) -> Result<NetworkCreateResponse> {
        self.json(Request::post("/networks/create").json(body)).await
    }

    pub async fn network_remove(&self, name: &str) -> Result<()> {
        self.done(Request::delete(format!("/networks/{}", escape_path(name)))).await
    }

    pub async fn network_connect(&self, network: &str, body: &NetworkConnect) -> Result<()> {
        let path = format!("/networks/{}/connect", escape_path(network));
        self.done(Request::post(path).json(body)).await
    }

    pub async fn network_disconnect(&self, network: &str, body: &NetworkDisconnect) -> Result<()> {
        let path = format!("/networks/{}/disconnect", escape_path(network));
        self.done(Request::post(path).json(body)).await
    }

    pub async fn network_prune(&self, filters: &Filters) -> Result<NetworksPruneReport> {
        self.json(Request::post("/networks/prune").maybe("filters", filters_of(filters))).await
    }

    pub async fn volume_list(&self, filters: &Filters) -> Result<VolumeList> {
        self.json(Request::get("/volumes").maybe("filters", filters_of(filters))).await
    }

    /// The reply as it is, for printing.
    pub async fn volume_inspect_raw(&self, name: &str) -> Result<Bytes> {
        self.bytes(Request::get(format!("/volumes/{}", escape_path(name)))).await
    }

    pub async fn volume_create(&self, body: &VolumeCreate) -> Result<Volume> {
        self.json(Request::post("/volumes/create").json(body)).await
    }

    pub async fn volume_remove(&self, name: &str, force: bool) -> Result<()> {
        self.done(Request::delete(format!("/volumes/{}", escape_path(name))).flag("force", force))
            .await
    }

    pub async fn volume_prune(&self, filters: &Filters) -> Result<VolumesPruneReport> {
        self.json(Request::post("/volumes/prune").maybe("filters", filters_of(filters))).await
    }

    pub async fn info(&self) -> Result<Info> {
        self.json(Request::get("/info")).await
    }

    pub async fn version(&self) -> Result<Version> {
        self.json(Request::get("/version")).await
    }

    pub async fn disk_usage(&self) -> Result<DiskUsage> {
        self.json(Request::get("/system/df")).await
    }

    /// Events; `since` and `until` in unix seconds (with a fraction), a date, or a duration back.
    pub async fn events(
        &self,
        since: &str,
        until: &str,
        filters: &Filters,
    ) -> Result<JsonLines<Event>> {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let request = Request::get("/events")
            .maybe("since", some(since))
            .maybe("until", some(until))
            .maybe("filters", filters_of(filters));
        Ok(self.stream(request).await?.json_lines())
    }

    /// Checks credentials with a registry. The engine may answer with nothing at all.
    pub async fn auth(&self, auth: &AuthConfig) -> Result<AuthResponse> {
        let bytes = self.bytes(Request::post("/auth").json(auth)).await?;
        if bytes.is_empty() {
            return Ok(AuthResponse::default());
        }
        serde_json::from_slice(&bytes)
            .map_err(|source| crate::Error::Decode { what: "POST /auth".to_owned(), source })
    }
}
