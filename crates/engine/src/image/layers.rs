//! What an image's layers are made of, and what would shrink it.

use std::path::Path;

use api_types::{AdviceFile, ImageLayer, ImageLayers, LayerAdvice, LayerFile};
use store_api::{
    AnalysisRequest, Cache, EXAMPLES_MAX, Fate, ImageAnalysis, LayerAnalysis, Waste, WasteKind,
};
use types::Platform;

use super::{History, OciConfig};
use crate::{Engine, Error, Result};

impl Engine {
    /// `examples`: files named per layer and per advice, at most [`EXAMPLES_MAX`].
    pub async fn image_layers(
        &self,
        name: &str,
        platform: Option<&Platform>,
        examples: usize,
    ) -> Result<ImageLayers> {
        if examples > EXAMPLES_MAX {
            return Err(Error::invalid(format!(
                "top={examples}: at most {EXAMPLES_MAX} files are named per layer"
            )));
        }
        let known = self.find_image(name).await?;
        // The same image as `inspect` and `run` take.
        let image = self.resolve_any(&known.target, platform).await?;
        let request = AnalysisRequest { target: image.manifest.digest, platform: None, examples };
        let found = self.services.extras.analyse(request).await?;
        let config = self.read_config(&found.config).await?;
        Ok(describe(known.target.digest.to_string(), &config, &found))
    }
}

fn describe(id: String, config: &OciConfig, found: &ImageAnalysis) -> ImageLayers {
    let instructions = instructions(&config.history, found.layers.len());
    let layers = found.layers.iter().zip(&instructions);
    let platform = Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
    };
    ImageLayers {
        id,
        platform: platform.to_string(),
        seen: number(found.seen_bytes),
        seen_files: number(found.seen_files),
        saving: number(found.waste.iter().map(|waste| waste.bytes).sum()),
        layers: layers.map(|(layer, created_by)| row(layer, created_by)).collect(),
        advice: found.waste.iter().map(|waste| advice(waste, &instructions)).collect(),
    }
}

/// The instruction of each layer. History that has another number of layers says nothing of any.
fn instructions(history: &[History], layers: usize) -> Vec<String> {
    let own: Vec<&History> = history.iter().filter(|entry| !entry.empty_layer).collect();
    if own.len() != layers {
        return vec![String::new(); layers];
    }
    let text = |entry: &&History| match entry.created_by.as_str() {
        "" => entry.comment.clone(),
        created_by => created_by.to_string(),
    };
    own.iter().map(text).collect()
}

fn row(layer: &LayerAnalysis, created_by: &str) -> ImageLayer {
    let largest = layer.largest.iter().map(|file| {
        let (fate, by) = match file.fate {
            Fate::Seen => ("seen", 0),
            Fate::Overwritten { by } => ("overwritten", place(by)),
            Fate::Deleted { by } => ("deleted", place(by)),
        };
        LayerFile { path: shown(&file.path), size: number(file.bytes), fate: fate.into(), by }
    });
    ImageLayer {
        digest: layer.blob.digest.to_string(),
        diff_id: layer.diff_id.to_string(),
        size: number(layer.blob.size),
        created_by: created_by.into(),
        added: number(layer.added_bytes),
        files: number(layer.files),
        removals: number(layer.removals),
        overwritten: number(layer.overwritten_bytes),
        deleted: number(layer.deleted_bytes),
        largest: largest.collect(),
    }
}

fn advice(waste: &Waste, instructions: &[String]) -> LayerAdvice {
    let of = |layer: usize| instructions.get(layer).map_or("", String::as_str);
    let kind = match waste.kind {
        WasteKind::Deleted => "deleted",
        WasteKind::Overwritten => "overwritten",
        WasteKind::Rewritten { .. } => "rewritten",
        WasteKind::Copied => "copied",
        WasteKind::Cache(_) => "cache",
    };
    let examples = waste.examples.iter().map(|file| AdviceFile {
        path: shown(&file.path),
        size: number(file.bytes),
        original: file.original.as_deref().map(shown).unwrap_or_default(),
    });
    LayerAdvice {
        kind: kind.into(),
        layer: place(waste.layer),
        by: waste.by.map_or(0, place),
        size: number(waste.bytes),
        files: number(waste.files),
        examples: examples.collect(),
        advice: words(waste, of(waste.layer), waste.by.map_or("", of)),
    }
}

/// `instruction`: of the layer that has the bytes; `other`: of the one that made them useless.
fn words(waste: &Waste, instruction: &str, other: &str) -> String {
    let by = waste.by.map_or(0, place);
    match waste.kind {
        WasteKind::Deleted if is_copy(instruction) => format!(
            "layer {by} deletes what was copied here: leave it out of the COPY (--exclude, .dockerignore), or mount it into the RUN that needs it (RUN --mount=type=bind)"
        ),
        WasteKind::Deleted => format!(
            "layer {by} deletes what this one made: delete it in the same RUN that makes it, or build with --squash"
        ),
        WasteKind::Overwritten => format!(
            "layer {by} writes these files anew: write them once, or do both in one RUN; --squash keeps the last"
        ),
        WasteKind::Rewritten { owner, mode } => rewritten(by, (owner, mode), instruction, other),
        WasteKind::Copied if waste.by == Some(waste.layer) => {
            "the same content twice in this layer: link one to the other (ln), or keep one".into()
        }
        WasteKind::Copied => format!(
            "layer {by} has the same content under another name: use it from there, or link to it (ln -s)"
        ),
        WasteKind::Cache(cache) => left(cache).into(),
    }
}

fn rewritten(by: i64, (owner, mode): (bool, bool), instruction: &str, other: &str) -> String {
    let (what, flag) = match (owner, mode) {
        (true, true) => ("owner and mode change", "--chown and --chmod"),
        (true, false) => ("owner changes", "--chown"),
        (false, true) => ("mode changes", "--chmod"),
        (false, false) if is_copy(other) => {
            return format!("layer {by} copies the same files once more: copy them once");
        }
        (false, false) => {
            return format!(
                "layer {by} writes the same content again: only times or attributes differ; do it in one RUN"
            );
        }
    };
    if is_copy(instruction) {
        format!("only {what} in layer {by}, which costs a whole copy: set it by COPY {flag}")
    } else {
        format!(
            "only {what} in layer {by}, which costs a whole copy: set it in the RUN that makes the files"
        )
    }
}

/// Is the layer one that brings files from outside? Both builders' wordings begin with the instruction, the
/// classic one behind a shell's comment.
fn is_copy(instruction: &str) -> bool {
    let text = instruction.rsplit("#(nop)").next().unwrap_or(instruction).trim_start();
    ["COPY ", "ADD "].iter().any(|word| text.starts_with(word))
}

fn left(cache: Cache) -> &'static str {
    match cache {
        Cache::AptLists => {
            "apt's package lists: rm -rf /var/lib/apt/lists/* in the same RUN, or RUN --mount=type=cache,target=/var/lib/apt"
        }
        Cache::Apt => {
            "apt's downloads and tables: apt-get clean in the same RUN, or RUN --mount=type=cache,target=/var/cache/apt"
        }
        Cache::Apk => "apk's cache: apk add --no-cache",
        Cache::Dnf => {
            "the package manager's cache: dnf clean all (or yum clean all) in the same RUN, or RUN --mount=type=cache,target=/var/cache/dnf"
        }
        Cache::Pip => {
            "pip's cache: pip install --no-cache-dir, or RUN --mount=type=cache,target=/root/.cache/pip"
        }
        Cache::Npm => {
            "npm's cache: npm cache clean --force in the same RUN, or RUN --mount=type=cache,target=/root/.npm"
        }
        Cache::Yarn => {
            "yarn's cache: yarn cache clean in the same RUN, or RUN --mount=type=cache,target=/usr/local/share/.cache/yarn"
        }
        Cache::Go => {
            "Go's caches: build in a stage of its own and COPY --from it, or RUN --mount=type=cache,target=/root/.cache/go-build (and /go/pkg/mod)"
        }
        Cache::Cargo => {
            "cargo's registry: build in a stage of its own and COPY --from it, or RUN --mount=type=cache,target=/usr/local/cargo/registry"
        }
        Cache::Temporary => {
            "temporary files: delete them in the same RUN, or RUN --mount=type=tmpfs,target=/tmp"
        }
    }
}

fn shown(path: &Path) -> String {
    format!("/{}", path.display())
}

fn place(layer: usize) -> i64 {
    i64::try_from(layer + 1).unwrap_or(i64::MAX)
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lines: &[(&str, bool)]) -> Vec<History> {
        let entry = |(text, empty): &(&str, bool)| History {
            created_by: (*text).into(),
            empty_layer: *empty,
            ..History::default()
        };
        lines.iter().map(entry).collect()
    }

    #[test]
    fn layers_have_the_instructions_that_made_them() {
        let lines = history(&[("ADD a", false), ("ENV x", true), ("RUN b", false)]);
        assert_eq!(instructions(&lines, 2), ["ADD a", "RUN b"]);
        assert_eq!(instructions(&lines, 3), ["", "", ""], "of which layer is none?");
    }

    #[test]
    fn advice_fits_the_instruction() {
        let waste =
            |kind| Waste { kind, layer: 0, by: Some(1), bytes: 1, files: 1, examples: Vec::new() };
        let owner = waste(WasteKind::Rewritten { owner: true, mode: false });
        let said = words(&owner, "/bin/sh -c #(nop) COPY dir:1 in / ", "RUN chown -R u /");
        assert!(said.contains("COPY --chown") && said.contains("layer 2"), "{said}");
        assert!(!words(&owner, "RUN make", "RUN chown").contains("COPY"));
        let twice = waste(WasteKind::Rewritten { owner: false, mode: false });
        assert!(words(&twice, "COPY a /", "COPY a /").contains("copy them once"));
        let deleted = waste(WasteKind::Deleted);
        assert!(words(&deleted, "COPY a /", "RUN rm /a").contains(".dockerignore"));
        assert!(words(&deleted, "RUN make", "RUN rm /a").contains("same RUN"));
    }
}
