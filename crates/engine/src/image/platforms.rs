//! Which of an image's platforms is meant.

use store_api::{Descriptor, ImagePlatform, UnpackedImage};
use types::Platform;

use super::{OciConfig, with_latest};
use crate::{Engine, Error, Result};

impl Engine {
    /// Manifest and configuration for a platform. Without one: this machine's, or else the first that is
    /// wholly here.
    pub(super) async fn resolve_any(
        &self,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> store_api::Result<UnpackedImage> {
        let extras = &self.services.extras;
        match extras.resolve_image(target, platform).await {
            Err(error) if error.is_not_found() && platform.is_none() => {
                let images = extras.platforms(target).await?;
                let Some(first) = images.iter().find(|image| image.whole) else {
                    return Err(error);
                };
                extras.resolve_image(&first.manifest, None).await
            }
            other => other,
        }
    }

    /// The image for a container with its layers extracted: for the platform that is wanted, else for
    /// this machine's, else the first that is wholly here, as dockerd 28 does with the containerd store.
    pub(super) async fn unpack_for(
        &self,
        name: &str,
        target: &Descriptor,
        platform: Option<&Platform>,
    ) -> Result<UnpackedImage> {
        let extras = &self.services.extras;
        let error = match extras.unpack(target, platform).await {
            Err(error) if error.is_not_found() => error,
            other => return Ok(other?),
        };
        let images = extras.platforms(target).await?;
        let here: Vec<&ImagePlatform> = images.iter().filter(|image| image.whole).collect();
        match (platform, here.first()) {
            (None, Some(first)) => Ok(extras.unpack(&first.manifest, None).await?),
            // docker's client pulls it then.
            (Some(platform), _) => Err(Error::not_found(format!(
                "No such image: {} for {platform}: it is here for {}",
                with_latest(name),
                listed(&here)
            ))),
            (None, None) => Err(error.into()),
        }
    }
}

fn listed(images: &[&ImagePlatform]) -> String {
    let mut names: Vec<String> = images.iter().map(|image| image.platform.to_string()).collect();
    names.sort();
    names.dedup();
    if names.is_empty() { "no platform".into() } else { names.join(", ") }
}

/// moby `daemon/create.go`: said where nobody asked for the platform. Variants are not compared.
pub(super) fn warning(config: &OciConfig, wanted: Option<&Platform>) -> Option<String> {
    let host = Platform::host();
    let image = Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
    };
    // Read as `--platform` is, which knows an architecture's other names.
    let read = format!("{}/{}", image.os, image.architecture).parse::<Platform>();
    let own = read.is_ok_and(|own| {
        (own.os, own.architecture) == (host.os.clone(), host.architecture.clone())
    });
    (wanted.is_none() && !image.os.is_empty() && !own).then(|| {
        format!(
            "The requested image's platform ({image}) does not match the detected host platform ({host}) and no specific platform was requested"
        )
    })
}

/// dockerd refuses images of another system than its own already where they are loaded (moby
/// `image/tarexport/load.go`); here they are kept, and no container is made of them.
pub(super) fn check_system(config: &OciConfig) -> Result<()> {
    let host = Platform::host().os;
    if config.os.is_empty() || config.os == host {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "cannot run a {} image on {host}: operating system is not supported; choose one for {host} with --platform",
        config.os
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_for_no_platform_is_told_of_another() {
        let host = Platform::host();
        let config = |architecture: &str| OciConfig {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: "v9".into(),
            ..OciConfig::default()
        };
        assert_eq!(warning(&config(&host.architecture), None), None);
        assert_eq!(warning(&OciConfig::default(), None), None, "it says nothing");
        let foreign = config("s390x");
        let told = warning(&foreign, None).unwrap_or_default();
        assert!(told.contains("(linux/s390x/v9)") && told.contains(&host.to_string()), "{told}");
        assert_eq!(warning(&foreign, Some(&host)), None);
    }

    #[test]
    fn only_this_systems_images_run() {
        let config = |os: &str| OciConfig { os: os.into(), ..OciConfig::default() };
        check_system(&config("")).unwrap_or_else(|error| panic!("{error}"));
        check_system(&config(&Platform::host().os)).unwrap_or_else(|error| panic!("{error}"));
        for os in ["windows", "freebsd"] {
            let refused = check_system(&config(os)).map_err(|error| (error.kind, error.message));
            let Err((kind, text)) = refused else { panic!("{os} was accepted") };
            assert_eq!(kind, types::ErrorKind::InvalidArgument);
            assert!(text.contains(&format!("cannot run a {os} image on ")), "{text}");
        }
    }
}
