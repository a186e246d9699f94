use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

/// Options every command takes.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// The Git directory that declares the cluster (holds cluster.yaml).
    #[arg(short = 'C', long, global = true, value_name = "DIR", default_value = ".", env = "HK_DR_DIR")]
    pub dir: PathBuf,
    /// age identity file that opens secrets.yaml.age and backups.
    #[arg(long, global = true, value_name = "FILE", env = "HK_DR_IDENTITY")]
    pub identity: Option<PathBuf>,
    /// A file whose first line is the passphrase of the identity file, if that is protected with one (`age -p`) and nobody is
    /// at the terminal to type it.
    #[arg(long, global = true, value_name = "FILE", env = "HK_DR_PASSPHRASE_FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Where hk-dr keeps journals and working copies; may be lost at any time. Default: $XDG_STATE_HOME/hk-dr.
    #[arg(long, global = true, value_name = "DIR", env = "HK_DR_STATE")]
    pub state: Option<PathBuf>,
    /// Where downloaded and built files are kept. Default: $XDG_CACHE_HOME/hk-dr.
    #[arg(long, global = true, value_name = "DIR", env = "HK_DR_CACHE")]
    pub cache: Option<PathBuf>,
    /// Use backups that are not signed, or not by a key that cluster.yaml names.
    #[arg(long, global = true)]
    pub accept_unsigned: bool,
    /// Read the backups as they were before this time, where the bucket keeps versions: when somebody overwrote or deleted
    /// them. Times of versions are whole seconds of the bucket's own clock.
    #[arg(long, global = true, value_name = "TIME")]
    pub as_of: Option<jiff::Timestamp>,
    /// Machine-readable output on standard output.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress display.
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// What a command works with: options, resolved directories, and where progress goes.
pub struct Context {
    pub global: Global,
}

impl Context {
    /// Resolves nothing yet: directories are made when first needed.
    pub fn new(global: Global) -> Self {
        Self { global }
    }

    /// The state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.global.state.clone().unwrap_or_else(|| home_based("XDG_STATE_HOME", ".local/state"))
    }

    /// The cache directory.
    pub fn cache_dir(&self) -> PathBuf {
        self.global.cache.clone().unwrap_or_else(|| home_based("XDG_CACHE_HOME", ".cache"))
    }

    /// Whether a person watches: progress bars then, plain lines otherwise.
    pub fn interactive(&self) -> bool {
        !self.global.quiet && std::io::stderr().is_terminal()
    }

    /// Runs a future to its end on a fresh runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("the runtime starts: it needs only threads and an epoll descriptor")
            .block_on(future)
    }
}

fn home_based(variable: &str, below_home: &str) -> PathBuf {
    let base = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute()).unwrap_or_else(|| {
        std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from).join(below_home)
    });
    base.join("hk-dr")
}
