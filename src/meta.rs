//! Placeholder of the module `meta`.
