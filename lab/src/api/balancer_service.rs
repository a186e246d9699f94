//! Services of load balancers: what is listened for, where it goes, how targets are checked.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::balancer::LoadBalancer;
use super::certificate::Certificate;
use super::cloud::State;
use super::error::{ApiError, ApiResult};
use super::input::Input;
use crate::backend::{BalancerKind, BalancerService, HealthCheck, HttpCheck, StickyCookie};

/// Seconds after which an idle HTTP connection is closed, unless told.
const IDLE_SECONDS: u32 = 60;
/// Where plain HTTP is redirected from.
const HTTP_PORT: u16 = 80;

/// A service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    protocol: Protocol,
    pub listen_port: u16,
    destination_port: u16,
    proxyprotocol: bool,
    /// Not for TCP.
    http: Option<Http>,
    check: Check,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Protocol {
    Tcp,
    Http,
    Https,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Http {
    cookie_name: String,
    cookie_lifetime: u32,
    certificates: Vec<u64>,
    redirect_http: bool,
    sticky_sessions: bool,
    /// Seconds.
    timeout_idle: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Check {
    protocol: Protocol,
    port: u16,
    interval: u32,
    timeout: u32,
    retries: u32,
    /// Not for TCP.
    http: Option<CheckHttp>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CheckHttp {
    domain: Option<String>,
    path: String,
    response: String,
    status_codes: Vec<String>,
    tls: bool,
}

impl Service {
    pub fn json(&self) -> Value {
        let mut service = json!({
            "protocol": self.protocol, "listen_port": self.listen_port, "destination_port": self.destination_port,
            "proxyprotocol": self.proxyprotocol,
            "health_check": {
                "protocol": self.check.protocol, "port": self.check.port, "interval": self.check.interval,
                "timeout": self.check.timeout, "retries": self.check.retries,
            },
        });
        if let Some(http) = &self.http {
            service["http"] = json!(http);
        }
        if let Some(http) = &self.check.http {
            service["health_check"]["http"] = json!(http);
        }
        service
    }

    pub fn certificates(&self) -> &[u64] {
        self.http.as_ref().map_or(&[], |http| &http.certificates)
    }

    /// All ports it listens at.
    fn ports(&self) -> impl Iterator<Item = u16> {
        let redirects = self.http.as_ref().is_some_and(|http| http.redirect_http);
        std::iter::once(self.listen_port).chain(redirects.then_some(HTTP_PORT))
    }

    pub fn for_backend(&self, certificates: &BTreeMap<u64, Certificate>) -> BalancerService {
        let kind = match &self.http {
            None => BalancerKind::Tcp,
            Some(http) => BalancerKind::Http {
                certificates: http
                    .certificates
                    .iter()
                    .filter_map(|id| certificates.get(id))
                    .map(|c| format!("{}\n{}\n", c.chain.trim_end(), c.key.trim_end()))
                    .collect(),
                redirect_http: http.redirect_http,
                sticky: http
                    .sticky_sessions
                    .then(|| StickyCookie { name: http.cookie_name.clone(), lifetime_seconds: http.cookie_lifetime }),
                timeout_idle_seconds: http.timeout_idle,
            },
        };
        let check = &self.check;
        let http = check.http.as_ref().map(|http| HttpCheck {
            domain: http.domain.clone().filter(|d| !d.is_empty()),
            path: http.path.clone(),
            response: Some(http.response.clone()).filter(|r| !r.is_empty()),
            status_codes: http.status_codes.clone(),
            tls: http.tls,
        });
        BalancerService {
            kind,
            listen_port: self.listen_port,
            destination_port: self.destination_port,
            proxyprotocol: self.proxyprotocol,
            health_check: HealthCheck {
                port: check.port,
                interval_seconds: check.interval,
                timeout_seconds: check.timeout,
                retries: check.retries,
                http,
            },
        }
    }
}

/// Reads a new service and checks that it fits the load balancer.
pub fn read(state: &State, balancer: &LoadBalancer, input: &Input) -> ApiResult<Service> {
    if balancer.services.len() >= balancer.kind.services {
        return Err(ApiError::limit("load_balancer_service_limit"));
    }
    change(state, balancer, None, input)
}

/// Reads the changes of a service (or a new one) and checks that the result fits the load balancer.
pub fn change(state: &State, balancer: &LoadBalancer, old: Option<&Service>, input: &Input) -> ApiResult<Service> {
    let protocol = match (input.string("protocol")?, old) {
        (Some(name), _) => protocol("protocol", &name, true)?,
        (None, Some(old)) => old.protocol,
        (None, None) => return Err(ApiError::field("protocol", "is required")),
    };
    let default_listen = match protocol {
        Protocol::Tcp => None,
        Protocol::Http => Some(80),
        Protocol::Https => Some(443),
    };
    let given = |name: &str, default: Option<u16>| -> ApiResult<u16> {
        port(input, name)?.or(default).ok_or_else(|| ApiError::field(name, "is required"))
    };
    let listen_port = given("listen_port", old.map(|o| o.listen_port).or(default_listen))?;
    let default_destination = (protocol != Protocol::Tcp).then_some(80);
    let destination_port = given("destination_port", old.map(|o| o.destination_port).or(default_destination))?;
    let http = match protocol {
        Protocol::Tcp if input.get("http").is_some() => {
            return Err(ApiError::field("http", "must not be given for protocol 'tcp'"));
        }
        Protocol::Tcp => None,
        _ => Some(http(state, balancer, protocol, old.and_then(|o| o.http.as_ref()), input.object("http")?)?),
    };
    let check = check(destination_port, old.map(|o| &o.check), input.object("health_check")?)?;
    let proxyprotocol = input.flag("proxyprotocol")?.unwrap_or(old.is_some_and(|o| o.proxyprotocol));
    let service = Service { protocol, listen_port, destination_port, proxyprotocol, http, check };
    let others = balancer.services.iter().filter(|s| old.is_none_or(|o| o.listen_port != s.listen_port));
    let taken: Vec<u16> = others.flat_map(Service::ports).collect();
    if let Some(port) = service.ports().find(|p| taken.contains(p)) {
        return Err(ApiError::new("source_port_already_used", format!("port {port} is already used")));
    }
    Ok(service)
}

fn protocol(field: &str, name: &str, https: bool) -> ApiResult<Protocol> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "http" => Ok(Protocol::Http),
        "https" if https => Ok(Protocol::Https),
        _ => Err(ApiError::field(field, format!("'{name}' is no protocol"))),
    }
}

fn within(input: &Input, name: &str, range: RangeInclusive<u64>) -> ApiResult<Option<u32>> {
    match input.number(name)? {
        None => Ok(None),
        Some(n) if range.contains(&n) => Ok(u32::try_from(n).ok()),
        Some(_) => Err(ApiError::field(name, format!("must be from {} to {}", range.start(), range.end()))),
    }
}

fn port(input: &Input, name: &str) -> ApiResult<Option<u16>> {
    Ok(within(input, name, 1..=65535)?.and_then(|n| u16::try_from(n).ok()))
}

fn http(
    state: &State,
    balancer: &LoadBalancer,
    protocol: Protocol,
    old: Option<&Http>,
    input: Option<Input>,
) -> ApiResult<Http> {
    let input = input.unwrap_or_default();
    let mut http = old.cloned().unwrap_or_else(|| Http {
        cookie_name: "HCLBSTICKY".to_owned(),
        cookie_lifetime: 300,
        certificates: Vec::new(),
        redirect_http: false,
        sticky_sessions: false,
        timeout_idle: IDLE_SECONDS,
    });
    http.cookie_name = input.string("cookie_name")?.unwrap_or(http.cookie_name);
    http.cookie_lifetime = within(&input, "cookie_lifetime", 1..=86_400)?.unwrap_or(http.cookie_lifetime);
    http.redirect_http = input.flag("redirect_http")?.unwrap_or(http.redirect_http);
    http.sticky_sessions = input.flag("sticky_sessions")?.unwrap_or(http.sticky_sessions);
    http.timeout_idle = within(&input, "timeout_idle", 30..=300)?.unwrap_or(http.timeout_idle);
    if input.get("certificates").is_some() {
        http.certificates = input.numbers("certificates")?;
    }
    let token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if http.cookie_name.is_empty() || !http.cookie_name.chars().all(token) {
        return Err(ApiError::field("cookie_name", "must be letters, digits, '-', '_' or '.'"));
    }
    match protocol {
        Protocol::Https if http.certificates.is_empty() => {
            return Err(ApiError::field("certificates", "at least one is required for protocol 'https'"));
        }
        Protocol::Https => {}
        _ if http.redirect_http => {
            return Err(ApiError::field("redirect_http", "is only for protocol 'https'"));
        }
        _ => http.certificates.clear(),
    }
    if let Some(unknown) = http.certificates.iter().find(|id| !state.certificates.contains_key(id)) {
        return Err(ApiError::field("certificates", format!("certificate {unknown} not found")));
    }
    if http.certificates.len() > balancer.kind.certificates {
        return Err(ApiError::limit("load_balancer_certificate_limit"));
    }
    Ok(http)
}

fn check(destination_port: u16, old: Option<&Check>, input: Option<Input>) -> ApiResult<Check> {
    let input = input.unwrap_or_default();
    let protocol = match (input.string("protocol")?, old) {
        (Some(name), _) => protocol("health_check.protocol", &name, false)?,
        (None, Some(old)) => old.protocol,
        (None, None) => Protocol::Tcp,
    };
    let http = match protocol {
        Protocol::Tcp => None,
        _ => Some(check_http(old.and_then(|o| o.http.as_ref()), input.object("http")?)?),
    };
    Ok(Check {
        protocol,
        port: port(&input, "port")?.unwrap_or(old.map_or(destination_port, |o| o.port)),
        interval: within(&input, "interval", 3..=60)?.unwrap_or(old.map_or(15, |o| o.interval)),
        timeout: within(&input, "timeout", 1..=60)?.unwrap_or(old.map_or(10, |o| o.timeout)),
        retries: within(&input, "retries", 1..=5)?.unwrap_or(old.map_or(3, |o| o.retries)),
        http,
    })
}

fn check_http(old: Option<&CheckHttp>, input: Option<Input>) -> ApiResult<CheckHttp> {
    let input = input.unwrap_or_default();
    let mut http = old.cloned().unwrap_or_else(|| CheckHttp {
        domain: None,
        path: "/".to_owned(),
        response: String::new(),
        status_codes: vec!["2??".to_owned(), "3??".to_owned()],
        tls: false,
    });
    if input.get("domain").is_some() {
        http.domain = input.string("domain")?;
    }
    http.path = input.string("path")?.unwrap_or(http.path);
    http.response = input.string("response")?.unwrap_or(http.response);
    http.tls = input.flag("tls")?.unwrap_or(http.tls);
    if input.get("status_codes").is_some() {
        http.status_codes = input.references("status_codes")?;
    }
    if !http.path.starts_with('/') || http.path.chars().any(char::is_whitespace) {
        return Err(ApiError::field("path", "must begin with '/' and have no spaces"));
    }
    let is_code = |code: &String| code.len() == 3 && code.chars().all(|c| c.is_ascii_digit() || c == '?');
    if !http.status_codes.iter().all(is_code) {
        return Err(ApiError::field("status_codes", "must be codes such as '200' or '2??'"));
    }
    Ok(http)
}
