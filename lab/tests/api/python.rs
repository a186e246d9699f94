//! The official Python client over a fake backend. `tests/python.rs` is the same with real machines.

#[path = "../python/mod.rs"]
mod official;

use crate::client::Lab;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_lives_a_full_life() {
    let lab = Lab::start().await;
    let (endpoint, token) = (lab.served.endpoint.clone(), lab.served.token.clone());
    tokio::task::spawn_blocking(move || official::live(&endpoint, &token)).await.unwrap();
}
