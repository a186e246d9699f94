//! `hk-dr lab status`: the labs of this host, and the cloud in each as tables.

use std::time::Duration;

use hk_lab::control;
use serde_json::{Value, json};

use super::{CliError, Context};

/// The lab answers from memory: longer means that it hangs.
const DEADLINE: Duration = Duration::from_secs(5);
/// (title, name in the overview, columns and the fields in them)
type Table = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const TABLES: [Table; 9] = [
    ("faults", "faults", &[("ID", "id"), ("KIND", "kind"), ("STRUCK", "struck"), ("UNTIL", "until")]),
    (
        "servers",
        "servers",
        &[
            ("ID", "id"),
            ("NAME", "name"),
            ("STATUS", "status"),
            ("LOCATION", "location"),
            ("TYPE", "type"),
            ("PUBLIC", "ipv4"),
            ("PRIVATE", "private"),
        ],
    ),
    (
        "volumes",
        "volumes",
        &[("ID", "id"), ("NAME", "name"), ("GB", "size_gb"), ("LOCATION", "location"), ("SERVER", "server")],
    ),
    ("networks", "networks", &[("ID", "id"), ("NAME", "name"), ("RANGE", "range"), ("SERVERS", "servers")]),
    ("firewalls", "firewalls", &[("ID", "id"), ("NAME", "name"), ("RULES", "rules"), ("APPLIED TO", "applied_to")]),
    (
        "load balancers",
        "load_balancers",
        &[("ID", "id"), ("NAME", "name"), ("LOCATION", "location"), ("PUBLIC", "ipv4"), ("TARGETS", "targets")],
    ),
    ("IPs", "ips", &[("ID", "id"), ("KIND", "kind"), ("IP", "ip"), ("LOCATION", "location"), ("SERVER", "server")]),
    ("running actions", "actions", &[("ID", "id"), ("COMMAND", "command"), ("PROGRESS", "progress")]),
    ("locations with faults", "locations", &[("LOCATION", "name"), ("FAULTS", "faults")]),
];

/// Shows the labs that run with what is in them, and those that are kept.
pub fn run(context: &Context) -> Result<(), CliError> {
    let labs = control::status()?;
    let kept = control::kept(&context.state_dir());
    let mut shown = Vec::new();
    for lab in &labs {
        let url = format!("{}/_lab/overview", lab.api.trim_end_matches("/v1"));
        let cloud = context.block_on(overview(&url));
        let mut value = json!(lab);
        value["cloud"] = cloud;
        shown.push(value);
    }
    if context.global.json {
        println!("{}", json!({"labs": shown, "kept": kept}));
        return Ok(());
    }
    if labs.is_empty() {
        println!("no lab is up (hk-dr lab up starts one)");
    }
    for lab in &shown {
        print(lab);
    }
    for name in kept {
        println!("lab {name} is kept and down (hk-dr lab up --name {name} brings it back)");
    }
    Ok(())
}

/// What is in a lab's cloud; null if it does not answer.
async fn overview(url: &str) -> Value {
    let ask = async {
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().ok()?;
        client.get(url).send().await.ok()?.json::<Value>().await.ok()
    };
    ask.await.map_or(Value::Null, |mut answer| answer["overview"].take())
}

fn print(lab: &Value) {
    let text = |name: &str| lab[name].as_str().unwrap_or_default();
    println!("lab {}   API {}   S3 {}", text("name"), text("api"), text("s3"));
    if lab["cloud"].is_null() {
        println!("  its API does not answer; /run/hk-dr/labs/{}/lab.log may say why", text("name"));
        return;
    }
    println!("  in a browser: {}/_lab/", text("api").trim_end_matches("/v1"));
    for (title, name, columns) in TABLES {
        let rows: Vec<&Value> =
            lab["cloud"][name].as_array().into_iter().flatten().filter(|row| wanted(name, row)).collect();
        if rows.is_empty() {
            continue;
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header(columns.iter().map(|(head, _)| *head));
        for row in rows {
            table.add_row(columns.iter().map(|(_, field)| cell(&row[*field])));
        }
        println!("\n{title}\n{table}");
    }
    println!();
}

/// The page shows more; a terminal shows what matters now.
fn wanted(table: &str, row: &Value) -> bool {
    match table {
        "actions" => row["status"] == "running",
        "locations" => row["faults"].as_array().is_some_and(|faults| !faults.is_empty()),
        _ => true,
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overview_of_a_cloud_fits_the_tables() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let cloud = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let served = hk_lab::api::serve_fake(listener).unwrap();
            let url = served.endpoint.replace("/v1", "/_lab/overview");
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let body = json!({"name": "v", "size": 10, "location": "fsn1"});
            let made = client.post(format!("{}/volumes", served.endpoint)).bearer_auth(&served.token).json(&body);
            assert!(made.send().await.unwrap().status().is_success());
            overview(&url).await
        });
        for (_, name, _) in TABLES {
            assert!(cloud[name].is_array(), "{name}: {cloud}");
        }
        let (_, name, columns) = TABLES[2];
        for (_, field) in columns {
            assert!(cloud[name][0].get(field).is_some(), "{field}: {cloud}");
        }
    }
}
