//! Prices: plausible ones, in the real form.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use super::balancer_type;
use super::catalog::{self, money, server_types};
use super::cloud::Cloud;
use super::error::ApiResult;
use super::listing::one;

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new().route("/pricing", get(read))
}

async fn read() -> ApiResult {
    let everywhere = |monthly: f64, hourly: bool| -> Vec<Value> {
        let price = |location: &catalog::Location| {
            let mut price = json!({"location": location.name, "price_monthly": money(monthly)});
            if hourly {
                price["price_hourly"] = money(monthly / 624.0);
            }
            price
        };
        catalog::locations().iter().map(price).collect()
    };
    let both = |hourly: bool, v4: f64, v6: f64| {
        json!([
            {"type": "ipv4", "prices": everywhere(v4, hourly)},
            {"type": "ipv6", "prices": everywhere(v6, hourly)},
        ])
    };
    let types = |id: u64, name: &str, prices: Vec<Value>| json!({"id": id, "name": name, "prices": prices});
    Ok(one(
        "pricing",
        json!({
            "currency": "EUR", "vat_rate": "19.000000",
            "floating_ip": {"price_monthly": money(3.0)},
            "floating_ips": both(false, 3.0, 1.0), "primary_ips": both(true, 0.5, 0.0),
            "image": {"price_per_gb_month": money(0.011)}, "volume": {"price_per_gb_month": money(0.044)},
            "server_backup": {"percentage": "20.0000000000"},
            "server_types": server_types().iter().map(|t| types(t.id, t.name, t.prices())).collect::<Vec<_>>(),
            "load_balancer_types":
                balancer_type::all().iter().map(|t| types(t.id, t.name, t.prices())).collect::<Vec<_>>(),
        }),
    ))
}
