//! The paper venue as a program, for the demo and for tests from outside.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use clap::Parser;
use standfast_e2e::venue::{Behaviour, Decimal, PaperVenue};
use tokio::signal::unix::{SignalKind, signal};

/// A broker that speaks a subset of Alpaca's trading API and keeps everything in memory.
#[derive(Parser)]
struct Options {
    /// Where to listen.
    #[arg(long, env = "PAPER_VENUE_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Accounts that exist from the start, as KEY:SECRET, separated by commas. Best given by the environment.
    #[arg(long, env = "PAPER_VENUE_ACCOUNTS", value_delimiter = ',', hide_env_values = true)]
    accounts: Vec<String>,

    /// Prices at the start, as SYMBOL=PRICE, separated by commas; every other symbol costs 100.
    #[arg(long, env = "PAPER_VENUE_PRICES", value_delimiter = ',')]
    prices: Vec<String>,

    /// From being marketable to the fill, in ms.
    #[arg(long, env = "PAPER_VENUE_FILL_DELAY_MS", default_value_t = 0)]
    fill_delay_ms: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter("info").init();
    let options = Options::parse();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let venue = PaperVenue::bind(options.listen).with_context(|| format!("cannot listen on {}", options.listen))?;
    venue.set_behaviour(Behaviour { fill_delay_ms: options.fill_delay_ms, ..Behaviour::default() });
    for price in options.prices.iter().filter(|p| !p.is_empty()) {
        let (symbol, price) = price.split_once('=').context("a price is SYMBOL=PRICE")?;
        venue.set_price(symbol, price.parse::<Decimal>().with_context(|| format!("the price of {symbol}"))?);
    }
    for account in options.accounts.iter().filter(|a| !a.is_empty()) {
        match account.split_once(':') {
            Some((key, secret)) if !key.is_empty() && !secret.is_empty() => venue.account(key, secret),
            _ => bail!("an account is KEY:SECRET"),
        }
    }
    tracing::info!(addr = %venue.addr, accounts = options.accounts.len(), "the paper venue listens");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("the paper venue stops");
    Ok(())
}
