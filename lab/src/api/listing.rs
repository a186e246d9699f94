//! Lists: filters, order, pages, and the `Link` header.

use axum::extract::{FromRequestParts, Query};
use axum::http::header::{HOST, LINK};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::{ApiError, ApiResult};
use super::label::Labels;
use super::selector::Selector;

const PER_PAGE_DEFAULT: u64 = 25;
const PER_PAGE_MAX: u64 = 50;

/// The query of a list request.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// In the order given; a name may repeat.
    params: Vec<(String, String)>,
    /// Address of the list, for links to its other pages.
    base: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Listing {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Query(params) = Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|e| ApiError::new("invalid_input", format!("the query cannot be parsed: {e}")))?;
        let host = parts.headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or("api.hetzner.cloud");
        // The router took `/v1` off the path.
        Ok(Self { params, base: format!("http://{host}/v1{}", parts.uri.path()) })
    }
}

impl Listing {
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.params.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn first<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// Answers the items that pass `name`, `label_selector`, and the filters named in `also` (exact match on a field of
    /// the same name, repeatable), in the order of `sort`, one page of them.
    pub fn reply(&self, key: &str, items: Vec<Value>, also: &[&str]) -> ApiResult {
        self.reply_with(key, items, also, |item, name| item[name].clone(), labels_of, |item| item)
    }

    /// As `reply`, of items that are rendered only if they are on the page. `field` gives what they are filtered and
    /// sorted by.
    pub fn reply_with<T>(
        &self,
        key: &str,
        mut items: Vec<T>,
        also: &[&str],
        field: impl Fn(&T, &str) -> Value,
        labels: impl Fn(&T) -> Labels,
        render: impl Fn(T) -> Value,
    ) -> ApiResult {
        if let Some(text) = self.first("label_selector") {
            let selector = Selector::parse(text)?;
            items.retain(|item| selector.matches(&labels(item)));
        }
        for name in ["name"].iter().chain(also) {
            let wanted: Vec<&str> = self.all(name).collect();
            if !wanted.is_empty() {
                items.retain(|item| field(item, name).as_str().is_some_and(|v| wanted.contains(&v)));
            }
        }
        self.sort(&mut items, field)?;
        let (page, per_page) = (self.page()?, self.per_page()?);
        let total = items.len() as u64;
        let last = total.div_ceil(per_page).max(1);
        let skip = (page - 1).saturating_mul(per_page);
        let shown: Vec<Value> = items.into_iter().skip(skip as usize).take(per_page as usize).map(render).collect();
        let previous = (page > 1).then(|| page - 1);
        let next = (page < last).then(|| page + 1);
        let pagination = json!({
            "page": page, "per_page": per_page, "previous_page": previous, "next_page": next,
            "last_page": last, "total_entries": total,
        });
        let mut links = Vec::new();
        for (relation, target) in [("prev", previous), ("next", next), ("last", Some(last))] {
            if let Some(target) = target {
                links.push(format!("<{}>; rel=\"{relation}\"", self.link(target, per_page)));
            }
        }
        let mut body = json!({"meta": {"pagination": pagination}});
        body[key] = Value::Array(shown);
        Ok(([(LINK, links.join(", "))], axum::Json(body)).into_response())
    }

    fn link(&self, page: u64, per_page: u64) -> String {
        format!("{}?page={page}&per_page={per_page}", self.base)
    }

    fn page(&self) -> ApiResult<u64> {
        let wrong = || ApiError::field("page", "must be a whole number from 1");
        let page = self.first("page").map_or(Ok(1), str::parse).map_err(|_| wrong())?;
        if page == 0 { Err(wrong()) } else { Ok(page) }
    }

    fn per_page(&self) -> ApiResult<u64> {
        let wrong = || ApiError::field("per_page", format!("must be a whole number from 1 to {PER_PAGE_MAX}"));
        let size = self.first("per_page").map_or(Ok(PER_PAGE_DEFAULT), str::parse).map_err(|_| wrong())?;
        if (1..=PER_PAGE_MAX).contains(&size) { Ok(size) } else { Err(wrong()) }
    }

    /// Sorts by each `sort` in turn (the first weighs most); ties and the default go by id.
    fn sort<T>(&self, items: &mut [T], field_of: impl Fn(&T, &str) -> Value) -> ApiResult<()> {
        items.sort_by_cached_key(|item| field_of(item, "id").as_u64());
        let mut orders = Vec::new();
        for text in self.all("sort") {
            let (field, descending) = match text.split_once(':') {
                None => (text, false),
                Some((field, "asc")) => (field, false),
                Some((field, "desc")) => (field, true),
                Some(_) => return Err(ApiError::field("sort", format!("'{text}' has no such direction"))),
            };
            let known = ["id", "name", "created", "command", "status", "started", "finished"];
            if !known.contains(&field) {
                return Err(ApiError::field("sort", format!("cannot sort by '{field}'")));
            }
            orders.push((field, descending));
        }
        // Stable sorts from the last order to the first make the first weigh most.
        for (field, descending) in orders.into_iter().rev() {
            items.sort_by(|a, b| {
                let order = match (&field_of(a, field), &field_of(b, field)) {
                    (Value::Number(a), Value::Number(b)) => a.as_u64().cmp(&b.as_u64()),
                    (a, b) => a.as_str().cmp(&b.as_str()),
                };
                if descending { order.reverse() } else { order }
            });
        }
        Ok(())
    }
}

fn labels_of(item: &Value) -> Labels {
    let pairs = item["labels"].as_object().into_iter().flatten();
    pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}

/// A single resource under its key.
pub fn one(key: &str, value: Value) -> Response {
    let mut body = json!({});
    // Moved; inside of the macro it would be copied, node by node.
    body[key] = value;
    axum::Json(body).into_response()
}

/// `201` with a body.
pub fn created(body: Value) -> Response {
    (axum::http::StatusCode::CREATED, axum::Json(body)).into_response()
}

/// `204` without one.
pub fn no_content() -> Response {
    axum::http::StatusCode::NO_CONTENT.into_response()
}
