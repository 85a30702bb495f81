//! lacuna-targets
