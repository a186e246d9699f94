//! What is seen from outside: page, metrics, probes, and who may do what.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::support::*;
use crate::drill::{Evidence, Recovery, RecoveryPoint, Verdict};
use crate::ports::{Clock, ObjectStore, PutCondition, SystemClock};
use crate::s3::MemoryStore;
use crate::serve::{Books, Door, Notifier, Options, Pace, Peer, Secrets, Service, Tls, TlsListener, book_key, router};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn drill(run: &str, ended: Timestamp) -> Evidence {
    let empty = sample(run, "volume-reattach");
    Evidence {
        began: Some((ended - SignedDuration::from_secs(30)).to_string()),
        ended: Some(ended.to_string()),
        verdict: Verdict::Passed,
        reasons: vec!["all steps were done".into()],
        recovery: Recovery { seconds: Some(7.4), target_seconds: Some(30), ..Recovery::default() },
        recovery_point: RecoveryPoint { seconds: Some(0.0), lost: Some(0), acknowledged: 40, target_seconds: None },
        ..empty
    }
}

/// A service with a bucket in which there are drills and a run that waits for a person.
async fn house(token: Option<&str>, public: bool) -> (String, Arc<Service>, MemoryStore) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = MemoryStore::new();
    let now = SystemClock.now();
    let put = |key: String, text: Vec<u8>| {
        let store = store.clone();
        async move { store.put(&key, text.into(), PutCondition::Any).await.unwrap() }
    };
    for (run, days) in [("20260501t030000-aaaaaa", 9), ("20260508t030000-bbbbbb", 2)] {
        let evidence = drill(run, now - SignedDuration::from_hours(24 * days));
        put(format!("demo/runs/{run}/evidence.json"), serde_json::to_vec(&evidence).unwrap()).await;
    }
    let backup = serde_json::json!({
        "format": 1, "id": "20260508T010000Z-shop", "cluster": "demo", "volume": "shop", "server": "w1", "path": "/mnt/shop",
        "taken_at": now, "finished_at": now, "snapshot": "ab", "files": 7, "bytes": 9000, "added_bytes": 1, "quiesced": true,
        "git_commit": null,
    });
    let checked = serde_json::json!({"at": now, "level": "restore", "problem": null});
    for (name, document) in [("manifest", backup), ("verify", checked)] {
        put(format!("demo/volumes/backups/20260508T010000Z-shop/{name}.json"), document.to_string().into_bytes()).await;
    }
    let own = Arc::new(Instance { name: "one".into(), shared: Arc::default() });
    let drills = "action: runbook.run, runbooks: [volume-reattach], cron: \"* * * * *\", approval: required, missed: each, lateMinutes: 600";
    // The book says that a run of two minutes ago was not decided yet.
    let tended = tended(policy(drills), &store, own, Arc::new(SystemClock));
    let mut books = Books::new(Arc::new(store.clone()), book_key("demo", "p", "a"));
    books.read(now - SignedDuration::from_mins(2)).await.unwrap();
    let options = Options {
        at_once: 2,
        grace: Duration::from_secs(5),
        look_every: Duration::from_millis(100),
        pace: Pace { tick: Duration::from_millis(5), read: Duration::from_millis(50), ..Pace::default() },
        holder: "test/1".into(),
    };
    let notifier = Notifier::start(Secrets::new(), Duration::from_millis(1), |_| {});
    let service = Service::new(options, vec![tended], notifier, now);
    tokio::spawn(Arc::clone(&service).run(CancellationToken::new(), || {}));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let door = Door::new(token.map(|t| SecretString::from(t.to_owned())), public);
    let pages = router(Arc::clone(&service), Arc::new(door));
    tokio::spawn(async move { axum::serve(listener, pages).await });
    (url, service, store)
}

async fn get(url: &str) -> (StatusCode, String) {
    let answer = reqwest::get(url).await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

/// Asks until the answer holds, for at most a minute.
async fn get_until(url: &str, what: &str, holds: impl Fn(StatusCode, &str) -> bool) -> String {
    let mut last = String::new();
    for _ in 0..1200 {
        let (status, text) = get(url).await;
        if holds(status, &text) {
            return text;
        }
        last = text;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: {last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_metrics_and_page_tell_how_it_stands() {
    let (url, _, _) = house(None, false).await;
    assert_eq!(get(&format!("{url}/healthz")).await.0, StatusCode::OK);
    get_until(&format!("{url}/readyz"), "ready", |status, _| status == StatusCode::OK).await;
    let metrics = get_until(&format!("{url}/metrics"), "asked", |_, text| {
        text.lines().any(|line| line.starts_with("hk_dr_schedule_waits_for_approval{") && line.ends_with("} 1.0"))
    })
    .await;
    for line in [
        "hk_dr_bucket_up{cluster=\"demo\"} 1.0",
        "hk_dr_drill_recovery_seconds{cluster=\"demo\",runbook=\"volume-reattach\"} 7.4",
        "hk_dr_drill_passed{cluster=\"demo\",runbook=\"volume-reattach\"} 1.0",
        "hk_dr_recovery_point_target_seconds{cluster=\"demo\"} 60.0",
        "hk_dr_cloud_requests_left{cluster=\"demo\"} 3000.0",
        "hk_dr_snapshots{cluster=\"demo\",proven=\"true\"} 0.0",
        "hk_dr_volume_backups{cluster=\"demo\",volume=\"shop\",proven=\"true\"} 1.0",
        "hk_dr_volume_declared{cluster=\"demo\",volume=\"never\"} 1.0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is missing in\n{metrics}");
    }
    // There is no snapshot: what is not known has no value, instead of one that looks good.
    assert!(!metrics.contains("\nhk_dr_snapshot_age_seconds{"), "{metrics}");
    for name in ["age", "proven_age"] {
        let of = |volume: &str| format!("hk_dr_volume_backup_{name}_seconds{{cluster=\"demo\",volume=\"{volume}\"}}");
        assert!(metrics.contains(&of("shop")) && !metrics.contains(&of("never")), "{metrics}");
    }
    let (_, page) = get(&url).await;
    for part in [
        "Recovery point now",
        "There is no snapshot.",
        "volume-reattach",
        "waits for approval",
        "7.4 s",
        "shop: newest backup",
        "proven by restore",
        "There is no backup of volume never.",
    ] {
        assert!(page.contains(part), "{part} is missing in\n{page}");
    }
    assert!(!page.contains("<button>"), "who is not signed in is offered nothing: {page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_is_signed_in_approves_and_what_is_approved_runs() {
    let (url, _, store) = house(Some("right"), false).await;
    get_until(&url, "asked", |_, page| page.contains("waits for approval")).await;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let approve = |headers: Vec<(&'static str, String)>| {
        let mut request = client
            .post(format!("{url}/approve"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body("cluster=demo&policy=p&schedule=a");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        async { request.send().await.unwrap().status() }
    };
    assert_eq!(approve(vec![]).await, StatusCode::UNAUTHORIZED);
    assert_eq!(approve(vec![("authorization", "Bearer wrong".into())]).await, StatusCode::UNAUTHORIZED);
    assert_eq!(approve(vec![("cookie", "hk-dr-session=guess".into())]).await, StatusCode::UNAUTHORIZED);
    let asked = String::from_utf8(store.get(&book_key("demo", "p", "a"), 1 << 20).await.unwrap().to_vec()).unwrap();
    assert!(asked.contains("\"approved_by\": null"), "{asked}");
    // As a browser does.
    let sign_in = |token: &'static str| {
        let request = client.post(format!("{url}/sign-in")).header("content-type", "application/x-www-form-urlencoded");
        async move { request.body(format!("token={token}")).send().await.unwrap() }
    };
    assert_eq!(sign_in("wrong").await.status(), StatusCode::UNAUTHORIZED);
    let cookie = sign_in("right").await.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let session = cookie.split(';').next().unwrap().to_owned();
    let page = client.get(&url).header("cookie", &session).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("<button>Approve</button>"), "{page}");
    assert_eq!(approve(vec![("cookie", session)]).await, StatusCode::SEE_OTHER);
    get_until(&format!("{url}/api/status"), "it ran", |_, text| text.contains("done by one")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_for_others_shows_nothing_without_the_token() {
    let (url, _, _) = house(Some("right"), true).await;
    for path in ["/", "/live", "/metrics", "/api/status"] {
        let (status, text) = get(&format!("{url}{path}")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(!text.contains("volume-reattach"), "{path}: {text}");
    }
    let client = reqwest::Client::new();
    let answer = client.get(format!("{url}/metrics")).header("authorization", "Bearer right").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(get(&format!("{url}/healthz")).await.0, StatusCode::OK);
}

/// The page over TLS: a certificate of the clients' CA is as good as the token, one of another CA gets nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_lets_in_as_the_token_does() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let issuer = || {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let leaf = |issuer: &CertifiedIssuer<KeyPair>, name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
    };
    let (servers, clients, strangers) = (issuer(), issuer(), issuer());
    let (_, service, store) = house(None, true).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (chain, key) = leaf(&servers, "localhost");
    let tls = Tls { chain, key: key.into(), clients: Some(clients.pem()) };
    let pages = router(service, Arc::new(Door::new(None, true))).into_make_service_with_connect_info::<Peer>();
    let listening = TlsListener::new(listener, &tls).unwrap();
    tokio::spawn(async move { axum::serve(listening, pages).await });
    let client = |identity: Option<(String, String)>| {
        let mut builder = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(servers.pem().as_bytes()).unwrap()])
            .redirect(reqwest::redirect::Policy::none());
        if let Some((chain, key)) = identity {
            builder = builder.identity(reqwest::Identity::from_pem((chain + &key).as_bytes()).unwrap());
        }
        builder.build().unwrap()
    };
    let nobody = client(None);
    assert_eq!(nobody.get(format!("{url}/healthz")).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(nobody.get(format!("{url}/metrics")).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let stranger = client(Some(leaf(&strangers, "mallory")));
    assert!(stranger.get(format!("{url}/healthz")).send().await.is_err(), "another CA's certificate was taken");
    let known = client(Some(leaf(&clients, "anna")));
    assert_eq!(known.get(format!("{url}/metrics")).send().await.unwrap().status(), StatusCode::OK);
    // Once the run waits, she approves it; another site's page in her browser does not.
    for _ in 0..1200 {
        if known.get(&url).send().await.unwrap().text().await.unwrap().contains("<button>Approve</button>") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let approve = |client: &reqwest::Client, origin: Option<&str>| {
        let mut request = client
            .post(format!("{url}/approve"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body("cluster=demo&policy=p&schedule=a");
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        async { request.send().await.unwrap().status() }
    };
    assert_eq!(approve(&nobody, None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(approve(&known, Some("https://elsewhere.example")).await, StatusCode::FORBIDDEN);
    let asked = String::from_utf8(store.get(&book_key("demo", "p", "a"), 1 << 20).await.unwrap().to_vec()).unwrap();
    assert!(asked.contains("\"approved_by\": null"), "{asked}");
    assert_eq!(approve(&known, Some(&url)).await, StatusCode::SEE_OTHER);
    // What speaks no TLS holds up nobody.
    let plain = reqwest::get(url.replace("https", "http")).await;
    assert!(plain.is_err(), "{plain:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_is_shown_as_it_lies_in_the_bucket() {
    let (url, _, store) = house(None, false).await;
    let key = "demo/runs/20260508t030000-bbbbbb/report.html";
    let missing = get(&format!("{url}/evidence/demo/20260508t030000-bbbbbb")).await;
    assert_eq!(missing.0, StatusCode::NOT_FOUND);
    assert!(missing.1.contains("hk-dr report show"), "{}", missing.1);
    store.put(key, "<p>the report</p>".into(), PutCondition::Any).await.unwrap();
    let answer = reqwest::get(format!("{url}/evidence/demo/20260508t030000-bbbbbb")).await.unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("sandbox"), "{policy}");
    assert_eq!(answer.text().await.unwrap(), "<p>the report</p>");
    assert_eq!(get(&format!("{url}/evidence/demo/..%2F..%2Fx")).await.0, StatusCode::NOT_FOUND);
    get_until(&url, "linked", |_, page| page.contains("href=\"/evidence/demo/20260508t030000-bbbbbb\"")).await;
}

/// The page in a real browser: with its script it changes by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_the_page() {
    let Some(browser) = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
    else {
        eprintln!("SKIPPED: no Chromium here (apt-get install chromium-headless-shell)");
        return;
    };
    let (url, _, _) = house(Some("right"), false).await;
    get_until(&url, "asked", |_, page| page.contains("waits for approval")).await;
    let folder = tempfile::tempdir().unwrap();
    let shot = folder.path().join("status.png");
    let run = |more: Vec<String>| {
        let mut command = Command::new(browser);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]);
        command.arg(format!("--user-data-dir={}", folder.path().join("profile").display())).args(more).arg(&url);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    // Virtual time goes on until the script has fetched the live part.
    let with_script = run(vec!["--virtual-time-budget=6000".into(), "--dump-dom".into()]).await.unwrap();
    let dom = String::from_utf8_lossy(&with_script.stdout).into_owned();
    assert!(dom.contains("data-live=\"yes\""), "the script fetched nothing: {dom}");
    assert!(dom.contains("waits for approval") && dom.contains("<h2>demo</h2>"), "{dom}");
    // An empty page is two kilobytes. Without scripts chromium neither prints nor pictures a document: what the page says
    // then is what the service answers, which the tests above read.
    let picture = vec!["--window-size=1100,900".to_owned(), format!("--screenshot={}", shot.display())];
    let output = run(picture).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let image = std::fs::read(&shot).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert!(image.starts_with(b"\x89PNG"), "{said}");
    assert!((15_000..200_000).contains(&image.len()), "{} bytes", image.len());
    if let Ok(to) = std::env::var("HK_DR_KEEP_SCREENSHOT") {
        std::fs::copy(&shot, to).unwrap();
    }
}

/// The shipped alert rules, by Prometheus' own tool: their syntax, and that they fire and keep silent when they should.
#[test]
fn the_shipped_alerts_fire_when_they_should() {
    let Ok(output) = Command::new("promtool").arg("--version").output() else {
        eprintln!("SKIPPED: no promtool here (apt-get install prometheus)");
        return;
    };
    assert!(output.status.success());
    let folder = root().join("monitoring");
    let check = |args: &[&str]| {
        let output = Command::new("promtool").args(args).current_dir(&folder).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {text}");
    };
    check(&["check", "rules", "alerts.yaml"]);
    check(&["test", "rules", "alerts.test.yaml"]);
}

/// Every metric that alerts and dashboard ask for is one that the service gives when it has a value.
#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let source = include_str!("../metrics.rs");
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = std::fs::read_to_string(root().join("monitoring").join(file)).unwrap();
        let mut asked = 0;
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("hk_dr_")) {
            asked += 1;
            let name = word.trim_start_matches("hk_dr_").trim_end_matches("_total");
            assert!(source.contains(&format!("(\"{name}\", \"")), "{file} asks for {word}, which is not there");
        }
        assert!(asked > 5, "{file}");
    }
}
