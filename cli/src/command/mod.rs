//! What each command does: asks, shows, and creates. The only part that does I/O beside `cluster` and `screen`.

mod approve;
mod explain;
mod halt;
mod prepared;
mod resume;
mod status;

use std::io;

use clap::CommandFactory;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{Decision, TradingSystem};

use crate::{
    args::{Cli, Command, Format},
    cluster::{Cluster, Kind},
    failure::Failure,
    screen::{self, Stream},
    text::Line,
};

/// Exit code of a command that did what it should.
pub const DONE: u8 = 0;
/// Exit code of one that did not.
pub const FAILED: u8 = 1;
/// Exit code of one whose end a person has to look at.
pub const LOOK: u8 = 2;
/// Exit code of one that gave up waiting.
pub const WAITING: u8 = 3;
/// Exit code of one that was interrupted; what was asked of the cluster goes on.
pub const INTERRUPTED: u8 = 130;

/// The cluster, and how results are shown.
pub struct Context {
    /// The cluster.
    pub cluster: Cluster,
    /// For programs, or for people.
    pub output: Option<Format>,
}

impl Context {
    /// Where people read along: beside a result for programs.
    pub fn people(&self) -> Stream {
        if self.output.is_some() { Stream::Err } else { Stream::Out }
    }

    /// Prints a result: for programs in full, for people as lines.
    pub fn show<T: Serialize>(&self, value: &T, lines: impl FnOnce() -> Vec<Line>) -> Result<(), Failure> {
        match self.output {
            Some(format) => screen::result(value, format),
            None => {
                Stream::Out.print(&lines());
                Ok(())
            }
        }
    }

    /// The system of this name. The failure names those that there are.
    pub async fn system(&self, name: &str) -> Result<TradingSystem, Failure> {
        match self.cluster.get(name).await? {
            Some(system) => Ok(system),
            None => Err(self.no_such::<TradingSystem>(name).await),
        }
    }

    /// There is no such object. Says which there are.
    pub async fn no_such<K: Kind>(&self, name: &str) -> Failure {
        let (kind, namespace) = (K::kind(&()), &self.cluster.namespace);
        let there = match self.cluster.list::<K>().await {
            Ok(listed) => there_are(&listed.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>()),
            Err(failure) => failure.message,
        };
        Failure::new(format!("{kind} {name} not found in namespace {namespace}: {there}"))
            .hint("another namespace is chosen with -n, another cluster with --context")
    }

    /// Says what would be created, after the API server has checked it.
    pub fn would_create<K: Kind>(&self, name: &str, spec: &Value) -> Result<(), Failure> {
        let object = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()),
            "metadata": {"name": name, "namespace": self.cluster.namespace}, "spec": spec});
        Stream::Err.print(&[Line::of("Dry run: the API server would accept this, and nothing was created.")]);
        screen::result(&object, self.output.unwrap_or(Format::Yaml))
    }
}

/// Names in a sentence.
pub fn there_are(names: &[String]) -> String {
    match names {
        [] => "there is none".into(),
        [one] => format!("there is {one}"),
        [..] => format!("there are {}", names.join(", ")),
    }
}

/// Runs a command and gives its exit code.
pub async fn run(cli: Cli) -> u8 {
    match dispatch(cli).await {
        Ok(code) => code,
        Err(failure) => {
            screen::fail(&failure);
            FAILED
        }
    }
}

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    if let Command::Completion { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "kubectl-standfast", &mut io::stdout());
        return Ok(DONE);
    }
    let context = Context { cluster: Cluster::connect(&cli.global).await?, output: cli.global.output };
    match cli.command {
        Command::Status { system } => status::run(&context, system.as_deref()).await,
        Command::Watch { system } => status::watch(&context, system.as_deref()).await,
        Command::Halt(args) => halt::run(&context, &args).await,
        Command::Resume(args) => resume::run(&context, &args).await,
        Command::Approve(args) => approve::run(&context, &args, Decision::Approve).await,
        Command::Reject(args) => approve::run(&context, &args, Decision::Reject).await,
        Command::Explain { halt } => explain::run(&context, &halt).await,
        Command::Prepared { system, operator_namespace } => {
            prepared::run(&context, system.as_deref(), &operator_namespace).await
        }
        Command::Completion { .. } => Ok(DONE),
    }
}

/// The present moment.
fn now() -> Timestamp {
    Timestamp::now()
}
