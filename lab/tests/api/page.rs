//! The live page, as a person sees it in a browser.

use serde_json::{Value, json};

use crate::browser::{self, Page};
use crate::client::{KEY_ONE, Lab, server_body};

/// A small company's cloud: fifty servers, and one of everything.
async fn furnish(lab: &Lab) -> u64 {
    lab.post("/ssh_keys", json!({"name": "ops", "public_key": KEY_ONE})).await.ok();
    let network = lab.network("cluster").await;
    let mut first = 0;
    for n in 1..=50 {
        let (role, at) = if n <= 3 { ("master", n) } else { ("worker", n - 3) };
        let location = ["fsn1", "nbg1", "hel1"][n % 3];
        let mut more = json!({"location": location, "ssh_keys": ["ops"], "labels": {"role": role}});
        if n <= 9 {
            more["networks"] = json!([network]);
        }
        let body = lab.done(lab.post("/servers", server_body(&format!("{role}-{at:02}"), more)).await).await;
        if n == 1 {
            first = body["server"]["id"].as_u64().expect("an id");
        }
    }
    for (name, at) in [("etcd-1", 1), ("etcd-2", 2), ("etcd-3", 0)] {
        lab.volume(name, ["fsn1", "nbg1", "hel1"][at]).await;
    }
    let volume = lab.get("/volumes?name=etcd-1").await.ok()["volumes"][0]["id"].clone();
    let attach = lab.post(&format!("/volumes/{volume}/actions/attach"), json!({"server": first})).await;
    lab.done(attach).await;
    let rule = json!({"direction": "in", "protocol": "tcp", "port": "6443", "source_ips": ["198.51.100.2/32"]});
    let guards = json!([{"type": "label_selector", "label_selector": {"selector": "role=master"}}]);
    lab.done(lab.post("/firewalls", json!({"name": "guard-masters", "rules": [rule], "apply_to": guards})).await).await;
    let targets = json!([{"type": "label_selector", "label_selector": {"selector": "role=master"}}]);
    let balancer = json!({
        "name": "kube-front", "load_balancer_type": "lb11", "location": "fsn1", "targets": targets,
        "services": [{"protocol": "tcp", "listen_port": 6443, "destination_port": 6443}],
    });
    lab.done(lab.post("/load_balancers", balancer).await).await;
    lab.done(lab.post("/floating_ips", json!({"type": "ipv4", "home_location": "nbg1", "server": first})).await).await;
    first
}

#[tokio::test]
async fn a_person_sees_the_cloud_in_a_browser_and_sees_it_change() {
    let Some(program) = browser::find() else {
        eprintln!("SKIPPED: no Chromium is installed: apt-get install chromium-headless-shell");
        return;
    };
    let lab = Lab::start().await;
    let first = furnish(&lab).await;
    lab.post("/_lab/faults", json!({"kind": "location_unavailable", "location": "hel1"})).await.ok();
    lab.served.backend.hold();
    lab.post(&format!("/servers/{first}/actions/reboot"), json!({})).await.ok();
    let page = format!("{}/_lab/", lab.served.endpoint.trim_end_matches("/v1"));
    let mut page = Page::open(&program, &page, 1280, 1000).await;

    page.shows(&["hk-dr lab", "50 of 50 servers run", "1 action", "1 fault"]).await;
    page.shows(&["fsn1", "nbg1", "hel1", "ash", "hil", "sin", "location unavailable"]).await;
    page.shows(&["master-01", "master-03", "worker-01", "worker-47", "203.0.113.2", "10.0.0.2"]).await;
    page.shows(&["etcd-1", "etcd-2", "cluster", "10.0.0.0/16", "guard-masters", "role=master", "kube-front"]).await;
    page.shows(&["floating", "reboot_server", "running", "POST", &format!("/servers/{first}/actions/reboot")]).await;

    // What follows appears by itself: a reload would lose this mark.
    page.eval("window.mark = 'the same page'").await;
    page.eval("document.querySelector('#servers .scroll').scrollTop = 300").await;
    lab.served.backend.release();
    lab.done(lab.post("/servers", server_body("late-comer", json!({}))).await).await;
    lab.post("/_lab/faults", json!({"kind": "api_error", "code": "locked", "path": "/pricing"})).await.ok();
    assert_eq!(lab.get("/pricing").await.status, 423);
    page.shows(&["51 of 51 servers run", "late-comer", "api error", "/pricing", "423"]).await;
    assert_eq!(page.eval("document.querySelector('#servers .scroll').scrollTop").await, 300, "nothing jumps");
    lab.delete("/_lab/faults").await.ok();
    page.shows(&["0 faults", "0 actions"]).await;
    assert!(!page.text().await.contains("Active faults"));
    assert_eq!(page.eval("window.mark").await, "the same page");

    // Nothing sticks out of the window, on a desk or in a hand.
    for width in [1280, 390] {
        page.resize(width, 1000).await;
        let wide = page.eval("document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().is_some_and(|wide| wide <= u64::from(width)), "{wide} in a window of {width}");
    }
    assert_eq!(page.complaints, Vec::<Value>::new());
    page.close().await;
}

/// The picture in docs/LAB.md.
#[tokio::test]
#[ignore = "makes a picture: HK_LAB_SCREENSHOT=docs/images/lab-status.png cargo test -p hk-lab --test api picture -- --ignored"]
async fn a_picture_of_the_page() {
    let program = browser::find().expect("a browser");
    let path = std::env::var("HK_LAB_SCREENSHOT").expect("HK_LAB_SCREENSHOT says where the picture goes");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let lab = Lab::start().await;
    let first = furnish(&lab).await;
    let url = format!("{}/_lab/", lab.served.endpoint.trim_end_matches("/v1"));
    lab.post("/_lab/faults", json!({"kind": "location_unavailable", "location": "hel1"})).await.ok();
    lab.served.backend.hold();
    lab.post(&format!("/servers/{first}/actions/reboot"), json!({})).await.ok();
    assert_eq!(lab.post("/servers", server_body("one-more", json!({"location": "hel1"}))).await.status, 412);
    lab.get("/servers?label_selector=role%3Dmaster").await.ok();
    let mut page = Page::open(&program, &url, 1120, 1280).await;
    page.shows(&["50 of 50 servers run", "reboot_server", "412"]).await;
    let picture = page.screenshot().await;
    std::fs::create_dir_all(path.parent().expect("a directory")).unwrap();
    std::fs::write(&path, picture).unwrap();
    page.close().await;
}
