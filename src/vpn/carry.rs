use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::oneshot;

/// Bytes between a connection and whoever uses it, each way.
const PIPE_BYTES: usize = 256 << 10;

/// One TCP connection inside the tunnel, and the pipe to whoever asked for it.
pub(super) struct Connection {
    pub(super) handle: SocketHandle,
    state: State,
}

enum State {
    /// The other side has not answered yet.
    Opening(oneshot::Sender<io::Result<DuplexStream>>),
    Open {
        pipe: DuplexStream,
        /// Our side has written all it will.
        finished: bool,
        /// The pipe was told that the other side has finished.
        told: bool,
    },
}

/// What became of a connection.
#[derive(PartialEq, Eq)]
pub(super) enum Carried {
    Idle,
    /// Something moved: there may be packets to send.
    Moved,
    /// It has ended.
    Over,
}

impl Connection {
    pub(super) fn new(handle: SocketHandle, reply: oneshot::Sender<io::Result<DuplexStream>>) -> Self {
        Self { handle, state: State::Opening(reply) }
    }

    /// Moves what can be moved between socket and pipe.
    pub(super) fn carry(&mut self, socket: &mut tcp::Socket<'_>, cx: &mut Context<'_>) -> Carried {
        if let State::Opening(reply) = &mut self.state {
            if reply.is_closed() {
                socket.abort();
            }
            if !socket.is_open() {
                self.refuse();
                return if over(socket) { Carried::Over } else { Carried::Moved };
            }
            if !socket.may_send() {
                return Carried::Idle;
            }
            let (pipe, theirs) = tokio::io::duplex(PIPE_BYTES);
            let open = State::Open { pipe, finished: false, told: false };
            if let State::Opening(reply) = std::mem::replace(&mut self.state, open) {
                // Whoever asked may have given up this very moment; the next look finds the pipe closed.
                let _ = reply.send(Ok(theirs));
            }
        }
        let State::Open { pipe, finished, told } = &mut self.state else { return Carried::Idle };
        let mut moved = inward(socket, pipe, cx);
        moved |= outward(socket, pipe, finished, cx);
        if !*told && !socket.may_recv() && !socket.can_recv() && Pin::new(&mut *pipe).poll_shutdown(cx).is_ready() {
            *told = true;
            moved = true;
        }
        if over(socket) {
            return Carried::Over;
        }
        if moved { Carried::Moved } else { Carried::Idle }
    }

    fn refuse(&mut self) {
        let (reply, _) = oneshot::channel();
        if let State::Opening(reply) = std::mem::replace(&mut self.state, State::Opening(reply)) {
            let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "the other side refused the connection");
            let _ = reply.send(Err(refused));
        }
    }
}

/// Nothing is to be sent or handed on any more. One that was aborted still owes the other side a word.
fn over(socket: &tcp::Socket<'_>) -> bool {
    match socket.state() {
        tcp::State::TimeWait => !socket.can_recv(),
        tcp::State::Closed => !socket.can_recv() && socket.remote_endpoint().is_none(),
        _ => false,
    }
}

/// From the other side into the pipe.
fn inward(socket: &mut tcp::Socket<'_>, pipe: &mut DuplexStream, cx: &mut Context<'_>) -> bool {
    let mut moved = false;
    while socket.can_recv() {
        let taken = socket.recv(|bytes| match Pin::new(&mut *pipe).poll_write(cx, bytes) {
            Poll::Ready(Ok(count)) => (count, Some(count)),
            // Nobody reads any more.
            Poll::Ready(Err(_)) => (bytes.len(), None),
            Poll::Pending => (0, Some(0)),
        });
        match taken {
            Ok(Some(0)) | Err(_) => break,
            Ok(Some(_)) => moved = true,
            Ok(None) => {
                socket.abort();
                return true;
            }
        }
    }
    moved
}

/// From the pipe to the other side.
fn outward(socket: &mut tcp::Socket<'_>, pipe: &mut DuplexStream, finished: &mut bool, cx: &mut Context<'_>) -> bool {
    let mut moved = false;
    while !*finished && socket.can_send() {
        let given = socket.send(|room| {
            let mut room = ReadBuf::new(room);
            match Pin::new(&mut *pipe).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) => (room.filled().len(), Some(room.filled().len())),
                Poll::Ready(Err(_)) => (0, Some(0)),
                Poll::Pending => (0, None),
            }
        });
        match given {
            Ok(Some(0)) => {
                *finished = true;
                socket.close();
                moved = true;
            }
            Ok(Some(_)) => moved = true,
            Ok(None) | Err(_) => break,
        }
    }
    moved
}
