//! A PostgreSQL server of one test, from the machine's own package.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::{Child, Command};

use crate::{controlplane::free_port, folders};

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who runs it when the tests run as root, which PostgreSQL refuses: `nobody`.
const NOBODY: u32 = 65534;
/// The password of its superuser `postgres`.
pub const PASSWORD: &str = "pg-canary";

/// A running server. It ends when it is dropped, and its data go with it.
#[derive(Debug)]
pub struct Postgres {
    /// Its port on loopback.
    pub port: u16,
    folder: PathBuf,
    child: Child,
}

impl Postgres {
    /// Starts an empty server.
    pub async fn start() -> Result<Self> {
        // Not in the checkout: below the home of root it is out of the reach of `nobody`.
        let folder = folders::scratch(&std::env::temp_dir(), "standfast-pg-")?;
        let root = fs::metadata(&folder)?.uid() == 0;
        if root {
            chown(&folder, Some(NOBODY), Some(NOBODY))?;
        }
        let password = folder.join("password");
        fs::write(&password, PASSWORD)?;
        let data = folder.join("data");
        let mut init = command("initdb", root)?;
        init.args(["--no-sync", "--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]);
        let init = init.arg("--pwfile").arg(&password).arg("--pgdata").arg(&data).output().await?;
        ensure!(init.status.success(), "initdb failed: {}", String::from_utf8_lossy(&init.stderr));
        let port = free_port()?;
        let mut server = command("postgres", root)?;
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        server.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "max_connections=20"]);
        let log = fs::File::create(folder.join("log"))?;
        let child = server.stdout(log.try_clone()?).stderr(log).kill_on_drop(true).spawn().context("postgres")?;
        let mut server = Self { port, folder, child };
        let until = Instant::now() + PATIENCE;
        while let Err(error) = server.run("SELECT 1").await {
            if Instant::now() > until || server.child.try_wait()?.is_some() {
                let log = fs::read_to_string(server.folder.join("log")).unwrap_or_default();
                bail!("PostgreSQL does not answer: {error:#}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    /// Runs SQL as the superuser.
    pub async fn run(&self, sql: &str) -> Result<String> {
        let mut psql = Command::new(program("psql")?);
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        psql.args(["-U", "postgres", "-d", "postgres", "-c", sql]).env("PGPASSWORD", PASSWORD);
        let output = psql.stdin(Stdio::null()).output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// A connection URL for its superuser.
    pub fn url(&self) -> String {
        format!("postgresql://postgres:{PASSWORD}@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A program of the server's package, run as somebody whom it accepts, and ended with the test.
fn command(name: &str, root: bool) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if root {
        let id = NOBODY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    }
    command.arg("--").arg(program(name)?).stdin(Stdio::null()).current_dir("/");
    Ok(command)
}

/// From the path, or where Debian's packages keep the server's programs, of the newest version.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<_> =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|e| e.path()).collect();
    versions.sort_by_key(|p| p.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok()));
    let folders = std::env::split_paths(&path).chain(versions.into_iter().rev().map(|v| v.join("bin")));
    let found = folders.map(|f| f.join(name)).find(|p: &PathBuf| Path::is_file(p));
    found.with_context(|| format!("{name} is missing: install the package postgresql"))
}
