//! Memory whose owner can be watched: whether a clone of it is still held, and the owner's code when none is.
#![expect(unsafe_code, reason = "UNSAFETY: memory with an owner of the suite's own is made by a promise")]

use std::any::Any;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dmaspace_core::{HostMemory, PageSize};

/// Tells whether memory is still held by a clone of it.
pub(crate) struct Watch(Weak<Owner>);

impl Watch {
    pub(crate) fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// Code that an owner runs when it is dropped.
type Farewell = Box<dyn FnOnce() + Send>;

/// The owner of memory, which holds the bytes.
struct Owner {
    _bytes: Vec<u8>,
    farewell: Mutex<Option<Farewell>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let farewell = self.farewell.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(farewell) = farewell {
            farewell();
        }
    }
}

/// Memory of its own, aligned to `page`, and a watch on it.
pub(crate) fn watched(len: u64, page: PageSize) -> (HostMemory, Watch) {
    owned(len, page, None)
}

/// Memory whose owner runs `farewell` when the last clone of it is dropped.
pub(crate) fn with_farewell(len: u64, page: PageSize, farewell: impl FnOnce() + Send + 'static) -> HostMemory {
    owned(len, page, Some(Box::new(farewell))).0
}

fn owned(len: u64, page: PageSize, farewell: Option<Farewell>) -> (HostMemory, Watch) {
    let len = usize::try_from(len).ok().and_then(NonZeroUsize::new).expect("a few pages");
    let align = usize::try_from(page.bytes()).expect("a page of this process");
    let mut bytes = vec![0; len.get() + align];
    let start = bytes.as_mut_ptr();
    let base = NonNull::new(start.wrapping_add(start.align_offset(align))).expect("an allocation is not at address 0");
    let owner = Arc::new(Owner { _bytes: bytes, farewell: Mutex::new(farewell) });
    let watch = Watch(Arc::downgrade(&owner));
    let owner: Arc<dyn Any + Send + Sync> = owner;
    // SAFETY: the owner holds the bytes and never looks at them, and no other Rust reference into them exists.
    let memory = unsafe { HostMemory::held_by(base, len, owner) };
    (memory.expect("an allocation does not wrap"), watch)
}
