//! The operator as a process of its own: the program that users run.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::controlplane::{free_port, keeper};

/// A running operator. Dropped, it is killed without a warning, in the middle of whatever it does.
pub struct Process {
    child: Child,
    listen: String,
}

impl Process {
    /// Starts the program that was built together with this one, over these namespaces (separated by commas; none:
    /// the whole cluster), with the Lease `lease` in the namespace `default`. It may call loopback. What it says is
    /// appended to `log`.
    pub fn start(kubeconfig: &Path, namespaces: &str, lease: &str, log: &Path) -> Result<Self> {
        let program = program("standfast")?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let said = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&program)
            .env("KUBECONFIG", kubeconfig)
            .env("STANDFAST_NAMESPACE", "default")
            .env("STANDFAST_POD_NAME", "e2e")
            // Each process is somebody else in the leader election, as each pod is.
            .env("STANDFAST_POD_UID", format!("{lease}-{}", free_port()?))
            .env("STANDFAST_LEASE_NAME", lease)
            .env("STANDFAST_LISTEN", &listen)
            .env("STANDFAST_ALLOW_CIDRS", "127.0.0.0/8")
            .env("STANDFAST_WATCH_NAMESPACES", namespaces)
            // As in the image.
            .env("MALLOC_ARENA_MAX", "1")
            .env("MALLOC_TRIM_THRESHOLD_", "131072")
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said);
        let child = keeper(command).with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, listen })
    }

    /// Waits until it says that it is ready: its caches are warm, and it leads or knows who does.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let until = Instant::now() + limit;
        loop {
            let answer = client.get(format!("http://{}/readyz", self.listen)).send().await;
            if answer.is_ok_and(|a| a.status().is_success()) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the operator is not ready within {} s", limit.as_secs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Resident memory in MiB.
    pub fn resident(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of the same build: tests lie in a folder of their own beside it.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.with_file_name(name);
    let above = own.parent().and_then(Path::parent).map(|p| p.join(name));
    let found = [Some(beside), above].into_iter().flatten().find(|p| p.exists());
    let found = found.with_context(|| format!("{name} is not built: `make test` and `make bench` build it"))?;
    ensure!(found.is_file(), "{} is no program", found.display());
    Ok(found)
}
