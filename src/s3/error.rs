use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;

use crate::ports::{ErrorCode, PortError};

/// Maps what the SDK says onto the codes that decisions depend on. `doing` is put before the message.
pub(super) fn map<E, R>(store: &str, doing: &str, error: &SdkError<E, R>) -> PortError
where
    E: ProvideErrorMetadata + std::error::Error + RequestId + 'static,
    R: HttpStatus + std::fmt::Debug,
{
    match error {
        SdkError::TimeoutError(_) => {
            PortError::new(ErrorCode::Timeout, format!("{doing}: {store} did not answer in time"))
                .hint("check the network and the state of the object storage, then run the command again")
        }
        SdkError::DispatchFailure(failure) => {
            let code = if failure.is_timeout() { ErrorCode::Timeout } else { ErrorCode::Unreachable };
            let cause = failure.as_connector_error().map_or_else(|| "no connection".to_owned(), |e| chain(e));
            PortError::new(code, format!("{doing}: {store} cannot be reached ({cause})"))
                .hint("check the endpoint in cluster.yaml (or AWS_ENDPOINT_URL) and the network to it")
        }
        SdkError::ConstructionFailure(failure) => {
            PortError::new(ErrorCode::Invalid, format!("{doing}: the request could not be made: {failure:?}"))
        }
        SdkError::ResponseError(response) => from_answer(store, doing, response.raw().status(), None, None),
        SdkError::ServiceError(service) => {
            from_answer(store, doing, service.raw().status(), error.code(), error.message())
        }
        _ => PortError::new(ErrorCode::ServerError, format!("{doing}: {store}: {error:?}")),
    }
}

/// The HTTP status of a raw answer.
pub(super) trait HttpStatus {
    fn status(&self) -> u16;
}

impl HttpStatus for aws_sdk_s3::config::http::HttpResponse {
    fn status(&self) -> u16 {
        self.status().as_u16()
    }
}

/// Decides by S3's error code, and by the status where a server (or a HEAD answer, which has no body) gives none.
pub(super) fn from_answer(
    store: &str,
    doing: &str,
    status: u16,
    code: Option<&str>,
    message: Option<&str>,
) -> PortError {
    let said = match (code, message) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => format!("HTTP status {status}"),
    };
    let (port_code, hint): (ErrorCode, Option<&str>) = match code.unwrap_or_default() {
        "NoSuchBucket" => (ErrorCode::NotFound, Some("the bucket does not exist: check backup.bucket in cluster.yaml")),
        "NoSuchKey" | "NotFound" | "NoSuchUpload" | "NoSuchVersion" => (ErrorCode::NotFound, None),
        "PreconditionFailed" | "ConditionalRequestConflict" | "BucketAlreadyExists" => (ErrorCode::Conflict, None),
        "OperationAborted" => (ErrorCode::Locked, None),
        "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "AuthorizationHeaderMalformed"
        | "ExpiredToken"
        | "InvalidToken"
        | "InvalidSecurity"
        | "NotSignedUp" => {
            (ErrorCode::Unauthorized, Some("the bucket's access key or secret key was refused: check secrets.yaml.age"))
        }
        "RequestTimeTooSkewed" => (ErrorCode::Unauthorized, Some("this machine's clock is wrong: synchronise it")),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "MethodNotAllowed" => {
            (ErrorCode::Forbidden, Some("the credential is known but may not do this to the bucket: check its policy"))
        }
        "QuotaExceeded"
        | "EntityTooLarge"
        | "TooManyBuckets"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded"
        | "InsufficientCapacity"
        | "StorageFull"
        | "InsufficientStorage" => (
            ErrorCode::LimitExceeded,
            Some("the bucket is full or over its quota: raise the quota or remove old snapshots"),
        ),
        "SlowDown" | "Throttling" | "TooManyRequests" | "RequestLimitExceeded" => (ErrorCode::RateLimited, None),
        "RequestTimeout" => (ErrorCode::Timeout, None),
        "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" => (ErrorCode::Corrupt, None),
        "InternalError" | "ServiceUnavailable" => (ErrorCode::ServerError, None),
        "MalformedXML" | "InvalidArgument" | "InvalidRequest" | "EntityTooSmall" | "InvalidBucketName"
        | "InvalidPart" | "InvalidPartOrder" | "InvalidRange" => (ErrorCode::Invalid, None),
        _ => match status {
            400 | 405 | 411 | 416 => (ErrorCode::Invalid, None),
            401 => (ErrorCode::Unauthorized, Some("the bucket's credential was refused: check secrets.yaml.age")),
            403 => (ErrorCode::Forbidden, Some("the bucket's credential was refused: check secrets.yaml.age")),
            404 => (ErrorCode::NotFound, None),
            409 | 412 => (ErrorCode::Conflict, None),
            413 | 507 => (ErrorCode::LimitExceeded, Some("the bucket is full or over its quota")),
            429 => (ErrorCode::RateLimited, None),
            _ => (ErrorCode::ServerError, None),
        },
    };
    let mut error = PortError::new(port_code, format!("{doing}: {store} answered {said}"));
    error.hint = hint.map(str::to_owned);
    error
}

/// An error with its causes, so that "connection refused" is not hidden behind "dispatch failure".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    for _ in 0..8 {
        let Some(inner) = cause else { break };
        let line = inner.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_decide_before_the_status_does() {
        let code = |status, code| from_answer("s3://b", "put x", status, code, None).code;
        assert_eq!(code(404, Some("NoSuchBucket")), ErrorCode::NotFound);
        assert_eq!(code(403, Some("SignatureDoesNotMatch")), ErrorCode::Unauthorized);
        assert_eq!(code(403, Some("AccessDenied")), ErrorCode::Forbidden);
        assert_eq!(code(403, Some("QuotaExceeded")), ErrorCode::LimitExceeded);
        assert_eq!(code(412, Some("PreconditionFailed")), ErrorCode::Conflict);
        assert_eq!(code(507, Some("XMinioStorageFull")), ErrorCode::LimitExceeded);
        assert_eq!(code(404, None), ErrorCode::NotFound);
        assert_eq!(code(403, None), ErrorCode::Forbidden);
        assert_eq!(code(503, None), ErrorCode::ServerError);
    }

    #[test]
    fn a_missing_bucket_says_where_its_name_comes_from() {
        let error = from_answer("s3://b at h", "list", 404, Some("NoSuchBucket"), Some("gone"));
        assert!(error.message.contains("NoSuchBucket"), "{error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("cluster.yaml")));
    }
}
