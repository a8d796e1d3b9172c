//! Placeholder of the module `control`.
