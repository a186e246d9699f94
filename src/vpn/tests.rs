//! The tunnel against a WireGuard host of this process: the other end of the noise, and a TCP echo behind it.

use std::net::Ipv4Addr;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use zeroize::Zeroizing;

use super::device::Packets;
use super::{Tunnel, TunnelConfig};

const HOST: [u8; 32] = [7; 32];
const OWN: [u8; 32] = [9; 32];
const ECHO: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

fn public(private: [u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(private)).to_bytes()
}

/// Echoes one connection after the other on port 22; everything else is refused.
async fn host(udp: UdpSocket) {
    let mut wireguard = Tunn::new(StaticSecret::from(HOST), PublicKey::from(public(OWN)), None, None, 1, None);
    let mut packets = Packets::default();
    let zero = smoltcp::time::Instant::ZERO;
    let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut packets, zero);
    interface.update_ip_addrs(|a| a.push(IpCidr::new(IpAddress::Ipv4(ECHO), 32)).unwrap());
    interface.routes_mut().add_default_ipv4_route(ECHO).unwrap();
    let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
    let mut sockets = SocketSet::new(Vec::new());
    // Two: the first is still saying goodbye when the second connection comes.
    let handles = [(); 2].map(|()| sockets.add(tcp::Socket::new(buffer(), buffer())));
    let started = tokio::time::Instant::now();
    let (mut datagram, mut out) = ([0; 2048], [0; 2048]);
    let mut peer = None;
    loop {
        let received = tokio::time::timeout(Duration::from_millis(2), udp.recv_from(&mut datagram)).await;
        if let Ok(Ok((size, from))) = received {
            peer = Some(from);
            let mut input = &datagram[..size];
            loop {
                match wireguard.decapsulate(None, input, &mut out) {
                    TunnResult::WriteToNetwork(packet) => {
                        udp.send_to(packet, from).await.unwrap();
                        input = &[];
                    }
                    TunnResult::WriteToTunnelV4(packet, _) => {
                        packets.incoming.push_back(packet.to_vec());
                        break;
                    }
                    _ => break,
                }
            }
        }
        for handle in &handles {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if !socket.is_open() {
                socket.listen(22).unwrap();
            }
            while socket.can_recv() && socket.can_send() {
                let mut bytes = [0; 8192];
                let room = socket.send_capacity() - socket.send_queue();
                let size = bytes.len().min(room);
                let count = socket.recv_slice(&mut bytes[..size]).unwrap();
                socket.send_slice(&bytes[..count]).unwrap();
            }
            if !socket.may_recv() && socket.may_send() && !socket.can_recv() {
                socket.close();
            }
        }
        let now = smoltcp::time::Instant::from_micros(started.elapsed().as_micros() as i64);
        interface.poll(now, &mut packets, &mut sockets);
        while let (Some(to), Some(packet)) = (peer, packets.outgoing.pop_front()) {
            if let TunnResult::WriteToNetwork(packet) = wireguard.encapsulate(&packet, &mut out) {
                udp.send_to(packet, to).await.unwrap();
            }
        }
    }
}

async fn tunnel(endpoint: std::net::SocketAddr) -> Tunnel {
    let address = Ipv4Addr::new(10, 99, 0, 16);
    let config = TunnelConfig { private_key: Zeroizing::new(OWN), host_public_key: public(HOST), address, endpoint };
    Tunnel::open(config).await.unwrap()
}

#[tokio::test]
async fn what_goes_through_the_tunnel_comes_back_whole_and_an_end_is_an_end() {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tunnel = tunnel(udp.local_addr().unwrap()).await;
    // The host comes later than the first greeting, as one that boots.
    assert!(!tunnel.answers(Duration::from_millis(20)).await);
    let host = tokio::spawn(host(udp));
    assert!(tunnel.answers(Duration::from_secs(10)).await);
    for _ in 0..2 {
        let mut stream = tunnel.connect(std::net::SocketAddrV4::new(ECHO, 22)).await.unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_be_bytes).collect();
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let writing = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let reading = async { read.read_to_end(&mut received).await.unwrap() };
        tokio::time::timeout(Duration::from_secs(60), futures::future::join(writing, reading)).await.unwrap();
        assert!(received == sent, "{} bytes of {} came back", received.len(), sent.len());
    }
    let refused = tunnel.connect(std::net::SocketAddrV4::new(ECHO, 23)).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    host.abort();
}

#[tokio::test]
async fn a_host_that_is_gone_is_found_out() {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tunnel = tunnel(udp.local_addr().unwrap()).await;
    let host = tokio::spawn(host(udp));
    assert!(tunnel.answers(Duration::from_secs(10)).await);
    host.abort();
    let _ = host.await;
    assert!(!tunnel.answers(Duration::from_millis(300)).await);
}
