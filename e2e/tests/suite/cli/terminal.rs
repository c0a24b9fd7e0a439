//! The command line on a real terminal, as somebody sees it: tmux draws it.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use standfast_e2e::{process::program, world::World};
use tokio::process::Command;

use super::trading;

/// A terminal of its own. Ends with the test.
struct Terminal {
    socket: String,
}

impl Terminal {
    /// Runs a command line in it; it stays when the command has ended.
    async fn run(world: &World, command: &str) -> Result<Self> {
        let verb = command.split(' ').next().unwrap_or_default();
        let terminal = Self { socket: format!("standfast-{}-{verb}", world.namespace) };
        let program = program("kubectl-standfast")?;
        let folder = program.parent().context("no folder")?.display().to_string();
        let kubeconfig = world.kubeconfig().display().to_string();
        let shell = format!(
            "export KUBECONFIG={kubeconfig} PATH={folder}:$PATH ; trap : INT; kubectl-standfast {command} -n {}; echo \"exit code $?\"; sleep 600",
            world.namespace
        );
        let output = terminal
            .tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "40", "sh", "-c", &shell])
            .await?;
        ensure!(output.status.success(), "tmux: {}", String::from_utf8_lossy(&output.stderr));
        Ok(terminal)
    }

    async fn tmux(&self, args: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.socket]).args(args).stdin(Stdio::null()).env_remove("TMUX");
        command.output().await.context("running tmux: `e2e/tools.sh apt tests` installs it")
    }

    /// What is on the screen, with the attributes of the text.
    async fn screen(&self) -> Result<String> {
        let output = self.tmux(&["capture-pane", "-p", "-e"]).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same without them.
    async fn text(&self) -> Result<String> {
        let output = self.tmux(&["capture-pane", "-p"]).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until this is on the screen, and gives the screen.
    async fn until(&self, world: &World, part: &str) -> Result<String> {
        let what = format!("{part:?} is on the screen");
        let shown = world.until(&what, async || {
            let text = self.text().await?;
            Ok(text.contains(part).then_some(text))
        });
        match shown.await {
            Ok(text) => {
                eprintln!("{}", text.trim_end());
                Ok(text)
            }
            Err(error) => Err(error.context(self.text().await?)),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = std::process::Command::new("tmux").args(["-L", &self.socket, "kill-server"]).output();
    }
}

/// The view is drawn again in its place: what was true before is not on the screen any more.
#[tokio::test]
async fn a_halt_is_followed_live_in_one_place() -> Result<()> {
    let world = trading("cli-live").await?;
    let terminal = Terminal::run(&world, "halt system --reason 'prices are stale'").await?;
    let before = terminal.until(&world, "NOTHING IS LATCHED").await?;
    assert!(before.contains("scale deployment bot --replicas=0"), "{before}");
    let _operator = world.operator().await?;
    let after = terminal.until(&world, "exit code 0").await?;
    assert!(after.contains("system  HALTED within"), "{after}");
    assert!(!after.contains("NOTHING"), "what is over is gone from the screen:\n{after}");
    assert_eq!(after.matches("prices are stale").count(), 1, "{after}");
    assert_eq!(after.matches("orders 0 open").count(), 1, "{after}");
    assert!(terminal.screen().await?.contains("\x1b[1m\x1b[32mHALTED"), "colours on a terminal");
    let terminal = Terminal::run(&world, "resume system").await?;
    let after = terminal.until(&world, "exit code 0").await?;
    assert_eq!((after.matches("Completed").count(), after.matches("request-release").count()), (1, 1), "{after}");
    assert!(!after.contains("waits"), "{after}");
    Ok(())
}

#[tokio::test]
async fn a_system_is_watched_live() -> Result<()> {
    let world = trading("cli-watch").await?;
    let terminal = Terminal::run(&world, "watch system").await?;
    terminal.until(&world, "system  TRADING").await?;
    let _operator = world.operator().await?;
    world.halt("stale", json!({})).await?;
    world.halted("stale").await?;
    let halted = terminal.until(&world, "system  HALTED for").await?;
    assert!(!halted.contains("TRADING"), "{halted}");
    terminal.tmux(&["send-keys", "C-c"]).await?;
    terminal.until(&world, "exit code 130").await?;
    Ok(())
}

/// It is found by kubectl as a plugin.
#[tokio::test]
async fn kubectl_finds_it_as_a_plugin() -> Result<()> {
    let world = trading("cli-plugin").await?;
    let folder = program("kubectl-standfast")?.parent().context("no folder")?.to_owned();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::from(world.kubectl_command());
    command.env("PATH", path).args(["standfast", "status", "-n", &world.namespace]);
    let output = command.output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("system  TRADING"), "{output:?}");
    Ok(())
}
