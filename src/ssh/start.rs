use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::unfold;
use russh::{ChannelMsg, ChannelReadHalf};
use tokio::time::{Instant, timeout_at};

use super::connection::{Connection, Session};
use super::exec::{Closer, OUTPUT_MAX_BYTES, limited, lost, number};
use crate::ports::{ErrorCode, Host, PortError, PortResult, Printed, PrintedStream};

/// Lines of standard error that a failure is told with.
const LAST_LINES: usize = 5;

/// Starts a command over a connection of its own, feeds it, and follows what it prints.
pub(super) async fn start(
    connection: Connection,
    session: Session,
    host: &Host,
    command: &str,
    input: Bytes,
    deadline: Duration,
) -> PortResult<PrintedStream> {
    let end = Instant::now() + deadline;
    let (read, write) = session.channel.split();
    let command = limited(command, deadline);
    let begin = async {
        write.exec(true, command).await?;
        write.data_bytes(input).await?;
        write.eof().await
    };
    timeout_at(end, begin).await.map_err(|_| late(host, deadline))?.map_err(|_| lost(host))?;
    let running = Running {
        host: host.clone(),
        end,
        deadline,
        read,
        heard: VecDeque::new(),
        line: Vec::new(),
        last: VecDeque::new(),
        status: None,
        _closer: Closer::new(write),
        _permit: session.permit,
        _connection: connection,
    };
    Ok(Box::pin(unfold(Some(running), |running| async move {
        let mut running = running?;
        match running.next().await {
            Ok(Some(printed)) => Some((Ok(printed), Some(running))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })))
}

/// A command whose output is followed.
struct Running {
    host: Host,
    end: Instant,
    deadline: Duration,
    read: ChannelReadHalf,
    /// What came and was not handed on yet.
    heard: VecDeque<Printed>,
    /// The beginning of a line of standard error.
    line: Vec<u8>,
    last: VecDeque<String>,
    status: Option<i32>,
    // Dropped in this order: the channel is closed while its connection lives.
    _closer: Closer,
    _permit: tokio::sync::OwnedSemaphorePermit,
    _connection: Connection,
}

impl Running {
    async fn next(&mut self) -> PortResult<Option<Printed>> {
        loop {
            if let Some(printed) = self.heard.pop_front() {
                return Ok(Some(printed));
            }
            let message = timeout_at(self.end, self.read.wait()).await.map_err(|_| late(&self.host, self.deadline))?;
            match message {
                Some(ChannelMsg::Data { data }) => return Ok(Some(Printed::Data(data))),
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => self.said(&data)?,
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    self.status = Some(i32::try_from(exit_status).unwrap_or(i32::MAX));
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => self.status = Some(128 + number(&signal_name)),
                Some(ChannelMsg::Failure) => {
                    let message = format!("{}: sshd refused a command", self.host.name);
                    return Err(PortError::new(ErrorCode::Forbidden, message));
                }
                Some(_) => {}
                None => return self.ended(),
            }
        }
    }

    fn said(&mut self, data: &[u8]) -> PortResult<()> {
        if self.line.len() + data.len() > OUTPUT_MAX_BYTES {
            let message = format!("a command on {} printed an endless line; it was told to stop", self.host.name);
            return Err(PortError::new(ErrorCode::LimitExceeded, message));
        }
        self.line.extend_from_slice(data);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            self.heard_line(&line[..end]);
        }
        Ok(())
    }

    fn heard_line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line).into_owned();
        // JSON is for programs.
        if !line.starts_with('{') {
            self.last.push_back(line.clone());
        }
        if self.last.len() > LAST_LINES {
            self.last.pop_front();
        }
        self.heard.push_back(Printed::Line(line));
    }

    /// All was said; how it ended decides.
    fn ended(&mut self) -> PortResult<Option<Printed>> {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.heard_line(&line);
        }
        match self.status {
            Some(0) => Ok(self.heard.pop_front()),
            Some(status) => {
                let said = Vec::from(std::mem::take(&mut self.last)).join("; ");
                let killed = if status == 128 + 9 { " (killed)" } else { "" };
                let said = if said.is_empty() { said } else { format!(": {said}") };
                let message = format!("a command on {} ended with status {status}{killed}{said}", self.host.name);
                Err(PortError::new(ErrorCode::Local, message))
            }
            None => Err(lost(&self.host)),
        }
    }
}

fn late(host: &Host, deadline: Duration) -> PortError {
    let seconds = deadline.as_secs_f32();
    let message = format!("a command on {} did not end within {seconds} s; it is being stopped", host.name);
    PortError::new(ErrorCode::Timeout, message)
}
