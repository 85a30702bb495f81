//! lacuna-tests
