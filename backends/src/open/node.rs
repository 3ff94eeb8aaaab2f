//! Opening a node of `/dev`.

use std::path::Path;
use std::sync::Arc;

use dmaspace_core::door::{Door, HandleKind, OwnedHandle};

use crate::open::OpenError;

pub(crate) fn open_node(door: &Arc<dyn Door>, path: &Path, kind: HandleKind) -> Result<OwnedHandle, OpenError> {
    OwnedHandle::open(door.clone(), path, kind).map_err(|errno| OpenError::Node { path: path.to_owned(), errno })
}
