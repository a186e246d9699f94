//! Certificates for load balancers: uploaded ones. The lab asks no authority for any.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, post};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::cloud::{Cloud, State, time_json};
use super::error::{ApiError, ApiResult};
use super::input::{Input, path_id};
use super::listing::{Listing, created, no_content, one};
use super::tag::{Tag, TagUpdate, check_unique};

/// A certificate with its key, which is never told.
#[derive(Clone, Serialize, Deserialize)]
pub struct Certificate {
    pub tag: Tag,
    /// PEM, the chain after it.
    pub chain: String,
    pub key: String,
    facts: Facts,
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    fingerprint: String,
    domains: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Reads the first certificate of a chain and checks that the key belongs to it.
fn read_facts(chain: &str, key: &str) -> ApiResult<Facts> {
    let wrong = |field: &str, why: String| ApiError::field(field, why);
    let certificates = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|e| wrong("certificate", format!("is no PEM: {e}")))?;
    let first = certificates.first().ok_or_else(|| wrong("certificate", "has no certificate in PEM".into()))?;
    let (_, parsed) =
        X509Certificate::from_der(first).map_err(|e| wrong("certificate", format!("is no certificate: {e}")))?;
    let key =
        PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| wrong("private_key", format!("is no PEM: {e}")))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|e| wrong("private_key", format!("is of no supported kind: {e}")))?;
    if key.public_key().is_some_and(|public| public.as_ref() != parsed.public_key().raw) {
        return Err(wrong("private_key", "does not belong to the certificate".into()));
    }
    let names = parsed.subject_alternative_name().ok().flatten();
    let mut domains: Vec<String> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect();
    if domains.is_empty() {
        domains.extend(parsed.subject().iter_common_name().filter_map(|n| n.as_str().ok()).map(str::to_owned));
    }
    let time = |seconds: i64| {
        Timestamp::from_second(seconds).map_err(|_| wrong("certificate", "its times are out of range".into()))
    };
    let digest = Sha256::digest(first);
    Ok(Facts {
        fingerprint: digest.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"),
        domains,
        not_before: time(parsed.validity().not_before.timestamp())?,
        not_after: time(parsed.validity().not_after.timestamp())?,
    })
}

impl State {
    fn certificate_json(&self, certificate: &Certificate) -> Value {
        let users: Vec<Value> = self
            .load_balancers
            .values()
            .filter(|b| b.uses(certificate.tag.id))
            .map(|b| json!({"id": b.tag.id, "type": "load_balancer"}))
            .collect();
        let facts = &certificate.facts;
        certificate.tag.json(json!({
            "type": "uploaded", "certificate": certificate.chain, "domain_names": facts.domains,
            "fingerprint": facts.fingerprint, "not_valid_before": time_json(facts.not_before),
            "not_valid_after": time_json(facts.not_after), "status": null, "used_by": users,
        }))
    }

    fn certificate(&self, id: u64) -> ApiResult<&Certificate> {
        self.certificates.get(&id).ok_or_else(|| ApiError::not_found("certificate", id))
    }
}

pub fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/certificates", get(list).post(create))
        .route("/certificates/{id}", get(read).put(update).delete(remove))
        .route("/certificates/{id}/actions/retry", post(retry))
}

async fn list(Shared(cloud): Shared<Arc<Cloud>>, listing: Listing) -> ApiResult {
    let state = cloud.look();
    let certificates = state.certificates.values().map(|c| state.certificate_json(c)).collect();
    listing.reply("certificates", certificates, &["type"])
}

async fn read(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let state = cloud.look();
    Ok(one("certificate", state.certificate_json(state.certificate(id)?)))
}

async fn create(Shared(cloud): Shared<Arc<Cloud>>, input: Input) -> ApiResult {
    let mut tag = Tag::read(&input)?;
    match input.string("type")?.as_deref() {
        None | Some("uploaded") => {}
        Some("managed") => {
            let message = "the lab reaches no certificate authority: upload a certificate instead";
            return Err(ApiError::unsupported(message));
        }
        Some(_) => return Err(ApiError::field("type", "must be 'uploaded' or 'managed'")),
    }
    let (chain, key) = (input.required_string("certificate")?, input.required_string("private_key")?);
    let facts = read_facts(&chain, &key)?;
    let mut state = cloud.state();
    check_unique("certificate", state.certificates.values().map(|c| &c.tag), &tag.name, 0)?;
    if state.certificates.values().any(|c| c.facts.fingerprint == facts.fingerprint) {
        return Err(ApiError::uniqueness("certificate", "certificate with the same fingerprint already exists"));
    }
    if state.certificates.len() >= cloud.options.limits.certificates {
        return Err(ApiError::limit("certificate_limit"));
    }
    let id = state.next_id();
    tag.id = id;
    state.certificates.insert(id, Certificate { tag, chain, key, facts });
    let certificate = state.certificate_json(state.certificate(id)?);
    Ok(created(json!({"certificate": certificate, "action": null})))
}

async fn update(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, input: Input) -> ApiResult {
    let id = path_id(&id)?;
    let update = TagUpdate::read(&input)?;
    let mut state = cloud.state();
    if let Some(name) = &update.name {
        check_unique("certificate", state.certificates.values().map(|c| &c.tag), name, id)?;
    }
    state.certificates.get_mut(&id).ok_or_else(|| ApiError::not_found("certificate", id))?.tag.update(update);
    Ok(one("certificate", state.certificate_json(state.certificate(id)?)))
}

async fn remove(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    let mut state = cloud.state();
    state.certificate(id)?;
    if let Some(user) = state.load_balancers.values().find(|b| b.uses(id)) {
        let message = format!("certificate {id} is used by load balancer {}", user.tag.id);
        return Err(ApiError::new("resource_in_use", message));
    }
    state.certificates.remove(&id);
    Ok(no_content())
}

/// For managed certificates only, and the lab has none.
async fn retry(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>) -> ApiResult {
    let id = path_id(&id)?;
    cloud.state().certificate(id)?;
    Err(ApiError::unsupported(format!("certificate {id} was uploaded: there is no issuance to try again")))
}
