//! The numbers of the rules, from configuration. What a decision used of them is written into its events, so a changed
//! policy never changes the past.

use crate::{points_account::PointsPolicy, tip::TipPolicy, video_job::VideoPolicy, withdrawal::WithdrawalPolicy};

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Of accounts.
    pub points: PointsPolicy,
    /// Of tips.
    pub tips: TipPolicy,
    /// Of withdrawals.
    pub withdrawals: WithdrawalPolicy,
    /// Of video jobs.
    pub videos: VideoPolicy,
}
