//! `hk-dr lab fault`: lets the lab's cloud fail in a chosen way.

use std::time::Duration;

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{CliError, Context, ExitKind};

/// The lab answers from memory: longer means that it hangs.
const DEADLINE: Duration = Duration::from_secs(10);

/// Lets the lab's cloud fail in a chosen way, until the fault has struck often enough or is lifted.
#[derive(clap::Args)]
pub struct Args {
    /// The lab.
    #[arg(long, global = true, default_value = "lab")]
    pub name: String,
    #[command(subcommand)]
    command: FaultCommand,
}

#[derive(Subcommand)]
enum FaultCommand {
    /// Sets a fault.
    #[command(subcommand)]
    Add(Add),
    /// Shows the faults that are set and how often they struck.
    List,
    /// Lifts a fault, or all of them.
    Lift {
        /// As `list` shows it.
        #[arg(required_unless_present = "all")]
        id: Option<u64>,
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

#[derive(Subcommand)]
enum Add {
    /// Nothing can be created in a location: `resource_unavailable`.
    LocationUnavailable {
        location: String,
        /// How many requests it strikes; without it, until it is lifted.
        #[arg(long)]
        count: Option<u64>,
    },
    /// Requests are refused with a code before anything happens.
    ApiError {
        /// Such as `locked`, `conflict`, `rate_limit_exceeded`, `service_error`.
        code: String,
        #[command(flatten)]
        requests: Requests,
    },
    /// The work is done, but the client is told that the gateway timed out.
    LostAnswer {
        #[command(flatten)]
        requests: Requests,
    },
}

#[derive(clap::Args)]
struct Requests {
    /// GET, POST, PUT or DELETE. Default: any for api-error, POST for lost-answer.
    #[arg(long)]
    method: Option<String>,
    /// Path below /v1; `*` stands for anything, as in '/servers/*/actions/*'.
    #[arg(long, default_value = "*")]
    path: String,
    /// How many requests it strikes.
    #[arg(long, default_value_t = 1)]
    count: u64,
}

/// Runs `hk-dr lab fault …` against the API at `endpoint` (`http://…/v1`).
pub fn run(args: Args, endpoint: &str, token: &str, context: &Context) -> Result<(), CliError> {
    let url = format!("{}/_lab/faults", endpoint.trim_end_matches('/').trim_end_matches("/v1"));
    let answer = match &args.command {
        FaultCommand::Add(add) => context.block_on(ask(Method::POST, &url, token, Some(body(add))))?,
        FaultCommand::List => context.block_on(ask(Method::GET, &url, token, None))?,
        FaultCommand::Lift { id: Some(id), .. } => {
            context.block_on(ask(Method::DELETE, &format!("{url}/{id}"), token, None))?
        }
        FaultCommand::Lift { id: None, .. } => context.block_on(ask(Method::DELETE, &url, token, None))?,
    };
    if context.global.json {
        println!("{answer}");
        return Ok(());
    }
    match args.command {
        FaultCommand::Add(_) => println!("fault {} is set", answer["fault"]["id"]),
        FaultCommand::List => match answer["faults"].as_array() {
            Some(faults) if !faults.is_empty() => faults.iter().for_each(|fault| println!("{}", line(fault))),
            _ => println!("no fault is set"),
        },
        FaultCommand::Lift { .. } => println!("lifted"),
    }
    Ok(())
}

fn body(add: &Add) -> Value {
    let of = |kind: &str, requests: &Requests| json!({"kind": kind, "method": requests.method, "path": requests.path, "count": requests.count});
    match add {
        Add::LocationUnavailable { location, count } => {
            json!({"kind": "location_unavailable", "location": location, "count": count})
        }
        Add::ApiError { code, requests } => {
            let mut body = of("api_error", requests);
            body["code"] = json!(code);
            body
        }
        Add::LostAnswer { requests } => of("lost_answer", requests),
    }
}

/// A fault as a person reads it.
fn line(fault: &Value) -> String {
    let text = |name: &str| fault[name].as_str().unwrap_or("any").to_owned();
    let what = match fault["kind"].as_str() {
        Some("location_unavailable") => format!("location {} is unavailable", text("location")),
        Some("api_error") => format!("{} {} answers {}", text("method"), text("path"), text("code")),
        Some("lost_answer") => format!("{} {} loses its answer", text("method"), text("path")),
        _ => fault.to_string(),
    };
    let remaining =
        fault["remaining"].as_u64().map_or_else(|| "until lifted".to_owned(), |n| format!("{n} more times"));
    format!("{}: {what}, {remaining}, struck {} times", fault["id"], fault["struck"])
}

async fn ask(method: Method, url: &str, token: &str, body: Option<Value>) -> Result<Value, CliError> {
    let unreachable = |e: reqwest::Error| {
        CliError::new(ExitKind::Unreachable, format!("the lab's API does not answer: {e}"))
            .hint("hk-dr lab status shows which labs are up")
    };
    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().map_err(unreachable)?;
    let mut request = client.request(method, url).bearer_auth(token);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let text = response.text().await.map_err(unreachable)?;
    let answer: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if status.is_success() {
        return Ok(answer);
    }
    let kind = match status.as_u16() {
        401 => ExitKind::Credentials,
        404 | 422 => ExitKind::Usage,
        _ => ExitKind::Failed,
    };
    let message = answer["error"]["message"].as_str().map_or_else(|| format!("HTTP {status}"), str::to_owned);
    Err(CliError::new(kind, format!("the lab refused: {message}")).hint("no fault was set or lifted"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
        #[command(flatten)]
        global: super::super::Global,
    }

    fn context_and_args(words: &[&str]) -> (Context, Args) {
        let cli = Cli::try_parse_from([&["fault"], words].concat()).expect("a command line");
        (Context::new(cli.global), cli.args)
    }

    /// Serves the lab's API on a thread of its own, since a command brings its own runtime.
    fn serve() -> (tokio::runtime::Runtime, hk_lab::api::Served) {
        // A second installation of the same provider is no harm.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            hk_lab::api::serve_fake(listener).unwrap()
        });
        (runtime, served)
    }

    #[test]
    fn faults_are_set_listed_and_lifted() {
        let (_runtime, served) = serve();
        let run = |words: &[&str]| {
            let (context, args) = context_and_args(words);
            run(args, &served.endpoint, &served.token, &context)
        };
        let url = served.endpoint.replace("/v1", "/_lab/faults");
        let faults = || {
            let (context, _) = context_and_args(&["list"]);
            context.block_on(ask(Method::GET, &url, &served.token, None)).unwrap()["faults"].clone()
        };
        run(&["add", "location-unavailable", "fsn1"]).unwrap();
        run(&["add", "api-error", "locked", "--path", "/servers/*", "--method", "POST", "--count", "3"]).unwrap();
        run(&["add", "lost-answer", "--name", "demo"]).unwrap();
        run(&["list"]).unwrap();
        let set = faults();
        let id = set[0]["id"].to_string();
        assert_eq!(line(&set[0]), format!("{id}: location fsn1 is unavailable, until lifted, struck 0 times"));
        assert!(line(&set[1]).ends_with("POST /servers/* answers locked, 3 more times, struck 0 times"));
        assert!(line(&set[2]).contains("POST * loses its answer, 1 more times"));

        run(&["lift", &id]).unwrap();
        assert_eq!(faults().as_array().map(Vec::len), Some(2));
        assert_eq!(run(&["lift", &id]).unwrap_err().kind, ExitKind::Usage);
        run(&["lift", "--all"]).unwrap();
        assert_eq!(faults(), json!([]));
        assert_eq!(run(&["add", "location-unavailable", "moon1"]).unwrap_err().kind, ExitKind::Usage);
    }
}
