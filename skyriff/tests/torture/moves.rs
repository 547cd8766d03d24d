//! What the nemesis can do.

/// What goes wrong, one class each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    KillNode,
    KillPrimary,
    StopNode,
    StopNodeForLong,
    StopPrimary,
    LoseAnswers,
    Cut,
    Flood,
    Housekeeping,
    KillStandby,
    StopStandby,
}

impl Move {
    /// All there are, as often as they shall be among the random ones.
    const WEIGHTS: [(Self, u32); 11] = [
        (Self::KillNode, 2),
        (Self::KillPrimary, 2),
        (Self::StopNode, 1),
        (Self::StopNodeForLong, 1),
        (Self::StopPrimary, 1),
        (Self::LoseAnswers, 3),
        (Self::Cut, 3),
        (Self::Flood, 1),
        (Self::Housekeeping, 2),
        (Self::KillStandby, 1),
        (Self::StopStandby, 1),
    ];

    /// The ones that can be made, each as often as its weight.
    pub fn weighted(with_standby: bool) -> Vec<Self> {
        let there = |this: &Self| with_standby || !matches!(this, Self::KillStandby | Self::StopStandby);
        let weighted = Self::WEIGHTS.into_iter().filter(|(this, _)| there(this));
        weighted.flat_map(|(this, weight)| (0..weight).map(move |_| this)).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::KillNode => "kill -9 of a node",
            Self::KillPrimary => "kill -9 of the primary",
            Self::StopNode => "stop of a node",
            Self::StopNodeForLong => "stop of a node for longer than anybody waits",
            Self::StopPrimary => "stop of the primary",
            Self::LoseAnswers => "answers of the store lost, then cut",
            Self::Cut => "connections cut",
            Self::Flood => "queue filled",
            Self::Housekeeping => "command ids moved",
            Self::KillStandby => "kill -9 of the standby",
            Self::StopStandby => "stop of the standby",
        }
    }
}
