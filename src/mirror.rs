//! Placeholder of the module `mirror`.
