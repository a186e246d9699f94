//! Compares what is written with the JSON Schema, so that all mistakes of form are found in one go.

use serde_json::Value;

use super::error::Report;
use super::names::closest;
use super::tree::{Node, Tree};

pub(super) fn check(tree: &Tree, schema: &Value, report: &mut Report) {
    walk(tree, schema, "", report);
}

fn walk(tree: &Tree, schema: &Value, path: &str, report: &mut Report) {
    let may_be = |kind: &str| match &schema["type"] {
        Value::String(only) => only == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => true,
    };
    let name = if path.is_empty() { "the file" } else { path };
    if let (Some(choices), Node::Scalar(text)) = (choices(schema), &tree.node) {
        if !choices.contains(&text.as_str()) {
            let hint = match closest(text, &choices) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("it is one of: {}", choices.join(", ")),
            };
            report.add(tree.at, format!("{name} can't be `{text}`"), hint);
        }
        return;
    }
    match &tree.node {
        Node::Map(entries) if may_be("object") => object(tree, entries, schema, path, report),
        Node::Seq(items) if may_be("array") => {
            for (index, item) in items.iter().enumerate() {
                walk(item, &schema["items"], &format!("{path}[{index}]"), report);
            }
        }
        Node::Null if may_be("null") => {}
        Node::Scalar(text) if may_be("integer") => {
            if text.parse::<i64>().is_err() {
                report.add(tree.at, format!("{name} must be a whole number, not `{text}`"), None);
            }
        }
        Node::Scalar(text) if may_be("string") => {
            if schema["format"] == "ipv4" && text.parse::<std::net::Ipv4Addr>().is_err() {
                let hint = "four numbers from 0 to 255, such as 10.0.0.11".to_owned();
                report.add(tree.at, format!("{name} is not an IPv4 address: `{text}`"), hint);
            }
        }
        Node::Scalar(_) if may_be("boolean") => {}
        other => {
            let wanted = if may_be("object") {
                "fields (`name: value`, a line each)"
            } else if may_be("array") {
                "a list (`[a, b]`, or lines that begin with `- `)"
            } else if may_be("integer") {
                "a whole number"
            } else {
                "a text"
            };
            let found = match other {
                Node::Map(_) => "fields",
                Node::Seq(_) => "a list",
                Node::Scalar(_) => "a single value",
                Node::Null => "nothing",
            };
            report.add(tree.at, format!("{name} must be {wanted}, but {found} is written"), None);
        }
    }
}

/// The words of an enumeration.
fn choices(schema: &Value) -> Option<Vec<&str>> {
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(Value::as_str).collect());
    }
    // One with descriptions is a list of constants, or of lists of them.
    let mut words = Vec::new();
    for one in schema["oneOf"].as_array()? {
        match one["const"].as_str() {
            Some(word) => words.push(word),
            None => words.extend(choices(one)?),
        }
    }
    Some(words)
}

fn object(tree: &Tree, entries: &[(Tree, Tree)], schema: &Value, path: &str, report: &mut Report) {
    let properties = schema["properties"].as_object();
    let known: Vec<&str> = properties.map(|p| p.keys().map(String::as_str).collect()).unwrap_or_default();
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let place = if path.is_empty() { report.file_name().to_owned() } else { path.to_owned() };
    for (key, value) in entries {
        let Some(key_text) = key.scalar() else { continue };
        if let Some(property) = properties.and_then(|p| p.get(key_text)) {
            walk(value, property, &below(key_text), report);
        } else if schema["additionalProperties"].is_object() {
            walk(value, &schema["additionalProperties"], &below(key_text), report);
        } else {
            let hint = match closest(key_text, &known) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("{place} knows: {}", known.join(", ")),
            };
            report.add(key.at, format!("unknown field `{key_text}`"), hint);
        }
    }
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !entries.iter().any(|(key, _)| key.scalar() == Some(required)) {
            let about = schema["properties"][required]["description"].as_str().map(str::to_owned);
            let inside = if path.is_empty() { String::new() } else { format!(" in {path}") };
            report.add(tree.at, format!("`{required}` is missing{inside}"), about);
        }
    }
}
