//! The journal of a run: what was intended and what was done, in order. A pure function rejects illegal transitions; an
//! event is on disk before the effect it announces begins.
