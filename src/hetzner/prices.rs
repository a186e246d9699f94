//! What things cost, from the API's own list.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cloud::HetznerCloud;
use crate::ports::{ErrorCode, PortError, PortResult, Prices};

#[derive(Deserialize)]
struct Answer {
    pricing: Pricing,
}

#[derive(Deserialize)]
struct Pricing {
    currency: String,
    volume: PerGb,
    #[serde(default)]
    server_types: Vec<Priced>,
    #[serde(default)]
    primary_ips: Vec<Ips>,
}

#[derive(Deserialize)]
struct PerGb {
    price_per_gb_month: Money,
}

#[derive(Deserialize)]
struct Priced {
    name: String,
    #[serde(default)]
    prices: Vec<Price>,
}

#[derive(Deserialize)]
struct Ips {
    r#type: String,
    #[serde(default)]
    prices: Vec<Price>,
}

#[derive(Deserialize)]
struct Price {
    location: String,
    price_hourly: Money,
}

/// Amounts are decimals in quotes.
#[derive(Deserialize)]
struct Money {
    gross: String,
}

impl Money {
    fn amount(&self) -> Option<f64> {
        self.gross.parse().ok().filter(|amount: &f64| amount.is_finite() && *amount >= 0.0)
    }
}

/// `GET /pricing`. What can't be read has no price.
pub(super) async fn prices(cloud: &HetznerCloud) -> PortResult<Prices> {
    let answer: Answer = cloud.http.get("/pricing").await?;
    read(answer)
}

fn read(Answer { pricing }: Answer) -> PortResult<Prices> {
    let volume_gb_month = pricing.volume.price_per_gb_month.amount();
    let mut servers = BTreeMap::new();
    for server in &pricing.server_types {
        for price in &server.prices {
            if let Some(hour) = price.price_hourly.amount() {
                servers.insert((server.name.clone(), price.location.clone()), hour);
            }
        }
    }
    let v4 = pricing.primary_ips.iter().filter(|ips| ips.r#type == "ipv4").flat_map(|ips| &ips.prices);
    Ok(Prices {
        currency: pricing.currency,
        servers,
        ipv4: v4.filter_map(|p| Some((p.location.clone(), p.price_hourly.amount()?))).collect(),
        volume_gb_month: volume_gb_month
            .ok_or_else(|| PortError::new(ErrorCode::ServerError, "the price list has no price of volumes"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_as_the_api_writes_them() {
        let money = |amount: &str| serde_json::json!({"net": "0.0", "gross": amount});
        let prices = |amount: &str| serde_json::json!([{"location": "hel1", "price_hourly": money(amount), "x": 1}]);
        let answer = serde_json::json!({"pricing": {
            "currency": "EUR", "volume": {"price_per_gb_month": money("0.0523600000")},
            "server_types": [{"id": 1, "name": "cx23", "prices": prices("0.0057000000")}],
            "primary_ips": [{"type": "ipv6", "prices": prices("0")}, {"type": "ipv4", "prices": prices("0.001")}],
        }});
        let prices = read(serde_json::from_value(answer).unwrap()).unwrap();
        assert_eq!(prices.currency, "EUR");
        assert!((prices.server_hour("cx23", "hel1").unwrap() - 0.0057).abs() < 1e-9);
        assert!((prices.ipv4_hour("hel1").unwrap() - 0.001).abs() < 1e-9);
        assert_eq!(prices.server_hour("cx23", "ash"), None);
        assert!((prices.volume_gb_month - 0.05236).abs() < 1e-9);
    }
}
