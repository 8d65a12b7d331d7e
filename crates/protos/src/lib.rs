//! gantry-protos
