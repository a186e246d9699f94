use std::path::PathBuf;

use super::{CliError, Context, ExitKind};

const CLUSTER: &str = include_str!("../../examples/demo/cluster.yaml");
const README: &str = include_str!("init/README.md");
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
}

/// Writes it.
pub fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let dir = &args.directory;
    let cluster = CLUSTER
        .lines()
        // The example's first lines say what the demo does with it.
        .skip_while(|line| line.starts_with('#'))
        .map(|line| match line {
            "name: demo" => format!("name: {}\n", args.name),
            "  bucket: demo-backups" => format!("  bucket: {}-backups\n", args.name),
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
        ("README.md", README.replace("CLUSTER", &args.name)),
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
        println!("{} is ready for cluster {}; its README.md says what comes next:", dir.display(), args.name);
        println!("  1. read cluster.yaml: locations, server types, the bucket");
        println!("  2. git init; hk-dr -C {} keys init --new-identity FILE --recipient AGE1…", dir.display());
        println!("  3. hk-dr -C {} --identity FILE plan, then build", dir.display());
    }
    Ok(())
}
