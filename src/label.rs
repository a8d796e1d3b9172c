//! Placeholder of the module `label`.
