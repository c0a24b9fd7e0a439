//! The gate `cool-off`: for how long the halt was proven.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use standfast_crds::v1alpha1::{StepStatus, TradingHalt};

use super::{
    context::{Context, DEADLINE},
    plan::ResumePlan,
    status::step,
};
use crate::engine::{Acted, Definition, Observation, Step};

/// Whether the halt was proven for long enough, as its controller says. That it is proven now is a gate of its own.
pub fn cooled(halts: &[TradingHalt], plan: &ResumePlan) -> Observation {
    let Some(wanted) = plan.policy.cool_off.filter(|c| !c.get().is_zero()) else {
        return Observation::NotNeeded("the resumePolicy asks for no cool-off".into());
    };
    let name = &plan.halt.name;
    let Some(halt) = halts.iter().find(|h| h.metadata.uid.as_ref() == Some(&plan.halt.uid)) else {
        return Observation::Failed(format!("TradingHalt {name} is gone"));
    };
    let proven = halt.status.as_ref().and_then(|s| s.proven_for);
    match proven {
        Some(proven) if proven >= wanted => {
            Observation::Done(format!("TradingHalt {name} was proven for {wanted} without interruption"))
        }
        proven => {
            // In whole seconds: that is enough for people.
            let so_far = standfast_crds::v1alpha1::Duration::from_secs(proven.map_or(0, |p| p.get().as_secs()));
            Observation::InProgress(format!(
                "TradingHalt {name} was proven for {so_far} of {wanted} without interruption"
            ))
        }
    }
}

/// The halt was proven for long enough.
pub(super) struct CoolOff(pub Arc<Context>);

#[async_trait]
impl Step for CoolOff {
    fn definition(&self) -> Definition {
        Definition {
            look: DEADLINE + Duration::from_secs(1),
            interval: Duration::from_secs(5),
            until: Some(self.0.until),
            ..Definition::new(step::COOL_OFF)
        }
    }

    async fn observe(&self, _: &StepStatus) -> Observation {
        if self.0.plan.policy.cool_off.is_none() {
            return cooled(&[], &self.0.plan);
        }
        match self.0.halts().await {
            Ok(halts) => cooled(&halts, &self.0.plan),
            Err(why) => Observation::InProgress(why),
        }
    }

    async fn act(&self, _: &StepStatus) -> Acted {
        Acted::Started { message: String::new(), external_ref: None }
    }
}
