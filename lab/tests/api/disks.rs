//! Images, rebuilding, rescue, passwords, other types.

use std::time::{Duration, Instant};

use hk_lab::api::Options;
use serde_json::{Value, json};

use crate::client::{KEY_ONE, Lab, server_body};

#[tokio::test]
async fn a_snapshot_outlives_its_server_and_boots_another() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let body = json!({"description": "golden", "labels": {"k": "v"}});
    let answer = lab.post(&format!("/servers/{server}/actions/create_image"), body).await;
    assert_eq!(answer.body["image"]["status"], "creating");
    let image = lab.done(answer).await["image"]["id"].as_u64().unwrap();
    let shown = lab.get("/images?type=snapshot&label_selector=k").await.ok()["images"][0].clone();
    assert_eq!(
        (&shown["id"], &shown["status"], &shown["image_size"]),
        (&json!(image), &json!("available"), &json!(0.5))
    );
    assert_eq!(shown["created_from"], json!({"id": server, "name": "s"}));
    lab.done(lab.delete(&format!("/servers/{server}")).await).await;
    let body = lab.done(lab.post("/servers", server_body("t", json!({"image": image}))).await).await;
    assert_eq!(body["server"]["image"]["id"], image);
    let id = body["server"]["id"].as_u64().unwrap();
    lab.done(lab.post(&format!("/servers/{id}/actions/rebuild"), json!({"image": image})).await).await;
    assert!(lab.served.backend.effects().contains(&format!("rebuild_machine {id} from image {image}")));

    let protect = format!("/images/{image}/actions/change_protection");
    lab.done(lab.post(&protect, json!({"delete": true})).await).await;
    assert_eq!(lab.delete(&format!("/images/{image}")).await.refused(), (423, "protected"));
    lab.done(lab.post(&protect, json!({"delete": false})).await).await;
    assert_eq!(lab.delete(&format!("/images/{image}")).await.status, 204);
    let system = lab.get("/images?name=debian-12&architecture=x86").await.ok()["images"][0]["id"].clone();
    assert_eq!(lab.delete(&format!("/images/{system}")).await.refused(), (403, "forbidden"));
}

#[tokio::test]
async fn backups_need_to_be_enabled_and_die_with_their_server() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let (path, create) = (format!("/servers/{server}"), format!("/servers/{server}/actions/create_image"));
    let refused = lab.post(&create, json!({"type": "backup"})).await;
    assert_eq!(refused.refused().1, "unsupported_error");
    lab.done(lab.post(&format!("{path}/actions/enable_backup"), json!({})).await).await;
    assert_ne!(lab.get(&path).await.ok()["server"]["backup_window"], Value::Null);
    let backup = lab.done(lab.post(&create, json!({"type": "backup"})).await).await["image"]["id"].clone();
    assert_eq!(lab.get(&format!("/images?bound_to={server}")).await.ok()["images"][0]["id"], backup);
    // One that is made a snapshot stays.
    let kept = lab.done(lab.post(&create, json!({"type": "backup"})).await).await["image"]["id"].clone();
    lab.put(&format!("/images/{kept}"), json!({"type": "snapshot", "description": "kept"})).await.ok();
    lab.done(lab.delete(&path).await).await;
    assert_eq!(lab.get(&format!("/images/{backup}")).await.refused(), (404, "not_found"));
    assert_eq!(lab.get(&format!("/images/{kept}")).await.ok()["image"]["bound_to"], Value::Null);
}

#[tokio::test]
async fn a_server_grows_while_it_is_off() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let (path, change) = (format!("/servers/{server}"), format!("/servers/{server}/actions/change_type"));
    let bigger = json!({"server_type": "cx33", "upgrade_disk": false});
    assert_eq!(lab.post(&change, bigger.clone()).await.refused().1, "server_not_stopped");
    lab.done(lab.post(&format!("{path}/actions/poweroff"), json!({})).await).await;
    let arm = json!({"server_type": "cax21", "upgrade_disk": false});
    assert_eq!(lab.post(&change, arm).await.refused().1, "invalid_server_type");
    lab.done(lab.post(&change, bigger).await).await;
    let shown = lab.get(&path).await.ok()["server"].clone();
    assert_eq!((&shown["server_type"]["name"], &shown["primary_disk_size"]), (&json!("cx33"), &json!(40)));
    assert_eq!(shown["status"], "running");
    lab.done(lab.post(&format!("{path}/actions/poweroff"), json!({})).await).await;
    let upgrade = json!({"server_type": "cx43", "upgrade_disk": true});
    lab.done(lab.post(&change, upgrade).await).await;
    lab.done(lab.post(&format!("{path}/actions/poweroff"), json!({})).await).await;
    let back = json!({"server_type": "cx33", "upgrade_disk": false});
    assert_eq!(lab.post(&change, back).await.refused().1, "invalid_server_type", "disks never shrink");
    let resized = lab.served.backend.effects().into_iter().rfind(|e| e.starts_with("resize_machine")).unwrap();
    assert_eq!(resized, format!("resize_machine {server} to 8 cores, 16384 MB, disk of 160 GB"));
}

#[tokio::test]
async fn the_rescue_system_is_for_one_boot() {
    let lab = Lab::start().await;
    let server = lab.server("s").await;
    let key = lab.post("/ssh_keys", json!({"name": "k", "public_key": KEY_ONE})).await.ok()["ssh_key"]["id"].clone();
    let path = format!("/servers/{server}");
    let body = json!({"type": "linux64", "ssh_keys": [key]});
    let answer = lab.done(lab.post(&format!("{path}/actions/enable_rescue"), body).await).await;
    assert_eq!(answer["root_password"].as_str().unwrap().len(), 20);
    assert_eq!(lab.get(&path).await.ok()["server"]["rescue_enabled"], true);
    lab.done(lab.post(&format!("{path}/actions/reset"), json!({})).await).await;
    assert_eq!(lab.get(&path).await.ok()["server"]["rescue_enabled"], false);
    lab.done(lab.post(&format!("{path}/actions/disable_rescue"), json!({})).await).await;
    let effects = lab.served.backend.effects();
    let rescue: Vec<&String> = effects.iter().filter(|e| e.starts_with("set_rescue")).collect();
    assert_eq!(rescue, [&format!("set_rescue {server} with 1 keys")]);
}

#[tokio::test]
async fn an_enabled_rescue_system_does_not_wait_for_ever() {
    let mut options = Options::new("t");
    options.rescue_lifetime = Duration::from_millis(50);
    let lab = Lab::with(options).await;
    let server = lab.server("s").await;
    let path = format!("/servers/{server}");
    lab.done(lab.post(&format!("{path}/actions/enable_rescue"), json!({})).await).await;
    lab.until(|| lab.served.backend.effects().contains(&format!("set_rescue {server} off"))).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while lab.get(&path).await.ok()["server"]["rescue_enabled"] != false {
        assert!(Instant::now() < deadline, "it is still enabled");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It can be enabled again.
    lab.done(lab.post(&format!("{path}/actions/enable_rescue"), json!({})).await).await;
}

#[tokio::test]
async fn passwords_are_told_once() {
    let lab = Lab::start().await;
    let body = lab.done(lab.post("/servers", server_body("s", json!({}))).await).await;
    let (id, first) = (body["server"]["id"].as_u64().unwrap(), body["root_password"].as_str().unwrap().to_owned());
    assert_eq!(lab.served.backend.metadata(id).unwrap().root_password, Some(first.clone()));
    let reset = lab.done(lab.post(&format!("/servers/{id}/actions/reset_password"), json!({})).await).await;
    assert_ne!(reset["root_password"], json!(first));
    lab.post("/ssh_keys", json!({"name": "k", "public_key": KEY_ONE})).await.ok();
    let keyed = lab.done(lab.post("/servers", server_body("t", json!({"ssh_keys": ["k"]}))).await).await;
    assert_eq!(keyed["root_password"], Value::Null);
    let console = lab.post(&format!("/servers/{id}/actions/request_console"), json!({})).await;
    assert_eq!(console.refused().1, "unsupported_error");
    let iso = lab.post(&format!("/servers/{id}/actions/attach_iso"), json!({"iso": "x.iso"})).await;
    assert_eq!(iso.wrong_field(), "iso");
    lab.done(lab.post(&format!("/servers/{id}/actions/detach_iso"), json!({})).await).await;
}
