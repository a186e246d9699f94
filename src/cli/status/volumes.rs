//! What is known of the backups of declared volumes.

use jiff::Timestamp;
use serde::Serialize;

use crate::backup::Proof;
use crate::config::VolumeConfig;
use crate::volumes::Entry;

/// A volume is backed up each night at least; one that is late for it is worth a word.
const BACKUP_HOURS: i64 = 36;

/// One declared volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct VolumeLine {
    pub volume: String,
    /// The newest backup that nobody found damaged.
    pub backup: Option<String>,
    pub taken_at: Option<Timestamp>,
    pub proof: Option<String>,
    pub count: usize,
}

/// A line for each, and what asks for attention.
pub(super) fn lines(declared: &[VolumeConfig], entries: &[Entry], now: Timestamp) -> (Vec<VolumeLine>, Vec<String>) {
    let (mut lines, mut attention) = (Vec::new(), Vec::new());
    for volume in declared {
        let own: Vec<&Entry> = entries.iter().filter(|entry| entry.backup.volume == volume.name).collect();
        let is_bad = |entry: &Entry| matches!(entry.proof, Proof::Bad { .. });
        if let Some(bad) = own.iter().find(|entry| is_bad(entry)) {
            attention.push(format!("backup {} is {}", bad.backup.id, bad.proof));
        }
        let newest = own.iter().find(|entry| !is_bad(entry));
        let again = format!("`hk-dr volume backup {}` makes one", volume.name);
        match newest {
            None => attention.push(format!("volume {} has no backup: {again}", volume.name)),
            Some(entry) => {
                let hours = now.duration_since(entry.backup.taken_at).as_hours();
                if hours >= BACKUP_HOURS {
                    attention.push(format!("the newest backup of volume {} is {hours} h old: {again}", volume.name));
                }
            }
        }
        lines.push(VolumeLine {
            volume: volume.name.clone(),
            backup: newest.map(|entry| entry.backup.id.clone()),
            taken_at: newest.map(|entry| entry.backup.taken_at),
            proof: newest.map(|entry| entry.proof.to_string()),
            count: own.len(),
        });
    }
    (lines, attention)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Vouched;
    use crate::volumes::Backup;

    fn entry(volume: &str, hours_ago: i64, proof: Proof) -> Entry {
        let taken_at = Timestamp::from_second(1_795_000_000 - hours_ago * 3600).unwrap();
        let backup: Backup = serde_json::from_value(serde_json::json!({
            "format": 1, "id": format!("{volume}-{hours_ago}"), "cluster": "demo", "volume": volume, "server": "w1",
            "path": "/mnt/x", "taken_at": taken_at, "finished_at": taken_at, "snapshot": "ab", "files": 1, "bytes": 1,
            "added_bytes": 1, "quiesced": true, "git_commit": null,
        }))
        .unwrap();
        Entry { backup, proof, checked: None, signature: Vouched::Unsigned }
    }

    #[test]
    fn what_is_missing_old_or_damaged_asks_for_attention() {
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        let declared = ["good", "old", "none", "bad"].map(|name| VolumeConfig {
            name: name.to_owned(),
            server: "w1".to_owned(),
            path: "/mnt/x".to_owned(),
            before: None,
            after: None,
            exclude: Vec::new(),
        });
        let bad = Proof::Bad { at: now, problem: "torn".to_owned() };
        let entries = [
            entry("good", 1, Proof::Verified { at: now }),
            entry("good", 50, Proof::Unproven),
            entry("old", 40, Proof::Unproven),
            entry("bad", 1, bad),
            entry("gone", 999, Proof::Unproven),
        ];
        let (lines, attention) = super::lines(&declared, &entries, now);
        assert_eq!(lines.iter().map(|l| l.count).collect::<Vec<_>>(), [2, 1, 0, 1]);
        assert_eq!((lines[0].backup.as_deref(), lines[3].backup.as_deref()), (Some("good-1"), None));
        let said = attention.join("\n");
        for part in ["volume old is 40 h old", "volume none has no backup", "bad-1 is BAD", "volume bad has no backup"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(attention.len(), 4, "{said}");
    }
}
