//! The seqcount of a shared page: one writer, any number of readers, none of whom ever blocks the other.
