use tonic::{Request, Response, Status};

use crate::services::version as api;

/// The release of containerd whose API this is, which is what clients look at, and then our own.
const VERSION: &str = concat!("1.7.0+gantry.", env!("CARGO_PKG_VERSION"));
const REVISION: &str = concat!("gantry-", env!("CARGO_PKG_VERSION"));

pub(crate) struct Version;

impl api::Version for Version {
    async fn version(&self, _: Request<()>) -> Result<Response<api::VersionResponse>, Status> {
        Ok(Response::new(api::VersionResponse {
            version: VERSION.to_owned(),
            revision: REVISION.to_owned(),
        }))
    }
}
