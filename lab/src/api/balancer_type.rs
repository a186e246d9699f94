//! Sizes of load balancers.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::catalog;
use super::cloud::Cloud;
use super::error::{ApiError, ApiResult};
use super::input::path_id;
use super::listing::{Listing, one};

/// A size of load balancer.
#[derive(Debug)]
pub struct BalancerType {
    pub id: u64,
    pub name: &'static str,
    pub services: usize,
    pub targets: usize,
    pub connections: u32,
    pub certificates: usize,
    /// Euro cents a month without tax, roughly.
    cents_monthly: u32,
}

const fn size(
    id: u64,
    name: &'static str,
    (services, targets, connections, certificates): (usize, usize, u32, usize),
    cents_monthly: u32,
) -> BalancerType {
    BalancerType { id, name, services, targets, connections, certificates, cents_monthly }
}

static TYPES: [BalancerType; 3] = [
    size(1, "lb11", (5, 25, 10_000, 10), 539),
    size(2, "lb21", (15, 75, 20_000, 25), 1640),
    size(3, "lb31", (30, 150, 40_000, 50), 3290),
];

/// Finds a type by name or id.
pub fn find(reference: &str) -> Option<&'static BalancerType> {
    TYPES.iter().find(|t| t.name == reference || t.id.to_string() == reference)
}

/// All types.
pub fn all() -> &'static [BalancerType] {
    &TYPES
}

impl BalancerType {
    pub fn prices(&self) -> Vec<Value> {
        let euros = f64::from(self.cents_monthly) / 100.0;
        catalog::locations().iter().map(|l| catalog::price(l, euros)).collect()
    }

    pub fn json(&self) -> Value {
        json!({
            "id": self.id, "name": self.name, "description": self.name.to_uppercase(), "deprecated": null,
            "max_services": self.services, "max_targets": self.targets, "max_connections": self.connections,
            "max_assigned_certificates": self.certificates, "prices": self.prices(),
        })
    }
}

impl Serialize for BalancerType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static BalancerType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        find(&name).ok_or_else(|| D::Error::custom(format!("there is no load balancer type '{name}'")))
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new().route("/load_balancer_types", get(list)).route("/load_balancer_types/{id}", get(read))
}

async fn list(listing: Listing) -> ApiResult {
    listing.reply("load_balancer_types", TYPES.iter().map(BalancerType::json).collect(), &[])
}

async fn read(Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let found = TYPES.iter().find(|t| t.id == id).ok_or_else(|| ApiError::not_found("load_balancer_type", id))?;
    Ok(one("load_balancer_type", found.json()))
}
