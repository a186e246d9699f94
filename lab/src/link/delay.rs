//! Packets that take longer: the kernel hands those that are marked to this process, which lets them go on later.
//!
//! Each mark's bit stands for one fault; a packet that several faults strike waits for all of them. Only a packet's
//! number and mark come here, its content stays in the kernel. It goes on where it was held, so firewalls and other faults
//! apply as ever. No netem is needed, of which one would be needed at each cable, and which delays nothing that is for the
//! router itself (the cloud's API, S3). Source: the kernel's `include/uapi/linux/netfilter/nfnetlink_queue.h`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::error::LabError;
use crate::{fabric, netns, run};

/// How many faults may delay at the same time: bits of a mark.
pub(super) const MAX: usize = 31;
/// Packets that wait in one network, and no more: what comes then is dropped, as by a real link's buffer.
const WAITING_MAX: u32 = 16_384;
/// What the kernel may have told before this process reads it.
const RECEIVE_BYTES: usize = 4 << 20;
const QUEUE: u16 = 7;

/// Where marked packets are taken out: after the firewalls have had their say.
const RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
                     -A INPUT -m mark ! --mark 0 -j NFQUEUE --queue-num 7\n\
                     -A FORWARD -m mark ! --mark 0 -j NFQUEUE --queue-num 7\n\
                     -A OUTPUT -m mark ! --mark 0 -j NFQUEUE --queue-num 7\nCOMMIT\n";

/// The networks in which packets wait.
#[derive(Default)]
pub(crate) struct Delays {
    spaces: Mutex<HashMap<String, watch::Sender<Vec<Duration>>>>,
}

impl Delays {
    /// From now on packets of this network wait: for each bit of their mark as long as the list says.
    pub(super) async fn hold(&self, space: &str, delays: Vec<Duration>) -> Result<(), LabError> {
        let mut spaces = self.spaces.lock().await;
        if let Some(held) = spaces.get(space) {
            held.send_replace(delays);
            return Ok(());
        }
        let socket = netns::within(space, || listen(QUEUE))?;
        // SAFETY: an owned descriptor is the same one, and open, for as long as it lives.
        let socket = unsafe { AsyncFd::register(socket) };
        let socket = socket.map_err(|error| LabError::new(format!("watch a packet queue: {error}")))?;
        let (sender, receiver) = watch::channel(delays);
        tokio::spawn(wait_out(socket, receiver));
        // One listener of each network is enough, whatever of this fails.
        spaces.insert(space.to_owned(), sender);
        let net = format!("--net={}", netns::path(space).display());
        run::tool("nsenter", &[&net, "iptables-nft-restore"], RULES).await.map_err(install_iptables)?;
        if fabric::has_ipv6() {
            run::tool("nsenter", &[&net, "ip6tables-nft-restore"], RULES).await.map_err(install_iptables)?;
        }
        Ok(())
    }

    /// Nothing of this network waits any more. What waits now goes on at once.
    pub(super) async fn let_go(&self, space: &str) -> Result<(), LabError> {
        let mut spaces = self.spaces.lock().await;
        if !spaces.contains_key(space) {
            return Ok(());
        }
        let families: &[&str] = if fabric::has_ipv6() { &["ip", "ip6"] } else { &["ip"] };
        let gone: String = families.iter().map(|f| format!("table {f} filter\ndelete table {f} filter\n")).collect();
        super::load(space, &gone).await?;
        spaces.remove(space);
        Ok(())
    }

    /// Forgets networks that are gone.
    pub(super) async fn keep_only(&self, spaces: &[String]) {
        self.spaces.lock().await.retain(|space, _| spaces.contains(space));
    }
}

fn install_iptables(error: LabError) -> LabError {
    error.hint("delays need the kernel's packet queue: install the Debian package iptables")
}

/// Holds packets until their time has come. When nobody asks for delays any more, all go on.
async fn wait_out(socket: AsyncFd<OwnedFd>, mut delays: watch::Receiver<Vec<Duration>>) {
    let mut waiting: BinaryHeap<Reverse<(Instant, u32)>> = BinaryHeap::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let next = waiting.peek().map(|Reverse((due, _))| *due);
        let ready = tokio::select! {
            ready = socket.readable() => ready,
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                release(socket.get_ref(), &mut waiting, Some(Instant::now()));
                continue;
            }
            changed = delays.changed() => {
                if changed.is_err() {
                    break;
                }
                continue;
            }
        };
        let Ok(mut ready) = ready else { break };
        let table = delays.borrow().clone();
        let now = Instant::now();
        while let Ok(Ok(length)) = ready.try_io(|socket| receive(socket.get_ref(), &mut buffer)) {
            for (packet, mark) in packets(&buffer[..length]) {
                let bits = table.iter().enumerate().filter(|(bit, _)| mark >> bit & 1 == 1);
                waiting.push(Reverse((now + bits.map(|(_, delay)| *delay).sum::<Duration>(), packet)));
            }
        }
        drop(ready);
        release(socket.get_ref(), &mut waiting, Some(Instant::now()));
    }
    release(socket.get_ref(), &mut waiting, None);
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
        // The kernel had to tell more than fits: those packets are lost, as on a line that is too busy.
        Err(Errno::ENOBUFS) => Ok(0),
        result => Ok(result?),
    }
}

/// Lets packets go on whose time has come; without a time, all.
fn release(socket: &OwnedFd, waiting: &mut BinaryHeap<Reverse<(Instant, u32)>>, now: Option<Instant>) {
    let mut verdicts = Vec::new();
    while let Some(Reverse((due, packet))) = waiting.peek().copied() {
        if now.is_some_and(|now| due > now) {
            break;
        }
        waiting.pop();
        verdicts.extend(message(VERDICT, QUEUE, 0, &[(VERDICT_HEADER, &[ACCEPT, packet.to_be_bytes()].concat())]));
        // One datagram holds many, but not any number.
        if verdicts.len() > 32 << 10 {
            // A packet that is gone with its interface needs no verdict.
            let _ = send(socket.as_raw_fd(), &std::mem::take(&mut verdicts), MsgFlags::empty());
        }
    }
    if !verdicts.is_empty() {
        let _ = send(socket.as_raw_fd(), &verdicts, MsgFlags::empty());
    }
}

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 2;
/// Message types carry the queues' number among netfilter's subsystems.
const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIGURE: u16 = SUBSYSTEM | 2;
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const MARK: u16 = 3;
const CONFIGURE_COMMAND: u16 = 1;
const CONFIGURE_PARAMETERS: u16 = 2;
const CONFIGURE_LENGTH: u16 = 3;
const ACCEPT: [u8; 4] = 1u32.to_be_bytes();
const HEADERS: usize = 20;

/// Takes the queue of the network namespace this thread is in.
fn listen(queue: u16) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES)?;
    // Bind; metadata of packets only, with a header of 5 bytes: length, mode.
    for attribute in [
        (CONFIGURE_COMMAND, vec![1, 0, 0, 0]),
        (CONFIGURE_PARAMETERS, vec![0, 0, 0, 0, 1]),
        (CONFIGURE_LENGTH, WAITING_MAX.to_be_bytes().to_vec()),
    ] {
        let order = message(CONFIGURE, queue, ACKNOWLEDGE, &[(attribute.0, &attribute.1)]);
        send(socket.as_raw_fd(), &order, MsgFlags::empty())?;
        let mut answer = [0; 1024];
        // The kernel has answered when the order returns.
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if length >= HEADERS && u16::from_ne_bytes([answer[4], answer[5]]) == ERROR {
            let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
        }
    }
    Ok(socket)
}

/// One netlink message about a queue.
fn message(kind: u16, queue: u16, flags: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![0, 0];
    body.extend(queue.to_be_bytes());
    for (kind, value) in attributes {
        body.extend((4 + value.len() as u16).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut text = Vec::with_capacity(16 + body.len());
    text.extend((16 + body.len() as u32).to_ne_bytes());
    text.extend(kind.to_ne_bytes());
    text.extend((REQUEST | flags).to_ne_bytes());
    text.extend([0; 8]);
    text.extend(body);
    text
}

/// Number and mark of each packet in what the kernel sent.
fn packets(mut text: &[u8]) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    while let Some(length) = text.first_chunk::<4>().map(|l| u32::from_ne_bytes(*l) as usize)
        && (HEADERS..=text.len()).contains(&length)
    {
        let (message, rest) = text.split_at(length);
        text = rest.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        if u16::from_ne_bytes([message[4], message[5]]) != PACKET {
            continue;
        }
        let (mut id, mut mark, mut attributes) = (None, 0, &message[HEADERS..]);
        while let [a, b, c, d, ..] = *attributes {
            let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
            let Some(value) = attributes.get(4..length) else { break };
            match (kind, value.first_chunk::<4>()) {
                (PACKET_HEADER, Some(number)) => id = Some(u32::from_be_bytes(*number)),
                (MARK, Some(bits)) => mark = u32::from_be_bytes(*bits),
                _ => {}
            }
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        found.extend(id.map(|id| (id, mark)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_from_what_the_kernel_sends() {
        let header = [7u32.to_be_bytes(), [8, 0, 2, 0]].concat();
        let one =
            message(PACKET, QUEUE, 0, &[(PACKET_HEADER, &header[..7]), (9, &[1; 3]), (MARK, &5u32.to_be_bytes())]);
        let unmarked = message(PACKET, QUEUE, 0, &[(PACKET_HEADER, &9u32.to_be_bytes())]);
        let other = message(VERDICT, QUEUE, 0, &[(PACKET_HEADER, &header)]);
        assert_eq!(packets(&[one.clone(), other, unmarked].concat()), [(7, 5), (9, 0)]);
        // Nothing that is cut off is believed, and nothing hangs or panics.
        for length in 0..one.len() {
            assert_eq!(packets(&one[..length]), [], "{length}");
        }
    }
}
