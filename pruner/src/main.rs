//! The `prune` command.

fn main() {}
