//! lacuna-bench
