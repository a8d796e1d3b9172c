//! Placeholder of the module `policy`.
