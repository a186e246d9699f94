//! What Hetzner offers and the lab does not: each answers so, in the usual form.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request};
use axum::routing::{any, get};

use super::cloud::Cloud;
use super::error::{ApiError, ApiResult};
use super::input::path_id;
use super::listing::Listing;

pub fn routes() -> Router<Arc<Cloud>> {
    let mut router = Router::new().route("/isos", get(no_isos)).route("/isos/{id}", get(no_iso));
    for root in ["/zones", "/storage_boxes", "/storage_box_types"] {
        router = router.route(root, any(not_offered)).route(&format!("{root}/{{*rest}}"), any(not_offered));
    }
    router
}

async fn no_isos(listing: Listing) -> ApiResult {
    listing.reply("isos", Vec::new(), &[])
}

async fn no_iso(Path(id): Path<String>) -> ApiResult {
    Err(ApiError::not_found("iso", path_id(&id)?))
}

async fn not_offered(request: Request) -> ApiError {
    let path = request.uri().path();
    let what = if path.starts_with("/zones") { "DNS zones" } else { "storage boxes" };
    ApiError::new("not_implemented", format!("the lab offers no {what}: {path} exists at Hetzner only"))
}
