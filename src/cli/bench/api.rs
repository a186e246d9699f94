//! Reads of the lab's API: how many a second it answers with 50 servers, and how long the slowest hundredth takes.

use std::time::{Duration, Instant};

use hk_lab::api::{Options, Served, serve_fake_with};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{Bench, Goal};
use crate::cli::{CliError, Context, ExitKind};

pub(super) const API: Bench = Bench {
    name: "api",
    figures: &[
        Goal { name: "api_thousand_reads", unit: "s", at_most: 0.5 },
        Goal { name: "api_read_p99", unit: "ms", at_most: 20.0 },
    ],
    run,
};

const SERVERS: usize = 50;
/// Clients that ask one question after the other. Their work counts, too: they share the machine's cores.
const CLIENTS: usize = 8;
const READS_OF_EACH: usize = 1500;
/// No server of the fake takes anywhere near this long.
const DEADLINE: Duration = Duration::from_secs(30);

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    context.block_on(measure())
}

fn failed(what: &str, error: impl std::fmt::Display) -> CliError {
    CliError::new(ExitKind::Failed, format!("{what}: {error}"))
}

async fn measure() -> Result<Vec<f64>, CliError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| failed("listen", e))?;
    let mut options = Options::new("bench");
    options.rate_limit.burst = u32::MAX;
    let served = serve_fake_with(listener, options).map_err(|e| failed("serve the API", e))?;
    let http = reqwest::Client::builder().no_proxy().build().map_err(|e| failed("make a client", e))?;
    let paths = populate(&served, &http).await?;
    let mut clients = JoinSet::new();
    let begun = Instant::now();
    for client in 0..CLIENTS {
        let (http, paths, served) = (http.clone(), paths.clone(), (served.endpoint.clone(), served.token.clone()));
        clients.spawn(async move {
            let mut took = Vec::with_capacity(READS_OF_EACH);
            for read in 0..READS_OF_EACH {
                let path = &paths[(client + read) % paths.len()];
                let asked = Instant::now();
                get(&http, &served.0, &served.1, path).await?;
                took.push(asked.elapsed());
            }
            Ok::<_, CliError>(took)
        });
    }
    let mut took: Vec<Duration> = Vec::new();
    while let Some(client) = clients.join_next().await {
        took.extend(client.map_err(|e| failed("a client", e))??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default().as_secs_f64() * 1000.0;
    let rate = took.len() as f64 / seconds;
    eprintln!("  {} reads in {seconds:.2} s: {rate:.0} a second, p99 {p99:.1} ms", took.len());
    Ok(vec![1000.0 / rate, p99])
}

/// Creates the servers; returns the paths that are read: what clients ask most, and now and then a whole page.
async fn populate(served: &Served, http: &reqwest::Client) -> Result<Vec<String>, CliError> {
    let mut paths = Vec::new();
    for number in 0..SERVERS {
        let name = format!("s{number}");
        let body = json!({"name": name, "server_type": "cx23", "image": "debian-12", "location": "fsn1",
            "labels": {"n": format!("{number}")}});
        let request = http.post(format!("{}/servers", served.endpoint)).bearer_auth(&served.token).json(&body);
        let answer = request.send().await.and_then(reqwest::Response::error_for_status);
        let answer = answer.map_err(|e| failed("create a server", e))?;
        let made: Value = answer.json().await.map_err(|e| failed("create a server", e))?;
        paths.push(format!("/servers/{}", made["server"]["id"]));
        paths.push(format!("/servers?name={name}"));
        paths.push(format!("/actions?id={}", made["action"]["id"]));
        if number % 5 == 0 {
            paths.push("/servers".to_owned());
        }
    }
    let begun = Instant::now();
    loop {
        let starting = get(http, &served.endpoint, &served.token, "/servers?status=initializing").await?;
        if starting["servers"].as_array().is_some_and(Vec::is_empty) {
            return Ok(paths);
        }
        if begun.elapsed() > DEADLINE {
            return Err(failed("create servers", "they do not start"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn get(http: &reqwest::Client, endpoint: &str, token: &str, path: &str) -> Result<Value, CliError> {
    let request = http.get(format!("{endpoint}{path}")).bearer_auth(token);
    let answer = request.send().await.and_then(reqwest::Response::error_for_status);
    let answer = answer.map_err(|e| failed("read from the API", e))?;
    let body = answer.bytes().await.map_err(|e| failed("read from the API", e))?;
    serde_json::from_slice(&body).map_err(|e| failed("read from the API", e))
}
