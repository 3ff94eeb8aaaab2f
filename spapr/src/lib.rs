//! spapr
