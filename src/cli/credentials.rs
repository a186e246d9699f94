//! Where a command's secrets come from: the environment, and secrets.yaml.age.

use secrecy::SecretString;

use super::{CliError, Context};
use crate::secrets::{Overrides, Secrets};

/// What the environment says; empty values count as absent.
pub fn overrides() -> Overrides {
    overrides_from(|name| std::env::var(name).ok())
}

/// The same, from anything that maps names to values.
pub(super) fn overrides_from(get: impl Fn(&str) -> Option<String>) -> Overrides {
    let text = |name: &str| get(name).filter(|value| !value.is_empty());
    let secret = |name: &str| text(name).map(SecretString::from);
    Overrides {
        cloud_token: secret("HCLOUD_TOKEN"),
        cloud_endpoint: text("HCLOUD_ENDPOINT"),
        s3_access_key: secret("AWS_ACCESS_KEY_ID"),
        s3_secret_key: secret("AWS_SECRET_ACCESS_KEY"),
        s3_endpoint: text("AWS_ENDPOINT_URL"),
    }
}

/// Loads what the Git directory, the identity and the environment give, and prints warnings.
///
/// # Errors
/// See [`Secrets::load`].
pub fn load_secrets(context: &Context) -> Result<Secrets, CliError> {
    let secrets = Secrets::load(&context.global.dir, context.global.identity.as_deref(), overrides())?;
    for warning in &secrets.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(secrets)
}
