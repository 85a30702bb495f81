//! lacuna-prune
