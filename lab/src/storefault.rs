//! The proxy through which requests to S3 go while a fault of S3 is set. It leaves requests as they are, so that their
//! signatures hold, and spoils answers.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;

use crate::api::{Provider, StoreFault};
use crate::error::{Attempt, LabError};
use crate::{fabric, link, netns};

/// Long enough for what was written to leave.
const FLUSHED: Duration = Duration::from_millis(100);

/// Starts it, in a thread of its own in the public network. Nothing reaches it unless it is diverted there.
pub(crate) fn start(provider: Arc<Provider>) -> Result<(), LabError> {
    std::thread::Builder::new()
        .name("s3-faults".into())
        .spawn(move || {
            if let Err(error) = serve(provider) {
                eprintln!("faults of S3 have no effect any more: {error}");
            }
        })
        .attempt(|| "start a thread".into())?;
    Ok(())
}

fn serve(provider: Arc<Provider>) -> std::io::Result<()> {
    nix::sched::setns(File::open(netns::path(fabric::PUBLIC))?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", link::PROXY_PORT)).await?;
        axum::serve(listener, Router::new().fallback(answer).with_state(provider)).await
    })
}

async fn answer(State(provider): State<Arc<Provider>>, request: Request) -> Response {
    let fault = provider.s3_fault(request.method().as_str(), request.uri().path());
    match fault {
        Some(StoreFault::S3Error { code, status, .. }) => refuse(status, &code),
        Some(StoreFault::S3ReadOnly) => refuse(403, "AccessDenied"),
        Some(StoreFault::S3Slow { delay_ms, .. }) => {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            pass(request).await
        }
        Some(StoreFault::S3Truncated { .. }) => truncate(pass(request).await),
        Some(StoreFault::S3Corrupt { .. }) => corrupt(pass(request).await),
        _ => pass(request).await,
    }
}

/// An error as S3 answers it.
fn refuse(status: u16, code: &str) -> Response {
    let code: String = code.chars().filter(char::is_ascii_alphanumeric).collect();
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>The lab was told to answer \
         this.</Message></Error>"
    );
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(CONTENT_TYPE, "application/xml")], body).into_response()
}

/// Hands a request to the store as it is.
async fn pass(request: Request) -> Response {
    match try_to_pass(request).await {
        Ok(response) => response,
        Err(error) => {
            eprintln!("the proxy of S3: {error}");
            refuse(503, "ServiceUnavailable")
        }
    }
}

async fn try_to_pass(request: Request) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
    let socket = TcpSocket::new_v4()?;
    // By this address the rules know the proxy's own connections.
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let stream = socket.connect(fabric::S3.into()).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    // A client behind the proxy names the path only.
    parts.uri = parts.uri.path_and_query().map_or_else(|| Ok(Uri::default()), |path| path.as_str().parse())?;
    parts.headers.remove(CONNECTION);
    let (mut parts, body) = sender.send_request(Request::from_parts(parts, body)).await?.into_parts();
    for header in [CONNECTION, TRANSFER_ENCODING] {
        parts.headers.remove(header);
    }
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// Breaks the body off after half of what was announced.
fn truncate(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    let Some(length) = announced.filter(|_| parts.status.is_success()) else {
        return Response::from_parts(parts, body);
    };
    let mut left = length / 2;
    let half = body.into_data_stream().scan((), move |(), chunk| {
        let part = (left > 0).then(|| {
            chunk.map(|bytes| {
                let part = bytes.slice(..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                left -= part.len() as u64;
                part
            })
        });
        std::future::ready(part)
    });
    let end = futures::stream::once(async {
        // An error at once would take what was not sent yet along, the head included.
        tokio::time::sleep(FLUSHED).await;
        Err(axum::Error::new(std::io::Error::other("broken off on purpose")))
    });
    Response::from_parts(parts, Body::from_stream(half.chain(end)))
}

/// Turns one bit of the body.
fn corrupt(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        return Response::from_parts(parts, body);
    }
    let mut done = false;
    let stream = body.into_data_stream().map(move |chunk| {
        chunk.map(|bytes| {
            if done || bytes.is_empty() {
                return bytes;
            }
            done = true;
            let mut spoiled = bytes.to_vec();
            let middle = spoiled.len() / 2;
            spoiled[middle] ^= 1;
            Bytes::from(spoiled)
        })
    });
    Response::from_parts(parts, Body::from_stream(stream))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn response(text: &'static str) -> Response {
        ([(CONTENT_LENGTH, text.len().to_string())], text).into_response()
    }

    #[tokio::test]
    async fn a_truncated_body_ends_in_an_error_after_half() {
        let mut stream = truncate(response("0123456789")).into_body().into_data_stream();
        assert_eq!(stream.next().await.expect("a chunk").expect("bytes"), "01234");
        assert!(stream.next().await.expect("an end").is_err());
    }

    #[tokio::test]
    async fn a_corrupted_body_differs_in_one_bit() {
        let body = corrupt(response("0123456789")).into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body, "0123446789");
    }
}
