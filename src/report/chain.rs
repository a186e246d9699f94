use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use crate::drill::Evidence;

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "problem")]
pub enum Broken {
    /// The document can't be read, or is of another run than its place says.
    Damaged { run: String, why: String },
    /// It follows one that is not there.
    Missing { run: String, previous: String },
    /// It follows one that was changed since.
    Changed { run: String, previous: String },
    /// Two follow the same one, or it follows none though others came before: one between may have been taken out.
    Fork { run: String, previous: Option<String> },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { run, why } => write!(f, "{run}: {why}"),
            Self::Missing { run, previous } => write!(f, "{run} follows {previous}, whose evidence is not there"),
            Self::Changed { run, previous } => write!(f, "{run} follows {previous}, whose evidence was changed since"),
            Self::Fork { run, previous: Some(previous) } => write!(f, "{run} is a second one that follows {previous}"),
            Self::Fork { run, previous: None } => write!(f, "{run} follows none, though there were runs before"),
        }
    }
}

/// SHA-256 in hexadecimal.
pub fn digest(document: &[u8]) -> String {
    Sha256::digest(document).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks the chain of all evidence of a cluster: documents as they are stored, by run. Returns what was read, in order,
/// and what does not fit. Retention may remove the oldest: the first one's predecessor need not be there.
pub fn check_chain(documents: &BTreeMap<String, Vec<u8>>) -> (Vec<Evidence>, Vec<Broken>) {
    let (mut read, mut broken) = (Vec::new(), Vec::new());
    let mut followed: BTreeMap<String, String> = BTreeMap::new();
    for (run, document) in documents {
        let evidence: Evidence = match serde_json::from_slice(document) {
            Ok(evidence) => evidence,
            Err(e) => {
                broken.push(Broken::Damaged { run: run.clone(), why: format!("the evidence can't be read: {e}") });
                continue;
            }
        };
        if evidence.run != *run {
            let why = format!("it holds the evidence of run {}", evidence.run);
            broken.push(Broken::Damaged { run: run.clone(), why });
            continue;
        }
        let is_first = read.is_empty();
        // What was written before there was a chain follows none, and begins none.
        let chained = read.iter().any(|earlier: &Evidence| earlier.previous.is_some());
        match &evidence.previous {
            None if !chained => {}
            None => broken.push(Broken::Fork { run: run.clone(), previous: None }),
            Some(link) => {
                let previous = link.run.clone();
                match documents.get(&link.run) {
                    None if is_first => {}
                    None => broken.push(Broken::Missing { run: run.clone(), previous: previous.clone() }),
                    Some(there) if digest(there) != link.sha256 => {
                        broken.push(Broken::Changed { run: run.clone(), previous: previous.clone() });
                    }
                    Some(_) => {}
                }
                if followed.insert(previous.clone(), run.clone()).is_some() {
                    broken.push(Broken::Fork { run: run.clone(), previous: Some(previous) });
                }
            }
        }
        read.push(evidence);
    }
    (read, broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::Link;

    fn documents() -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut previous = None;
        for run in ["r1", "r2", "r3", "r4"] {
            let mut evidence = crate::serve::sample(run, "volume-reattach");
            evidence.previous = previous;
            let text = serde_json::to_vec(&evidence).unwrap();
            previous = Some(Link { run: run.to_owned(), sha256: digest(&text) });
            all.insert(run.to_owned(), text);
        }
        all
    }

    #[test]
    fn a_whole_chain_holds_also_without_its_oldest_links() {
        let mut all = documents();
        assert_eq!(check_chain(&all).1, []);
        all.remove("r1");
        assert_eq!(check_chain(&all).1, []);
    }

    #[test]
    fn what_was_changed_or_taken_out_shows() {
        let mut changed = documents();
        let text = String::from_utf8(changed["r2"].clone()).unwrap().replace("\"passed\"", "\"failed\"");
        changed.insert("r2".into(), text.into_bytes());
        assert_eq!(check_chain(&changed).1, [Broken::Changed { run: "r3".into(), previous: "r2".into() }]);
        let mut taken = documents();
        taken.remove("r3");
        assert_eq!(check_chain(&taken).1, [Broken::Missing { run: "r4".into(), previous: "r3".into() }]);
        let mut moved = documents();
        let fourth = moved["r4"].clone();
        moved.insert("r5".into(), fourth);
        assert!(matches!(&check_chain(&moved).1[..], [Broken::Damaged { run, .. }] if run == "r5"));
    }
}
