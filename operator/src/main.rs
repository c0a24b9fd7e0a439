//! Reads the arguments, puts the real world in, and runs until it is told to stop or is not the leader any more.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kube::Config;
use standfast_operator::{
    admin::{Admin, Readiness, STUCK, Watchdog},
    app,
    args::Args,
    client::Clients,
    events::Events,
    leader::{Candidate, Settings},
    metrics::Metrics,
    outbound::{
        api_server,
        connect::{Connector, SystemResolver},
        guard::{Guard, GuardConfig},
        http::HttpTransport,
    },
    telemetry,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long the admin server and the last calls may take after a signal.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = match Args::read(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    if let Err(error) = telemetry::init(args.log_format, &args.log) {
        eprintln!("standfast: {error}");
        return ExitCode::from(2);
    }
    let run = || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
        runtime.block_on(run(args))?;
        runtime.shutdown_timeout(GRACE);
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the operator ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = Config::infer().await.context("finding the cluster")?;
    let clients = Clients::new(&config, args.write_concurrency)?;
    let metrics = Metrics::new();
    let (readiness, watchdog) = (Readiness::new(), Watchdog::new());
    let stop = CancellationToken::new();
    let admin = Admin { watchdog: watchdog.clone(), readiness: readiness.clone(), metrics: metrics.clone() };
    readiness.expect("caches");
    readiness.expect("lease");
    let server = tokio::spawn(admin.serve(args.listen, stop.clone()));

    let guard = Arc::new(Guard::new(GuardConfig {
        deny_cidrs: args.deny_cidrs.0.clone(),
        allow_cidrs: args.allow_cidrs.0.clone(),
        cluster_domain: args.cluster_domain.clone(),
        api_server: api_server::addresses(&config, &args.cluster_domain, &SystemResolver::default()).await,
    }));
    let mut endpoints = api_server::Endpoints::new(clients.api.clone(), Arc::clone(&guard));
    // Before anything is called.
    endpoints.refresh().await;
    tokio::spawn(endpoints.keep());
    let connector = || Connector::new(Arc::clone(&guard), Arc::new(SystemResolver::default()), vec![]);
    let connector = || connector().context("setting up TLS");
    // Halts do not share their calls with anything: neither connections nor turns.
    let halt_transport = Arc::new(HttpTransport::new(connector()?, 1024));
    let transport = Arc::new(HttpTransport::new(connector()?, args.call_concurrency.into()));
    let parts = app::Parts {
        clients: clients.clone(),
        halt_transport,
        transport,
        connector: connector()?,
        scope: args.watch_namespaces.clone(),
        kinds: args.scalable_kinds.clone(),
        events: Events::start(clients.api.clone(), &args.pod_name, metrics.clone()),
        metrics: metrics.clone(),
        watchdog: watchdog.clone(),
        halt_concurrency: args.halt_concurrency,
        concurrency: args.concurrency,
    };
    let warm = app::warm(&parts);

    let settings = Settings::new(&args.namespace, &args.lease_name, &args.pod_uid);
    let candidate = Candidate::new(clients.lease.clone(), settings)?;
    let mut holder = candidate.holder();
    let lease = readiness.clone();
    tokio::spawn(async move {
        // A standby is ready when it knows who leads.
        if holder.wait_for(Option::is_some).await.is_ok() {
            lease.set("lease", Ok(()));
        }
    });
    let lead = async {
        warm.ready().await;
        readiness.set("caches", Ok(()));
        // Watched from here on: nobody asks for the lease before. A leader whose caches are stuck makes way at once.
        let term = candidate.while_healthy(watchdog.asked_by("lease", STUCK)).acquire().await;
        metrics.leader(&args.lease_name, true);
        (warm, term)
    };
    tracing::info!(scope = %args.watch_namespaces, "started");
    let (warm, term) = tokio::select! {
        lead = lead => lead,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        ended = server => return ended?.context("serving health and metrics"),
    };
    let leadership = term.leadership();
    let ended = tokio::select! {
        ended = warm.lead(parts, leadership) => ended.map(|never| match never {}).map_err(anyhow::Error::from),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    // The controllers are gone: nothing acts any more.
    metrics.leader(&args.lease_name, false);
    term.release().await;
    stop.cancel();
    ended
}
