//! lacuna-convert
