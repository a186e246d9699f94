use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use axum::routing::any;
use secrecy::SecretString;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::support::*;
use crate::config::{Heartbeat, News, Policy, Route, load_policy};
use crate::ports::{Clock, SystemClock};
use crate::s3::MemoryStore;
use crate::serve::view::SnapshotView;
use crate::serve::{Letter, Notifier, Options, Pace, Secrets, Service, deliver};

fn letter(news: News) -> Letter {
    let at = "2026-06-01T02:00:00Z".parse().unwrap();
    Letter {
        news,
        cluster: "demo".into(),
        policy: "p".into(),
        schedule: "a".into(),
        action: "snapshot.take".into(),
        scheduled_at: at,
        at,
        note: "no master answers".into(),
    }
}

fn with_routes(routes: &str) -> Policy {
    let text = format!(
        "apiVersion: hk-dr/v1\nkind: Policy\nname: p\nsummary: s\ntimeZone: UTC\nlog: {{}}\nnotifications:\n{routes}"
    );
    load_policy(&text, "p.yaml").unwrap_or_else(|e| panic!("{}", e.plain()))
}

type Heard = Arc<Mutex<Vec<String>>>;

/// A receiver that refuses the first tries.
async fn receiver(refusals: usize) -> (String, Heard) {
    let heard = Heard::default();
    let theirs = Arc::clone(&heard);
    let answer = move |body: String| {
        let heard = Arc::clone(&theirs);
        async move {
            let mut heard = heard.lock().unwrap();
            heard.push(body);
            if heard.len() <= refusals { axum::http::StatusCode::BAD_GATEWAY } else { axum::http::StatusCode::OK }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook/T0-secret", listener.local_addr().unwrap());
    let pages = axum::Router::new().route("/{*rest}", any(answer));
    tokio::spawn(async move { axum::serve(listener, pages).await });
    (url, heard)
}

async fn arrives(heard: &Heard, count: usize) -> Vec<String> {
    for _ in 0..3000 {
        if heard.lock().unwrap().len() >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    heard.lock().unwrap().clone()
}

fn secrets(url: &str) -> Secrets {
    [("url".to_owned(), SecretString::from(url.to_owned()))].into()
}

#[tokio::test]
async fn a_letter_is_tried_again_and_only_sent_to_those_who_asked() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (url, heard) = receiver(2).await;
    let policy = with_routes(
        "  - {name: a, news: [failed], by: slack, urlSecret: url}\n  - {name: b, news: [succeeded], by: webhook, urlSecret: url}\n",
    );
    let notifier = Notifier::start(secrets(&url), Duration::from_millis(5), |_| {});
    notifier.send(&policy, letter(News::Failed));
    let heard = arrives(&heard, 3).await;
    assert_eq!(heard.len(), 3, "two refusals, one success");
    let body: serde_json::Value = serde_json::from_str(&heard[2]).unwrap();
    let text = body["text"].as_str().unwrap();
    assert!(text.contains("demo: snapshot.take FAILED") && text.contains("no master answers"), "{text}");
    notifier.send(&policy, letter(News::Succeeded));
    assert_eq!(notifier.lost(), 0);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_given_up_and_its_secret_stays_secret() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let said = Heard::default();
    let theirs = Arc::clone(&said);
    let policy = with_routes("  - {name: a, news: [failed], by: webhook, urlSecret: url}\n");
    // A port that nobody listens on.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let notifier =
        Notifier::start(secrets(&format!("http://{free}/T0-secret")), Duration::from_millis(1), move |text| {
            theirs.lock().unwrap().push(text.to_owned());
        });
    notifier.send(&policy, letter(News::Failed));
    let said = arrives(&said, 1).await;
    assert!(said[0].contains("given up") && !said[0].contains("T0-secret"), "{said:?}");
    assert_eq!(notifier.lost(), 1);
}

#[tokio::test]
async fn a_heartbeat_calls_its_url() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (url, heard) = receiver(0).await;
    let notifier = Notifier::start(secrets(&url), Duration::from_millis(1), |_| {});
    let heartbeat = Heartbeat { url_secret: "url".into(), every_minutes: 1, while_snapshot_younger_than_hours: 8 };
    notifier.beat(&heartbeat).await.unwrap();
    assert_eq!(arrives(&heard, 1).await.len(), 1);
}

/// A service that has seen a newest snapshot of that age, and what its dead man's switch is called while it beats.
async fn beats(hours: i64) -> usize {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (url, heard) = receiver(0).await;
    let now = SystemClock.now();
    let own = Arc::new(Instance { name: "one".into(), shared: Arc::default() });
    let tended = tended(policy(HOURLY), &MemoryStore::new(), own, Arc::new(SystemClock));
    let options = Options {
        at_once: 1,
        grace: Duration::from_secs(1),
        look_every: Duration::from_secs(60),
        pace: Pace::default(),
        holder: "test/1".into(),
    };
    let notifier = Notifier::start(secrets(&url), Duration::from_millis(1), |_| {});
    let service = Service::new(options, vec![tended], notifier, now);
    let mut cluster = service.view().clusters.remove(0);
    cluster.snapshots = vec![SnapshotView {
        id: "s".into(),
        taken_at: now - SignedDuration::from_hours(hours),
        revision: 1,
        stored_bytes: 1,
        proven: false,
        proof: "unproven".into(),
    }];
    service.publish(0, &cluster, now);
    let heartbeat = Heartbeat { url_secret: "url".into(), every_minutes: 1, while_snapshot_younger_than_hours: 8 };
    let stop = CancellationToken::new();
    let beating = tokio::spawn(Arc::clone(&service).heart(0, heartbeat, stop.clone()));
    // The first beat is at once; the next would be in a minute.
    tokio::time::sleep(Duration::from_millis(if hours < 8 { 0 } else { 500 })).await;
    let expected = usize::from(hours < 8);
    let count = arrives(&heard, expected).await.len();
    stop.cancel();
    beating.await.unwrap();
    count
}

#[tokio::test]
async fn a_dead_mans_switch_is_called_only_while_the_newest_snapshot_is_young() {
    assert_eq!(beats(7).await, 1);
    assert_eq!(beats(9).await, 0, "silence is the alarm");
}

/// A mail server that takes one mail.
async fn mail_server() -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (reading, mut writing) = stream.into_split();
        let mut lines = BufReader::new(reading).lines();
        let (mut all, mut in_data) = (String::new(), false);
        writing.write_all(b"220 test\r\n").await.unwrap();
        while let Ok(Some(line)) = lines.next_line().await {
            all.push_str(&line);
            all.push('\n');
            let answer: &[u8] = match (in_data, line.as_str()) {
                (true, ".") => {
                    in_data = false;
                    b"250 taken\r\n"
                }
                (true, _) => continue,
                (false, "DATA") => {
                    in_data = true;
                    b"354 go on\r\n"
                }
                (false, "QUIT") => {
                    let _ = writing.write_all(b"221 bye\r\n").await;
                    break;
                }
                (false, line) if line.starts_with("EHLO") => b"250 test\r\n",
                _ => b"250 ok\r\n",
            };
            writing.write_all(answer).await.unwrap();
            if all.ends_with("\n.\n") {
                break;
            }
        }
        all
    });
    (address, served)
}

#[tokio::test]
async fn a_mail_arrives_and_is_not_sent_in_the_clear_unless_told_so() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (address, served) = mail_server().await;
    let route = |rest: &str, server: &str| -> Route {
        with_routes(&format!(
            "  - {{name: a, news: [failed], by: smtp, server: \"{server}\", from: hk-dr@example.com, to: [ops@example.com]{rest}}}\n"
        ))
        .notifications[0]
            .clone()
    };
    deliver(&route(", encryption: none", &address), &letter(News::Failed), &Secrets::new()).await.unwrap();
    let mail = served.await.unwrap();
    assert!(
        mail.contains("RCPT TO:<ops@example.com>") && mail.contains("Subject: demo: snapshot.take FAILED"),
        "{mail}"
    );
    assert!(mail.contains("no master answers"), "{mail}");
    // This server offers no STARTTLS.
    let (address, served) = mail_server().await;
    let refused = deliver(&route("", &address), &letter(News::Failed), &Secrets::new()).await;
    assert!(refused.is_err());
    served.abort();
}
