//! What can happen.

use crate::state::BLOCKS_MAX;

/// A step. Engines, members and blocks are named by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the fields name engines, members and blocks")]
pub enum Action {
    /// An engine starts and claims the record.
    Claim { engine: usize },
    /// A member promises the engine's generation, and has a connection with it.
    Promise { engine: usize, member: usize },
    /// The engine opens with the members that have promised.
    Decide { engine: usize },
    /// The lease of every older engine has ended.
    Wait { engine: usize },
    /// The swap under way reaches the store and is answered.
    Swap { engine: usize },
    /// It is done, and the answer is lost.
    SwapUnheard { engine: usize },
    /// It does not reach the store before the engine gives it up.
    SwapOverdue { engine: usize },
    /// Such a swap reaches the store.
    SwapLate,
    /// The engine reads the record to find out.
    Read { engine: usize },
    /// A client asks for a write.
    Write { engine: usize, block: usize },
    /// A member holds the oldest write sent to it; `answered`: and the connection stands.
    Deliver { engine: usize, member: usize, answered: bool },
    /// A client reads from a member.
    ReadBlock { engine: usize, member: usize, block: usize },
    /// A client asks for a flush.
    Flush { engine: usize },
    /// A member flushes.
    FlushMember { engine: usize, member: usize },
    /// The engine sends the swap that drops a member.
    Drop { engine: usize, member: usize },
    /// The engine begins to bring a member back.
    Resync { engine: usize, member: usize },
    /// The member walks over a block.
    Pull { engine: usize, member: usize, source: usize, block: usize },
    /// The engine rewrites a diverged block.
    Rewrite { engine: usize, member: usize, block: usize },
    /// A member that has joined flushes.
    FlushJoined { engine: usize, member: usize },
    /// The engine sends the swap that promotes it.
    Promote { engine: usize, member: usize },
    /// The engine closes in good order.
    Close { engine: usize },
    /// A connection breaks; what was on its way is lost.
    Break { engine: usize, member: usize },
    /// A replica is killed and started again.
    Kill { member: usize },
    /// Its host loses power; of each block, `left` says which version it then has.
    LosePower { member: usize, left: [u8; BLOCKS_MAX] },
    /// An engine is gone.
    Crash { engine: usize },
}
