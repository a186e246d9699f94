use super::*;

struct Team {
    dir: tempfile::TempDir,
    recipients: String,
}

fn identity(dir: &Path, name: &str) -> (PathBuf, String) {
    let identity = age::x25519::Identity::generate();
    let path = dir.join(name);
    write_file(&path, 0o600, identity.to_string().expose_secret().as_bytes(), false).unwrap();
    (path, identity.to_public().to_string())
}

fn team() -> Team {
    let dir = tempfile::tempdir().unwrap();
    let (_, one) = identity(dir.path(), "one");
    let (_, two) = identity(dir.path(), "two");
    let recipients = format!("{one}\n{two}\n");
    std::fs::write(dir.path().join("recipients.txt"), &recipients).unwrap();
    let values = Overrides {
        cloud_token: Some("token".to_owned().into()),
        s3_access_key: Some("access".to_owned().into()),
        ..Overrides::default()
    };
    let sealed = seal(&values, &"key\nof lines\n".to_owned().into(), &Recipients::parse(&recipients).unwrap()).unwrap();
    write_file(&dir.path().join(SECRETS_FILE), 0o644, &sealed, false).unwrap();
    Team { dir, recipients }
}

fn load(team: &Team, identity: Option<&str>, overrides: Overrides) -> PortResult<Secrets> {
    let identity = identity.map(|name| team.dir.path().join(name));
    Secrets::load(team.dir.path(), identity.as_deref(), overrides)
}

#[test]
fn either_identity_opens_the_file_and_the_environment_wins() {
    let team = team();
    for name in ["one", "two"] {
        let overrides = Overrides { s3_access_key: Some("other".to_owned().into()), ..Overrides::default() };
        let secrets = load(&team, Some(name), overrides).unwrap();
        assert_eq!(secrets.cloud_token().unwrap().expose_secret(), "token");
        assert_eq!(secrets.s3_access_key().unwrap().expose_secret(), "other");
        assert_eq!(secrets.ssh_private_key().unwrap().expose_secret(), "key\nof lines\n");
        assert!(secrets.warnings.is_empty());
    }
}

#[test]
fn a_signing_key_is_kept_beside_the_rest_and_either_identity_still_opens_it() {
    let team = team();
    assert!(load(&team, Some("one"), Overrides::default()).unwrap().signing_key().unwrap().is_none());
    let (recipients, key) = (Recipients::parse(&team.recipients).unwrap(), SigningKey::generate().unwrap());
    let identities = Identities::load(&team.dir.path().join("one")).unwrap();
    keep_signing_key(team.dir.path(), &identities, &recipients, &key).unwrap();
    let secrets = load(&team, Some("two"), Overrides::default()).unwrap();
    assert_eq!(secrets.signing_key().unwrap().unwrap().public(), key.public());
    let pair = (&"a".to_owned().into(), &"s".to_owned().into());
    keep_copy_keys(team.dir.path(), &identities, &recipients, "nbg", pair).unwrap();
    let secrets = load(&team, Some("two"), Overrides::default()).unwrap();
    assert_eq!(secrets.copy_keys("nbg").unwrap().1.expose_secret(), "s");
    assert!(secrets.copy_keys("hel").unwrap_err().hint.unwrap().contains("keys bucket hel"));
    assert!(secrets.signing_key().unwrap().is_some());
    assert_eq!(secrets.cloud_token().unwrap().expose_secret(), "token");
}

#[test]
fn a_wrong_identity_is_told_whose_would_be_right() {
    let team = team();
    identity(team.dir.path(), "stranger");
    let error = load(&team, Some("stranger"), Overrides::default()).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthorized);
    let first = team.recipients.lines().next().unwrap();
    assert!(error.hint.unwrap().contains(first));
}

#[test]
fn without_an_identity_what_the_environment_has_is_enough_until_more_is_asked_for() {
    let team = team();
    let overrides = Overrides { cloud_token: Some("mine".to_owned().into()), ..Overrides::default() };
    let secrets = load(&team, None, overrides).unwrap();
    assert_eq!(secrets.cloud_token().unwrap().expose_secret(), "mine");
    let error = secrets.ssh_private_key().unwrap_err();
    assert!(error.message.contains("no age identity was given"), "{error}");
    assert!(error.hint.unwrap().contains("--identity"));
}

#[test]
fn what_the_file_lacks_is_named_with_the_variable_that_could_give_it() {
    let team = team();
    let error = load(&team, Some("one"), Overrides::default()).unwrap().s3_secret_key().unwrap_err().clone();
    assert!(error.message.contains("s3SecretKey"), "{error}");
    assert!(error.hint.unwrap().contains("AWS_SECRET_ACCESS_KEY"));
}

#[test]
fn a_damaged_file_is_called_damaged() {
    let team = team();
    let path = team.dir.path().join(SECRETS_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() * 3 / 4;
    bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
    std::fs::write(&path, bytes).unwrap();
    let error = load(&team, Some("one"), Overrides::default()).unwrap_err();
    assert_eq!(error.code, ErrorCode::Corrupt, "{error}");
}

#[test]
fn an_identity_that_others_can_read_is_warned_about() {
    let team = team();
    let path = team.dir.path().join("one");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let secrets = load(&team, Some("one"), Overrides::default()).unwrap();
    assert!(secrets.warnings[0].contains("chmod 600"));
}

#[test]
fn stock_age_opens_the_file() {
    let team = team();
    let output = std::process::Command::new("age")
        .args(["-d", "-i"])
        .args([team.dir.path().join("two"), team.dir.path().join(SECRETS_FILE)])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("hcloudToken: token"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_existing_file_is_kept_unless_it_may_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_file(&path, 0o600, b"one", false).unwrap();
    assert_eq!(write_file(&path, 0o600, b"two", false).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    write_file(&path, 0o600, b"two", true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}
