use std::path::PathBuf;

use super::{CliError, Context, ExitKind};

const CLUSTER: &str = include_str!("../../examples/demo/cluster.yaml");
const README: &str = include_str!("init/README.md");
const SANDBOX: &str = include_str!("init/SANDBOX.md");
const GITIGNORE: &str =
    "# Identities open every backup: they belong into no repository.\n*identity*\n*.key\nkubeconfig*\n";

/// Write a Git directory to start from: cluster.yaml, a README for the team, runbooks/.
#[derive(clap::Args)]
pub struct Args {
    /// The directory; it is made if it is missing.
    directory: PathBuf,
    /// The cluster's name.
    #[arg(long, default_value = "demo")]
    name: String,
    /// A small cluster of your own to learn and rehearse with: one master, one worker, in the lab or in a separate project.
    #[arg(long, value_name = "NAME", conflicts_with = "name")]
    sandbox: Option<String>,
}

/// Lines of the example that a sandbox does without.
const NOT_IN_A_SANDBOX: [&str; 2] = ["  - {name: m2,", "  - {name: m3,"];

fn readme(args: &Args) -> String {
    match &args.sandbox {
        Some(name) => SANDBOX.replace("SANDBOX", name),
        None => README.replace("CLUSTER", &args.name),
    }
}

/// Writes it.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let dir = &args.directory;
    let name = args.sandbox.as_ref().unwrap_or(&args.name);
    let cluster = CLUSTER
        .lines()
        .filter(|line| args.sandbox.is_none() || !NOT_IN_A_SANDBOX.iter().any(|left_out| line.starts_with(left_out)))
        // The example's first lines say what the demo does with it.
        .skip_while(|line| line.starts_with('#'))
        .map(|line| match line {
            "name: demo" => format!("name: {name}\n"),
            "  bucket: demo-backups" => format!("  bucket: {name}-backups\n"),
            other => format!("{other}\n"),
        })
        .collect::<String>();
    let cluster = format!(
        "# yaml-language-server: $schema=cluster.schema.json\n# What this cluster is. `hk-dr validate` checks it, `hk-dr build` makes it true.\n{cluster}"
    );
    let schema = format!("{:#}\n", crate::config::schema());
    // Everything that can be refused is refused before the first file is written.
    super::validate::check(&cluster, &dir.join("cluster.yaml"))?;
    let files = [
        ("cluster.yaml", cluster),
        ("cluster.schema.json", schema),
        ("README.md", readme(&args)),
        (".gitignore", GITIGNORE.to_owned()),
        ("runbooks/README.md", "Runbooks of your own, and changed copies of those that come with hk-dr:\n`hk-dr runbook show NAME > runbooks/NAME.yaml`; `hk-dr runbook validate` checks them.\n".to_owned()),
    ];
    if let Some((name, _)) = files.iter().find(|(name, _)| dir.join(name).exists()) {
        let message = format!("{} exists already", dir.join(name).display());
        return Err(CliError::new(ExitKind::Usage, message).hint("nothing was written; choose another directory"));
    }
    let failed = |e: std::io::Error| CliError::new(ExitKind::Failed, format!("cannot make {}: {e}", dir.display()));
    std::fs::create_dir_all(dir.join("runbooks")).map_err(failed)?;
    for (name, text) in &files {
        crate::secrets::write_file(&dir.join(name), 0o644, text.as_bytes(), false)?;
    }
    if context.global.json {
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        println!("{}", serde_json::json!({"directory": dir, "files": names}));
    } else {
        println!("{} is ready for cluster {name}; its README.md says what comes next:", dir.display());
        if args.sandbox.is_some() {
            println!("  a tutorial: from nothing to a cluster that was destroyed and brought back");
            return Ok(());
        }
        println!("  1. read cluster.yaml: locations, server types, the bucket");
        println!("  2. git init; hk-dr -C {} keys init --new-identity FILE --recipient AGE1…", dir.display());
        println!("  3. hk-dr -C {} --identity FILE plan, then build", dir.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_a_cluster_of_one_master_with_a_tutorial() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("play");
        let global = super::super::Global {
            dir: ".".into(),
            identity: None,
            passphrase_file: None,
            state: None,
            cache: None,
            json: true,
            quiet: true,
            accept_unsigned: false,
            as_of: None,
        };
        let args = Args { directory: to.clone(), name: "demo".into(), sandbox: Some("anna".into()) };
        run(args, &Context::new(global)).unwrap();
        let text = std::fs::read_to_string(to.join("cluster.yaml")).unwrap();
        let cluster = super::super::validate::check(&text, &to.join("cluster.yaml")).unwrap();
        assert_eq!((cluster.name.as_str(), cluster.masters.len(), cluster.workers.len()), ("anna", 1, 1));
        assert_eq!(cluster.backup.bucket, "anna-backups");
        let tutorial = std::fs::read_to_string(to.join("README.md")).unwrap();
        assert!(tutorial.contains("hk-dr lab up --name anna") && !tutorial.contains("SANDBOX"), "{tutorial}");
    }
}
