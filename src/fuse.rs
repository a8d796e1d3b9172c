//! Placeholder of the module `fuse`.
