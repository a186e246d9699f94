//! What the cloud offers: locations and server types.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{any, get};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::cloud::Cloud;
use super::error::{ApiError, ApiResult};
use super::input::path_id;
use super::listing::{Listing, one};

/// A location.
#[derive(Debug)]
pub struct Location {
    pub id: u64,
    pub name: &'static str,
    pub network_zone: &'static str,
    description: &'static str,
    country: &'static str,
    city: &'static str,
    latitude: f64,
    longitude: f64,
}

/// A size of server.
#[derive(Debug)]
pub struct ServerType {
    pub id: u64,
    pub name: &'static str,
    pub cores: u32,
    pub memory_gb: u32,
    pub disk_gb: u32,
    family: Family,
    /// Euro cents a month without tax, roughly.
    cents_monthly: u32,
}

/// A family of server types: where it is sold and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Cost-optimised, shared Intel or AMD.
    Cx,
    /// Arm.
    Cax,
    /// Regular performance, shared AMD; second generation in Europe and Singapore.
    Cpx2,
    /// First generation, still sold overseas.
    Cpx1,
    /// Dedicated AMD.
    Ccx,
}

const fn place(
    (id, name, network_zone): (u64, &'static str, &'static str),
    (description, country, city): (&'static str, &'static str, &'static str),
    (latitude, longitude): (f64, f64),
) -> Location {
    Location { id, name, network_zone, description, country, city, latitude, longitude }
}

static LOCATIONS: [Location; 6] = [
    place((1, "fsn1", "eu-central"), ("Falkenstein DC Park 1", "DE", "Falkenstein"), (50.47612, 12.370071)),
    place((2, "nbg1", "eu-central"), ("Nuremberg DC Park 1", "DE", "Nuremberg"), (49.452102, 11.076665)),
    place((3, "hel1", "eu-central"), ("Helsinki DC Park 1", "FI", "Helsinki"), (60.169855, 24.938379)),
    place((4, "ash", "us-east"), ("Ashburn, VA", "US", "Ashburn, VA"), (39.045821, -77.487073)),
    place((5, "hil", "us-west"), ("Hillsboro, OR", "US", "Hillsboro, OR"), (45.54222, -122.951924)),
    place((6, "sin", "ap-southeast"), ("Singapore", "SG", "Singapore"), (1.283333, 103.833333)),
];

const fn size(
    id: u64,
    name: &'static str,
    family: Family,
    (cores, memory_gb, disk_gb): (u32, u32, u32),
    cents_monthly: u32,
) -> ServerType {
    ServerType { id, name, cores, memory_gb, disk_gb, family, cents_monthly }
}

static SERVER_TYPES: [ServerType; 25] = [
    size(22, "cpx11", Family::Cpx1, (2, 2, 40), 449),
    size(23, "cpx21", Family::Cpx1, (3, 4, 80), 849),
    size(24, "cpx31", Family::Cpx1, (4, 8, 160), 1549),
    size(25, "cpx41", Family::Cpx1, (8, 16, 240), 2899),
    size(26, "cpx51", Family::Cpx1, (16, 32, 360), 5849),
    size(45, "cax11", Family::Cax, (2, 4, 40), 329),
    size(93, "cax21", Family::Cax, (4, 8, 80), 599),
    size(94, "cax31", Family::Cax, (8, 16, 160), 1199),
    size(95, "cax41", Family::Cax, (16, 32, 320), 2399),
    size(96, "ccx13", Family::Ccx, (2, 8, 80), 1249),
    size(97, "ccx23", Family::Ccx, (4, 16, 160), 2449),
    size(98, "ccx33", Family::Ccx, (8, 32, 240), 4849),
    size(99, "ccx43", Family::Ccx, (16, 64, 360), 9649),
    size(100, "ccx53", Family::Ccx, (32, 128, 600), 19249),
    size(101, "ccx63", Family::Ccx, (48, 192, 960), 28849),
    size(108, "cpx12", Family::Cpx2, (1, 2, 40), 549),
    size(109, "cpx22", Family::Cpx2, (2, 4, 80), 649),
    size(110, "cpx32", Family::Cpx2, (4, 8, 160), 1099),
    size(111, "cpx42", Family::Cpx2, (8, 16, 320), 1999),
    size(112, "cpx52", Family::Cpx2, (12, 24, 480), 2849),
    size(113, "cpx62", Family::Cpx2, (16, 32, 640), 3849),
    size(114, "cx23", Family::Cx, (2, 4, 40), 299),
    size(115, "cx33", Family::Cx, (4, 8, 80), 499),
    size(116, "cx43", Family::Cx, (8, 16, 160), 949),
    size(117, "cx53", Family::Cx, (16, 32, 320), 1749),
];

/// Finds a location by name or id.
pub fn location(reference: &str) -> Option<&'static Location> {
    LOCATIONS.iter().find(|l| l.name == reference || l.id.to_string() == reference)
}

/// All locations, in order of their ids.
pub fn locations() -> &'static [Location] {
    &LOCATIONS
}

/// All server types.
pub fn server_types() -> &'static [ServerType] {
    &SERVER_TYPES
}

/// Finds a server type by name or id.
pub fn server_type(reference: &str) -> Option<&'static ServerType> {
    SERVER_TYPES.iter().find(|t| t.name == reference || t.id.to_string() == reference)
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        location(&name).ok_or_else(|| D::Error::custom(format!("there is no location '{name}'")))
    }
}

impl Serialize for ServerType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static ServerType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        server_type(&name).ok_or_else(|| D::Error::custom(format!("there is no server type '{name}'")))
    }
}

impl Location {
    pub fn json(&self) -> Value {
        json!({
            "id": self.id, "name": self.name, "description": self.description, "country": self.country,
            "city": self.city, "latitude": self.latitude, "longitude": self.longitude,
            "network_zone": self.network_zone,
        })
    }
}

impl ServerType {
    pub fn architecture(&self) -> &'static str {
        if self.family == Family::Cax { "arm" } else { "x86" }
    }

    pub fn sold_in(&self, location: &Location) -> bool {
        let europe = location.network_zone == "eu-central";
        match self.family {
            Family::Cx | Family::Cax => europe,
            Family::Cpx2 => europe || location.name == "sin",
            Family::Cpx1 => !europe,
            Family::Ccx => true,
        }
    }

    /// The answer's object; `available` tells for each location whether there is capacity now.
    pub fn json(&self, available: impl Fn(&Location) -> bool) -> Value {
        let (category, cpu_type) = match self.family {
            Family::Cx | Family::Cax => ("cost_optimized", "shared"),
            Family::Cpx1 | Family::Cpx2 => ("regular_purpose", "shared"),
            Family::Ccx => ("general_purpose", "dedicated"),
        };
        let places: Vec<Value> = LOCATIONS
            .iter()
            .filter(|l| self.sold_in(l))
            .map(|l| {
                json!({
                    "id": l.id, "name": l.name, "deprecation": null, "available": available(l),
                    "recommended": l.network_zone == "eu-central",
                })
            })
            .collect();
        let mut body = json!({
            "id": self.id, "name": self.name, "description": self.name.to_uppercase(), "category": category,
            "cores": self.cores, "memory": self.memory_gb, "disk": self.disk_gb, "storage_type": "local",
            "cpu_type": cpu_type, "architecture": self.architecture(),
        });
        body["prices"] = Value::Array(self.prices());
        body["locations"] = Value::Array(places);
        body
    }

    fn price(&self, location: &Location) -> Value {
        price(location, f64::from(self.cents_monthly) / 100.0)
    }

    /// Its prices in all locations that sell it. Every server shows its type: they are worked out once.
    pub fn prices(&self) -> Vec<Value> {
        static PRICES: LazyLock<BTreeMap<u64, Vec<Value>>> = LazyLock::new(|| {
            let of = |t: &ServerType| LOCATIONS.iter().filter(|l| t.sold_in(l)).map(|l| t.price(l)).collect();
            SERVER_TYPES.iter().map(|t| (t.id, of(t))).collect()
        });
        PRICES.get(&self.id).cloned().unwrap_or_default()
    }
}

/// An amount of euros as the API writes it, with German tax.
pub fn money(euros: f64) -> Value {
    json!({"net": format!("{euros:.10}"), "gross": format!("{:.10}", euros * 1.19)})
}

/// Bytes of traffic that are free each month.
pub fn included_traffic(location: &Location) -> u64 {
    if location.network_zone == "eu-central" { 20 << 40 } else { 1 << 40 }
}

/// What something with traffic costs in a location.
pub fn price(location: &Location, euros_monthly: f64) -> Value {
    json!({
        "location": location.name, "price_hourly": money(euros_monthly / 624.0), "price_monthly": money(euros_monthly),
        "included_traffic": included_traffic(location), "price_per_tb_traffic": money(1.0),
    })
}

/// `/locations`, `/server_types`, and `/datacenters`, which is gone.
pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/locations", get(list_locations))
        .route("/locations/{id}", get(get_location))
        .route("/server_types", get(list_server_types))
        .route("/server_types/{id}", get(get_server_type))
        .route("/datacenters", any(gone))
        .route("/datacenters/{id}", any(gone))
}

async fn gone() -> ApiError {
    ApiError::new("deprecated_api_endpoint", "this endpoint is gone: use locations instead of data centers")
}

async fn list_locations(listing: Listing) -> ApiResult {
    listing.reply("locations", LOCATIONS.iter().map(Location::json).collect(), &[])
}

async fn get_location(Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let found = LOCATIONS.iter().find(|l| l.id == id).ok_or_else(|| ApiError::not_found("location", id))?;
    Ok(one("location", found.json()))
}

async fn list_server_types(State(cloud): State<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let state = cloud.look();
    let available = |l: &Location| !state.common.faults().is_unavailable(l.name);
    listing.reply("server_types", SERVER_TYPES.iter().map(|t| t.json(available)).collect(), &["architecture"])
}

async fn get_server_type(State(cloud): State<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let found = SERVER_TYPES.iter().find(|t| t.id == id).ok_or_else(|| ApiError::not_found("server_type", id))?;
    let state = cloud.look();
    Ok(one("server_type", found.json(|l| !state.common.faults().is_unavailable(l.name))))
}
