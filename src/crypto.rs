//! Placeholder of the module `crypto`.
