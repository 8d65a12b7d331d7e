//! Images, their history, removal, distribution and search.

use crate::wire::{Empty, Map, StrSlice, nil, zero};
use crate::{GraphDriverData, HealthConfig};

wire! {
    /// Reply of `GET /images/{name}/json`.
    pub struct ImageInspect {
        /// The manifest's or index's digest.
        pub id: String,
        pub repo_tags: Vec<String>,
        pub repo_digests: Vec<String>,
        pub parent: String,
        pub comment: String,
        #[serde(skip_serializing_if = "zero")]
        pub created: String,
        pub docker_version: String,
        pub author: String,
        pub config: ImageConfig,
        pub architecture: String,
        #[serde(skip_serializing_if = "zero")]
        pub variant: String,
        pub os: String,
        #[serde(skip_serializing_if = "zero")]
        pub os_version: String,
        /// Bytes.
        pub size: i64,
        /// Same as `size`; only below 1.44.
        #[serde(skip_serializing_if = "zero")]
        pub virtual_size: i64,
        pub graph_driver: GraphDriverData,
        #[serde(rename = "RootFS")]
        pub root_fs: RootFs,
        pub metadata: ImageMetadata,
        /// Since 1.48.
        #[serde(skip_serializing_if = "zero")]
        pub descriptor: Option<OciDescriptor>,
        /// Since 1.48, with `manifests=1`.
        #[serde(skip_serializing_if = "zero")]
        pub manifests: Vec<ManifestSummary>,
    }

    /// The image's own defaults; everything empty is left out (the shape of 1.50).
    pub struct ImageConfig {
        #[serde(skip_serializing_if = "zero")]
        pub user: String,
        #[serde(skip_serializing_if = "zero")]
        pub exposed_ports: Map<Empty>,
        #[serde(skip_serializing_if = "zero")]
        pub env: Vec<String>,
        #[serde(skip_serializing_if = "zero")]
        pub entrypoint: Option<StrSlice>,
        #[serde(skip_serializing_if = "zero")]
        pub cmd: Option<StrSlice>,
        #[serde(skip_serializing_if = "zero")]
        pub volumes: Map<Empty>,
        #[serde(skip_serializing_if = "zero")]
        pub working_dir: String,
        #[serde(skip_serializing_if = "zero")]
        pub labels: Map<String>,
        #[serde(skip_serializing_if = "zero")]
        pub stop_signal: String,
        #[serde(skip_serializing_if = "zero")]
        pub args_escaped: bool,
        #[serde(skip_serializing_if = "zero")]
        pub healthcheck: Option<HealthConfig>,
        #[serde(skip_serializing_if = "zero")]
        pub on_build: Vec<String>,
        #[serde(skip_serializing_if = "zero")]
        pub shell: Option<StrSlice>,
    }

    #[derive(Eq)]
    pub struct RootFs {
        pub r#type: String,
        #[serde(skip_serializing_if = "zero")]
        pub layers: Vec<String>,
    }

    #[derive(Eq)]
    pub struct ImageMetadata {
        /// `crate::ZERO_TIME` when it was never tagged here.
        #[serde(skip_serializing_if = "zero")]
        pub last_tag_time: String,
    }

    /// A descriptor of the OCI image specification (camelCase names).
    #[derive(Eq)]
    pub struct OciDescriptor {
        #[serde(rename = "mediaType")]
        pub media_type: String,
        #[serde(rename = "digest")]
        pub digest: String,
        #[serde(rename = "size")]
        pub size: i64,
        #[serde(rename = "urls", skip_serializing_if = "zero")]
        pub urls: Vec<String>,
        #[serde(rename = "annotations", skip_serializing_if = "zero")]
        pub annotations: Map<String>,
        #[serde(rename = "platform", skip_serializing_if = "zero")]
        pub platform: Option<OciPlatform>,
        #[serde(rename = "artifactType", skip_serializing_if = "zero")]
        pub artifact_type: String,
    }

    /// A platform of the OCI image specification.
    #[derive(Eq)]
    pub struct OciPlatform {
        #[serde(rename = "architecture")]
        pub architecture: String,
        #[serde(rename = "os")]
        pub os: String,
        #[serde(rename = "os.version", skip_serializing_if = "zero")]
        pub os_version: String,
        #[serde(rename = "os.features", skip_serializing_if = "zero")]
        pub os_features: Vec<String>,
        #[serde(rename = "variant", skip_serializing_if = "zero")]
        pub variant: String,
    }

    /// One manifest of a multi-platform image (1.47, `manifests=1`).
    pub struct ManifestSummary {
        #[serde(rename = "ID")]
        pub id: String,
        pub descriptor: OciDescriptor,
        pub available: bool,
        /// image, attestation, unknown.
        pub kind: String,
        pub size: ManifestSize,
        #[serde(skip_serializing_if = "zero")]
        pub image_data: Option<ManifestImageData>,
        #[serde(skip_serializing_if = "zero")]
        pub attestation_data: Option<ManifestAttestationData>,
    }

    #[derive(Eq)]
    pub struct ManifestSize {
        pub content: i64,
        pub total: i64,
    }

    pub struct ManifestImageData {
        pub platform: OciPlatform,
        pub containers: Vec<String>,
        pub size: ManifestImageSize,
    }

    #[derive(Eq)]
    pub struct ManifestImageSize {
        pub unpacked: i64,
    }

    #[derive(Eq)]
    pub struct ManifestAttestationData {
        pub r#for: String,
    }

    /// One row of `GET /images/json`.
    pub struct ImageSummary {
        /// -1 when not counted.
        pub containers: i64,
        /// Unix seconds.
        pub created: i64,
        pub id: String,
        #[serde(serialize_with = "nil")]
        pub labels: Map<String>,
        pub parent_id: String,
        #[serde(skip_serializing_if = "zero")]
        pub descriptor: Option<OciDescriptor>,
        #[serde(skip_serializing_if = "zero")]
        pub manifests: Vec<ManifestSummary>,
        pub repo_digests: Vec<String>,
        pub repo_tags: Vec<String>,
        /// -1 when not computed.
        pub shared_size: i64,
        pub size: i64,
        /// Same as `size`; only below 1.44.
        #[serde(skip_serializing_if = "zero")]
        pub virtual_size: i64,
    }

    /// One row of `GET /images/{name}/history`, the newest first.
    #[derive(Eq)]
    pub struct HistoryItem {
        pub comment: String,
        /// Unix seconds.
        pub created: i64,
        pub created_by: String,
        /// `<missing>` where the layer has no image of its own.
        pub id: String,
        pub size: i64,
        #[serde(serialize_with = "nil")]
        pub tags: Vec<String>,
    }

    /// Reply of `GET /images/{name}/layers`, which is an extension of this engine. Bytes are those of
    /// regular files as the layers have them, without holes, and once for all names of a file. What a
    /// layer added is either seen in the image, or was overwritten, or deleted.
    #[derive(Eq)]
    pub struct ImageLayers {
        /// As in `GET /images/{name}/json`.
        pub id: String,
        /// `OS/ARCHITECTURE[/VARIANT]`.
        pub platform: String,
        /// Bytes of the files that are seen in the image.
        pub seen: i64,
        pub seen_files: i64,
        /// Bytes that could be saved: the sum of `advice`.
        pub saving: i64,
        /// The lowest first.
        pub layers: Vec<ImageLayer>,
        /// The largest first.
        pub advice: Vec<LayerAdvice>,
    }

    #[derive(Eq)]
    pub struct ImageLayer {
        /// Of the blob.
        pub digest: String,
        /// Of the uncompressed tar.
        #[serde(rename = "DiffID")]
        pub diff_id: String,
        /// Bytes of the blob, as a registry has it.
        pub size: i64,
        /// The instruction that made it, from the image's history; empty if that does not fit the layers.
        pub created_by: String,
        pub added: i64,
        pub files: i64,
        /// Marks that hide names (whiteouts) or all that a directory had (opaque) in the layers below. An
        /// overlay marks each directory that is new, too.
        pub removals: i64,
        pub overwritten: i64,
        pub deleted: i64,
        /// The largest first.
        pub largest: Vec<LayerFile>,
    }

    #[derive(Eq)]
    pub struct LayerFile {
        pub path: String,
        pub size: i64,
        /// `seen`, `overwritten` or `deleted`.
        pub fate: String,
        /// The layer that did it, counted from 1; 0 for what is seen.
        pub by: i64,
    }

    /// Bytes that the image could do without, and how.
    #[derive(Eq)]
    pub struct LayerAdvice {
        /// `deleted`, `overwritten`, `rewritten`, `copied`, or `cache`.
        pub kind: String,
        /// The layer that has the bytes, counted from 1.
        pub layer: i64,
        /// The layer that made them useless, or has the original; 0 if there is none.
        pub by: i64,
        pub size: i64,
        pub files: i64,
        pub examples: Vec<AdviceFile>,
        pub advice: String,
    }

    #[derive(Eq)]
    pub struct AdviceFile {
        pub path: String,
        pub size: i64,
        /// What it is a copy of.
        #[serde(skip_serializing_if = "zero")]
        pub original: String,
    }

    /// One row of the reply to `DELETE /images/{name}`.
    #[derive(Eq)]
    pub struct ImageDeleteItem {
        #[serde(skip_serializing_if = "zero")]
        pub deleted: String,
        #[serde(skip_serializing_if = "zero")]
        pub untagged: String,
    }

    /// One row of `GET /images/search`.
    #[derive(Eq)]
    pub struct SearchResult {
        #[serde(rename = "star_count")]
        pub star_count: i64,
        #[serde(rename = "is_official")]
        pub is_official: bool,
        #[serde(rename = "name")]
        pub name: String,
        #[serde(rename = "is_automated")]
        pub is_automated: bool,
        #[serde(rename = "description")]
        pub description: String,
    }

    /// Reply of `GET /distribution/{name}/json`.
    #[derive(Eq)]
    pub struct DistributionInspect {
        pub descriptor: OciDescriptor,
        pub platforms: Vec<OciPlatform>,
    }
}
