use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use tokio::io::{DuplexStream, ReadBuf};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};
use zeroize::Zeroizing;

use super::carry::{Carried, Connection};
use super::device::Packets;

/// Largest datagram that is looked at.
const DATAGRAM_BYTES: usize = 2048;
/// Datagrams taken at a time, so that connections get their turn.
const DATAGRAMS_AT_ONCE: usize = 128;
/// Received and not yet read, and written and not yet acknowledged, of one connection: 1 Gbit/s at 4 ms.
const SOCKET_BYTES: usize = 512 << 10;
/// WireGuard repeats an unanswered greeting after 5 s. A booting host is up long before that.
const GREET_EVERY: Duration = Duration::from_millis(250);
/// How often WireGuard's own timers are looked at.
const TIMERS_EVERY: Duration = Duration::from_millis(250);
/// Keeps the way through the operator's own router open, seconds.
const KEEPALIVE_SECONDS: u16 = 25;
/// Silence after which a peer is asked whether it lives, and after which its connection is dead.
const TCP_KEEPALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(10);
const TCP_DEAD: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(40);
/// Connections through one tunnel at a time.
const CONNECTIONS_MAX: usize = 512;
/// First of the ports that connections come from.
const FIRST_PORT: u16 = 20_000;

/// What a tunnel is made from.
pub struct TunnelConfig {
    pub private_key: Zeroizing<[u8; 32]>,
    pub host_public_key: [u8; 32],
    /// Our address inside the tunnel.
    pub address: Ipv4Addr,
    /// Where the VPN host listens.
    pub endpoint: SocketAddr,
}

enum Command {
    Connect {
        to: SocketAddrV4,
        reply: oneshot::Sender<io::Result<DuplexStream>>,
    },
    /// Answered when the VPN host has answered a new greeting.
    Greet {
        reply: oneshot::Sender<()>,
    },
}

/// A WireGuard tunnel of this process. It ends when the last handle and the last connection are gone.
#[derive(Clone)]
pub struct Tunnel {
    commands: mpsc::Sender<Command>,
}

impl Tunnel {
    /// Begins to greet the VPN host. Does not wait for its answer.
    ///
    /// # Errors
    /// When no UDP socket can be had.
    pub async fn open(config: TunnelConfig) -> io::Result<Self> {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        udp.connect(config.endpoint).await?;
        let (commands, receiver) = mpsc::channel(64);
        let mut driver = Driver::new(config, udp, receiver);
        tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll(cx)).await });
        Ok(Self { commands })
    }

    /// A TCP connection to an address behind the VPN host. The caller sets the deadline; giving up takes it back.
    ///
    /// # Errors
    /// When the other side refuses.
    pub async fn connect(&self, to: SocketAddrV4) -> io::Result<DuplexStream> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the tunnel has ended");
        self.commands.send(Command::Connect { to, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Whether it has ended, with the runtime it was opened in.
    pub fn is_over(&self) -> bool {
        self.commands.is_closed()
    }

    /// Returns true once the VPN host has answered a new greeting.
    pub async fn answers(&self, within: Duration) -> bool {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Greet { reply }).await.is_err() {
            return false;
        }
        matches!(tokio::time::timeout(within, answer).await, Ok(Ok(())))
    }
}

struct Driver {
    udp: UdpSocket,
    endpoint: SocketAddr,
    wireguard: Tunn,
    interface: Interface,
    packets: Packets,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    /// None when all handles are gone.
    commands: Option<mpsc::Receiver<Command>>,
    /// Who waits for a new greeting to be answered, and since when.
    greetings: Vec<(Instant, oneshot::Sender<()>)>,
    greeted: Option<Instant>,
    timers_due: Instant,
    started: Instant,
    sleep: Pin<Box<Sleep>>,
    last_port: u16,
    address: Ipv4Addr,
}

impl Driver {
    fn new(config: TunnelConfig, udp: UdpSocket, commands: mpsc::Receiver<Command>) -> Self {
        let wireguard = Tunn::new(
            StaticSecret::from(*config.private_key),
            PublicKey::from(config.host_public_key),
            None,
            Some(KEEPALIVE_SECONDS),
            0,
            None,
        );
        let mut packets = Packets::default();
        let mut interface = Interface::new(
            {
                let mut own = Config::new(HardwareAddress::Ip);
                own.random_seed = rand::random();
                own
            },
            &mut packets,
            smoltcp::time::Instant::ZERO,
        );
        // There is room for two addresses and routes: one of each can't fail.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(config.address), 32));
        });
        let _ = interface.routes_mut().add_default_ipv4_route(config.address);
        let now = Instant::now();
        Self {
            udp,
            endpoint: config.endpoint,
            wireguard,
            interface,
            packets,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            commands: Some(commands),
            greetings: Vec::new(),
            greeted: None,
            timers_due: now,
            started: now,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            last_port: FIRST_PORT + rand::random_range(0..30_000),
            address: config.address,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut busy = self.take_commands(cx);
            busy |= self.receive(cx);
            self.timers();
            let now = self.now();
            busy |= self.interface.poll(now, &mut self.packets, &mut self.sockets) == PollResult::SocketStateChanged;
            busy |= self.carry(cx);
            busy |= self.send(cx);
            if self.commands.is_none() && self.connections.is_empty() {
                return Poll::Ready(());
            }
            if !busy {
                break;
            }
        }
        let now = self.now();
        let stack = self.interface.poll_delay(now, &self.sockets).map_or(TIMERS_EVERY, Duration::from);
        let wait = stack.clamp(Duration::from_millis(1), TIMERS_EVERY);
        self.sleep.as_mut().reset(Instant::now() + wait);
        if self.sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn now(&self) -> smoltcp::time::Instant {
        let micros = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        smoltcp::time::Instant::from_micros(micros)
    }

    fn take_commands(&mut self, cx: &mut Context<'_>) -> bool {
        let mut taken = false;
        while let Some(commands) = &mut self.commands {
            match commands.poll_recv(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.commands = None,
                Poll::Ready(Some(Command::Connect { to, reply })) => self.connect(to, reply),
                Poll::Ready(Some(Command::Greet { reply })) => {
                    self.greetings.push((Instant::now(), reply));
                    self.greet();
                }
            }
            taken = true;
        }
        taken
    }

    fn connect(&mut self, to: SocketAddrV4, reply: oneshot::Sender<io::Result<DuplexStream>>) {
        // Whoever asked may have given up already.
        let refuse = |reply: oneshot::Sender<_>, why: String| drop(reply.send(Err(io::Error::other(why))));
        if self.connections.len() >= CONNECTIONS_MAX {
            return refuse(reply, format!("{CONNECTIONS_MAX} connections go through the tunnel already"));
        }
        let buffer = || tcp::SocketBuffer::new(vec![0; SOCKET_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(Some(TCP_KEEPALIVE));
        socket.set_timeout(Some(TCP_DEAD));
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        self.last_port = if self.last_port >= 60_000 { FIRST_PORT } else { self.last_port + 1 };
        let remote = (IpAddress::Ipv4(*to.ip()), to.port());
        let local = (IpAddress::Ipv4(self.address), self.last_port);
        if let Err(error) = socket.connect(self.interface.context(), remote, local) {
            return refuse(reply, format!("no connection to {to} can be begun: {error}"));
        }
        self.connections.push(Connection::new(self.sockets.add(socket), reply));
    }

    /// Takes what the VPN host sent.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let (mut datagram, mut plain) = ([0; DATAGRAM_BYTES], [0; DATAGRAM_BYTES]);
        for count in 0..DATAGRAMS_AT_ONCE {
            let mut buffer = ReadBuf::new(&mut datagram);
            match self.udp.poll_recv(cx, &mut buffer) {
                Poll::Pending => return count > 0,
                // The host says that nothing listens there (yet): the next greeting will tell.
                Poll::Ready(Err(_)) => continue,
                Poll::Ready(Ok(())) => {}
            }
            let before = self.wireguard.time_since_last_handshake();
            let mut input: &[u8] = buffer.filled();
            loop {
                match self.wireguard.decapsulate(Some(self.endpoint.ip()), input, &mut plain) {
                    // What was waiting for the session follows its answer.
                    TunnResult::WriteToNetwork(packet) => {
                        let _ = self.udp.try_send(packet);
                        input = &[];
                    }
                    TunnResult::WriteToTunnelV4(packet, _) => {
                        self.packets.incoming.push_back(packet.to_vec());
                        break;
                    }
                    TunnResult::WriteToTunnelV6(..) | TunnResult::Done | TunnResult::Err(_) => break,
                }
            }
            self.answered(before);
        }
        // There may be more, and nobody was told to wake us.
        cx.waker().wake_by_ref();
        true
    }

    /// Tells those who wait for a new session that there is one.
    fn answered(&mut self, before: Option<Duration>) {
        let Some(age) = self.wireguard.time_since_last_handshake() else { return };
        if before.is_none_or(|before| age < before) {
            for (_, waiting) in self.greetings.drain(..) {
                let _ = waiting.send(());
            }
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        self.greetings.retain(|(_, waiting)| !waiting.is_closed());
        let wanted = !self.greetings.is_empty()
            || (self.wireguard.time_since_last_handshake().is_none() && !self.connections.is_empty());
        if wanted && self.greeted.is_none_or(|at| now - at >= GREET_EVERY) {
            self.greet();
        }
        if now < self.timers_due {
            return;
        }
        self.timers_due = now + TIMERS_EVERY;
        let mut out = [0; DATAGRAM_BYTES];
        if let TunnResult::WriteToNetwork(packet) = self.wireguard.update_timers(&mut out) {
            let _ = self.udp.try_send(packet);
        }
    }

    fn greet(&mut self) {
        self.greeted = Some(Instant::now());
        let mut out = [0; DATAGRAM_BYTES];
        if let TunnResult::WriteToNetwork(packet) = self.wireguard.format_handshake_initiation(&mut out, true) {
            // What is lost is said again.
            let _ = self.udp.try_send(packet);
        }
    }

    fn carry(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        let sockets = &mut self.sockets;
        self.connections.retain_mut(|connection| {
            match connection.carry(sockets.get_mut::<tcp::Socket<'_>>(connection.handle), cx) {
                Carried::Over => {
                    sockets.remove(connection.handle);
                    moved = true;
                    return false;
                }
                Carried::Moved => moved = true,
                Carried::Idle => {}
            }
            true
        });
        moved
    }

    /// Encrypts and sends what the stack has written.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let mut out = [0; DATAGRAM_BYTES];
        let mut sent = false;
        while !self.packets.outgoing.is_empty() {
            if self.udp.poll_send_ready(cx).is_pending() {
                break;
            }
            let Some(packet) = self.packets.outgoing.pop_front() else { break };
            if let TunnResult::WriteToNetwork(datagram) = self.wireguard.encapsulate(&packet, &mut out) {
                // A full socket loses a packet, as any network does.
                let _ = self.udp.try_send(datagram);
            }
            sent = true;
        }
        sent
    }
}
