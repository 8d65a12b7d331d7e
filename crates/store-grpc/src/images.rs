use std::sync::Arc;

use store_api::{Image, Timestamp};
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status},
    convert::{descriptor_in, descriptor_out, digest, epoch_in, paths, required, timestamp},
    services::images as api,
};

pub(crate) struct Images(pub(crate) Arc<Context>);

fn image_out(image: Image) -> api::Image {
    api::Image {
        name: image.name,
        labels: image.labels,
        target: descriptor_out(image.target),
        created_at: timestamp(image.created_at),
        updated_at: timestamp(image.updated_at),
    }
}

fn image_in(image: api::Image) -> Result<Image, Status> {
    Ok(Image {
        name: image.name,
        target: descriptor_in("image target", image.target)?,
        labels: image.labels,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
    })
}

impl api::Images for Images {
    async fn get(
        &self,
        request: Request<api::GetImageRequest>,
    ) -> Result<Response<api::GetImageResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let found = services.images.get(&request.get_ref().name).await.map_err(status)?;
        Ok(Response::new(api::GetImageResponse { image: Some(image_out(found)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListImagesRequest>,
    ) -> Result<Response<api::ListImagesResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let all = services.images.list(&request.get_ref().filters).await.map_err(status)?;
        let images = all.into_iter().map(image_out).collect();
        Ok(Response::new(api::ListImagesResponse { images }))
    }

    async fn create(
        &self,
        request: Request<api::CreateImageRequest>,
    ) -> Result<Response<api::CreateImageResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let new = image_in(required("image", request.image)?)?;
        let at = epoch_in(request.source_date_epoch)?;
        let created = services.images.create(new, at).await.map_err(status)?;
        Ok(Response::new(api::CreateImageResponse { image: Some(image_out(created)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateImageRequest>,
    ) -> Result<Response<api::UpdateImageResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let mut new = required("image", request.image)?;
        let at = epoch_in(request.source_date_epoch)?;
        let paths = paths(request.update_mask);
        let without = new.target.as_ref().is_none_or(|target| target.digest.is_empty());
        if without && !paths.is_empty() && !paths.iter().any(|path| path == "target") {
            // A change of labels alone leaves the target out.
            let present = services.images.get(&new.name).await.map_err(status)?;
            new.target = descriptor_out(present.target);
        }
        let updated = services.images.update(image_in(new)?, &paths, at).await.map_err(status)?;
        Ok(Response::new(api::UpdateImageResponse { image: Some(image_out(updated)) }))
    }

    async fn delete(
        &self,
        request: Request<api::DeleteImageRequest>,
    ) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        if let Some(target) = request.target {
            let wanted = digest(&target.digest)?;
            let present = services.images.get(&request.name).await.map_err(status)?;
            if present.target.digest != wanted {
                let text = format!("image {:?} has another target: not found", request.name);
                return Err(Status::not_found(text));
            }
        }
        services.images.delete(&request.name, request.sync).await.map_err(status)?;
        Ok(Response::new(()))
    }
}
