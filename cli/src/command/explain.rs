//! `explain`: what happened during a halt.

use standfast_crds::v1alpha1::TradingHalt;

use super::{Context, DONE, now};
use crate::{
    failure::Failure,
    view::timeline::{self, Timeline},
};

/// Shows the course of a halt.
pub async fn run(context: &Context, name: &str) -> Result<u8, Failure> {
    let Some(halt) = context.cluster.get::<TradingHalt>(name).await? else {
        return Err(context.no_such::<TradingHalt>(name).await);
    };
    let course = Timeline::of(&halt, now());
    context.show(&course, || timeline::lines(&course))?;
    Ok(DONE)
}
