use std::path::{Path, PathBuf};

use crate::cli::connect::{connect, declared};
use crate::cli::snapshot::print_json;
use crate::cli::{CliError, Context, ExitKind};
use crate::drill::Evidence;
use crate::report::{check_chain, digest};
use crate::sign::{SIGNATURE_BYTES_MAX, Trust, signature_name};

#[derive(clap::Args)]
pub(super) struct Args {
    /// An evidence.json, with its signature beside it (evidence.json.minisig), checked without the bucket; or the name of
    /// a run in the bucket. None: all evidence in the bucket and the chain through it.
    file: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    match &args.file {
        Some(file) if Path::new(file).is_file() => local(&PathBuf::from(file), context),
        wanted => in_the_bucket(wanted.as_deref(), context),
    }
}

/// A file that somebody was given: its signature, by the keys that Git names.
fn local(path: &Path, context: &Context) -> Result<(), CliError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|e| CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display())))
    };
    let document = read(path)?;
    let damaged = |e: serde_json::Error| {
        CliError::new(ExitKind::Data, format!("{} is no evidence that this version reads: {e}", path.display()))
    };
    let evidence: Evidence = serde_json::from_slice(&document).map_err(damaged)?;
    let cluster = declared(context)?.cluster;
    let trust = Trust::parse(&cluster.backup.signed_by)?;
    let object = format!("{}/runs/{}/evidence.json", evidence.cluster, evidence.run);
    if trust.is_empty() {
        return Err(CliError::new(
            ExitKind::Data,
            format!("{} can't be checked: cluster.yaml names no key", path.display()),
        )
        .hint("backup.signedBy names whose signatures count: `hk-dr keys signing init` makes a key"));
    }
    let beside = PathBuf::from(signature_name(&path.display().to_string()));
    let signature = match std::fs::metadata(&beside) {
        Ok(meta) if meta.len() <= SIGNATURE_BYTES_MAX => Some(read(&beside)?),
        _ => None,
    };
    let key = trust.check(&object, &document, signature.as_deref()).map_err(|refusal| {
        CliError::new(ExitKind::Data, format!("{} is not believed: {refusal}", path.display()))
            .hint("get it from the bucket again: `hk-dr report verify RUN` checks what lies there")
    })?;
    if context.global.json {
        return print_json(&serde_json::json!({
            "ok": true, "run": evidence.run, "verdict": evidence.verdict, "sha256": digest(&document),
            "signed_by": key, "follows": evidence.previous,
        }));
    }
    println!("{}: {} on {}, signed by key {key}, unchanged since.", evidence.run, evidence.runbook, evidence.cluster);
    println!(
        "SHA-256 {}; whether the runs before are unchanged says `hk-dr report verify {}`.",
        digest(&document),
        evidence.run
    );
    Ok(())
}

fn in_the_bucket(wanted: Option<&str>, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let (documents, refused) = context.block_on(super::documents(&connected))?;
    if let Some(run) = wanted
        && !documents.contains_key(run)
        && !refused.iter().any(|problem| problem.contains(run))
    {
        return Err(CliError::new(ExitKind::Data, format!("there is neither a file nor evidence of a run {run}"))
            .hint("`hk-dr report` shows which runs there are"));
    }
    let (evidence, broken) = check_chain(&documents);
    let problems: Vec<String> = refused.into_iter().chain(broken.iter().map(ToString::to_string)).collect();
    let signed = !connected.declared.cluster.backup.signed_by.is_empty();
    if context.global.json {
        print_json(&serde_json::json!({
            "ok": problems.is_empty(), "evidence": evidence.len(), "signatures_checked": signed, "problems": problems,
        }))?;
    } else {
        problems.iter().for_each(|problem| println!("BROKEN  {problem}"));
        let by = if signed { "signatures and chain" } else { "the chain; no signatures, cluster.yaml names no key" };
        println!("{} pieces of evidence, checked: {by}.", evidence.len());
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(CliError::new(ExitKind::Data, String::new())
        .hint("evidence was changed, removed or not written by hk-dr; nothing else is affected"))
}
