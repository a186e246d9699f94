use comfy_table::{ContentArrangement, Table, presets};

use super::buckets::Bucket;
use super::connect::connect;
use super::{CliError, Context, ExitKind};
use crate::backup::{DoctorVerdict, Probe, judge_directory, judge_settings, try_out};

/// Try out what each declared bucket really does, and say what follows. Exit code 2 if something is bad.
#[derive(clap::Args)]
pub struct Args {}

#[derive(serde::Serialize)]
struct Report {
    bucket: String,
    probes: Vec<Probe>,
    problem: Option<String>,
}

/// Asks every bucket. One that does not answer hides no other.
pub fn run(_: &Args, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let cluster = &connected.declared.cluster.name;
    let mut reports = Vec::new();
    for bucket in &connected.buckets.bare {
        let nonce = format!("{:08x}", rand::random::<u32>());
        let store = bucket.store();
        let (tried, settings) = context.block_on(async {
            let tried = try_out(store.as_ref(), cluster, &nonce).await;
            match bucket {
                Bucket::S3(store) => (tried, Some(store.settings(cluster, &nonce).await)),
                Bucket::Directory(_) => (tried, None),
            }
        });
        let (mut probes, problem) = match tried {
            Ok(probes) => (probes, None),
            Err(e) => (Vec::new(), Some(e.message)),
        };
        match settings {
            Some(settings) => probes.extend(judge_settings(&settings)),
            None => probes.push(judge_directory()),
        }
        reports.push(Report { bucket: store.name(), probes, problem });
    }
    if context.global.json {
        println!("{}", serde_json::json!(reports));
    } else {
        reports.iter().for_each(show);
    }
    let bad = |r: &Report| r.problem.is_some() || r.probes.iter().any(|p| p.verdict == DoctorVerdict::Bad);
    if reports.iter().any(bad) {
        return Err(CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None });
    }
    Ok(())
}

fn show(report: &Report) {
    println!("{}", report.bucket);
    if let Some(problem) = &report.problem {
        println!("  cannot be used: {problem}");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for one in &report.probes {
        let mark = match one.verdict {
            DoctorVerdict::Good => "ok",
            DoctorVerdict::Weak => "weak",
            DoctorVerdict::Bad => "BAD",
        };
        table.add_row([mark, &one.what, &one.found, &one.follows]);
    }
    println!("{table}");
}
