//! The `scelle` command: it only dispatches to [`scelle::cli`].

fn main() {}
