//! Workers as a list, or as pools of workers that are alike. Whoever reads a [`Cluster`](super::Cluster) sees a list.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::WorkerConfig;

/// Node label with the name of a worker's pool.
pub const POOL_LABEL: &str = "hk-dr/pool";
/// Workers of one pool; a private network takes no more servers than this.
const COUNT_MAX: u32 = 100;

#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pools {
    /// Workers that are alike, by location and type.
    pools: Vec<WorkerPool>,
}

/// A pool: `<pool>-1`, `<pool>-2`, … up to its count.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorkerPool {
    /// Its workers are called `<name>-1`, `<name>-2`, …
    name: String,
    location: String,
    #[serde(rename = "type")]
    server_type: String,
    /// How many workers it has. A lower one than before is shown by `hk-dr plan`; workers go only with --remove-workers.
    count: u32,
    /// Pinned private address of its first worker; the others follow it.
    first_address: Ipv4Addr,
    /// Node labels of all its workers.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Reads either form.
pub(super) fn workers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<WorkerConfig>, D::Error> {
    deserializer.deserialize_any(Either)
}

struct Either;

impl<'de> Visitor<'de> for Either {
    type Value = Vec<WorkerConfig>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of workers, or `pools` of workers")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let Pools { pools } = Pools::deserialize(MapAccessDeserializer::new(map))?;
        let mut workers = Vec::new();
        for (index, pool) in pools.iter().enumerate() {
            if pool.count > COUNT_MAX {
                let message = format!("pool {}: {} workers are more than {COUNT_MAX}", pool.name, pool.count);
                return Err(A::Error::custom(message));
            }
            workers.extend((0..pool.count).map(|number| pool.worker(index, number)));
        }
        Ok(workers)
    }
}

impl WorkerPool {
    fn worker(&self, pool: usize, number: u32) -> WorkerConfig {
        let mut labels = self.labels.clone();
        labels.insert(POOL_LABEL.into(), self.name.clone());
        WorkerConfig {
            name: format!("{}-{}", self.name, number + 1),
            location: self.location.clone(),
            server_type: self.server_type.clone(),
            // What leaves the subnet is refused by the rules, with its place.
            address: Ipv4Addr::from(u32::from(self.first_address).saturating_add(number)),
            labels,
            pool: Some(pool),
        }
    }
}

/// Both forms in one schema: which one is meant is seen by whether a list is written.
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<Pools>();
    let list = generator.subschema_for::<Vec<WorkerConfig>>().to_value();
    schema.insert("type".into(), serde_json::json!(["array", "object"]));
    schema.insert("items".into(), list["items"].clone());
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cluster, parse};

    const DEMO: &str = include_str!("../../examples/demo/cluster.yaml");
    const SINGLE: &str = "workers:\n  - {name: w1, location: nbg1, type: cx23, address: 10.0.0.21}\n";

    fn with(workers: &str) -> Result<Cluster, String> {
        assert!(DEMO.contains(SINGLE));
        parse(&DEMO.replace(SINGLE, workers), "cluster.yaml").map_err(|e| e.plain())
    }

    #[test]
    fn a_pool_is_so_many_workers_that_are_alike() {
        let cluster = with(
            "workers:\n  pools:\n    - {name: web, location: nbg1, type: cx33, count: 2, firstAddress: 10.0.0.31, labels: {tier: web}}\n    \
             - {name: gpu, location: hel1, type: cx23, count: 1, firstAddress: 10.0.0.51}\n",
        )
        .unwrap();
        let seen: Vec<_> = cluster.workers.iter().map(|w| (w.name.as_str(), w.address.to_string())).collect();
        let wanted = [("web-1", "10.0.0.31"), ("web-2", "10.0.0.32"), ("gpu-1", "10.0.0.51")];
        assert_eq!(seen, wanted.map(|(name, address)| (name, address.to_owned())));
        assert_eq!(cluster.workers[1].labels[POOL_LABEL], "web");
        assert_eq!(cluster.workers[1].labels["tier"], "web");
    }

    #[test]
    fn a_pool_that_grows_leaves_names_and_addresses_of_the_others() {
        let pools = |count| {
            let text = format!(
                "workers:\n  pools:\n    - {{name: a, location: nbg1, type: cx23, count: {count}, firstAddress: 10.0.0.31}}\n    \
                 - {{name: b, location: nbg1, type: cx23, count: 2, firstAddress: 10.0.0.51}}\n"
            );
            with(&text).unwrap().workers
        };
        let (few, many) = (pools(1), pools(3));
        assert!(few.iter().all(|worker| many.contains(worker)), "{few:?}\n{many:?}");
    }

    #[test]
    fn mistakes_in_a_pool_are_told_with_their_place() {
        let found = with("workers:\n  pools:\n    - {name: a, location: nbg1, typ: cx23, count: x}\n").unwrap_err();
        for part in ["unknown field `typ` (did you mean `type`?)", "workers.pools[0].count must be a whole number"] {
            assert!(found.contains(part), "{part} in\n{found}");
        }
        assert!(found.contains("`firstAddress` is missing in workers.pools[0]"), "{found}");
        let found =
            with("workers:\n  pools: [{name: a, location: nbg1, type: cx23, count: 101, firstAddress: 10.0.0.31}]\n");
        assert!(found.unwrap_err().contains("101 workers are more than 100"));
    }
}
