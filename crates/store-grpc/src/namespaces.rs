use std::sync::Arc;

use store_api::Labels;
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status},
    convert::{label_keys, merge_labels, required, unimplemented},
    services::namespaces as api,
};

pub(crate) struct NamespaceService(pub(crate) Arc<Context>);

impl NamespaceService {
    /// None for a namespace that is not known, as containerd has it: clients ask before they write.
    async fn labels(&self, name: &str) -> Result<Labels, Status> {
        let all = self.0.namespaces.list().await.map_err(status)?;
        let found = all.into_iter().find(|(known, _)| known == name);
        Ok(found.map(|(_, labels)| labels).unwrap_or_default())
    }
}

impl api::Namespaces for NamespaceService {
    async fn get(
        &self,
        request: Request<api::GetNamespaceRequest>,
    ) -> Result<Response<api::GetNamespaceResponse>, Status> {
        let name = request.into_inner().name;
        let labels = self.labels(&name).await?;
        let namespace = Some(api::Namespace { name, labels });
        Ok(Response::new(api::GetNamespaceResponse { namespace }))
    }

    async fn list(
        &self,
        request: Request<api::ListNamespacesRequest>,
    ) -> Result<Response<api::ListNamespacesResponse>, Status> {
        if !request.get_ref().filter.is_empty() {
            return Err(unimplemented("a filter for namespaces"));
        }
        let all = self.0.namespaces.list().await.map_err(status)?;
        let namespaces =
            all.into_iter().map(|(name, labels)| api::Namespace { name, labels }).collect();
        Ok(Response::new(api::ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<api::CreateNamespaceRequest>,
    ) -> Result<Response<api::CreateNamespaceResponse>, Status> {
        let namespace = required("namespace", request.into_inner().namespace)?;
        let labels = namespace.labels.clone();
        self.0.namespaces.create(&namespace.name, labels).await.map_err(status)?;
        Ok(Response::new(api::CreateNamespaceResponse { namespace: Some(namespace) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateNamespaceRequest>,
    ) -> Result<Response<api::UpdateNamespaceResponse>, Status> {
        let request = request.into_inner();
        let new = required("namespace", request.namespace)?;
        let keys = label_keys("namespace", request.update_mask)?;
        let mut labels = self.labels(&new.name).await?;
        merge_labels(&mut labels, new.labels, &keys);
        self.0.namespaces.update(&new.name, labels.clone()).await.map_err(status)?;
        let namespace = Some(api::Namespace { name: new.name, labels });
        Ok(Response::new(api::UpdateNamespaceResponse { namespace }))
    }

    async fn delete(
        &self,
        request: Request<api::DeleteNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.namespaces.delete(&request.get_ref().name).await.map_err(status)?;
        Ok(Response::new(()))
    }
}
