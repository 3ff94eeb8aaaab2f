//! Files of memory that are open at a door: parts of BARs that their devices exported.

use std::any::Any;
use std::sync::Arc;

use crate::door::{Door, Handle, OwnedHandle};
use crate::words::memory::{MemoryFile, OpenedFile};

impl OpenedFile for OwnedHandle {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl MemoryFile {
    /// A part of a BAR that its device exported, closed with the last clone. It can be mapped through the door of
    /// `export` only.
    pub fn exported(export: OwnedHandle) -> Self {
        Self::opened(Arc::new(export))
    }

    /// Its handle, where a door has it.
    pub fn handle(&self) -> Option<Handle> {
        self.export().map(OwnedHandle::handle)
    }

    /// Returns `true` if `door` can say which file it is.
    pub fn is_behind(&self, door: &Arc<dyn Door>) -> bool {
        match self.export() {
            Some(export) => Arc::ptr_eq(export.door(), door),
            None => !(self.is_unbacked() && door.is_real()),
        }
    }

    fn export(&self) -> Option<&OwnedHandle> {
        self.as_opened()?.as_any().downcast_ref()
    }
}
