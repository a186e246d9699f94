//! The emulated cloud API over HTTP: one file an area.
