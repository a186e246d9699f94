//! Hetzner's own Python client against a lab with real machines. Needs root.

mod common;
mod python;

use common::Lab;

#[test]
fn the_official_client_lives_a_full_life_among_real_machines() {
    let lab = Lab::up("t-python");
    python::live(&format!("http://{}/v1", lab.info.api_published), &lab.info.token);
}
