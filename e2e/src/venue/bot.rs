//! The demo bot as a process of its own, and the Python environment with the broker's client that it runs in.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::{controlplane::checkout, folders};

/// The folder with `bot.py`, `conformance.py` and `requirements.txt`.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bot")
}

/// The Python interpreter of a virtual environment with `requirements.txt` installed.
///
/// It lies in `.work/venv-<hash of the requirements>` of the workspace, is made at first use, and is shared: a lock
/// lets one process make it while others wait, and a half-made one (a run that was killed) is made anew.
pub async fn python() -> anyhow::Result<PathBuf> {
    tokio::task::spawn_blocking(make_environment).await?
}

fn make_environment() -> anyhow::Result<PathBuf> {
    let requirements = folder().join("requirements.txt");
    let mut hasher = DefaultHasher::new();
    fs::read(&requirements).context("requirements.txt")?.hash(&mut hasher);
    run(std::process::Command::new("python3").arg("--version"))?.hash(&mut hasher);
    let work = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace root")?.join(".work");
    fs::create_dir_all(&work)?;
    let venv = work.join(format!("venv-{:016x}", hasher.finish()));
    let (python, complete) = (venv.join("bin/python"), venv.join("complete"));

    let lock = File::create(venv.with_extension("lock"))?;
    lock.lock().context("the virtual environment's lock")?;
    if !complete.exists() {
        if venv.exists() {
            fs::remove_dir_all(&venv)?;
        }
        run(std::process::Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        run(std::process::Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(&requirements))?;
        File::create(complete)?;
    }
    Ok(python)
}

fn run(command: &mut std::process::Command) -> anyhow::Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}\n{said}", output.status);
    Ok(output.stdout)
}

/// A running demo bot. It is killed when dropped, and its database goes with it.
#[derive(Debug)]
pub struct DemoBot {
    /// Base URL of its own endpoints.
    pub url: String,
    /// The token for its `/emergency/…` and `PUT /limits`.
    pub token: String,
    folder: PathBuf,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl DemoBot {
    /// Starts the bot on a free loopback port and waits until it listens. `env` adds to its configuration.
    pub async fn start(venue: &str, key: &str, secret: &str, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let python = python().await?;
        let folder = folders::scratch(&checkout().join(".work/bots"), "")?;
        let token = "bot-token".to_owned();
        // The kernel ends it with the thread of the test.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(python)
            .arg(self::folder().join("bot.py"))
            .env("VENUE_URL", venue)
            .env("APCA_API_KEY_ID", key)
            .env("APCA_API_SECRET_KEY", secret)
            .env("BOT_TOKEN", &token)
            .env("BOT_ADDRESS", "127.0.0.1")
            .env("BOT_PORT", "0")
            .env("BOT_INTERVAL_SECONDS", "0.2")
            .env("BOT_DB", folder.join("trades.db"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let log = Arc::new(Mutex::new(String::new()));
        let (heard, mut port) = watch::channel(None);
        let (out, err) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        tokio::spawn(listen(out, log.clone(), heard.clone()));
        tokio::spawn(listen(err, log.clone(), heard));
        let mut bot = DemoBot { url: String::new(), token, folder, child, log };
        match tokio::time::timeout(Duration::from_secs(120), port.wait_for(Option::is_some)).await {
            Ok(Ok(port)) => bot.url = format!("http://127.0.0.1:{}", port.unwrap_or_default()),
            _ => bail!("the demo bot does not listen:\n{}", bot.log()),
        }
        Ok(bot)
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its SQLite database.
    pub fn database(&self) -> PathBuf {
        self.folder.join("trades.db")
    }

    /// Asks it to stop, as the kubelet does.
    pub fn terminate(&self) -> anyhow::Result<()> {
        let id = self.child.id().context("the bot is gone already")?;
        run(std::process::Command::new("kill").args(["-TERM", &id.to_string()])).map(|_| ())
    }

    /// Waits for its end.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let end = tokio::time::timeout(limit, self.child.wait()).await;
        Ok(end.with_context(|| format!("the bot still runs:\n{}", self.log()))??)
    }
}

impl Drop for DemoBot {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn listen(pipe: impl AsyncRead + Unpin, log: Arc<Mutex<String>>, port: watch::Sender<Option<u16>>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((_, number)) = line.rsplit_once("listening on port ") {
            port.send_replace(number.trim().parse().ok());
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(&line);
        log.push('\n');
    }
}
