//! The command line.

use std::{collections::BTreeMap, path::PathBuf, time};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use standfast_crds::v1alpha1::{CancelOrders, Duration, PositionAction};

/// Halts trading systems, shows that they are halted, and resumes trading.
#[derive(Debug, Parser)]
#[command(name = "kubectl-standfast", bin_name = "kubectl standfast", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What is done.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, as whom, and how it is shown: the names are kubectl's.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Namespace of the trading system [default: that of the context]
    #[arg(long, short, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Kubeconfig file [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Act as this user (needs the right to impersonate)
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// Act as a member of this group; may be repeated, goes with --as
    #[arg(long, global = true, value_name = "GROUP", requires = "as_user")]
    pub as_group: Vec<String>,
    /// Print the result for programs (docs/cli.md tells the fields)
    #[arg(long, short, global = true, value_enum)]
    pub output: Option<Format>,
}

/// How a result is printed for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Json,
    Yaml,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Halted or trading, since when, why, by whom, and what to do next
    Status {
        /// The TradingSystem [default: all of the namespace]
        system: Option<String>,
    },
    /// Halt trading systems, and wait until it is proven
    ///
    /// Exit code 0: halted, proven. 2: halted as far as is known, but not proven. 1: not halted.
    /// The same command again makes no second halt while the first one is not released.
    Halt(Halt),
    /// Resume trading after a halt, through its gates
    ///
    /// Exit code 0: trading, or evaluated. 1: not resumed. 2: a person has to look: halted again, or an outcome that
    /// cannot be known. 3: not finished within --timeout.
    Resume(Resume),
    /// Approve a resume or a halt: shows what would be done, asks, and submits the hash of what was shown
    Approve(Decide),
    /// Reject a resume or a halt
    Reject(Decide),
    /// The same as status, again and again
    Watch {
        /// The TradingSystem [default: all of the namespace]
        system: Option<String>,
    },
    /// What happened during a halt, with times
    Explain {
        /// The TradingHalt
        halt: String,
    },
    /// Would an emergency halt work now? Exit code 0: nothing stands in its way. 1: something does
    Prepared {
        /// The TradingSystem [default: all of the namespace]
        system: Option<String>,
        /// Namespace of the operator, whose Lease tells whether it runs
        #[arg(long, default_value = "standfast-system", value_name = "NAME")]
        operator_namespace: String,
    },
    /// Print a completion script
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// Arguments of `halt`.
#[derive(Debug, Args)]
pub struct Halt {
    /// The TradingSystems
    #[arg(required_unless_present_any = ["all", "selector"], conflicts_with_all = ["all", "selector"])]
    pub systems: Vec<String>,
    /// All TradingSystems of the namespace, by one TradingHalt
    #[arg(long, conflicts_with = "selector")]
    pub all: bool,
    /// The TradingSystems with these labels, by one TradingHalt
    #[arg(long, short = 'l', value_name = "KEY=VALUE,…", value_parser = labels)]
    pub selector: Option<Labels>,
    /// Why; one line. People read it where the latch refuses something
    #[arg(long, short)]
    pub reason: String,
    /// Which open orders are cancelled: All, NonProtective or None
    #[arg(long, value_name = "WHICH", default_value = "All", value_parser = cancel)]
    pub cancel: CancelOrders,
    /// What happens to positions: Keep, CloseAll, CloseMatching or ReduceTo, as far as the system's haltPolicy allows it
    #[arg(long, value_name = "ACTION", default_value = "Keep", value_parser = positions)]
    pub positions: PositionAction,
    /// With CloseMatching: positions that lose more than so many percent, such as 10
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub loss_below: Option<String>,
    /// With CloseMatching: positions that are held for longer than this, such as 168h
    #[arg(long, value_name = "DURATION", value_parser = held_for)]
    pub held_longer_than: Option<Duration>,
    /// With ReduceTo: how many percent of equity all positions of a venue may be worth together, such as 50
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub exposure: Option<String>,
    /// Name of the TradingHalt [default: made of the system and of what is asked for]
    #[arg(long)]
    pub name: Option<String>,
    /// Create it and do not wait
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = duration)]
    pub timeout: time::Duration,
    /// Only say what would be created, after the API server has checked it
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `resume`.
#[derive(Debug, Args)]
pub struct Resume {
    /// The TradingSystem
    pub system: String,
    /// The TradingHalt to release [default: the only one that holds]
    #[arg(long, value_name = "NAME")]
    pub halt: Option<String>,
    /// Name of the TradingResume [default: made of the halt's]
    #[arg(long)]
    pub name: Option<String>,
    /// Evaluate every gate and say what would happen; nothing is released (spec.dryRun)
    #[arg(long)]
    pub evaluate: bool,
    /// Create it and do not wait
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait [default: until it ends]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<time::Duration>,
    /// Only say what would be created, after the API server has checked it
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `approve` and `reject`.
#[derive(Debug, Args)]
pub struct Decide {
    /// The TradingResume, or the TradingHalt with --halt
    pub subject: String,
    /// It is a TradingHalt
    #[arg(long)]
    pub halt: bool,
    /// Why
    #[arg(long)]
    pub comment: Option<String>,
    /// Accept the breaks of the reconciliation that are shown
    #[arg(long)]
    pub accept_breaks: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// For how long it counts
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub expires: Option<time::Duration>,
    /// Only say what would be created, after the API server has checked it
    #[arg(long)]
    pub dry_run: bool,
}

fn cancel(text: &str) -> Result<CancelOrders, String> {
    [CancelOrders::All, CancelOrders::NonProtective, CancelOrders::None]
        .into_iter()
        .find(|c| format!("{c:?}").eq_ignore_ascii_case(text))
        .ok_or_else(|| "write All, NonProtective or None".into())
}

/// Labels and their values.
pub type Labels = BTreeMap<String, String>;

fn labels(text: &str) -> Result<Labels, String> {
    let wrong = || "write key=value, and several with commas: desk=fx,region=eu".to_owned();
    let pair = |pair: &str| {
        let (key, value) = pair.trim().split_once('=').ok_or_else(wrong)?;
        let value = value.strip_prefix('=').unwrap_or(value);
        // `!=` would select what it is to leave out.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        let fits = !key.is_empty() && key.chars().chain(value.chars()).all(plain);
        if fits { Ok((key.to_owned(), value.to_owned())) } else { Err(wrong()) }
    };
    text.split(',').map(pair).collect()
}

fn positions(text: &str) -> Result<PositionAction, String> {
    use PositionAction as P;
    [P::Keep, P::CloseAll, P::CloseMatching, P::ReduceTo]
        .into_iter()
        .find(|a| a.as_str().eq_ignore_ascii_case(text))
        .ok_or_else(|| "write Keep, CloseAll, CloseMatching or ReduceTo".into())
}

/// A number of percent; its limits are the API server's to tell.
fn percent(text: &str) -> Result<String, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    let decimal = number.chars().all(|c| c.is_ascii_digit() || c == '.') && number.parse::<f64>().is_ok();
    if decimal {
        Ok(number.to_owned())
    } else {
        Err("write a number of percent without a sign, such as 10 or 2.5".into())
    }
}

fn held_for(text: &str) -> Result<Duration, String> {
    text.parse()
}

fn duration(text: &str) -> Result<time::Duration, String> {
    text.parse::<Duration>().map(Duration::get)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn read(args: &[&str]) -> Result<Cli, String> {
        Cli::try_parse_from(["kubectl-standfast"].iter().chain(args)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_arguments_stand_anywhere() {
        let cli = read(&["-n", "fx", "status", "bot", "-o", "json", "--context=prod", "--as", "bob"]).unwrap();
        assert_eq!(cli.global.namespace.as_deref(), Some("fx"));
        assert_eq!(cli.global.output, Some(Format::Json));
        assert_eq!((cli.global.context.as_deref(), cli.global.as_user.as_deref()), (Some("prod"), Some("bob")));
    }

    #[test]
    fn a_halt_needs_a_system_and_a_reason() {
        for (args, expected) in [
            (&["halt", "bot"][..], "--reason"),
            (&["halt", "--reason", "x"], "SYSTEMS"),
            (&["halt", "bot", "--all", "--reason", "x"], "cannot be used with"),
            (&["halt", "bot", "-l", "desk=fx", "--reason", "x"], "cannot be used with"),
            (&["halt", "--all", "-l", "desk=fx", "--reason", "x"], "cannot be used with"),
            (&["halt", "-l", "desk", "--reason", "x"], "write key=value"),
            (&["halt", "-l", "desk!=fx", "--reason", "x"], "write key=value"),
            (&["halt", "-l", "", "--reason", "x"], "write key=value"),
            (
                &["halt", "bot", "--reason", "x", "--positions", "Sell"],
                "write Keep, CloseAll, CloseMatching or ReduceTo",
            ),
            (&["halt", "bot", "--reason", "x", "--loss-below=-10"], "without a sign"),
            (&["halt", "bot", "--reason", "x", "--cancel", "some"], "write All, NonProtective or None"),
            (&["halt", "bot", "--reason", "x", "--timeout", "5 minutes"], "write 500ms, 90s, 15m or 1h30m"),
            (&["status", "--as-group", "risk"], "--as <USER>"),
        ] {
            let error = read(args).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let Command::Halt(halt) = read(&["halt", "a", "b", "--reason", "x", "--cancel", "none"]).unwrap().command
        else {
            panic!("not a halt");
        };
        assert_eq!((halt.systems.len(), halt.cancel, halt.positions), (2, CancelOrders::None, PositionAction::Keep));
        let args = [
            "halt",
            "-l",
            "desk=fx,region==eu",
            "--reason",
            "x",
            "--positions",
            "closematching",
            "--loss-below",
            "10%",
        ];
        let Command::Halt(halt) = read(&args).unwrap().command else { panic!("not a halt") };
        let labels: Vec<_> = halt.selector.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(labels, ["desk=fx", "region=eu"]);
        assert_eq!((halt.positions, halt.loss_below.as_deref()), (PositionAction::CloseMatching, Some("10")));
    }
}
