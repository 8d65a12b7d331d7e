//! gantry-network
