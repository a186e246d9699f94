//! What a cluster is made of once servers and volumes exist: keys and certificates, files, scripts. Everything here is
//! pure: values in, text out. Time and placement are parameters; steps carry the results to the machines.

mod first_boot;
mod names;
pub mod pki;
pub mod upstream;

pub use first_boot::{files_script, first_boot_script, way_out_script};
pub use names::*;

#[cfg(test)]
pub(crate) mod tests_support {
    //! What the tests of this module share.

    use crate::config::Cluster;

    /// The demo's cluster.
    pub fn demo() -> Cluster {
        serde_saphyr::from_str(include_str!("../../examples/demo/cluster.yaml")).unwrap()
    }

    /// A fixed moment.
    pub fn noon() -> jiff::Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }
}
