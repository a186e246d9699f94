use secrecy::SecretString;

/// Where a bucket is and the credential for it.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// URL of an S3-compatible server; none means AWS in `region`.
    pub endpoint: Option<String>,
    pub region: String,
    pub bucket: String,
    pub access_key: String,
    pub secret_key: SecretString,
}

impl S3Config {
    /// The bucket as messages name it, without a credential.
    pub fn display_name(&self) -> String {
        let host = match &self.endpoint {
            Some(url) => url.trim_end_matches('/').rsplit('@').next().unwrap_or_default().to_owned(),
            None => format!("AWS {}", self.region),
        };
        format!("s3://{} at {}", self.bucket, host)
    }
}
