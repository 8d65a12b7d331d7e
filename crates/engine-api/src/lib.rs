//! gantry-engine-api
