use super::*;

const DEMO: &str = include_str!("../../examples/demo/cluster.yaml");

fn pinned() -> Pinned {
    let kubernetes = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];
    let mut pinned: Pinned = kubernetes.iter().map(|n| ((*n).to_owned(), vec!["1.35.4".to_owned()])).collect();
    pinned.extend(["etcd", "etcdutl"].map(|n| (n.to_owned(), vec!["3.6.16".to_owned()])));
    pinned.insert("demo-images".into(), vec!["1".into()]);
    pinned
}

/// The demo's file with replacements; the errors, a line each.
fn errors(replacements: &[(&str, &str)]) -> String {
    let mut text = DEMO.to_owned();
    for (from, to) in replacements {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    load(&text, "cluster.yaml", &pinned()).map_or_else(|e| e.plain(), |_| "accepted".into())
}

#[test]
fn the_demos_file_is_right() {
    load(DEMO, "cluster.yaml", &pinned()).unwrap();
}

#[test]
fn an_unknown_field_is_named_with_its_place_and_the_likely_one() {
    assert_eq!(
        errors(&[("fallbackLocations:", "falbackLocations:")]),
        "cluster.yaml:3:1: `fallbackLocations` is missing (Where a server goes when its own location has no capacity, in this order.)\n\
         cluster.yaml:14:1: unknown field `falbackLocations` (did you mean `fallbackLocations`?)"
    );
}

#[test]
fn several_mistakes_of_form_are_found_at_once() {
    let found = errors(&[
        ("type: cx23, address: 10.0.0.11", "typ: cx23, address: 10.0.0.300"),
        ("workers:\n  - {", "workers:\n  - {labels: [a], "),
    ]);
    for part in [
        "16:32: unknown field `typ` (did you mean `type`?)",
        "`type` is missing in masters[0]",
        "masters[0].address is not an IPv4 address: `10.0.0.300`",
        "workers[0].labels must be fields",
    ] {
        assert!(found.contains(part), "{part} in\n{found}");
    }
}

#[test]
fn yaml_that_is_none_is_refused_with_its_line() {
    let found = errors(&[("etcd:\n", "etcd: [\n")]);
    assert!(found.starts_with("cluster.yaml:"), "{found}");
}

#[test]
fn impossible_addresses_say_why() {
    for (address, why) in [
        ("10.0.7.11", "10.0.7.11 is not in the subnet 10.0.0.0/24 (free addresses of 10.0.0.0/24 begin at 10.0.0.2)"),
        ("10.0.0.0", "is the subnet itself"),
        ("10.0.0.1", "reserved for the network's gateway"),
        ("10.0.0.255", "broadcast"),
        ("10.0.0.12", "the address 10.0.0.12 is given twice (`m1` has it already)"),
    ] {
        let found = errors(&[("address: 10.0.0.11", &format!("address: {address}"))]);
        assert!(found.contains(why), "{why} in\n{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn an_even_number_of_masters_is_refused() {
    let found = errors(&[("  - {name: m3, location: hel1, type: cx23, address: 10.0.0.13}\n", "")]);
    assert!(found.contains("2 masters are an even number") && found.contains("take 1 or 3"), "{found}");
}

#[test]
fn a_cluster_without_masters_is_refused() {
    let start = DEMO.find("masters:").unwrap();
    let end = DEMO.find("workers:").unwrap();
    let text = format!("{}masters: []\n{}", &DEMO[..start], &DEMO[end..]);
    let found = load(&text, "cluster.yaml", &pinned()).unwrap_err().plain();
    assert!(found.contains("there are no masters"), "{found}");
}

#[test]
fn names_are_unique_and_fit() {
    assert!(
        errors(&[("name: w1", "name: m2")]).contains("two servers are called `m2` (masters.1 has this name already")
    );
    assert!(errors(&[("name: w1", "name: W_1")]).contains("`W_1` can't be a server's name"));
    let long = "x".repeat(60);
    assert!(errors(&[("name: w1", &format!("name: {long}"))]).contains("longer than 63 characters"));
}

#[test]
fn locations_exist_and_share_the_networks_zone() {
    assert!(errors(&[("location: fsn1", "location: fns1")]).contains("unknown location `fns1` (did you mean `fsn1`?)"));
    assert!(
        errors(&[("location: fsn1", "location: ash")]).contains("ash is in zone us-east, the network in eu-central")
    );
    assert!(errors(&[("[nbg1, hel1, fsn1]", "[]")]).contains("fallbackLocations is empty"));
}

#[test]
fn ranges_do_not_overlap() {
    let found = errors(&[("  version: 1.35.4", "  version: 1.35.4\n  podRange: 10.0.0.0/16")]);
    assert!(found.contains("10.0.0.0/16 overlaps the private network 10.0.0.0/16"), "{found}");
    assert!(errors(&[("subnet: 10.0.0.0/24", "subnet: 10.0.0.5/24")]).contains("a range begins at its first address"));
}

#[test]
fn versions_are_pinned() {
    let found = errors(&[("version: 1.35.4", "version: v1.35.4"), ("version: 3.6.16", "version: 3.5.0")]);
    assert!(
        found.contains("write it without `v`: 1.35.4") && found.contains("pinned in artifacts.lock: 3.6.16"),
        "{found}"
    );
}

#[test]
fn volumes_and_buckets_are_possible() {
    assert!(errors(&[("address: 10.0.0.11", "address: 10.0.0.11, etcdVolumeGb: 5")]).contains("from 10 to 10240"));
    assert!(errors(&[("bucket: demo-backups", "bucket: Demo_Backups")]).contains("can't be a bucket's name"));
    let locked = |days: u32| format!("bucket: demo-backups\n  objectLock: {{mode: compliance, days: {days}}}");
    load(&DEMO.replace("bucket: demo-backups", &locked(35)), "cluster.yaml", &pinned()).unwrap();
    let copy =
        |rest: &str| format!("bucket: demo-backups\n  copies: [{{name: nas, bucket: demo, endpoint: \"{rest}}}]");
    let shared =
        load(&DEMO.replace("bucket: demo-backups", &copy("file:///mnt/nas/\"")), "cluster.yaml", &pinned()).unwrap();
    assert_eq!(shared.backup.copies[0].directory().as_deref(), Some("/mnt/nas/demo"));
    assert!(errors(&[("bucket: demo-backups", &copy("nas\""))]).contains("is not a URL"));
    let locked_copy = copy("file:///mnt/nas\", objectLock: {mode: governance, days: 3}");
    assert!(errors(&[("bucket: demo-backups", &locked_copy)]).contains("has no object lock"));
    assert!(errors(&[("bucket: demo-backups", &locked(40_000))]).contains("from 1 to 3650"));
}

#[test]
fn the_report_shows_the_line_and_underlines_the_value() {
    let text = DEMO.replace("address: 10.0.0.11", "address: 10.0.0.1");
    let error = load(&text, "cluster.yaml", &pinned()).unwrap_err();
    let mut shown = String::new();
    let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor()).with_width(200);
    handler.render_report(&mut shown, &error).unwrap();
    assert!(shown.contains("cluster.yaml:16:"), "{shown}");
    assert!(shown.contains("{name: m1, location: fsn1, type: cx23, address: 10.0.0.1}"), "{shown}");
    assert!(shown.contains("reserved for the network's gateway") && shown.contains("help: free addresses"), "{shown}");
}

#[test]
fn the_schema_describes_every_field() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    assert!(schema["properties"]["masters"]["items"]["properties"]["etcdVolumeGb"].is_object());
}

const PRIVATE: &str = include_str!("../../examples/private/cluster.yaml");

#[test]
fn a_private_clusters_file_is_right_and_its_mistakes_say_why() {
    load(PRIVATE, "cluster.yaml", &pinned()).unwrap();
    let peer = |peer: &str| format!("peers: [{{{peer}}}]");
    let key = "publicKey: QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
    for (from, to, why) in [
        ("firewall: {}", "firewall: {management: [0.0.0.0/0]}".to_owned(), "open to the whole world"),
        ("peers: []", peer("name: anna, publicKey: short, address: 10.99.1.1"), "not a public key of WireGuard"),
        ("peers: []", peer(&format!("name: anna, {key}, address: 10.99.0.9")), "for people begin at 10.99.1.0"),
        ("peers: []", "range: 10.0.0.0/22".to_owned(), "overlaps the private network 10.0.0.0/16"),
        ("address: 10.0.0.2\n", "address: 10.0.0.11\n".to_owned(), "the address 10.0.0.11 is given twice"),
        ("location: fsn1\n", "location: ash\n".to_owned(), "ash is in zone us-east"),
    ] {
        assert!(PRIVATE.contains(from), "{from}");
        let found = load(&PRIVATE.replacen(from, &to, 1), "cluster.yaml", &pinned()).unwrap_err().plain();
        assert!(found.contains(why), "{why} in\n{found}");
    }
    let without = errors(&[("  subnet: 10.0.0.0/24\n", "  subnet: 10.0.0.0/24\n  publicIPv4: none\n")]);
    assert!(without.contains("declare `vpn`"), "{without}");
    assert!(errors(&[("etcd:\n", "firewall: {}\netcd:\n")]).contains("nobody could reach the servers"));
}
