//! Filters, order and pages.

use serde_json::{Value, json};

use crate::client::Lab;

async fn groups(lab: &Lab, count: usize) {
    for i in 0..count {
        let labels = json!({"index": i.to_string(), "parity": if i % 2 == 0 { "even" } else { "odd" }});
        let body = json!({"name": format!("g{i:02}"), "type": "spread", "labels": labels});
        lab.post("/placement_groups", body).await.ok();
    }
}

fn names(body: &Value) -> Vec<&str> {
    body["placement_groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_add_up_and_link_to_each_other() {
    let lab = Lab::start().await;
    groups(&lab, 30).await;
    let first = lab.get("/placement_groups").await;
    assert_eq!(names(&first.body).len(), 25, "25 a page unless asked otherwise");
    let link = first.headers["link"].to_str().unwrap().to_owned();
    assert!(link.contains("page=2&per_page=25>; rel=\"next\"") && link.contains("rel=\"last\""), "{link}");
    assert!(!link.contains("rel=\"prev\""));
    let url = link.split(['<', '>']).nth(1).unwrap().to_owned();
    let followed = lab.http.get(url).bearer_auth(&lab.served.token).send().await.unwrap().text().await.unwrap();
    let second: Value = serde_json::from_str(&followed).unwrap();
    assert_eq!(names(&second), ["g25", "g26", "g27", "g28", "g29"]);
    assert_eq!(
        second["meta"]["pagination"],
        json!({"page": 2, "per_page": 25, "previous_page": 1, "next_page": null, "last_page": 2, "total_entries": 30})
    );
    let beyond = lab.get("/placement_groups?page=7&per_page=10").await.ok();
    assert_eq!(names(&beyond), [""; 0]);
    for (query, field) in
        [("page=0", "page"), ("per_page=0", "per_page"), ("per_page=51", "per_page"), ("page=x", "page")]
    {
        assert_eq!(lab.get(&format!("/placement_groups?{query}")).await.wrong_field(), field);
    }
}

#[tokio::test]
async fn lists_are_filtered_and_sorted() {
    let lab = Lab::start().await;
    groups(&lab, 6).await;
    for (query, expected) in [
        ("name=g03", vec!["g03"]),
        ("name=g0", vec![]),
        ("label_selector=parity%3Dodd", vec!["g01", "g03", "g05"]),
        ("label_selector=index%20in%20(1,2),parity!%3Dodd", vec!["g02"]),
        ("label_selector=!index", vec![]),
        ("sort=name:desc&per_page=2", vec!["g05", "g04"]),
        ("sort=created&sort=id:desc&per_page=50", vec![]),
    ] {
        let body = lab.get(&format!("/placement_groups?{query}")).await.ok();
        if query.starts_with("sort=created") {
            assert_eq!(names(&body).len(), 6);
        } else {
            assert_eq!(names(&body), expected, "{query}");
        }
    }
    for (query, field) in
        [("sort=color", "sort"), ("sort=name:up", "sort"), ("label_selector=a%3Db%3Dc", "label_selector")]
    {
        assert_eq!(lab.get(&format!("/placement_groups?{query}")).await.wrong_field(), field);
    }
}

#[tokio::test]
async fn actions_are_found_by_id_only() {
    let lab = Lab::start().await;
    assert_eq!(lab.get("/actions").await.wrong_field(), "id");
    lab.volume("v", "fsn1").await;
    let list = lab.get("/volumes/actions").await.ok();
    let id = list["actions"][0]["id"].clone();
    let both = lab.get(&format!("/actions?id={id}&id=4711")).await.ok();
    assert_eq!(both["actions"].as_array().unwrap().len(), 1);
    assert_eq!(lab.get("/actions/4711").await.refused(), (404, "not_found"));
    assert_eq!(lab.get(&format!("/servers/actions/{id}")).await.refused(), (404, "not_found"));
    assert_eq!(lab.get("/volumes/4711/actions").await.refused(), (404, "not_found"));
}
