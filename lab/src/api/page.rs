//! The live page at `/_lab/`: rendered here, refreshed by a few lines of script, and readable by reload without them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use axum::response::{Html, IntoResponse, Response};
use serde_json::Value;

use super::provider::Provider;

const STYLE: &str = include_str!("page.css");
/// Its digest is not needed in the policy: the script comes with the page, and the page has nothing of others unescaped.
const SCRIPT: &str = include_str!("page.js");

/// The whole page.
pub async fn whole(State(provider): State<Arc<Provider>>) -> Response {
    let body = render(&provider.overview());
    send(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>hk-dr lab</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <noscript><meta http-equiv=\"refresh\" content=\"3\"></noscript><style>{STYLE}</style></head>\
         <body><main id=\"cloud\">{body}</main><script>{SCRIPT}</script></body></html>"
    ))
}

/// What the script puts into the page.
pub async fn fragment(State(provider): State<Arc<Provider>>) -> Response {
    send(render(&provider.overview()))
}

fn send(html: String) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    ([(CACHE_CONTROL, "no-store"), (CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response()
}

fn render(cloud: &Value) -> String {
    let mut page = String::new();
    let list = |name: &str| cloud[name].as_array().cloned().unwrap_or_default();
    let servers = list("servers");
    let running = servers.iter().filter(|s| s["status"] == "running").count();
    let busy = list("actions").iter().filter(|a| a["status"] == "running").count();
    let faults = list("faults");
    let _ = write!(
        page,
        "<header id=\"sum\"><h1>hk-dr lab</h1><p class=\"sum\"><b>{running}</b> of {} run · {} in progress · \
         <span class=\"{}\">{}</span></p><time>{} UTC</time></header>",
        count(servers.len(), "server"),
        count(busy, "action"),
        if faults.is_empty() { "ok" } else { "bad" },
        count(faults.len(), "fault"),
        escape(&clock(&cloud["at"]))
    );
    page.push_str("<div class=\"places\" id=\"places\">");
    for place in list("locations") {
        let struck: Vec<String> = place["faults"].as_array().into_iter().flatten().map(text).collect();
        let class = if struck.is_empty() { "place" } else { "place struck" };
        let state = if struck.is_empty() { text(&place["network_zone"]) } else { struck.join(", ").replace('_', " ") };
        let _ = write!(
            page,
            "<div class=\"{class}\"><h3>{}</h3><p class=\"n\">{}<small>/{}</small></p><p>{}</p></div>",
            escape(&text(&place["name"])),
            place["running"],
            place["servers"],
            escape(&state)
        );
    }
    page.push_str("</div>");
    if !faults.is_empty() {
        table(&mut page, "Active faults", &["id", "what", "where", "struck", "left", "until"], &faults, |f| {
            let place =
                ["location", "server", "volume", "path", "command"].iter().map(|k| text(&f[*k])).find(|t| t != "–");
            let to = if f["to"].is_string() { format!(" ↔ {}", text(&f["to"])) } else { String::new() };
            vec![
                text(&f["id"]),
                text(&f["kind"]).replace('_', " "),
                place.unwrap_or_default() + &to,
                text(&f["struck"]),
                text(&f["remaining"]),
                text(&f["until"]),
            ]
        });
    }
    table(
        &mut page,
        "Servers",
        &["name", "status", "location", "type", "public", "private", "volumes"],
        &servers,
        |s| {
            vec![
                text(&s["name"]),
                text(&s["status"]),
                text(&s["location"]),
                text(&s["type"]),
                text(&s["ipv4"]),
                text(&s["private"]),
                text(&s["volumes"]),
            ]
        },
    );
    let names: HashMap<u64, String> = ["servers", "volumes", "networks", "firewalls", "load_balancers"]
        .iter()
        .flat_map(|kind| cloud[*kind].as_array().into_iter().flatten())
        .filter_map(|item| Some((item["id"].as_u64()?, text(&item["name"]))))
        .collect();
    let name = |resource: &Value| {
        let known = resource["id"].as_u64().and_then(|id| names.get(&id)).cloned();
        known.unwrap_or_else(|| format!("{} {}", text(&resource["type"]).replace('_', " "), text(&resource["id"])))
    };
    table(&mut page, "Actions", &["started", "command", "status", "done", "on"], &list("actions"), |a| {
        let on: Vec<String> = a["resources"].as_array().into_iter().flatten().map(name).collect();
        vec![
            clock(&a["started"]),
            text(&a["command"]),
            text(&a["status"]),
            format!("{} %", text(&a["progress"])),
            on.join(", "),
        ]
    });
    table(&mut page, "Last API calls", &["at", "project", "method", "path", "status", "took"], &list("calls"), |c| {
        vec![
            clock(&c["at"]),
            text(&c["project"]),
            text(&c["method"]),
            text(&c["path"]),
            text(&c["status"]),
            format!("{} ms", text(&c["milliseconds"])),
        ]
    });
    table(&mut page, "Volumes", &["name", "status", "size", "location", "server", "format"], &list("volumes"), |v| {
        vec![
            text(&v["name"]),
            text(&v["status"]),
            format!("{} GB", text(&v["size_gb"])),
            text(&v["location"]),
            text(&v["server"]),
            text(&v["format"]),
        ]
    });
    table(&mut page, "Networks", &["name", "range", "subnets", "routes", "servers"], &list("networks"), |n| {
        ["name", "range", "subnets", "routes", "servers"].map(|k| text(&n[k])).to_vec()
    });
    table(&mut page, "Firewalls", &["name", "rules", "applied to"], &list("firewalls"), |f| {
        ["name", "rules", "applied_to"].map(|k| text(&f[k])).to_vec()
    });
    table(
        &mut page,
        "Load balancers",
        &["name", "location", "public", "listens", "targets"],
        &list("load_balancers"),
        |b| ["name", "location", "ipv4", "listens", "targets"].map(|k| text(&b[k])).to_vec(),
    );
    table(&mut page, "IPs", &["ip", "kind", "location", "server"], &list("ips"), |i| {
        ["ip", "kind", "location", "server"].map(|k| text(&i[k])).to_vec()
    });
    page
}

fn table(page: &mut String, title: &str, head: &[&str], rows: &[Value], cells: impl Fn(&Value) -> Vec<String>) {
    // By its id the script knows a section again; the style makes some as wide as the page.
    let id = title.to_lowercase().replace(' ', "-");
    let _ = write!(page, "<section id=\"{id}\"><h2>{title} <small>{}</small></h2>", rows.len());
    if rows.is_empty() {
        page.push_str("<p class=\"none\">none</p></section>");
        return;
    }
    page.push_str("<div class=\"scroll\"><table><thead><tr>");
    for name in head {
        let _ = write!(page, "<th>{name}</th>");
    }
    page.push_str("</tr></thead><tbody>");
    for row in rows {
        page.push_str("<tr>");
        for (name, cell) in head.iter().zip(cells(row)) {
            if *name == "status" {
                // A server that runs is well; an action that does is not done.
                let tone = if title == "Actions" && cell == "running" { "busy" } else { tone(&cell) };
                let _ = write!(page, "<td><span class=\"tag {tone}\">{}</span></td>", escape(&cell));
            } else {
                let _ = write!(page, "<td>{}</td>", escape(&cell));
            }
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div></section>");
}

fn count(number: usize, what: &str) -> String {
    format!("<b>{number}</b> {what}{}", if number == 1 { "" } else { "s" })
}

/// How a status is to be taken at a glance.
fn tone(status: &str) -> &'static str {
    match status {
        "running" | "available" | "success" => "ok",
        "off" => "off",
        "error" | "unknown" => "bad",
        other => match other.parse::<u16>() {
            Ok(200..=299) => "ok",
            Ok(_) => "bad",
            Err(_) => "busy",
        },
    }
}

/// The time of day of a time as the API writes it.
fn clock(value: &Value) -> String {
    let text = text(value);
    text.split_once('T').map_or(text.clone(), |(_, time)| time.trim_end_matches('Z').to_owned())
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "–".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_cannot_become_markup() {
        let nasty = "<script>alert('x')</script>&\"";
        let cloud = json!({
            "at": "now", "locations": [], "faults": [{"id": 1, "kind": nasty, "path": nasty}],
            "volumes": [{"name": nasty, "status": nasty}], "calls": [{"path": nasty, "status": 404}],
        });
        let page = render(&cloud);
        assert!(!page.contains("<script") && !page.contains("'x'"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;").count(), 5, "{page}");
    }
}
