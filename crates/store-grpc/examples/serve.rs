//! Serves a store on `STATE/containerd.sock` until it is killed: `serve ROOT STATE SHIM [ARGUMENT…]`.

use std::sync::Arc;

use store::{Config, Store};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(root), Some(state)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve ROOT STATE SHIM [ARGUMENT…]".into());
    };
    let mut config = Config::new(root, state);
    config.shim_command = arguments.collect();
    let address = config.grpc_address.clone();
    let store = Store::open(config).await?;
    let listener = tokio::net::UnixListener::bind(address)?;
    store_grpc::serve(store, listener, CancellationToken::new(), Arc::default()).await?;
    Ok(())
}
