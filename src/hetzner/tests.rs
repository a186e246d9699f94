use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::contract::{self, World};
use super::*;
use super::{contract_front, contract_perimeter};
use crate::ports::{Cloud, ErrorCode, Labels, PortError, VolumeSpec};

#[async_trait]
impl World for FakeCloud {
    async fn exhaust(&self, location: &str) {
        self.set_capacity(location, false);
    }
}

/// The lab's API without machines, and faults in it.
struct Lab {
    served: hk_lab::api::Served,
    http: reqwest::Client,
}

impl Lab {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let served = hk_lab::api::serve_fake(listener).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { served, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    fn cloud(&self) -> HetznerCloud {
        HetznerCloud::new(&self.served.endpoint, &SecretString::from(self.served.token.as_str())).unwrap()
    }

    async fn fault(&self, fault: Value) {
        let url = format!("{}/_lab/faults", self.served.endpoint.trim_end_matches("/v1"));
        let request = self.http.post(url).bearer_auth(&self.served.token).json(&fault);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// How often the machines' side was asked for this.
    fn effects(&self, call: &str) -> usize {
        self.served.backend.effects().iter().filter(|effect| effect.split(' ').next() == Some(call)).count()
    }
}

#[async_trait]
impl World for Lab {
    async fn exhaust(&self, location: &str) {
        self.fault(json!({"kind": "location_unavailable", "location": location})).await;
    }
}

fn spec(name: &str) -> VolumeSpec {
    let labels: Labels = [("hk-dr/cluster".to_owned(), "demo".to_owned())].into();
    VolumeSpec { name: name.into(), size_gb: 10, location: "fsn1".into(), server: None, labels }
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let fake = FakeCloud::new();
    contract::run(&fake, &fake).await;
    contract_perimeter::run(&FakeCloud::new()).await;
    contract_front::run(&FakeCloud::new()).await;
}

#[tokio::test]
async fn the_client_keeps_the_contract_against_the_lab() {
    let lab = Lab::start().await;
    contract::run(&lab.cloud(), &lab).await;
    contract_perimeter::run(&Lab::start().await.cloud()).await;
    contract_front::run(&Lab::start().await.cloud()).await;
}

#[tokio::test]
async fn a_lost_answer_does_not_create_twice() {
    let lab = Lab::start().await;
    lab.fault(json!({"kind": "lost_answer", "method": "POST", "path": "/volumes"})).await;
    let volume = lab.cloud().create_volume(&spec("demo-m1-etcd")).await.unwrap();
    assert_eq!(lab.effects("create_volume"), 1);
    assert_eq!(lab.cloud().volumes("").await.unwrap().iter().map(|v| v.id).collect::<Vec<_>>(), [volume.id]);
}

#[tokio::test]
async fn a_lost_answer_to_a_deletion_is_no_error() {
    let lab = Lab::start().await;
    let volume = lab.cloud().create_volume(&spec("demo-m1-etcd")).await.unwrap();
    lab.fault(json!({"kind": "lost_answer", "method": "DELETE", "path": "/volumes/*"})).await;
    lab.cloud().delete_volume(volume.id).await.unwrap();
    assert_eq!(lab.cloud().delete_volume(volume.id).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn what_is_busy_is_tried_again_and_what_is_refused_is_not() {
    let lab = Lab::start().await;
    for code in ["conflict", "locked", "bad_gateway", "timeout", "rate_limit_exceeded"] {
        lab.fault(json!({"kind": "api_error", "code": code, "method": "POST", "path": "/volumes", "count": 2})).await;
        lab.cloud().create_volume(&spec(&format!("demo-{}", code.replace('_', "-")))).await.unwrap();
    }
    assert_eq!(lab.effects("create_volume"), 5);
    for (code, expected) in [
        ("resource_limit_exceeded", ErrorCode::LimitExceeded),
        ("resource_unavailable", ErrorCode::NoCapacity),
        ("token_readonly", ErrorCode::Forbidden),
    ] {
        lab.fault(json!({"kind": "api_error", "code": code, "method": "POST", "path": "/volumes"})).await;
        let error = lab.cloud().create_volume(&spec("demo-refused")).await.unwrap_err();
        assert_eq!(error.code, expected);
        assert!(error.hint.is_some() && error.message.contains("demo-refused"), "{error}");
    }
    assert_eq!(lab.effects("create_volume"), 5);
}

#[tokio::test]
async fn a_refused_token_says_so_and_is_not_shown() {
    let lab = Lab::start().await;
    let cloud = HetznerCloud::new(&lab.served.endpoint, &SecretString::from("another-secret-token")).unwrap();
    let error = cloud.servers("").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthorized);
    assert!(error.hint.is_some());
    assert!(!format!("{error:?}").contains("another-secret-token"));
}

#[tokio::test]
async fn lists_are_read_to_their_last_page_and_many_wait_together() {
    let lab = Lab::start().await;
    let cloud = lab.cloud();
    let specs: Vec<VolumeSpec> = (0..60).map(|i| spec(&format!("demo-{i}"))).collect();
    futures::future::try_join_all(specs.iter().map(|s| cloud.create_volume(s))).await.unwrap();
    assert_eq!(cloud.volumes("hk-dr/cluster=demo").await.unwrap().len(), 60);
    assert_eq!(cloud.volume_by_name("demo-59").await.unwrap().unwrap().name, "demo-59");
}

#[tokio::test]
async fn an_api_that_is_not_there_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let cloud = HetznerCloud::new(&endpoint, &SecretString::from("token")).unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(500), cloud.servers("")).await;
    // Either it still tries, within its bounds, or it has given up with the right code.
    if let Ok(Err(error)) = asked {
        assert_eq!(error.code, ErrorCode::Unreachable);
    }
}

#[tokio::test]
async fn the_fake_counts_what_came_into_being_and_fails_when_told() {
    let fake = FakeCloud::new();
    fake.fail_next("create_volume", PortError::new(ErrorCode::Timeout, "no answer"));
    assert_eq!(fake.create_volume(&spec("v")).await.unwrap_err().code, ErrorCode::Timeout);
    fake.create_volume(&spec("v")).await.unwrap();
    fake.create_volume(&spec("v")).await.unwrap();
    assert_eq!(fake.creations()[&("create_volume", "v".to_owned())], 1);
    assert_eq!(fake.calls().len(), 2);
}
