//! Forms made from a model's weights, such as packed panels: kept while a session uses them, and
//! shared by all sessions of the model and its clones.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

type Slot = Weak<dyn Any + Send + Sync>;

/// A table of shared values by key; it keeps none of them alive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Derived(Arc<Mutex<HashMap<String, Slot>>>);

impl Derived {
    /// The value under `key`, made when nobody holds it. Keys of one type must not serve another.
    pub fn get_or_make<T: Any + Send + Sync>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let find = |map: &HashMap<String, Slot>| map.get(key)?.upgrade()?.downcast::<T>().ok();
        let lock = || self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = find(&lock()) {
            return found;
        }
        // Made without the lock, so that other weights can be made meanwhile; the first one stays.
        let made = Arc::new(make());
        let mut map = lock();
        if let Some(found) = find(&map) {
            return found;
        }
        let slot: Arc<dyn Any + Send + Sync> = made.clone();
        map.insert(key.to_owned(), Arc::downgrade(&slot));
        made
    }
}
