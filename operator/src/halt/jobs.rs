//! Actions and reads that run as Jobs.

use standfast_crds::v1alpha1::{JobAction, OrdersRead, PositionsRead, TradingHalt, TradingHaltStatus, Venue};

use super::{HaltReconciler, act, decide::Known};
use crate::calls::{Orders, Outcome, Positions};

impl HaltReconciler {
    pub(super) async fn job_action(&self, _: &TradingHalt, _: &TradingHaltStatus, _: &str, _: &JobAction) -> Outcome {
        act::failed("not yet".into())
    }

    pub(super) async fn job_orders(
        &self,
        _: &str,
        _: &TradingHalt,
        _: &Venue,
        _: usize,
        _: &OrdersRead,
    ) -> Known<Orders> {
        Err("not yet".into())
    }

    pub(super) async fn job_positions(
        &self,
        _: &str,
        _: &TradingHalt,
        _: &Venue,
        _: usize,
        _: &PositionsRead,
    ) -> Known<Positions> {
        Err("not yet".into())
    }
}
