//! The charts by themselves, without a cluster.

use std::{
    fs,
    process::{Command, Output},
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};
use rstest::rstest;
use standfast_e2e::controlplane::checkout;
use standfast_operator::{args::Args, kinds::Kinds};

/// Helm, built when it is missing.
fn helm(arguments: &[&str]) -> Result<Output> {
    static HELM: OnceLock<Result<String>> = OnceLock::new();
    let found = HELM.get_or_init(|| {
        let built = Command::new(checkout().join("e2e/tools.sh")).arg("helm").output()?;
        ensure!(built.status.success(), "e2e/tools.sh helm: {}", String::from_utf8_lossy(&built.stderr));
        Ok(String::from_utf8(built.stdout)?.trim().to_owned())
    });
    let program = found.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    Command::new(program).args(arguments).current_dir(checkout()).output().context("helm")
}

/// What the chart of the operator makes of these settings, or why it does not.
pub fn template(namespace: &str, settings: &[&str]) -> Result<Result<String, String>> {
    let chart = ["template", "standfast", "charts/standfast", "--kube-version", "1.33.0", "--namespace", namespace];
    let settings: Vec<_> = settings.iter().flat_map(|setting| ["--set-json", setting]).collect();
    let output = helm(&[&chart[..], &settings].concat())?;
    let (made, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok(if output.status.success() { Ok(made) } else { Err(said) })
}

/// What the chart of the kinds and guardrails makes of these settings, or why it does not.
pub fn definitions(settings: &[&str]) -> Result<Result<String, String>> {
    let chart = ["template", "standfast-crds", "charts/standfast-crds", "--kube-version", "1.33.0"];
    let settings: Vec<_> = settings.iter().flat_map(|setting| ["--set-json", setting]).collect();
    let output = helm(&[&chart[..], &settings].concat())?;
    let (made, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok(if output.status.success() { Ok(made) } else { Err(said) })
}

/// What the chart of the operator makes of these settings for a variable of its environment.
pub fn variable(settings: &[&str], name: &str) -> Result<String> {
    let made = template(HOME, settings)?.map_err(anyhow::Error::msg)?;
    let (_, after) = made.split_once(&format!("- name: {name}\n")).with_context(|| format!("no {name}"))?;
    let value = after.trim_start().lines().next().and_then(|line| line.strip_prefix("value: "));
    serde_json::from_str(value.context("no value")?).context("its value")
}

const HOME: &str = "standfast-system";

/// The same kinds are taken by both charts and by the operator.
#[rstest]
#[case(r#"{"group": "argoproj.io", "version": "v1alpha1", "kind": "Rollout", "plural": "rollouts"}"#, None)]
#[case(r#"{"group": "a.io", "version": "v1", "kind": "A", "plural": "as", "selectorPath": ".status.a.b"}"#, None)]
#[case(r#"{"group": "*", "version": "v1", "kind": "A", "plural": "as"}"#, Some("/group"))]
#[case(r#"{"group": "a.io", "version": "v1", "kind": "A", "plural": "*"}"#, Some("/plural"))]
#[case(r#"{"group": "a.io", "version": "v1", "kind": "StatefulSet", "plural": "as"}"#, Some("/kind"))]
#[case(
    r#"{"group": "a.io", "version": "v1", "kind": "A", "plural": "as", "selectorPath": ".a[0]"}"#,
    Some("/selectorPath")
)]
#[case(r#"{"group": "a.io", "version": "v1", "kind": "A"}"#, Some("plural"))]
#[case(
    r#"{"group": "a.io", "version": "v1", "kind": "ANameThatIsLongerThanAnyOfThoseThatAreKnown", "plural": "as"}"#,
    Some("/kind")
)]
fn kinds_are_those_of_the_operator(#[case] kind: &str, #[case] refused: Option<&str>) -> Result<()> {
    let setting = format!("scalableKinds=[{kind}]");
    let (operator, guardrails) = (template(HOME, &[&setting])?, definitions(&[&setting])?);
    let Some(why) = refused else {
        let text = variable(&[&setting], "STANDFAST_SCALABLE_KINDS")?;
        let kinds: Kinds = text.parse().map_err(anyhow::Error::msg)?;
        let scalable = &kinds.scalable()[0];
        let rules = operator.expect("made");
        for (resource, verbs) in [("", "get, list, watch"), ("/scale", "get, patch")] {
            let rule = format!(
                "{{apiGroups: [{:?}], resources: [\"{}{resource}\"], verbs: [{verbs}]}}",
                scalable.group, scalable.plural
            );
            assert!(rules.contains(&rule), "{rule}");
        }
        let roles = rules.split("\n---\n").filter(|d| d.contains("kind: ClusterRole\n") || d.contains("kind: Role\n"));
        let wildcard = roles.flat_map(str::lines).find(|line| !line.starts_with('#') && line.contains('*'));
        assert_eq!(wildcard, None);
        assert!(guardrails.expect("made").contains(&format!("{}/scale", scalable.plural)));
        return Ok(());
    };
    for said in [operator.expect_err("refused"), guardrails.expect_err("refused")] {
        assert!(said.contains(why), "{said}");
    }
    Ok(())
}

/// What the chart takes, the operator takes too: else an upgrade succeeds and the pods never start.
#[rstest]
#[case("10.0.0.0/8", None)]
#[case("10.128.0.0/9", None)]
#[case("192.0.2.7/32", None)]
#[case("0.0.0.0/0", None)]
#[case("::/0", None)]
#[case("fd00::/8", None)]
#[case("FE80::/10", None)]
#[case("2001:db8::/31", None)]
#[case("2001:db8::1/128", None)]
#[case("1:2:3:4:5:6:7:8/128", None)]
#[case("1:2:3:4:5:6:7::/112", None)]
#[case("10.0.0.5/8", Some("10.0.0.5/8 has host bits"))]
#[case("172.17.0.0/12", Some("172.17.0.0/12 has host bits"))]
#[case("fd00::1/64", Some("fd00::1/64 has host bits"))]
#[case("febf::/9", Some("febf::/9 has host bits"))]
#[case("1:2:3:4::5:6:7:8/128", Some("more than eight groups"))]
#[case("999.1.1.1/99", Some("does not match pattern"))]
#[case("10.0.0.0/33", Some("does not match pattern"))]
#[case("010.0.0.0/8", Some("does not match pattern"))]
#[case("fd00::/129", Some("does not match pattern"))]
#[case("fd00/8", Some("does not match pattern"))]
#[case("1:2:3/64", Some("does not match pattern"))]
#[case("10.0.0.5", Some("does not match pattern"))]
#[case("", Some("does not match pattern"))]
fn networks_are_those_of_the_operator(#[case] network: &str, #[case] refused: Option<&str>) -> Result<()> {
    let needed = ["standfast", "--namespace=x", "--pod-name=x", "--pod-uid=x"].map(str::to_owned);
    for (value, argument) in [("allowCIDRs", "--allow-cidrs"), ("denyCIDRs", "--deny-cidrs")] {
        let chart = template(HOME, &[&format!("outbound.{value}=[{network:?}]")])?;
        let operator = Args::read(needed.iter().cloned().chain([format!("{argument}={network}")]));
        match (refused, chart) {
            (None, made) => assert!(made.is_ok() && operator.is_ok(), "{made:?} {operator:?}"),
            (Some(why), Err(said)) => assert!(said.contains(why), "{said}"),
            (Some(_), Ok(_)) => panic!("the chart takes {network}, the operator: {operator:?}"),
        }
    }
    Ok(())
}

#[rstest]
#[case(&[r#"outbound={"allowCIDRs": ["fd00::/8"], "denyCIDRs": ["10.0.0.0/8", "FD00:0::/8"]}"#], "is both in allowCIDRs and in denyCIDRs")]
#[case(&[r#"clusterDomain="a..b""#], "at '/clusterDomain'")]
#[case(&[r#"clusterDomain="cluster.local.""#], "at '/clusterDomain'")]
#[case(&[r#"log={"level": "loud"}"#], "at '/log/level'")]
#[case(&[r#"log={"level": "info,kube=loud"}"#], "at '/log/level'")]
#[case(&[r#"watchNamespaces=["a.b"]"#], "at '/watchNamespaces/0'")]
#[case(
    &[r#"scalableKinds=[{"group": "a.io", "version": "v1", "kind": "A", "plural": "as"}, {"group": "b.io", "version": "v1", "kind": "A", "plural": "as"}]"#],
    "two kinds are called A"
)]
fn what_the_operator_would_not_start_with_is_refused(#[case] settings: &[&str], #[case] why: &str) -> Result<()> {
    let said = template(HOME, settings)?.expect_err("refused");
    assert!(said.contains(why), "{said}");
    Ok(())
}

#[test]
fn other_values_of_the_same_fields_are_taken() -> Result<()> {
    let settings =
        [r#"clusterDomain="k8s.example.com""#, r#"log={"level": "info,kube=debug,standfast_operator::halt=trace"}"#];
    template(HOME, &settings)?.expect("taken");
    Ok(())
}

/// The guardrails leave out the operator's namespace by its name: a latch must not be able to stop the operator.
#[test]
fn another_namespace_has_to_be_allowed() -> Result<()> {
    let said = template("ops", &[])?.expect_err("refused");
    assert!(said.contains("install with --namespace standfast-system"), "{said}");
    template("ops", &["allowAnyNamespace=true"])?.expect("allowed");
    let policies = fs::read_to_string(checkout().join("crds/policies/guardrails.yaml"))?;
    assert!(policies.contains(&format!("kube-node-lease, {HOME}]")));
    Ok(())
}

#[test]
fn alerts_are_about_this_installation() -> Result<()> {
    let settings = ["allowAnyNamespace=true", r#"metrics={"prometheusRule": {"enabled": true}}"#];
    let rules = template("ops", &settings)?.expect("made");
    for metric in ["leader_election_master_status", "standfast_guardrails_intact"] {
        assert!(rules.contains(&format!(r#"{metric}{{namespace="ops""#)), "{metric}: {rules}");
    }
    Ok(())
}

/// Notes are copied in an emergency: the end of what the shell reads stands at the beginning of its line.
#[test]
fn commands_in_the_notes_come_to_an_end() -> Result<()> {
    let notes = fs::read_to_string(checkout().join("charts/standfast/templates/NOTES.txt"))?;
    let lines: Vec<_> = notes.lines().collect();
    let begun: Vec<_> = (0..lines.len()).filter(|n| lines[*n].ends_with("<<END")).collect();
    assert!(!begun.is_empty());
    for begin in begun {
        let end = lines[begin..].iter().find(|line| line.trim() == "END");
        assert_eq!(end, Some(&"END"));
    }
    Ok(())
}
