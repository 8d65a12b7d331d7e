//! gRPC servers from a list of methods, in place of generated code.
//!
//! `service!` makes of a service's name and methods a trait to implement, with one async function
//! per method, and a server that decodes the request, calls it and encodes the answer.

use std::{future::Future, pin::Pin};

use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::http,
    server::{Grpc, ServerStreamingService, StreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

/// Bytes of a message, in either direction: containerd's limit (`defaults.DefaultMaxRecvMsgSize`).
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What a method with a stream of answers returns.
pub(crate) type BoxStream<T> = tonic::codegen::BoxStream<T>;

/// The answer to one HTTP request that carries a call.
pub(crate) type Answer = Pin<Box<dyn Future<Output = http::Response<Body>> + Send>>;

/// A service as the router calls it.
pub(crate) trait Serve: Send + Sync + 'static {
    /// `containerd.services.version.v1.Version`.
    fn name(&self) -> &'static str;
    /// Answers a call of `method`.
    fn serve(&self, method: &str, request: http::Request<Body>) -> Answer;
}

/// Answers a call with an error alone.
pub(crate) fn refuse(status: Status) -> Answer {
    Box::pin(std::future::ready(status.into_http()))
}

/// The refusal of a method that a service does not have, in gRPC's words.
pub(crate) fn unknown_method(service: &str, method: &str) -> Answer {
    refuse(Status::unimplemented(format!("unknown method {method} for service {service}")))
}

fn grpc<Q, R>() -> Grpc<ProstCodec<R, Q>>
where
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Send + 'static,
{
    Grpc::new(ProstCodec::default())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

struct Handler<F>(F);

impl<F, A, Q, R> UnaryService<Q> for Handler<F>
where
    F: FnMut(Request<Q>) -> A + Send,
    A: Future<Output = Result<Response<R>, Status>>,
{
    type Response = R;
    type Future = A;

    fn call(&mut self, request: Request<Q>) -> A {
        (self.0)(request)
    }
}

impl<F, A, Q, R> ServerStreamingService<Q> for Handler<F>
where
    F: FnMut(Request<Q>) -> A + Send,
    A: Future<Output = Result<Response<BoxStream<R>>, Status>>,
{
    type Response = R;
    type ResponseStream = BoxStream<R>;
    type Future = A;

    fn call(&mut self, request: Request<Q>) -> A {
        (self.0)(request)
    }
}

impl<F, A, Q, R> StreamingService<Q> for Handler<F>
where
    F: FnMut(Request<Streaming<Q>>) -> A + Send,
    A: Future<Output = Result<Response<BoxStream<R>>, Status>>,
{
    type Response = R;
    type ResponseStream = BoxStream<R>;
    type Future = A;

    fn call(&mut self, request: Request<Streaming<Q>>) -> A {
        (self.0)(request)
    }
}

/// A method with one request and one answer.
pub(crate) async fn unary<F, A, Q, R>(call: F, request: http::Request<Body>) -> http::Response<Body>
where
    F: FnMut(Request<Q>) -> A + Send,
    A: Future<Output = Result<Response<R>, Status>>,
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Send + 'static,
{
    grpc::<Q, R>().unary(Handler(call), request).await
}

/// A method with one request and a stream of answers.
pub(crate) async fn stream<F, A, Q, R>(
    call: F,
    request: http::Request<Body>,
) -> http::Response<Body>
where
    F: FnMut(Request<Q>) -> A + Send,
    A: Future<Output = Result<Response<BoxStream<R>>, Status>>,
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Send + 'static,
{
    grpc::<Q, R>().server_streaming(Handler(call), request).await
}

/// A method with a stream in both directions.
pub(crate) async fn bidi<F, A, Q, R>(call: F, request: http::Request<Body>) -> http::Response<Body>
where
    F: FnMut(Request<Streaming<Q>>) -> A + Send,
    A: Future<Output = Result<Response<BoxStream<R>>, Status>>,
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Send + 'static,
{
    grpc::<Q, R>().streaming(Handler(call), request).await
}

/// `pub trait TRAIT, SERVER = "PACKAGE.SERVICE" { KIND function = "Method": Request => Answer; … }`;
/// kinds: `unary`, `stream` (of answers), `bidi`.
macro_rules! service {
    (
        $(#[$doc:meta])*
        $vis:vis trait $service:ident, $server:ident = $name:literal {
            $($kind:ident $function:ident = $method:literal: $request:ty => $answer:ty;)*
        }
    ) => {
        $(#[$doc])*
        $vis trait $service: Send + Sync + 'static {
            $(
                #[doc = concat!("`", $method, "`.")]
                fn $function(
                    &self,
                    request: tonic::Request<$crate::grpc::service!(@request $kind $request)>,
                ) -> impl Future<
                    Output = Result<
                        tonic::Response<$crate::grpc::service!(@answer $kind $answer)>,
                        tonic::Status,
                    >,
                > + Send;
            )*
        }

        #[doc = concat!("Serves `", $name, "`.")]
        $vis struct $server<T>(std::sync::Arc<T>);

        impl<T: $service> $server<T> {
            pub(crate) fn new(service: T) -> Self {
                Self(std::sync::Arc::new(service))
            }
        }

        impl<T: $service> $crate::grpc::Serve for $server<T> {
            fn name(&self) -> &'static str {
                $name
            }

            fn serve(
                &self,
                method: &str,
                request: tonic::codegen::http::Request<tonic::body::Body>,
            ) -> $crate::grpc::Answer {
                match method {
                    $($method => {
                        let service = self.0.clone();
                        Box::pin($crate::grpc::$kind(
                            move |request| {
                                let service = service.clone();
                                async move { service.$function(request).await }
                            },
                            request,
                        ))
                    })*
                    _ => $crate::grpc::unknown_method($name, method),
                }
            }
        }
    };
    (@request bidi $request:ty) => { tonic::Streaming<$request> };
    (@request $kind:ident $request:ty) => { $request };
    (@answer unary $answer:ty) => { $answer };
    (@answer $kind:ident $answer:ty) => { $crate::grpc::BoxStream<$answer> };
}

pub(crate) use service;
