use async_trait::async_trait;
use serde_json::Value;

use super::PortResult;

/// Names a collection of the Kubernetes API: `api/v1` or `apis/apps/v1`, the plural, and a namespace for namespaced kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Collection {
    /// `v1`, or `group/version`.
    pub api_version: String,
    pub plural: String,
    pub namespace: Option<String>,
}

impl Collection {
    /// The URL path of the collection.
    pub fn path(&self) -> String {
        let root = if self.api_version.contains('/') { "apis" } else { "api" };
        match &self.namespace {
            Some(ns) => format!("/{root}/{}/namespaces/{ns}/{}", self.api_version, self.plural),
            None => format!("/{root}/{}/{}", self.api_version, self.plural),
        }
    }
}

/// The Kubernetes API, by untyped objects: what hk-dr moves it does not interpret.
#[async_trait]
pub trait Kube: Send + Sync {
    /// `/readyz` answered `ok`.
    async fn ready(&self) -> PortResult<bool>;
    async fn get(&self, collection: &Collection, name: &str) -> PortResult<Option<Value>>;
    /// Lists a collection (all namespaces when `namespace` is none), over all pages.
    async fn list(&self, collection: &Collection) -> PortResult<Vec<Value>>;
    /// Server-side apply with force, field manager `hk-dr`.
    async fn apply(&self, collection: &Collection, object: &Value) -> PortResult<Value>;
    /// Deletes with the given grace period; false if it was not there.
    async fn delete(&self, collection: &Collection, name: &str, grace_seconds: Option<u32>) -> PortResult<bool>;
    /// Merge patch.
    async fn patch(&self, collection: &Collection, name: &str, patch: &Value) -> PortResult<Value>;
    /// Creates (POST) and returns the answer; also for subresources (`plural` = `serviceaccounts/NAME/token`).
    async fn create(&self, collection: &Collection, object: &Value) -> PortResult<Value>;
}
