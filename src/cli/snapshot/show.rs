use super::{Choice, print_json, size};
use crate::backup::Catalog;
use crate::cli::connect::connect;
use crate::cli::{CliError, Context};

pub(super) fn run(choice: &Choice, context: &Context) -> Result<(), CliError> {
    let connected = connect(context)?;
    let catalog = Catalog::new(connected.store.as_ref(), &connected.declared.cluster.name);
    let entry = context.block_on(catalog.find(&choice.snapshot))?;
    if context.global.json {
        return print_json(&entry);
    }
    let manifest = &entry.manifest;
    let keys = manifest.keys.map_or_else(|| "not counted".to_owned(), |keys| keys.to_string());
    let hash = match (&manifest.hash_kv.hash, manifest.hash_kv.agreed.as_slice()) {
        (Some(hash), agreed) => {
            format!("{} agreed on {hash:08x} at revision {}", agreed.join(", "), manifest.hash_kv.revision)
        }
        (None, _) => "not compared".to_owned(),
    };
    let mut lines = vec![
        ("snapshot", manifest.id.clone()),
        ("proof", entry.proof.to_string()),
        ("signature", entry.signature.to_string()),
        ("taken", format!("{} by hk-dr {}", manifest.taken_at, manifest.hk_dr_version)),
        ("from", format!("{} (etcd {})", manifest.source_member, manifest.etcd_version)),
        ("members", hash),
        ("revision", format!("{} (compacted at {})", manifest.revision, manifest.compact_revision)),
        ("keys", format!("{keys} ({} versions)", manifest.versions)),
        ("git commit", manifest.git_commit.clone().unwrap_or_else(|| "none".to_owned())),
        ("opens for", manifest.recipients.join("\n            ")),
    ];
    for sealed in [&manifest.etcd, &manifest.recovery] {
        lines.push(("object", sealed.key.clone()));
        lines.push(("", format!("{} stored, sha256 {}", size(sealed.stored_bytes), sealed.stored_sha256)));
        lines.push(("", format!("{} plain, sha256 {}", size(sealed.plain_bytes), sealed.plain_sha256)));
    }
    lines.extend(manifest.not_in_place.iter().map(|why| ("", format!("through etcd's API, not in place: {why}"))));
    lines.extend(manifest.hash_kv.not_compared.iter().map(|reason| ("", format!("not compared: {reason}"))));
    for (name, value) in lines {
        println!("{name:<11} {value}");
    }
    Ok(())
}
