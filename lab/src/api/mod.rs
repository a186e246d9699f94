//! The emulated cloud API over HTTP: one file an area.
//!
//! Handlers decide under one lock (`Cloud`), start effects of the [`Backend`](crate::backend::Backend) as actions, and
//! answer at once, as the real cloud does. Whatever the lab lacks is refused with `unsupported_error`, never half done.

mod absent;
mod action;
mod address;
mod answers;
mod balancer;
mod balancer_action;
mod balancer_service;
mod balancer_target;
mod balancer_type;
mod catalog;
mod certificate;
mod cloud;
mod error;
mod fake;
mod fault;
mod fault_routes;
mod firewall;
mod firewall_action;
mod floating_ip;
mod gate;
mod image;
mod input;
mod label;
mod listing;
mod metadata;
mod metrics;
mod network;
mod network_action;
mod overview;
mod page;
mod placement_group;
mod pricing;
mod primary_ip;
mod provider;
mod rdns;
mod restore;
mod selector;
mod server;
mod server_action;
mod server_create;
mod server_disk;
mod ssh_key;
mod store;
mod tag;
mod upkeep;
mod volume;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;

pub use address::Range;
pub use cloud::{Cloud, Limits, Options};
pub use fake::{FakeBackend, Served, serve_fake, serve_fake_with};
pub(crate) use fault::Kind as StoreFault;
pub use gate::RateLimit;
pub use metadata::metadata_router;
pub use provider::{Access, Project, Provider, Token};

use error::ApiError;

/// The API: paths under `/v1` as the cloud has them, and the lab's own under `/_lab`.
pub fn router(provider: Arc<Provider>) -> Router {
    Router::new()
        .merge(fault_routes::routes())
        .merge(overview::routes())
        .merge(provider::routes())
        .method_not_allowed_fallback(no_method)
        .fallback(gate::to_project)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&provider), gate::pass))
        .with_state(provider)
}

/// What one project's tokens reach.
fn project_router(cloud: Arc<Cloud>) -> Router {
    let v1 = Router::new()
        .merge(absent::routes())
        .merge(action::routes())
        .merge(balancer::routes())
        .merge(balancer_type::routes())
        .merge(catalog::routes())
        .merge(certificate::routes())
        .merge(firewall::routes())
        .merge(floating_ip::routes())
        .merge(image::routes())
        .merge(network::routes())
        .merge(placement_group::routes())
        .merge(pricing::routes())
        .merge(primary_ip::routes())
        .merge(server::routes())
        .merge(ssh_key::routes())
        .merge(volume::routes());
    Router::new().nest("/v1", v1).method_not_allowed_fallback(no_method).fallback(no_path).with_state(cloud)
}

async fn no_method(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    ApiError::new("method_not_allowed", format!("{method} is not allowed for {path}"))
}

async fn no_path(request: Request) -> ApiError {
    ApiError::new("not_found", format!("the lab's API has no {}", request.uri().path()))
}
