//! A bare gRPC client, for what `ctr` does not let one say.

use std::{
    path::Path,
    task::{Context, Poll},
};

use hyper::{Request, Response, body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use protos::containerd::content::{WriteContentRequest, WriteContentResponse, write_action};
use tokio::{net::UnixStream, task::JoinHandle};
use tonic::{
    Status, Streaming,
    body::Body,
    client::Grpc,
    codegen::{BoxFuture, Service},
    metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue},
};
use tonic_prost::ProstCodec;

#[derive(Clone)]
struct Channel(SendRequest<Body>);

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Response<Incoming>, hyper::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

pub(crate) struct Client {
    grpc: Grpc<Channel>,
    headers: MetadataMap,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Self {
        let stream = TokioIo::new(UnixStream::connect(socket).await.unwrap());
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let origin = "http://localhost".parse().unwrap();
        let grpc = Grpc::with_origin(Channel(sender), origin);
        Self { grpc, headers: MetadataMap::new(), connection }
    }

    pub(crate) fn header(&mut self, name: &'static str, value: &str) {
        let value: MetadataValue<Ascii> = value.parse().unwrap();
        self.headers.insert(MetadataKey::from_static(name), value);
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        request
    }

    pub(crate) async fn unary<Q, R>(&mut self, path: &'static str, message: Q) -> Result<R, Status>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let request = self.request(message);
        self.grpc.ready().await.unwrap();
        let codec = ProstCodec::<Q, R>::default();
        let path = path.parse().unwrap();
        self.grpc.unary(request, path, codec).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn stream<Q, R>(
        &mut self,
        path: &'static str,
        message: Q,
    ) -> Result<Streaming<R>, Status>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let request = self.request(message);
        self.grpc.ready().await.unwrap();
        let codec = ProstCodec::<Q, R>::default();
        let path = path.parse().unwrap();
        self.grpc.server_streaming(request, path, codec).await.map(tonic::Response::into_inner)
    }

    /// A stream both ways; the client's side ends with `messages`.
    pub(crate) async fn both<Q, R>(
        &mut self,
        path: &'static str,
        messages: tokio::sync::mpsc::Receiver<Q>,
    ) -> Result<Streaming<R>, Status>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let messages = futures_util::stream::unfold(messages, |mut messages| async move {
            messages.recv().await.map(|message| (message, messages))
        });
        let request = self.request(messages);
        self.grpc.ready().await.unwrap();
        let codec = ProstCodec::<Q, R>::default();
        let path = path.parse().unwrap();
        self.grpc.streaming(request, path, codec).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn write(
        &mut self,
        messages: Vec<WriteContentRequest>,
    ) -> Result<Vec<WriteContentResponse>, Status> {
        let request = self.request(futures_util::stream::iter(messages));
        self.grpc.ready().await.unwrap();
        let codec = ProstCodec::<WriteContentRequest, WriteContentResponse>::default();
        let path = "/containerd.services.content.v1.Content/Write".parse().unwrap();
        let mut answers = self.grpc.streaming(request, path, codec).await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(answer);
        }
        Ok(all)
    }

    /// A whole blob in three requests, as containerd's client writes it; its digest.
    pub(crate) async fn write_blob(
        &mut self,
        reference: &str,
        blob: &[u8],
    ) -> Result<String, Status> {
        let stat = WriteContentRequest { reference: reference.into(), ..Default::default() };
        let size = i64::try_from(blob.len()).unwrap();
        let write = WriteContentRequest {
            action: write_action::WRITE,
            data: blob.to_vec().into(),
            ..Default::default()
        };
        let commit = WriteContentRequest {
            action: write_action::COMMIT,
            offset: size,
            total: size,
            ..Default::default()
        };
        let answers = self.write(vec![stat, write, commit]).await?;
        Ok(answers.last().unwrap().digest.clone())
    }

    pub(crate) async fn close(self) {
        drop(self.grpc);
        self.connection.await.unwrap().unwrap();
    }
}
