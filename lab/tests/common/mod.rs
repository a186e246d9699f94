//! A lab for a test binary: started with the real processes, driven over HTTP and `exec`, and looked for afterwards.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hk_lab::control::{self, Tether};
use hk_lab::{LabError, LabInfo, LabOptions};
use serde_json::{Value, json};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_hk-labd");

/// A lab that ends with the test, however the test ends.
pub struct Lab {
    pub info: LabInfo,
    /// None: it is kept, and does not end with this process.
    _tether: Option<Tether>,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    pub fn up(name: &str) -> Self {
        Self::try_up(name).expect("the lab comes up")
    }

    /// A lab that is kept when it ends; `control::destroy` removes it.
    pub fn up_durable(name: &str) -> Self {
        Self::try_up_durable(name).expect("the lab comes up")
    }

    pub fn try_up(name: &str) -> Result<Self, LabError> {
        let options = LabOptions { name: name.to_owned(), cache_dir: cache_dir(), state_dir: state_dir() };
        let mut daemon = Command::new(PROGRAM);
        daemon.arg("daemon").env("HK_LAB_ENTRANCE", "1");
        control::up_tethered(&options, daemon, &mut |line| eprintln!("{line}"))
            .map(|(info, tether)| Self::around(info, Some(tether)))
    }

    pub fn try_up_durable(name: &str) -> Result<Self, LabError> {
        let options = LabOptions { name: name.to_owned(), cache_dir: cache_dir(), state_dir: state_dir() };
        let mut daemon = Command::new(PROGRAM);
        daemon.arg("daemon").env("HK_LAB_ENTRANCE", "1");
        control::up_durable(&options, daemon, &mut |line| eprintln!("{line}")).map(|info| Self::around(info, None))
    }

    fn around(info: LabInfo, tether: Option<Tether>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { info, _tether: tether, client: reqwest::Client::new(), runtime }
    }

    /// As `call`, whatever the status; none if nobody answers.
    pub fn try_call(&self, method: &str, path: &str, body: Option<Value>) -> Option<Value> {
        let url = format!("http://{}/v1{path}", self.info.api_published);
        let mut request = self.client.request(method.parse().expect("a method"), url).bearer_auth(&self.info.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let text = self.runtime.block_on(async { request.send().await.ok()?.text().await.ok() })?;
        Some(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Calls the cloud's API as a client on the host does.
    pub fn call(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, text) = self.ask(method, &format!("/v1{path}"), body);
        assert!((200..300).contains(&status), "{path}: {status}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Calls the lab's own API.
    pub fn own(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, text) = self.ask(method, &format!("/_lab{path}"), body);
        assert!((200..300).contains(&status), "{path}: {status}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// The message with which a fault is refused.
    pub fn refused_own(&self, fault: Value) -> String {
        let (status, text) = self.ask("POST", "/_lab/faults", Some(fault));
        assert!(status >= 400, "{status}: {text}");
        text
    }

    /// The message with which a request, or the action it starts, fails.
    pub fn refused(&self, method: &str, path: &str, body: Value) -> String {
        let (status, text) = self.ask(method, &format!("/v1{path}"), Some(body));
        if status >= 400 {
            return text;
        }
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let id = answer["action"]["id"].as_u64().expect("an action");
        let mut message = String::new();
        eventually("the action ends", || {
            let action = self.call("GET", &format!("/actions?id={id}"), None)["actions"][0].clone();
            message = action["error"]["message"].as_str().unwrap_or_default().to_owned();
            action["status"] != "running"
        });
        assert!(!message.is_empty(), "the action succeeded");
        message
    }

    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
        let url = format!("http://{}{path}", self.info.api_published);
        let method = method.parse().expect("a method");
        let mut request = self.client.request(method, url).bearer_auth(&self.info.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.runtime.block_on(async {
            let answer = request.send().await.expect("the API answers");
            (answer.status().as_u16(), answer.text().await.expect("a body"))
        })
    }

    /// Orders an effect from the machine room itself, past the cloud's API.
    pub fn effect(&self, order: Value) -> Value {
        use std::io::{Read, Write};
        let path = Path::new("/run/hk-dr/labs").join(&self.info.name).join("entrance");
        let mut stream = std::os::unix::net::UnixStream::connect(path).expect("the entrance is open");
        stream.write_all(order.to_string().as_bytes()).expect("an order is taken");
        stream.shutdown(std::net::Shutdown::Write).expect("an order ends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["error"], Value::Null, "{order}");
        answer["ok"].take()
    }

    /// Waits for the actions in an answer.
    pub fn done(&self, answer: &Value) {
        let mut ids: Vec<u64> = answer["action"]["id"].as_u64().into_iter().collect();
        for list in ["actions", "next_actions"] {
            ids.extend(answer[list].as_array().into_iter().flatten().filter_map(|a| a["id"].as_u64()));
        }
        for id in ids {
            eventually(&format!("action {id} ends"), || {
                let action = self.call("GET", &format!("/actions?id={id}"), None)["actions"][0].clone();
                assert_ne!(action["status"], "error", "{action}");
                action["status"] == "success"
            });
        }
    }

    pub fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.call("POST", path, Some(body));
        self.done(&answer);
        answer
    }

    pub fn delete(&self, path: &str) {
        let answer = self.call("DELETE", path, None);
        self.done(&answer);
    }

    /// The id of a network with one subnet.
    pub fn network(&self) -> Value {
        let subnet = json!({"type": "cloud", "ip_range": "10.0.0.0/24", "network_zone": "eu-central"});
        let body = json!({"name": "n", "ip_range": "10.0.0.0/16", "subnets": [subnet]});
        self.post("/networks", body)["network"]["id"].clone()
    }

    /// A server's id and public address.
    pub fn server(&self, name: &str, location: &str, more: Value) -> (u64, String) {
        let mut body = json!({"name": name, "server_type": "cx23", "image": "debian-12", "location": location});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let answer = self.post("/servers", body);
        let server = &answer["server"];
        let address = server["public_net"]["ipv4"]["ip"].as_str().expect("a public address").to_owned();
        (server["id"].as_u64().expect("an id"), address)
    }

    /// Runs a shell command at a place (`operator`, `server:<name>`); its status and output.
    pub fn sh(&self, place: &str, script: &str) -> (i32, String) {
        let output = Command::new(PROGRAM)
            .args(["exec", &self.info.name, place, "sh", "-c", script])
            .stdin(Stdio::null())
            .output()
            .expect("hk-labd runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text.trim().to_owned())
    }

    /// Runs a shell command that must succeed.
    pub fn ok(&self, place: &str, script: &str) -> String {
        let (status, text) = self.sh(place, script);
        assert_eq!(status, 0, "{script}: {text}");
        text
    }

    pub fn answers_ssh(&self, from: &str, address: &str) -> bool {
        let script = format!("exec timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/22; head -c 4 <&3'");
        self.sh(from, &script).1.contains("SSH-")
    }

    pub fn wait_for_ssh(&self, address: &str) {
        eventually(&format!("{address} answers on port 22"), || self.answers_ssh("operator", address));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A test that ended it already finds nothing here.
        let _ = control::down(&self.info.name);
    }
}

pub fn cache_dir() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/hk-dr");
    std::env::var_os("HK_DR_CACHE").map_or_else(home, PathBuf::from)
}

pub fn state_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// Tries for a minute.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What of a lab is on the host: anything here after its end is a leak.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Traces {
    pub processes: Vec<i32>,
    pub mounts: Vec<String>,
    pub loops: Vec<String>,
    pub groups: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
}

impl Traces {
    /// Looks for everything of the lab whose init has (or had) this process namespace.
    pub fn of(info: &LabInfo, spaces: &Spaces) -> Self {
        let disks = info.disks.display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mut files = vec![PathBuf::from("/run/hk-dr/labs").join(&info.name), info.disks.clone()];
        files.retain(|path| path.exists());
        Self {
            processes: spaces.processes(info.guardian_pid),
            mounts: mounts.lines().filter(|l| l.contains(&disks)).map(str::to_owned).collect(),
            loops: loops(&disks),
            groups: groups(&info.name),
            files,
        }
    }
}

/// The namespaces of a living lab, by which its processes are known.
pub struct Spaces {
    pid: PathBuf,
    net: PathBuf,
}

impl Spaces {
    pub fn of(info: &LabInfo) -> Self {
        let read = |kind: &str| fs::read_link(format!("/proc/{}/ns/{kind}", info.init_pid)).expect("a namespace");
        Self { pid: read("pid"), net: read("net") }
    }

    fn processes(&self, guardian: i32) -> Vec<i32> {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|e| e.file_name().to_string_lossy().parse::<i32>().ok());
        let is = |pid: &i32, kind: &str, space: &Path| {
            fs::read_link(format!("/proc/{pid}/ns/{kind}")).is_ok_and(|link| link == space)
        };
        let guards = |pid: &i32| {
            *pid == guardian
                && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.windows(7).any(|w| w == b"hk-labd"))
        };
        pids.filter(|pid| is(pid, "pid", &self.pid) || is(pid, "net", &self.net) || guards(pid)).collect()
    }
}

fn loops(disks: &str) -> Vec<String> {
    let entries = fs::read_dir("/sys/block").expect("/sys/block").flatten();
    let files = entries.filter_map(|e| fs::read_to_string(e.path().join("loop/backing_file")).ok());
    files.filter(|file| file.contains(disks)).collect()
}

fn groups(name: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let trees = fs::read_dir(top).expect("control groups").flatten().map(|e| e.path());
    let all = trees.chain([top.to_owned()]).map(|tree| tree.join("hk-dr-lab").join(name));
    all.filter(|path| path.exists()).collect()
}
