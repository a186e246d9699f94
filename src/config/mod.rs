//! What Git declares. Pure: text in, checked values or errors with line and hint out.

mod cluster;

pub use cluster::*;
