use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::download::local;
use super::lock::{Artifact, Kind, Toolchain};
use super::oci;
use super::progress::{Happening, Progress};
use crate::ports::{ErrorCode, PortError, PortResult};

/// All of Kubernetes takes 6 minutes on two busy cores.
const BUILD_DEADLINE: Duration = Duration::from_secs(40 * 60);
/// Lines of the compiler's output that an error shows.
const OUTPUT_LINES_MAX: usize = 20;

/// A wrapper module: what it is made of, file by file.
struct Module {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
}

macro_rules! module {
    ($name:literal: $($file:literal),+) => {
        Module { name: $name, files: &[$(($file, include_str!(concat!("../../tools/go/", $name, "/", $file)))),+] }
    };
}

/// Embedded, so that an installed hk-dr needs no checkout.
const MODULES: [Module; 6] = [
    module!("age": "go.mod", "go.sum", "tools.go"),
    module!("etcd36": "go.mod", "go.sum", "tools.go"),
    module!("etcd3615": "go.mod", "go.sum", "tools.go"),
    module!("k8s135": "go.mod", "go.sum", "tools.go"),
    module!("versitygw": "go.mod", "go.sum", "tools.go"),
    module!("images": "go.mod", "pause/main.go", "web/main.go"),
];

/// Builds with the machine's Go, in folders of its own below the cache.
pub(super) struct Builder {
    cache: PathBuf,
}

/// What a build was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BuiltWith {
    /// Where the results are, by artifact name.
    pub out: PathBuf,
    /// As `go env GOVERSION` prints it.
    pub go: String,
    /// Whether pinned digests hold for it.
    pub pinned: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct GoEnv {
    goversion: String,
    gomodcache: PathBuf,
}

impl Builder {
    pub fn new(cache: &Path) -> Self {
        Self { cache: cache.to_owned() }
    }

    /// Builds artifacts of one module with the same stamp in one go: what they share is compiled once, and one links
    /// while another compiles. The results lie in `out` under the artifacts' names, unchecked.
    pub async fn build(
        &self,
        artifacts: &[&Artifact],
        toolchain: &Toolchain,
        progress: &dyn Progress,
    ) -> PortResult<BuiltWith> {
        let started = Instant::now();
        let first = &artifacts[0].go;
        let module = MODULES.iter().find(|m| m.name == first.module).ok_or_else(|| {
            PortError::new(ErrorCode::Invalid, format!("artifacts.lock names the unknown Go module {}", first.module))
        })?;
        let source = self.write_sources(module)?;
        let out = self.folder("go-out")?;
        let env = self.go_env(&source).await?;

        let mut go = self.command(&source)?;
        if !has_modules(&env.gomodcache, module) {
            go.env("GOMODCACHE", self.folder("go-mod")?);
        }
        go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &ldflags(artifacts[0])]).arg("-o").arg(&out);
        for artifact in artifacts {
            match artifact.kind {
                Kind::Executable => go.arg(&artifact.go.package),
                Kind::Images => go.arg(format!("{}/...", artifact.go.package)),
            };
        }
        run(go, artifacts, &out, started, progress).await?;

        for artifact in artifacts {
            let result = out.join(&artifact.name);
            match artifact.kind {
                Kind::Executable => {
                    let built = out.join(command_name(&artifact.go.package));
                    std::fs::rename(&built, &result).map_err(|e| local("keeping the build's result", &built, &e))?;
                }
                Kind::Images => {
                    let read = |name| {
                        let path = out.join(name);
                        std::fs::read(&path).map_err(|e| local("reading the build's result", &path, &e))
                    };
                    let bundle = oci::pack(&read("pause")?, &read("web")?);
                    std::fs::write(&result, bundle).map_err(|e| local("writing the image bundle", &result, &e))?;
                }
            }
        }
        let pinned = env.goversion == toolchain.go;
        Ok(BuiltWith { out, go: env.goversion, pinned })
    }

    /// Removes everything a build leaves behind but its results: gigabytes.
    pub fn clean(&self) {
        for folder in ["go-build", "go-mod", "go-src", "go-out", "go-tmp"] {
            // What cannot be removed costs space, not correctness.
            let _ = std::fs::remove_dir_all(self.cache.join(folder));
        }
    }

    fn folder(&self, name: &str) -> PortResult<PathBuf> {
        let folder = self.cache.join(name);
        std::fs::create_dir_all(&folder).map_err(|e| local("making", &folder, &e))?;
        Ok(folder)
    }

    fn write_sources(&self, module: &Module) -> PortResult<PathBuf> {
        let source = self.folder("go-src")?.join(module.name);
        for (name, content) in module.files {
            let path = source.join(name);
            let parent = path.parent().unwrap_or(&source);
            std::fs::create_dir_all(parent).map_err(|e| local("making", parent, &e))?;
            std::fs::write(&path, content).map_err(|e| local("writing", &path, &e))?;
        }
        Ok(source)
    }

    async fn go_env(&self, source: &Path) -> PortResult<GoEnv> {
        let mut go = self.command(source)?;
        go.args(["env", "-json", "GOVERSION", "GOMODCACHE"]);
        let missing = |reason: String| {
            PortError::new(ErrorCode::Local, format!("Go cannot be used to build: {reason}"))
                .hint("install Go 1.26 or newer, or name a mirror that has the files with --mirror")
        };
        // A toolchain that fetches the one go.mod asks for may take a while.
        let output = tokio::time::timeout(Duration::from_secs(300), go.output())
            .await
            .map_err(|_| missing("`go env` did not end within 5 minutes".into()))?
            .map_err(|e| missing(format!("`go` cannot be started: {e}")))?;
        if !output.status.success() {
            return Err(missing(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout).map_err(|e| missing(format!("`go env` printed something else: {e}")))
    }

    /// `go` with everything set that the result could depend on.
    fn command(&self, source: &Path) -> PortResult<Command> {
        let mut go = Command::new("go");
        go.current_dir(source)
            .env("GOFLAGS", "-mod=readonly -modcacherw")
            .env("GOCACHE", self.folder("go-build")?)
            .env("GOTMPDIR", self.folder("go-tmp")?)
            .env("GOWORK", "off")
            .env("GOOS", "linux")
            .env("GOARCH", "amd64")
            .env("GOAMD64", "v1")
            .env("CGO_ENABLED", "0")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(go)
    }
}

/// Runs the build and reports each result as it appears.
async fn run(
    mut go: Command,
    artifacts: &[&Artifact],
    out: &Path,
    started: Instant,
    progress: &dyn Progress,
) -> PortResult<()> {
    let failed = |what: String| PortError::new(ErrorCode::Local, format!("building {}: {what}", names(artifacts)));
    let mut child = go
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("`go` cannot be started: {e}")))?;
    let stderr = child.stderr.take().ok_or_else(|| failed("no pipe to `go`".into()))?;
    let mut lines = BufReader::new(stderr).lines();
    let mut last: VecDeque<String> = VecDeque::new();
    let mut waiting: Vec<&Artifact> = artifacts.to_vec();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let work = async {
        loop {
            tokio::select! {
                line = lines.next_line() => match line {
                    Ok(Some(line)) if line.starts_with("go: downloading") => {}
                    Ok(Some(line)) => {
                        if last.len() == OUTPUT_LINES_MAX {
                            last.pop_front();
                        }
                        last.push_back(line);
                    }
                    // The pipe closes when go and its children are done.
                    Ok(None) | Err(_) => break,
                },
                _ = tick.tick() => {
                    let elapsed = started.elapsed();
                    waiting.retain(|artifact| {
                        let made = out.join(command_name(&artifact.go.package)).exists();
                        let happening = if made { Happening::Built { elapsed } } else { Happening::Building { elapsed } };
                        progress.report(&artifact.name, happening);
                        !made
                    });
                }
            }
        }
        child.wait().await
    };
    let status = tokio::time::timeout(BUILD_DEADLINE, work)
        .await
        .map_err(|_| failed(format!("not done within {} minutes", BUILD_DEADLINE.as_secs() / 60)))?
        .map_err(|e| failed(e.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let output = Vec::from(last).join("\n  ");
    Err(failed(format!("`go build` ended with {status}:\n  {output}"))
        .hint("modules come through GOPROXY; without a way to a module proxy use --mirror"))
}

fn names(artifacts: &[&Artifact]) -> String {
    artifacts.iter().map(|a| a.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The file name that `go build` gives a command: the last element of its path that is not a major version.
fn command_name(package: &str) -> &str {
    let is_version = |element: &&str| {
        element.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    package.rsplit('/').find(|element| !is_version(element)).unwrap_or(package)
}

/// Linker flags. Kubernetes' own build stamps its version into these packages; the date is fixed for reproducibility.
fn ldflags(artifact: &Artifact) -> String {
    let mut flags = "-s -w".to_owned();
    let mut numbers = artifact.version.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    for package in &artifact.go.stamp {
        for (variable, value) in [
            ("gitVersion", format!("v{}", artifact.version)),
            ("gitMajor", major.to_owned()),
            ("gitMinor", minor.to_owned()),
            ("gitTreeState", "clean".to_owned()),
            ("buildDate", "1970-01-01T00:00:00Z".to_owned()),
        ] {
            flags.push_str(&format!(" -X {package}.{variable}={value}"));
        }
    }
    flags
}

/// Whether the machine's module cache already holds what the wrapper requires directly; it is used then, and nothing
/// is downloaded twice. Otherwise hk-dr uses a folder of its own and leaves the machine's cache as it was.
fn has_modules(gomodcache: &Path, module: &Module) -> bool {
    let go_mod = module.files.iter().find(|(name, _)| *name == "go.mod").map_or("", |(_, content)| content);
    let mut required =
        go_mod.lines().filter(|line| !line.contains("// indirect") && !line.contains("=>")).filter_map(|line| {
            let (path, version) = line.trim().trim_start_matches("require ").split_once(' ')?;
            (path.contains('/') && version.starts_with('v')).then(|| (path.to_owned(), version.to_owned()))
        });
    required
        .all(|(path, version)| gomodcache.join("cache/download").join(path).join(format!("@v/{version}.zip")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::Lock;

    #[test]
    fn a_command_is_named_as_go_names_it() {
        assert_eq!(command_name("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(command_name("k8s.io/kubernetes/cmd/kubelet"), "kubelet");
        assert_eq!(command_name("example.org/v/vet"), "vet");
    }

    #[test]
    fn kubernetes_is_stamped_with_its_version_and_etcd_is_not() {
        let lock = Lock::embedded();
        let flags = ldflags(lock.by_name("kubelet").unwrap());
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.35.4"), "{flags}");
        assert!(flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=35"), "{flags}");
        assert_eq!(ldflags(lock.by_name("etcd").unwrap()), "-s -w");
    }

    #[test]
    fn a_module_cache_counts_only_if_it_holds_every_direct_requirement() {
        let cache = tempfile::tempdir().unwrap();
        let module = MODULES.iter().find(|m| m.name == "etcd36").unwrap();
        for name in ["server", "etcdctl", "etcdutl"] {
            assert!(!has_modules(cache.path(), module));
            let folder = cache.path().join(format!("cache/download/go.etcd.io/etcd/{name}/v3/@v"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("v3.6.16.zip"), "").unwrap();
        }
        assert!(has_modules(cache.path(), module));
    }

    #[test]
    fn every_pinned_build_has_its_module() {
        for artifact in Lock::embedded().artifacts {
            assert!(MODULES.iter().any(|m| m.name == artifact.go.module), "{}", artifact.name);
        }
    }
}
