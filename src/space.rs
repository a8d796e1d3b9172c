//! Placeholder of the module `space`.
