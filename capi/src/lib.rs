//! `libdmaspace`: the C API of dmaspace. `include/dmaspace.h` is its documentation, and `man/libdmaspace.3` the
//! overview.
//!
//! The model is libblkio's: opaque handles, zero or a negative errno from each call, and one sentence about the last
//! error of the thread ([`dms_error`](exports::dms_error)). Structs that the caller passes begin with their size, so
//! that they can grow.
//!
//! # Modules
//! - `exports`: the functions of the header. They alone handle pointers of the caller: null, a handle of another kind
//!   or one that was freed, a text that is not UTF-8 and a struct that is too small are answered with `-EINVAL`.
//! - `calls`: their work, in safe code. `arguments`: the structs and their checks. `handle`: the boxes behind opaque
//!   handles. `failure`: errors as errno and sentence.
//!
//! A panic does not cross the boundary: it becomes `-EIO` and a sentence.

mod arguments;
mod calls;
pub mod exports;
mod failure;
mod handle;
