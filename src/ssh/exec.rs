use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::time::timeout;

use super::connection::{Session, unreachable};
use crate::ports::{ByteStream, ErrorCode, Host, Output, PortError, PortResult};

/// Most that a command may print on either stream.
pub(super) const OUTPUT_MAX_BYTES: usize = 4 << 20;

/// Input that is in memory already, as the stream `execute` takes.
pub(super) fn input(data: impl Into<Bytes>) -> ByteStream {
    Box::pin(futures::stream::iter([Ok(data.into())]))
}

/// Runs one shell command to its end, feeding its standard input with flow control, and collects what it prints. After
/// the deadline the machine kills the command's process group by itself: closing a channel leaves processes running, and
/// sshd delivers no signals in root's sessions. When this future is dropped the channel is closed.
pub(super) async fn execute(
    session: Session,
    host: &Host,
    command: &str,
    input: ByteStream,
    deadline: Duration,
) -> PortResult<Output> {
    let (read, write) = session.channel.split();
    let mut closer = Closer::new(write);
    let command = limited(command, deadline);
    let result = match timeout(deadline, converse(host, &command, input, read, &closer)).await {
        Ok(result) => result,
        Err(_) => Err(PortError::new(
            ErrorCode::Timeout,
            format!("a command on {} did not end within {} s; it is being stopped", host.name, deadline.as_secs_f32()),
        )),
    };
    if result.is_ok() {
        closer.write = None;
    }
    drop(session.permit);
    result
}

/// The command, killed by the machine itself after the deadline.
pub(super) fn limited(command: &str, deadline: Duration) -> String {
    format!("exec timeout -s KILL {} /bin/sh -c {}", deadline.as_secs() + 1, quoted(command))
}

async fn converse(
    host: &Host,
    command: &str,
    mut input: ByteStream,
    mut read: ChannelReadHalf,
    closer: &Closer,
) -> PortResult<Output> {
    let Some(write) = &closer.write else { return Err(lost(host)) };
    write.exec(true, command).await.map_err(|_| lost(host))?;
    let feed = async {
        while let Some(chunk) = input.next().await {
            // A failing write means that the command or the connection ended, which the reading side reports.
            if write.data_bytes(chunk?).await.is_err() {
                return Ok(());
            }
        }
        let _ = write.eof().await;
        Ok::<_, PortError>(())
    };
    let collect = collect(host, &mut read);
    tokio::pin!(feed, collect);
    let mut fed = false;
    loop {
        tokio::select! {
            result = &mut feed, if !fed => {
                result?;
                fed = true;
            }
            output = &mut collect => return output,
        }
    }
}

async fn collect(host: &Host, read: &mut ChannelReadHalf) -> PortResult<Output> {
    let mut output = Output { status: 0, stdout: Vec::new(), stderr: Vec::new() };
    let mut ended = false;
    while let Some(message) = read.wait().await {
        match message {
            ChannelMsg::Data { data } => append(host, &mut output.stdout, &data)?,
            ChannelMsg::ExtendedData { data, ext: 1 } => append(host, &mut output.stderr, &data)?,
            ChannelMsg::ExitStatus { exit_status } => {
                output.status = i32::try_from(exit_status).unwrap_or(i32::MAX);
                ended = true;
            }
            ChannelMsg::ExitSignal { signal_name, .. } => {
                output.status = 128 + number(&signal_name);
                output.stderr.extend_from_slice(format!("killed by signal {signal_name:?}\n").as_bytes());
                ended = true;
            }
            ChannelMsg::Failure => {
                return Err(PortError::new(ErrorCode::Forbidden, format!("{}: sshd refused a command", host.name)));
            }
            _ => {}
        }
    }
    if ended { Ok(output) } else { Err(lost(host)) }
}

fn append(host: &Host, to: &mut Vec<u8>, data: &[u8]) -> PortResult<()> {
    if to.len() + data.len() > OUTPUT_MAX_BYTES {
        return Err(PortError::new(
            ErrorCode::LimitExceeded,
            format!("a command on {} printed more than {} MiB; it was told to stop", host.name, OUTPUT_MAX_BYTES >> 20),
        ));
    }
    to.extend_from_slice(data);
    Ok(())
}

pub(super) fn lost(host: &Host) -> PortError {
    unreachable(format!(
        "the connection to {} ({}) was lost while a command ran; it may or may not have finished",
        host.name, host.address
    ))
}

pub(super) fn number(signal: &Sig) -> i32 {
    match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        _ => 127,
    }
}

/// A word for a POSIX shell.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Closes the channel when dropped before it was disarmed.
pub(super) struct Closer {
    write: Option<ChannelWriteHalf<Msg>>,
}

impl Closer {
    pub(super) fn new(write: ChannelWriteHalf<Msg>) -> Self {
        Self { write: Some(write) }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        let Some(write) = self.write.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // A dead connection takes no message, and nothing waits for this.
        runtime.spawn(async move { timeout(Duration::from_secs(5), write.close()).await });
    }
}
