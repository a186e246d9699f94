//! Decisions: from what Git declares and what was observed to a plan with its reasons. Pure: nothing here awaits, reads
//! a clock, a file or the environment; the time is a parameter.

mod abort;
pub mod aftermath;
mod build;
mod copy;
mod destroy;
mod draft;
mod drift;
mod evacuate;
mod front;
mod guards;
mod inventory;
pub mod params;
mod perimeter;
mod placement;
mod rebuild;
mod replace;
mod restore;
pub mod retention;
mod reversal;
mod roll;
mod rotate;
mod runbook;
pub mod schedule;
mod skew;
mod types;
mod vpn;
mod who;
mod workers;

pub use abort::{AbortChoice, plan_abort};
pub use build::{ONLY_THE_WAY_IN, plan_build, plan_build_with};
pub use copy::{BesideProduction, COPY_LABEL, copied, copy_name, plan_copy, works_on_copy};
pub use destroy::{DestroyChoice, plan_destroy};
pub use draft::{Basis, LINEAGE_LABEL, NAME_LABEL, OWNER_LABEL, ROLE_LABEL};
pub use drift::{Drift, drift};
pub use front::{balancer_differences, balancer_names, floating_ip_name};
pub use guards::{APPROVAL, Opening, may_begin, opening};
pub use inventory::Inventory;
pub use perimeter::{open_at, same_rules};
pub use placement::may_go_elsewhere;
pub use rebuild::{RebuildChoice, plan_rebuild};
pub use reversal::{Reversal, point_of_no_return, reversal, reversal_in};
pub use roll::plan_certificates;
pub use rotate::plan_ssh_rotation;
pub use runbook::{RunbookChoice, plan_runbook};
pub use types::*;
pub use workers::{DRAIN_SECONDS, WorkersChoice};

/// Why there is no plan. Nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("no location has capacity for {server}: neither {location} nor any of fallbackLocations")]
    NoLocation { server: String, location: String },
    #[error("{}", .0.join("\n"))]
    Foreign(Vec<String>),
    /// Data of this cluster exists, and a build would found an empty one beside it.
    #[error("{reason}")]
    DataExists {
        reason: String,
        /// Masters whose volume with etcd's data still exists.
        volumes: Vec<String>,
    },
    #[error("the cluster is alive: {reason}")]
    Alive { reason: String },
    #[error("{reason}")]
    Unbuildable { reason: String, hint: String },
    /// A runbook's guard does not hold.
    #[error("{guard} does not hold: {reason}")]
    Guard { guard: String, reason: String, hint: String },
    #[error("no snapshot {wanted} in the bucket; there {}", listed(.available))]
    NoSnapshot { wanted: String, available: Vec<String> },
}

fn listed(available: &[String]) -> String {
    match available {
        [] => "is none at all".to_owned(),
        some => format!("are: {}", some.join(", ")),
    }
}
