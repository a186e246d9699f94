//! Who may log in to a machine by SSH: scripts that change root's authorized_keys, whole or not at all.

use super::scripts::{REFUSED, script};

const FILE: &str = "/root/.ssh/authorized_keys";

/// Adds a key (`ssh-ed25519 AAAA…`) unless it is there.
pub fn authorize_script(key: &str) -> String {
    script(&format!(
        "umask 077\nmkdir -p /root/.ssh\nfile={FILE}\ntouch $file\n\
         grep -qF '{key}' $file && exit 0\n\
         {{ cat $file; [ -z \"$(tail -c 1 $file)\" ] || echo; echo '{key} hk-dr'; }} > $file.hk-dr\n\
         sync $file.hk-dr\nmv $file.hk-dr $file"
    ))
}

/// Removes a key. Changes nothing where `kept` is not among the others: nobody could log in any more.
pub fn revoke_script(key: &str, kept: &str) -> String {
    script(&format!(
        "umask 077\nfile={FILE}\n\
         grep -vF '{key}' $file > $file.hk-dr || true\n\
         grep -qF '{kept}' $file.hk-dr || {{ rm -f $file.hk-dr; echo 'the key that is to stay is not in '$file'; nothing was changed' >&2; exit {REFUSED}; }}\n\
         sync $file.hk-dr\nmv $file.hk-dr $file"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_and_go_and_the_last_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("authorized_keys");
        let run = |text: String| {
            let text = text
                .replace(FILE, &file.display().to_string())
                .replace("/root/.ssh", &dir.path().display().to_string());
            std::process::Command::new("sh").args(["-c", &text]).output().unwrap()
        };
        let read = || std::fs::read_to_string(&file).unwrap();
        // No newline at the end, as clouds write it.
        std::fs::write(&file, "ssh-ed25519 OLD root@cloud").unwrap();
        for _ in 0..2 {
            assert!(run(authorize_script("ssh-ed25519 NEW")).status.success());
            assert_eq!(read(), "ssh-ed25519 OLD root@cloud\nssh-ed25519 NEW hk-dr\n");
        }
        assert_eq!(run(revoke_script("ssh-ed25519 OLD", "ssh-ed25519 OTHER")).status.code(), Some(REFUSED));
        assert_eq!(read().lines().count(), 2);
        for _ in 0..2 {
            assert!(run(revoke_script("ssh-ed25519 OLD", "ssh-ed25519 NEW")).status.success());
            assert_eq!(read(), "ssh-ed25519 NEW hk-dr\n");
        }
        assert_eq!(run(revoke_script("ssh-ed25519 NEW", "ssh-ed25519 NEW")).status.code(), Some(REFUSED));
    }
}
