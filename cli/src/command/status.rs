//! `status` and `watch`: how the systems of a namespace stand.

use std::time::Duration;

use kube::ResourceExt;
use serde_json::{Value, json};
use standfast_crds::v1alpha1::{TradingHalt, TradingResume, TradingSystem};

use super::{Context, DONE, INTERRUPTED, now, there_are};
use crate::{
    args::Format,
    failure::Failure,
    screen::{self, Live, Stream},
    text::{Line, Style},
    view::{
        halt::{self, HaltView},
        manual,
        resume::ResumeView,
        system::{self, SystemView},
    },
};

/// How often `watch` looks.
const PACE: Duration = Duration::from_secs(1);

/// The systems of a namespace, or one of them.
struct Scene {
    systems: Vec<TradingSystem>,
    views: Vec<SystemView>,
    halts: Vec<TradingHalt>,
    /// Halts of several systems that are not released, with one of those that are shown.
    groups: Vec<HaltView>,
    odd: Vec<String>,
}

impl Scene {
    async fn look(context: &Context, system: Option<&str>) -> Result<Self, Failure> {
        let cluster = &context.cluster;
        let (systems, halts, resumes) = futures::try_join!(
            cluster.list::<TradingSystem>(),
            cluster.list::<TradingHalt>(),
            cluster.list::<TradingResume>()
        )?;
        let names: Vec<String> = systems.items.iter().map(ResourceExt::name_any).collect();
        let wanted = |s: &&TradingSystem| system.is_none_or(|name| s.name_any() == name);
        let views: Vec<_> = systems
            .items
            .iter()
            .filter(wanted)
            .map(|s| SystemView::of(s, &halts.items, &resumes.items, &cluster.say, now()))
            .collect();
        let odd = [systems.odd, halts.odd, resumes.odd].concat();
        if let (Some(name), true) = (system, views.is_empty()) {
            let there = [vec![there_are(&names)], odd].concat().join("; ");
            let message = format!("TradingSystem {name} not found in namespace {}: {there}", cluster.namespace);
            return Err(
                Failure::new(message).hint("another namespace is chosen with -n, another cluster with --context")
            );
        }
        let groups = halts.items.iter().filter(|h| h.spec.is_group()).map(|h| HaltView::of(h, now()));
        let concerned = |h: &HaltView| system.is_none_or(|name| h.systems.iter().any(|e| e.system == name));
        let groups = groups.filter(|h| h.phase != "Released" && concerned(h)).collect();
        Ok(Self { systems: systems.items, views, halts: halts.items, groups, odd })
    }

    fn json(&self, context: &Context) -> Value {
        json!({"namespace": context.cluster.namespace, "systems": self.views, "groups": self.groups, "unreadable": self.odd})
    }

    fn lines(&self, context: &Context) -> Vec<Line> {
        let mut lines = match self.views.as_slice() {
            [] => vec![Line::of(format!("There is no TradingSystem in namespace {}.", context.cluster.namespace))],
            [one] => {
                let mut lines = system::lines(one, &self.halts, now());
                if let Some(deaf) = one.deaf(now()) {
                    let system: Vec<_> = self.systems.iter().filter(|s| s.name_any() == one.name).cloned().collect();
                    lines.extend(manual::lines(&system, deaf, &context.cluster.say));
                }
                lines
            }
            several => {
                let mut lines = system::overview(several, now());
                lines
                    .push(Line::of(format!("One of them in full: {}", context.cluster.say.standfast("status SYSTEM"))));
                lines
            }
        };
        for group in &self.groups {
            let (style, word) = group.word();
            let text = format!(", {} systems, {}{}", group.systems.len(), group.reason, halt::asked(group, now()));
            let line = Line::of("TradingHalt ").and(Style::Bold, &group.name).and(Style::Plain, "  ");
            lines.push(line.and(style, word).and(Style::Plain, text));
        }
        lines.extend(self.odd.iter().map(|o| Line::new().and(Style::Bad, o)));
        lines
    }

    fn news(&self) -> Vec<String> {
        let of = |view: &SystemView| {
            let halts = view.halts.iter().map(HaltView::progress);
            let resume = view.resume.iter().map(ResumeView::progress);
            let own: Vec<String> = halts.chain(resume).collect();
            if own.is_empty() { vec![format!("{}: {:?}", view.name, view.state)] } else { own }
        };
        self.views.iter().flat_map(of).collect()
    }
}

/// Shows how things stand.
pub async fn run(context: &Context, system: Option<&str>) -> Result<u8, Failure> {
    let scene = Scene::look(context, system).await?;
    context.show(&scene.json(context), || scene.lines(context))?;
    Ok(DONE)
}

/// Shows it again and again, until it is interrupted. For programs: each change, as one line of JSON or one document.
pub async fn watch(context: &Context, system: Option<&str>) -> Result<u8, Failure> {
    let mut live = Live::new(Stream::Out);
    let mut last = Value::Null;
    let mut seen = false;
    loop {
        match (Scene::look(context, system).await, context.output) {
            (Ok(scene), Some(format)) => {
                let now = scene.json(context);
                if now != last {
                    match format {
                        Format::Json => screen::line(&now.to_string()),
                        Format::Yaml => {
                            screen::line("---");
                            screen::result(&now, format)?;
                        }
                    }
                    last = now;
                }
                seen = true;
            }
            (Ok(scene), None) => {
                live.show(&scene.lines(context), &scene.news());
                seen = true;
            }
            // What is wrong from the start does not get better.
            (Err(failure), _) if !seen || !failure.passing => return Err(failure),
            (Err(failure), Some(_)) => screen::fail(&failure),
            (Err(failure), None) => {
                let text = format!("not known: {}", failure.message);
                live.show(&[Line::new().and(Style::Bad, &text)], &[text]);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
        }
    }
}
