//! Attacks.

use super::Property;

/// Every attack.
pub fn all() -> Vec<Property> {
    Vec::new()
}
