//! gantry-store-grpc
