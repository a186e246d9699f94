use std::io::{Write, stderr, stdin, stdout};

use super::{CliError, Context};
use crate::backup::pages::{Order, Word, pack};

/// Read the pages of a snapshot beside etcd's file: what `hk-dr snapshot` runs on a member's machine.
#[derive(clap::Args)]
pub struct Args {}

/// Takes its order from standard input; gives zstd frames on standard output, and words on standard error.
///
/// # Errors
/// The file is not the snapshot's, cannot be read, or nobody listens.
pub fn run(_: &Args, _: &Context) -> Result<(), CliError> {
    let (order, head) = Order::decode(stdin().lock())?;
    let say = |word: &Word| {
        // Nobody who listens: the next frame finds out.
        let _ = serde_json::to_string(word).map(|line| writeln!(stderr(), "{line}"));
    };
    Ok(pack(&order, &head, stdout().lock(), &say)?)
}
