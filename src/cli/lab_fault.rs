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
    Add(Set),
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

#[derive(clap::Args)]
struct Set {
    #[command(subcommand)]
    what: Add,
    /// The fault lifts itself after this time, such as 30s, 5m or 1h.
    #[arg(long = "for", global = true, value_name = "TIME", value_parser = seconds)]
    length: Option<f64>,
    /// How likely a request that fits is struck, from 0 to 1.
    #[arg(long, global = true)]
    probability: Option<f64>,
    /// Repeats the dice of an earlier fault with a probability; `list` shows it.
    #[arg(long, global = true, requires = "probability")]
    seed: Option<u64>,
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
    /// Answers take their time.
    SlowAnswer {
        milliseconds: u64,
        #[command(flatten)]
        requests: Requests,
    },
    /// No request of the hour is left.
    RateLimitExhausted,
    /// Actions end in error before they have an effect.
    ActionError {
        /// As in `action.command`; `*` stands for anything, as in 'attach_*'.
        command: String,
        /// How many actions it strikes; one unless it is timed or diced for.
        #[arg(long)]
        count: Option<u64>,
    },
    /// Actions run until the fault is lifted.
    ActionStuck {
        /// As in `action.command`; `*` stands for anything.
        command: String,
    },
    /// Servers of a location stand still; nothing there starts or ends.
    LocationFrozen { location: String },
    /// A location has no power; what ran boots when it is back.
    LocationOff { location: String },
    /// Nothing passes between a location and another one, `others` or the `internet`.
    LinkCut { location: String, to: String },
    /// Packets get lost there.
    LinkLoss { location: String, to: String, percent: f64 },
    /// What is above this rate is dropped there, in each direction.
    LinkRate { location: String, to: String, kbit: u32 },
    /// Packets take longer there, in each direction.
    LinkDelay { location: String, to: String, milliseconds: u32 },
    /// A volume (name or id) answers I/O errors.
    VolumeError { volume: String },
    /// A server's (name or id) root disk has no free space.
    DiskFull { server: String },
    /// A server's (name or id) wall clock is ahead by a time such as 90s or 1h, or behind as in -90s.
    ClockSkew {
        server: String,
        #[arg(value_parser = offset, allow_hyphen_values = true)]
        offset: i64,
    },
    /// S3 answers an error before anything happens.
    S3Error {
        /// Such as `SlowDown` or `InternalError`.
        code: String,
        #[arg(long, default_value_t = 500)]
        status: u16,
        #[command(flatten)]
        requests: Requests,
    },
    /// S3's answers take their time.
    S3Slow {
        milliseconds: u64,
        #[command(flatten)]
        requests: Requests,
    },
    /// Bodies that S3 sends break off after half.
    S3Truncated {
        #[command(flatten)]
        requests: Requests,
    },
    /// One bit of each body that S3 sends is wrong.
    S3Corrupt {
        #[command(flatten)]
        requests: Requests,
    },
    /// S3 refuses whatever would change something.
    S3ReadOnly,
}

#[derive(clap::Args)]
struct Requests {
    /// GET, POST, PUT or DELETE. Default: any, but POST for lost-answer.
    #[arg(long)]
    method: Option<String>,
    /// Path below /v1 (of S3: /bucket/key); `*` stands for anything, as in '/servers/*/actions/*'.
    #[arg(long, default_value = "*")]
    path: String,
    /// How many requests it strikes; one unless it is timed or diced for.
    #[arg(long)]
    count: Option<u64>,
}

/// Seconds of a time such as 30s, 5m or 1h.
fn seconds(text: &str) -> Result<f64, String> {
    let wrong = || format!("'{text}' is no time such as 30s, 5m or 1h");
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    number.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0).map(|n| n * factor).ok_or_else(wrong)
}

/// Milliseconds of a time that may be negative.
fn offset(text: &str) -> Result<i64, String> {
    let (sign, length) = text.strip_prefix('-').map_or((1.0, text), |length| (-1.0, length));
    seconds(length).map(|seconds| (sign * seconds * 1000.0).round() as i64)
}

/// Runs `hk-dr lab fault …` against the API at `endpoint` (`http://…/v1`).
pub fn run(args: Args, endpoint: &str, token: &str, context: &Context) -> Result<(), CliError> {
    let url = format!("{}/_lab/faults", endpoint.trim_end_matches('/').trim_end_matches("/v1"));
    let answer = match &args.command {
        FaultCommand::Add(add) => context.block_on(ask(Method::POST, &url, token, Some(request(add))))?,
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
        FaultCommand::Add(_) => println!("fault {}", line(&answer["fault"])),
        FaultCommand::List => match answer["faults"].as_array() {
            Some(faults) if !faults.is_empty() => faults.iter().for_each(|fault| println!("{}", line(fault))),
            _ => println!("no fault is set"),
        },
        FaultCommand::Lift { .. } => println!("lifted"),
    }
    Ok(())
}

/// The request for a fault.
fn request(set: &Set) -> Value {
    let mut body = body(&set.what);
    for (name, value) in
        [("for_seconds", json!(set.length)), ("probability", json!(set.probability)), ("seed", json!(set.seed))]
    {
        if !value.is_null() {
            body[name] = value;
        }
    }
    body
}

fn body(add: &Add) -> Value {
    let of = |kind: &str, requests: &Requests, more: Value| {
        let mut body = json!({"kind": kind, "method": requests.method, "path": requests.path, "count": requests.count});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        body
    };
    match add {
        Add::LocationUnavailable { location, count } => {
            json!({"kind": "location_unavailable", "location": location, "count": count})
        }
        Add::ApiError { code, requests } => of("api_error", requests, json!({"code": code})),
        Add::LostAnswer { requests } => of("lost_answer", requests, json!({})),
        Add::SlowAnswer { milliseconds, requests } => of("slow_answer", requests, json!({"delay_ms": milliseconds})),
        Add::RateLimitExhausted => json!({"kind": "rate_limit_exhausted"}),
        Add::ActionError { command, count } => json!({"kind": "action_error", "command": command, "count": count}),
        Add::ActionStuck { command } => json!({"kind": "action_stuck", "command": command}),
        Add::LocationFrozen { location } => json!({"kind": "location_frozen", "location": location}),
        Add::LocationOff { location } => json!({"kind": "location_off", "location": location}),
        Add::LinkCut { location, to } => json!({"kind": "link_cut", "location": location, "to": to}),
        Add::LinkLoss { location, to, percent } => {
            json!({"kind": "link_loss", "location": location, "to": to, "percent": percent})
        }
        Add::LinkRate { location, to, kbit } => {
            json!({"kind": "link_rate", "location": location, "to": to, "kbit": kbit})
        }
        Add::LinkDelay { location, to, milliseconds } => {
            json!({"kind": "link_delay", "location": location, "to": to, "delay_ms": milliseconds})
        }
        Add::VolumeError { volume } => json!({"kind": "volume_error", "volume": volume}),
        Add::DiskFull { server } => json!({"kind": "disk_full", "server": server}),
        Add::ClockSkew { server, offset } => json!({"kind": "clock_skew", "server": server, "offset_ms": offset}),
        Add::S3Error { code, status, requests } => of("s3_error", requests, json!({"code": code, "status": status})),
        Add::S3Slow { milliseconds, requests } => of("s3_slow", requests, json!({"delay_ms": milliseconds})),
        Add::S3Truncated { requests } => of("s3_truncated", requests, json!({})),
        Add::S3Corrupt { requests } => of("s3_corrupt", requests, json!({})),
        Add::S3ReadOnly => json!({"kind": "s3_read_only"}),
    }
}

/// A fault as a person reads it.
fn line(fault: &Value) -> String {
    let text = |name: &str| fault[name].as_str().unwrap_or("any").to_owned();
    let number = |name: &str| fault[name].to_string();
    let link = || format!("{} ↔ {}", text("location"), text("to"));
    let requests = || format!("{} {}", text("method"), text("path"));
    let what = match fault["kind"].as_str().unwrap_or_default() {
        "location_unavailable" => format!("location {} is unavailable", text("location")),
        "api_error" => format!("{} answers {}", requests(), text("code")),
        "lost_answer" => format!("{} loses its answer", requests()),
        "slow_answer" => format!("{} takes {} ms more", requests(), number("delay_ms")),
        "rate_limit_exhausted" => "no request of the hour is left".to_owned(),
        "action_error" => format!("actions {} end in error", text("command")),
        "action_stuck" => format!("actions {} never end", text("command")),
        "location_frozen" => format!("location {} stands still", text("location")),
        "location_off" => format!("location {} has no power", text("location")),
        "link_cut" => format!("{}: nothing passes", link()),
        "link_loss" => format!("{}: {} % of packets get lost", link(), number("percent")),
        "link_rate" => format!("{}: {} kbit/s at most", link(), number("kbit")),
        "link_delay" => format!("{}: packets take {} ms more", link(), number("delay_ms")),
        "volume_error" => format!("volume {} answers I/O errors", number("volume")),
        "disk_full" => format!("the disk of server {} is full", number("server")),
        "clock_skew" => {
            format!("the clock of server {} is off by {} ms", number("server"), number("offset_ms"))
        }
        "s3_error" => format!("S3: {} answers {}", requests(), text("code")),
        "s3_slow" => format!("S3: {} takes {} ms more", requests(), number("delay_ms")),
        "s3_truncated" => format!("S3: {} breaks off", requests()),
        "s3_corrupt" => format!("S3: {} is damaged", requests()),
        "s3_read_only" => "S3 refuses writes".to_owned(),
        _ => fault.to_string(),
    };
    let mut remaining =
        fault["remaining"].as_u64().map_or_else(|| "until lifted".to_owned(), |n| format!("{n} more times"));
    if let Some(until) = fault["until"].as_str() {
        remaining = format!("{remaining} or {until}");
    }
    if let (Some(probability), Some(seed)) = (fault["probability"].as_f64(), fault["seed"].as_u64()) {
        remaining = format!("{remaining}, with probability {probability} (seed {seed})");
    }
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
        run(&["add", "slow-answer", "20", "--for", "1h", "--probability", "0.5", "--seed", "7"]).unwrap();
        run(&["list"]).unwrap();
        let set = faults();
        let id = set[0]["id"].to_string();
        assert_eq!(line(&set[0]), format!("{id}: location fsn1 is unavailable, until lifted, struck 0 times"));
        assert!(line(&set[1]).ends_with("POST /servers/* answers locked, 3 more times, struck 0 times"));
        assert!(line(&set[2]).contains("POST * loses its answer, 1 more times"));
        assert!(line(&set[3]).contains("takes 20 ms more") && line(&set[3]).contains("(seed 7)"), "{}", line(&set[3]));

        run(&["lift", &id]).unwrap();
        assert_eq!(faults().as_array().map(Vec::len), Some(3));
        assert_eq!(run(&["lift", &id]).unwrap_err().kind, ExitKind::Usage);
        run(&["lift", "--all"]).unwrap();
        assert_eq!(faults(), json!([]));
        assert_eq!(run(&["add", "location-unavailable", "moon1"]).unwrap_err().kind, ExitKind::Usage);
    }

    #[test]
    fn a_clock_may_be_behind() {
        let (_, args) = context_and_args(&["add", "clock-skew", "m1", "-1.5h"]);
        let FaultCommand::Add(set) = args.command else { unreachable!("it is an addition") };
        assert_eq!(request(&set)["offset_ms"], -5_400_000);
        assert_eq!(offset("90s"), Ok(90_000));
        assert!(offset("--1s").is_err() && offset("soon").is_err());
    }
}
