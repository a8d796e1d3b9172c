//! Placeholder of the module `fs`.
