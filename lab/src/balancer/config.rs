//! HAProxy's configuration for a load balancer. Pure: specification in, text out.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::backend::{BalancerKind, BalancerService, BalancerSpec, HttpCheck};
use crate::error::LabError;

/// Files in the directory of one process.
pub(super) const SOCKET: &str = "stats.sock";
pub(super) const STATE_FILE: &str = "state";

/// Two descriptors each: below the usual limit of a process.
const CONNECTIONS_MAX: u32 = 4000;
/// How long a TCP connection may be silent. Long: databases and watches are.
const TCP_IDLE: &str = "24h";
/// Where browsers start, and what HTTPS services may redirect from.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// The certificates by service port and place, and their text.
pub(super) fn certificates(spec: &BalancerSpec) -> impl Iterator<Item = ((u16, usize), &str)> {
    spec.services.iter().flat_map(|service| {
        let pems = match &service.kind {
            BalancerKind::Http { certificates, .. } => certificates.as_slice(),
            BalancerKind::Tcp => &[],
        };
        pems.iter().enumerate().map(|(index, pem)| ((service.listen_port, index), pem.as_str()))
    })
}

/// The file of a certificate, in the process's directory.
pub(super) fn certificate_file(port: u16, index: usize) -> String {
    format!("{port}-{index}.pem")
}

/// The listen port of the service that a part of the configuration is for.
pub(super) fn service_of(part: &str) -> Option<u16> {
    part.strip_prefix("front-").or_else(|| part.strip_prefix("service-"))?.parse().ok()
}

/// The whole configuration; its files are in `dir`.
///
/// # Errors
/// A text has control characters, which no configuration can carry.
pub(super) fn render(spec: &BalancerSpec, dir: &Path) -> Result<String, LabError> {
    let dir = dir.display();
    let mut text = format!(
        "global\n  maxconn {CONNECTIONS_MAX}\n  nbthread 1\n  hard-stop-after 1h\n  \
         stats socket {dir}/{SOCKET} mode 600 level admin expose-fd listeners\n  \
         server-state-file {dir}/{STATE_FILE}\n  \
         # First checks at once, not spread over their interval: a new target is known soon.\n  \
         max-spread-checks 200\n  ssl-default-bind-options ssl-min-ver TLSv1.2\n\
         defaults\n  load-server-state-from-file global\n  option redispatch 1\n  retries 3\n"
    );
    for service in &spec.services {
        front(&mut text, service, &dir.to_string());
        back(&mut text, spec, service)?;
    }
    let from_http = |s: &&BalancerService| matches!(s.kind, BalancerKind::Http { redirect_http: true, .. });
    let taken = spec.services.iter().any(|s| s.listen_port == HTTP_PORT);
    if let (Some(service), false) = (spec.services.iter().find(from_http), taken) {
        let target = match service.listen_port {
            HTTPS_PORT => "scheme https".to_owned(),
            port => format!("location https://%[req.hdr(host),field(1,:)]:{port}%[capture.req.uri]"),
        };
        let _ = write!(
            text,
            "frontend redirect\n  mode http\n  bind :{HTTP_PORT}\n  bind :::{HTTP_PORT} v6only\n  timeout client 60s\n  \
             http-request redirect {target} code 301\n"
        );
    }
    Ok(text)
}

fn front(text: &mut String, service: &BalancerService, dir: &str) {
    let port = service.listen_port;
    let (mode, idle) = mode(service);
    let _ = writeln!(text, "frontend front-{port}\n  mode {mode}\n  timeout client {idle}");
    let mut tls = String::new();
    if let BalancerKind::Http { certificates, .. } = &service.kind {
        let _ = writeln!(text, "  timeout http-keep-alive {idle}");
        for index in 0..certificates.len() {
            let _ = write!(tls, " crt {dir}/{}", certificate_file(port, index));
        }
        if !tls.is_empty() {
            tls = format!(" ssl{tls} alpn h2,http/1.1");
        }
        let scheme = if tls.is_empty() { "http" } else { "https" };
        let _ = write!(
            text,
            "  option forwardfor\n  http-request set-header X-Forwarded-Proto {scheme}\n  \
             http-request set-header X-Forwarded-Port {port}\n"
        );
    }
    let _ = writeln!(text, "  bind :{port}{tls}\n  bind :::{port} v6only{tls}\n  default_backend service-{port}");
}

fn back(text: &mut String, spec: &BalancerSpec, service: &BalancerService) -> Result<(), LabError> {
    let check = &service.health_check;
    let (mode, idle) = mode(service);
    let balance = if spec.least_connections { "leastconn" } else { "roundrobin" };
    let _ = write!(
        text,
        "backend service-{}\n  mode {mode}\n  balance {balance}\n  timeout server {idle}\n  \
         timeout connect {timeout}s\n  timeout check {timeout}s\n",
        service.listen_port,
        timeout = check.timeout_seconds.max(1),
    );
    let sticky = match &service.kind {
        BalancerKind::Http { sticky, .. } => sticky.as_ref(),
        BalancerKind::Tcp => None,
    };
    if let Some(cookie) = sticky {
        let attribute = format!("Max-Age={}", cookie.lifetime_seconds);
        let _ = writeln!(text, "  cookie {} insert indirect nocache attr {attribute}", word(&cookie.name)?);
    }
    let mut server = format!(
        "check port {} inter {}s fall {retries} rise {retries}",
        check.port,
        check.interval_seconds.max(1),
        retries = check.retries.max(1)
    );
    if let Some(http) = &check.http {
        http_check(text, &mut server, http)?;
    }
    if service.proxyprotocol {
        server.push_str(" send-proxy");
        if check.port == service.destination_port {
            server.push_str(" check-send-proxy");
        }
    }
    for target in &spec.targets {
        let address = match target {
            IpAddr::V4(address) => format!("{address}:{}", service.destination_port),
            IpAddr::V6(address) => format!("[{address}]:{}", service.destination_port),
        };
        let cookie = sticky.map(|_| format!(" cookie {}", token(*target))).unwrap_or_default();
        let _ = writeln!(text, "  server {target} {address} {server}{cookie}");
    }
    Ok(())
}

fn http_check(text: &mut String, server: &mut String, http: &HttpCheck) -> Result<(), LabError> {
    let path = if http.path.is_empty() { "/" } else { &http.path };
    let _ = write!(text, "  option httpchk\n  http-check send meth GET uri {} ver HTTP/1.1", word(path)?);
    // A header's value is a format in which % has a meaning.
    let host = http.domain.as_deref().unwrap_or("healthcheck").replace('%', "%%");
    let _ = writeln!(text, " hdr Host {} hdr Connection close", word(&host)?);
    let codes: Vec<String> = http.status_codes.iter().filter_map(|code| codes(code)).collect();
    let codes = if codes.is_empty() { "200-399".to_owned() } else { codes.join(",") };
    let _ = writeln!(text, "  http-check expect status {codes}");
    if let Some(response) = http.response.as_deref().filter(|r| !r.is_empty()) {
        let _ = writeln!(text, "  http-check expect string {}", word(response)?);
    }
    if http.tls {
        server.push_str(" check-ssl verify none");
        if let Some(domain) = &http.domain {
            let _ = write!(server, " check-sni {}", word(domain)?);
        }
    }
    Ok(())
}

fn mode(service: &BalancerService) -> (&'static str, String) {
    match &service.kind {
        BalancerKind::Tcp => ("tcp", TCP_IDLE.to_owned()),
        BalancerKind::Http { timeout_idle_seconds, .. } => ("http", format!("{}s", (*timeout_idle_seconds).max(1))),
    }
}

/// `200` is itself, `2??` a range. Nothing for what is neither.
fn codes(pattern: &str) -> Option<String> {
    let filled = |digit: &str| pattern.replace(['?', '*'], digit).parse::<u16>().ok();
    let (first, last) = (filled("0")?, filled("9")?);
    let fits = pattern.len() == 3 && (100..=999).contains(&first);
    fits.then(|| if first == last { first.to_string() } else { format!("{first}-{last}") })
}

/// What a sticky client's cookie says: the same for a target as long as it is one, and no address.
fn token(target: IpAddr) -> String {
    Sha256::digest(target.to_string()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A text as one word of the configuration.
fn word(text: &str) -> Result<String, LabError> {
    if text.chars().any(char::is_control) {
        return Err(LabError::new(format!("{text:?} has control characters, which a load balancer cannot handle")));
    }
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        if matches!(letter, '"' | '\\' | '$') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    Ok(quoted + "\"")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::backend::{HealthCheck, StickyCookie};

    fn service(kind: BalancerKind, listen_port: u16, http: Option<HttpCheck>) -> BalancerService {
        BalancerService {
            kind,
            listen_port,
            destination_port: 8080,
            proxyprotocol: false,
            health_check: HealthCheck { port: 8081, interval_seconds: 15, timeout_seconds: 10, retries: 3, http },
        }
    }

    fn spec(services: Vec<BalancerService>) -> BalancerSpec {
        let ip = |text: &str| text.parse().expect("an address");
        BalancerSpec {
            id: 7,
            location: "fsn1".into(),
            public_ipv4: None,
            public_ipv6: None,
            private: None,
            least_connections: false,
            services,
            targets: vec![ip("10.0.0.2"), ip("2001:db8::1")],
        }
    }

    fn http(certificates: usize) -> BalancerKind {
        let sticky = Some(StickyCookie { name: "HC$LB".into(), lifetime_seconds: 300 });
        let pem = self_signed();
        BalancerKind::Http {
            certificates: vec![pem; certificates],
            redirect_http: certificates > 0,
            sticky,
            timeout_idle_seconds: 50,
        }
    }

    fn self_signed() -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
            .args(["-subj", "/CN=example.com", "-keyout", "k", "-out", "c"])
            .current_dir(dir.path())
            .output()
            .expect("openssl runs");
        assert!(made.status.success());
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("a file");
        read("c") + &read("k")
    }

    fn rendered(spec: &BalancerSpec) -> String {
        render(spec, Path::new("/d")).expect("a configuration")
    }

    /// The judge is HAProxy itself.
    fn accepted(spec: &BalancerSpec) {
        let dir = tempfile::tempdir().expect("a directory");
        for ((port, index), pem) in certificates(spec) {
            std::fs::write(dir.path().join(certificate_file(port, index)), pem).expect("a file");
        }
        std::fs::write(dir.path().join(STATE_FILE), "").expect("a file");
        let file = dir.path().join("haproxy.cfg");
        let text = render(spec, dir.path()).expect("a configuration");
        std::fs::write(&file, &text).expect("a file");
        let output = Command::new("haproxy").arg("-c").arg("-f").arg(&file).output().expect("haproxy runs");
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn haproxy_accepts_what_we_render() {
        let check = |tls| HttpCheck {
            domain: Some("exa%mple.com".into()),
            path: "/a \"b\"/$c\\d#".into(),
            response: Some("it's \"fine\" $x".into()),
            status_codes: vec!["2??".into(), "404".into()],
            tls,
        };
        let mut all = spec(vec![
            service(BalancerKind::Tcp, 22, None),
            service(http(0), 8080, Some(check(false))),
            service(http(2), 443, Some(check(true))),
        ]);
        for service in &mut all.services {
            service.proxyprotocol = true;
        }
        all.least_connections = true;
        accepted(&all);
        accepted(&spec(Vec::new()));
    }

    #[test]
    fn checks_follow_the_specification() {
        let text = rendered(&spec(vec![service(BalancerKind::Tcp, 22, None)]));
        let server = "server 10.0.0.2 10.0.0.2:8080 check port 8081 inter 15s fall 3 rise 3\n";
        assert!(text.contains(server), "{text}");
        assert!(text.contains("server 2001:db8::1 [2001:db8::1]:8080 check"), "{text}");
        assert!(text.contains("balance roundrobin") && text.contains("timeout check 10s"), "{text}");
        assert_eq!(codes("2??").as_deref(), Some("200-299"));
        assert_eq!(codes("503").as_deref(), Some("503"));
        assert_eq!(codes("20?").as_deref(), Some("200-209"));
        for wrong in ["", "2", "2000", "x??", "0??"] {
            assert_eq!(codes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn targets_hear_of_clients_only_if_they_asked_for_it() {
        let mut spec = spec(vec![service(BalancerKind::Tcp, 22, None)]);
        assert!(!rendered(&spec).contains("send-proxy"));
        spec.services[0].proxyprotocol = true;
        assert!(rendered(&spec).contains(" send-proxy\n"), "another port's check goes without");
        spec.services[0].health_check.port = 8080;
        assert!(rendered(&spec).contains(" send-proxy check-send-proxy\n"));
    }

    #[test]
    fn http_is_redirected_where_nobody_else_listens() {
        let text = rendered(&spec(vec![service(http(1), 443, None)]));
        assert!(text.contains("frontend redirect") && text.contains("redirect scheme https code 301"), "{text}");
        let text = rendered(&spec(vec![service(http(1), 8443, None)]));
        assert!(text.contains(":8443%[capture.req.uri]"), "{text}");
        let text = rendered(&spec(vec![service(http(1), 443, None), service(BalancerKind::Tcp, 80, None)]));
        assert!(!text.contains("frontend redirect"), "{text}");
    }

    #[test]
    fn secrets_and_line_breaks_stay_out() {
        let with_key = rendered(&spec(vec![service(http(1), 443, None)]));
        assert!(!with_key.contains("PRIVATE KEY") && with_key.contains("crt /d/443-0.pem"));
        let check = HttpCheck {
            domain: None,
            path: "/\n  server evil 1.2.3.4:5".into(),
            response: None,
            status_codes: Vec::new(),
            tls: false,
        };
        assert!(render(&spec(vec![service(BalancerKind::Tcp, 22, Some(check))]), Path::new("/d")).is_err());
    }

    #[test]
    fn parts_name_their_service() {
        assert_eq!(service_of("front-80"), Some(80));
        assert_eq!(service_of("service-8443"), Some(8443));
        assert_eq!(service_of("redirect"), None);
    }
}
