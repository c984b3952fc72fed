//! The kinds of objects that a program can create.

/// A kind of object. Kinds are ordered as they must be destroyed: those that use others come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    QueuePair,
    MemoryRegion,
    AddressHandle,
    CompletionCounter,
    CompletionQueue,
    ProtectionDomain,
}
