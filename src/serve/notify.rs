use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};

use crate::config::{Channel, Encryption, Heartbeat, News, Policy, Route};
use crate::ports::{ErrorCode, PortError, PortResult};

/// Letters that wait while a receiver is slow; further ones are dropped and counted.
const QUEUE: usize = 256;
/// Letters under way at once.
const AT_ONCE: usize = 16;
/// Tries of one letter, and the first pause between two; it doubles.
const TRIES: u32 = 6;
const WITHIN: Duration = Duration::from_secs(10);

/// Secrets by name, resolved before the service begins.
pub type Secrets = BTreeMap<String, SecretString>;

/// What is told of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Letter {
    pub news: News,
    pub cluster: String,
    pub policy: String,
    pub schedule: String,
    pub action: String,
    pub scheduled_at: Timestamp,
    pub at: Timestamp,
    pub note: String,
}

impl Letter {
    fn subject(&self) -> String {
        let what = match self.news {
            News::Failed => "FAILED",
            News::Recovered => "recovered",
            News::Succeeded => "succeeded",
            News::Skipped => "SKIPPED",
            News::Approval => "waits for approval",
        };
        format!("{}: {} {what} ({}/{})", self.cluster, self.action, self.policy, self.schedule)
    }

    fn text(&self) -> String {
        format!("{}\nscheduled {}, told {}\n{}", self.subject(), self.scheduled_at, self.at, self.note)
    }
}

/// Sends letters with bounded patience. Never holds up a run.
pub struct Notifier {
    queue: mpsc::Sender<(Route, Letter)>,
    secrets: Arc<Secrets>,
    lost: Arc<AtomicU64>,
}

impl Notifier {
    /// Starts sending. `pause`: between the first two tries of a letter. `say` hears of letters that were given up.
    pub fn start(secrets: Secrets, pause: Duration, say: impl Fn(&str) + Send + Sync + 'static) -> Arc<Self> {
        let (queue, mut letters) = mpsc::channel::<(Route, Letter)>(QUEUE);
        let secrets = Arc::new(secrets);
        let lost = Arc::new(AtomicU64::new(0));
        let (theirs, count) = (Arc::clone(&secrets), Arc::clone(&lost));
        tokio::spawn(async move {
            let (places, say) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(say));
            while let Some((route, letter)) = letters.recv().await {
                // One receiver that is slow must not hold up the others. The semaphore is never closed.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let (theirs, count, say) = (Arc::clone(&theirs), Arc::clone(&count), Arc::clone(&say));
                tokio::spawn(async move {
                    if let Err(error) = patiently(&route, &letter, &theirs, pause).await {
                        count.fetch_add(1, Ordering::Relaxed);
                        say(&format!("notification {} was given up: {error}", route.name));
                    }
                    drop(place);
                });
            }
        });
        Arc::new(Self { queue, secrets, lost })
    }

    /// Queues it for every route of the policy that wants such news.
    pub fn send(&self, policy: &Policy, letter: Letter) {
        for route in policy.notifications.iter().filter(|route| route.news.contains(&letter.news)) {
            if self.queue.try_send((route.clone(), letter.clone())).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Letters that nobody got.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Calls a heartbeat's URL.
    ///
    /// # Errors
    /// It can't be reached or refuses.
    pub async fn beat(&self, heartbeat: &Heartbeat) -> PortResult<()> {
        let url = secret(&self.secrets, &heartbeat.url_secret)?;
        answered(client()?.get(url.expose_secret()).send().await).await
    }
}

async fn patiently(route: &Route, letter: &Letter, secrets: &Secrets, first: Duration) -> PortResult<()> {
    let mut pause = first;
    let mut tried = 0;
    loop {
        tried += 1;
        match deliver(route, letter, secrets).await {
            Err(error) if tried < TRIES && error.code != ErrorCode::Invalid => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            result => return result,
        }
    }
}

/// Sends one letter once.
///
/// # Errors
/// `Invalid`: it can't be sent like this, ever. Others: it may be tried again. No message holds a secret.
pub async fn deliver(route: &Route, letter: &Letter, secrets: &Secrets) -> PortResult<()> {
    match route.by {
        Channel::Smtp => mail(route, letter, secrets).await,
        Channel::Webhook | Channel::Slack => {
            let url = secret(secrets, route.url_secret.as_deref().unwrap_or_default())?;
            let body = match route.by {
                Channel::Slack => serde_json::json!({"text": letter.text()}),
                _ => serde_json::json!(letter),
            };
            answered(client()?.post(url.expose_secret()).json(&body).send().await).await
        }
    }
}

fn secret<'s>(secrets: &'s Secrets, name: &str) -> PortResult<&'s SecretString> {
    secrets.get(name).ok_or_else(|| {
        PortError::new(ErrorCode::Invalid, format!("there is no secret `{name}`"))
            .hint("give it as a systemd credential of that name, or in the environment")
    })
}

fn client() -> PortResult<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(WITHIN)
        .build()
        .map_err(|e| PortError::new(ErrorCode::Local, format!("make an HTTP client: {}", e.without_url())))
}

async fn answered(result: reqwest::Result<reqwest::Response>) -> PortResult<()> {
    // A webhook's URL is a secret: it is cut out of what is told.
    let response =
        result.map_err(|e| PortError::new(ErrorCode::Unreachable, format!("no answer: {}", e.without_url())))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let code =
        if status.is_client_error() && status.as_u16() != 429 { ErrorCode::Invalid } else { ErrorCode::ServerError };
    Err(PortError::new(code, format!("the receiver answered {status}")))
}

async fn mail(route: &Route, letter: &Letter, secrets: &Secrets) -> PortResult<()> {
    let invalid = |what: String| PortError::new(ErrorCode::Invalid, what);
    let mailbox = |text: &str| text.parse::<Mailbox>().map_err(|e| invalid(format!("`{text}` is no address: {e}")));
    let mut message =
        Message::builder().from(mailbox(route.from.as_deref().unwrap_or_default())?).subject(letter.subject());
    for to in &route.to {
        message = message.to(mailbox(to)?);
    }
    let message = message.body(letter.text()).map_err(|e| invalid(format!("make a mail: {e}")))?;
    let server = route.server.as_deref().unwrap_or_default();
    let (host, port) = server.rsplit_once(':').unwrap_or((server, "587"));
    let port: u16 = port.parse().map_err(|_| invalid(format!("`{server}` is not host:port")))?;
    let built = match route.encryption {
        Encryption::Starttls => AsyncSmtpTransport::<Tokio1Executor>::starttls_relay(host),
        Encryption::Tls => AsyncSmtpTransport::<Tokio1Executor>::relay(host),
        Encryption::None => Ok(AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)),
    };
    let mut transport = built.map_err(|e| invalid(format!("use mail server {server}: {e}")))?.port(port);
    transport = transport.timeout(Some(WITHIN));
    if let (Some(user), Some(password)) = (&route.user, &route.password_secret) {
        let password = secret(secrets, password)?.expose_secret().to_owned();
        transport = transport.credentials(Credentials::new(user.clone(), password));
    }
    transport.build().send(message).await.map(|_| ()).map_err(|e| {
        let code = if e.is_permanent() { ErrorCode::Invalid } else { ErrorCode::Unreachable };
        PortError::new(code, format!("mail server {server}: {e}"))
    })
}
