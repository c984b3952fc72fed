//! Faults of a run, and the names of lanes and places in them.

use core::fmt;
use std::time::Duration;

/// A lane's place: its launch, numbered as added, and where it is in the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// Number of the launch.
    pub launch: u32,
    /// Block in the launch.
    pub block: u32,
    /// Warp in the block.
    pub warp: u32,
    /// Lane in the warp.
    pub lane: u32,
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { launch, block, warp, lane } = self;
        write!(f, "launch {launch}, block {block}, warp {warp}, lane {lane}")
    }
}

/// An operation at which a lane can lose its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Primitive {
    /// Its first turn is still to come.
    Start,
    /// A load.
    Load,
    /// A store.
    Store,
    /// An atomic operation.
    Atomic,
    /// A fence.
    Fence,
    /// `nanosleep`.
    Nanosleep,
    /// `globaltimer`.
    Globaltimer,
    /// `activemask`.
    Activemask,
    /// `warp_vote_ballot`.
    Ballot,
    /// `warp_shuffle_idx`.
    Shuffle,
    /// `sync_warp`.
    SyncWarp,
    /// `sync_threads`.
    SyncThreads,
    /// It has returned.
    End,
}

impl fmt::Display for Primitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "the start",
            Self::Load => "a load",
            Self::Store => "a store",
            Self::Atomic => "an atomic",
            Self::Fence => "a fence",
            Self::Nanosleep => "nanosleep",
            Self::Globaltimer => "globaltimer",
            Self::Activemask => "activemask",
            Self::Ballot => "ballot",
            Self::Shuffle => "shuffle",
            Self::SyncWarp => "sync_warp",
            Self::SyncThreads => "sync_threads",
            Self::End => "the end",
        })
    }
}

/// A lane that waits for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The lane.
    pub lane: LaneId,
    /// The operation.
    pub primitive: Primitive,
    /// The lanes of its warp that it waits for; at `sync_threads` all of them.
    pub mask: u32,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} of mask {:#010x}", self.lane, self.primitive, self.mask)
    }
}

/// The number of a launch's lanes that were last at an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    /// Number of the launch.
    pub launch: u32,
    /// The operation.
    pub primitive: Primitive,
    /// The number of lanes.
    pub lanes: u32,
}

fn list<T: fmt::Display>(of: &[T]) -> String {
    of.iter().map(T::to_string).collect::<Vec<_>>().join("; ")
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "launch {}: {} lanes at {}", self.launch, self.lanes, self.primitive)
    }
}

/// Why a run ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A lane waits with a mask that it is not in.
    #[error("{0}, which is not in it")]
    NotInMask(Waiting),
    /// A lane waits for lanes that its warp does not have.
    #[error("{waiting}, but the warp has lanes {lanes:#010x} only")]
    NoSuchLanes {
        /// The lane that waits.
        waiting: Waiting,
        /// Lanes that the warp has.
        lanes: u32,
    },
    /// A lane waits for one that has returned. With `sync_threads` that may be any lane of the block.
    #[error("{waiting} in vain: {exited} has returned")]
    Exited {
        /// The lane that waits.
        waiting: Waiting,
        /// The lane that will not come.
        exited: LaneId,
    },
    /// Two lanes wait for each other in different places.
    #[error("{one} and {other} can never meet")]
    Diverged {
        /// The lane that came later.
        one: Waiting,
        /// The lane that was there.
        other: Waiting,
    },
    /// Lanes wait in a circle, each for the next.
    #[error("each waits for the next, and the last for the first: {}", list(.0))]
    Deadlock(Vec<Waiting>),
    /// A lane shuffles from a lane that is not in the mask.
    #[error("{waiting} wants the value of lane {from}, which is not in it")]
    ShuffleFrom {
        /// The lane that asks.
        waiting: Waiting,
        /// The lane that it asks for.
        from: u32,
    },
    /// A lane has panicked, or the [watch](crate::simt::Executor::watch_store) of one of its stores.
    #[error("{lane} panicked: {message}")]
    Panicked {
        /// The lane that had its turn.
        lane: LaneId,
        /// The panic's message.
        message: String,
    },
    /// The run took too long.
    #[error("not over after {after:?}: {}", list(.doing))]
    TimedOut {
        /// The limit.
        after: Duration,
        /// The lanes' operations, by launch.
        doing: Vec<Doing>,
    },
}
