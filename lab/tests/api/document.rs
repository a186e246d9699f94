//! Holds answers against the published OpenAPI document, which is not part of this repository.
//!
//! It is looked for at `HCLOUD_OPENAPI`, then at `../shared/hcloud-openapi/hcloud.json` beside the workspace.

use std::sync::OnceLock;

use serde_json::{Value, json};

/// What the cloud announced after the document was written: fields that are gone, by schema.
const GONE: [(&str, &str); 3] = [("server", "datacenter"), ("server_type", "deprecated"), ("image", "deprecated")];
/// Fields that came since, or that the document leaves out.
const NEW: [&str; 4] = ["available", "recommended", "deprecation", "timeout_idle"];

/// The document with the later changes, if there is one.
pub fn load() -> Option<&'static Value> {
    static DOCUMENT: OnceLock<Option<Value>> = OnceLock::new();
    DOCUMENT.get_or_init(read).as_ref()
}

fn read() -> Option<Value> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/hcloud-openapi/hcloud.json");
    let text = match std::env::var_os("HCLOUD_OPENAPI") {
        // Whoever names it wants it used.
        Some(path) => std::fs::read_to_string(path).expect("HCLOUD_OPENAPI names a file that can be read"),
        None => std::fs::read_to_string(beside).ok()?,
    };
    let mut document: Value = serde_json::from_str(&text).expect("the OpenAPI document is JSON");
    for (schema, field) in GONE {
        without(&mut document["components"]["schemas"][schema], field);
    }
    change_primary_ips(&mut document);
    // Deleting a load balancer has become an action, as for servers.
    let answer = document["paths"]["/servers/{id}"]["delete"]["responses"]["200"].clone();
    document["paths"]["/load_balancers/{id}"]["delete"]["responses"]["200"] = answer;
    Some(document)
}

fn without(schema: &mut Value, field: &str) {
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.remove(field);
    }
    if let Some(required) = schema["required"].as_array_mut() {
        required.retain(|name| name != field);
    }
}

/// Primary IPs are spelled out wherever they occur: they have no data center, and may be nobody's.
fn change_primary_ips(part: &mut Value) {
    if let Some(kinds) = part.pointer_mut("/properties/assignee_type/enum").and_then(Value::as_array_mut) {
        kinds.push(json!("unassigned"));
        without(part, "datacenter");
    }
    match part {
        Value::Object(fields) => fields.values_mut().for_each(change_primary_ips),
        Value::Array(items) => items.iter_mut().for_each(change_primary_ips),
        _ => {}
    }
}

/// Fails the test if the answer does not fit the document.
#[track_caller]
pub fn check(method: &str, path: &str, status: u16, body: &Value) {
    let Some(document) = load() else { return };
    let path = path.split('?').next().unwrap_or(path);
    let problems = problems(document, method, path, status, body);
    assert!(problems.is_empty(), "{method} {path} -> {status} does not fit the document: {problems:#?}\n{body}");
}

fn problems(document: &Value, method: &str, path: &str, status: u16, body: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let Some(operation) = operation(document, method, path) else {
        // Paths the cloud has not (or has not with this method): the refusal must still have the right form.
        if !path.starts_with("/_lab") {
            let schema = json!({"$ref": "#/components/schemas/error_response"});
            validate(document, &schema, body, "", &mut problems);
        }
        return problems;
    };
    let responses = &operation["responses"];
    let exact = &responses[status.to_string()];
    let response = if exact.is_null() { &responses[format!("{}xx", status / 100)] } else { exact };
    if response.is_null() {
        return vec![format!("status {status} is not one of {:?}", responses.as_object().map(|r| r.keys()))];
    }
    match &response["content"]["application/json"]["schema"] {
        Value::Null if body.is_null() => {}
        Value::Null => problems.push("there should be no body".to_owned()),
        schema => validate(document, schema, body, "", &mut problems),
    }
    problems
}

/// The name of a path's operation, such as `GET /servers/{id}`.
pub fn name(method: &str, path: &str) -> Option<String> {
    let path = path.split('?').next().unwrap_or(path);
    template(load()?, path).map(|template| format!("{method} {template}"))
}

/// The operation for a path: one spelled out goes before one with parameters.
fn operation<'a>(document: &'a Value, method: &str, path: &str) -> Option<&'a Value> {
    document["paths"][template(document, path)?].get(method.to_ascii_lowercase())
}

fn template<'a>(document: &'a Value, path: &str) -> Option<&'a str> {
    let fits = |template: &str| {
        let (a, b): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
        a.len() == b.len() && a.iter().zip(&b).all(|(t, p)| t == p || t.starts_with('{'))
    };
    let paths = document["paths"].as_object()?;
    paths.keys().filter(|t| fits(t)).min_by_key(|t| t.matches('{').count()).map(String::as_str)
}

/// The subset of JSON Schema that the document uses. Fields it does not know are a problem too: most likely a typo.
fn validate(document: &Value, schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).expect("references lead somewhere");
        return validate(document, target, value, at, problems);
    }
    if value.is_null() {
        if schema["nullable"] != true {
            problems.push(format!("{at}: must not be null"));
        }
        return;
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        validate(document, part, value, at, problems);
    }
    let fits = match schema["type"].as_str() {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some(other) => panic!("{at}: the validator knows no type {other}"),
    };
    if !fits {
        problems.push(format!("{at}: {value} is no {}", schema["type"]));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        problems.push(format!("{at}: {value} is none of {allowed:?}"));
    }
    if let (Some(max), Some(number)) = (schema["maximum"].as_f64(), value.as_f64())
        && number > max
    {
        problems.push(format!("{at}: {number} is more than {max}"));
    }
    if let (Some("date-time"), Some(text)) = (schema["format"].as_str(), value.as_str())
        && text.parse::<jiff::Timestamp>().is_err()
    {
        problems.push(format!("{at}: {text} is no time"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            problems.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        let here = format!("{at}/{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, other) if other.is_object() => validate(document, other, field, &here, problems),
            (Value::Null, _) if schema["properties"].is_object() && !NEW.contains(&name.as_str()) => {
                problems.push(format!("{here}: the document has no such field"));
            }
            (Value::Null, _) => {}
            (known, _) => validate(document, known, field, &here, problems),
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        validate(document, &schema["items"], item, &format!("{at}/{index}"), problems);
    }
}

#[test]
fn the_validator_sees_what_is_wrong() {
    let document = json!({
        "components": {"schemas": {"thing": {
            "type": "object", "required": ["id", "kind"],
            "properties": {
                "id": {"type": "integer", "maximum": 10}, "kind": {"type": "string", "enum": ["a"]},
                "more": {"allOf": [{"$ref": "#/components/schemas/thing"}], "nullable": true},
            },
        }}},
        "paths": {"/things/{id}": {"get": {"responses": {"200": {"content": {"application/json": {
            "schema": {"$ref": "#/components/schemas/thing"},
        }}}, "204": {}}}}},
    });
    let count = |status: u16, body: Value| problems(&document, "GET", "/things/1", status, &body).len();
    assert_eq!(count(200, json!({"id": 1, "kind": "a", "more": null})), 0);
    assert_eq!(count(200, json!({"id": 1, "kind": "a", "more": {"id": 11, "kind": "b"}})), 2);
    assert_eq!(count(200, json!({"id": "1", "tpyo": 1})), 3);
    assert_eq!(count(204, Value::Null), 0);
    assert_eq!(count(204, json!({})), 1);
    assert_eq!(count(500, json!({})), 1);
}
