use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::{CliError, Context, ExitKind};
use crate::distribution::{API_PORT, server_name};
use crate::ports::ClientTls;
use crate::steps::ServerOutput;

/// Write a kubeconfig for the Kubernetes API: an administrator's certificate, made now, good for one day.
#[derive(clap::Args)]
pub struct Args {
    /// The file to write (mode 0600). Without it, standard output, unless that is a terminal.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Writes it.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.to.is_none() && std::io::stdout().is_terminal() {
        return Err(CliError::new(ExitKind::Usage, "a key would be shown on this terminal")
            .hint("nothing was made; name a file with --to FILE, or pipe the output to where it belongs"));
    }
    let connected = super::connect::connect(context)?;
    let world = &connected.world;
    let text = context.block_on(async {
        let mut servers = Vec::new();
        // Its address is private: without a VPN nobody's kubectl gets there.
        if let Some(address) = world.cluster.api_balancer().filter(|_| world.cluster.vpn.is_some()) {
            servers.push(("api".to_owned(), address));
        }
        for master in &world.cluster.masters {
            if let Some(server) = world.cloud.server_by_name(&server_name(&world.cluster, &master.name)).await? {
                servers.push((master.name.clone(), ServerOutput::of(&world.cluster, &server)?.address));
            }
        }
        if !servers.iter().any(|(name, _)| name != "api") {
            let message = format!("no master of cluster {} exists in the cloud", world.cluster.name);
            return Err(CliError::new(ExitKind::Data, message).hint("`hk-dr status` shows what there is"));
        }
        let secrets = world.secrets().await?;
        let tls = secrets
            .kube_client(&world.cluster, world.clock.now())
            .map_err(|e| CliError::new(ExitKind::Failed, format!("the certificate can't be made: {e}")))?;
        Ok(render(&world.cluster.name, &servers, &tls))
    })?;
    let Some(path) = args.to else {
        std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(|e| CliError::new(ExitKind::Failed, format!("writing the kubeconfig: {e}")))?;
        return Ok(());
    };
    crate::secrets::write_file(&path, 0o600, text.as_bytes(), true)?;
    if context.global.json {
        println!("{}", serde_json::json!({"file": path, "valid_hours": 24}));
    } else {
        println!("{} is good for one day: kubectl --kubeconfig {} get nodes", path.display(), path.display());
    }
    Ok(())
}

/// First the load balancer, if there is one; then a context a master, so that another one can be asked when the first does not
/// answer. All are reached by address and believed by the API's one name.
fn render(cluster: &str, servers: &[(String, std::net::Ipv4Addr)], tls: &ClientTls) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::from("apiVersion: v1\nkind: Config\n"));
    let ca = BASE64_STANDARD.encode(&tls.ca_pem);
    let (mut clusters, mut contexts) = (String::new(), String::new());
    for (master, address) in servers {
        let _ = write!(
            clusters,
            "- name: {cluster}-{master}\n  cluster:\n    server: https://{address}:{API_PORT}\n    tls-server-name: {}\n    \
             certificate-authority-data: {ca}\n",
            tls.server_name
        );
        let _ = writeln!(
            contexts,
            "- name: {cluster}-{master}\n  context: {{cluster: {cluster}-{master}, user: {cluster}-admin}}"
        );
    }
    let first = servers.first().map(|(master, _)| master.as_str()).unwrap_or_default();
    let key = Zeroizing::new(BASE64_STANDARD.encode(tls.key_pem.expose_secret()));
    let _ = write!(
        text,
        "current-context: {cluster}-{first}\nclusters:\n{clusters}contexts:\n{contexts}users:\n- name: {cluster}-admin\n  user:\n    \
         client-certificate-data: {}\n    client-key-data: {}\n",
        BASE64_STANDARD.encode(&tls.cert_pem),
        key.as_str()
    );
    text
}
