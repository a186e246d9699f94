//! Short-lived tools (ip, nft, mkfs) with a deadline.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::{Attempt, LabError};

/// No tool the lab calls takes longer than a fraction of a second on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a tool with `input` on its standard input and returns its standard output.
///
/// # Errors
/// The tool is missing, exits with another status than 0 (its standard error is in the message), or takes over a minute.
pub(crate) async fn tool(program: &str, args: &[&str], input: &str) -> Result<String, LabError> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .attempt(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take();
    let work = async {
        if let Some(pipe) = stdin.as_mut() {
            // A tool that stops reading says why on its standard error: that is the better message.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
        drop(stdin.take());
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(DEADLINE, work).await {
        Ok(output) => output.attempt(|| format!("run {program}"))?,
        Err(_) => return Err(LabError::new(format!("{program} {} did not end within 60 s", args.join(" ")))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(LabError::new(format!("{program} {}: {} ({})", args.join(" "), message.trim(), output.status)))
}
