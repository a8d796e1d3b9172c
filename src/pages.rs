//! Placeholder of the module `pages`.
