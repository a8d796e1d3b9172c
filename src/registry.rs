//! Placeholder of the module `registry`.
