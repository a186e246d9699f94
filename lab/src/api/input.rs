//! Request bodies: JSON objects read field by field, so that each refusal names its field.

use std::net::Ipv4Addr;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde_json::{Map, Value};

use super::error::{ApiError, ApiResult};
use super::label::{self, Labels};

/// A request's JSON object. An empty body counts as an empty object, as most action endpoints take none.
#[derive(Debug, Clone, Default)]
pub struct Input(Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for Input {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|e| ApiError::new("json_error", format!("the request's body could not be read: {e}")))?;
        Self::parse(&body)
    }
}

impl Input {
    pub fn parse(body: &[u8]) -> ApiResult<Self> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::new("json_error", "the request's body is not a JSON object")),
            Err(e) => Err(ApiError::new("json_error", format!("invalid JSON in the request's body: {e}"))),
        }
    }

    /// All fields that are not null.
    pub fn fields(&self) -> Map<String, Value> {
        self.0.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The field unless it is absent or null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    pub fn string(&self, name: &str) -> ApiResult<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone())),
            Some(_) => Err(ApiError::field(name, "must be a string")),
        }
    }

    pub fn required_string(&self, name: &str) -> ApiResult<String> {
        self.string(name)?.ok_or_else(|| ApiError::field(name, "is required"))
    }

    /// A name or an id, given as string or number.
    pub fn reference(&self, name: &str) -> ApiResult<Option<String>> {
        self.get(name).map(|v| as_reference(name, v)).transpose()
    }

    pub fn references(&self, name: &str) -> ApiResult<Vec<String>> {
        self.array(name)?.iter().map(|v| as_reference(name, v)).collect()
    }

    pub fn number(&self, name: &str) -> ApiResult<Option<u64>> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => {
                v.as_u64().map(Some).ok_or_else(|| ApiError::field(name, "must be a whole number and not negative"))
            }
        }
    }

    pub fn required_number(&self, name: &str) -> ApiResult<u64> {
        self.number(name)?.ok_or_else(|| ApiError::field(name, "is required"))
    }

    pub fn numbers(&self, name: &str) -> ApiResult<Vec<u64>> {
        let wrong = || ApiError::field(name, "must be a list of ids");
        self.array(name)?.iter().map(|v| v.as_u64().ok_or_else(wrong)).collect()
    }

    pub fn flag(&self, name: &str) -> ApiResult<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => v.as_bool().map(Some).ok_or_else(|| ApiError::field(name, "must be true or false")),
        }
    }

    pub fn address(&self, name: &str) -> ApiResult<Option<Ipv4Addr>> {
        let wrong = |_| ApiError::field(name, "is not an IPv4 address");
        self.string(name)?.map(|s| s.parse().map_err(wrong)).transpose()
    }

    pub fn array(&self, name: &str) -> ApiResult<&[Value]> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(ApiError::field(name, "must be a list")),
        }
    }

    /// A list of objects.
    pub fn objects(&self, name: &str) -> ApiResult<Vec<Input>> {
        let wrong = || ApiError::field(name, "must be a list of objects");
        self.array(name)?.iter().map(|v| v.as_object().cloned().map(Input).ok_or_else(wrong)).collect()
    }

    pub fn object(&self, name: &str) -> ApiResult<Option<Input>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Input(fields.clone()))),
            Some(_) => Err(ApiError::field(name, "must be an object")),
        }
    }

    pub fn labels(&self) -> ApiResult<Option<Labels>> {
        self.get("labels").map(label::from_json).transpose()
    }
}

fn as_reference(name: &str, value: &Value) -> ApiResult<String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        Value::Number(n) => Ok(n.to_string()),
        _ => Err(ApiError::field(name, "must be a name or an id")),
    }
}

/// An id from a path.
pub fn path_id(text: &str) -> ApiResult<u64> {
    text.parse().map_err(|_| ApiError::field("id", "must be a whole number"))
}
