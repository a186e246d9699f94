//! How two JSON objects differ, field by field.

use serde::Serialize;
use serde_json::Value;

/// A field that differs. Null: it is not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldChange {
    /// `spec.replicas`, `spec.containers[0].image`, `metadata.labels["a.b/c"]`.
    pub path: String,
    pub before: Value,
    pub after: Value,
}

/// What is shown in place of a hidden value.
pub const HIDDEN: &str = "(hidden)";

/// Every field that differs, in order. With `hide`, values of a Secret's data are not shown, only that they differ.
pub fn field_changes(before: &Value, after: &Value, hide: bool) -> Vec<FieldChange> {
    let mut found = Vec::new();
    // An object that is not there is one without fields, so that every field has a name of its own.
    let empty = Value::Object(serde_json::Map::new());
    let known = |object: &Value| if object.is_null() { empty.clone() } else { object.clone() };
    walk(String::new(), &known(before), &known(after), &mut found);
    let secret = [before, after].iter().any(|object| object["kind"] == "Secret");
    if hide && secret {
        for change in &mut found {
            let last_applied = change.path.contains("last-applied-configuration");
            if last_applied || ["data", "stringData"].iter().any(|field| change.path.starts_with(field)) {
                for value in [&mut change.before, &mut change.after] {
                    if !value.is_null() {
                        *value = Value::from(HIDDEN);
                    }
                }
            }
        }
    }
    found
}

fn walk(path: String, before: &Value, after: &Value, found: &mut Vec<FieldChange>) {
    match (before, after) {
        (Value::Object(_), Value::Null) => walk(path, before, &Value::Object(serde_json::Map::new()), found),
        (Value::Null, Value::Object(_)) => walk(path, &Value::Object(serde_json::Map::new()), after, found),
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
                let below = match (plain, path.is_empty()) {
                    (true, true) => name.clone(),
                    (true, false) => format!("{path}.{name}"),
                    (false, _) => format!("{path}[{name:?}]"),
                };
                let value = |object: &serde_json::Map<String, Value>| object.get(name).cloned().unwrap_or(Value::Null);
                walk(below, &value(a), &value(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                let value = |list: &Vec<Value>| list.get(index).cloned().unwrap_or(Value::Null);
                walk(format!("{path}[{index}]"), &value(a), &value(b), found);
            }
        }
        _ if before != after => found.push(FieldChange { path, before: before.clone(), after: after.clone() }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_named_with_both_values() {
        let before = json!({"spec": {"replicas": 1, "list": [1, 2]}, "metadata": {"labels": {"a.b/c": "x"}}});
        let after = json!({"spec": {"replicas": 2, "list": [1]}, "metadata": {"labels": {"a.b/c": "y"}}});
        let found: Vec<String> = field_changes(&before, &after, true).into_iter().map(|c| c.path).collect();
        assert_eq!(found, ["metadata.labels[\"a.b/c\"]", "spec.list[1]", "spec.replicas"]);
    }

    #[test]
    fn secrets_are_hidden_unless_asked_for() {
        let secret = |value: &str| json!({"kind": "Secret", "data": {"password": value}, "type": value});
        let found = field_changes(&secret("one"), &secret("two"), true);
        assert_eq!(
            found[0],
            FieldChange { path: "data.password".to_owned(), before: json!(HIDDEN), after: json!(HIDDEN) }
        );
        assert_eq!(found[1].before, json!("one"));
        assert_eq!(field_changes(&secret("one"), &secret("two"), false)[0].after, json!("two"));
        let added = field_changes(&Value::Null, &secret("two"), true);
        assert!(!serde_json::to_string(&added).unwrap().contains("\"password\":\"two\""), "{added:?}");
    }
}
