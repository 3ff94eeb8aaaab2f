//! type1
