//! A headless Chromium, spoken to over a pipe in its DevTools protocol:
//! <https://chromedevtools.github.io/devtools-protocol/>. Messages are JSON, each ended by a zero byte.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Debian's names, then those of others.
const PROGRAMS: [&str; 4] = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
/// A browser starts in a second or two; a busy machine takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// One page in a browser of its own.
pub struct Page {
    browser: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Value,
    calls: u64,
    /// What the page complained of on its console.
    pub complaints: Vec<Value>,
    /// The browser's profile.
    _home: TempDir,
}

/// The browser of this host, if it has one.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let all = || std::env::split_paths(&path);
    PROGRAMS.iter().find_map(|program| all().map(|dir| dir.join(program)).find(|file| file.is_file()))
}

impl Page {
    /// Opens an address in a window of this size.
    pub async fn open(program: &PathBuf, url: &str, width: u32, height: u32) -> Self {
        let home = tempfile::tempdir().unwrap();
        // The pipe's ends have to be descriptors 3 and 4.
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"])
            .arg(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--remote-debugging-pipe",
                "--disable-gpu",
                "--hide-scrollbars",
                "--disable-lcd-text",
            ])
            .args(["--disable-background-networking", "--no-proxy-server", "--no-first-run"])
            .arg(format!("--user-data-dir={}", home.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut browser = command.spawn().unwrap();
        let (input, output) = (browser.stdin.take().unwrap(), BufReader::new(browser.stdout.take().unwrap()));
        let mut page =
            Self { browser, input, output, session: Value::Null, calls: 0, complaints: Vec::new(), _home: home };
        let target = page.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let to = json!({"targetId": target["targetId"], "flatten": true});
        page.session = page.call("Target.attachToTarget", to).await["sessionId"].clone();
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            page.call(domain, json!({})).await;
        }
        page.resize(width, height).await;
        page.call("Page.navigate", json!({"url": url})).await;
        page
    }

    pub async fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// What an expression yields in the page.
    pub async fn eval(&mut self, expression: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true})).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text that a person sees.
    pub async fn text(&mut self) -> String {
        self.eval("document.body ? document.body.innerText : ''").await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until all of these are to be read.
    pub async fn shows(&mut self, wanted: &[&str]) {
        let end = Instant::now() + DEADLINE;
        loop {
            let text = self.text().await;
            let missing: Vec<_> = wanted.iter().filter(|w| !text.contains(**w)).collect();
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{missing:?} not to be seen in:\n{text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the window shows, as PNG.
    pub async fn screenshot(&mut self) -> Vec<u8> {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png", "optimizeForSpeed": false})).await;
        let data = answer["data"].as_str().expect("a picture");
        base64::engine::general_purpose::STANDARD.decode(data).expect("base64")
    }

    pub async fn close(mut self) {
        // It answers or is gone before that; either will do.
        let _ = self.input.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0").await;
        if timeout(DEADLINE, self.browser.wait()).await.is_err() {
            self.browser.kill().await.unwrap();
        }
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": params});
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).await.expect("the browser runs");
        loop {
            let mut bytes = Vec::new();
            let read = timeout(DEADLINE, self.output.read_until(0, &mut bytes)).await.expect("an answer in time");
            assert!(read.expect("the browser runs") > 0, "the browser ended at {method}");
            bytes.pop();
            let answer: Value = serde_json::from_slice(&bytes).expect("JSON");
            if answer["id"] == self.calls {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            if answer["method"] == "Runtime.exceptionThrown" || answer["params"]["entry"]["level"] == "error" {
                self.complaints.push(answer);
            }
        }
    }
}
