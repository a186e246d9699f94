use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Subcommand;
use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{CliError, Context, ExitKind};
use crate::config::{VpnConfig, VpnPeer, free_address, is_wireguard_key, with_peer, without_peer};
use crate::distribution::pki::wireguard_pair;
use crate::distribution::server_name;
use crate::ports::Shell as _;
use crate::steps::ServerOutput;

/// How long the VPN host may take to tell who was there.
const ASK_WITHIN: Duration = Duration::from_secs(15);

/// Who may come in through the VPN.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lets someone in: makes a key pair here, prints their configuration (and a QR code for a phone), writes the public key
    /// into cluster.yaml. The private key is kept nowhere.
    Add {
        /// Lower-case letters, digits and dashes.
        name: String,
        /// The public key of a pair that its owner has made; the private one is then for them to fill in.
        #[arg(long, value_name = "KEY")]
        public_key: Option<String>,
        /// Write the configuration to this file (mode 0600) instead of the terminal.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Shuts someone out: takes their key out of cluster.yaml.
    Remove { name: String },
    /// Shows who may come in and when they were last there.
    List,
}

/// Runs the command.
///
/// # Errors
/// `Usage` if cluster.yaml has no VPN, or the name is taken or unknown; nothing is written then.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    match args.command {
        Command::Add { name, public_key, to } => add(context, &name, public_key, to),
        Command::Remove { name } => remove(context, &name),
        Command::List => list(context),
    }
}

fn declared_vpn(cluster: &crate::config::Cluster) -> Result<&VpnConfig, CliError> {
    cluster.vpn.as_ref().ok_or_else(|| {
        CliError::new(ExitKind::Usage, format!("cluster.yaml of {} declares no VPN", cluster.name))
            .hint("nothing was touched; examples/private/cluster.yaml shows how one is declared")
    })
}

fn add(context: &Context, name: &str, public_key: Option<String>, to: Option<PathBuf>) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let (cluster, text) = (&connected.declared.cluster, &connected.declared.text);
    let vpn = declared_vpn(cluster)?;
    let refused = |message: String| CliError::new(ExitKind::Usage, message).hint("nothing was written");
    if vpn.peers.iter().any(|p| p.name == name) {
        return Err(
            refused(format!("{name} may come in already")).hint("`hk-dr vpn remove` takes the old key out first")
        );
    }
    if let Some(key) = public_key.as_ref().filter(|key| !is_wireguard_key(key)) {
        return Err(refused(format!("`{key}` is not a public key of WireGuard")));
    }
    if to.is_none() && public_key.is_none() && !std::io::stdout().is_terminal() {
        return Err(refused("a private key would be printed to something that is no terminal".into())
            .hint("name a file with --to FILE"));
    }
    let address = free_address(vpn).ok_or_else(|| refused(format!("{} has no free address", vpn.range)))?;
    let (private, public) = match public_key {
        Some(public) => (Zeroizing::new("(the private key that belongs to it)".to_owned()), public),
        None => wireguard_pair().map_err(|e| CliError::new(ExitKind::Failed, e.to_string()))?,
    };
    let peer = VpnPeer { name: name.to_owned(), public_key: public, address };
    let path = context.global.dir.join("cluster.yaml");
    let changed = with_peer(text, &peer).ok_or_else(|| {
        refused(format!("the peers in {} are written in a way that can't be changed safely", path.display()))
            .hint(format!("add by hand: {{name: {name}, publicKey: {}, address: {address}}}", peer.public_key))
    })?;
    super::validate::check(&changed, &path)?;
    let (endpoint, host_key) = context.block_on(async {
        let endpoint = match &vpn.endpoint {
            Some(endpoint) => Some(endpoint.clone()),
            None => {
                let server = connected.world.cloud.server_by_name(&server_name(cluster, &vpn.name)).await?;
                server.and_then(|s| s.public_ipv4).map(|a| a.to_string())
            }
        };
        let secrets = connected.world.secrets().await?;
        let keys = secrets.vpn_keys().map_err(|e| CliError::new(ExitKind::Data, e.to_string()))?;
        Ok::<_, CliError>((endpoint, BASE64_STANDARD.encode(keys.host_public())))
    })?;
    let endpoint = endpoint.ok_or_else(|| {
        refused("there is no VPN host yet, and cluster.yaml names no vpn.endpoint".into())
            .hint("`hk-dr build` makes it")
    })?;
    let config = Zeroizing::new(format!(
        "[Interface]\nPrivateKey = {}\nAddress = {address}/32\n\n[Peer]\nPublicKey = {host_key}\n\
         Endpoint = {endpoint}:{}\nAllowedIPs = {}, {}\nPersistentKeepalive = 25\n",
        private.as_str(),
        vpn.port,
        cluster.network.range,
        vpn.range
    ));
    if let Some(file) = &to {
        crate::secrets::write_file(file, 0o600, config.as_bytes(), false)?;
    }
    // Last: a name in Git whose configuration was lost would let nobody in.
    crate::secrets::write_file(&path, 0o644, changed.as_bytes(), true)?;
    match (&to, context.global.json) {
        (Some(file), true) => println!("{}", serde_json::json!({"peer": peer, "file": file})),
        (Some(file), false) => println!("{} lets {name} in: wg-quick up {}", file.display(), file.display()),
        (None, _) => {
            println!("{}", config.as_str());
            if let Ok(code) = qrcode::QrCode::new(config.as_bytes()) {
                println!("{}", code.render::<qrcode::render::unicode::Dense1x2>().build());
            }
        }
    }
    eprintln!("{name} is in {}: commit it, then `hk-dr build`.", path.display());
    Ok(())
}

fn remove(context: &Context, name: &str) -> Result<(), CliError> {
    let declared = super::connect::declared(context)?;
    let vpn = declared_vpn(&declared.cluster)?;
    let known: Vec<&str> = vpn.peers.iter().map(|p| p.name.as_str()).collect();
    if !known.contains(&name) {
        return Err(CliError::new(ExitKind::Usage, format!("nobody called {name} may come in"))
            .hint(format!("nothing was written; there are: {}", known.join(", "))));
    }
    let path = context.global.dir.join("cluster.yaml");
    let changed = without_peer(&declared.text, name).ok_or_else(|| {
        let message = format!("the peers in {} are written in a way that can't be changed safely", path.display());
        CliError::new(ExitKind::Usage, message).hint(format!("nothing was written; take {name} out by hand"))
    })?;
    crate::secrets::write_file(&path, 0o644, changed.as_bytes(), true)?;
    if context.global.json {
        println!("{}", serde_json::json!({"removed": name}));
    } else {
        println!("{name} is out of {}: commit it, then `hk-dr build`. Until then the key still opens.", path.display());
    }
    Ok(())
}

/// Someone who may come in, and what the VPN host knows of them.
#[derive(Serialize)]
struct Line {
    name: String,
    address: std::net::Ipv4Addr,
    /// None: never since the host booted, or the host does not let them in yet.
    last_handshake: Option<Timestamp>,
    /// Where from.
    endpoint: Option<String>,
    received_bytes: u64,
    sent_bytes: u64,
    /// In Git and not yet on the host, or the other way round.
    pending: bool,
}

fn list(context: &Context) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let cluster = &connected.declared.cluster;
    let vpn = declared_vpn(cluster)?;
    let dump = context.block_on(async {
        let name = server_name(cluster, &vpn.name);
        let server = connected.world.cloud.server_by_name(&name).await?;
        let server = server.ok_or_else(|| {
            CliError::new(ExitKind::Data, format!("{name} does not exist")).hint("`hk-dr build` makes it")
        })?;
        let host = ServerOutput::of(cluster, &server)?.host();
        let output = connected.shell.run(&host, "wg show wg0 dump | cut -f1,3-", ASK_WITHIN).await?;
        Ok::<_, CliError>(String::from_utf8_lossy(&output.stdout).into_owned())
    })?;
    let lines = lines(vpn, &dump);
    if context.global.json {
        println!("{}", serde_json::json!({"peers": lines}));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "ADDRESS", "LAST HANDSHAKE", "FROM", "RECEIVED", "SENT"]);
    for line in &lines {
        let seen =
            line.last_handshake.map_or_else(|| "never".to_owned(), |t| t.strftime("%Y-%m-%d %H:%M UTC").to_string());
        let seen = if line.pending { "not on the host yet: hk-dr build".to_owned() } else { seen };
        let from = line.endpoint.clone().unwrap_or_else(|| "-".into());
        let (received, sent) = (line.received_bytes.to_string(), line.sent_bytes.to_string());
        table.add_row([line.name.clone(), line.address.to_string(), seen, from, received, sent]);
    }
    println!("{table}");
    Ok(())
}

/// From `wg show wg0 dump` without its secrets: public key, endpoint, addresses, last handshake, bytes received and sent.
fn lines(vpn: &VpnConfig, dump: &str) -> Vec<Line> {
    let line = |peer: &VpnPeer| {
        let found = dump.lines().map(|l| l.split('\t').collect::<Vec<_>>()).find(|f| f[0] == peer.public_key);
        let field = |at: usize| found.as_ref().and_then(|f| f.get(at)).copied().unwrap_or_default();
        let seconds = field(3).parse::<i64>().ok().filter(|s| *s > 0);
        Line {
            name: peer.name.clone(),
            address: peer.address,
            last_handshake: seconds.and_then(|s| Timestamp::from_second(s).ok()),
            endpoint: Some(field(1).to_owned()).filter(|e| !e.is_empty() && e != "(none)"),
            received_bytes: field(4).parse().unwrap_or(0),
            sent_bytes: field(5).parse().unwrap_or(0),
            pending: found.is_none(),
        }
    };
    vpn.peers.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wireguard_tells_becomes_a_line_for_each_declared_peer() {
        let peer = |name: &str, key: &str| VpnPeer {
            name: name.into(),
            public_key: key.into(),
            address: [10, 99, 1, 0].into(),
        };
        let vpn: VpnConfig =
            serde_json::from_value(serde_json::json!({"location": "fsn1", "type": "cx23", "address": "10.0.0.2"}))
                .unwrap();
        let vpn = VpnConfig { peers: vec![peer("anna", "A="), peer("ben", "B="), peer("cleo", "C=")], ..vpn };
        let dump = "HOST=\t51820\toff\n\
                    A=\t198.51.100.2:40000\t10.99.1.0/32\t1780000000\t11\t22\t25\n\
                    B=\t(none)\t10.99.1.1/32\t0\t0\t0\toff\n";
        let found = lines(&vpn, dump);
        assert_eq!((found[0].received_bytes, found[0].sent_bytes, found[0].pending), (11, 22, false));
        assert_eq!(found[0].endpoint.as_deref(), Some("198.51.100.2:40000"));
        assert!(found[1].last_handshake.is_none() && found[1].endpoint.is_none() && !found[1].pending);
        assert!(found[2].pending);
    }
}
